"""The highest load at which a benchmark client still measures well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.paced import check_load, stamp_errors

if TYPE_CHECKING:
    from workshop_lib.tools.measures.frame import Sample, Side
    from workshop_lib.tools.measures.paced import Pace, PacedLoads
    from workshop_lib.tools.measures.workers import Worker

__all__ = ["guess_streams", "highest", "sustained_side"]

STEP = 1.1
"""Two loads that are compared differ by this factor: so fine is what is found."""

ERROR_SHARE = 0.05
"""A client whose median inter-token error is above this share of the true time has too much."""

SERVER_MARGIN = 2.0
"""No load is tried that the mock server could not send so many times."""


def highest(holds: Callable[[int], bool], guess: int, *, limit: int, step: float = STEP) -> int:
    """Search the highest level that holds, among those that lie a factor apart.

    From the guess upwards or downwards in growing strides, then by halving what is left. Below
    a level that holds all are taken to hold.

    Args:
        holds: Tries a level.
        guess: Where to begin.
        limit: No level is above it.
        step: The factor.

    Returns:
        The level; 0 when not even 1 holds.

    Example:
        >>> highest(lambda level: level <= 100, guess=10, limit=1000, step=2)
        80
    """

    def level(rung: int) -> int:
        return max(0, min(limit, round(guess * step**rung)))

    good = bad = 0
    stride = 1
    if holds(level(0)):
        while True:
            if level(good) >= limit:
                return limit
            bad = good + stride
            if not holds(level(bad)):
                break
            good, stride = bad, 2 * stride
    else:
        while True:
            good = bad - stride
            if level(good) <= 0:
                return 0
            if holds(level(good)):
                break
            bad, stride = good, 2 * stride
    while bad - good > 1:
        middle = (good + bad) // 2
        if holds(level(middle)):
            good = middle
        else:
            bad = middle
    return level(good)


def guess_streams(loads: PacedLoads, client: Worker, pace: Pace) -> int:
    """Run a little of a load, and say from its CPU time how many streams would fill a core.

    Args:
        loads: Runs the load.
        client: Who makes it.
        pace: The load; of its tokens twenty at most, and one request a stream.
    """
    little = replace(pace, requests=pace.streams, tokens=min(20, pace.tokens))
    _, seen = loads.run(client, little)
    cpu_s = max(1e-6, seen.client_cpu_s / max(1, seen.tokens))
    return max(1, int(pace.itl_ms / 1000 / cpu_s))


def sustained_side(loads: PacedLoads, client: Worker, pace: Pace, guess: int) -> Side:
    """Search the most streams that a client follows well, as a side of a comparison.

    Each round begins where the one before has ended.

    Args:
        loads: Runs the loads.
        client: Who makes them.
        pace: Each stream's pace; as many streams and requests as are tried.
        guess: Where the first round begins.
    """
    at = guess

    def sample() -> Sample:
        nonlocal at
        server_rate_per_s = loads.server_rate_per_s(512)
        limit = int(server_rate_per_s / SERVER_MARGIN * pace.itl_ms / 1000)
        tried = 0

        def holds(streams: int) -> bool:
            nonlocal tried
            tried += 1
            load = replace(pace, streams=streams, requests=streams)
            try:
                measured, seen = loads.run(client, load)
                check_load(seen, load)
                error_ms = stamp_errors(measured, seen)[1]
            except WorkshopError:  # it dropped some, or held the server up
                return False
            return error_ms < ERROR_SHARE * pace.itl_ms

        at = highest(holds, min(at, limit), limit=limit)
        if not at:
            raise WorkshopError("not even one stream is followed well: repeat on a quiet machine")
        tokens_per_s = at * 1000 / pace.itl_ms
        return {
            "streams": at,
            "tokens_per_s": tokens_per_s,
            "server_rate_per_s": server_rate_per_s,
            "server_margin": server_rate_per_s / tokens_per_s,
            "tried": tried,
            "limited_by_server": float(at == limit),
        }

    return sample
