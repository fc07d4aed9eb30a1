"""What a learner checks at the end of the first lesson: the Ray cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.ray import RayDashboard

__all__ = ["check_ray_cluster", "expected_gpus"]


def expected_gpus(pods: Iterable[Mapping[str, Any]]) -> int:
    """GPUs that Ray should have: what each pod is told to report, else what it asks for.

    Args:
        pods: Pod objects of a Ray cluster.

    Example:
        >>> container = {"env": [{"name": "NUM_GPUS", "value": "2"}]}
        >>> expected_gpus([{"spec": {"containers": [container]}}])
        2
    """
    total = 0
    for pod in pods:
        container = pod["spec"]["containers"][0]
        told = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
        limits = container.get("resources", {}).get("limits", {})
        total += int(told.get("NUM_GPUS") or limits.get("nvidia.com/gpu", 0))
    return total


def check_ray_cluster(dashboard: RayDashboard, *, nodes: int, gpus: int) -> CheckList:
    """Whether a Ray cluster is the one that was asked for.

    Args:
        dashboard: The cluster's dashboard.
        nodes: Nodes that should be alive, the head included.
        gpus: Logical GPUs that they should have together.
    """
    table = dashboard.nodes()
    alive = table[table["state"] == "ALIVE"]
    found = int(alive["gpus"].sum())
    status = dashboard.status_without_token()
    return CheckList(
        [
            Check("the dashboard answers", True, f"Ray {dashboard.version()} at {dashboard.url}"),
            Check(
                "it refuses callers without the token", status == 401, f"HTTP {status}",
                "set RAY_AUTH_MODE=token on every pod",
            ),
            Check(
                "all nodes joined", len(alive) == nodes, f"{len(alive)} of {nodes} alive",
                "read the missing rank's logs()",
            ),
            Check(
                "they have the GPUs", found == gpus, f"{found} of {gpus} GPUs",
                "compare --num-gpus with the pod's nvidia.com/gpu limit",
            ),
        ]
    )  # fmt: skip
