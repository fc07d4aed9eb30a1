"""Measures a server under load: latencies, throughput, errors, goodput.

Closed loop: a level keeps a fixed number of requests in flight. Open loop: a level sends
requests at moments that were drawn before, whatever has become of the earlier ones. Four
habits keep the numbers honest. Time to first token ends at the first message with text, not
at the empty one that only carries the role. A failed request is counted as failed and enters
no latency. Tokens are what the server counted, not messages. And in an open loop a latency
counts from the moment when the request was due, not from when it could be sent: otherwise a
server that stalls is asked less and looks fast ("coordinated omission").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving.benchmark.load import LevelRun, LoadPlan, LoadRun, OnProgress
from workshop_lib.serving.benchmark.plan import (
    MAX_REQUESTS,
    Requests,
    plan_closed,
    plan_open,
    saturated,
)
from workshop_lib.serving.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord
from workshop_lib.serving.benchmark.streaming import StreamTimes
from workshop_lib.serving.client import ModelServer, Prompt

__all__ = ["SweepRun", "run_sweep", "start_sweep"]

# The server's histograms and what they are compared with.
_SERVER_HISTOGRAMS = {
    "ttft": "time_to_first_token_seconds",
    "itl": "inter_token_latency_seconds",
    "e2e": "e2e_request_latency_seconds",
}


class SweepRun:
    """A sweep that is running: `wait` for its result, or `stop` it from any thread.

    Made by `start_sweep`; `workshop_lib.widgets.watch` waits with a button that stops it.
    """

    def __init__(
        self, load: LoadRun, server: ModelServer, *, model: str, settings: dict[str, Any]
    ) -> None:
        self._load = load
        self._server = server
        self._model = model
        self._settings = settings
        self._created = datetime.now(UTC).isoformat(timespec="seconds")

    @property
    def running(self) -> bool:
        """Whether requests are still being sent."""
        return self._load.running

    def stop(self) -> None:
        """End it soon; finished requests are kept, those in flight are dropped."""
        self._load.stop()

    def wait(self, on_progress: OnProgress | None = None) -> BenchmarkResult:
        """Wait for the end and return the result; an interrupt returns what has finished.

        Args:
            on_progress: Called as (done, total, text) in this thread; the total is 0 while it
                is not known.

        Raises:
            ServerError: Every warm-up request of the first level failed.

        Example:
            >>> result = start_sweep(server, prompts).wait()  # doctest: +SKIP
        """
        try:
            levels = [level for level in self._load.wait(on_progress) if level.finished]
        finally:
            self._server.close()
        return BenchmarkResult(
            url=self._server.base_url,
            model=self._model,
            created=self._created,
            settings=self._settings,
            level_records=[_level_record(level) for level in levels],
            request_records=[
                _request_record(level, times) for level in levels for times in level.finished
            ],
            stopped=self._load.stopped,
            ended=self._load.ended,
        )


def start_sweep(
    server: ModelServer | str,
    prompts: Sequence[Prompt],
    *,
    levels: Sequence[int] | None = None,
    rates_per_s: Sequence[float] | None = None,
    requests_per_level: Requests = None,
    duration_s: float | None = None,
    stop_when_saturated: bool = False,
    max_tokens: int = 32,
    warmup: int = 2,
    unique_prompts: bool = True,
    ignore_eos: bool = True,
    timeout_s: float = 120.0,
    model: str | None = None,
    seed: int = 0,
) -> SweepRun:
    """Start a sweep over load levels and return at once.

    Args:
        server: The server, or its address.
        prompts: Sent in turn, over and over.
        levels: Closed loop: numbers of requests in flight, one level each; by default
            1, 4 and 8. `ramp` makes levels that grow.
        rates_per_s: Open loop, in place of `levels`: requests a second, at the random moments
            of a Poisson process.
        requests_per_level: Requests at a level, or one number for each level. Without it and
            without a duration: four times the level up to 8 in flight and twice above, at
            least eight; in an open loop those of ten seconds.
        duration_s: Requests are sent for so long at each level; those then in flight are
            still waited for. With `requests_per_level` whichever comes first.
        stop_when_saturated: End after the level that shows that more load brings nothing.
            Levels must rise.
        max_tokens: Length of each answer, tokens.
        warmup: Requests before each level that are not counted.
        unique_prompts: Put a running number before each prompt. Without it a
            repeated prompt is answered from the server's prefix cache, and the
            time to first token looks better than a user's.
        ignore_eos: Ask vLLM for exactly `max_tokens` tokens, so that all
            requests are equally long; not part of the OpenAI API.
        timeout_s: Longest time for one request; then it counts as timed out.
        model: Name of the model; by default the first that the server lists.
        seed: Draws the moments of an open loop.

    Raises:
        WorkshopError: A parameter that makes no sense.
        ServerError: The server does not answer, or does not serve the model.

    Example:
        >>> run = start_sweep("http://127.0.0.1:8000", ["What is a GPU?"])  # doctest: +SKIP
        >>> run.stop()  # doctest: +SKIP
    """
    if isinstance(server, str):
        server = ModelServer(server)
    if rates_per_s is None:
        levels = (1, 4, 8) if levels is None else levels
        plan_levels = plan_closed(levels, requests_per_level, duration_s)
    elif levels is not None:
        raise WorkshopError("give levels (closed loop) or rates_per_s (open loop), not both")
    else:
        plan_levels = plan_open(rates_per_s, requests_per_level, duration_s, seed)
    loads = [level.load for level in plan_levels]
    if stop_when_saturated and loads != sorted(loads):
        raise WorkshopError(f"stop_when_saturated needs levels that rise, got {loads}")
    _check(prompts, max_tokens=max_tokens, warmup=warmup, timeout_s=timeout_s)
    server.health()
    served = server.models()
    model = model or (served[0] if served else "")
    if model not in served:
        names = ", ".join(served) or "none"
        raise ServerError(f"{server.base_url} serves no model {model!r}; it serves: {names}")
    fields: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ignore_eos:
        fields["ignore_eos"] = True
    load = LoadRun(
        LoadPlan(
            url=f"{server.base_url}/v1/chat/completions",
            api_key=server.api_key,
            levels=plan_levels,
            make_body=_body_maker(list(prompts), fields, unique_prompts),
            warmup=warmup,
            timeout_s=timeout_s,
            read_metrics=server.metrics,
            verdict=saturated if stop_when_saturated else lambda levels: "",
        )
    )
    settings = {
        "loop": "closed" if rates_per_s is None else "open",
        "max_tokens": max_tokens,
        "warmup": warmup,
        "unique_prompts": unique_prompts,
        "ignore_eos": ignore_eos,
        "prompts": len(prompts),
    }
    return SweepRun(load, server, model=model, settings=settings)


def run_sweep(
    server: ModelServer | str,
    prompts: Sequence[Prompt],
    *,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> BenchmarkResult:
    """Run a sweep over load levels; works where an event loop already runs, as in Jupyter.

    An interrupt (Ctrl-C, the notebook's stop button) ends it and returns what
    has finished, with `stopped` set.

    Args:
        server: The server, or its address.
        prompts: Sent in turn, over and over.
        on_progress: Called as (done, total, text).
        **options: As for `start_sweep`: `levels` or `rates_per_s`, `max_tokens`, ...

    Raises:
        WorkshopError: A parameter that makes no sense.
        ServerError: The server does not answer, or fails every warm-up request.

    Example:
        >>> result = run_sweep(server, ["What is a GPU?"], levels=(1, 4))  # doctest: +SKIP
    """
    return start_sweep(server, prompts, **options).wait(on_progress)


def _check(prompts: Sequence[Prompt], *, max_tokens: int, warmup: int, timeout_s: float) -> None:
    if isinstance(prompts, str) or not prompts:
        raise WorkshopError("prompts must be a list with at least one prompt")
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise WorkshopError(f"max_tokens must be a whole number, at least 1, got {max_tokens}")
    if not isinstance(warmup, int) or not 0 <= warmup <= MAX_REQUESTS:
        raise WorkshopError(f"warmup must be from 0 to {MAX_REQUESTS:,} requests, got {warmup}")
    if not 0 < timeout_s < math.inf:
        raise WorkshopError(f"timeout_s must be a number above 0, got {timeout_s}")


def _body_maker(
    prompts: list[Prompt], fields: dict[str, Any], unique: bool
) -> Callable[[int], dict[str, Any]]:
    # Numbers start anew with each sweep, so a second sweep would repeat the first one's prompts.
    sweep = f"{time.time_ns() % 10**9:09d}"

    def make(number: int) -> dict[str, Any]:
        prompt = prompts[number % len(prompts)]
        mark = f"[{sweep}-{number}] " if unique else ""
        if isinstance(prompt, str):
            messages = [{"role": "user", "content": mark + prompt}]
        else:
            first, *others = prompt
            messages = [{**first, "content": mark + first["content"]}, *others]
        return {**fields, "messages": messages}

    return make


def _level_record(level: LevelRun) -> LevelRecord:
    end_s = max(times.end_s for times in level.finished)
    return LevelRecord(
        load=level.plan.load,
        duration_s=end_s - min(times.start_s for times in level.finished),
        server_ms=_server_means(level),
    )


def _server_means(level: LevelRun) -> dict[str, float]:
    before, after = level.metrics_before, level.metrics_after
    means: dict[str, float] = {}
    if before is None or after is None:
        return means
    for name, metric in _SERVER_HISTOGRAMS.items():
        try:
            change = after.histogram(metric) - before.histogram(metric)
        except ServerError:
            continue  # not every server has every histogram
        if change.mean is not None:
            means[name] = change.mean * 1000
    return means


def _request_record(level: LevelRun, times: StreamTimes) -> RequestRecord:
    text_s = [] if times.error else times.text_s
    gaps = zip(text_s[1:], text_s, strict=False)
    return RequestRecord(
        load=level.plan.load,
        scheduled_s=times.due_s - level.start_s,
        start_s=times.start_s - level.start_s,
        ttft_ms=(text_s[0] - times.due_s) * 1000 if text_s else None,
        itl_ms=tuple((later - earlier) * 1000 for later, earlier in gaps),
        e2e_ms=None if times.error else (times.end_s - times.due_s) * 1000,
        prompt_tokens=times.prompt_tokens,
        completion_tokens=times.completion_tokens,
        finish_reason=times.finish_reason,
        error=times.error,
        detail=times.detail,
    )
