"""What the scheduler's reasons mean, where one sentence says it all: cause, fix, where taught."""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Lesson

__all__ = ["TEXTS", "devices_say"]

_NO_CLASS = re.compile(r"device ?class(?:\.resource\.k8s\.io)? \"?([\w.-]+)\"? "
                       r"(?:does not exist|not found)", re.IGNORECASE)  # fmt: skip
_NOT_MADE = re.compile(r'create the resourceclaim|resourceclaim "?[\w.-]+"? not found|'
                       r"unallocated immediate resourceclaim", re.IGNORECASE)  # fmt: skip


def devices_say(message: str) -> str:
    """What the scheduler's words about claimed devices add, as a sentence; empty for nothing.

    Args:
        message: The scheduler's message.

    Example:
        >>> devices_say("could not allocate: device class gpu.nvidia.com does not exist")
        ' There is no DeviceClass gpu.nvidia.com: its driver is not installed.'
    """
    if found := _NO_CLASS.search(message):
        return f" There is no DeviceClass {found[1]}: its driver is not installed."
    if _NOT_MADE.search(message):
        return " The ResourceClaim is not there: does the template that it is made from exist?"
    return " Every device that would fit is taken, or no node offers one."


TEXTS: dict[str, tuple[str, str, str]] = {
    "pod-anti-affinity": (
        "Each pod must have a node of its own (pod anti-affinity), and every node that would "
        "do has one of them already.",
        "add nodes (kubectl scale the node group, or raise Karpenter's limits), ask for fewer "
        "pods, or make the rule preferredDuringScheduling...", Lesson.RAY_JOB),
    "pod-affinity": (
        "The pod must run beside another pod (pod affinity), and no node has such a pod.",
        "compare spec.affinity.podAffinity with the labels of the pods: kubectl get pods "
        "--show-labels", Lesson.WHEN),
    "topology-spread": (
        "The pods must be spread evenly (topology spread), and a node where this one would "
        "keep the balance is not free.",
        "add nodes in the zone that lacks them, or set whenUnsatisfiable: ScheduleAnyway",
        Lesson.WHEN),
    "volume-zone": (
        "The pod's volume lies in a zone (or on a node) where no node can take the pod: a disk "
        "cannot move between zones.",
        "add a node in the volume's zone (kubectl get pv -o yaml shows nodeAffinity), or use a "
        "file system that every zone reaches (FSx, EFS) with a class that binds "
        "WaitForFirstConsumer", Lesson.WHEN),
    "volume-not-found": (
        "No volume fits the pod's claim on any node that could run the pod.",
        "kubectl describe pvc; kubectl get pv: size, access mode, class and zone must fit",
        Lesson.WHEN),
    "too-many-volumes": (
        "The nodes have as many volumes attached as their instance type can have.",
        "add a node, or use fewer volumes (a shared file system counts once)", Lesson.WHEN),
    "claim-in-use": (
        "The pod's claim is for one pod at a time (ReadWriteOncePod), and another pod uses it.",
        "delete the pod that holds the claim (kubectl describe pvc lists 'Used By'), or make the "
        "claim anew with ReadWriteOnce or ReadWriteMany", Lesson.WHEN),
    "storage-full": (
        "The storage behind the class has not enough room left for this claim.",
        "ask for less, or add storage (kubectl get csistoragecapacities)", Lesson.WHEN),
    "host-port-taken": (
        "The pod wants a port of the node itself (hostPort, or hostNetwork), and another pod "
        "has that port on every node.",
        "take hostPort or hostNetwork out (a Service needs neither), or run one such pod a "
        "node", Lesson.RAY_JOB),
    "too-many-pods": (
        "The nodes run as many pods as they may; on EKS that is bounded by the addresses that "
        "the instance type gives to pods.",
        "add a node, use a larger instance type, or turn on prefix delegation in the VPC CNI",
        Lesson.BELOW_SERVE),
    "nodes-cordoned": (
        "The nodes that would do are cordoned: they take no new pods, because somebody drains "
        "or upgrades them.",
        "kubectl uncordon <node> when the work on it is done, or add a node", Lesson.WHEN),
    "resource-claim": (
        "The devices that the pod claims (dynamic resource allocation) cannot be allocated.",
        "kubectl get resourceclaims,deviceclasses,resourceslices: does the driver run, and are "
        "devices free?", Lesson.WHEN),
}  # fmt: skip
"""By rule."""
