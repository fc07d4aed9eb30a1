"""Percentile intervals hold the true value as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.benchmark.result import (
    BenchmarkResult,
    LevelRecord,
    RequestRecord,
    percentile_interval,
    quantile_ranks,
)


def coverage(draw: object, truth: float, percent: float, rounds: int = 400) -> float:
    source = np.random.default_rng(7)
    held = 0
    for _ in range(rounds):
        _, low, high = percentile_interval(draw(source), percent)  # type: ignore[operator]
        low, high = -np.inf if low is None else low, np.inf if high is None else high
        held += low <= truth <= high
    return held / rounds


@pytest.mark.parametrize("percent", [50, 90])
def test_single_values_are_covered_whatever_their_distribution(percent: float) -> None:
    def draw(source: np.random.Generator) -> list[tuple[float]]:
        return [(float(value),) for value in source.exponential(100, size=60)]

    truth = -100 * np.log(1 - percent / 100)
    assert 0.93 <= coverage(draw, truth, percent) <= 1


def test_values_that_come_in_groups_are_not_counted_as_independent() -> None:
    """Each request has its own speed: 25 requests of 40 gaps are 25 observations, not 1000."""

    def draw(source: np.random.Generator) -> list[list[float]]:
        return [
            list(source.normal(speed, 1.0, size=40)) for speed in source.normal(100, 10, size=25)
        ]

    assert coverage(draw, 100.0, 50, rounds=120) > 0.85
    source = np.random.default_rng(1)
    groups = draw(source)
    _, low, high = percentile_interval(groups, 50)
    _, lower, higher = percentile_interval([(value,) for group in groups for value in group], 50)
    assert high - low > 2 * (higher - lower)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("samples", "share", "ranks"),
    [
        # Conover, table of the sign test: n = 20, median, 95%: x(6) to x(15).
        (20, 0.5, (6, 15)),
        (5, 0.5, (None, None)),
        (6, 0.5, (1, 6)),
        (100, 0.99, (97, None)),
        (0, 0.5, (None, None)),
    ],
)
def test_ranks(samples: int, share: float, ranks: tuple[int | None, int | None]) -> None:
    assert quantile_ranks(samples, share) == ranks


def test_few_requests_bound_no_p99() -> None:
    records = [
        RequestRecord(
            load=4, scheduled_s=0.0, start_s=0.0, ttft_ms=100.0 + n, itl_ms=(10.0, 12.0),
            e2e_ms=200.0 + n, prompt_tokens=5, completion_tokens=3, finish_reason="length",
            error="", detail="",
        )
        for n in range(30)
    ]  # fmt: skip
    level = LevelRecord(load=4, duration_s=2.0, server_ms={})
    result = BenchmarkResult("http://a", "m", "now", {}, [level], records)
    table = result.percentiles().set_index(["latency", "percentile"])
    assert list(table.columns) == ["concurrency", "ms", "low_ms", "high_ms", "requests"]
    p50 = table.loc[("ttft", 50)]
    assert p50.low_ms < p50.ms == 114.5 < p50.high_ms and p50.requests == 30
    assert table.loc[("ttft", 99)].isna().high_ms
    assert table.loc[("itl", 50)].low_ms == 11  # the same two gaps in every request
    wide = result.percentiles(0.999).set_index(["latency", "percentile"]).loc[("ttft", 50)]
    assert wide.high_ms - wide.low_ms > p50.high_ms - p50.low_ms
    empty = BenchmarkResult("http://a", "m", "now", {}, [level], [])
    assert empty.percentiles().ms.isna().all()
    with pytest.raises(WorkshopError, match="confidence between 0 and 1"):
        result.percentiles(95)
