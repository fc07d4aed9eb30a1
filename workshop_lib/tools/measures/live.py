"""`live-vllm`: what our client measures of a real vLLM, against vLLM's own histograms.

The mock server shows that times are right to a millisecond; here the same requests are
measured twice, by the client and by the engine that answers them. The engine's means are
the change of `_sum` by the change of `_count` at `/metrics` while a level ran.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.frame import Bar, Comparison, Quantity, Sample
from workshop_lib.tools.stopping import Interrupted

if TYPE_CHECKING:
    from workshop_lib.serving.client import ModelServer

__all__ = ["LiveVllm", "means_of", "share_of_allowed"]

START_TIMEOUT_S = 900.0

TTFT_SHARE, TTFT_MS = 0.03, 15.0
"""So far may the two times to first token be apart: the larger of the two."""

_CLOSE = Bar("ratio", "1 ±", 0.03)
_QUANTITIES = (
    Quantity("itl_ms", "inter-token, mean", "ms", _CLOSE),
    Quantity("e2e_ms", "whole answer, mean", "ms", _CLOSE),
    Quantity("ttft_ms", "TTFT, mean", "ms"),
    Quantity(
        "ttft_off",
        "… difference, of the 3% or 15 ms allowed",
        "times",
        Bar("median", "at most", 1.0),
    ),
)


@dataclass(frozen=True)
class LiveVllm:
    """The entry.

    Attributes:
        state: The name of the laptop cluster's state in which vLLM runs; it is cleaned.
        loads: Requests in flight, and requests in all.
        tokens: Of each answer.
        server: A server that runs already; None: the laptop's vLLM is started.
        name, rounds: See `Entry`.
    """

    state: str = "bench"
    loads: Sequence[tuple[int, int]] = ((1, 6), (8, 32))
    tokens: int = 32
    server: ModelServer | None = None
    name: str = "live-vllm"
    rounds: int = 3

    @contextlib.contextmanager
    def prepare(self, say: Callable[[str], None]) -> Iterator[Sequence[Comparison]]:
        """Start vLLM and ask it a little uncounted; see `Entry`."""
        from workshop_lib.serving.benchmark import run_sweep

        with contextlib.ExitStack() as stack:
            server = self.server or stack.enter_context(_laptops_vllm(self.state, say))
            say("vLLM: once uncounted")
            run_sweep(server, _PROMPTS, levels=(1,), requests_per_level=2, max_tokens=8)
            yield [self._comparison(server, *load) for load in self.loads]

    def _comparison(self, server: ModelServer, at_once: int, requests: int) -> Comparison:
        from workshop_lib.serving.benchmark import run_sweep

        servers: list[Sample] = []

        def client() -> Sample:
            result = run_sweep(
                server,
                _PROMPTS,
                levels=(at_once,),
                requests_per_level=requests,
                max_tokens=self.tokens,
            )
            if result.stopped:  # a sweep keeps what it has when it is interrupted; a bench ends
                raise Interrupted(signal.SIGINT)
            failed = [record for record in result.request_records if record.error]
            if failed:
                raise WorkshopError(f"{len(failed)} requests failed: {failed[0].detail}")
            ours, theirs = means_of(result.compare_with_server().to_dict("records"))
            servers.append(theirs)
            off = share_of_allowed(ours["ttft_ms"], theirs["ttft_ms"])
            return {**ours, "ttft_off": off}

        return Comparison(
            f"{self.name}: {requests} answers of {self.tokens} tokens, {at_once} at once",
            {"client": client, "vLLM itself": lambda: servers.pop()},
            _QUANTITIES,
        )


_PROMPTS = ["Explain what a GPU does.", "What is a token?", "Why are caches fast?"]


@contextlib.contextmanager
def _laptops_vllm(state: str, say: Callable[[str], None]) -> Iterator[ModelServer]:
    from workshop_lib.cluster.local.cluster import LocalCluster
    from workshop_lib.serving.client import ModelServer

    cluster = LocalCluster(state=state)
    try:
        say("making the model ready")
        cluster.apply("model").wait_complete(timeout_s=START_TIMEOUT_S)
        say("starting vLLM")
        cluster.apply("vllm").wait_ready(timeout_s=START_TIMEOUT_S)
        with cluster.forward("vllm", 8000) as url, ModelServer(url) as server:
            yield server
    finally:
        cluster.clean()


def means_of(rows: Sequence[Mapping[Any, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """The client's means and the server's, by `ttft_ms`, `itl_ms`, `e2e_ms`.

    Args:
        rows: Of `BenchmarkResult.compare_with_server`, one level.

    Raises:
        WorkshopError: The server has not all three histograms.

    Example:
        >>> names = ("ttft", "itl", "e2e")
        >>> means_of([{"latency": n, "client_ms": 2.0, "server_ms": 1.0} for n in names])[1]
        {'ttft_ms': 1.0, 'itl_ms': 1.0, 'e2e_ms': 1.0}
    """
    found = {f"{row['latency']}_ms": row for row in rows}
    if missing := {"ttft_ms", "itl_ms", "e2e_ms"} - set(found):
        raise WorkshopError(f"the server's /metrics say nothing of {', '.join(sorted(missing))}")
    ours, theirs = (
        {name: float(row[side]) for name, row in found.items()}
        for side in ("client_ms", "server_ms")
    )
    return ours, theirs


def share_of_allowed(client_ms: float, server_ms: float) -> float:
    """How far two times to first token are apart, by what is allowed: 1 is just right.

    Args:
        client_ms: The client's mean.
        server_ms: The server's.

    Example:
        >>> share_of_allowed(107.5, 100), share_of_allowed(1030, 1000)
        (0.5, 1.0)
    """
    return abs(client_ms - server_ms) / max(TTFT_MS, TTFT_SHARE * server_ms)
