"""Two ways to the same engine, under the same load: what does each way cost?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.benchmark.result import BenchmarkResult
from workshop_lib.serving.client import ModelServer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["compare_deployments", "round_trips_ms"]

# Settings that must agree for latencies to be comparable.
_SAME = ("loop", "max_tokens", "unique_prompts", "ignore_eos", "prompts")


def round_trips_ms(server: ModelServer | str, *, requests: int = 40) -> list[float]:
    """Times of requests that no engine works on: the way there and back alone.

    `/v1/models` passes everything that a question passes before the engine: HTTP server,
    proxy, router. One after the other, over a kept connection.

    Args:
        server: The server, or its address.
        requests: How many; a few more are sent first and not counted.

    Raises:
        WorkshopError: Fewer than one.
        ServerError: The server does not answer.

    Example:
        >>> statistics.median(round_trips_ms("http://127.0.0.1:8000"))  # doctest: +SKIP
        2.1
    """
    if requests < 1:
        raise WorkshopError(f"round_trips_ms needs at least one request, got {requests}")
    if isinstance(server, str):
        with ModelServer(server) as own:
            return round_trips_ms(own, requests=requests)
    for _ in range(3):
        server.models()
    times = []
    for _ in range(requests):
        start_s = time.perf_counter()
        server.models()
        times.append((time.perf_counter() - start_s) * 1000)
    return times


def compare_deployments(results: Mapping[str, BenchmarkResult]) -> pd.DataFrame:
    """The same load on two deployments: median latencies, and what the second costs more.

    Args:
        results: Two benchmarks by the deployment's name, made with the same settings. Levels
            that only one of them has are left out.

    Returns:
        One row a level and latency (`ttft`, `itl`, `e2e`): the load, `latency`, the median of
        each (under its name), `cost_ms` of the second, and `sure`: whether the two 95%
        intervals are apart. Without that the difference may be chance.

    Raises:
        WorkshopError: Not two benchmarks, or not of the same load.

    Example:
        >>> compare_deployments({"vLLM": alone, "Ray Serve": behind_proxy})  # doctest: +SKIP
    """
    import pandas as pd

    if len(results) != 2:
        raise WorkshopError(f"two benchmarks can be compared, got {len(results)}")
    (first, one), (second, other) = results.items()
    for name in _SAME:
        if one.settings.get(name) != other.settings.get(name):
            raise WorkshopError(
                f"{first} was measured with {name}={one.settings.get(name)} and {second} with "
                f"{other.settings.get(name)}; measure both the same way"
            )
    keys = [one.load_column, "latency", "percentile"]
    both = pd.merge(one.percentiles(), other.percentiles(), on=keys, suffixes=("_1", "_2"))
    both = both[both["percentile"] == 50].dropna(subset=["ms_1", "ms_2"])
    if both.empty:
        raise WorkshopError(f"{first} and {second} have no level in common that was answered")
    rows: list[dict[str, Any]] = [
        {
            keys[0]: row[keys[0]],
            "latency": row["latency"],
            first: row["ms_1"],
            second: row["ms_2"],
            "cost_ms": row["ms_2"] - row["ms_1"],
            "sure": bool(row["low_ms_2"] > row["high_ms_1"] or row["high_ms_2"] < row["low_ms_1"]),
        }
        for row in both.to_dict("records")
    ]
    return pd.DataFrame(rows)
