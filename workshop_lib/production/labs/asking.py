"""What a user of a lab's component sees: an answer, or how it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workshop_lib.cluster.base import Cluster
from workshop_lib.cluster.ray import dashboard
from workshop_lib.errors import WorkshopError

__all__ = ["Answer", "ask", "ranks"]


@dataclass(frozen=True)
class Answer:
    """What came of asking.

    Attributes:
        asked: What was asked.
        ok: Whether it was answered as it should be.
        text: The answer, or what a user sees in its place.
    """

    asked: str
    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{self.asked}: {self.text}"


def ask(cluster: Cluster, component: str) -> Answer:
    """Ask a component what its users ask it.

    Args:
        cluster: Where it runs.
        component: `lab-server`, `vllm`, `ray-cluster` or `stale-address`.

    Example:
        >>> print(ask(cluster, "lab-server"))                               # doctest: +SKIP
        GET http://lab-server:8000/articles?reader=7: HTTP 200 {"articles": [...]}
    """
    return _ASK[component](cluster)


def _get(cluster: Cluster, service: str, path: str) -> Answer:
    """GET a path of a Service, by a client that waits twenty seconds."""
    import httpx

    asked = f"GET http://{service}:8000{path}"
    try:
        with cluster.forward(service, 8000) as url:
            answer = httpx.get(f"{url}{path}", timeout=20, trust_env=False)
    except (httpx.HTTPError, WorkshopError) as error:
        # The library's own error would explain too much: a user sees a connection that fails.
        said = str(error) if isinstance(error, httpx.HTTPError) else "nothing is behind it"
        return Answer(asked, False, f"no answer ({said or type(error).__name__})")
    return Answer(asked, answer.status_code == 200, f"HTTP {answer.status_code} {answer.text[:80]}")


def _server(cluster: Cluster) -> Answer:
    return _get(cluster, "lab-server", "/articles?reader=7")


def _vllm(cluster: Cluster) -> Answer:
    return _get(cluster, "vllm", "/v1/models")


def _ray(cluster: Cluster) -> Answer:
    asked = "Ray's dashboard, for its nodes"
    try:
        with dashboard(cluster.get("ray-cluster")) as ray:
            nodes = ray.nodes()
    except WorkshopError:
        return Answer(asked, False, "no answer")
    alive = int((nodes["state"] == "ALIVE").sum())
    return Answer(asked, alive == len(nodes), f"{alive} of {len(nodes)} alive")


def ranks(cluster: Cluster) -> dict[int, str]:
    """The last word of each rank of `stale-address`: who it is, or whom it dials.

    Args:
        cluster: Where it ran.
    """
    lines = [line for line in cluster.get("stale-address").logs() if line.rank is not None]
    return {line.rank: line.text.split()[-1] for line in lines if line.rank is not None}


def _addresses(cluster: Cluster) -> Answer:
    found = ranks(cluster)
    asked = "do the ranks meet?"
    if not {0, 1} <= set(found):
        return Answer(asked, False, f"ranks {sorted(found) or 'none'} have said something so far")
    met = found[0] == found[1]
    return Answer(asked, met, f"rank 0 is {found[0]}, rank 1 dials {found[1]}")


_ASK: dict[str, Callable[[Cluster], Answer]] = {
    "lab-server": _server, "vllm": _vllm, "ray-cluster": _ray, "stale-address": _addresses,
}  # fmt: skip
