"""One forwarded connection: bytes both ways between a socket here and a pod's WebSocket.

Neither way waits for the other. A server that answers while it is still being sent to, and
stops reading until its answer is taken, would otherwise wait for us, and we for it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from websocket import WebSocket

__all__ = ["carry"]

DATA, ERROR = 0, 1

STALLED_S = 60.0
"""The rest of a frame that has begun to come must come within this time."""

PING_EVERY_S = 30.0
"""A quiet connection is kept alive: load balancers drop those that are idle for minutes."""

HALF_CLOSED_S = 30.0
"""Who has sent all may still wait for an answer; silent for so long, it is taken for gone.

The protocol cannot tell the pod that no more will come, nor a socket here whether its other
end is still read.
"""

MOST_WAITING = 1 << 20
"""So many bytes wait to be taken by the pod; then no more are read here."""


def carry(local: socket.socket, remote: WebSocket, stopped: threading.Event) -> str:
    """Carry bytes both ways until the pod's side ends, or this side is gone.

    Args:
        local: The connection on this machine.
        remote: The WebSocket to the pod: channel 0 carries data, channel 1 errors.
        stopped: Ends it; who sets it shuts the sockets down too, which wakes it.

    Returns:
        The error that the pod's node reported, empty if none.
    """
    import websocket

    connection = _Connection(local, remote)
    with contextlib.suppress(OSError, websocket.WebSocketException):
        while not stopped.is_set() and not connection.ended:
            connection.step()
    return connection.error


class _Connection:
    def __init__(self, local: socket.socket, remote: WebSocket) -> None:
        self._local = local
        self._remote = remote
        self._waiting = bytearray()  # frames on their way to the pod
        self._message = b""
        self._begun: set[int] = set()
        self._sends = True
        self._heard_at = time.monotonic()
        self.ended = False
        self.error = ""
        remote.settimeout(STALLED_S)

    def step(self) -> None:
        """Wait until something can be done, and do it."""
        from websocket import ABNF

        pod, local = self._remote.sock, self._local
        # TLS may have decrypted bytes that `select` does not see.
        pending = isinstance(pod, ssl.SSLSocket) and bool(pod.pending())
        wants = [pod, local] if self._sends and len(self._waiting) < MOST_WAITING else [pod]
        pause_s = 0.0 if pending else PING_EVERY_S if self._sends else HALF_CLOSED_S
        ready, free, _ = select.select(wants, [pod] if self._waiting else [], [], pause_s)
        if not (ready or free or pending):
            self._add(b"", ABNF.OPCODE_PING)
        if local in ready:
            if data := local.recv(1 << 16):
                self._add(bytes([DATA]) + data, ABNF.OPCODE_BINARY)
            else:
                self._sends, self._heard_at = False, time.monotonic()
        if self._waiting:
            self._send()
        if pod in ready or pending:
            self._receive()
        if not self._sends and time.monotonic() - self._heard_at > HALF_CLOSED_S:
            self.ended = True

    def _add(self, data: bytes, opcode: int) -> None:
        from websocket import ABNF

        self._waiting += ABNF.create_frame(data, opcode).format()

    def _send(self) -> None:
        """As much as the connection takes now."""
        sock = self._remote.sock
        sock.settimeout(0)
        try:
            del self._waiting[: sock.send(self._waiting)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        finally:
            sock.settimeout(STALLED_S)

    def _receive(self) -> None:
        """One frame of the pod's."""
        from websocket import ABNF

        frame = self._remote.recv_frame()
        if frame.opcode == ABNF.OPCODE_CLOSE:
            self.ended = True
        elif frame.opcode == ABNF.OPCODE_PING:
            self._add(frame.data, ABNF.OPCODE_PONG)
        elif frame.opcode in (ABNF.OPCODE_BINARY, ABNF.OPCODE_CONT):
            self._message += frame.data
            if frame.fin:
                message, self._message = self._message, b""
                self._take(message)

    def _take(self, message: bytes) -> None:
        self._heard_at = time.monotonic()
        channel, data = (message[0], message[1:]) if message else (DATA, b"")
        if channel not in self._begun:  # its first frame says which port it is for
            self._begun.add(channel)
        elif channel == DATA:
            self._local.sendall(data)
        else:
            self.error, self.ended = data.decode(errors="replace"), True
