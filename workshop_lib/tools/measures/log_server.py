"""A mock API server with one pod whose log is long: raw sockets, blocks made beforehand.

It answers just enough for our library and for `kubectl logs` to read that log, and sends
it as a kubelet does behind a real API server: each line behind the time at which it was
written, the times going up, in HTTP chunks of the size in which the API server copies,
whose ends fall into lines. What it does for a line is a copy, so that a measurement
against it measures who reads.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import selectors
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

__all__ = [
    "CONTAINER",
    "LINE_BYTES",
    "NAMESPACE",
    "POD",
    "LogRequest",
    "LogServer",
    "Served",
    "serve_log",
]

NAMESPACE, POD, CONTAINER = "workshop", "talkative", "main"

LINE_BYTES = 100
"""Of each line as the container wrote it, with its end and without its time."""

LINES_PER_S = 1_000
"""How fast the container is said to have written."""

_BEGAN = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
_TENS = len("2026-11-21T00:00:0")
"""A stamp's characters before the second's last digit: what differs between two blocks."""

_BLOCK_S = 10
_CHUNK_BYTES = 32 << 10
"""Go's io.Copy, with which the API server hands on what the kubelet sends."""

TIMEOUT_S = 60.0
"""A reader that takes nothing for so long, or does not hang up afterwards, has failed."""

_CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: close\r\n\r\n"
)


@dataclass(frozen=True)
class LogRequest:
    """What the pod's log is from now on.

    Attributes:
        lines: Its length; rounded up to whole blocks of `LINES_PER_S` times 10.
    """

    lines: int


@dataclass(frozen=True)
class Served:
    """How one log was read.

    Attributes:
        lines: Sent.
        seconds: From reading the request until the reader, with all of it, hung up.
        server_cpu_s: The mock server's own CPU time meanwhile.
        query: What was asked for.
    """

    lines: int
    seconds: float
    server_cpu_s: float
    query: dict[str, list[str]]


def _block() -> bytes:
    """The chunks of ten seconds of log."""
    lines = []
    for number in range(_BLOCK_S * LINES_PER_S):
        at = _BEGAN + datetime.timedelta(seconds=number // LINES_PER_S)
        nanoseconds = number % LINES_PER_S * (1_000_000_000 // LINES_PER_S)
        text = f"INFO worker.py:{number % 997} request {number:09} done "
        lines.append(f"{at:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z {text:.<{LINE_BYTES - 1}}\n")
    body = "".join(lines).encode()
    stamped = len(lines[0])
    # Whole lines and 60 bytes: a chunk ends in a line's text, never in the stamp, which changes.
    step = (_CHUNK_BYTES - 60) // stamped * stamped
    edges = [0, *range(step + 60, len(body), step), len(body)]
    pieces = (body[start:end] for start, end in itertools.pairwise(edges))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def _blocks(block: bytes, count: int) -> Iterator[bytes]:
    """A log's chunks, ten seconds at a time, each at its own time."""
    first = f"{_BEGAN:%Y-%m-%dT%H:%M:%S}"[:_TENS].encode()
    for number in range(count):
        at = _BEGAN + datetime.timedelta(seconds=number * _BLOCK_S)
        yield block.replace(first, f"{at:%Y-%m-%dT%H:%M:%S}"[:_TENS].encode())


_POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": POD,
        "namespace": NAMESPACE,
        "uid": "6f1c1a52-0000-4000-8000-000000000001",
        "creationTimestamp": "2026-11-21T00:00:00Z",
    },
    "spec": {
        "restartPolicy": "Never",
        "containers": [{"name": CONTAINER, "image": "talkative"}],
    },
    "status": {
        "phase": "Succeeded",
        "containerStatuses": [
            {
                "name": CONTAINER,
                "image": "talkative",
                "imageID": "",
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
                "lastState": {},
            }
        ],
    },
}
_POD_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}"
_POD_RESOURCE = {
    "name": "pods",
    "singularName": "pod",
    "namespaced": True,
    "kind": "Pod",
    "verbs": ["get", "list"],
    "shortNames": ["po"],
}
# What `kubectl` asks for before it reads: what there is, then the pod.
_OBJECTS: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"},
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": [_POD_RESOURCE]},
    _POD_PATH: _POD,
}


def _answer(status: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def _not_found(path: str) -> bytes:
    return _answer(
        "404 Not Found",
        {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": f"the mock server has no {path}",
            "reason": "NotFound",
            "code": 404,
        },
    )


class LogServer:
    """The mock server, on a free port of 127.0.0.1; while it sends a log it does nothing else.

    Args:
        control: Where a `LogRequest` comes from, which is answered with the server's address,
            and None, which is answered with what was `Served` since then. When its other end
            is closed, the server ends.

    Example:
        >>> LogServer(control).run()  # doctest: +SKIP
    """

    def __init__(self, control: Connection) -> None:
        self._control = control
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._received: dict[socket.socket, bytes] = {}
        self._block = _block()
        self._blocks = 0
        self._served: list[Served] = []

    def run(self) -> None:
        """Serve until the control connection is closed."""
        self._selector.register(self._control.fileno(), selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        with contextlib.suppress(EOFError), self._listener, self._selector:
            while True:
                for key, _ in self._selector.select():
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket):
                        self._read(key.fileobj)
                    else:
                        self._obey(self._control.recv())

    def _obey(self, request: LogRequest | None) -> None:
        if request is None:
            self._control.send(self._served)
            return
        self._blocks = -(-request.lines // (_BLOCK_S * LINES_PER_S))
        self._served = []
        self._control.send(self.url)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.settimeout(TIMEOUT_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received[client] = b""
        self._selector.register(client, selectors.EVENT_READ)

    def _close(self, client: socket.socket) -> None:
        del self._received[client]
        self._selector.unregister(client)
        client.close()

    def _read(self, client: socket.socket) -> None:
        """Answer the requests of one connection; they are GETs, without a body."""
        try:
            data = client.recv(1 << 16)
            requests = (self._received[client] + data).split(b"\r\n\r\n")
            self._received[client] = requests.pop()
            for head in requests:
                if not self._respond(client, head.decode("latin-1").split(" ")[1]):
                    data = b""
        except OSError:
            data = b""
        if not data:
            self._close(client)

    def _respond(self, client: socket.socket, target: str) -> bool:
        """Answer a request; whether the connection stays open."""
        path, query = urlsplit(target).path, urlsplit(target).query
        if path == f"{_POD_PATH}/log":
            self._send_log(client, parse_qs(query))
            return False
        body = _OBJECTS.get(path)
        client.sendall(_not_found(path) if body is None else _answer("200 OK", body))
        return True

    def _send_log(self, client: socket.socket, query: dict[str, list[str]]) -> None:
        began_s, cpu_s = time.monotonic(), time.process_time()
        client.sendall(_CHUNKED)
        for block in _blocks(self._block, self._blocks):
            client.sendall(block)
        client.sendall(b"0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):  # until it hangs up: it has read all
            pass
        seconds = time.monotonic() - began_s
        lines = self._blocks * _BLOCK_S * LINES_PER_S
        self._served.append(Served(lines, seconds, time.process_time() - cpu_s, query))


def serve_log(control: Connection) -> None:
    """Be a mock server; the first message says that it listens.

    Args:
        control: See `LogServer`.
    """
    server = LogServer(control)
    control.send(None)
    server.run()
