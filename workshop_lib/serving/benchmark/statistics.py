"""How sure a measured percentile is, without a guess about how latencies are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workshop_lib.errors import WorkshopError

__all__ = ["Interval", "percentile_interval", "quantile_ranks"]

# Draws of whole requests for values that come in groups; more change the ends by little.
RESAMPLES = 300
MIN_GROUPS = 6
"""Fewer requests drawn again and again are only themselves: they bound nothing."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile and the interval that holds its true value.

    Attributes:
        value: The percentile of the sample; None for an empty one.
        low, high: Ends of the interval; None where so few samples say nothing.
        samples: Requests that it comes from.
    """

    value: float | None
    low: float | None
    high: float | None
    samples: int


def quantile_ranks(
    samples: int, share: float, confidence: float = 0.95
) -> tuple[int | None, int | None]:
    """Which of the sorted samples bound a quantile, counted from 1.

    How many of n samples lie below the true quantile is binomially distributed, whatever the
    distribution of the samples.

    Args:
        samples: How many there are.
        share: The quantile, between 0 and 1.
        confidence: Probability that both bounds hold.

    Returns:
        The ranks of the lower and upper bound; None for one that so few samples do not have.

    Source: W. J. Conover, "Practical Nonparametric Statistics", 3rd edition, section 3.2.

    Example:
        >>> quantile_ranks(100, 0.5), quantile_ranks(100, 0.99)
        ((40, 61), (97, None))
    """
    import numpy as np

    if samples < 1:
        return None, None
    k = np.arange(samples + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, samples + 1)))])
    choose = logs[samples] - logs[k] - logs[samples - k]
    below = np.cumsum(np.exp(choose + k * np.log(share) + (samples - k) * np.log1p(-share)))
    tail = (1 - confidence) / 2
    # Rank r is a lower bound when fewer than r samples below the quantile are unlikely enough.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return low if low >= 1 else None, high if high <= samples else None


def percentile_interval(
    groups: Sequence[Sequence[float]], percent: float, confidence: float = 0.95
) -> Interval:
    """A percentile over all values of all groups, and how sure it is.

    With one value a group: order statistics. With several, which resemble each other within
    a group: the bootstrap over whole groups.

    Args:
        groups: The values of each request.
        percent: Which percentile, between 0 and 100.
        confidence: Probability that the interval holds the true value.

    Raises:
        WorkshopError: A share or probability out of range.

    Source: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8
    (grouped data) and 5.3 (percentile method).

    Example:
        >>> percentile_interval([(float(n),) for n in range(1, 101)], 50)
        Interval(value=50.5, low=40.0, high=61.0, samples=100)
    """
    import numpy as np

    if not 0 < percent < 100 or not 0 < confidence < 1:
        raise WorkshopError(
            f"a percentile is between 0 and 100 and a confidence between 0 and 1, got {percent} "
            f"and {confidence}"
        )
    values = [np.asarray(group, dtype=float) for group in groups if len(group)]
    if not values:
        return Interval(None, None, None, 0)
    together = np.sort(np.concatenate(values))
    value = float(np.percentile(together, percent))
    if all(len(group) == 1 for group in values):
        low, high = quantile_ranks(len(together), percent / 100, confidence)
        return Interval(
            value,
            None if low is None else float(together[low - 1]),
            None if high is None else float(together[high - 1]),
            len(values),
        )
    if len(values) < MIN_GROUPS:
        return Interval(value, None, None, len(values))
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    found = [np.percentile(np.concatenate([values[i] for i in draw]), percent) for draw in draws]
    tail = 100 * (1 - confidence) / 2
    ends = np.percentile(found, [tail, 100 - tail])
    return Interval(value, float(ends[0]), float(ends[1]), len(values))
