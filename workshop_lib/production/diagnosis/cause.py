"""What a rule hands on, and the ranking: what failed before what waits for it, each thing once."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from workshop_lib.production.diagnosis.finding import Finding
from workshop_lib.production.diagnosis.patterns import Match

__all__ = ["Cause", "Level", "Report", "Stage", "cause_of", "rank"]

_QUOTES = 3


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

    KNOWN = 0
    """It failed, and a pattern or a fact says why."""
    FAILED = 1
    """It failed, and its first error is all that is known."""
    NOTICED = 2
    """It failed and says itself that another thing is to blame."""
    WAITS = 3
    """It runs, and waits for something."""
    FOLLOWS = 4
    """A controller or Service that only reflects its pods."""


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
    about = [match.about] if match.about else []
    every = list(dict.fromkeys([*about, *objects]))
    quotes = list(dict.fromkeys(text for text in [*evidence, *match.told] if text))
    return Cause(
        *(match.rule, match.cause, match.fix, match.pattern.taught_in, every, quotes, stage, level),
        *(key or every[0], set(waits_for), since, past),
    )


@dataclass
class Report:
    """What one look at a snapshot collects: causes, notes, and what may still become ready."""

    causes: list[Cause] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    starting: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    """Pods that failed, and whose work another one did."""

    def starts(self, objects: Iterable[str], note: str) -> None:
        """Note that something is not ready yet, and has time."""
        self.starting |= set(objects)
        self.notes.append(note)

    def covered(self) -> set[str]:
        """All objects of which something is said."""
        return self.starting | {each for cause in self.causes for each in cause.objects}


def rank(causes: Iterable[Cause]) -> list[Finding]:
    """Merge what is the same, take away what another cause explains, and put the root first."""
    ordered = sorted(_merged(causes), key=lambda cause: cause.order)
    by_object: dict[str, list[int]] = {}
    parent: dict[int, int] = {}
    for index, cause in enumerate(ordered):
        explaining = set(cause.waits_for)
        if cause.level >= Level.NOTICED:  # two views of one object: the better one stands
            explaining.add(cause.objects[0])
        before = [i for each in explaining for i in by_object.get(each, ())]
        before = [i for i in before if not ordered[i].past or cause.past]
        if before:
            parent[index] = min(before)
        for each in cause.objects:
            by_object.setdefault(each, []).append(index)
    explained: dict[int, list[str]] = {}
    for index in parent:
        root = index
        while root in parent:
            root = parent[root]
        explained.setdefault(root, []).extend(ordered[index].objects)
    roots = [(index, cause) for index, cause in enumerate(ordered) if index not in parent]
    return [_finding(cause, explained.get(index, [])) for index, cause in roots]


def _finding(cause: Cause, explained: list[str]) -> Finding:
    objects, evidence = tuple(cause.objects), tuple(cause.evidence)
    others = tuple(dict.fromkeys(each for each in explained if each not in objects))
    return Finding(cause.rule, cause.cause, objects, evidence, cause.fix, cause.taught_in, others)


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
