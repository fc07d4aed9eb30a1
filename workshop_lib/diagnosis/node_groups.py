"""What those who add nodes say of a pod that waits for one: Karpenter and the cluster autoscaler.

Events on the pod: Karpenter's `Nominated` ("Pod should schedule on: nodeclaim/...") and its own
`FailedScheduling` ("..., incompatible with nodepool ..."), the cluster autoscaler's
`TriggeredScaleUp` and `NotTriggerScaleUp`.
"""

from __future__ import annotations

import re

from workshop_lib.diagnosis.view import Json, View, event_time

__all__ = ["KARPENTER", "no_group", "node_comes"]

KARPENTER = re.compile(r"incompatible with nodepool|no nodepools? found|no instance type (?:which )?"
                       r"(?:satisf|has enough|met)|nodepool.*(?:limits|requirements)")  # fmt: skip

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
