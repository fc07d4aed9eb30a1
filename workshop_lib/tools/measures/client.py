"""`client`: what our benchmark client spends, how well it measures, how much it can follow.

A load generator's own work limits the load it can make and blurs the times it takes. Our
client and another one put the same load on the same mock server in turn, each client on the
same core, the server on another. The mock server reads the client's CPU time when the first
request comes and when the last token leaves, so that neither starting nor making tables is
counted on either side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

from workshop_lib.tools.measures.clients import reading_client, vllm_client, workshop_client
from workshop_lib.tools.measures.frame import Bar, Comparison, Quantity
from workshop_lib.tools.measures.guidellm import guidellm_client, guidellm_is_there
from workshop_lib.tools.measures.mock_server import serve
from workshop_lib.tools.measures.paced import Pace, PacedLoads
from workshop_lib.tools.measures.sustained import guess_streams, sustained_side
from workshop_lib.tools.measures.workers import Worker, server_and_clients

__all__ = ["Client", "Peer", "known_peers"]

START_TIMEOUT_S = 180.0
"""A cold import of vLLM and torch takes most of it."""

_LOAD = Pace()
_TIMES = (
    Pace(streams=1, requests=2),
    Pace(streams=512, requests=512, tokens=50, itl_ms=100.0),
)

_LIGHT = Pace(streams=16, requests=64)
"""What guidellm can follow on one core."""


@dataclass(frozen=True)
class Peer:
    """Another client.

    Attributes:
        name: Its name.
        target: What its process does.
        load: What CPU time is compared under, ours too: one that it can follow.
    """

    name: str
    target: Callable[[Connection], None]
    load: Pace = _LOAD


_CPU = Quantity("cpu_us", "CPU time per output token", "µs", Bar("ratio", "at most", 0.5))
_ERRORS = (
    # The bar is 1 ms or 1%; of times up to 100 ms, 1 ms is more.
    Quantity("ttft_error_ms", "TTFT, median error", "ms", Bar("median", "at most", 1.0)),
    Quantity("itl_error_ms", "inter-token, median error", "ms", Bar("median", "at most", 1.0)),
)
_SERVER_RATE = Quantity("server_rate_per_s", "tokens that the mock server can send", "1/s")
_MARGIN = Quantity(
    "server_margin",
    "… against this client with a core to itself",
    "times",
    Bar("median", "at least", 2.0, proves=True),
)
_SUSTAINED = (
    Quantity("streams", "most streams followed well", "streams", Bar("ratio", "at least", 2.0)),
    Quantity("tokens_per_s", "… their tokens", "1/s"),
    _SERVER_RATE,
    replace(_MARGIN, label="… against these streams"),
)


def known_peers(say: Callable[[str], None]) -> list[Peer]:
    """The clients that ours is compared with: guidellm only where it is installed.

    Args:
        say: Told what is left out, and how to get it.
    """
    peers = [Peer("vllm bench serve", vllm_client)]
    if guidellm_is_there():
        return [*peers, Peer("guidellm", guidellm_client, _LIGHT)]
    say("guidellm is not installed, so its comparison is left out; `make guidellm` installs it")
    return peers


@dataclass(frozen=True)
class Client:
    """The entry.

    Attributes:
        logs: Where the processes' logs go.
        times: Further loads, under which times are compared with the server's stamps.
        search: The pace at which the most streams are searched; None: they are not.
        flood_tokens: See `PacedLoads`.
        peers: Gives the other clients.
        say: Told what is left out.
        name, rounds: See `Entry`.
    """

    logs: Path
    times: Sequence[Pace] = _TIMES
    search: Pace | None = _LOAD
    flood_tokens: int = 1000
    peers: Callable[[Callable[[str], None]], list[Peer]] = known_peers
    say: Callable[[str], None] = field(default=print)
    name: str = "client"
    rounds: int = 3

    @contextlib.contextmanager
    def prepare(self, say: Callable[[str], None]) -> Iterator[Sequence[Comparison]]:
        """Start server and clients, each client having run once uncounted; see `Entry`."""
        peers = self.peers(self.say)
        with server_and_clients(
            self.logs,
            say,
            START_TIMEOUT_S,
            ("mock server", serve),
            ("reading client", reading_client),
            ("workshop client", workshop_client),
            *((f"{peer.name} client", peer.target) for peer in peers),
        ) as (server, reader, ours, *theirs):
            loads = PacedLoads(server, reader, self.flood_tokens)
            guesses = {}
            for worker in (ours, *theirs):
                say(f"{worker.name}: once uncounted")
                guesses[worker] = guess_streams(loads, worker, _LIGHT)
            yield list(
                self._comparisons(loads, ours, list(zip(peers, theirs, strict=True)), guesses)
            )

    def _comparisons(
        self,
        loads: PacedLoads,
        ours: Worker,
        others: Sequence[tuple[Peer, Worker]],
        guesses: Mapping[Worker, int],
    ) -> Iterator[Comparison]:
        for peer, theirs in others:
            pace = peer.load
            yield Comparison(
                f"{self.name}: {pace.title}, {pace.requests * pace.tokens:,} tokens a round",
                {"workshop": loads.side(ours, pace), peer.name: loads.side(theirs, pace)},
                (_CPU, *_ERRORS, _SERVER_RATE, _MARGIN),
            )
        peer, theirs = others[0]
        for pace in self.times:
            yield Comparison(
                f"{self.name}: {pace.title}",
                {"workshop": loads.side(ours, pace), peer.name: loads.side(theirs, pace)},
                _ERRORS,
            )
        for peer, theirs in others if self.search else ():
            assert self.search is not None
            yield Comparison(
                f"{self.name}: streams of a token each {self.search.itl_ms:g} ms, as many as"
                " are followed with a median inter-token error below 5%",
                {
                    "workshop": sustained_side(loads, ours, self.search, guesses[ours]),
                    peer.name: sustained_side(loads, theirs, self.search, guesses[theirs]),
                },
                _SUSTAINED,
            )
