"""The wordings of `patterns.yaml`: where one is said, what it means and what mends it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Match", "Pattern", "Table", "all_patterns", "apply_claim", "dials", "fact", "patterns"]
__all__ += ["says"]


class _Words(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return ""


def _applies(each: Mapping[str, str], facts: str) -> bool:
    when, unless = each.get("when"), each.get("unless")
    return not (when and not re.search(when, facts)) and not (unless and re.search(unless, facts))


@dataclass(frozen=True, eq=False)
class Pattern:
    """One wording; the fields are explained at the top of patterns.yaml."""

    rule: str
    where: str
    cause: str
    fix: tuple[Mapping[str, str], ...]
    taught_in: str
    match: str = r"(?!)"
    kind: str = "own"
    waits: bool = False
    when: str = ""
    unless: str = ""
    tell: tuple[str, ...] = ()
    about: str = ""

    @functools.cached_property
    def regex(self) -> re.Pattern[str]:
        """What it matches, in any case of letters."""
        return re.compile(self.match, re.IGNORECASE)


@dataclass(frozen=True)
class Match:
    """A pattern that was found, with what its groups caught, and the facts of the pod."""

    pattern: Pattern
    groups: Mapping[str, str]
    facts: str = ""

    @property
    def rule(self) -> str:
        """The pattern's rule."""
        return self.pattern.rule

    @property
    def about(self) -> str:
        """The object that the words name as the broken one, as `Kind/name`; or empty."""
        return self._filled(self.pattern.about)

    @property
    def cause(self) -> str:
        """What it means."""
        text = self._filled(self.pattern.cause)
        return f"The {text[4:]}" if text.startswith("the ") else text

    @property
    def fix(self) -> str:
        """What mends it, without what is done already."""
        parts = [each["say"] for each in self.pattern.fix if _applies(each, self.facts)]
        return " ".join(self._filled(part) for part in parts)

    @property
    def told(self) -> list[str]:
        """Facts worth quoting beside the line."""
        found = (re.search(each, self.facts) for each in self.pattern.tell)
        return [each[1] for each in found if each]

    def add(self, **words: object) -> Match:
        """The same with more words for its texts; what a group caught stays."""
        given = {key: str(value or "") for key, value in words.items()}
        return replace(self, groups={**given, **{k: v for k, v in self.groups.items() if v}})

    def _filled(self, template: str) -> str:
        return re.sub(r"\s+", " ", template.format_map(_Words(self.groups))).strip()


def _words_of(parsed: Any) -> frozenset[str]:
    """Words of which every match of a parsed expression has one; none when there is no telling.

    To look for a word takes a hundredth of the time of a regular expression, and nearly no line of
    a log has one.
    """
    run, found = "", list[frozenset[str]]()
    for operation, argument in parsed:
        if (name := str(operation)) == "LITERAL":
            run += chr(argument).lower()
            continue
        found.append(frozenset([run]))
        run = ""
        if name == "SUBPATTERN" or (name == "MAX_REPEAT" and argument[0]):
            found.append(_words_of(argument[-1]))
        elif name == "BRANCH":
            parts = [_words_of(each) for each in argument[1]]
            found.append(frozenset().union(*parts) if all(parts) else frozenset())
    telling = [w for w in [*found, frozenset([run])] if w and min(map(len, w)) > 2]
    return max(telling, key=lambda words: min(map(len, words)), default=frozenset())


class Table:
    """The patterns of one place, in order."""

    def __init__(self, rows: list[Pattern]) -> None:
        parse = re._parser.parse  # type: ignore[attr-defined]
        self._words = {each: _words_of(parse(each.match, re.IGNORECASE)) or [""] for each in rows}
        self._flat = [(word, each) for each, words in self._words.items() for word in words]

    @functools.lru_cache(maxsize=8192)  # noqa: B019 - there are a dozen tables, for good
    def likely(self, text: str) -> tuple[Pattern, ...]:
        """The patterns of which a text has a word, in order."""
        lower = text.lower()
        return tuple(dict.fromkeys(each for word, each in self._flat if word in lower))

    def match(
        self, text: str, facts: str = "", likely: Iterable[Pattern] | None = None
    ) -> Match | None:
        """The first pattern that a text matches, and that applies to a pod of these facts."""
        lower = text.lower()
        for pattern in self.likely(text) if likely is None else likely:
            if not any(word in lower for word in self._words[pattern]):
                continue
            if (hit := pattern.regex.search(text)) and _applies(vars(pattern), facts):
                groups = {k: (v or "").strip() for k, v in hit.groupdict().items()}
                return Match(pattern, groups, facts)
        return None


@functools.cache
def _file() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("patterns.yaml").read_text())
    return data


@functools.cache
def says(name: str) -> re.Pattern[str]:
    """One expression for words that are no failure, in any case of letters."""
    return re.compile("|".join(_file()["words"][name]), re.IGNORECASE)


@functools.cache
def dials() -> tuple[re.Pattern[str], ...]:
    """How a line names the host, and the port, that its program dials; the surest first."""
    host, port = r"(?P<host>[\w.-]+)", r"(?P<port>\d{2,5})"
    rows = (row.replace("HOST", host).replace("PORT", port) for row in _file()["dials"])
    return tuple(re.compile(row) for row in rows)


def apply_claim(name: str) -> str:
    """How to get a claim that does not exist: the component that brings it, where one does."""
    component = _file()["claims"].get(name)
    if component:
        return f"Apply the component that brings it: cluster.apply('{component}'), "
    return "Apply the manifest that holds this claim, "


@functools.cache
def all_patterns() -> tuple[Pattern, ...]:
    """Every pattern and fact, in the order of the file."""
    lessons, found = _file()["lessons"], []
    for row in _file()["patterns"]:
        fixes = row["fix"] if isinstance(row["fix"], list) else [row["fix"]]
        fix = tuple(each if isinstance(each, dict) else {"say": each} for each in fixes)
        found.append(Pattern(**{**row, "fix": fix, "taught_in": lessons[row["taught_in"]]}))
    return tuple(found)


@functools.cache
def patterns(where: str, *, waits: bool = False, weak: bool = False) -> Table:
    """The patterns of one place."""
    found = [each for each in all_patterns() if each.where == where]
    found = [each for each in found if each.waits or not waits]
    return Table([each for each in found if each.kind == "weak" or not weak])


@functools.cache
def _facts() -> dict[str, Pattern]:
    return {each.rule: each for each in all_patterns() if each.where == "fact"}


def fact(rule: str, **words: object) -> Match:
    """What the tree itself found out, in the words of patterns.yaml."""
    return Match(_facts()[rule], {}).add(**words)
