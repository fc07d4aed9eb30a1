"""Which levels a sweep has, which moments an open loop sends at, and when a server is full."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.benchmark.load import LevelPlan, LevelRun

__all__ = ["SATURATION_GAIN", "plan_closed", "plan_open", "poisson_arrivals", "ramp", "saturated"]

MAX_REQUESTS = 100_000
MAX_RATE_PER_S = 2_000.0
MAX_LEVEL = 4096
_SMALL_LEVEL = 8

SATURATION_GAIN = 0.1
"""A higher level that brings less than this share of throughput more brings nothing."""

Requests = int | Mapping[Any, int] | None


def ramp(start: int = 1, limit: int = 256, *, factor: int = 2) -> tuple[int, ...]:
    """Levels that grow by a factor: with `stop_when_saturated` the way to a server's limit.

    Args:
        start: The first level.
        limit: No level is above it; at most 4096.
        factor: How many times the one before each level is.

    Raises:
        WorkshopError: A value that makes no ramp.

    Example:
        >>> ramp(1, 40)
        (1, 2, 4, 8, 16, 32)
    """
    whole = all(isinstance(value, int) for value in (start, limit, factor))
    if not whole or not 1 <= start <= limit <= MAX_LEVEL or factor < 2:
        raise WorkshopError(
            f"a ramp needs whole numbers, 1 <= start <= limit <= {MAX_LEVEL} and a factor of at "
            f"least 2, got start={start}, limit={limit}, factor={factor}"
        )
    levels = [start]
    while levels[-1] * factor <= limit:
        levels.append(levels[-1] * factor)
    return tuple(levels)


def poisson_arrivals(
    rate_per_s: float, *, requests: int | None, duration_s: float | None, seed: int = 0
) -> tuple[float, ...]:
    """Moments at which an open loop sends: readers who do not know of each other.

    The gaps of a Poisson process are exponentially distributed; the first request is sent
    at once.

    Args:
        rate_per_s: Requests a second, on average.
        requests: How many; None when only the duration ends it.
        duration_s: None is later; None when only the number ends it.
        seed: The same seed gives the same moments.

    Example:
        >>> moments = poisson_arrivals(10, requests=1000, duration_s=None)
        >>> len(moments), 90 < moments[-1] < 110
        (1000, True)
    """
    source = random.Random(seed)
    moments = [0.0]
    while requests is None or len(moments) < requests:
        later = moments[-1] + source.expovariate(rate_per_s)
        if duration_s is not None and later >= duration_s:
            break
        moments.append(later)
    return tuple(moments)


def plan_closed(
    levels: Sequence[int], requests: Requests, duration_s: float | None
) -> tuple[LevelPlan, ...]:
    """Levels that keep a number of requests in flight.

    Args:
        levels: Requests in flight.
        requests: Requests at a level, or one number for each level; by default, without a
            duration, four times the level up to 8 in flight and twice above, at least eight.
        duration_s: How long requests are sent at each level.

    Raises:
        WorkshopError: A value that makes no sense.

    Example:
        >>> [level.requests for level in plan_closed((1, 4, 32), None, None)]
        [8, 16, 64]
    """
    # The range first: NaN and infinity are no integers that could be compared.
    if not levels or any(not 1 <= level <= MAX_LEVEL or level % 1 for level in levels):
        raise WorkshopError(
            f"levels must be whole numbers from 1 to {MAX_LEVEL}, got {list(levels)}"
        )
    _check_distinct("level", levels)
    _check_duration(duration_s)
    planned = []
    for level in levels:
        count = _count(requests, level)
        if count is None and duration_s is None:
            # Above, two rounds of so many tell as much as four, and take half the time.
            count = max(8, (4 if level <= _SMALL_LEVEL else 2) * level)
        if count is not None and not level <= count <= MAX_REQUESTS:
            raise WorkshopError(
                f"{count} requests cannot keep {level} in flight; "
                f"ask for {level} to {MAX_REQUESTS:,}"
            )
        planned.append(LevelPlan(load=int(level), requests=count, duration_s=duration_s))
    return tuple(planned)


def plan_open(
    rates_per_s: Sequence[float], requests: Requests, duration_s: float | None, seed: int
) -> tuple[LevelPlan, ...]:
    """Levels that send requests at a rate, whatever becomes of them.

    Args:
        rates_per_s: Requests a second.
        requests: Requests at a level, or one number for each level; by default, without a
            duration, those of ten seconds, at least eight.
        duration_s: How long requests are sent at each level.
        seed: Draws the moments.

    Raises:
        WorkshopError: A value that makes no sense.

    Example:
        >>> [level.requests for level in plan_open((4.0,), None, None, seed=0)]
        [40]
    """
    if not rates_per_s or any(not 0 < rate <= MAX_RATE_PER_S for rate in rates_per_s):
        raise WorkshopError(
            f"rates must be numbers above 0 and up to {MAX_RATE_PER_S:,.0f} requests a second, "
            f"got {list(rates_per_s)}"
        )
    _check_distinct("rate", rates_per_s)
    _check_duration(duration_s)
    planned = []
    for rate in rates_per_s:
        count = _count(requests, rate)
        if count is None and duration_s is None:
            count = max(8, round(10 * rate))
        expected = min(x for x in (count, rate * (duration_s or 1e9)) if x is not None)
        if not 1 <= expected <= MAX_REQUESTS:
            raise WorkshopError(
                f"{rate:g} a second would send {expected:,.3g} requests; choose a number or a "
                f"duration for 1 to {MAX_REQUESTS:,}"
            )
        arrivals_s = poisson_arrivals(rate, requests=count, duration_s=duration_s, seed=seed)
        planned.append(
            LevelPlan(
                load=rate, requests=len(arrivals_s), duration_s=duration_s, arrivals_s=arrivals_s
            )
        )
    return tuple(planned)


def saturated(levels: Sequence[LevelRun], gain: float = SATURATION_GAIN) -> str:
    """Why more load would bring nothing, in one line; empty while it would.

    Closed loop: the last level made hardly more tokens a second than the one before it.
    Open loop: requests came faster than they were answered, so that after the last had come
    the server still worked for long on those that waited.

    Args:
        levels: The levels so far, in rising order.
        gain: Share by which a level's throughput must rise.

    Example:
        >>> saturated([])
        ''
    """
    if not levels or not any(not times.error for times in levels[-1].finished):
        return ""
    last = levels[-1]
    if last.plan.arrivals_s is not None:
        return _backlog(levels)
    if len(levels) < 2 or not _tokens_per_s(levels[-2]):
        return ""
    now, before = _tokens_per_s(last), _tokens_per_s(levels[-2])
    if now >= before * (1 + gain):
        return ""
    return (
        f"saturated: {last.plan.load:g} in flight make {now:.0f} tokens/s, "
        f"{levels[-2].plan.load:g} made {before:.0f}"
    )


def _backlog(levels: Sequence[LevelRun]) -> str:
    last = levels[-1]
    arrivals_s = last.plan.arrivals_s or ()
    window_s = arrivals_s[-1] if arrivals_s else 0.0
    drain_s = max(times.end_s for times in last.finished) - last.start_s - window_s
    alone_s = min(
        times.end_s - times.due_s for run in levels for times in run.finished if not times.error
    )
    # One answer's own time is no backlog, and neither is a burst that is soon worked off.
    if drain_s < max(3 * alone_s, 0.2 * window_s):
        return ""
    return (
        f"saturated: {last.plan.load:g} a second are more than the server answers; it worked "
        f"on for {drain_s:.1f} s after the last had come"
    )


def _tokens_per_s(level: LevelRun) -> float:
    good = [times for times in level.finished if not times.error]
    if not good:
        return 0.0
    start_s = min(times.start_s for times in level.finished)
    duration_s = max(times.end_s for times in level.finished) - start_s
    return sum(times.completion_tokens or 0 for times in good) / duration_s


def _count(requests: Requests, level: float) -> int | None:
    count = requests.get(level) if isinstance(requests, Mapping) else requests
    if count is not None and (not isinstance(count, int) or count < 1):
        raise WorkshopError(f"{count} requests measure nothing; ask for a whole number, at least 1")
    return count


def _check_distinct(name: str, levels: Sequence[float]) -> None:
    if len(set(levels)) != len(levels):
        raise WorkshopError(f"each {name} may appear once, got {list(levels)}")


def _check_duration(duration_s: float | None) -> None:
    if duration_s is not None and not 0 < duration_s <= 3600:
        raise WorkshopError(f"duration_s must be more than 0 and at most 3600, got {duration_s}")
