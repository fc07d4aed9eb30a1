"""From causes to findings: one for each broken thing, its consequences taken away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workshop_lib.production.diagnosis.cause import Cause
from workshop_lib.production.diagnosis.finding import UNKNOWN, Finding

__all__ = ["finding_of", "root_causes"]

_QUOTES = 3


def root_causes(causes: Iterable[Cause]) -> list[tuple[Cause, list[str]]]:
    """Merge what is the same, take away what another cause explains, and put the root first.

    Args:
        causes: What the rules found.

    Returns:
        The causes that are left, each with the objects that only wait for it.
    """
    roots, explained = _roots(_merged(causes))
    roots.sort(key=lambda cause: (
        cause.background and id(cause) not in explained, cause.depth, cause.vague,
        -len(cause.objects),
    ))  # fmt: skip
    return [(cause, explained.get(id(cause), [])) for cause in roots]


def finding_of(cause: Cause, explains: Sequence[str]) -> Finding:
    """A cause as it is shown.

    Args:
        cause: The cause.
        explains: The objects that only wait for it.
    """
    return Finding(
        cause.rule, cause.cause, tuple(cause.objects), tuple(cause.evidence), cause.fix,
        cause.taught_in, tuple(each for each in explains if each not in cause.objects),
    )  # fmt: skip


def _merged(causes: Iterable[Cause]) -> list[Cause]:
    """One cause for each rule and key, with all its objects and a few of the quotes."""
    found: dict[tuple[str, str], Cause] = {}
    for cause in causes:
        same = found.setdefault((cause.rule, cause.key), cause)
        if same is cause:
            continue
        same.objects += [each for each in cause.objects if each not in same.objects]
        same.waits_for |= cause.waits_for
        same.background = same.background and cause.background
        for quote in cause.evidence:
            if quote not in same.evidence and len(same.evidence) < _QUOTES:
                same.evidence.append(quote)
    for cause in found.values():
        cause.waits_for -= set(cause.objects)
        cause.vague = cause.vague or cause.rule == UNKNOWN
    return list(found.values())


def _roots(causes: list[Cause]) -> tuple[list[Cause], dict[int, list[str]]]:
    """The causes that no other one explains, and what each of them explains besides.

    Two that wait for each other do not both go away: the deeper one stays, and of two
    alike the more telling one.
    """
    order = sorted(range(len(causes)), key=lambda i: (
        causes[i].vague, causes[i].depth, bool(causes[i].waits_for), i))  # fmt: skip
    by_object: dict[str, list[int]] = {}
    for index in order:
        for each in causes[index].objects:
            by_object.setdefault(each, []).append(index)
    place = {index: rank for rank, index in enumerate(order)}
    parent: dict[int, int] = {}
    for index in reversed(order):
        cause = causes[index]
        candidates = {
            other
            for each in cause.waits_for
            for other in by_object.get(each, ())
            if other != index and not _leads_to(parent, other, index)
        }
        if cause.vague:  # what only says how something ended gives way to what says why
            candidates |= {
                other
                for each in cause.objects
                for other in by_object[each]
                if not causes[other].vague and not _leads_to(parent, other, index)
            }
        # A cause that waits for another is explained by it, whatever its depth, unless that
        # one only says how something ended while this one says why.
        better = [o for o in candidates if not causes[o].vague or cause.vague]
        mutual = [o for o in better if set(causes[o].waits_for) & set(cause.objects)]
        better = [o for o in better if o not in mutual or place[o] < place[index]]
        if better:
            parent[index] = min(better, key=lambda o: place[o])
    explained: dict[int, list[str]] = {}
    for index in parent:
        root = index
        while root in parent:
            root = parent[root]
        listed = explained.setdefault(id(causes[root]), [])
        listed += [each for each in causes[index].objects
                   if each not in listed and each not in causes[root].objects]  # fmt: skip
    return [causes[i] for i in order if i not in parent], explained


def _leads_to(parent: dict[int, int], start: int, goal: int) -> bool:
    """Whether following the explanations from one cause comes to another."""
    while start in parent:
        start = parent[start]
        if start == goal:
            return True
    return False
