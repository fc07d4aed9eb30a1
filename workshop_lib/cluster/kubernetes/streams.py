"""Streams that one thread reads and another one ends, and how their bytes come."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.kubernetes.api import Lost, in_short

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

__all__ = ["StoppableStream", "blocks", "chunks"]

BLOCK_BYTES = 1 << 18
"""The most that is read at once of a stream with millions of lines."""


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
                    _shut(self._response)

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


def _shut(response: BaseHTTPResponse) -> None:
    """Make a read of a response end, which another thread is in.

    Not by `SSLSocket.shutdown`: it takes the encryption away first, and the reader would be
    given what the server has sent since, encrypted, as if it were the answer.
    """
    connection = getattr(getattr(response, "_sock_shutdown", None), "__self__", None)
    if isinstance(connection, ssl.SSLSocket):
        socket.socket.shutdown(connection, socket.SHUT_RD)
    else:
        response.shutdown()


def chunks(response: BaseHTTPResponse, size: int = 1 << 16) -> Iterator[bytes]:
    """A stream's bytes as they come, a chunk of the server's at a time.

    Args:
        response: Just opened.
        size: The most at once, bytes.

    Raises:
        Lost: It broke off before its end.
    """
    import urllib3

    try:
        while data := response.read1(size):
            yield data
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        # ValueError: closed by another thread, which wants the reading to end.
        raise Lost(in_short(error)) from error


def blocks(response: BaseHTTPResponse) -> Iterator[bytes]:
    """A stream's bytes as they come, as many at once as are there.

    A server sends a log in chunks of 32 KiB at most, and urllib3 spends as much on each as
    the rest of the reading does. So the connection is read past urllib3, and its chunks
    are taken apart by a parser in C.

    Args:
        response: Just opened; afterwards it can only be closed.

    Raises:
        Lost: It broke off before its end.
    """
    connection = getattr(getattr(response, "_fp", None), "fp", None)
    plain = getattr(response, "chunked", False) and "content-encoding" not in response.headers
    if connection is None or not plain:
        yield from chunks(response)
        return
    body = _Chunked()
    while not body.ended:
        try:
            data = connection.read1(BLOCK_BYTES)
        except (OSError, ValueError) as error:  # ValueError: as in chunks()
            raise Lost(in_short(error)) from error
        problem = body.feed(data) if data else "it ended before its last chunk"
        if body.parts:
            yield body.taken()
        if problem:
            raise Lost(problem)


class _Chunked:
    """Takes apart what a connection brings after the head of a chunked answer."""

    def __init__(self) -> None:
        import httptools

        self.parts: list[bytes] = []
        self.ended = False
        self._parser: Any = httptools.HttpResponseParser(self)
        # urllib3 has read the real head; this parser has to see one.
        self._parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def feed(self, data: bytes) -> str:
        """Parse what came next; why it cannot be, if so. What came before that is in `parts`."""
        import httptools

        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            return "" if self.ended else f"not HTTP: {in_short(error)}"
        return ""

    def taken(self) -> bytes:
        """What has come since the last time."""
        data = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts.clear()
        return data

    # What the parser calls while it is fed.

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.ended = True
