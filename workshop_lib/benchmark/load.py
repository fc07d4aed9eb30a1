"""Runs a load against a server from a thread of its own.

A notebook's kernel already runs an event loop, so the load gets its own thread
and loop. The thread that waits is free to draw progress and to be interrupted;
what has finished by then is kept.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from workshop_lib.benchmark.streaming import StreamClient, StreamTimes
from workshop_lib.errors import ServerError
from workshop_lib.serving.metrics import ServerMetrics

__all__ = ["LevelRun", "LoadPlan", "LoadRun", "OnProgress"]

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What to send.

    Attributes:
        url: Full address of the endpoint that streams.
        levels: Pairs of concurrent requests and requests in all.
        make_body: The JSON body of the request with that running number.
        warmup: Requests before each level that are not counted.
        timeout_s: Longest time for one request.
        read_metrics: Reads the server's metrics; None if it has none.
    """

    url: str
    api_key: str | None
    levels: tuple[tuple[int, int], ...]
    make_body: Callable[[int], dict[str, Any]]
    warmup: int
    timeout_s: float
    read_metrics: Callable[[], ServerMetrics] | None


@dataclass(slots=True)
class LevelRun:
    """One level's finished requests, and the server's metrics on both sides of it."""

    concurrency: int
    start_s: float = 0.0
    finished: list[StreamTimes] = field(default_factory=list)
    metrics_before: ServerMetrics | None = None
    metrics_after: ServerMetrics | None = None


class LoadRun:
    """A load that is running; `wait` for it, or `stop` it from any thread.

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
            on_progress: Called as (done, total, text).

        Raises:
            ServerError: Every warm-up request failed.
        """
        total = sum(requests for _, requests in self._plan.levels)
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
            with asyncio.Runner() as runner:
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
        numbers = iter(range(2**63))
        try:
            for concurrency, requests in plan.levels:
                if self._stop.is_set():
                    break
                await self._warm_up(client, numbers, concurrency)
                level = LevelRun(concurrency, metrics_before=self._metrics())
                self.levels.append(level)
                level.start_s = time.perf_counter()
                bodies = (plan.make_body(next(numbers)) for _ in range(requests))
                await self._closed_loop(client, bodies, concurrency, self._counter(level, requests))
                level.metrics_after = self._metrics()
        finally:
            client.close()

    async def _warm_up(
        self, client: StreamClient, numbers: Iterator[int], concurrency: int
    ) -> None:
        """Requests that are not counted: they open connections and fill the server's caches."""
        self._progress.put((self._done, f"{concurrency} concurrent: warming up"))
        answers: list[StreamTimes] = []
        bodies = (self._plan.make_body(next(numbers)) for _ in range(self._plan.warmup))
        await self._closed_loop(client, bodies, concurrency, answers.append)
        if answers and all(answer.error for answer in answers):
            worst = answers[0]
            raise ServerError(
                f"{self._plan.url} failed every warm-up request: {worst.error}: {worst.detail}"
            )

    async def _closed_loop(
        self,
        client: StreamClient,
        bodies: Iterable[dict[str, Any]],
        concurrency: int,
        on_finished: Callable[[StreamTimes], None],
    ) -> None:
        """Keep `concurrency` requests in flight: each user asks again once answered."""
        waiting = iter(bodies)

        async def user() -> None:
            for body in waiting:
                on_finished(await client.send(body))

        async with asyncio.TaskGroup() as users:
            for _ in range(concurrency):
                users.create_task(user())

    def _counter(self, level: LevelRun, requests: int) -> Callable[[StreamTimes], None]:
        failed = 0

        def count(times: StreamTimes) -> None:
            nonlocal failed
            level.finished.append(times)
            self._done += 1
            failed += bool(times.error)
            text = f"{level.concurrency} concurrent: {len(level.finished)} of {requests}"
            self._progress.put((self._done, text + (f", {failed} failed" if failed else "")))

        return count

    def _metrics(self) -> ServerMetrics | None:
        if self._plan.read_metrics is None:
            return None
        try:
            return self._plan.read_metrics()
        except ServerError:
            return None  # a server without metrics can be loaded all the same
