"""A snapshot of what this machine plays, in the form of a Kubernetes namespace's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import WORKLOAD_KINDS
from workshop_lib.cluster.local import records
from workshop_lib.cluster.local.conditions import now
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.cluster.local.objects import all_objects
from workshop_lib.cluster.local.paths import StatePaths
from workshop_lib.errors import NotFoundError

__all__ = ["take_snapshot"]

Json = Mapping[str, Any]

LISTS = {
    "Job": "jobs", "Deployment": "deployments", "Service": "services", "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims", "RayCluster": "rayclusters",
    "RayService": "rayservices", "ServiceMonitor": "servicemonitors", "PodMonitor": "podmonitors",
    "PrometheusRule": "prometheusrules",
}  # fmt: skip
"""What the snapshot holds; Secrets never."""

LOG_BYTES = 65536


def take_snapshot(paths: StatePaths) -> dict[str, Any]:
    """The objects of a state, its pods and events, this machine as a node, and the logs' ends.

    Args:
        paths: The state's files.
    """
    found: dict[str, Any] = {"taken_at": now(), "pods": [], "events": [], "notes": []}
    found |= {key: [] for key in LISTS.values()}
    found["nodes"] = [_node()]
    found["logs"] = {}
    for body in all_objects(paths):
        kind, name = body["kind"], body["metadata"]["name"]
        if kind not in LISTS:
            continue
        if kind not in WORKLOAD_KINDS:
            bound = {"status": {"phase": "Bound"}} if kind == "PersistentVolumeClaim" else {}
            found[LISTS[kind]].append({**body, **bound})
            continue
        try:
            look = records.look(paths, kind, name)
        except NotFoundError:  # another kernel has deleted it meanwhile
            continue
        found[LISTS[kind]].append({**look.body, "status": look.seen.get("status", {})})
        found["events"] += look.seen.get("events", [])
        if look.lost:
            found["notes"].append(
                f"{kind}/{name} does not run any more: this machine was restarted, or its "
                "supervisor was killed; apply it again"
            )
            continue
        pods = look.seen.get("pods", [])
        found["pods"] += pods
        folder = paths.logs / f"{kind}.{name}"
        found["logs"] |= {key: text for pod in pods for key, text in _logs(folder, pod)}
    return found


def _node() -> dict[str, Any]:
    """This machine as a node: what it has, always ready."""
    offered = {key: f"{amount:g}" if key == "nvidia.com/gpu" else str(int(amount))
               for key, amount in capacity().items()}  # fmt: skip
    offered = {key: amount for key, amount in offered.items() if amount != "0"}
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "this-machine", "labels": {}},
        "spec": {},
        "status": {"allocatable": offered, "capacity": offered,
                   "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
    }  # fmt: skip


def _logs(folder: Path, pod: Json) -> Iterator[tuple[str, str]]:
    """What a pod's containers wrote: the last run, and the one before it."""
    name, status = pod["metadata"]["name"], pod["status"]
    for each in [*status["initContainerStatuses"], *status["containerStatuses"]]:
        last = each["restartCount"]
        # While it waits for its next start, the run that ended is the last one.
        for run, key in ((last, ""), (last - 1, "/previous")):
            if run >= 0 and (text := _tail(folder / name / each["name"] / f"{run}.log")):
                yield f"{name}/{each['name']}{key}", text


def _tail(file: Path) -> str:
    """The end of a file, whole lines; empty when it is not there."""
    try:
        with file.open("rb") as log:
            log.seek(0, 2)
            size = log.tell()
            log.seek(max(0, size - LOG_BYTES))
            data = log.read()
    except FileNotFoundError:
        return ""
    if size > LOG_BYTES:
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")
