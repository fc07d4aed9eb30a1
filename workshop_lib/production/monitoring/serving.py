"""How a server does over time: requests, how full it is, its latency, from its own metrics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from workshop_lib.errors import NotFoundError, ServerError
from workshop_lib.progress import Progress
from workshop_lib.serving.metrics import ServerMetrics, parse_metrics

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.cluster.base import Workload

EVERY_S = 1.0
"""Time between two readings; Ray writes its pages anew once a second at best."""

WINDOW_S = 10.0
"""A latency is that of the requests that ended in so many seconds before."""

PAGE_PORTS = {"Deployment": 8000, "RayService": 8080}
GAUGES = ["running", "waiting", "level"]


class Source(NamedTuple):
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

_NAMES = tuple(n for s in SOURCES.values() for n in (s.running, s.waiting, s.level, s.latency))


def bucket_quantile(share: float, buckets: Mapping[float, float]) -> float:
    """A quantile guessed from a histogram's buckets, as PromQL's `histogram_quantile` does.

    NaN without observations.

    Example:
        >>> bucket_quantile(0.5, {1.0: 10.0, 2.0: 30.0, float("inf"): 30.0})
        1.25
    """
    bounds = sorted(buckets)
    if len(bounds) < 2 or buckets[bounds[-1]] <= 0:
        return math.nan
    rank, lower, below = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds[:-1]:
        if buckets[bound] >= rank:
            inside = buckets[bound] - below
            return lower + (bound - lower) * ((rank - below) / inside) if inside else bound
        lower, below = bound, buckets[bound]
    return bounds[-2]


def watch_serving(
    workload: Workload, *, seconds: float = 20.0, during: Callable[[], object] | None = None
) -> pd.DataFrame:
    """Read a server's metrics for some seconds, without Prometheus.

    Args:
        workload: The handle of `vllm`, `ray-service` or `autoscale`.
        seconds: How long to watch; with `during` so much longer than that.
        during: Something to do meanwhile, in a thread: put a load on. It begins when the first
            reading is there.

    Returns:
        A row a reading: `time_s` from the first, `running` and `waiting` (requests), `level`
        (see `Source`; a share is given in percent), `latency_p50_s`, `latency_p95_s`. The
        attribute `source` says whose they are.

    Raises:
        NotFoundError: It has no page with metrics of a server.
        WorkshopError: `during` failed.

    Example:
        >>> seen = watch_serving(cluster.get("vllm"), seconds=20)   # doctest: +SKIP
        >>> plot_serving(seen)   # doctest: +SKIP
    """
    if workload.kind not in PAGE_PORTS:
        raise NotFoundError(
            f"{workload} has no metrics of a server; watch vllm, ray-service or autoscale"
        )
    forward, port = workload.cluster.forward, PAGE_PORTS[workload.kind]
    times_s, pages = [0.0], []
    with ExitStack() as stack:
        urls = [stack.enter_context(forward(pod, port)) for pod in workload.pods]
        pool = stack.enter_context(ThreadPoolExecutor(1))
        progress = stack.enter_context(Progress(label="reading metrics"))
        pages.append([read_page(url, _NAMES) for url in urls])
        work, start_s = pool.submit(during or (lambda: None)), time.monotonic()
        ends_s = seconds
        while times_s[-1] < ends_s:
            time.sleep(max(0.0, EVERY_S - (time.monotonic() - start_s - times_s[-1])))
            times_s.append(time.monotonic() - start_s)
            if not work.done():
                ends_s = times_s[-1] + seconds
            pages.append([read_page(url, _NAMES) for url in urls])
            progress.update(text=f"{len(pages)} readings")
        work.result()
    return serving_table(times_s, pages)


def read_page(url: str, names: tuple[str, ...]) -> str:
    """What a server's page says of some metrics."""
    import httpx

    try:
        answer = httpx.get(f"{url}/metrics", timeout=10, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise ServerError(
            f"{url}/metrics does not answer ({error}); does its pod run? "
            "See cluster.get(...).table()"
        ) from None
    # A page of Ray has thousands of lines; only these are parsed.
    lines = answer.text.splitlines()
    return "".join(f"{s}\n" for s in lines if s.removeprefix("# TYPE ").startswith(names))


def serving_table(times_s: Sequence[float], pages: Sequence[Sequence[str]]) -> pd.DataFrame:
    """The numbers of readings, each of several pages; `watch_serving` says the columns."""
    import pandas as pd

    sums = [parse_metrics("".join(each)) for each in pages]  # engines together are one server
    source = next((s for s in SOURCES.values() if any(s.running in m.values for m in sums)), None)
    if source is None:
        raise NotFoundError(
            "these pages have no metrics of vLLM or Ray Serve yet; send a request first"
        )
    rows = []
    for number, (at_s, found) in enumerate(zip(times_s, sums, strict=True)):
        level = found.values.get(source.level)
        if level is not None and source.level_is_share:
            each = [parse_metrics(page).values.get(source.level, 0.0) for page in pages[number]]
            level = 100 * max(each)
        before = next(m for t, m in zip(times_s, sums, strict=True) if t >= at_s - WINDOW_S)
        lately = _observed(source.latency, before, found)
        rows.append(
            {
                "time_s": at_s,
                "running": found.values.get(source.running),
                "waiting": found.values.get(source.waiting),
                "level": level,
                "latency_p50_s": source.latency_unit_s * bucket_quantile(0.5, lately),
                "latency_p95_s": source.latency_unit_s * bucket_quantile(0.95, lately),
            }
        )
    table = pd.DataFrame(rows, dtype=float)
    # Ray has a gauge on its page only when it was set since the last one: it is as it was.
    table[GAUGES] = table[GAUGES].ffill().fillna(0.0)
    table.attrs["source"] = source.name
    return table


def _observed(name: str, before: ServerMetrics, now: ServerMetrics) -> Mapping[float, float]:
    """The buckets of what was observed between two readings."""
    later, earlier = now.histograms.get(name), before.histograms.get(name)
    if later is None or earlier is None:
        return {} if later is None else later.buckets
    return (later - earlier).buckets
