"""What a running vLLM says about itself while it works, and what the way to it costs.

`observe_engine` is the counterpart of `simulate_engine`: the same requests, sent to a real
server, whose gauges are read many times a second meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving.benchmark.result import BenchmarkResult, RequestRecord
from workshop_lib.serving.benchmark.stream import StreamClient
from workshop_lib.serving.client import ModelServer

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving.simulators import Job

PROMPT = "Explain in plain words what a large language model does with a question."
# Settings that must agree for latencies to be comparable.
_SAME = ("loop", "max_tokens", "prompts")
SAMPLE_EVERY_S = 0.1
TIMEOUT_S = 600.0  # of one request


@dataclass(frozen=True)
class EngineObservation:
    """What was seen of an engine at work; times count from the first request, seconds.

    Attributes:
        requests: One row a request: `request`, `tokens` and `prompt_tokens` as the server
            counted them, `sent_s`, `first_s` (its first text), `end_s`.
        samples: One row a reading of `/metrics`: `time_s`, `running`, `waiting`, `blocks` (in use).
        blocks, block_size: Blocks that requests can take, and tokens in one.
    """

    requests: pd.DataFrame
    samples: pd.DataFrame
    blocks: int
    block_size: int

    @property
    def prompt_tokens(self) -> dict[str, int]:
        """Tokens of each request's prompt, as `simulate_engine` wants them."""
        return dict(zip(self.requests["request"], self.requests["prompt_tokens"], strict=True))

    def overtaken(self) -> list[tuple[str, str]]:
        """Pairs of requests of which the second was sent later and answered earlier.

        Example:
            >>> seen.overtaken()  # doctest: +SKIP
            [('long', 'short')]
        """
        rows = self.requests.to_dict("records")
        return [
            (one["request"], other["request"])
            for one in rows
            for other in rows
            if other["sent_s"] > one["sent_s"] and other["end_s"] < one["end_s"]
        ]


def observe_engine(url: str, jobs: Sequence[Job]) -> EngineObservation:
    """Send requests to a vLLM server and read its gauges until all are answered.

    A step of arrival is one token of the first request, as it comes, so that requests overlap on
    a slow machine as they do on a fast one. Each prompt has a mark before it, so that no request
    finds its beginning in the cache.

    Args:
        url: The server's address. Its `/metrics` must be vLLM's own.
        jobs: The requests: how many tokens each wants, and in which step it arrives.

    Raises:
        WorkshopError: No request, or two of one name.
        ServerError: The server does not answer, has not these metrics, or fails a request.

    Example:
        >>> seen = observe_engine(url, [Job("long", 0, 96), Job("short", 8, 8)])  # doctest: +SKIP
        >>> seen.samples.running.max()  # doctest: +SKIP
        2.0
    """
    import pandas as pd

    if not jobs or len({job.name for job in jobs}) < len(jobs):
        raise WorkshopError("observe_engine needs at least one request, each with its own name")
    samples, stopped = [], asyncio.Event()
    with ModelServer(url) as server, ThreadPoolExecutor(1, "observe") as pool:
        labels = server.metrics().labels("cache_config_info")
        # vLLM keeps one block back as a placeholder.
        blocks, block_size = int(labels["num_gpu_blocks"]) - 1, int(labels["block_size"])
        model, mark = server.first_model(), f"{time.time_ns() % 10**9:09d}"
        bodies = [
            {
                "model": model,
                "prompt": f"[{mark}-{number}] {PROMPT}",
                "max_tokens": job.tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
                "ignore_eos": True,
            }
            for number, job in enumerate(jobs)
        ]
        client = StreamClient(f"{server.base_url}/v1/completions", timeout_s=TIMEOUT_S)
        start_s = time.perf_counter()
        # A notebook's kernel has a loop of its own in this thread.
        work = _send_all(client, [job.arrival for job in jobs], bodies, stopped)
        sending = pool.submit(asyncio.run, work)
        try:
            while not sending.done():
                samples.append(_sample(server, start_s, blocks))
                time.sleep(SAMPLE_EVERY_S)
        finally:
            stopped.set()
        samples.append(_sample(server, start_s, blocks))
        answers = sending.result()
    rows = []
    for job, record in zip(jobs, answers, strict=True):
        if record.error:
            raise ServerError(f"{url} failed request {job.name}: {record.error}: {record.detail}")
        row = {"request": job.name, "tokens": record.completion_tokens}
        moments = (record.start_s, record.text_s[0], record.end_s)
        times = dict(zip(("sent_s", "first_s", "end_s"), moments, strict=True))
        row |= {"prompt_tokens": record.prompt_tokens}
        rows.append(row | {name: moment - start_s for name, moment in times.items()})
    return EngineObservation(pd.DataFrame(rows), pd.DataFrame(samples), blocks, block_size)


async def _send_all(
    client: StreamClient,
    arrivals: Sequence[int],
    bodies: Sequence[dict[str, Any]],
    stopped: asyncio.Event,
) -> list[RequestRecord]:
    """Send each request at its step and wait for all, or until it is stopped."""
    first: list[RequestRecord] = []

    async def ask(step: int, body: dict[str, Any]) -> RequestRecord:
        while step and not (first and (len(first[0].text_s) >= step or first[0].end_s)):
            await asyncio.sleep(0.002)
        return await client.send(body, on_start=first.append)

    tasks = [asyncio.create_task(ask(*each)) for each in zip(arrivals, bodies, strict=True)]
    try:
        while not stopped.is_set() and not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=0.1)
        return [await task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        client.close()


def _sample(server: ModelServer, start_s: float, blocks: int) -> dict[str, float]:
    before_s = time.perf_counter()
    metrics = server.metrics()
    return {
        # The moment is between asking and having the answer.
        "time_s": (before_s + time.perf_counter()) / 2 - start_s,
        "running": metrics.value("num_requests_running"),
        "waiting": metrics.value("num_requests_waiting"),
        "blocks": round(metrics.value("kv_cache_usage_perc") * blocks),
    }


def round_trips_ms(url: str) -> list[float]:
    """Times of 40 requests that no engine works on: the way there and back alone.

    `/v1/models` passes everything that a question passes before the engine: HTTP server, proxy,
    router. One after the other, over a kept connection; three more go first and do not count.

    Args:
        url: The server's address.

    Raises:
        ServerError: The server does not answer.

    Example:
        >>> statistics.median(round_trips_ms("http://127.0.0.1:8000"))  # doctest: +SKIP
        2.1
    """
    times = []
    with ModelServer(url) as server:
        for _ in range(3 + 40):
            start_s = time.perf_counter()
            server.models()
            times.append((time.perf_counter() - start_s) * 1000)
    return times[3:]


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
    table = both[keys[:2]].assign(**{first: both["ms_1"], second: both["ms_2"]})
    table["cost_ms"] = both["ms_2"] - both["ms_1"]
    apart = (both["low_ms_2"] > both["high_ms_1"]) | (both["high_ms_2"] < both["low_ms_1"])
    return table.assign(sure=apart).reset_index(drop=True)
