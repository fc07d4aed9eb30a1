"""A paced load on the mock server: run, checked, and compared with the server's stamps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.clients import Job, Measured
from workshop_lib.tools.measures.frame import Sample, Side
from workshop_lib.tools.measures.mock_server import Load, Observation
from workshop_lib.tools.measures.workers import Worker

__all__ = ["Pace", "PacedLoads", "check_load", "stamp_errors"]

FLOODS = 3
"""What the mock server can send is the best of so many: others on the machine only slow it."""

RUN_TIMEOUT_S = 180.0
"""For what a client does before its first request; guidellm starts processes and imports torch."""


@dataclass(frozen=True)
class Pace:
    """A load.

    Attributes:
        streams, requests, tokens: See `clients.Job`.
        ttft_ms, itl_ms: The mock server's pace.
        tolerance: How far the true pace may be from `itl_ms`, as a share of it.
    """

    streams: int = 64
    requests: int = 256
    tokens: int = 100
    ttft_ms: float = 100.0
    itl_ms: float = 20.0
    tolerance: float = 0.05

    @property
    def title(self) -> str:
        """The load in words."""
        streams = "stream" if self.streams == 1 else "streams"
        return f"{self.streams} {streams}, a token each {self.itl_ms:g} ms"


@dataclass(frozen=True)
class PacedLoads:
    """Has clients load the mock server.

    Attributes:
        server: Runs `mock_server.serve`.
        reader: Runs `clients.reading_client`, on the clients' core.
        flood_tokens: Of each stream when the mock server's own rate is measured.
    """

    server: Worker
    reader: Worker
    flood_tokens: int = 1000

    def run(self, client: Worker, pace: Pace) -> tuple[list[Measured], Observation]:
        """One load: what the client measured, and what the server saw.

        Args:
            client: Who makes the load.
            pace: What to make.

        Raises:
            WorkshopError: The client failed, or took far too long.
        """
        waves = -(-pace.requests // pace.streams)
        answer_s = (pace.ttft_ms + pace.itl_ms * pace.tokens) / 1000
        load = Load(pace.ttft_ms, pace.itl_ms, watch_pid=client.pid)
        url = self.server.ask(load, timeout_s=60)
        job = Job(url, pace.streams, pace.requests, pace.tokens)
        measured = client.ask(job, timeout_s=RUN_TIMEOUT_S + 5 * waves * answer_s)
        return measured, self.server.ask(None, timeout_s=60)

    def side(self, client: Worker, pace: Pace) -> Side:
        """A client under a load, as a side of a comparison.

        Args:
            client: Who makes the load.
            pace: What to make.
        """

        def sample() -> Sample:
            measured, seen = self.run(client, pace)
            check_load(seen, pace)
            ttft_error_ms, itl_error_ms = stamp_errors(measured, seen)
            cpu_s = seen.client_cpu_s / seen.tokens
            server_rate_per_s = self.server_rate_per_s(pace.streams)
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

    def server_rate_per_s(self, streams: int) -> float:
        """Tokens a second that the mock server sends when it never waits.

        As in the paced load each token is stamped and sent by itself; what reads them
        on the client's core only empties its sockets.

        Args:
            streams: How many at once.
        """
        return max(self._flood(streams) for _ in range(FLOODS))

    def _flood(self, streams: int) -> float:
        url = self.server.ask(Load(ttft_ms=50, itl_ms=0), timeout_s=60)
        tokens = max(20, self.flood_tokens // max(1, streams // 64))
        self.reader.ask(Job(url, streams, streams, tokens), timeout_s=180)
        seen: Observation = self.server.ask(None, timeout_s=60)
        stamps = [stamp for stream in seen.streams for stamp in stream.text_s]
        return len(stamps) / (max(stamps) - min(stamps))


def check_load(seen: Observation, pace: Pace) -> None:
    """Refuse a round in which the load was not the one that is named.

    Args:
        seen: What the server saw.
        pace: What was asked for.

    Raises:
        WorkshopError: Another pace, or other requests.
    """
    gaps = [b - a for s in seen.streams for a, b in zip(s.text_s, s.text_s[1:], strict=False)]
    true_ms = 1000 * statistics.median(gaps)
    if abs(true_ms / pace.itl_ms - 1) > pace.tolerance:
        raise WorkshopError(
            f"the mock server sent a token each {true_ms:.2f} ms instead of {pace.itl_ms:g};"
            " something else uses its core: repeat on a quiet machine"
        )
    expected = (pace.requests, pace.streams, pace.requests * pace.tokens)
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
        so the way there is part of the error. Of a client that only reports each answer's
        mean inter-token time, that is compared with the true mean.

    Raises:
        WorkshopError: The client reports other streams, or another number of tokens.

    Example:
        >>> from workshop_lib.tools.measures.mock_server import Stream
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
        if each.only_mean:
            stamps = [0.0, (stamps[-1] - stamps[0]) / (len(stamps) - 1)]
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
