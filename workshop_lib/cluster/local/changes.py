"""What applying an object again does: nothing, a change, or a refusal that loses nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.local.ray_templates import GENERATE
from workshop_lib.errors import ClusterError

__all__ = ["COMPONENT", "action", "component_of", "generated_key", "key_of"]

Json = Mapping[str, Any]

COMPONENT = "app.kubernetes.io/component"
"""Label with the component that an object belongs to."""

JOB_MAY_CHANGE = ("parallelism", "backoffLimit", "activeDeadlineSeconds")
GROUP_MAY_CHANGE = ("replicas", "minReplicas", "maxReplicas")


def key_of(body: Json) -> str:
    """`Kind/name` of an object."""
    return f"{body['kind']}/{body['metadata']['name']}"


def component_of(body: Json) -> str:
    """The component that an applied object belongs to."""
    return str(body["metadata"]["labels"][COMPONENT])


def generated_key(body: Json) -> str | None:
    """The key of a Secret that apply fills with a random value, once."""
    return (body["metadata"].get("annotations") or {}).get(GENERATE)


def action(old: Json | None, body: Json, component: str) -> str:
    """What applying an object will do.

    Args:
        old: The object as it was applied before; None when it was not.
        body: The object as it is to be.
        component: The component that brings it.

    Returns:
        `created`, `configured` or `unchanged`.

    Raises:
        ClusterError: It would take another component's object, or change what cannot
            change while it exists.
    """
    if old is None:
        return "created"
    same = _content(old) == _content(body)
    owner = component_of(old)
    if owner != component:
        # Several components may use one volume; it stays with the one that made it.
        if body["kind"] == "PersistentVolumeClaim" and same:
            return "unchanged"
        raise ClusterError(
            f"{key_of(body)} belongs to component {owner!r} already; "
            f"first cluster.delete({owner!r})"
        )
    if same or (body["kind"] == "Secret" and generated_key(body)):
        return "unchanged"
    if body["kind"] == "Job":
        _refuse(_fixed_job(old), _fixed_job(body), "a Job's pods", old)
        if body["spec"].get("parallelism", 1) < old["spec"].get("parallelism", 1):
            raise ClusterError(
                f"{key_of(body)}: parallelism cannot be lowered on this machine while it exists; "
                f"first cluster.delete({owner!r})"
            )
    elif body["kind"] in ("RayCluster", "RayService"):
        _refuse(_fixed_ray(old), _fixed_ray(body), "a Ray cluster's pods", old)
    elif body["kind"] == "PersistentVolumeClaim":
        _refuse(_content(old), _content(body), "a volume", old)
    return "configured"


def _refuse(old: Any, new: Any, what: str, body: Json) -> None:
    if old != new:
        raise ClusterError(
            f"{key_of(body)}: {what} cannot change while it exists; "
            f"first cluster.delete({component_of(body)!r})"
        )


def _content(body: Json) -> dict[str, Any]:
    """What an object says, without what a cluster adds to it."""
    return {key: value for key, value in body.items() if key not in ("metadata", "status")}


def _fixed_job(body: Json) -> Any:
    return {key: value for key, value in body["spec"].items() if key not in JOB_MAY_CHANGE}


def _fixed_ray(body: Json) -> Any:
    """A RayCluster's or RayService's spec without replica counts and Serve's configuration."""
    spec = copy.deepcopy(dict(body["spec"]))
    spec.pop("serveConfigV2", None)
    for group in spec.get("rayClusterConfig", spec).get("workerGroupSpecs", []):
        for field in GROUP_MAY_CHANGE:
            group.pop(field, None)
    return spec
