"""Nodes that are not ready or run out of something, with the pods on them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.disruptions import node_down
from workshop_lib.production.diagnosis.view import Json, View, conditions, event_time, ref

__all__ = ["gpu_broken", "node_causes"]

_PRESSURE = {
    "MemoryPressure": ("memory", "see what uses it (kubectl top pods), set memory requests and "
                       "limits, or use larger nodes"),
    "DiskPressure": ("disk space", "clean up images and logs on it, or give the nodes a larger "
                     "root volume (model images need 100 GiB and more)"),
    "PIDPressure": ("process ids", "find the pod that starts so many processes"),
    "NetworkUnavailable": ("a network", "look at the CNI's pod on that node"),
}  # fmt: skip


_KUBELETS = frozenset({"Ready", *_PRESSURE})
_BAD_WHEN_TRUE = re.compile(r"Deadlock|Readonly|ReadOnly|Frequent|Corrupt|Problem|Failure|Unhealthy"
                            r"|Error|Hung|Taint|Unregister")  # fmt: skip
_GPU = re.compile(r"\bXid\b|NVRM|fallen off the bus|uncorrectable ECC|DCGM|\bGPU\b|"
                  r"Accelerated", re.IGNORECASE)  # fmt: skip
_GPU_FAULT = re.compile(r"\bXid\b|fallen off the bus|uncorrectable ECC", re.IGNORECASE)
_RECENT_S = 3600.0


def _evicts(view: View, name: str) -> bool:
    """Whether a pod of the snapshot was evicted from a node: then that is one thing with it."""
    return any(
        (pod.get("status") or {}).get("reason") == "Evicted"
        and (pod.get("spec") or {}).get("nodeName") == name
        for pod in view.pods
    )


def _reported(view: View, node: Json, on_it: list[str]) -> Iterator[Cause]:
    """What watchers of the node say: node-problem-detector, EKS's node monitoring agent.

    Their conditions are `KernelDeadlock` (bad when true) or `AcceleratedHardwareReady` (bad when
    false); their events may name an XID.
    """
    name = node["metadata"]["name"]
    for kind, each in conditions(node).items():
        bad = each.get("status") == "True" if _BAD_WHEN_TRUE.search(kind) else (
            kind.endswith(("Ready", "Healthy")) and each.get("status") == "False")  # fmt: skip
        if kind in _KUBELETS or not bad:
            continue
        said = str(each.get("message") or each.get("reason") or kind)
        yield _sick(name, f"{kind} {each.get('reason') or ''} {said}", said, on_it)
        return
    for event in reversed(view.events(node)):
        said = str(event.get("message") or "")
        lately = view.now - event_time(event) < _RECENT_S
        if lately and event.get("type") != "Normal" and _GPU_FAULT.search(said):
            yield _sick(name, said, said, on_it)
            return


def gpu_broken(view: View, node: Json | None) -> bool:
    """Whether something that watches a node says that a GPU of it is broken."""
    return node is not None and any(
        cause.rule == "gpu-fault" for cause in _reported(view, node, [])
    )


def _sick(name: str, words: str, said: str, on_it: list[str]) -> Cause:
    """A node that runs, and of which a watcher says that something in it is broken."""
    if _GPU.search(words):
        return Cause(
            "gpu-fault", name,
            f"A GPU of the node {name} is broken or gone, says what watches the node: {said}",
            [said], f"kubectl drain {name}, and replace the instance; nvidia-smi -q -d ECC and "
            "dmesg | grep -i xid on the node say which GPU", Lesson.WHEN,
            [f"Node/{name}", *on_it], Depth.NODE,
        )  # fmt: skip
    return Cause(
        "node-unhealthy", name, f"What watches the node {name} reports a fault of it: {said}",
        [said], f"kubectl describe node {name}; drain and replace it when it does not recover",
        Lesson.BELOW_SERVE, [f"Node/{name}", *on_it], Depth.NODE,
    )  # fmt: skip


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
            down = node_down(node, on_it)
            down.background = not on_it
            yield down
            continue
        yield from _reported(view, node, on_it)
        for kind, (what, fix) in _PRESSURE.items():
            if found.get(kind, {}).get("status") == "True":
                rule = "evicted" if _evicts(view, name) else "node-pressure"
                yield Cause(
                    rule if kind != "NetworkUnavailable" else "node-not-ready",
                    f"{name}/{what}",
                    f"The node {name} runs out of {what} ({kind}): it takes no new pods, and "
                    "evicts some that it has.",
                    [str(found[kind].get("message") or kind)], fix, Lesson.BELOW_SERVE,
                    [ref(node)], Depth.NODE, background=True,
                )  # fmt: skip
