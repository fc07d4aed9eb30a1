"""A snapshot of a cluster's objects, cut down to one component."""

from __future__ import annotations

from typing import Any

from workshop_lib.cluster.kube import INDEX, Json, component_of, is_true, key_of, labels_of

__all__ = ["of_component", "ready_heads"]

SHARED = ("nodes", "storageclasses", "resourcequotas", "limitranges", "namespaces",
          "networkpolicies", "daemonsets", "prometheusrules", "servicemonitors", "podmonitors",
          "serviceaccounts", "customresourcedefinitions", "notes")  # fmt: skip
"""Lists of what all components share."""

RAY_COMPONENTS = ("ray-service", "autoscale", "raycluster", "ray-cluster")


def of_component(snapshot: Json, component: str) -> dict[str, Any]:
    """Only what belongs to a component, or is shared by all: its objects, their pods and events."""
    lists = {key: items for key, items in snapshot.items() if isinstance(items, list)}
    bodies = [body for key, items in lists.items() if key not in ("notes", "events")
              for body in items]  # fmt: skip
    own = {key_of(body) for body in bodies if component_of(body) == component}
    for key in ("replicasets", "rayclusters", "jobs", "pods"):  # owners before what they own
        own |= {key_of(body) for body in lists.get(key, []) if own & _owners(body)}
    pods = [pod for pod in lists.get("pods", []) if key_of(pod) in own]
    for pod in pods:
        volumes = [volume.get("persistentVolumeClaim") for volume in pod["spec"].get("volumes", [])]
        own |= {f"PersistentVolumeClaim/{claim['claimName']}" for claim in volumes if claim}
    kept = dict(snapshot)
    for key, items in lists.items():
        if key == "events":
            kept[key] = [event for event in items if _about(event, own)]
        elif key not in SHARED:
            kept[key] = [body for body in items if key_of(body) in own]
    names = {pod["metadata"]["name"] for pod in pods}
    logs = snapshot.get("logs") or {}
    kept["logs"] = {key: text for key, text in logs.items() if key.partition("/")[0] in names}
    return kept


def _owners(body: Json) -> set[str]:
    owners = body["metadata"].get("ownerReferences") or []
    return {f"{owner['kind']}/{owner['name']}" for owner in owners}


def _about(event: Json, own: set[str]) -> bool:
    """Whether an event is about one of these objects, a ReplicaSet of one, or a node."""
    about = event.get("involvedObject") or {}
    kind, name = about.get("kind"), str(about.get("name"))
    return (
        f"{kind}/{name}" in own
        or str(kind).startswith("Node")
        or (kind == "ReplicaSet" and f"Deployment/{name.rpartition('-')[0]}" in own)
    )


def ready_heads(snapshot: Json) -> list[str]:
    """The Ray components whose head, or rank 0, is ready."""

    def has_head(component: str) -> bool:
        return any(
            is_true(pod, "Ready")
            and (
                labels_of(pod).get("ray.io/node-type") == "head"
                or str((pod["metadata"].get("annotations") or {}).get(INDEX)) == "0"
            )
            for pod in of_component(snapshot, component).get("pods") or []
        )

    return [component for component in RAY_COMPONENTS if has_head(component)]
