"""A stream that one thread reads and another one ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["StoppableStream"]


class StoppableStream:
    """The response that a thread reads now, if any; after `stop` it reads no other.

    Attributes:
        stopped: Set by `stop`; what the reader waits on between two responses.
    """

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._response: BaseHTTPResponse | None = None

    def stop(self) -> None:
        """Make the reading end, from another thread."""
        self.stopped.set()
        with self._lock:
            if self._response is not None:
                # ValueError and the others: it has ended by itself meanwhile.
                with contextlib.suppress(ValueError, OSError, RuntimeError, AttributeError):
                    self._response.shutdown()

    @contextlib.contextmanager
    def reading(self, response: BaseHTTPResponse) -> Iterator[bool]:
        """While a response is read; it is closed afterwards.

        Args:
            response: Just opened.

        Yields:
            Whether to read it: not when the stream was stopped while it was opened.
        """
        with self._lock:
            goes_on = not self.stopped.is_set()
            self._response = response if goes_on else None
        try:
            yield goes_on
        finally:
            with self._lock:
                self._response = None
            response.close()
