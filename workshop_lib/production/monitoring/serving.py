"""How a server does over time: requests, how full it is, and its latency, from its own metrics.

Two ways to the same table: `serving_history` asks a Prometheus, `watch_serving` reads the
pages itself while it waits. What is in it depends on what serves: a `Source` names the
metrics of vLLM, of vLLM under Ray Serve, and of any other application of Ray Serve.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop_lib.errors import NotFoundError, ServerError, WorkshopError
from workshop_lib.production.monitoring.client import PrometheusClient
from workshop_lib.progress import Progress
from workshop_lib.serving.metrics import Histogram, ServerMetrics, parse_metrics

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.cluster.base import Workload

__all__ = ["SOURCES", "Source", "bucket_quantile", "serving_history", "watch_serving"]

COLUMNS = ("time_s", "running", "waiting", "level", "latency_p50_s", "latency_p95_s")
PAGE_PORTS = {"Deployment": 8000, "RayService": 8080}
READ_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Source:
    """What the metrics of one kind of server are called.

    Attributes:
        name: What serves.
        running: Gauge of the requests that are worked on.
        waiting: Gauge of those that wait.
        level: Gauge that says how full, or how many; the most of all engines, or their sum.
        level_label: What it is, with its unit.
        level_is_share: Whether it is a share from 0 to 1 of each engine, not a number to add.
        latency: Histogram.
        latency_label: What it measures.
        latency_unit_s: Its unit in seconds.
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


SOURCES = {
    source.name: source
    for source in (
        Source(
            "vllm", "vllm:num_requests_running", "vllm:num_requests_waiting",
            "vllm:kv_cache_usage_perc", "KV cache in use, %", True,
            "vllm:time_to_first_token_seconds", "time to first token",
        ),
        Source(
            "ray-serve-llm", "ray_vllm_num_requests_running", "ray_vllm_num_requests_waiting",
            "ray_vllm_kv_cache_usage_perc", "KV cache in use, %", True,
            "ray_vllm_time_to_first_token_seconds", "time to first token",
        ),
        Source(
            "ray-serve", "ray_serve_replica_processing_queries",
            "ray_serve_deployment_queued_queries", "ray_serve_autoscaling_target_replicas",
            "replicas wanted", False, "ray_serve_deployment_processing_latency_ms",
            "time of a request in its replica", 0.001,
        ),
    )
}  # fmt: skip
"""The kinds of servers of this workshop; a page with an engine's metrics is taken for that."""


def bucket_quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """A quantile guessed from a histogram's buckets, as PromQL's `histogram_quantile` does.

    Observations are taken to lie evenly between two bounds; those above the last finite
    bound count as that bound. So it is never better than the buckets are narrow.

    Args:
        share: The quantile, between 0 and 1.
        buckets: Upper bound to the number of observations at or below it; with +Inf.

    Returns:
        The quantile in the histogram's unit; None without observations.

    Example:
        >>> bucket_quantile(0.5, {1.0: 10.0, 2.0: 30.0, float("inf"): 30.0})
        1.25
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0 or len(bounds) < 2:
        return None
    rank = share * total
    lower, below = 0.0, 0.0
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

    def has(self, source: Source) -> bool:
        return any(source.running in page.values for page in self.pages)

    def gauge(self, name: str, *, most: bool = False) -> float | None:
        """The gauge over all pages; None when none has it now."""
        values = [page.values[name] for page in self.pages if name in page.values]
        return (max if most else sum)(values) if values else None

    def histogram(self, name: str) -> Histogram:
        total = Histogram(0, 0.0, {})
        for page in self.pages:
            if (found := page.histograms.get(name)) is not None:
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
        during: Something to do meanwhile, in a thread: put a load on.

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
    from concurrent.futures import ThreadPoolExecutor

    if min(seconds, every_s, window_s) <= 0:
        raise WorkshopError("watch_serving: seconds, every_s and window_s must be more than 0")
    port = PAGE_PORTS.get(workload.kind)
    if port is None:
        raise NotFoundError(
            f"{workload} has no metrics of a server; watch vllm, ray-service or autoscale"
        )
    readings: list[_Reading] = []
    with ExitStack() as stack:
        urls = [stack.enter_context(workload.cluster.forward(pod, port)) for pod in workload.pods]
        pool = stack.enter_context(ThreadPoolExecutor(1))
        work = pool.submit(during) if during else None
        progress = stack.enter_context(Progress(label="reading metrics"))
        start = time.monotonic()
        end = start + seconds
        while True:
            now = time.monotonic()
            if work is not None and not work.done():
                end = now + seconds
            readings.append(_read(urls, now - start))
            progress.update(text=f"{len(readings)} readings")
            if now >= end:
                break
            time.sleep(max(0.0, every_s - (time.monotonic() - now)))
        if work is not None:
            work.result()
    return _table(readings, window_s)


def _read(urls: Iterable[str], time_s: float) -> _Reading:
    pages = []
    for url in urls:
        try:
            with urllib.request.urlopen(f"{url}/metrics", timeout=READ_TIMEOUT_S) as answer:
                pages.append(parse_metrics(answer.read().decode()))
        except OSError as error:
            raise ServerError(
                f"{url}/metrics does not answer ({error}); does its pod run? "
                "See cluster.get(...).table()"
            ) from None
    return _Reading(time_s, pages)


def _table(readings: Sequence[_Reading], window_s: float) -> pd.DataFrame:
    import pandas as pd

    source = next((s for s in SOURCES.values() if any(r.has(s) for r in readings)), None)
    if source is None:
        raise NotFoundError(
            "these pages have no metrics of vLLM or Ray Serve yet; send a request first"
        )
    histograms = [reading.histogram(source.latency) for reading in readings]
    rows = []
    for number, reading in enumerate(readings):
        since = next(n for n, r in enumerate(readings) if r.time_s >= reading.time_s - window_s)
        lately = histograms[number] - histograms[since]
        factor = 100.0 if source.level_is_share else 1.0
        level = reading.gauge(source.level, most=source.level_is_share)
        quantiles = [bucket_quantile(share, lately.buckets) for share in (0.5, 0.95)]
        rows.append(
            [
                reading.time_s,
                reading.gauge(source.running),
                reading.gauge(source.waiting),
                None if level is None else factor * level,
                *(None if q is None else q * source.latency_unit_s for q in quantiles),
            ]
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=float)
    # Ray has a gauge on its page only when it was set since the last one: it is as it was.
    gauges = ["running", "waiting", "level"]
    table[gauges] = table[gauges].ffill().fillna(0.0)
    return _framed(table, source)


def _framed(table: pd.DataFrame, source: Source) -> pd.DataFrame:
    table.attrs["source"] = source.name
    return table


def serving_history(
    prometheus: PrometheusClient,
    *,
    source: str = "vllm",
    last_s: float = 300.0,
    step_s: float = 5.0,
    window_s: float = 30.0,
    selector: str = "",
) -> pd.DataFrame:
    """The same table as `watch_serving`, asked of a Prometheus: also for what is over.

    Args:
        prometheus: Where to ask.
        source: Whose metrics: a key of `SOURCES`.
        last_s: How far back.
        step_s: Time between two values.
        window_s: A latency is that of the requests that ended in so many seconds before; at
            least two readings of Prometheus must lie in it.
        selector: Labels in PromQL, such as `namespace="ada"`.

    Raises:
        NotFoundError: Prometheus has none of these metrics in that time.
        WorkshopError: There is no such source.
    """
    import pandas as pd

    if source not in SOURCES:
        raise WorkshopError(f"there is no source {source!r}; there are {', '.join(SOURCES)}")
    names, labels = SOURCES[source], f"{{{selector}}}"

    def lately(gauge: str) -> str:  # Ray's come and go
        return f"last_over_time({gauge}{labels}[{window_s:g}s])"

    total = "max" if names.level_is_share else "sum"
    factor = 100 if names.level_is_share else 1
    rate = f"sum by (le) (rate({names.latency}_bucket{labels}[{window_s:g}s]))"
    expressions = {
        "running": f"sum({lately(names.running)})",
        "waiting": f"sum({lately(names.waiting)})",
        "level": f"{factor} * {total}({lately(names.level)})",
        "latency_p50_s": f"{names.latency_unit_s:g} * histogram_quantile(0.5, {rate})",
        "latency_p95_s": f"{names.latency_unit_s:g} * histogram_quantile(0.95, {rate})",
    }
    now_s = time.time()
    columns = {}
    for name, each in expressions.items():
        found = prometheus.query_range(each, last_s=last_s, step_s=step_s, end_s=now_s)
        columns[name] = found.set_index("time")["value"]
    table = pd.DataFrame(columns, dtype=float).sort_index()
    if table["running"].dropna().empty:
        raise NotFoundError(
            f"Prometheus has no {names.running} of the last {last_s:g} s; does it read the "
            "server's page? See targets()"
        )
    table.insert(0, "time_s", table.index - table.index.min())
    return _framed(table.reset_index(drop=True).astype(float), names)
