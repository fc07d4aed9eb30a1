"""What a running vLLM says about itself while it works on a few requests.

The counterpart of `simulators.simulate_engine`: the same requests, sent to a real server,
whose gauges are read many times a second meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving.benchmark.streaming import StreamClient, StreamTimes
from workshop_lib.serving.client import ModelServer

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving.simulators import Job

__all__ = ["EngineObservation", "observe_engine"]

STEP_MS = 30.0
PROMPT = "Explain in plain words what a large language model does with a question."


@dataclass(frozen=True)
class EngineObservation:
    """What was seen of an engine at work; times count from the first request, seconds.

    Attributes:
        requests: One row a request: `request`, `tokens` and `prompt_tokens` as the server
            counted them, `sent_s`, `first_s` (its first text), `end_s`.
        samples: One row a reading of `/metrics`: `time_s`, `running`, `waiting` (requests),
            `blocks` (in use).
        blocks: Blocks of the server's cache that requests can take.
        block_size: Tokens in a block.
    """

    requests: pd.DataFrame
    samples: pd.DataFrame
    blocks: int
    block_size: int

    @property
    def prompt_tokens(self) -> dict[str, int]:
        """Tokens of each request's prompt, as `simulate_engine` wants them."""
        rows = self.requests.to_dict("records")
        return {row["request"]: int(row["prompt_tokens"]) for row in rows}

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


def observe_engine(
    server: ModelServer | str,
    jobs: Sequence[Job],
    *,
    step_ms: float | None = None,
    prompt: str = PROMPT,
    sample_every_s: float = 0.1,
    timeout_s: float = 600.0,
) -> EngineObservation:
    """Send requests to a vLLM server and read its gauges until all are answered.

    Args:
        server: The server, or its address. Its `/metrics` must be vLLM's own.
        jobs: The requests: how many tokens each wants, and in which step it arrives.
        step_ms: Time of one step of the engine: turns a step of arrival into a moment. By
            default the server's own mean time between tokens, so that requests overlap on a
            slow machine as they do on a fast one; 30 ms from a server that has answered nobody.
        prompt: What all of them ask, each with a mark before it, so that no request finds
            its beginning in the cache.
        sample_every_s: Time between two readings.
        timeout_s: Longest time for one request.

    Raises:
        WorkshopError: A parameter that makes no sense.
        ServerError: The server does not answer, has not these metrics, or fails a request.

    Example:
        >>> seen = observe_engine(url, [Job("long", 0, 96), Job("short", 8, 8)])  # doctest: +SKIP
        >>> seen.samples.running.max()  # doctest: +SKIP
        2.0
    """
    if not jobs or len({job.name for job in jobs}) < len(jobs):
        raise WorkshopError("observe_engine needs at least one request, each with its own name")
    numbers = {"step_ms": step_ms, "sample_every_s": sample_every_s, "timeout_s": timeout_s}
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise WorkshopError(f"{name} must be a number above 0, got {value}")
    if isinstance(server, str):
        with ModelServer(server) as own:
            return _observe(own, jobs, step_ms, prompt, sample_every_s, timeout_s)
    return _observe(server, jobs, step_ms, prompt, sample_every_s, timeout_s)


def _observe(
    server: ModelServer,
    jobs: Sequence[Job],
    step_ms: float | None,
    prompt: str,
    sample_every_s: float,
    timeout_s: float,
) -> EngineObservation:
    import pandas as pd

    blocks, block_size = _cache_size(server)
    step_ms = _mean_step_ms(server) if step_ms is None else step_ms
    model = server.first_model()
    mark = f"{time.time_ns() % 10**9:09d}"
    bodies = {
        job.name: {
            "model": model,
            "prompt": f"[{mark}-{number}] {prompt}",
            "max_tokens": job.tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        for number, job in enumerate(jobs)
    }
    client = StreamClient(
        f"{server.base_url}/v1/completions", api_key=server.api_key, timeout_s=timeout_s
    )
    sender = _Sender(client, {job.name: job.arrival * step_ms / 1000 for job in jobs}, bodies)
    samples = []
    try:
        while sender.running:
            samples.append(_sample(server, sender.start_s, blocks))
            sender.join(sample_every_s)
    finally:
        sender.stop()
    samples.append(_sample(server, sender.start_s, blocks))
    rows = [_row(job, sender.answers[job.name], sender.start_s, server.base_url) for job in jobs]
    return EngineObservation(pd.DataFrame(rows), pd.DataFrame(samples), blocks, block_size)


class _Sender:
    """Sends each request at its moment, in a thread with a loop of its own."""

    def __init__(
        self, client: StreamClient, moments_s: dict[str, float], bodies: dict[str, dict[str, Any]]
    ) -> None:
        self.answers: dict[str, StreamTimes] = {}
        self.start_s = time.perf_counter()
        self._client = client
        self._moments_s = moments_s
        self._bodies = bodies
        self._error: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observe", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def stop(self) -> None:
        """End it, also when requests are still in flight, and tell what went wrong in it."""
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as exc:  # noqa: BLE001 - raised again in the thread that waits
            self._error = exc

    async def _main(self) -> None:
        async def ask(name: str) -> None:
            due_s = self.start_s + self._moments_s[name]
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            self.answers[name] = await self._client.send(self._bodies[name], due_s)

        tasks = [asyncio.create_task(ask(name)) for name in self._bodies]
        try:
            while tasks and not self._stopped.is_set():
                _, pending = await asyncio.wait(tasks, timeout=0.1)
                tasks = list(pending)
        finally:
            for task in tasks:
                task.cancel()
            self._client.close()


def _cache_size(server: ModelServer) -> tuple[int, int]:
    """Blocks that requests can take, and tokens in a block, as the server says them."""
    labels = server.metrics().labels("cache_config_info")
    try:
        # vLLM keeps one block back as a placeholder.
        return int(labels["num_gpu_blocks"]) - 1, int(labels["block_size"])
    except (KeyError, ValueError) as exc:
        raise ServerError(
            f"{server.base_url}/metrics does not say how many blocks its cache has: {labels}"
        ) from exc


def _mean_step_ms(server: ModelServer) -> float:
    """The mean time between two tokens since the server started: a step makes one of each."""
    try:
        mean_s = server.metrics().histogram("inter_token_latency_seconds").mean
    except ServerError:
        mean_s = None  # nothing answered yet, or a server that does not count it
    return mean_s * 1000 if mean_s else STEP_MS


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


def _row(job: Job, times: StreamTimes, start_s: float, url: str) -> dict[str, Any]:
    if times.error:
        raise ServerError(f"{url} failed request {job.name}: {times.error}: {times.detail}")
    return {
        "request": job.name,
        "tokens": times.completion_tokens,
        "prompt_tokens": times.prompt_tokens,
        "sent_s": times.start_s - start_s,
        "first_s": times.text_s[0] - start_s,
        "end_s": times.end_s - start_s,
    }
