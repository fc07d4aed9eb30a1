"""How a server does over time: requests, how full it is, its latency, from its own metrics."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop_lib.errors import NotFoundError, ServerError, WorkshopError
from workshop_lib.progress import Progress
from workshop_lib.serving.metrics import Histogram, ServerMetrics, parse_metrics

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.cluster.base import Workload

__all__ = ["SOURCES", "watch_serving"]

COLUMNS = ["time_s", "running", "waiting", "level", "latency_p50_s", "latency_p95_s"]
PAGE_PORTS = {"Deployment": 8000, "RayService": 8080}
READ_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Source:
    """What the metrics of one kind of server are called.

    `level` says how full each engine is (a share; the fullest counts) or how many there are (a
    number; their sum counts); `latency` is a histogram, in units of `latency_unit_s` seconds.
    """

    name: str
    running: str
    waiting: str
    level: str
    level_label: str
    level_is_share: bool
    latency: str
    latency_label: str
    latency_unit_s: float = 1.0


def _vllm(name: str, prefix: str) -> Source:
    return Source(
        name,
        f"{prefix}num_requests_running",
        f"{prefix}num_requests_waiting",
        f"{prefix}kv_cache_usage_perc",
        "KV cache in use, %",
        True,
        f"{prefix}time_to_first_token_seconds",
        "time to first token",
    )


SOURCES = {
    "vllm": _vllm("vllm", "vllm:"),
    "ray-serve-llm": _vllm("ray-serve-llm", "ray_vllm_"),
    "ray-serve": Source(
        "ray-serve",
        "ray_serve_replica_processing_queries",
        "ray_serve_deployment_queued_queries",
        "ray_serve_autoscaling_target_replicas",
        "replicas wanted",
        False,
        "ray_serve_deployment_processing_latency_ms",
        "time of a request in its replica",
        0.001,
    ),
}
"""The kinds of servers of this workshop; a page with an engine's metrics is taken for that."""


def bucket_quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """A quantile guessed from a histogram's buckets, as PromQL's `histogram_quantile` does.

    Observations are taken to lie evenly between two bounds; those above the last finite bound
    count as that bound. None without observations.

    Example:
        >>> bucket_quantile(0.5, {1.0: 10.0, 2.0: 30.0, float("inf"): 30.0})
        1.25
    """
    bounds = sorted(buckets)
    if len(bounds) < 2 or buckets[bounds[-1]] <= 0:
        return None
    rank, lower, below = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds[:-1]:
        if buckets[bound] >= rank:
            inside = buckets[bound] - below
            return lower + (bound - lower) * ((rank - below) / inside) if inside else bound
        lower, below = bound, buckets[bound]
    return bounds[-2]


@dataclass(frozen=True)
class _Reading:
    """All pages at one moment."""

    time_s: float
    pages: Sequence[ServerMetrics]

    def gauge(self, name: str, *, most: bool = False) -> float | None:
        """The gauge over all pages; None when none has it now."""
        values = [page.values[name] for page in self.pages if name in page.values]
        return (max if most else sum)(values) if values else None

    def histogram(self, name: str) -> Histogram:
        total = Histogram(0, 0.0, {})
        for found in filter(None, (page.histograms.get(name) for page in self.pages)):
            bounds = {*total.buckets, *found.buckets}
            merged = {b: total.buckets.get(b, 0) + found.buckets.get(b, 0) for b in bounds}
            total = Histogram(total.count + found.count, total.total + found.total, merged)
        return total


def watch_serving(
    workload: Workload,
    *,
    seconds: float = 20.0,
    every_s: float = 1.0,
    window_s: float = 10.0,
    during: Callable[[], object] | None = None,
) -> pd.DataFrame:
    """Read a server's metrics for some seconds, without Prometheus.

    Args:
        workload: The handle of `vllm`, `ray-service` or `autoscale`.
        seconds: How long to watch; with `during` so much longer than that.
        every_s: Time between two readings. Ray writes its pages anew every few seconds.
        window_s: A latency is that of the requests that ended in so many seconds before.
        during: Something to do meanwhile, in a thread: put a load on. It begins when the first
            reading is there.

    Returns:
        A row a reading: `time_s` from the first, `running` and `waiting` (requests), `level`
        (see `Source`; a share is given in percent), `latency_p50_s`, `latency_p95_s`. The
        attribute `source` says whose they are.

    Raises:
        NotFoundError: It has no page with metrics of a server.
        WorkshopError: A time that makes no sense, or `during` failed.

    Example:
        >>> seen = watch_serving(cluster.get("vllm"), seconds=20)   # doctest: +SKIP
        >>> plot_serving(seen)   # doctest: +SKIP
    """
    if min(seconds, every_s, window_s) <= 0:
        raise WorkshopError("watch_serving: seconds, every_s and window_s must be more than 0")
    if workload.kind not in PAGE_PORTS:
        raise NotFoundError(
            f"{workload} has no metrics of a server; watch vllm, ray-service or autoscale"
        )
    port, readings, start = PAGE_PORTS[workload.kind], [], time.monotonic()
    with ExitStack() as stack:
        urls = [stack.enter_context(workload.cluster.forward(pod, port)) for pod in workload.pods]
        pool = stack.enter_context(ThreadPoolExecutor(1))
        progress = stack.enter_context(Progress(label="reading metrics"))
        readings.append(_Reading(0.0, [_read(url) for url in urls]))
        work = pool.submit(during) if during else None
        start = time.monotonic()
        end = start + seconds
        while (now := time.monotonic()) < end:
            time.sleep(max(0.0, every_s - (now - start - readings[-1].time_s)))
            if work is not None and not work.done():
                end = time.monotonic() + seconds
            at_s = time.monotonic() - start
            readings.append(_Reading(at_s, [_read(url) for url in urls]))
            progress.update(text=f"{len(readings)} readings")
        if work is not None:
            work.result()
    return _table(readings, window_s)


def _read(url: str) -> ServerMetrics:
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=READ_TIMEOUT_S) as answer:
            return parse_metrics(answer.read().decode())
    except OSError as error:
        raise ServerError(
            f"{url}/metrics does not answer ({error}); does its pod run? "
            "See cluster.get(...).table()"
        ) from None


def _table(readings: Sequence[_Reading], window_s: float) -> pd.DataFrame:
    import pandas as pd

    pages = [page.values for reading in readings for page in reading.pages]
    source = next((s for s in SOURCES.values() if any(s.running in p for p in pages)), None)
    if source is None:
        raise NotFoundError(
            "these pages have no metrics of vLLM or Ray Serve yet; send a request first"
        )
    histograms = [reading.histogram(source.latency) for reading in readings]
    rows = []
    for number, reading in enumerate(readings):
        since = next(n for n, r in enumerate(readings) if r.time_s >= reading.time_s - window_s)
        lately = (histograms[number] - histograms[since]).buckets
        level = reading.gauge(source.level, most=source.level_is_share)
        quantiles = [bucket_quantile(share, lately) for share in (0.5, 0.95)]
        rows.append(
            [
                reading.time_s,
                reading.gauge(source.running),
                reading.gauge(source.waiting),
                None if level is None else level * (100 if source.level_is_share else 1),
                *(None if q is None else q * source.latency_unit_s for q in quantiles),
            ]
        )
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=float)
    # Ray has a gauge on its page only when it was set since the last one: it is as it was.
    gauges = ["running", "waiting", "level"]
    table[gauges] = table[gauges].ffill().fillna(0.0)
    table.attrs["source"] = source.name
    return table
