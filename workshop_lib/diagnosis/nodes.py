"""Nodes that are not ready or run out of something, with the pods on them."""

from __future__ import annotations

from collections.abc import Iterator

from workshop_lib.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.diagnosis.disruptions import node_down
from workshop_lib.diagnosis.view import View, conditions, ref

__all__ = ["node_causes"]

_PRESSURE = {
    "MemoryPressure": ("memory", "see what uses it (kubectl top pods), set memory requests and "
                       "limits, or use larger nodes"),
    "DiskPressure": ("disk space", "clean up images and logs on it, or give the nodes a larger "
                     "root volume (model images need 100 GiB and more)"),
    "PIDPressure": ("process ids", "find the pod that starts so many processes"),
    "NetworkUnavailable": ("a network", "look at the CNI's pod on that node"),
}  # fmt: skip


def node_causes(view: View) -> Iterator[Cause]:
    """What is wrong with nodes."""
    for node in view.nodes:
        name = node["metadata"]["name"]
        found = conditions(node)
        on_it = [
            ref(pod) for pod in view.pods
            if (pod.get("spec") or {}).get("nodeName") == name
            and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        ]  # fmt: skip
        if found.get("Ready", {}).get("status") in ("False", "Unknown"):
            yield node_down(node, on_it)
            continue
        for kind, (what, fix) in _PRESSURE.items():
            if found.get(kind, {}).get("status") == "True":
                yield Cause(
                    "evicted" if kind != "NetworkUnavailable" else "node-not-ready",
                    f"{name}/{what}",
                    f"The node {name} runs out of {what} ({kind}): it takes no new pods, and "
                    "evicts some that it has.",
                    [str(found[kind].get("message") or kind)], fix, Lesson.BELOW_SERVE,
                    [ref(node)], Depth.NODE,
                )  # fmt: skip
