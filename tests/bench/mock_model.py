"""A mock model server: it streams tokens like vLLM's HTTP API, on raw sockets, and stamps each.

No model runs here. One thread, one epoll, and answers that were made beforehand keep its work per
token at a few microseconds, so that a benchmark against it measures the client. Every token's stamp
is read from the monotonic clock just before the token is handed to the kernel; on Linux all
processes share that clock.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from frame import cpu_s

MODEL = "mock/model"
SEND_TIMEOUT_S = 10.0  # a client that reads nothing for so long has its connection closed


@dataclass(frozen=True)
class Load:
    """How the next streams are answered; `itl_ms` 0 sends as fast as it can."""

    ttft_ms: float
    itl_ms: float
    watch_pid: int  # the client, whose CPU time is read


@dataclass(slots=True)
class Stream:
    """One answer; its number, from 1, is the usage's `prompt_tokens`, so that records match."""

    number: int
    received_s: float
    text_s: list[float] = field(default_factory=list)


@dataclass
class Observation:
    """What happened under one `Load`, from its first request to its last token."""

    streams: list[Stream] = field(default_factory=list)
    most_at_once: int = 0
    client_cpu_s: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(len(stream.text_s) for stream in self.streams)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(**fields: Any) -> bytes:
    """A message as vLLM 0.32 streams it, of the same length."""
    message = {
        "id": "chatcmpl-8b1f0c5f7c1e4b0d9a55b1d0a3f2c7e4",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": MODEL,
        **fields,
    }
    return _chunk(b"data: " + json.dumps(message, separators=(",", ":")).encode() + b"\n\n")


def _choice(delta: dict[str, str], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _event(choices=[choice | {"token_ids": None}])


_ROLE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + _choice({"role": "assistant", "content": ""})
)
_TOKEN = _choice({"content": " token"})
_LAST_TOKEN = _choice({"content": " token"}, "length")


def _ending(number: int, tokens: int) -> bytes:
    usage = {"prompt_tokens": number, "total_tokens": number + tokens, "completion_tokens": tokens}
    return _event(choices=[], usage=usage) + _chunk(b"data: [DONE]\n\n") + _chunk(b"")


def _answer(status: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


@dataclass(eq=False, slots=True)
class _Client:
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    open: bool = True


@dataclass(eq=False, slots=True)
class _Answering:
    client: _Client
    stream: Stream
    tokens: int
    due_s: float


class MockModel:
    """The server; a `Load` is answered with its address, None with what was seen since."""

    def __init__(self, control: Connection) -> None:
        self._control = control
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self._url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        # Two queues, each in the order of due times by itself: first tokens are all due equally
        # long after their requests, further ones after those before.
        self._first: deque[_Answering] = deque()
        self._further: deque[_Answering] = deque()
        self._load = Load(0, 0, 0)
        self._seen = Observation()
        self._cpu_before_s = 0.0

    def run(self) -> None:
        """Serve until the control connection is closed."""
        self._epoll.register(self._control.fileno(), select.EPOLLIN)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        with contextlib.suppress(EOFError), self._listener, self._epoll:
            while True:
                for fd in self._wait():
                    if fd == self._listener.fileno():
                        self._accept()
                    elif fd == self._control.fileno():
                        self._obey(self._control.recv())
                    else:
                        self._read(self._clients[fd])
                self._send_due()

    def _wait(self) -> list[int]:
        """Sleep until something is to be read or sent; select(), as epoll waits for whole ms."""
        heads = [queue[0].due_s for queue in (self._first, self._further) if queue]
        left_s = max(0.0, min(heads) - time.monotonic()) if heads else None
        if left_s != 0.0 and not select.select([self._epoll], [], [], left_s)[0]:
            return []
        return [fd for fd, _ in self._epoll.poll(0)]

    def _obey(self, load: Load | None) -> None:
        if load is None:
            self._control.send(self._seen)
            return
        self._load, self._seen = load, Observation()
        self._first.clear()
        self._further.clear()
        self._control.send(self._url)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._clients[connection.fileno()] = _Client(connection)
                self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _close(self, client: _Client) -> None:
        client.open = False
        self._clients.pop(client.socket.fileno(), None)
        client.socket.close()  # which also takes it from the epoll

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(client)
            return
        client.received += data
        while client.open:
            head, found, rest = client.received.partition(b"\r\n\r\n")
            if not found:
                return
            lines = head.decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(":", 1) for line in lines[1:] if ":" in line)
            length = int(fields.get("content-length", "0"))
            if len(rest) < length:
                return
            client.received = rest[length:]
            self._request(client, lines[0].split(" ")[1], bytes(rest[:length]))

    def _request(self, client: _Client, path: str, body: bytes) -> None:
        if path == "/v1/chat/completions":
            asked = json.loads(body)
            self._begin(client, int(asked.get("max_completion_tokens") or asked["max_tokens"]))
        elif path == "/v1/models":
            self._send(client, _answer("200 OK", {"object": "list", "data": [{"id": MODEL}]}))
        elif path == "/health":
            self._send(client, _answer("200 OK", {}))
        else:
            self._send(client, _answer("404 Not Found", {"error": {"message": "no such path"}}))

    def _begin(self, client: _Client, tokens: int) -> None:
        now = time.monotonic()
        if not self._seen.streams:
            self._cpu_before_s = cpu_s(self._load.watch_pid)
        stream = Stream(len(self._seen.streams) + 1, now)
        self._seen.streams.append(stream)
        self._first.append(_Answering(client, stream, tokens, now + self._load.ttft_ms / 1000))
        at_once = len(self._first) + len(self._further)
        self._seen.most_at_once = max(self._seen.most_at_once, at_once)

    def _send_due(self) -> None:
        """Send the tokens whose time has come, at most one a stream, then look for requests."""
        now, itl_s = time.monotonic(), self._load.itl_ms / 1000
        first, further = self._first, self._further
        for _ in range(len(first) + len(further)):
            # The earlier of the two heads, so that what follows joins its queue in order.
            from_first = first and not (further and further[0].due_s <= first[0].due_s)
            queue = first if from_first else further
            if queue[0].due_s > now:
                return
            answering = queue.popleft()
            if self._send_token(answering):
                # From the time it was due, so that lateness does not add up; but one that is
                # behind by more than a gap may not pass the others.
                answering.due_s = max(answering.due_s + itl_s, now)
                further.append(answering)

    def _send_token(self, answering: _Answering) -> bool:
        """Send an answer's next token; False when it was the last, or the client has gone."""
        client, text_s = answering.client, answering.stream.text_s
        if not client.open:
            return False
        if not text_s:
            self._send(client, _ROLE)
        is_last = len(text_s) + 1 == answering.tokens
        stamp = time.monotonic()
        self._send(client, _LAST_TOKEN if is_last else _TOKEN)
        text_s.append(stamp)
        if is_last:
            self._send(client, _ending(answering.stream.number, answering.tokens))
            # What the client does with the last tokens after they are sent is not in it.
            self._seen.client_cpu_s = cpu_s(self._load.watch_pid) - self._cpu_before_s
        return not is_last

    def _send(self, client: _Client, data: bytes) -> None:
        if not client.open:
            return
        try:
            sent = client.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(client)
            return
        if sent < len(data):  # the client is behind by its whole buffer: wait for it
            try:
                client.socket.settimeout(SEND_TIMEOUT_S)
                client.socket.sendall(data[sent:])
                client.socket.setblocking(False)
            except OSError:
                self._close(client)


def serve(control: Connection) -> None:
    """Be a mock server; the first message says that it listens."""
    server = MockModel(control)
    control.send(None)
    server.run()
