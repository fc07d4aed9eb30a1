"""A training that runs and makes no step any more: nothing written for ten times the median step.

A rank then waits in a collective operation for another one that is gone or stuck. The rank whose
log ended first is where to look.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Level, Stage, cause_of
from workshop_lib.production.diagnosis.logs import lines_of, lines_with, shown
from workshop_lib.production.diagnosis.patterns import fact
from workshop_lib.production.diagnosis.view import Container, Pod, View, seconds

__all__ = ["hang_causes"]

TIMES_MEDIAN, AT_LEAST_S, RECENT, LEAST_STEPS = 10, 60.0, 60, 5
"""What hangs, how many lines about steps are read, and how many steps tell how long one takes."""

_TOOK = re.compile(
    r"(?:total step time|step_time|step took|time per step)['\"]?[:= ]+ *([\d.]+)", re.I
)
_PACE = re.compile(r"\d+/\d+ \[[\d:]+<[\d:?]+, +([\d.]*[1-9][\d.]*)(s/it|it/s)")
_STEP = re.compile(r"\bstep:?[ =]*\[?(\d+)(?:/(\d+))?", re.I)
_CLOCK = re.compile(r"(?:^|[\s\[T])(\d\d):(\d\d):(\d\d)\b")
_SPEAKS = re.compile(r"NCCL|WorkNCCL|ProcessGroup|\braylet\b|\bray\b", re.I)


def _step_seconds(view: View, pod: Pod, container: Container) -> list[float]:
    """How long a training's steps took: as its log says, by its progress bar, or by its clock."""
    places = lines_with(container.log, "tep", "it]", "/it")
    lines = [lines_of(container.log)[place] for place in places]
    text = "\n".join(lines[-RECENT:])
    if said := _TOOK.findall(text):
        return [float(each) for each in said]
    if paces := _PACE.findall(text):
        return [float(n) if unit == "s/it" else 1 / float(n) for n, unit in paces]
    stamps: dict[int, float] = {}
    for line in lines[-RECENT:]:
        step, clock = _STEP.search(line), _CLOCK.search(line)
        if step and clock:
            stamps.setdefault(int(step[1]), _of_day(clock))
    times = [stamps[number] for number in sorted(stamps)]
    if len(times) > 2:
        return [(after - before) % 86400 for before, after in itertools.pairwise(times)]
    # Numbered and not timed: they shared the time from the start to the last line.
    steps = [found for line in lines if (found := _STEP.search(line))]
    numbers = {found[1] for found in steps}
    if len(numbers) < LEAST_STEPS or not container.started or steps[-1][1] == steps[-1][2]:
        return []
    return [max(0.0, last_written(view, pod, container) - container.started) / len(numbers)]


def _of_day(clock: re.Match[str]) -> float:
    return int(clock[1]) * 3600.0 + int(clock[2]) * 60.0 + int(clock[3])


def last_written(view: View, pod: Pod, container: Container) -> float:
    """When a container last wrote, seconds since 1970: told, or by its own clock; or 0."""
    written = view.raw.get("log_times") or {}
    if told := seconds(written.get(f"{pod.name}/{container.name}")):
        return told
    for line in reversed(lines_of(container.log)):
        if clock := _CLOCK.search(line[:60]):
            return view.now - (view.now % 86400 - _of_day(clock)) % 86400
    return 0.0


def hang_causes(view: View) -> Iterator[Cause]:
    """Trainings that have not made a step for longer than ten times their median step."""
    seen: set[str] = set()
    for pod in view.pods:
        for each in pod.containers:
            if not each.running or pod.top in seen or not each.log:
                continue
            steps = _step_seconds(view, pod, each)
            written = last_written(view, pod, each) if steps else 0.0
            median = statistics.median(steps) if written else 0.0
            if median and view.now - written > max(TIMES_MEDIAN * median, AT_LEAST_S):
                seen.add(pod.top)
                yield _hang(view, pod, median, view.now - written)


def _hang(view: View, pod: Pod, median: float, silent: float) -> Cause:
    mates = [view.pod_of[name] for name in sorted(view.companions(pod))]
    running = [(p, c) for p in mates for c in p.containers if c.running and c.log]
    ends = [(last_written(view, *each), *each) for each in running if last_written(view, *each)]
    time, first, container = min(ends, key=lambda each: each[0])
    lines = lines_of(container.log)
    spoke = [line for line in lines if _SPEAKS.search(line)]
    words = {"what": pod.top, "silent": f"{silent:.0f} s", "median": f"{median:.1f} s"}
    words["which"] = f"of {len(ends)} logs, that of" if len(ends) > 1 else "the log of"
    words |= {"first": f"{first.name}{first.role}", "ago": f"{view.now - time:.0f} s"}
    match = fact("training-hangs", **words, pod=first.name, container=container.name)
    objects = [first.ref, *(each.ref for each in mates)]
    quotes = map(shown, [*spoke[-1:], *lines[-1:]])
    return cause_of(match, objects, quotes, Stage.HEALTH, Level.FAILED, key=pod.top)
