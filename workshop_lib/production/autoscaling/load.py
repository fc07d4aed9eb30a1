"""Users who come and go: each sends a request, waits for the answer, and sends the next.

A closed loop: N users are N ongoing requests, whatever the server does, and Serve's autoscaler
looks at that number. Every attempt is a row; a failed one is never hidden.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    import httpx
    import pandas as pd

PAUSE_S = 0.25
"""How long a user waits after a failed attempt: no reader hammers a broken server."""

LONGEST_S = 60.0
"""The longest that one attempt may take."""


class Request(NamedTuple):
    """One attempt to get an answer; times count from the begin of the load."""

    number: int  # attempts at one request share it
    start_s: float
    latency_ms: float
    error: str  # empty for an answer
    last: bool  # the user made no further attempt
    service_ms: float  # how long the replica worked on it


class Load:
    """Users, each a thread of its own, until the `with` block ends.

    Leaving the block lets users finish what is under way; after an error nobody waits for them.
    """

    def __init__(self, url: str, *, attempts: int = 1) -> None:
        self.url, self.most_attempts = url, attempts
        self.users = 0
        self.attempts: list[Request] = []
        self.began_s = time.monotonic()
        self._numbers = itertools.count()
        self._threads: dict[int, threading.Thread] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.users = 0
        for thread in self._threads.values() if error is None else ():
            thread.join(LONGEST_S)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self.began_s

    def set_users(self, users: int) -> None:
        """From now on so many users. Those who go finish the request under way."""
        self.users = users
        for user in range(users):
            if user not in self._threads or not self._threads[user].is_alive():
                self._threads[user] = threading.Thread(target=self._user, args=(user,), daemon=True)
                self._threads[user].start()

    def frame(self) -> pd.DataFrame:
        """Every attempt that has ended, in the order in which they were sent."""
        import pandas as pd

        rows = pd.DataFrame(list(self.attempts), columns=list(Request._fields))
        return rows.sort_values("start_s", ignore_index=True)

    def _user(self, user: int) -> None:
        import httpx

        # Nothing configured for the outside has to do with this address.
        with httpx.Client(trust_env=False, timeout=LONGEST_S) as client:
            while user < self.users:
                number = next(self._numbers)
                for attempt in range(1, self.most_attempts + 1):
                    start_s = self.elapsed_s
                    error, answer = post(client, self.url, number)
                    latency_ms = 1000 * (self.elapsed_s - start_s)
                    last = not error or attempt == self.most_attempts
                    service_ms = answer.get("service_ms", math.nan)
                    self.attempts.append(
                        Request(number, start_s, latency_ms, error, last, service_ms)
                    )
                    if not error:
                        break
                    time.sleep(PAUSE_S)


def post(client: httpx.Client, url: str, reader: int) -> tuple[str, dict[str, Any]]:
    """One request: what failed, or nothing, and the answer."""
    import httpx

    try:
        answer = client.post(url, json={"reader": reader})
    except httpx.HTTPError as error:
        return type(error).__name__, {}
    return ("", answer.json()) if answer.status_code == 200 else (f"HTTP {answer.status_code}", {})
