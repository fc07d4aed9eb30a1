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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvloop

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord
from workshop_lib.serving.benchmark.stream import StreamClient, StreamTimes
from workshop_lib.serving.client import ModelServer, Prompt
from workshop_lib.serving.metrics import Histogram, ServerMetrics

OnProgress = Callable[[int, int, str], None]
Requests = int | Mapping[Any, int] | None

MAX_REQUESTS = 100_000
MAX_RATE_PER_S = 2_000.0
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
_STEP_TOKENS = "iteration_tokens_total"


@dataclass(slots=True)
class Level:
    """One level: what to send, and what has been answered.

    `load` is requests in flight, or in an open loop requests a second, at the moments
    `arrivals_s` from the level's start. `requests` and `duration_s` end it, whichever comes
    first; requests in flight are waited for in any case.
    """

    load: float
    requests: int | None = None
    duration_s: float | None = None
    arrivals_s: tuple[float, ...] | None = None
    start_s: float = 0.0
    finished: list[StreamTimes] = field(default_factory=list)
    metrics: list[ServerMetrics | None] = field(default_factory=list)  # before, after

    @property
    def title(self) -> str:
        """The load in words."""
        return f"{self.load:g} concurrent" if self.arrivals_s is None else f"{self.load:g} a second"

    @property
    def tokens_per_s(self) -> float:
        """Tokens of successful requests a second."""
        good = [times for times in self.finished if not times.error]
        if not good:
            return 0.0
        start_s = min(times.start_s for times in self.finished)
        duration_s = max(times.end_s for times in self.finished) - start_s
        return sum(times.completion_tokens or 0 for times in good) / duration_s


def ramp(start: int = 1, limit: int = 256, *, factor: int = 2) -> tuple[int, ...]:
    """Levels that grow by a factor: with `stop_when_saturated` the way to a server's limit.

    Args:
        start: The first level.
        limit: No level is above it; at most 4096.
        factor: How many times the one before each level is.

    Raises:
        WorkshopError: A value that makes no ramp.

    Example:
        >>> ramp(1, 40)
        (1, 2, 4, 8, 16, 32)
    """
    whole = all(isinstance(value, int) for value in (start, limit, factor))
    if not whole or not 1 <= start <= limit <= MAX_LEVEL or factor < 2:
        raise WorkshopError(
            f"a ramp needs whole numbers, 1 <= start <= limit <= {MAX_LEVEL} and a factor of at "
            f"least 2, got start={start}, limit={limit}, factor={factor}"
        )
    levels = [start]
    while levels[-1] * factor <= limit:
        levels.append(levels[-1] * factor)
    return tuple(levels)


def poisson_arrivals(
    rate_per_s: float, *, requests: int | None, duration_s: float | None, seed: int = 0
) -> tuple[float, ...]:
    """Moments at which an open loop sends: readers who do not know of each other.

    The gaps of a Poisson process are exponentially distributed; the first request is sent at
    once. `requests` or `duration_s` ends it.
    """
    source = random.Random(seed)
    moments = [0.0]
    while requests is None or len(moments) < requests:
        later = moments[-1] + source.expovariate(rate_per_s)
        if duration_s is not None and later >= duration_s:
            break
        moments.append(later)
    return tuple(moments)


def _closed_levels(
    levels: Sequence[int], requests: Requests, duration_s: float | None
) -> list[Level]:
    # The range first: NaN and infinity are no integers that could be compared.
    if not levels or any(not 1 <= level <= MAX_LEVEL or level % 1 for level in levels):
        raise WorkshopError(
            f"levels must be whole numbers from 1 to {MAX_LEVEL}, got {list(levels)}"
        )
    planned = []
    for level in levels:
        count = _count(requests, level)
        if count is None and duration_s is None:
            # Above 8, two rounds of so many tell as much as four, and take half the time.
            count = max(8, (4 if level <= 8 else 2) * level)
        if count is not None and not level <= count <= MAX_REQUESTS:
            raise WorkshopError(
                f"{count} requests cannot keep {level} in flight; "
                f"ask for {level} to {MAX_REQUESTS:,}"
            )
        planned.append(Level(int(level), count, duration_s))
    return planned


def _open_levels(
    rates_per_s: Sequence[float], requests: Requests, duration_s: float | None, seed: int
) -> list[Level]:
    if not rates_per_s or any(not 0 < rate <= MAX_RATE_PER_S for rate in rates_per_s):
        raise WorkshopError(
            f"rates must be numbers above 0 and up to {MAX_RATE_PER_S:,.0f} requests a second, "
            f"got {list(rates_per_s)}"
        )
    planned = []
    for rate in rates_per_s:
        count = _count(requests, rate)
        if count is None and duration_s is None:
            count = max(8, round(10 * rate))
        expected = min(x for x in (count, rate * (duration_s or 1e9)) if x is not None)
        if not 1 <= expected <= MAX_REQUESTS:
            raise WorkshopError(
                f"{rate:g} a second would send {expected:,.3g} requests; choose a number or a "
                f"duration for 1 to {MAX_REQUESTS:,}"
            )
        arrivals_s = poisson_arrivals(rate, requests=count, duration_s=duration_s, seed=seed)
        planned.append(Level(rate, len(arrivals_s), duration_s, arrivals_s))
    return planned


def _count(requests: Requests, level: float) -> int | None:
    count = requests.get(level) if isinstance(requests, Mapping) else requests
    if count is not None and (not isinstance(count, int) or count < 1):
        raise WorkshopError(f"{count} requests measure nothing; ask for a whole number, at least 1")
    return count


def saturated(levels: Sequence[Level]) -> str:
    """Why more load would bring nothing, in one line; empty while it would.

    Closed loop: the last level made hardly more tokens a second than the one before it. Open
    loop: requests came faster than they were answered, so that after the last had come the
    server still worked for long on those that waited.
    """
    last = levels[-1]
    if all(times.error for times in last.finished):
        return ""
    if last.arrivals_s is None:
        now, before = last.tokens_per_s, levels[-2].tokens_per_s if len(levels) > 1 else 0.0
        if not before or now >= before * (1 + SATURATION_GAIN):
            return ""
        return (
            f"saturated: {last.load:g} in flight make {now:.0f} tokens/s, "
            f"{levels[-2].load:g} made {before:.0f}"
        )
    window_s = last.arrivals_s[-1]
    drain_s = max(times.end_s for times in last.finished) - last.start_s - window_s
    good = [times for run in levels for times in run.finished if not times.error]
    alone_s = min(times.end_s - times.due_s for times in good)
    # One answer's own time is no backlog, and neither is a burst that is soon worked off.
    if drain_s < max(3 * alone_s, 0.2 * window_s):
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
        levels: Sequence[Level],
        make_body: Callable[[int], dict[str, Any]],
        *,
        model: str,
        settings: dict[str, Any],
        timeout_s: float,
        stop_when_saturated: bool,
    ) -> None:
        self._server = server
        self._url = f"{server.base_url}/v1/chat/completions"
        self._plan = levels
        self._bodies: Iterator[dict[str, Any]] = map(make_body, itertools.count())
        self._model = model
        self._settings = settings
        self._timeout_s = timeout_s
        self._until_saturated = stop_when_saturated
        self._created = datetime.now(UTC).isoformat(timespec="seconds")
        self._progress = (0, "")  # requests that are done, and what is going on
        self._ended = ""
        self._error: Exception | None = None
        self._stop, self._over = threading.Event(), threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._levels: list[Level] = []  # that have begun
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
        self._stop.set()
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                return  # the loop has just ended by itself

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
        counts = [level.requests for level in self._plan]
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
        levels = [level for level in self._levels if level.finished]
        return BenchmarkResult(
            url=self._server.base_url,
            model=self._model,
            created=self._created,
            settings=self._settings,
            level_records=[_level_record(level) for level in levels],
            request_records=[
                _request_record(level, times) for level in levels for times in level.finished
            ],
            stopped=self._stop.is_set(),
            ended=self._ended,
        )

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self._loop = runner.get_loop()
                runner.run(self._main())
        except asyncio.CancelledError:
            pass  # stopped: the finished requests are in self._levels
        except Exception as exc:  # noqa: BLE001 - raised again in the thread that waits
            self._error = exc
        finally:
            self._over.set()

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        client = StreamClient(self._url, api_key=self._server.api_key, timeout_s=self._timeout_s)
        try:
            for level in self._plan:
                if self._stop.is_set():
                    break
                self._ended = await self._warm_up(client, level)
                if self._ended:
                    break
                self._levels.append(level)
                level.metrics.append(self._metrics())
                await self._run_level(client, level)
                level.metrics.append(self._metrics())
                self._ended = self._gone(level)
                if not self._ended and self._until_saturated:
                    self._ended = saturated(self._levels)
                if self._ended:
                    break
        finally:
            client.close()

    async def _warm_up(self, client: StreamClient, level: Level) -> str:
        """Requests that are not counted: they open connections and fill the server's caches.

        Returns why the load cannot go on after the levels that it has; empty if it can.
        """
        self._progress = (self._progress[0], f"{level.title}: warming up")
        answers: list[StreamTimes] = []
        count = self._settings["warmup"]
        at_once = max(1, count) if level.arrivals_s else int(level.load)
        some = itertools.islice(self._bodies, count)
        await _closed_loop(client, some, at_once, answers.append)
        if not answers or not all(answer.error for answer in answers):
            return ""
        worst = answers[0]
        why = f"{self._url} failed every warm-up request: {worst.error}: {worst.detail}"
        if not any(run.finished for run in self._levels):
            raise ServerError(why)
        return f"{level.title} not measured: {why}"

    async def _run_level(self, client: StreamClient, level: Level) -> None:
        count = self._counter(level)
        if level.arrivals_s is not None:
            level.start_s = time.perf_counter()
            await _open_loop(client, self._bodies, level.start_s, level.arrivals_s, count)
            return
        await client.connect(int(level.load))
        level.start_s = time.perf_counter()
        bodies, pause_s = self._bodies, 0.0
        if level.duration_s is not None:
            bodies, pause_s = _until(level.start_s + level.duration_s, bodies), PAUSE_S
        some = itertools.islice(bodies, level.requests)
        await _closed_loop(client, some, int(level.load), count, pause_s)

    def _counter(self, level: Level) -> Callable[[StreamTimes], None]:
        failed = 0
        of = f" of {level.requests}" if level.requests else ""

        def count(times: StreamTimes) -> None:
            nonlocal failed
            level.finished.append(times)
            failed += bool(times.error)
            text = f"{level.title}: {len(level.finished)}{of}"
            text += f", {failed} failed" if failed else ""
            self._progress = (self._progress[0] + 1, text)

        return count

    def _gone(self, level: Level) -> str:
        """Whether the level ended with nobody there to answer, in words."""
        last = level.finished[-max(2, min(8, int(level.load))) :]
        if last and all(times.error in ("refused", "closed") for times in last):
            worst = last[-1]
            return f"{self._url} is gone ({worst.error}: {worst.detail}); see its log"
        return ""

    def _metrics(self) -> ServerMetrics | None:
        try:
            return self._server.metrics()
        except ServerError:
            return None  # a server without metrics can be loaded all the same


async def _closed_loop(
    client: StreamClient,
    bodies: Iterator[dict[str, Any]],
    concurrency: int,
    on_finished: Callable[[StreamTimes], None],
    pause_s: float = 0.0,
) -> None:
    """Keep `concurrency` requests in flight: each user asks again once answered."""

    async def user() -> None:
        for body in bodies:
            times = await client.send(body)
            on_finished(times)
            if times.error and pause_s:
                await asyncio.sleep(pause_s)

    async with asyncio.TaskGroup() as users:
        for _ in range(concurrency):
            users.create_task(user())


async def _open_loop(
    client: StreamClient,
    bodies: Iterator[dict[str, Any]],
    start_s: float,
    arrivals_s: Sequence[float],
    on_finished: Callable[[StreamTimes], None],
) -> None:
    """Send each request when it is due, whatever has become of those before it."""

    async def ask(body: dict[str, Any], due_s: float) -> None:
        on_finished(await client.send(body, due_s))

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

    Four habits keep the numbers honest. Time to first token ends at the first message with text,
    not at the empty one that only carries the role. A failed request is counted as failed and
    enters no latency. Tokens are what the server counted, not messages. And in an open loop a
    latency counts from the moment when the request was due, not from when it could be sent:
    otherwise a server that stalls is asked less and looks fast ("coordinated omission").

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
        unique_prompts: Put a running number before each prompt. Without it a repeated prompt
            is answered from the server's prefix cache, and the time to first token looks
            better than a user's.
        ignore_eos: Ask vLLM for exactly `max_tokens` tokens, so that all requests are equally
            long; not part of the OpenAI API.
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
    if rates_per_s is not None and levels is not None:
        raise WorkshopError("give levels (closed loop) or rates_per_s (open loop), not both")
    if duration_s is not None and not 0 < duration_s <= 3600:
        raise WorkshopError(f"duration_s must be more than 0 and at most 3600, got {duration_s}")
    if rates_per_s is None:
        levels = (1, 4, 8) if levels is None else levels
        kind, planned = "level", _closed_levels(levels, requests_per_level, duration_s)
    else:
        kind, planned = "rate", _open_levels(rates_per_s, requests_per_level, duration_s, seed)
    loads = [level.load for level in planned]
    if len(set(loads)) != len(loads):
        raise WorkshopError(f"each {kind} may appear once, got {loads}")
    if stop_when_saturated and loads != sorted(loads):
        raise WorkshopError(f"stop_when_saturated needs levels that rise, got {loads}")
    if isinstance(prompts, str) or not prompts:
        raise WorkshopError("prompts must be a list with at least one prompt")
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise WorkshopError(f"max_tokens must be a whole number, at least 1, got {max_tokens}")
    if not isinstance(warmup, int) or not 0 <= warmup <= MAX_REQUESTS:
        raise WorkshopError(f"warmup must be from 0 to {MAX_REQUESTS:,} requests, got {warmup}")
    if not 0 < timeout_s < math.inf:
        raise WorkshopError(f"timeout_s must be a number above 0, got {timeout_s}")
    server = ModelServer(server) if isinstance(server, str) else server
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
    fields |= {"ignore_eos": True} if ignore_eos else {}
    settings = {
        "loop": "closed" if rates_per_s is None else "open",
        "max_tokens": max_tokens,
        "warmup": warmup,
        "unique_prompts": unique_prompts,
        "ignore_eos": ignore_eos,
        "prompts": len(prompts),
    }
    return SweepRun(
        server,
        planned,
        _body_maker(list(prompts), fields, unique_prompts),
        model=model,
        settings=settings,
        timeout_s=timeout_s,
        stop_when_saturated=stop_when_saturated,
    )


def run_sweep(
    server: ModelServer | str,
    prompts: Sequence[Prompt],
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

    Raises:
        WorkshopError: A parameter that makes no sense.
        ServerError: The server does not answer, or fails every warm-up request.

    Example:
        >>> result = run_sweep(server, ["What is a GPU?"], levels=(1, 4))  # doctest: +SKIP
    """
    return start_sweep(server, prompts, **options).wait(on_progress)


def _body_maker(
    prompts: list[Prompt], fields: dict[str, Any], unique: bool
) -> Callable[[int], dict[str, Any]]:
    # Numbers start anew with each sweep, so a second sweep would repeat the first one's prompts.
    sweep = f"{time.time_ns() % 10**9:09d}"

    def make(number: int) -> dict[str, Any]:
        prompt = prompts[number % len(prompts)]
        first, *others = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        )
        mark = f"[{sweep}-{number}] " if unique else ""
        return {**fields, "messages": [{**first, "content": mark + first["content"]}, *others]}

    return make


def _level_record(level: Level) -> LevelRecord:
    start_s = min(times.start_s for times in level.finished)
    end_s = max(times.end_s for times in level.finished)
    changes = _server_changes(level.metrics)
    means = {name: change.mean for name, change in changes.items()}
    steps = changes["steps"].count if "steps" in changes else 0
    tokens = sum(times.completion_tokens or 0 for times in level.finished)
    return LevelRecord(
        load=level.load,
        duration_s=end_s - start_s,
        server_ms={
            name: mean * 1000 for name in _SERVER_LATENCIES if (mean := means.get(name)) is not None
        },
        tokens_per_step=tokens / steps if steps else None,
    )


def _server_changes(metrics: list[ServerMetrics | None]) -> dict[str, Histogram]:
    """What the server's histograms gained between two readings; without those that it lacks."""
    known = [reading for reading in metrics if reading is not None]
    changes: dict[str, Histogram] = {}
    if len(known) != 2:
        return changes
    for name, metric in (*_SERVER_LATENCIES.items(), ("steps", _STEP_TOKENS)):
        try:
            changes[name] = known[1].histogram(metric) - known[0].histogram(metric)
        except ServerError:
            continue  # not every server has every histogram
    return changes


def _request_record(level: Level, times: StreamTimes) -> RequestRecord:
    text_s = [] if times.error else times.text_s
    return RequestRecord(
        load=level.load,
        scheduled_s=times.due_s - level.start_s,
        start_s=times.start_s - level.start_s,
        ttft_ms=(text_s[0] - times.due_s) * 1000 if text_s else None,
        itl_ms=tuple((later - earlier) * 1000 for earlier, later in itertools.pairwise(text_s)),
        e2e_ms=None if times.error else (times.end_s - times.due_s) * 1000,
        prompt_tokens=times.prompt_tokens,
        completion_tokens=times.completion_tokens,
        finish_reason=times.finish_reason,
        error=times.error,
        detail=times.detail,
    )
