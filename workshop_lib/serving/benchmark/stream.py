"""One streamed completion at a time over a kept connection, with the time of every text.

The load generator's client. It speaks HTTP/1.1 straight on an asyncio
transport, because at hundreds of streams the client's own work per token is
what limits the load and blurs the times: bytes are stamped when the event
loop hands them over, before anything is parsed.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec

_DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    """Of a chat (`delta`) or a plain completion (`text`)."""

    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Message(msgspec.Struct):
    """What of a message counts here; the rest of it is passed over, not built."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Message).decode


@dataclass(slots=True)
class StreamTimes:
    """What one streamed request did; times are `time.perf_counter()` seconds.

    On Linux that clock is CLOCK_MONOTONIC, so another process's stamps compare.
    """

    start_s: float  # handed to the connection
    # When it should have been: latencies count from here, so that a client or a server that
    # holds requests back cannot make them look fast.
    due_s: float
    text_s: list[float] = field(default_factory=list)  # arrival of each message with text
    end_s: float = 0.0  # complete, or failed
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""  # stop, length
    error: str = ""  # refused, timeout, closed, malformed, empty, server, http <status>
    detail: str = ""  # the server's or system's own words about the failure


class StreamClient:
    """Sends streaming requests to one endpoint, over as many connections as run at once."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            f"Content-Type: application/json\r\nAccept: text/event-stream\r\n{key}"
            "Content-Length: "
        )
        self._idle: list[_Connection] = []

    async def send(
        self,
        body: dict[str, Any],
        due_s: float | None = None,
        on_start: Callable[[StreamTimes], object] | None = None,
    ) -> StreamTimes:
        """Send one request and follow its stream to the end. Failures are in the result.

        `on_start` gets the result before it is complete: it grows as the answer does.
        """
        payload = json.dumps(body).encode()
        request = f"{self._head}{len(payload)}\r\n\r\n".encode() + payload
        start_s = time.perf_counter()
        times = StreamTimes(start_s=start_s, due_s=start_s if due_s is None else due_s)
        if on_start is not None:
            on_start(times)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(request, times)
        except TimeoutError:
            _fail(times, "timeout", f"not complete after {self._timeout_s:.0f} s")
        except OSError as exc:
            _fail(times, "refused", exc.strerror or str(exc))
        return times

    async def connect(self, count: int) -> None:
        """Have connections ready, so that opening them is no part of the first answers' times.

        Hundreds that are opened at once wait for each other in this process. One that cannot
        be opened is left for its request to report.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                while len(self._idle) < count:
                    self._keep(await self._open())
        except OSError:  # TimeoutError is one
            return

    def close(self) -> None:
        """Close the kept connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, request: bytes, times: StreamTimes) -> None:
        connection = self._kept_connection()
        if connection is not None:
            await connection.exchange(request, times)
            if not connection.closed_unused:
                self._keep(connection)
                return
            # The server had just closed the kept connection; nothing was sent twice.
            times.error = times.detail = ""
        connection = await self._open()
        await connection.exchange(request, times)
        self._keep(connection)

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection, self._host, self._port, ssl=self._ssl
        )
        return connection

    def _kept_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    def _keep(self, connection: _Connection) -> None:
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection; at most one request on it at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._finished: asyncio.Future[None] | None = None
        self._times: StreamTimes | None = None
        self._parser: Any = None
        self._rest = b""
        self._now = 0.0
        self._answered = False
        self._done = False
        self.usable = False
        self.closed_unused = False

    async def exchange(self, request: bytes, times: StreamTimes) -> None:
        """Send a request and return when its answer is complete or broken."""
        if self._transport is None or not self.usable:
            self.closed_unused = True
            return
        self._finished = asyncio.get_running_loop().create_future()
        self._times = times
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._answered = self._done = self.closed_unused = False
        self._transport.write(request)
        try:
            await self._finished
        except asyncio.CancelledError:
            self.close()  # the rest of this answer must not reach the next request
            raise
        finally:
            self._times = self._finished = None

    def close(self) -> None:
        """Close the connection at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        if self._finished is None:
            self.close()  # bytes that nobody asked for
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._break("malformed", f"not HTTP: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._finished is None or self._finished.done():
            return
        self.closed_unused = not self._answered
        self._now = time.perf_counter()
        received = len(self._times.text_s) if self._times else 0
        self._break("closed", f"connection closed after {received} pieces of text")

    # What the HTTP parser calls while it is fed.

    def on_body(self, body: bytes) -> None:
        if self._parser.get_status_code() != 200:
            self._rest += body
            return
        lines = (self._rest + body if self._rest else body).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._message(line[5:].strip())

    def on_message_complete(self) -> None:
        times = self._times
        if times is None or self._finished is None or self._finished.done():
            return
        status = self._parser.get_status_code()
        self.usable = self.usable and self._parser.should_keep_alive()
        if times.error:
            pass
        elif status != 200:
            _fail(times, f"http {status}", _server_words(self._rest))
        elif not self._done:
            _fail(times, "malformed", "the stream ended without [DONE]")
        elif not times.text_s:
            _fail(times, "empty", "the answer has no text")
        times.end_s = self._now
        self._finished.set_result(None)

    def _message(self, data: bytes) -> None:
        times = self._times
        if times is None or times.error:
            return
        if data == _DONE:
            self._done = True
            return
        try:
            message = _decode(data)
        except msgspec.MsgspecError:  # no JSON, or not of this form
            self._break("malformed", f"not a completion message: {data[:80]!r}")
            return
        if usage := message.usage:
            times.prompt_tokens = usage.prompt_tokens
            times.completion_tokens = usage.completion_tokens
        if error := message.error:
            words = error.get("message", error) if isinstance(error, dict) else error
            _fail(times, "server", str(words)[:200])
        elif message.choices is None:
            self._break("malformed", f"not a completion message: {data[:80]!r}")
        else:
            for choice in message.choices:
                if choice.finish_reason:
                    times.finish_reason = choice.finish_reason
                if _has_text(choice):
                    times.text_s.append(self._now)

    def _break(self, kind: str, detail: str) -> None:
        """End the exchange and the connection: what follows cannot be understood."""
        if self._times is not None:
            _fail(self._times, kind, detail)
            self._times.end_s = self._now
        self.close()
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)


def _has_text(choice: _Choice) -> bool:
    """Whether a choice brings text: an answer's, or that of the reasoning before it."""
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(delta.content or delta.reasoning or delta.reasoning_content)


def _fail(times: StreamTimes, kind: str, detail: str) -> None:
    times.error = kind
    times.detail = " ".join(detail.split())[:200]
    times.end_s = time.perf_counter()


def _server_words(body: bytes) -> str:
    """The message of an OpenAI API error, or the start of whatever came."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
