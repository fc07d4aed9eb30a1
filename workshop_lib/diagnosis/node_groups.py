"""What those who add nodes say of a pod that waits for one: Karpenter and the cluster autoscaler.

Events on the pod: Karpenter's `Nominated` ("Pod should schedule on: nodeclaim/...") and its own
`FailedScheduling` ("..., incompatible with nodepool ..."), the cluster autoscaler's
`TriggeredScaleUp` and `NotTriggerScaleUp`.
"""

from __future__ import annotations

import re

from workshop_lib.diagnosis.view import Json, View, event_time

__all__ = ["KARPENTER", "no_group", "node_comes", "plugin_says"]

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
    if not said or said[-1].get("reason") == "NotTriggerScaleUp":
        return ""
    late = view.now - event_time(said[-1]) > _STARTS_S
    return "" if late else str(said[-1].get("message") or said[-1].get("reason"))


def no_group(view: View, pod: Json) -> str:
    """Why no node is added for a pod, in the words of who adds nodes; empty when nobody says.

    Args:
        view: The snapshot.
        pod: A pod that waits for a node.
    """
    for event in reversed(view.events(pod, "NotTriggerScaleUp", "FailedScheduling")):
        message = str(event.get("message") or "")
        if event.get("reason") == "NotTriggerScaleUp" or KARPENTER.search(message):
            return message
    return ""


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
