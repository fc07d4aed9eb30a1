"""Users who come and go: each sends a request, waits for the answer, and sends the next.

A closed loop: with N users there are N requests in flight, running or queued, whatever
the server does. That number is what Serve's autoscaler looks at, so the number of
replicas can be known before the load begins.

A failed attempt is never hidden. The client repeats nothing by itself; with `retries`
the user tries again, and every attempt is a row of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ServerError

if TYPE_CHECKING:
    from typing import Self

    import httpx
    import pandas as pd

__all__ = ["Load", "Request"]

PAUSE_S = 0.25
"""How long a user waits after a failed attempt: no reader hammers a broken server."""


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt to get an answer.

    Attributes:
        number: Which request; its attempts share it.
        attempt: 1, or more when earlier attempts failed.
        user: Which user sent it.
        start_s: When it was sent, in seconds since the load began.
        latency_ms: Until its answer was complete, or until it failed.
        error: Empty, or `http <status>`, `timeout`, `refused` or `broken`.
        last: Whether the user gave no further attempt to this request.
        replica: Who answered, where the answer says so.
        service_ms: How long the replica worked on it, where the answer says so.
    """

    number: int
    attempt: int
    user: int
    start_s: float
    latency_ms: float
    error: str
    last: bool
    replica: str = ""
    service_ms: float | None = None


class Load:
    """Users in a thread of their own, until the `with` block ends.

    Leaving the block lets every user finish the request that is under way; an error or an
    interrupt in it ends them at once.

    Args:
        url: Where they POST.
        retries: Further attempts that a user makes when one fails.
        timeout_s: The longest that one attempt may take.

    Example:
        >>> with Load("http://127.0.0.1:8000/") as load:      # doctest: +SKIP
        ...     load.set_users(6)
        ...     time.sleep(10)
        >>> load.frame()["latency_ms"].median()                # doctest: +SKIP
    """

    def __init__(self, url: str, *, retries: int = 0, timeout_s: float = 60.0) -> None:
        self.url = url
        self.retries = retries
        self.timeout_s = timeout_s
        self.users = 0
        self.in_flight = 0
        self.attempts: list[Request] = []
        self.began_s = time.monotonic()
        self._numbers = iter(range(2**63))
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._error: Exception | None = None
        self._grace_s = timeout_s

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        self.began_s = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.users = 0
        self._grace_s = self.timeout_s if kind is None else 0.0
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None and error is None:
            raise ServerError(f"the load on {self.url} ended by itself: {self._error}")

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.began_s

    def set_users(self, users: int) -> None:
        """From now on so many users. Those who go finish the request under way.

        Args:
            users: How many; 0 is a pause.
        """
        self.users = users
        if self._loop is None or not self._thread.is_alive():
            raise ServerError(f"the load on {self.url} does not run; use it in a `with` block")
        self._loop.call_soon_threadsafe(self._start_users)

    def frame(self) -> pd.DataFrame:
        """Every attempt that has ended, in the order in which they were sent."""
        import pandas as pd

        columns = list(Request.__dataclass_fields__)
        rows = pd.DataFrame([asdict(each) for each in self.attempts], columns=columns)
        return rows.sort_values("start_s", ignore_index=True)

    # -- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as exc:  # noqa: BLE001 - raised again where the block ends
            self._error = exc
        finally:
            self._ready.set()

    async def _main(self) -> None:
        import httpx

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # Nothing configured for the outside has to do with this address.
        async with httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(self.timeout_s),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        ) as self._client:
            self._ready.set()
            await self._stop.wait()
            if self._tasks:
                await asyncio.wait(self._tasks.values(), timeout=self._grace_s)
            for task in self._tasks.values():
                task.cancel()

    def _start_users(self) -> None:
        for user in range(self.users):
            if user not in self._tasks or self._tasks[user].done():
                self._tasks[user] = asyncio.get_running_loop().create_task(self._user(user))

    async def _user(self, user: int) -> None:
        while user < self.users:
            number = next(self._numbers)
            for attempt in range(1, self.retries + 2):
                done = await self._attempt(number, attempt, user)
                self.attempts.append(done)
                if not done.error:
                    break
                await asyncio.sleep(PAUSE_S)

    async def _attempt(self, number: int, attempt: int, user: int) -> Request:
        began_s = time.monotonic()
        self.in_flight += 1
        try:
            error, answer = await _post(self._client, self.url, {"reader": number})
        finally:
            self.in_flight -= 1
        latency_ms = 1000 * (time.monotonic() - began_s)
        return Request(
            number, attempt, user, began_s - self.began_s, latency_ms, error,
            last=not error or attempt > self.retries,
            replica=str(answer.get("replica", "")), service_ms=answer.get("service_ms"),
        )  # fmt: skip


async def _post(
    client: httpx.AsyncClient, url: str, body: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """An answer, or the kind of failure."""
    import httpx

    try:
        answer = await client.post(url, json=body)
        if answer.status_code != 200:
            return f"http {answer.status_code}", {}
        content = answer.json()
        return "", content if isinstance(content, dict) else {}
    except httpx.TimeoutException:
        return "timeout", {}
    except httpx.ConnectError:
        return "refused", {}
    except (httpx.HTTPError, ValueError):
        return "broken", {}
