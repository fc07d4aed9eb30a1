"""Pods that somebody ended, and nodes that are down: the kubelet, the scheduler, a drain.

Reasons of a pod's status (`Evicted`, `Terminated`, `OutOf...`) and of its condition
`DisruptionTarget` (pkg/kubelet/eviction, pkg/scheduler, pkg/controller/tainteviction).
"""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.view import Json, View, conditions, ref

__all__ = ["disrupted", "node_down", "preempted_mates"]

_PLACED = re.compile(r"^(?:OutOf\S+|NodeAffinity|NodeName|NodePorts|UnexpectedAdmissionError|"
                     r"TopologyAffinityError|SMTAlignmentError|PodOSNotSupported)$")  # fmt: skip


def disrupted(pod: Json, reason: str, message: str, target: Json) -> Cause | None:
    """A pod that somebody ended: the kubelet, the scheduler, a drain."""
    who, node = pod["metadata"]["name"], str((pod.get("spec") or {}).get("nodeName") or "")
    text = message or str(target.get("message") or "") or reason
    why = str(target.get("reason") or "")
    if reason == "Evicted" or (why == "TerminationByKubelet" and "low on resource" in text):
        return _evicted(pod, text, node)
    if reason in ("NodeShutdown", "Shutdown", "Terminated") and "shutdown" in text:
        return _disruption(
            pod, "node-shutdown", node, text,
            f"The node {node} was shut down under the pod: a spot instance that was taken "
            "back, a replaced or stopped machine.",
            "let a controller start it again (a Deployment, a Job with backoffLimit), resume "
            "from a checkpoint; for long training use on-demand or reserved capacity",
        )  # fmt: skip
    if _was_preempted(pod):
        return _disruption(
            pod, "preempted", ref(pod), text,
            f"The scheduler removed {who} to make room for a pod of higher priority.",
            "give it a higher priorityClassName, or add nodes", node=False,
        )  # fmt: skip
    if why == "DeletionByTaintManager" or reason in ("NodeLost", "ContainerStatusUnknown"):
        return _disruption(
            pod, "node-lost", node, text,
            f"The pod was removed with its node {node}, which did not answer any more.",
            "kubectl get nodes; spot instances end like this; resume from a checkpoint",
        )  # fmt: skip
    if why == "EvictionByEvictionAPI":
        return _disruption(
            pod, "drained", node, text,
            f"Somebody drained the node {node}: the pod was evicted through the API.",
            "wait until the work on the node is done; a PodDisruptionBudget slows drains down",
        )  # fmt: skip
    if reason == "DeadlineExceeded":
        return _disruption(
            pod, "pod-deadline", ref(pod), text,
            "The pod ran longer than its activeDeadlineSeconds allows.",
            "raise activeDeadlineSeconds in the pod's spec", node=False,
        )  # fmt: skip
    if reason == "UnexpectedAdmissionError" and (
        device := re.search(r"unhealthy devices? ([\w./-]*[\w-])|no healthy devices", text)
    ):
        what = device[1] or "devices"
        return _disruption(
            pod, "device-unhealthy", node, text,
            f"The node {node} has no healthy {what} to give to the pod: its device plugin has "
            "marked them as broken (an XID error, a driver that does not answer).",
            f"kubectl drain {node}, and replace the instance; nvidia-smi and the log of the device "
            "plugin's pod on that node say what is broken",
        )  # fmt: skip
    if reason == "TopologyAffinityError":
        return _disruption(
            pod, "node-topology", node, text,
            f"The node {node} cannot give the pod its CPUs, memory and devices from one NUMA "
            "node, as its kubelet's Topology Manager demands.",
            "ask for as much as one NUMA node has, or set the kubelet's topologyManagerPolicy to "
            "best-effort",
        )  # fmt: skip
    if reason == "NodeAffinity":
        return _disruption(
            pod, "node-refused", node, text,
            f"The node {node} refused the pod: its labels do not fit the pod's nodeSelector or "
            "affinity (any more).",
            "compare kubectl get node --show-labels with the pod's spec; take spec.nodeName out, "
            "so that the scheduler chooses, and delete the pod",
        )  # fmt: skip
    if _PLACED.match(reason):
        return _disruption(
            pod, "node-refused", node, text,
            f"The node {node} refused the pod that was sent to it ({reason}): what it asks for "
            "was taken or gone when it arrived.",
            "delete the pod, so that it is placed anew; if it repeats, the device plugin or "
            "the kubelet of that node is broken: kubectl describe node",
        )  # fmt: skip
    return None


def _was_preempted(pod: Json) -> bool:
    why = conditions(pod).get("DisruptionTarget", {}).get("reason")
    reason = (pod.get("status") or {}).get("reason")
    return why == "PreemptionByScheduler" or reason in ("Preempting", "Preempted")


def preempted_mates(view: View, pod: Json) -> set[str]:
    """The pods of the same controller that were preempted: that one waits in their place.

    Args:
        view: The snapshot.
        pod: A pod that waits for a node.
    """
    return {ref(p) for p in view.pods_of(view.top(pod)) if p is not pod and _was_preempted(p)}


def _disruption(pod: Json, rule: str, key: str, quoted: str, cause: str, fix: str, *,
                node: bool = True) -> Cause:  # fmt: skip
    name = (pod.get("spec") or {}).get("nodeName")
    first = [f"Node/{name}"] if node and name else []
    return Cause(rule, key, cause, [quoted], fix, Lesson.BELOW_SERVE, [*first, ref(pod)],
                 Depth.NODE)  # fmt: skip


def _evicted(pod: Json, text: str, node: str) -> Cause:
    who = pod["metadata"]["name"]
    if re.search(r"exceed(?:s|ed) .*limit|usage exceeds", text, re.IGNORECASE):  # fmt: skip
        volume = re.search(r'EmptyDir volume "([^"]+)"', text)
        what = f"the limit of its emptyDir {volume[1]!r}" if volume else (
            "its limit of ephemeral storage (files outside of volumes, and logs)")  # fmt: skip
        return Cause(
            "ephemeral-storage-limit", ref(pod),
            f"The kubelet evicted {who}, because it wrote more than {what}.", [text],
            "write to a mounted volume (HF_HOME and checkpoints on the shared claim), or raise "
            "limits.ephemeral-storage or the emptyDir's sizeLimit", Lesson.WHEN, [ref(pod)],
            Depth.CRASH,
        )  # fmt: skip
    found = re.search(r"low on resource: ?\[?([\w.-]+)|had condition: ?\[?(\w+)", text)
    resource = (found[1] or found[2]).strip(".") if found else "a resource"
    what = {"DiskPressure": "disk space", "MemoryPressure": "memory", "PIDPressure": "process ids",
            "ephemeral-storage": "disk space"}.get(resource, resource)  # fmt: skip
    return Cause(
        "evicted", f"{node}/{what}",
        f"The node {node} ran out of {what}, and its kubelet evicted {who}: it used more than it "
        "had requested.", [text],
        f"request as much {what} as the pod needs (resources.requests), so that it gets a node "
        "with room; enlarge the node's disk or memory, clean old images", Lesson.BELOW_SERVE,
        [f"Node/{node}", ref(pod)], Depth.NODE,
    )  # fmt: skip


def node_down(node: Json, pods: list[str]) -> Cause:
    """A node that is not ready, or does not answer."""
    name = node["metadata"]["name"]
    ready = conditions(node).get("Ready", {})
    silent = ready.get("status") == "Unknown"
    message = str(ready.get("message") or ready.get("reason") or "NotReady")
    network = "network" in message.lower() or "cni" in message.lower()
    why = ("its kubelet has stopped reporting: the machine is gone, frozen or cut off" if silent
           else "its network plugin (CNI) is not ready" if network
           else "its kubelet says that it is not ready")  # fmt: skip
    return Cause(
        "node-not-ready", name, f"The node {name} cannot run pods: {why}.", [message],
        f"kubectl describe node {name}; on EKS look at the instance (spot interruption, status "
        "checks) and at the aws-node pod; drain and replace it when it does not come back",
        Lesson.BELOW_SERVE, [f"Node/{name}", *pods], Depth.NODE,
    )  # fmt: skip
