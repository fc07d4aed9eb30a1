"""What the scheduler's reasons mean, where one sentence says it all: cause, fix, where taught."""

from __future__ import annotations

from workshop_lib.diagnosis.cause import Lesson

__all__ = ["TEXTS"]

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
