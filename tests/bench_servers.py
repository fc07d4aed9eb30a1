"""A mock server of `make bench` in a thread of the test, and the connection that rules it."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Protocol


class Server(Protocol):
    def run(self) -> None: ...


@contextlib.contextmanager
def control_of(make: Callable[[Connection], Server]) -> Iterator[Connection]:
    """Serve until the block ends; closing the connection must then end the server.

    Args:
        make: `MockServer` or `LogServer`.
    """
    here, there = multiprocessing.Pipe()
    thread = threading.Thread(target=make(there).run, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        here.close()
        thread.join(300)
    assert not thread.is_alive()
