"""`client-cpu`: what our benchmark client spends per token, against `vllm bench serve`.

A load generator's own work limits the load it can make and blurs the times it takes.
Both clients send the same load to the same mock server, each side on its own core. The
mock server reads the client's CPU time when the first request comes and when the last
token leaves, so that neither starting nor making tables is counted on either side.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from workshop_lib.commands.measures.clients import (
    Job,
    Measured,
    reading_client,
    vllm_client,
    workshop_client,
)
from workshop_lib.commands.measures.frame import Bar, Comparison, Quantity, Sample, Side
from workshop_lib.commands.measures.mock_server import Load, Observation, serve
from workshop_lib.commands.measures.workers import Worker, two_cores
from workshop_lib.errors import WorkshopError

__all__ = ["ClientCpu", "check_load", "stamp_errors"]

START_TIMEOUT_S = 180.0
"""A cold import of vLLM and torch takes most of it."""

# The bar on times is 1 ms or 1%; of times up to 100 ms, 1 ms is more.
_QUANTITIES = (
    Quantity("cpu_us", "CPU time per output token", "µs", Bar("ratio", "at most", 0.5)),
    Quantity("ttft_error_ms", "TTFT, median error", "ms", Bar("median", "at most", 1.0)),
    Quantity("itl_error_ms", "inter-token, median error", "ms", Bar("median", "at most", 1.0)),
    Quantity("server_rate_per_s", "tokens that the mock server can send", "1/s"),
    Quantity(
        "server_margin",
        "… against this client with a core to itself",
        "times",
        Bar("median", "at least", 2.0, proves=True),
    ),
)


@dataclass(frozen=True)
class ClientCpu:
    """The entry.

    Attributes:
        logs: Where the processes' logs go.
        streams, requests, tokens: See `clients.Job`.
        ttft_ms, itl_ms: The mock server's pace.
        flood_tokens: Of each stream when the mock server's own rate is measured.
        peer: The other side: its name and what its process does.
        name, rounds: See `Entry`.
        pace_tolerance: How far the true pace may be from `itl_ms`, as a share of it.
    """

    logs: Path
    streams: int = 64
    requests: int = 256
    tokens: int = 100
    ttft_ms: float = 100.0
    itl_ms: float = 20.0
    flood_tokens: int = 1000
    peer: tuple[str, Callable[[Connection], None]] = ("vllm bench serve", vllm_client)
    name: str = "client-cpu"
    rounds: int = 5
    pace_tolerance: float = 0.05

    @contextlib.contextmanager
    def prepare(self, say: Callable[[str], None]) -> Iterator[Sequence[Comparison]]:
        """Start server and clients, each client having run once uncounted; see `Entry`."""
        server_core, client_core = two_cores()
        peer, peer_target = self.peer
        with ExitStack() as stack:

            def start(name: str, target: Callable[[Connection], None], core: int) -> Worker:
                return stack.enter_context(Worker(name, target, core, self.logs))

            server = start("mock server", serve, server_core)
            ours = start("workshop client", workshop_client, client_core)
            theirs = start(f"{peer} client", peer_target, client_core)
            reader = start("reading client", reading_client, client_core)
            for worker in (server, ours, reader, theirs):
                say(f"starting {worker.name}")
                worker.wait_ready(START_TIMEOUT_S)
            loads = _Loads(self, server, reader)
            for worker in (ours, theirs):
                say(f"{worker.name}: once uncounted")
                loads.run(worker, requests=self.streams, tokens=min(10, self.tokens))
            yield [
                Comparison(
                    f"{self.name}: {self.streams} streams, a token each {self.itl_ms:g} ms,"
                    f" {self.requests * self.tokens:,} tokens a round",
                    {"workshop": loads.side(ours), peer: loads.side(theirs)},
                    _QUANTITIES,
                )
            ]


@dataclass(frozen=True)
class _Loads:
    """Runs the loads of an entry."""

    entry: ClientCpu
    server: Worker
    reader: Worker

    def run(
        self, client: Worker, *, requests: int, tokens: int
    ) -> tuple[list[Measured], Observation]:
        """One paced load: what the client measured, and what the server saw."""
        entry = self.entry
        waves = -(-requests // entry.streams)
        answer_s = (entry.ttft_ms + entry.itl_ms * tokens) / 1000
        load = Load(entry.ttft_ms, entry.itl_ms, watch_pid=client.pid)
        url = self.server.ask(load, timeout_s=5)
        job = Job(url, entry.streams, requests, tokens)
        measured = client.ask(job, timeout_s=30 + 5 * waves * answer_s)
        return measured, self.server.ask(None, timeout_s=5)

    def side(self, client: Worker) -> Side:
        """A client under the paced load, as a side of a comparison."""
        entry = self.entry

        def sample() -> Sample:
            measured, seen = self.run(client, requests=entry.requests, tokens=entry.tokens)
            check_load(seen, entry)
            ttft_error_ms, itl_error_ms = stamp_errors(measured, seen)
            cpu_s = seen.client_cpu_s / seen.tokens
            server_rate_per_s = self.server_rate_per_s()
            return {
                "cpu_us": 1e6 * cpu_s,
                "ttft_error_ms": ttft_error_ms,
                "itl_error_ms": itl_error_ms,
                "server_rate_per_s": server_rate_per_s,
                "server_margin": server_rate_per_s * cpu_s,
                "server_cpu_us": 1e6 * seen.server_cpu_s / seen.tokens,
                "tokens_per_s": seen.tokens / seen.duration_s,
            }

        return sample

    def server_rate_per_s(self) -> float:
        """Tokens a second that the mock server sends when it never waits.

        As in the paced load each token is stamped and sent by itself; what reads them
        on the client's core only empties its sockets.
        """
        url = self.server.ask(Load(ttft_ms=50, itl_ms=0), timeout_s=5)
        job = Job(url, self.entry.streams, self.entry.streams, self.entry.flood_tokens)
        self.reader.ask(job, timeout_s=60)
        seen: Observation = self.server.ask(None, timeout_s=5)
        stamps = [stamp for stream in seen.streams for stamp in stream.text_s]
        return len(stamps) / (max(stamps) - min(stamps))


def check_load(seen: Observation, entry: ClientCpu) -> None:
    """Refuse a round in which the load was not the one that is named.

    Args:
        seen: What the server saw.
        entry: What was asked for.

    Raises:
        WorkshopError: Another pace, or other requests.
    """
    gaps = [b - a for s in seen.streams for a, b in zip(s.text_s, s.text_s[1:], strict=False)]
    pace_ms = 1000 * statistics.median(gaps)
    if abs(pace_ms / entry.itl_ms - 1) > entry.pace_tolerance:
        raise WorkshopError(
            f"the mock server sent a token each {pace_ms:.2f} ms instead of {entry.itl_ms:g};"
            " something else uses its core: repeat on a quiet machine"
        )
    expected = (entry.requests, entry.streams, entry.requests * entry.tokens)
    found = (len(seen.streams), seen.most_at_once, seen.tokens)
    if found != expected:
        raise WorkshopError(
            "the load was {} requests, {} at once, {} tokens".format(*found)
            + " instead of {}, {}, {}".format(*expected)
        )


def stamp_errors(measured: Sequence[Measured], seen: Observation) -> tuple[float, float]:
    """Compare a client's times with the server's stamps of the same streams.

    Args:
        measured: What the client reports.
        seen: What the server stamped.

    Returns:
        The medians of the absolute errors of time to first token and of the inter-token
        times, in ms. The true time to first token is counted from reading the request,
        so the way there is part of the error.

    Raises:
        WorkshopError: The client reports other streams, or another number of tokens.

    Example:
        >>> from workshop_lib.commands.measures.mock_server import Stream
        >>> seen = Observation([Stream(1, received_s=5.0, text_s=[5.1, 5.12])])
        >>> ttft, itl = stamp_errors([Measured(1, 100.5, [19.75])], seen)
        >>> round(ttft, 3), round(itl, 3)
        (0.5, 0.25)
    """
    true = {stream.number: stream for stream in seen.streams}
    if sorted(each.number for each in measured) != sorted(true):
        raise WorkshopError(f"{len(true)} answers were sent, and other ones reported")
    first_errors, gap_errors = [], []
    for each in measured:
        stamps = true[each.number].text_s
        first_errors.append(abs(each.ttft_ms - 1000 * (stamps[0] - true[each.number].received_s)))
        if len(each.itl_ms) != len(stamps) - 1:
            raise WorkshopError(
                f"{len(stamps)} tokens were sent in an answer, and the client reports"
                f" {len(each.itl_ms)} times between them"
            )
        gap_errors += [
            abs(gap_ms - 1000 * (after - before))
            for gap_ms, before, after in zip(each.itl_ms, stamps, stamps[1:], strict=False)
        ]
    return statistics.median(first_errors), statistics.median(gap_errors)
