"""What those who add nodes say of a pod that waits for one: Karpenter and the cluster autoscaler.

Events on the pod: Karpenter's `Nominated` ("Pod should schedule on: nodeclaim/...") and its own
`FailedScheduling` ("..., incompatible with nodepool ..."), the cluster autoscaler's
`TriggeredScaleUp` and `NotTriggerScaleUp`.
"""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Cause, Lesson
from workshop_lib.production.diagnosis.view import Json, View, event_time

_NO_MACHINES = re.compile(r"Insufficient(?:Instance)?Capacity|insufficient capacity|"
                          r"UnfulfillableCapacity|no capacity", re.IGNORECASE)  # fmt: skip
_LIMITS = re.compile(r"exceeds? limits|limits? (?:exceeded|reached)|max node group size reached|"
                     r"max cluster (?:cpu|memory|gpu)", re.IGNORECASE)  # fmt: skip
_LACKS = re.compile(
    r"^(?:insufficient-|gpu-not-offered|device-not-offered|too-many-pods)|-too-large$"
)

__all__ = ["KARPENTER", "no_group", "node_comes", "not_added", "plugin_says"]

KARPENTER = re.compile(r"incompatible with nodepool|no nodepools? found|no instance type "
                       r"(?:which )?(?:satisf|has enough|met)|"
                       r"nodepool.*(?:limits|require)")  # fmt: skip

_STARTS_S = 600.0
"""A machine with GPUs needs minutes to come; after so long it does not come."""


def node_comes(view: View, pod: Json) -> str:
    """What says that a node for the pod is on its way; empty when nothing does, or not for long.

    Args:
        view: The snapshot.
        pod: A pod that waits for a node.
    """
    said = view.events(pod, "TriggeredScaleUp", "Nominated", "NotTriggerScaleUp")
    if not said or said[-1].get("reason") == "NotTriggerScaleUp" or _no_machines(view, said[-1]):
        return ""
    late = view.now - event_time(said[-1]) > _STARTS_S
    return "" if late else str(said[-1].get("message") or said[-1].get("reason"))


def no_group(view: View, pod: Json) -> str:
    """Why no node is added for a pod, in the words of who adds nodes; empty when nobody says.

    Args:
        view: The snapshot.
        pod: A pod that waits for a node.
    """
    said = view.events(pod, "TriggeredScaleUp", "Nominated", "NotTriggerScaleUp")
    if said and (machines := _no_machines(view, said[-1])):
        return machines
    for event in reversed(view.events(pod, "NotTriggerScaleUp", "FailedScheduling")):
        message = str(event.get("message") or "")
        if event.get("reason") == "NotTriggerScaleUp" or KARPENTER.search(message):
            return message
    return ""


def _no_machines(view: View, nominated: Json) -> str:
    """What says that the cloud has no machine for the NodeClaim that a pod was promised."""
    claim = re.search(r"nodeclaim/([\w.-]+)", str(nominated.get("message") or ""))
    if claim is None:
        return ""
    said = [str(event.get("message") or "") for event in view.events(f"NodeClaim/{claim[1]}")]
    return next((text for text in reversed(said) if _NO_MACHINES.search(text)), "")


def not_added(found: Cause, refused: str) -> None:
    """Say of a pod that lacks room why nobody adds a node, when that is what is to be mended.

    Args:
        found: Why no node takes the pod; changed when more machines would be the cure.
        refused: What Karpenter or the cluster autoscaler says.
    """
    if not _LACKS.search(found.rule):
        return
    offered = "not-offered" not in found.rule  # else there is none yet, and nothing to free
    asks = re.match(r"The pod asks for [^,;]+", found.cause)
    wants = f"{asks[0]}: no node has that free" if asks else "No node has room for the pod"
    if _NO_MACHINES.search(refused):
        found.rule, found.key = "no-capacity", "cloud"
        found.cause = (f"{wants}; one was to be added, and the cloud has no capacity: no such "
                       "machine is free now.")  # fmt: skip
        found.fix = ("allow more instance types, zones or capacity types (spot and on-demand) in "
                     "the NodePool; for P instances use a capacity reservation or a Capacity "
                     "Block")  # fmt: skip
    elif _LIMITS.search(refused):
        pool = re.search(r'nodepool:? "([^"]+)"', refused)
        who = f"Karpenter's NodePool {pool[1]}" if pool else "the node group"
        cure = (f"kubectl describe nodepool {pool[1]}; raise spec.limits" if pool
                else "raise the node group's maximum size")  # fmt: skip
        found.cause = f"{wants}, and none is added: {who} has reached its limits."
        found.fix = f"{cure}; or delete what is not needed, or ask for less"
        if not offered:
            found.rule, found.key = "node-group-limit", who
    else:
        return
    found.taught_in = Lesson.BELOW_SERVE


def plugin_says(view: View, resource: str) -> str:
    """What the device plugin's DaemonSet says of itself, as the end of a sentence.

    Args:
        view: The snapshot; it may hold no DaemonSets at all, and then nothing is said.
        resource: Such as `nvidia.com/gpu`.
    """
    if not view.knows("daemonsets"):
        return ""
    word = "efa" if "efa" in resource else resource.partition(".")[0]
    plugins = [d for d in view.items("daemonsets") if word in (name := d["metadata"]["name"])
               and "plugin" in name]  # fmt: skip
    if not plugins:
        return f" (there is no DaemonSet of a device plugin for {word})"
    status = plugins[0].get("status") or {}
    return (f" (DaemonSet {plugins[0]['metadata']['name']}: {status.get('numberReady') or 0} of "
            f"{status.get('desiredNumberScheduled') or 0} pods ready)")  # fmt: skip
