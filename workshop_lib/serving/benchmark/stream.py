"""One streamed completion at a time over a kept connection, with the time of every text.

The load generator's client. It speaks HTTP/1.1 straight on an asyncio transport, because at
hundreds of streams the client's own work per token is what limits the load and blurs the times:
bytes are stamped when the event loop hands them over, before anything is parsed.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from workshop_lib.serving.benchmark.result import RequestRecord


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    """Of a chat (`delta`) or a plain completion (`text`)."""

    delta: _Delta | None = None
    text: str | None = None

    def has_text(self) -> bool:
        """Whether it brings text: an answer's, or that of the reasoning before it."""
        if (delta := self.delta) is None:
            return bool(self.text)
        return bool(delta.content or delta.reasoning or delta.reasoning_content)


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Message(msgspec.Struct):
    """What of a message counts here; the rest of it is passed over, not built."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Message).decode


class StreamClient:
    """Sends streaming requests to one endpoint, over as many connections as run at once."""

    def __init__(self, url: str, *, timeout_s: float = 120.0) -> None:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        self._where = parts.hostname or "", parts.port or (443 if tls else 80)
        self._ssl = ssl.create_default_context() if tls else None
        self._timeout_s = timeout_s
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n"
            f"Content-Type: application/json\r\nAccept: text/event-stream\r\n"
            "Content-Length: "
        )
        self._idle: list[_Connection] = []

    async def send(
        self,
        body: dict[str, Any],
        due_s: float | None = None,
        on_start: Callable[[RequestRecord], object] | None = None,
    ) -> RequestRecord:
        """Send one request and follow its stream to the end. Failures are in the result.

        `on_start` gets the result before it is complete: it grows as the answer does.
        """
        payload = json.dumps(body).encode()
        request = f"{self._head}{len(payload)}\r\n\r\n".encode() + payload
        start_s = time.perf_counter()
        record = RequestRecord(start_s, start_s if due_s is None else due_s)
        if on_start is not None:
            on_start(record)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(request, record)
        except TimeoutError:
            words = f"not complete after {self._timeout_s:.0f} s"
            record.fail("timeout", words, time.perf_counter())
        except OSError as exc:
            record.fail("refused", exc.strerror or str(exc), time.perf_counter())
        return record

    async def connect(self, count: int) -> None:
        """Have connections ready, so that opening them is no part of the first answers' times.

        Hundreds that are opened at once wait for each other in this process. One that cannot
        be opened is left for its request to report.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                while len(self._idle) < count:
                    self._idle.append(await self._open())
        except OSError:  # TimeoutError is one
            return

    def close(self) -> None:
        """Close the kept connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, request: bytes, record: RequestRecord) -> None:
        while self._idle:
            kept = self._idle.pop()
            # False: the server had just closed it. Nothing of the request was answered.
            if kept.usable and await kept.exchange(request, record):
                break
            record.error = record.detail = ""
        else:
            kept = await self._open()
            await kept.exchange(request, record)
        if kept.usable:
            self._idle.append(kept)
        else:
            kept.close()

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, *self._where, ssl=self._ssl)
        return connection


class _Connection(asyncio.Protocol):
    """One connection; at most one request on it at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._finished: asyncio.Future[None] | None = None
        self._record = RequestRecord(0.0, 0.0)
        self._parser: Any = None
        self._rest = b""
        self._now_s = 0.0
        self._answered = self._done = False
        self.usable = False

    async def exchange(self, request: bytes, record: RequestRecord) -> bool:
        """Send a request; whether anything was answered before it is complete or broken."""
        self._finished = asyncio.get_running_loop().create_future()
        self._record = record
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._answered = self._done = False
        cast(asyncio.Transport, self._transport).write(request)
        try:
            await self._finished
        except asyncio.CancelledError:
            self.close()  # the rest of this answer must not reach the next request
            raise
        finally:
            self._finished = None
        return self._answered

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
        self._now_s = time.perf_counter()
        if self._finished is None:
            self.close()  # bytes that nobody asked for
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._break("malformed", f"not HTTP: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._now_s = time.perf_counter()
        self._break("closed", f"connection closed after {len(self._record.text_s)} pieces of text")

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
        if self._finished is None or self._finished.done():
            return
        record, status = self._record, self._parser.get_status_code()
        self.usable = self.usable and self._parser.should_keep_alive()
        if record.error:
            pass
        elif status != 200:
            record.fail(f"http {status}", _server_words(self._rest), self._now_s)
        elif not self._done:
            record.fail("malformed", "the stream ended without [DONE]", self._now_s)
        elif not record.text_s:
            record.fail("empty", "the answer has no text", self._now_s)
        record.end_s = self._now_s
        self._finished.set_result(None)

    def _message(self, data: bytes) -> None:
        record = self._record
        if record.error:
            return
        if data == b"[DONE]":
            self._done = True
            return
        try:
            message = _decode(data)
        except msgspec.MsgspecError:  # no JSON, or not of this form
            self._break("malformed", f"not a completion message: {data[:80]!r}")
            return
        if usage := message.usage:
            record.prompt_tokens = usage.prompt_tokens
            record.completion_tokens = usage.completion_tokens
        if error := message.error:
            words = error.get("message", error) if isinstance(error, dict) else error
            record.fail("server", str(words), self._now_s)
        for choice in message.choices:
            if choice.has_text():
                record.text_s.append(self._now_s)

    def _break(self, kind: str, detail: str) -> None:
        """End the exchange and the connection: what follows cannot be understood."""
        self.close()
        if self._finished is not None and not self._finished.done():
            self._record.fail(kind, detail, self._now_s)
            self._finished.set_result(None)


def _server_words(body: bytes) -> str:
    """The message of an OpenAI API error, or the start of whatever came."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
