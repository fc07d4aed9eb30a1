"""Ray's own Grafana dashboards: from a head's session folder to where Grafana looks.

A head writes them when it starts, for the metrics of its own version. Nobody carries them to
Grafana: here they become ConfigMaps that Grafana's sidecar imports.
"""

from __future__ import annotations

import json
import re
from typing import Any

from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.kube import INDEX, LABELS
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ClusterError, NotFoundError

__all__ = ["ray_dashboards"]

LIMIT_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB at most."""

# Runs in the head, with its own Python, where the head's GCS says its session's folder lies: on a
# laptop /tmp/ray may be another Ray's.
_READ = """
import glob, json, os
from ray._raylet import GcsClient
nodes = GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info(timeout=60).values()
heads = [node.session_dir for node in nodes if node.is_head_node] or [""]
files = sorted(glob.glob(os.path.join(heads[-1], "metrics/grafana/dashboards/*.json")))
print(json.dumps({os.path.basename(file): open(file).read() for file in files}))
"""


def ray_dashboards(workload: Workload, *, timeout_s: float = 120.0) -> list[Object]:
    """Ray's own dashboards of a running head, as ConfigMaps for Grafana's sidecar.

    Args:
        workload: The handle of a component with a Ray head: `ray-cluster`, `raycluster`,
            `ray-service` or `autoscale`.
        timeout_s: The longest that the head may take to answer.

    Returns:
        An object for each dashboard: together they are more than one ConfigMap holds.

    Raises:
        NotFoundError: No pod of it is a head, or the head has written none.
        ClusterError: The head's answer cannot be read.

    Example:
        >>> found = ray_dashboards(cluster.get("raycluster"))   # doctest: +SKIP
        >>> connect("eks", namespace="monitoring").apply_objects(
        ...     "ray-dashboards", found)   # doctest: +SKIP
    """
    heads = [pod["metadata"]["name"] for pod in workload.observe().pods if _is_head(pod)]
    if not heads:
        raise NotFoundError(f"{workload} has no Ray head; start one with cluster.apply")
    done = workload.cluster.exec(heads[0], ["python", "-c", _READ], timeout_s=timeout_s)
    try:
        files = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ClusterError(f"{heads[0]} did not tell its dashboards: {said}") from None
    if not files:
        raise NotFoundError(
            f"{heads[0]} has written no dashboards yet; its dashboard process does, seconds "
            "after the head is ready"
        )
    return [_config_map(name, text) for name, text in sorted(files.items())]


def _is_head(pod: dict[str, Any]) -> bool:
    labels = pod["metadata"].get("labels") or {}
    annotations = pod["metadata"].get("annotations") or {}
    return labels.get("ray.io/node-type") == "head" or annotations.get(INDEX) == "0"


def _config_map(file: str, text: str) -> Object:
    """A dashboard, written without spaces, which halves it, in a ConfigMap with Grafana's label."""
    try:
        board = json.loads(text)
        board["title"], board["panels"]
    except (ValueError, KeyError, TypeError):
        raise ClusterError(f"{file} is no Grafana dashboard") from None
    small = json.dumps(board, separators=(",", ":"))
    if (size := len(small.encode())) > LIMIT_BYTES:
        raise ClusterError(f"{file} has {size:,} bytes; a ConfigMap holds {LIMIT_BYTES:,}")
    name = file.removesuffix(".json").removesuffix("_grafana_dashboard")
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    metadata = {"name": f"ray-dashboard-{name}", "labels": {**LABELS, "grafana_dashboard": "1"}}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {file: small}}
    return Object(body, "a Ray head's session folder")
