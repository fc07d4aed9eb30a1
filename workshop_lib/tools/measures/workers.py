"""Processes that a measurement needs, pinned to a core or not, asked one thing at a time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType
    from typing import Self

__all__ = [
    "Worker",
    "answer",
    "peak_memory_bytes",
    "reset_peak_memory",
    "server_and_clients",
    "two_cores",
]

STOP_TIMEOUT_S = 30.0


def two_cores() -> tuple[int, int]:
    """Choose a core for the server and one for the client.

    Raises:
        WorkshopError: This process may use only one.

    Example:
        >>> two_cores()  # doctest: +SKIP
        (0, 1)
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise WorkshopError(
            "client and server need a core each and this process may use one; use a larger machine"
        )
    return allowed[0], allowed[-1]


def peak_memory_bytes(pid: int) -> int:
    """The most memory that a process has held at once, as Linux counts it (VmHWM).

    Args:
        pid: The process.

    Raises:
        OSError: There is no such process, or this is not Linux.

    Example:
        >>> peak_memory_bytes(os.getpid()) > 2**20
        True
    """
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == "VmHWM":
            return int(value.split()[0]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def reset_peak_memory(pid: int) -> int:
    """Have a process's peak counted from now on.

    Args:
        pid: The process.

    Returns:
        What it holds now, bytes.

    Raises:
        OSError: There is no such process, or it is not ours.

    Example:
        >>> reset_peak_memory(os.getpid()) > 2**20
        True
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # proc(5)
    return peak_memory_bytes(pid)


def answer(connection: Connection, handler: Callable[[Any], Any]) -> None:
    """Answer questions until the other end is closed; an error is an answer too.

    Args:
        connection: Where they come from.
        handler: Makes an answer.
    """
    connection.send(None)  # ready
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            connection.send(handler(question))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the asker raises it
            text = " ".join(f"{type(error).__name__}: {error}".split())
            connection.send(WorkshopError(text))


def _begin(
    target: Callable[[Connection], None], core: int | None, log: str, link: Connection
) -> None:
    """The new process: on its core, with a log of its own, deaf to the terminal's Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if core is not None:
        os.sched_setaffinity(0, {core})
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(to, 1)
    os.dup2(to, 2)
    os.close(to)
    target(link)
    sys.stdout.flush()


class Worker:
    """A fresh Python process; it ends with the `with` block, or with this process.

    Args:
        name: What it is, for messages and its log `<logs>/<name>.log`.
        target: A module's function that gets its end of a connection, sends None on it
            when it is ready, and then one message for each that it gets.
        core: Where it runs; None: on all that this process may use.
        logs: The folder of its log.

    Example:
        >>> with Worker("mock server", serve, 0, Path("build/bench")) as w:  # doctest: +SKIP
        ...     url = w.ask(Load(ttft_ms=100, itl_ms=20), timeout_s=5)
    """

    def __init__(
        self, name: str, target: Callable[[Connection], None], core: int | None, logs: Path
    ) -> None:
        self.name = name
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"{name.replace(' ', '-')}.log"
        context = multiprocessing.get_context("spawn")  # nothing of this process is inherited
        self._link, self._other_end = context.Pipe()
        self._process = context.Process(
            target=_begin, args=(target, core, str(self._log), self._other_end), daemon=True
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid or 0

    def __enter__(self) -> Self:
        self._process.start()
        self._other_end.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # After an error at once: it may be at work, and nothing that it holds must be saved.
        self.stop(STOP_TIMEOUT_S if kind is None else 0.0)

    def stop(self, timeout_s: float) -> None:
        """Ask the process to end, then make it.

        Args:
            timeout_s: How long it may take to end by itself.
        """
        self._link.close()
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until it can be asked.

        Args:
            timeout_s: How long at most.

        Raises:
            WorkshopError: It failed, or it took too long.
        """
        self._receive(timeout_s)

    def ask(self, question: Any, *, timeout_s: float) -> Any:
        """Send a message and return the answer.

        Args:
            question: The message.
            timeout_s: How long to wait at most.

        Raises:
            WorkshopError: It answered with an error, ended, or took too long.
        """
        try:
            self._link.send(question)
        except OSError:
            raise self._ended() from None
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._link.poll(timeout_s):
                raise WorkshopError(
                    f"{self.name} has not answered for {timeout_s:g} s; see {self._log}"
                )
            received = self._link.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if isinstance(received, Exception):
            raise WorkshopError(f"{self.name} failed: {received}; see {self._log}")
        return received

    def _ended(self) -> WorkshopError:
        self._process.join(STOP_TIMEOUT_S)
        lines = self._log.read_text(errors="replace").split("\n") if self._log.exists() else []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return WorkshopError(
            f"{self.name} ended with status {self._process.exitcode}: {last}; see {self._log}"
        )


@contextlib.contextmanager
def server_and_clients(
    logs: Path,
    say: Callable[[str], None],
    timeout_s: float,
    *named: tuple[str, Callable[[Connection], None]],
) -> Iterator[list[Worker]]:
    """Start a server on a core of its own, and its clients, which take turns, on another.

    Args:
        logs: The folder of their logs.
        say: Shows what is going on.
        timeout_s: How long each may take to be ready.
        *named: The server, then the clients: what each is called and what it does.

    Yields:
        The workers, in that order, ready.

    Raises:
        WorkshopError: One failed or took too long, or there is only one core.

    Example:
        >>> with server_and_clients(Path("build"), print, 60, ("server", serve)):  # doctest: +SKIP
        ...     pass
    """
    server_core, client_core = two_cores()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(name, target, client_core if place else server_core, logs))
            for place, (name, target) in enumerate(named)
        ]
        for worker in workers:
            say(f"starting {worker.name}")
            worker.wait_ready(timeout_s)
        yield workers
