"""The wordings of `patterns.yaml`: where one is said, what it means and what mends it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Match", "Pattern", "Table", "all_patterns", "apply_claim", "fact", "patterns"]


class _Words(dict[str, str]):
    """Words for a template: what nobody caught is empty."""

    def __missing__(self, key: str) -> str:
        return ""


@dataclass(frozen=True)
class Pattern:
    """One wording; the fields are explained at the top of patterns.yaml."""

    rule: str
    where: str
    regex: re.Pattern[str]
    cause: str
    fix: tuple[Mapping[str, str], ...]
    taught_in: str
    kind: str
    waits: bool
    when: str
    unless: str
    tell: tuple[str, ...]
    about: str

    def holds(self, facts: str) -> bool:
        """Whether it applies to a pod of which these facts are known."""
        return _applies({"when": self.when, "unless": self.unless}, facts)


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


def _applies(each: Mapping[str, str], facts: str) -> bool:
    when, unless = each.get("when"), each.get("unless")
    return not (when and not re.search(when, facts)) and not (unless and re.search(unless, facts))


def words_of(regex: str) -> frozenset[str]:
    """Words of which every match has one, in lower case; none when there is no telling.

    To look for a word takes a hundredth of the time of a regular expression, and nearly no line of
    a log has one.

    Example:
        >>> sorted(words_of("No space left|disk .{0,9}full"))
        ['disk ', 'no space left']
    """
    return _words_of(re._parser.parse(regex, re.IGNORECASE))  # type: ignore[attr-defined]


def _words_of(parsed: Any) -> frozenset[str]:
    found: list[frozenset[str]] = []
    run = ""
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL":
            run += chr(argument).lower()
            continue
        found, run = [*found, frozenset([run])], ""
        if name == "SUBPATTERN":
            found.append(_words_of(argument[3]))
        elif name == "BRANCH":
            parts = [_words_of(each) for each in argument[1]]
            found.append(frozenset().union(*parts) if all(parts) else frozenset())
        elif name == "MAX_REPEAT" and argument[0]:
            found.append(_words_of(argument[2]))
    found.append(frozenset([run]))
    telling = [words for words in found if words and min(map(len, words)) > 2]
    return max(telling, key=lambda words: min(map(len, words)), default=frozenset())


class Table:
    """The patterns of one place, in order."""

    def __init__(self, rows: Sequence[Pattern]) -> None:
        self.patterns = tuple(rows)
        words = [words_of(each.regex.pattern) for each in rows]
        self._words = [(word, place) for place, some in enumerate(words) for word in some or [""]]

    def match(self, text: str, facts: str = "") -> Match | None:
        """The first pattern that a text matches."""
        for pattern, found in _found(self, text):
            if pattern.holds(facts):
                return Match(pattern, found, facts)
        return None

    def all(self, text: str) -> tuple[tuple[Pattern, Mapping[str, str]], ...]:
        """Every pattern that a text matches, with what it caught."""
        lower = text.lower()
        likely = sorted({place for word, place in self._words if word in lower})
        found = (
            (self.patterns[place], self.patterns[place].regex.search(text)) for place in likely
        )
        return tuple(
            (each, {k: (v or "").strip() for k, v in hit.groupdict().items()})
            for each, hit in found
            if hit
        )


@functools.lru_cache(maxsize=8192)
def _found(table: Table, text: str) -> tuple[tuple[Pattern, Mapping[str, str]], ...]:
    return table.all(text)


@functools.cache
def _file() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("patterns.yaml").read_text())
    return data


def apply_claim(name: str) -> str:
    """How to get a claim that does not exist: the component that brings it, where one does."""
    component = _file()["claims"].get(name)
    if component:
        return f"Apply the component that brings it: cluster.apply('{component}'), "
    return "Apply the manifest that holds this claim, "


@functools.cache
def all_patterns() -> tuple[Pattern, ...]:
    """Every pattern and fact, in the order of the file."""
    return tuple(_pattern(row) for row in _file()["patterns"])


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


def _pattern(row: Mapping[str, Any]) -> Pattern:
    fixes = row["fix"] if isinstance(row["fix"], list) else [row["fix"]]
    fix = tuple(each if isinstance(each, dict) else {"say": each} for each in fixes)
    words = {key: row.get(key, "") for key in ("when", "unless", "about", "rule", "where", "cause")}
    return Pattern(
        regex=re.compile(row.get("match", r"(?!)"), re.IGNORECASE),
        fix=fix,
        taught_in=_file()["lessons"][row["taught_in"]],
        kind=row.get("kind", "own"),
        waits=bool(row.get("waits")),
        tell=tuple(row.get("tell", ())),
        **words,
    )
