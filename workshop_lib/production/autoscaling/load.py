"""Users who come and go: each sends a request, waits for the answer, and sends the next.

A closed loop: N users are N requests in flight, running or queued, whatever the server does.
Serve's autoscaler looks at that number, so the number of replicas is known before the load begins.

A failed attempt is never hidden. The client repeats nothing by itself; with `retries` the user
tries again, and every attempt is a row of its own.
"""

from __future__ import annotations

import itertools
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    import httpx
    import pandas as pd

__all__ = ["Load", "Request"]

PAUSE_S = 0.25
"""How long a user waits after a failed attempt: no reader hammers a broken server."""


class Request(NamedTuple):
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
    """Users, each a thread of its own, until the `with` block ends.

    Leaving the block lets every user finish the request that is under way; after an error or an
    interrupt nobody waits for them.

    Args:
        url: Where they POST.
        retries: Further attempts that a user makes when one fails.
        timeout_s: The longest that one attempt may take.
    """

    def __init__(self, url: str, *, retries: int = 0, timeout_s: float = 60.0) -> None:
        self.url = url
        self.retries = retries
        self.timeout_s = timeout_s
        self.users = 0
        self.in_flight = 0
        self.attempts: list[Request] = []
        self.began_s = time.monotonic()
        self._numbers = itertools.count()
        self._threads: dict[int, threading.Thread] = {}

    def __enter__(self) -> Self:
        self.began_s = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.users = 0
        for thread in self._threads.values() if error is None else ():
            thread.join(self.timeout_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.began_s

    def set_users(self, users: int) -> None:
        """From now on so many users (0 is a pause). Those who go finish the request under way."""
        self.users = users
        for user in range(users):
            if user not in self._threads or not self._threads[user].is_alive():
                thread = threading.Thread(target=self._user, args=(user,), daemon=True)
                self._threads[user] = thread
                thread.start()

    def frame(self) -> pd.DataFrame:
        """Every attempt that has ended, in the order in which they were sent."""
        import pandas as pd

        rows = pd.DataFrame(list(self.attempts), columns=list(Request._fields))
        return rows.sort_values("start_s", ignore_index=True)

    def _user(self, user: int) -> None:
        import httpx

        # Nothing configured for the outside has to do with this address.
        with httpx.Client(trust_env=False, timeout=self.timeout_s) as client:
            while user < self.users:
                number = next(self._numbers)
                for attempt in range(1, self.retries + 2):
                    began_s = time.monotonic()
                    self.in_flight += 1
                    error, answer = _post(client, self.url, {"reader": number})
                    self.in_flight -= 1
                    done = Request(
                        number,
                        attempt,
                        user,
                        start_s=began_s - self.began_s,
                        latency_ms=1000 * (time.monotonic() - began_s),
                        error=error,
                        last=not error or attempt > self.retries,
                        replica=str(answer.get("replica", "")),
                        service_ms=answer.get("service_ms"),
                    )
                    self.attempts.append(done)
                    if not error:
                        break
                    time.sleep(PAUSE_S)


def _post(client: httpx.Client, url: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of failure, or an answer."""
    import httpx

    try:
        answer = client.post(url, json=body)
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
