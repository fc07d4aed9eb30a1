"""Puts load on a server: which levels there are, when each request is sent, when to end.

Closed loop: a level keeps a fixed number of requests in flight. Open loop: a level sends requests
at moments that were drawn before, whatever has become of the earlier ones.

A notebook's kernel already runs an event loop, so the load gets a thread and a loop of its own:
uvloop's, since what the loop itself spends on a token limits the load. The thread that waits is
free to draw progress and to be interrupted; what has finished by then is kept.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import uvloop
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord
from workshop_lib.serving.benchmark.stream import StreamClient
from workshop_lib.serving.client import ModelServer
from workshop_lib.serving.metrics import ServerMetrics

OnProgress = Callable[[int, int, str], None]

MAX_REQUESTS = 100_000
MAX_LEVEL = 4096
# A higher level that brings less than this share of throughput more brings nothing.
SATURATION_GAIN = 0.1
# A user of a level that ends by time waits so long after a failure: refusals take no time, and a
# broken server would be asked thousands of times a second.
PAUSE_S = 0.1
# The server's histograms and the latencies that they are compared with.
_SERVER_LATENCIES = {
    "ttft": "time_to_first_token_seconds",
    "itl": "inter_token_latency_seconds",
    "e2e": "e2e_request_latency_seconds",
}
# An observation a step of the engine.
_STEP_TOKENS = "iteration_tokens"


class _Asked(BaseModel):
    """What `start_sweep` is asked for."""

    model_config = ConfigDict(strict=True)

    prompts: list[str] = Field(min_length=1)
    levels: list[Annotated[int, Field(ge=1, le=MAX_LEVEL)]] | None = Field(min_length=1)
    rates_per_s: list[Annotated[float, Field(gt=0, le=2000)]] | None = Field(min_length=1)
    requests_per_level: Annotated[int, Field(ge=1, le=MAX_REQUESTS)] | None
    duration_s: Annotated[float, Field(gt=0, le=3600)] | None
    max_tokens: int = Field(ge=1)
    warmup: int = Field(ge=0, le=MAX_REQUESTS)
    timeout_s: float = Field(gt=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send at a level.

    `requests` and `duration_s` end it, whichever comes first; requests in flight are waited for
    in any case. An open loop sends at the moments `arrivals_s` from the level's start.
    """

    load: float
    requests: int | None
    duration_s: float | None
    arrivals_s: tuple[float, ...] | None = None

    @property
    def title(self) -> str:
        """The load in words."""
        return f"{self.load:g} concurrent" if self.arrivals_s is None else f"{self.load:g} a second"


def ramp(start: int = 1, limit: int = 256, *, factor: int = 2) -> tuple[int, ...]:
    """Levels that grow by a factor: with `stop_when_saturated` the way to a server's limit.

    Args:
        start: The first level.
        limit: No level is above it; at most 4096.
        factor: How many times the one before each level is.

    Example:
        >>> ramp(1, 40)
        (1, 2, 4, 8, 16, 32)
    """
    if not 1 <= start <= limit <= MAX_LEVEL or factor < 2:
        raise WorkshopError(
            f"a ramp needs 1 <= start <= limit <= {MAX_LEVEL} and a factor of at least 2, "
            f"got start={start}, limit={limit}, factor={factor}"
        )
    levels = [start]
    while levels[-1] * factor <= limit:
        levels.append(levels[-1] * factor)
    return tuple(levels)


def poisson_arrivals(
    rate_per_s: float, *, requests: int | None, duration_s: float | None
) -> tuple[float, ...]:
    """Moments at which an open loop sends: readers who do not know of each other.

    The gaps of a Poisson process are exponentially distributed; the first request is sent at
    once. `requests` or `duration_s` ends it.
    """
    source = random.Random(0)
    moments = [0.0]
    while requests is None or len(moments) < requests:
        later = moments[-1] + source.expovariate(rate_per_s)
        if duration_s is not None and later >= duration_s:
            break
        moments.append(later)
    return tuple(moments)


def _plans(asked: _Asked) -> list[Plan]:
    plans = []
    for load in asked.rates_per_s or asked.levels or ():
        count, duration_s = asked.requests_per_level, asked.duration_s
        if asked.rates_per_s:
            if count is None and duration_s is None:
                count = max(8, round(10 * load))
            expected = min(count or math.inf, load * (duration_s or math.inf))
            if not 1 <= expected <= MAX_REQUESTS:
                raise WorkshopError(
                    f"{load:g} a second would send {expected:,.3g} requests; choose a number or "
                    f"a duration for 1 to {MAX_REQUESTS:,}"
                )
            arrivals_s = poisson_arrivals(load, requests=count, duration_s=duration_s)
            plans.append(Plan(load, len(arrivals_s), duration_s, arrivals_s))
            continue
        if count is None and duration_s is None:
            # Above 8, two rounds of so many tell as much as four, and take half the time.
            count = int(max(8, (4 if load <= 8 else 2) * load))
        if count is not None and count < load:
            raise WorkshopError(f"{count} requests cannot keep {load} in flight; ask for {load}")
        plans.append(Plan(load, count, duration_s))
    return plans


def saturated(levels: Sequence[LevelRecord], *, is_open: bool) -> str:
    """Why more load would bring nothing, in one line; empty while it would.

    Closed loop: the last level made hardly more tokens a second than the one before it. Open
    loop: requests came faster than they were answered, so that after the last had come the
    server still worked for long on those that waited.
    """
    last = levels[-1]
    if not last.good:
        return ""
    if not is_open:
        now, before = last.tokens_per_s, levels[-2].tokens_per_s if len(levels) > 1 else 0.0
        if not before or now >= before * (1 + SATURATION_GAIN):
            return ""
        return (
            f"saturated: {last.load:g} in flight make {now:.0f} tokens/s, "
            f"{levels[-2].load:g} made {before:.0f}"
        )
    due_s = [record.due_s for record in last.requests]
    drain_s = max(record.end_s for record in last.requests) - max(due_s)
    alone_s = min(record.end_s - record.due_s for level in levels for record in level.good)
    # One answer's own time is no backlog, and neither is a burst that is soon worked off.
    if drain_s < max(3 * alone_s, 0.2 * (max(due_s) - min(due_s))):
        return ""
    return (
        f"saturated: {last.load:g} a second are more than the server answers; it worked "
        f"on for {drain_s:.1f} s after the last had come"
    )


class SweepRun:
    """A sweep that is running: `wait` for its result, or `stop` it from any thread.

    Made by `start_sweep`; `workshop_lib.widgets.watch` waits with a button that stops it.
    """

    def __init__(
        self,
        server: ModelServer,
        plans: Sequence[Plan],
        bodies: Iterator[dict[str, Any]],
        settings: dict[str, Any],
        *,
        timeout_s: float,
        stop_when_saturated: bool,
    ) -> None:
        self._server, self._plans, self._bodies = server, plans, bodies
        self._settings, self._until_saturated = settings, stop_when_saturated
        self._timeout_s = timeout_s
        self._progress = (0, "")  # requests that are done, and what is going on
        self._ended = ""
        self._error: Exception | None = None
        self._stopped = False
        self._over = threading.Event()
        self._cancel: Callable[[], object] | None = None
        self._levels: list[LevelRecord] = []  # that have begun
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether requests are still being sent."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End it soon; finished requests are kept, those in flight are dropped."""
        if not self.running:
            return
        self._stopped = True
        if self._cancel is not None:
            try:
                self._cancel()
            except RuntimeError:
                return  # the loop has just ended by itself

    def wait(self, on_progress: OnProgress | None = None) -> BenchmarkResult:
        """Wait for the end and return the result; an interrupt returns what has finished.

        `on_progress` is called as (done, total, text) in this thread; the total is 0 while it is
        not known. Raises ServerError when every warm-up request of the first level failed.
        """
        counts = [plan.requests for plan in self._plans]
        total = sum(count or 0 for count in counts) if None not in counts else 0
        shown: tuple[int, str] | None = None
        while shown != self._progress or not self._over.is_set():
            try:
                self._over.wait(0.2)  # so that an interrupt comes through
                shown = self._progress
                if on_progress is not None:
                    on_progress(shown[0], total, shown[1])
            except KeyboardInterrupt:
                self.stop()
        self._thread.join()
        self._server.close()
        if self._error is not None:
            raise self._error
        return BenchmarkResult(
            url=self._server.base_url,
            settings=self._settings,
            level_records=[level for level in self._levels if level.requests],
            stopped=self._stopped,
            ended=self._ended,
        )

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main(runner.get_loop()))
        except asyncio.CancelledError:
            pass  # stopped: the finished requests are in self._levels
        except Exception as exc:  # noqa: BLE001 - raised again in the thread that waits
            self._error = exc
        finally:
            self._over.set()

    async def _main(self, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task()
        self._cancel = lambda: task and loop.call_soon_threadsafe(task.cancel)
        url = f"{self._server.base_url}/v1/chat/completions"
        client = StreamClient(url, timeout_s=self._timeout_s)
        try:
            for plan in self._plans:
                if self._stopped:
                    break
                self._ended = await self._warm_up(client, plan) or await self._level(client, plan)
                if self._ended:
                    break
        finally:
            client.close()

    async def _warm_up(self, client: StreamClient, plan: Plan) -> str:
        """Requests that are not counted: they open connections and fill the server's caches.

        Returns why the load cannot go on after the levels that it has; empty if it can.
        """
        self._progress = (self._progress[0], f"{plan.title}: warming up")
        answers: list[RequestRecord] = []
        count = self._settings["warmup"]
        at_once = max(1, count) if plan.arrivals_s else int(plan.load)
        some = itertools.islice(self._bodies, count)
        await _closed_loop(client, some, at_once, answers.append)
        if not answers or not all(answer.error for answer in answers):
            return ""
        url, worst = self._server.base_url, answers[0]
        why = f"{url} failed every warm-up request: {worst.error}: {worst.detail}"
        if not any(level.requests for level in self._levels):
            raise ServerError(why)
        return f"{plan.title} not measured: {why}"

    async def _level(self, client: StreamClient, plan: Plan) -> str:
        """Measure a level; returns why it was the last one, empty if it was not."""
        level = LevelRecord(plan.load)
        self._levels.append(level)
        before = self._metrics()
        of, failed = f" of {plan.requests}" if plan.requests else "", 0

        def count(record: RequestRecord) -> None:
            nonlocal failed
            level.requests.append(record)
            failed += bool(record.error)
            text = f"{plan.title}: {len(level.requests)}{of}"
            text += f", {failed} failed" if failed else ""
            self._progress = (self._progress[0] + 1, text)

        if plan.arrivals_s is not None:
            await _open_loop(client, self._bodies, plan.arrivals_s, count)
        else:
            await client.connect(int(plan.load))
            bodies, pause_s = self._bodies, 0.0
            if plan.duration_s is not None:
                bodies, pause_s = _until(time.perf_counter() + plan.duration_s, bodies), PAUSE_S
            some = itertools.islice(bodies, plan.requests)
            await _closed_loop(client, some, int(plan.load), count, pause_s)
        _note_servers_view(level, before, self._metrics())
        last = level.requests[-max(2, min(8, int(plan.load))) :]
        if last and all(record.error in ("refused", "closed") for record in last):
            url, why = self._server.base_url, f"{last[-1].error}: {last[-1].detail}"
            return f"{url} is gone ({why}); see its log"
        is_open = plan.arrivals_s is not None
        return saturated(self._levels, is_open=is_open) if self._until_saturated else ""

    def _metrics(self) -> ServerMetrics | None:
        try:
            return self._server.metrics()
        except ServerError:
            return None  # a server without metrics can be loaded all the same


def _note_servers_view(
    level: LevelRecord, before: ServerMetrics | None, after: ServerMetrics | None
) -> None:
    """What the server's histograms gained between two readings, as far as it has them."""
    for name, metric in (*_SERVER_LATENCIES.items(), ("steps", _STEP_TOKENS)):
        try:
            if before is None or after is None:
                return
            change = after.histogram(metric) - before.histogram(metric)
        except ServerError:
            continue  # not every server has every histogram
        if name == "steps" and change.count:
            tokens = sum(record.completion_tokens or 0 for record in level.requests)
            level.tokens_per_step = tokens / change.count
        elif name != "steps" and change.mean is not None:
            level.server_ms[name] = change.mean * 1000


async def _closed_loop(
    client: StreamClient,
    bodies: Iterator[dict[str, Any]],
    concurrency: int,
    on_finished: Callable[[RequestRecord], None],
    pause_s: float = 0.0,
) -> None:
    """Keep `concurrency` requests in flight: each user asks again once answered."""

    async def user() -> None:
        for body in bodies:
            record = await client.send(body)
            on_finished(record)
            if record.error and pause_s:
                await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as users:
        for _ in range(concurrency):
            users.create_task(user())


async def _open_loop(
    client: StreamClient,
    bodies: Iterator[dict[str, Any]],
    arrivals_s: Sequence[float],
    on_finished: Callable[[RequestRecord], None],
) -> None:
    """Send each request when it is due, whatever has become of those before it."""

    async def ask(body: dict[str, Any], due_s: float) -> None:
        on_finished(await client.send(body, due_s))

    start_s = time.perf_counter()
    async with asyncio.TaskGroup() as users:
        for arrival_s, body in zip(arrivals_s, bodies, strict=False):
            due_s = start_s + arrival_s
            # Again and again: uvloop's clock has whole ms, and a sleep may end early.
            while (left_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(left_s)
            users.create_task(ask(body, due_s))


def _until(end_s: float, bodies: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The bodies, as long as it is not later than `end_s`."""
    while time.perf_counter() < end_s:
        yield next(bodies)


def start_sweep(
    server: ModelServer | str,
    prompts: Sequence[str],
    *,
    levels: Sequence[int] | None = None,
    rates_per_s: Sequence[float] | None = None,
    requests_per_level: int | None = None,
    duration_s: float | None = None,
    stop_when_saturated: bool = False,
    max_tokens: int = 32,
    warmup: int = 2,
    timeout_s: float = 120.0,
) -> SweepRun:
    """Start a sweep over load levels and return at once.

    Four habits keep the numbers honest. Time to first token ends at the first message with text,
    not at the empty one that only carries the role. A failed request is counted as failed and
    enters no latency. Tokens are what the server counted, not messages; vLLM is asked for exactly
    `max_tokens` of them, and each prompt gets a running number, or a repeated one would be
    answered from the server's prefix cache. And in an open loop a latency counts from the moment
    when the request was due, not from when it could be sent: otherwise a server that stalls is
    asked less and looks fast ("coordinated omission").

    Args:
        server: The server, or its address.
        prompts: Sent in turn, over and over.
        levels: Closed loop: numbers of requests in flight, one level each; by default
            1, 4 and 8. `ramp` makes levels that grow.
        rates_per_s: Open loop, in place of `levels`: requests a second, at the random moments
            of a Poisson process.
        requests_per_level: Requests at each level. Without it and without a duration: four times
            the level up to 8 in flight and twice above, at least eight; in an open loop those of
            ten seconds.
        duration_s: Requests are sent for so long at each level; those then in flight are
            still waited for. With `requests_per_level` whichever comes first.
        stop_when_saturated: End after the level that shows that more load brings nothing.
            Levels must rise.
        max_tokens: Length of each answer, tokens.
        warmup: Requests before each level that are not counted.
        timeout_s: Longest time for one request; then it counts as timed out.

    Raises:
        WorkshopError: A parameter that makes no sense.
        ServerError: The server does not answer.

    Example:
        >>> run = start_sweep("http://127.0.0.1:8000", ["What is a GPU?"])  # doctest: +SKIP
        >>> run.stop()  # doctest: +SKIP
    """
    if rates_per_s is not None and levels is not None:
        raise WorkshopError("give levels (closed loop) or rates_per_s (open loop), not both")
    if isinstance(prompts, str):
        raise WorkshopError("prompts must be a list of prompts, got one string")
    try:
        asked = _Asked(
            prompts=list(prompts),
            levels=None if rates_per_s is not None else list(levels or (1, 4, 8)),
            rates_per_s=None if rates_per_s is None else list(rates_per_s),
            requests_per_level=requests_per_level,
            duration_s=duration_s,
            max_tokens=max_tokens,
            warmup=warmup,
            timeout_s=timeout_s,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise WorkshopError(
            f"start_sweep: {where}: {first['msg']}, got {first['input']!r}"
        ) from error
    plans = _plans(asked)
    loads = [plan.load for plan in plans]
    if len(set(loads)) < len(loads) or (stop_when_saturated and loads != sorted(loads)):
        raise WorkshopError(
            "each level may appear once, and stop_when_saturated needs levels that rise, "
            f"got {loads}"
        )
    server = ModelServer(server) if isinstance(server, str) else server
    server.health()
    fields: dict[str, Any] = {
        "model": server.first_model(),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,  # so that all requests are equally long; not part of the OpenAI API
    }
    # Numbers start anew with each sweep, so a second sweep would repeat the first one's prompts.
    sweep = f"{time.time_ns() % 10**9:09d}"
    texts = (f"[{sweep}-{n}] {text}" for n, text in enumerate(itertools.cycle(asked.prompts)))
    return SweepRun(
        server,
        plans,
        (fields | {"messages": [{"role": "user", "content": text}]} for text in texts),
        {
            "loop": "closed" if rates_per_s is None else "open",
            "max_tokens": max_tokens,
            "warmup": warmup,
            "prompts": len(asked.prompts),
        },
        timeout_s=timeout_s,
        stop_when_saturated=stop_when_saturated,
    )


def run_sweep(
    server: ModelServer | str,
    prompts: Sequence[str],
    *,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> BenchmarkResult:
    """Run a sweep over load levels; works where an event loop already runs, as in Jupyter.

    An interrupt (Ctrl-C, the notebook's stop button) ends it and returns what has finished,
    with `stopped` set.

    Args:
        server: The server, or its address.
        prompts: Sent in turn, over and over.
        on_progress: Called as (done, total, text).
        **options: As for `start_sweep`: `levels` or `rates_per_s`, `max_tokens`, ...

    Example:
        >>> result = run_sweep(server, ["What is a GPU?"], levels=(1, 4))  # doctest: +SKIP
    """
    return start_sweep(server, prompts, **options).wait(on_progress)
