"""Causes, their ranking, and the diagnosis: what failed before what waits for it, each once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, TypeAlias

from workshop_lib.production.diagnosis.patterns import Match

__all__ = ["Cause", "Diagnosis", "Finding", "Level", "Report", "Stage", "cause_of", "rank"]

Verdict: TypeAlias = Literal["healthy", "starting", "problems", "not known yet"]
_QUOTES, _SHOWN_OBJECTS = 3, 6


@dataclass(frozen=True)
class Finding:
    """One broken thing.

    Attributes:
        rule: Name of the rule that found it, such as `gpu-not-offered`.
        cause: What is wrong.
        objects: The objects it concerns as `Kind/name`: the broken one first.
        evidence: What the cluster said, word for word.
        fix: A command or a change that mends it.
        taught_in: The lesson that explains it.
        explains: Objects that only wait for this one.
    """

    rule: str
    cause: str
    objects: tuple[str, ...]
    evidence: tuple[str, ...]
    fix: str
    taught_in: str
    explains: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if v}

    def __str__(self) -> str:
        quotes = [f"  evidence  {text}" for text in self.evidence]
        lines = [f"{self.rule}: {self.cause}", f"  objects   {_some(self.objects)}", *quotes]
        lines += [f"  fix       {self.fix}", f"  taught in {self.taught_in}"]
        return "\n".join(lines + [f"  explains  {_some(self.explains)}"] * bool(self.explains))


class Diagnosis(list[Finding]):
    """The findings of one look at a cluster, the root cause first; shows itself as a table.

    Args:
        findings: What is wrong.
        notes: What is no fault, but worth knowing: what still starts, what could not be read.
        starting: Something is not ready yet, and still has time.

    Example:
        >>> Diagnosis([]).verdict
        'healthy'
    """

    def __init__(
        self, findings: Iterable[Finding], notes: Sequence[str] = (), *, starting: bool = False
    ) -> None:
        super().__init__(findings)
        self.notes, self.starting = tuple(notes), starting

    @property
    def verdict(self) -> Verdict:
        """In two words.

        `healthy`: all is ready. `starting`: not yet, and it has time. `problems`: the findings say
        why. `not known yet`: something is not ready, and the snapshot does not say why.
        """
        if not self:
            return "starting" if self.starting else "healthy"
        return "not known yet" if set(self.rules) == {"unknown"} else "problems"

    @property
    def rules(self) -> list[str]:
        """The findings' rules, in order."""
        return [finding.rule for finding in self]

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON data."""
        found = [finding.to_dict() for finding in self]
        return {"verdict": self.verdict, "findings": found, "notes": list(self.notes)}

    def __str__(self) -> str:
        parts = [f"verdict: {self.verdict}"]
        parts += [f"{number}. {found}" for number, found in enumerate(self, 1)]
        return "\n".join(parts + [f"note: {note}" for note in self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import pandas as pd

        from workshop_lib.tables import text_table

        notes = "".join(f"<div>note: {note}</div>" for note in self.notes)
        rows = [
            {"cause": f.cause, "evidence": "\n".join(f.evidence), "fix": f.fix, "in": f.taught_in}
            for f in self
        ]
        table = text_table(pd.DataFrame(rows)).to_html() if rows else ""
        return f"<div>verdict: <b>{self.verdict}</b></div>{table}{notes}"


def _some(objects: Sequence[str]) -> str:
    shown, more = ", ".join(objects[:_SHOWN_OBJECTS]), len(objects) - _SHOWN_OBJECTS
    return f"{shown} and {more} more" if more > 0 else shown


class Stage(IntEnum):
    """The steps of the tree: the first one that fails is the cause."""

    NODE = 0
    SCHEDULING = 1
    VOLUMES = 2
    IMAGE = 3
    START = 4
    HEALTH = 5
    DEPENDANTS = 6


class Level(IntEnum):
    """How much a cause explains: what failed outranks what waits for it, however vague it is."""

    KNOWN = 0  # it failed, and a pattern or a fact says why
    FAILED = 1  # it failed, and its first error is all that is known
    NOTICED = 2  # it failed, and says itself that another thing is to blame
    WAITS = 3  # it runs, and waits for something
    FOLLOWS = 4  # a controller or Service that only reflects its pods


@dataclass
class Cause:
    """What one rule found out about one object."""

    rule: str
    cause: str
    fix: str
    taught_in: str
    objects: list[str]
    evidence: list[str]
    stage: Stage
    level: Level
    key: str
    waits_for: set[str]
    since: float
    past: bool

    @property
    def order(self) -> tuple[bool, int, int, float, int]:
        """The root cause comes first."""
        return (self.past, self.level, self.stage, self.since, -len(self.objects))


def cause_of(
    match: Match,
    objects: Iterable[str],
    evidence: Iterable[str],
    stage: Stage,
    level: Level = Level.KNOWN,
    *,
    key: str = "",
    waits_for: Collection[str] = (),
    since: float = 0.0,
    past: bool = False,
) -> Cause:
    """A cause in the words of a pattern or fact; the object that its words name comes first."""
    every = list(dict.fromkeys([*([match.about] if match.about else []), *objects]))
    quotes = list(dict.fromkeys(text for text in [*evidence, *match.told] if text))
    return Cause(
        *(match.rule, match.cause, match.fix, match.pattern.taught_in, every, quotes, stage, level),
        *(key or every[0], set(waits_for), since, past),
    )


@dataclass
class Report:
    """What one look collects beside causes: notes, what may still become ready, what is done."""

    notes: list[str] = field(default_factory=list)
    starting: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)

    def starts(self, objects: Iterable[str], note: str) -> None:
        """Note that something is not ready yet, and has time."""
        self.starting |= set(objects)
        self.notes.append(note)


def rank(causes: Iterable[Cause]) -> list[Finding]:
    """Merge what is the same, take away what another cause explains, and put the root first."""
    ordered = sorted(_merged(causes), key=lambda cause: cause.order)
    by_object: dict[str, list[int]] = {}
    root: dict[int, int] = {}
    explained: dict[int, list[str]] = {}
    for index, cause in enumerate(ordered):
        explaining = set(cause.waits_for)
        if cause.level >= Level.NOTICED:  # two views of one object: the better one stands
            explaining.add(cause.objects[0])
        before = [i for each in explaining for i in by_object.get(each, ())]
        before = [i for i in before if not ordered[i].past or cause.past]
        root[index] = root[min(before)] if before else index
        if before:
            explained.setdefault(root[index], []).extend(cause.objects)
        for each in cause.objects:
            by_object.setdefault(each, []).append(index)
    found = []
    for cause, index in ((ordered[i], i) for i, first in root.items() if i == first):
        own = set(cause.objects)
        others = [each for each in explained.get(index, []) if each not in own]
        what = (cause.rule, cause.cause, tuple(cause.objects), tuple(cause.evidence), cause.fix)
        found.append(Finding(*what, cause.taught_in, tuple(dict.fromkeys(others))))
    return found


def _merged(causes: Iterable[Cause]) -> list[Cause]:
    """One cause for each rule and key, with all its objects and a few of the quotes."""
    found: dict[tuple[str, str], Cause] = {}
    for cause in causes:
        same = found.setdefault((cause.rule, cause.key), cause)
        if same is cause:
            continue
        known = set(same.objects)
        same.objects += [each for each in cause.objects if each not in known]
        same.waits_for |= cause.waits_for
        same.past = same.past and cause.past
        same.level = min(same.level, cause.level)
        new = [quote for quote in cause.evidence if quote not in same.evidence]
        same.evidence += new[: max(0, _QUOTES - len(same.evidence))]
    for cause in found.values():
        cause.waits_for -= set(cause.objects)
    return list(found.values())
