"""`log-lines`: reading a pod's log with the library, against `kubectl logs`.

A log of a gigabyte must not take much longer to read in a notebook than with the
cluster's own tool, nor fill the notebook's memory. Both read the same log from the same
mock server (`log_server`), each on a core of its own. The server takes the time, from the
request for the log until the reader has it all and hangs up: neither starting nor
connecting is counted on either side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.frame import Bar, Comparison, Quantity, Sample, Side
from workshop_lib.tools.measures.log_clients import (
    Read,
    kubectl_client,
    receiving_client,
    workshop_client,
)
from workshop_lib.tools.measures.log_server import LINE_BYTES, LogRequest, Served, serve_log
from workshop_lib.tools.measures.workers import (
    Worker,
    peak_memory_bytes,
    reset_peak_memory,
    server_and_clients,
)

__all__ = ["LogLines", "check_read"]

START_TIMEOUT_S = 180.0
LEAST_LINES_PER_S = 10_000
"""A reader that is slower than this is not waited for."""

_QUANTITIES = (
    Quantity("lines_per_s", "lines read", "1/s", Bar("median", "at least", 500_000)),
    Quantity("read_s", "time to read it all", "s", Bar("ratio", "at most", 1.5)),
    Quantity("cpu_us", "CPU time per line", "µs"),
    Quantity("growth_mib", "memory, growth while reading", "MiB", Bar("median", "at most", 50)),
    Quantity("server_rate_per_s", "lines that the mock server can send", "1/s"),
    Quantity(
        "server_margin",
        "… against this reader",
        "times",
        Bar("each median", "at least", 2.0, proves=True),
    ),
)


@dataclass(frozen=True)
class LogLines:
    """The entry.

    Attributes:
        logs: Where the processes' logs go.
        text_bytes: What the container wrote, in lines of `log_server.LINE_BYTES`; the time
            before each line comes on top.
        peer: The other side: its name and what its process does.
        name, rounds: See `Entry`.
    """

    logs: Path
    text_bytes: int = 1 << 30
    peer: tuple[str, Callable[[Connection], None]] = ("kubectl logs", kubectl_client)
    name: str = "log-lines"
    rounds: int = 3

    @contextlib.contextmanager
    def prepare(self, say: Callable[[str], None]) -> Iterator[Sequence[Comparison]]:
        """Start server and readers, each having read a little uncounted; see `Entry`."""
        peer, peer_target = self.peer
        with server_and_clients(
            self.logs,
            say,
            START_TIMEOUT_S,
            ("mock API server", serve_log),
            ("workshop reader", workshop_client),
            (f"{peer} reader", peer_target),
            ("receiver", receiving_client),
        ) as (server, ours, theirs, receiver):
            lines = -(-self.text_bytes // LINE_BYTES)
            readings = _Readings(server, receiver, lines)
            for worker in (ours, theirs, receiver):
                say(f"{worker.name}: once uncounted")
                readings.read(worker, lines=min(lines, 100_000))
            yield [
                Comparison(
                    f"{self.name}: {self.text_bytes / 2**20:,.0f} MiB of log a round, in lines"
                    f" of {LINE_BYTES} bytes behind their times",
                    {"workshop": readings.side(ours), peer: readings.side(theirs)},
                    _QUANTITIES,
                )
            ]


@dataclass(frozen=True)
class _Readings:
    """Has the log read."""

    server: Worker
    receiver: Worker
    lines: int

    def read(self, reader: Worker, *, lines: int) -> tuple[Read, Served]:
        """One log: what the reader says, and what the server saw."""
        url = self.server.ask(LogRequest(lines), timeout_s=60)
        said: Read = reader.ask(url, timeout_s=30 + lines / LEAST_LINES_PER_S)
        served: list[Served] = self.server.ask(None, timeout_s=60)
        return said, check_read(said, served)

    def side(self, reader: Worker) -> Side:
        """A reader, as a side of a comparison."""

        def sample() -> Sample:
            held = reset_peak_memory(reader.pid)
            said, served = self.read(reader, lines=self.lines)
            growth = peak_memory_bytes(reader.pid) - held
            sent = self.read(self.receiver, lines=self.lines)[1]
            rate_per_s, server_rate_per_s = (each.lines / each.seconds for each in (served, sent))
            sample = {
                "lines_per_s": rate_per_s,
                "read_s": served.seconds,
                "cpu_us": 1e6 * said.cpu_s / served.lines,
                "server_rate_per_s": server_rate_per_s,
                "server_margin": server_rate_per_s / rate_per_s,
                "server_cpu_us": 1e6 * served.server_cpu_s / served.lines,
            }
            # One that reads in a process of its own shows nothing of it here.
            return sample | ({"growth_mib": growth / 2**20} if said.lines is not None else {})

        return sample


def check_read(said: Read, served: Sequence[Served]) -> Served:
    """Refuse a round in which a reader did not read the whole log once.

    Args:
        said: What the reader says.
        served: What the server sent.

    Returns:
        The one log that was sent.

    Raises:
        WorkshopError: It was read more than once or not at all, or lines are missing.

    Example:
        >>> check_read(Read(10, 0.1), [Served(10, 1.0, 0.2, {})]).seconds
        1.0
    """
    if len(served) != 1:
        raise WorkshopError(f"the log was read {len(served)} times instead of once")
    if said.lines is not None and said.lines != served[0].lines:
        raise WorkshopError(f"{served[0].lines:,} lines were sent and {said.lines:,} read")
    return served[0]
