"""Ray's own Grafana dashboards: from a head's session folder to where Grafana looks."""

from __future__ import annotations

import json
import re

from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.kube import LABELS
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ClusterError, NotFoundError

# Runs in the head, with its own Python, where the head's GCS says its session's folder lies: on a
# laptop /tmp/ray may be another Ray's.
_READ = """
import glob, json, os
from ray._raylet import GcsClient
nodes = GcsClient(address=os.environ["RAY_ADDRESS"]).get_all_node_info(timeout=60).values()
heads = [node.session_dir for node in nodes if node.is_head_node] or [""]
files = sorted(glob.glob(os.path.join(heads[-1], "metrics/grafana/dashboards/*.json")))
print(json.dumps({os.path.basename(file): json.load(open(file)) for file in files}))
"""


def ray_dashboards(workload: Workload) -> list[Object]:
    """The dashboards that a running head wrote for its metrics, as ConfigMaps for Grafana.

    Grafana's sidecar imports what has the label `grafana_dashboard`. An object for each
    dashboard: together they are more than one ConfigMap holds.

    Args:
        workload: The handle of a component with a Ray head, such as `raycluster`, `autoscale`.

    Raises:
        NotFoundError: The head has written none.
        ClusterError: There is no head, or its answer cannot be read.

    Example:
        >>> found = ray_dashboards(cluster.get("raycluster"))   # doctest: +SKIP
        >>> connect("eks", namespace="monitoring").apply_objects(
        ...     "ray-dashboards", found)   # doctest: +SKIP
    """
    head = next(iter(workload.pods), "")  # the head is the first
    done = workload.cluster.exec(head, ["python", "-c", _READ], timeout_s=120)
    try:
        boards = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ClusterError(f"{head} did not tell its dashboards: {said}") from None
    if not boards:
        raise NotFoundError(
            f"{head} has written no dashboards yet; its dashboard process does, seconds "
            "after the head is ready"
        )
    return [_config_map(file, board) for file, board in sorted(boards.items())]


def _config_map(file: str, board: object) -> Object:
    name = re.sub(r"[^a-z0-9]+", "-", file.removesuffix(".json").lower())
    name = name.removesuffix("-grafana-dashboard")
    metadata = {"name": f"ray-dashboard-{name}", "labels": {**LABELS, "grafana_dashboard": "1"}}
    small = json.dumps(board, separators=(",", ":"))  # without spaces it is half as large
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {file: small}}
    return Object(body, "a Ray head's session folder")
