"""The load generator and its server in a time of their own, which no busy machine disturbs.

Both run in one event loop and speak through a pair of sockets. Their clock stands still while
anything is there to be read or done, and then goes on to the next moment that one of them waits
for. So what the client measures must be what the server did, to the microsecond.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
import streaming_server
from streaming_server import MODEL, StreamingServer

from workshop_lib.serving import ModelServer
from workshop_lib.serving.benchmark import load, stream
from workshop_lib.serving.metrics import ServerMetrics, parse_metrics


class Clock(selectors.DefaultSelector):
    """Goes on when nothing is left to do."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        # A pair of sockets holds what was written at once: what is not there now will not come.
        ready = super().select(timeout and 0)
        if not ready and timeout:
            Clock.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop with that clock, in which every connection leads to the server."""

    def __init__(self, server: StreamingServer) -> None:
        super().__init__(Clock())
        self._server = server
        self._serving: set[asyncio.Task[None]] = set()

    def time(self) -> float:
        return Clock.now_s

    async def create_connection(self, factory: Any, *where: Any, **options: Any) -> Any:
        if "sock" in options:
            return await super().create_connection(factory, *where, **options)
        ours, theirs = socket.socketpair()
        served = asyncio.create_task(
            self._server._connection(*await asyncio.open_connection(sock=theirs))
        )
        self._serving.add(served)
        return await super().create_connection(factory, sock=ours)


class Beside(ModelServer):
    """The server as a sweep asks for it, without a connection."""

    def __init__(self, server: StreamingServer, patch: pytest.MonkeyPatch) -> None:
        super().__init__("http://127.0.0.1:1")
        self._beside = server
        told = SimpleNamespace(**{**vars(time), "perf_counter": lambda: Clock.now_s})
        for module in (load, stream, streaming_server):
            patch.setattr(module, "time", told)
        loops = SimpleNamespace(new_event_loop=lambda: VirtualLoop(server))
        patch.setattr(load, "uvloop", loops)

    def health(self) -> bool:
        return True

    def models(self) -> list[str]:
        return [MODEL]

    def metrics(self) -> ServerMetrics:
        return parse_metrics(self._beside._metrics_page())
