"""Ray's own Grafana dashboards: from a head's session folder to where Grafana looks.

A head writes them when it starts (`/tmp/ray/session_latest/metrics/grafana/dashboards`), for
the metrics of its own version. Nobody carries them to Grafana: here they become a ConfigMap
that Grafana's sidecar imports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workshop_lib.errors import ClusterError, NotFoundError
from workshop_lib.kubernetes.observe import INDEX
from workshop_lib.kubernetes.resources import LABELS
from workshop_lib.manifests import Object
from workshop_lib.workload import Workload

__all__ = ["dashboards_object", "ray_dashboards"]

CONFIG_MAP = "ray-dashboards"
LIMIT_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB at most."""

# Runs in the head, with its own Python. /tmp/ray is Ray's folder in every image; where it is
# another, the head's GCS knows it.
_READ = """
import glob, json, os, sys
def dashboards(session):
    return sorted(glob.glob(os.path.join(session, "metrics/grafana/dashboards/*.json")))
files = dashboards("/tmp/ray/session_latest") if "RAY_TEMP_DIR" not in os.environ else []
if not files:
    from ray._raylet import GcsClient
    nodes = GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info(timeout=60).values()
    files = [file for node in nodes if node.is_head_node for file in dashboards(node.session_dir)]
print(json.dumps({os.path.basename(file): open(file).read() for file in files}))
"""


def ray_dashboards(workload: Workload, *, timeout_s: float = 120.0) -> Object:
    """Ray's own dashboards of a running head, as a ConfigMap for Grafana's sidecar.

    Args:
        workload: The handle of a component with a Ray head: `ray-cluster`, `raycluster`,
            `ray-service` or `autoscale`.
        timeout_s: The longest that the head may take to answer.

    Returns:
        The object; `admin.apply_objects("ray-dashboards", [found])` applies it, in the
        namespace of Grafana or any other that the sidecar searches.

    Raises:
        NotFoundError: No pod of it is a head, or the head has written none.
        ClusterError: The head's answer cannot be read.

    Example:
        >>> found = ray_dashboards(cluster.get("raycluster"))   # doctest: +SKIP
        >>> connect("eks", namespace="monitoring").apply_objects(
        ...     "ray-dashboards", [found])   # doctest: +SKIP
    """
    pods = workload.observe().pods
    heads = [pod["metadata"]["name"] for pod in pods if _is_head(pod)]
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
    return dashboards_object(files)


def _is_head(pod: Mapping[str, Any]) -> bool:
    labels = pod["metadata"].get("labels") or {}
    annotations = pod["metadata"].get("annotations") or {}
    return labels.get("ray.io/node-type") == "head" or annotations.get(INDEX) == "0"


def dashboards_object(files: Mapping[str, str]) -> Object:
    """A ConfigMap with dashboards, which Grafana's sidecar imports by itself.

    They are written smaller, for a ConfigMap holds 1 MiB, and each is checked to be one.

    Args:
        files: File name to the dashboard's JSON.

    Raises:
        ClusterError: One is no dashboard, or all together are too large.

    Example:
        >>> dashboards_object({"a.json": '{"title": "A", "panels": []}'}).key
        'ConfigMap/ray-dashboards'
    """
    data = {}
    for name, text in sorted(files.items()):
        try:
            board = json.loads(text)
            board["title"], board["panels"]
        except (ValueError, KeyError, TypeError):
            raise ClusterError(f"{name} is no Grafana dashboard") from None
        data[name] = json.dumps(board, separators=(",", ":"))
    size = sum(len(text.encode()) for text in data.values())
    if size > LIMIT_BYTES:
        raise ClusterError(f"the dashboards have {size:,} bytes; a ConfigMap holds {LIMIT_BYTES:,}")
    labels = {**LABELS, "grafana_dashboard": "1"}
    return Object(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "labels": labels},
            "data": data,
        },
        "a Ray head's session folder",
    )
