"""Runs a load against a server from a thread of its own.

A notebook's kernel already runs an event loop, so the load gets its own thread
and loop: uvloop's, since what the loop itself spends on a token limits the load.
The thread that waits is free to draw progress and to be interrupted; what has
finished by then is kept.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from workshop_lib.errors import ServerError
from workshop_lib.serving.benchmark.streaming import StreamClient, StreamTimes
from workshop_lib.serving.metrics import ServerMetrics

__all__ = ["LevelPlan", "LevelRun", "LoadPlan", "LoadRun", "OnProgress"]

OnProgress = Callable[[int, int, str], None]

# A user of a level that ends by time waits so long after a failure: refusals take no time,
# and a broken server would be asked thousands of times a second.
PAUSE_S = 0.1

# What a request ends with when nobody is there any more.
_GONE = ("refused", "closed")


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelPlan:
    """One level.

    Attributes:
        load: Requests in flight, or in an open loop requests a second.
        requests: Requests in all; None when only `duration_s` ends the level.
        duration_s: No request is sent later than this after the level's start; None when
            only `requests` ends it. Requests in flight are waited for in any case.
        arrivals_s: An open loop's moments to send, from the level's start; None in a closed
            loop.
    """

    load: float
    requests: int | None
    duration_s: float | None = None
    arrivals_s: tuple[float, ...] | None = None

    @property
    def title(self) -> str:
        """The load in words."""
        if self.arrivals_s is None:
            return f"{self.load:g} concurrent"
        return f"{self.load:g} a second"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What to send.

    Attributes:
        url: Full address of the endpoint that streams.
        levels: One after the other.
        make_body: The JSON body of the request with that running number.
        warmup: Requests before each level that are not counted.
        timeout_s: Longest time for one request.
        read_metrics: Reads the server's metrics; None if it has none.
        verdict: Asked after each level: why the load should end here, or nothing.
    """

    url: str
    api_key: str | None
    levels: tuple[LevelPlan, ...]
    make_body: Callable[[int], dict[str, Any]]
    warmup: int
    timeout_s: float
    read_metrics: Callable[[], ServerMetrics] | None
    verdict: Callable[[Sequence[LevelRun]], str] = lambda levels: ""


@dataclass(slots=True)
class LevelRun:
    """One level's finished requests, and the server's metrics on both sides of it."""

    plan: LevelPlan
    start_s: float = 0.0
    finished: list[StreamTimes] = field(default_factory=list)
    metrics_before: ServerMetrics | None = None
    metrics_after: ServerMetrics | None = None


class LoadRun:
    """A load that is running; `wait` for it, or `stop` it from any thread.

    Attributes:
        levels: What has run so far.
        ended: Why it ended before its last level, in one line; empty if it did not.

    Example:
        >>> run = LoadRun(plan)  # doctest: +SKIP
        >>> levels = run.wait(on_progress=print)  # doctest: +SKIP
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._progress: queue.SimpleQueue[tuple[int, str] | None] = queue.SimpleQueue()
        self._done = 0
        self._error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = threading.Event()
        self.levels: list[LevelRun] = []
        self.ended = ""
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    @property
    def stopped(self) -> bool:
        """Whether the load was stopped before its end."""
        return self._stop.is_set()

    @property
    def running(self) -> bool:
        """Whether requests are still being sent."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the load soon; requests in flight are dropped, finished ones are kept."""
        if not self.running:
            return
        self._stop.set()
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            try:
                loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                return  # the loop has just ended by itself

    def wait(self, on_progress: OnProgress | None = None) -> list[LevelRun]:
        """Wait for the end, showing progress in the calling thread.

        An interrupt (Ctrl-C, the notebook's stop button) stops the load; what
        has finished is returned.

        Args:
            on_progress: Called as (done, total, text); the total is 0 while it is not known.

        Raises:
            ServerError: Every warm-up request of the first level failed.
        """
        counts = [level.requests for level in self._plan.levels]
        total = sum(count or 0 for count in counts) if None not in counts else 0
        while True:
            try:
                if self._show(on_progress, total):
                    break
            except KeyboardInterrupt:
                self.stop()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.levels

    def _show(self, on_progress: OnProgress | None, total: int) -> bool:
        """Show the newest of what has happened; True once the load has ended."""
        latest: tuple[int, str] | None = None
        ended = False
        try:
            event = self._progress.get(timeout=0.2)  # so that an interrupt comes through
            while True:
                latest, ended = (latest, True) if event is None else (event, ended)
                event = self._progress.get_nowait()
        except queue.Empty:
            if latest is not None and on_progress is not None:
                on_progress(latest[0], total, latest[1])
        return ended

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self._loop = runner.get_loop()
                runner.run(self._main())
        except asyncio.CancelledError:
            pass  # stopped: the finished requests are in self.levels
        except Exception as exc:  # noqa: BLE001 - handed to the thread that waits
            self._error = exc
        finally:
            self._progress.put(None)

    async def _main(self) -> None:
        self._task = asyncio.current_task()
        plan = self._plan
        client = StreamClient(plan.url, api_key=plan.api_key, timeout_s=plan.timeout_s)
        bodies = map(plan.make_body, itertools.count())
        try:
            for level_plan in plan.levels:
                if self._stop.is_set():
                    break
                self.ended = await self._warm_up(client, bodies, level_plan)
                if self.ended:
                    break
                level = LevelRun(level_plan, metrics_before=self._metrics())
                self.levels.append(level)
                await self._run_level(client, bodies, level)
                level.metrics_after = self._metrics()
                self.ended = self._gone(level) or plan.verdict(self.levels)
                if self.ended:
                    break
        finally:
            client.close()

    async def _warm_up(
        self, client: StreamClient, bodies: Iterator[dict[str, Any]], level: LevelPlan
    ) -> str:
        """Requests that are not counted: they open connections and fill the server's caches.

        Returns:
            Why the load cannot go on after the levels that it has; empty if it can.

        Raises:
            ServerError: All failed, and there is nothing yet that could be kept.
        """
        self._progress.put((self._done, f"{level.title}: warming up"))
        answers: list[StreamTimes] = []
        at_once = max(1, self._plan.warmup) if level.arrivals_s else int(level.load)
        some = itertools.islice(bodies, self._plan.warmup)
        await self._closed_loop(client, some, at_once, answers.append)
        if not answers or not all(answer.error for answer in answers):
            return ""
        worst = answers[0]
        why = f"{self._plan.url} failed every warm-up request: {worst.error}: {worst.detail}"
        if not any(run.finished for run in self.levels):
            raise ServerError(why)
        return f"{level.title} not measured: {why}"

    async def _run_level(
        self, client: StreamClient, bodies: Iterator[dict[str, Any]], level: LevelRun
    ) -> None:
        plan = level.plan
        count = self._counter(level)
        if plan.arrivals_s is None:
            await client.connect(int(plan.load))
        level.start_s = time.perf_counter()
        if plan.arrivals_s is not None:
            await self._open_loop(client, bodies, level.start_s, plan.arrivals_s, count)
            return
        if plan.duration_s is not None:
            bodies = _until(level.start_s + plan.duration_s, bodies)
        some = itertools.islice(bodies, plan.requests)
        pause_s = 0.0 if plan.duration_s is None else PAUSE_S
        await self._closed_loop(client, some, int(plan.load), count, pause_s)

    async def _closed_loop(
        self,
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
        self,
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

    def _counter(self, level: LevelRun) -> Callable[[StreamTimes], None]:
        failed = 0
        plan = level.plan
        of = f" of {plan.requests}" if plan.requests else ""

        def count(times: StreamTimes) -> None:
            nonlocal failed
            level.finished.append(times)
            self._done += 1
            failed += bool(times.error)
            text = f"{plan.title}: {len(level.finished)}{of}"
            self._progress.put((self._done, text + (f", {failed} failed" if failed else "")))

        return count

    def _gone(self, level: LevelRun) -> str:
        """Whether the level ended with nobody there to answer, in words."""
        last = level.finished[-max(2, min(8, int(level.plan.load))) :]
        if last and all(times.error in _GONE for times in last):
            worst = last[-1]
            return f"{self._plan.url} is gone ({worst.error}: {worst.detail}); see its log"
        return ""

    def _metrics(self) -> ServerMetrics | None:
        if self._plan.read_metrics is None:
            return None
        try:
            return self._plan.read_metrics()
        except ServerError:
            return None  # a server without metrics can be loaded all the same


def _until(end_s: float, bodies: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The bodies, as long as it is not later than `end_s`."""
    while time.perf_counter() < end_s:
        yield next(bodies)
