"""A snapshot cut down to one component, and what Ray itself says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis.scheduling import claim_names
from workshop_lib.production.diagnosis.view import KINDS, View, ref

if TYPE_CHECKING:
    from workshop_lib.cluster.base import Cluster

__all__ = ["add_ray_state", "of_component"]

COMPONENT = "app.kubernetes.io/component"

SHARED = ("nodes", "storageclasses", "resourcequotas", "limitranges", "namespaces",
          "networkpolicies", "daemonsets", "prometheusrules", "servicemonitors", "podmonitors",
           "serviceaccounts", "customresourcedefinitions")  # fmt: skip
"""Lists of what all components share."""


def of_component(snapshot: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Only what belongs to a component, or is shared by all: its objects, their pods and events.

    Args:
        snapshot: The snapshot of a whole namespace.
        component: The component's name.

    Example:
        >>> of_component({"pods": [], "jobs": []}, "vllm")["jobs"]
        []
    """
    view = View(snapshot)
    own = {
        ref(body)
        for key in KINDS
        if key != "events"
        for body in view.items(key)
        if ((body.get("metadata") or {}).get("labels") or {}).get(COMPONENT) == component
    }
    for key in ("replicasets", "rayclusters", "jobs", "pods"):  # owners before what they own
        own |= {ref(b) for b in view.items(key) if own & set(view.owners(b))}
    claims = {
        f"PersistentVolumeClaim/{name}"
        for pod in view.pods if ref(pod) in own for name in claim_names(pod)
    }  # fmt: skip
    own |= claims
    kept = dict(snapshot)
    for key in KINDS:
        if key in SHARED or key not in snapshot:
            continue
        if key == "events":
            kept[key] = [e for e in view.items(key) if _about(e, own)]
        else:
            kept[key] = [body for body in view.items(key) if ref(body) in own]
    names = {each.partition("/")[2] for each in own if each.startswith("Pod/")}
    logs = snapshot.get("logs") or {}
    kept["logs"] = {key: text for key, text in logs.items() if key.partition("/")[0] in names}
    return kept


def _about(event: Mapping[str, Any], own: set[str]) -> bool:
    """Whether an event is about one of these objects, or a ReplicaSet of one."""
    about = event.get("involvedObject") or {}
    kind, name = about.get("kind"), str(about.get("name"))
    return f"{kind}/{name}" in own or (
        kind == "ReplicaSet" and f"Deployment/{name.rpartition('-')[0]}" in own
    )


def add_ray_state(cluster: Cluster, snapshot: dict[str, Any]) -> None:
    """What Ray says of its nodes, placement groups and jobs, and Serve of its applications.

    Asked of the first Ray cluster of the workshop whose head is ready; that it does not
    answer is noted and no error, since a snapshot is taken when things are broken.

    Args:
        cluster: Where it runs.
        snapshot: Gets `ray` and `serve`, or a note.
    """
    from workshop_lib.cluster.ray import dashboard

    for component in ("ray-service", "autoscale", "raycluster", "ray-cluster"):
        if not _has_ready_head(snapshot, component):
            continue
        try:
            with dashboard(cluster.get(component)) as ray:
                snapshot["ray"] = {
                    "nodes": ray.get("/api/v0/nodes?detail=true"),
                    "placement_groups": ray.get("/api/v0/placement_groups?detail=true"),
                    "jobs": ray.get("/api/jobs/"),
                }
                snapshot["serve"] = ray.get("/api/serve/applications/")
        except WorkshopError as error:
            snapshot.setdefault("notes", []).append(f"Ray was not asked: {error}")
        return


def _has_ready_head(snapshot: Mapping[str, Any], component: str) -> bool:
    """Whether a component's head, or its rank 0, is ready."""
    for pod in of_component(snapshot, component).get("pods") or []:
        metadata, status = pod["metadata"], pod.get("status") or {}
        ready = any(c.get("type") == "Ready" and c.get("status") == "True"
                    for c in status.get("conditions") or [])  # fmt: skip
        index = (metadata.get("annotations") or {}).get("batch.kubernetes.io/job-completion-index")
        head = (metadata.get("labels") or {}).get("ray.io/node-type") == "head"
        if ready and (head or str(index) == "0"):
            return True
    return False
