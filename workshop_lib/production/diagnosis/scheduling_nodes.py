"""Nodes that a pod may not have: reserved by a taint, or without the labels that it asks for."""

from __future__ import annotations

import re

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.placement import CONTROL_PLANE, untolerated
from workshop_lib.production.diagnosis.view import Json, View, ref

__all__ = ["cause_of", "selector", "taint"]

_TAINT = re.compile(r"\{([^:}]+): ?([^}]*)\}")


def cause_of(pod: Json, rule: str, key: str, text: str, fix: str, message: str,
           lesson: str = Lesson.WHEN, **more: object) -> Cause:  # fmt: skip
    """A cause for which a pod waits for a node.

    Args:
        pod: The pod.
        rule: The rule's name.
        key: Two causes of one rule and key are the same.
        text: What is wrong.
        fix: What mends it.
        message: What the scheduler said.
        lesson: Where it is taught.
        more: Other fields of a cause; `first`: objects that come before the pod.
    """
    objects = [*more.pop("first", []), ref(pod)]  # type: ignore[misc]
    return Cause(
        rule, key, text, [message], fix, lesson, objects, Depth.SCHEDULING,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def taint(view: View, pod: Json, message: str, detail: str) -> Cause:
    """The taint that keeps a pod from nodes, with the toleration that would let it in.

    Args:
        view: The snapshot.
        pod: The pod.
        message: What the scheduler said.
        detail: Its reason that speaks of taints; it may name none ("untolerated taint(s)").
    """
    found = _TAINT.search(detail)
    key, value = (found[1].strip(), found[2].strip()) if found else ("", "")
    known = [(ref(node), each) for node in view.nodes for each in untolerated(pod, node)]
    if not key and known:  # nobody means to run on the control plane
        named = [t for _, t in known if t.get("key") not in CONTROL_PLANE] or [known[0][1]]
        key, value = str(named[0].get("key")), str(named[0].get("value") or "")
    same = [(node, each) for node, each in known if not key or each.get("key") == key]
    nodes = list(dict.fromkeys(node for node, _ in same))
    effect = next((str(each["effect"]) for _, each in same if each.get("effect")), "NoSchedule")
    if key.startswith("node.kubernetes.io/"):
        return _node_taint(view, pod, message, key, nodes)
    shown = f"{key}={value}" if value else key or "a taint"
    return cause_of(
        pod, "taint-not-tolerated", key or view.top(pod),
        f"The nodes that could take the pod are reserved by the taint {shown}, and the pod has no "
        "toleration for it.",
        f"add to the pod's spec: tolerations: [{{key: {key or '<key>'}, operator: Exists, effect: "
        f"{effect}}}]; or use nodes without that taint", message, Lesson.RAY_JOB, first=[],
    )  # fmt: skip


_NODE_TAINTS = {
    "not-ready": "are not ready", "unreachable": "cannot be reached",
    "unschedulable": "are cordoned: they take no new pods", "disk-pressure": "have a full disk",
    "memory-pressure": "are out of memory", "pid-pressure": "run too many processes",
    "network-unavailable": "have no network yet",
    "out-of-service": "are out of service",
}  # fmt: skip


def _node_taint(view: View, pod: Json, message: str, key: str, nodes: list[str]) -> Cause:
    what = key.rpartition("/")[2]
    words = _NODE_TAINTS.get(what, f"are marked {what}")
    rule = "nodes-cordoned" if what == "unschedulable" else "node-" + what
    return cause_of(
        pod, rule, what, f"No node takes the pod, because the nodes {words} (taint {key}).",
        "kubectl uncordon <node> when the work on it is done" if what == "unschedulable" else
        "kubectl describe node says why; on EKS: look at the instance, its kubelet and the CNI "
        "pods (kubectl get pods -n kube-system -o wide), or replace the node",
        message, Lesson.WHEN,  waits_for=set(nodes),
    )  # fmt: skip


def _affinity(spec: Json) -> str:
    """What the required node affinity asks for, in a few words."""
    required = (((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution") or {})  # fmt: skip
    words = [
        f"{e.get('key')} {e.get('operator')} {', '.join(e.get('values') or [])}".strip()
        for term in required.get("nodeSelectorTerms") or []
        for e in [*(term.get("matchExpressions") or []), *(term.get("matchFields") or [])]
    ]
    return "; ".join(words[:4]) or "other labels than nodes have"


def selector(view: View, pod: Json, message: str) -> Cause:
    """The labels that a pod asks of its node, and that no node has.

    Args:
        view: The snapshot.
        pod: The pod.
        message: What the scheduler said.
    """
    spec = pod.get("spec") or {}
    labels = spec.get("nodeSelector") or {}
    missing = []
    for key, value in labels.items():
        have = {((n.get("metadata") or {}).get("labels") or {}).get(key) for n in view.nodes}
        if value not in have:
            others = sorted(x for x in have if x)
            missing.append(f"{key}={value}" + (f" (nodes have {', '.join(others[:4])})"
                                               if others else ""))  # fmt: skip
    asked = ", ".join(missing or [f"{k}={v}" for k, v in labels.items()])
    asked = asked or "what its node affinity says"
    return cause_of(
        pod, "node-selector", view.top(pod),
        f"The pod may only run on nodes with the label {asked}, and no node that is free to take "
        "it has that." if labels else
        f"The pod's node affinity asks for {_affinity(spec)}, and no node that is free to take it "
        "has that.",
        "compare kubectl get nodes --show-labels with nodeSelector and affinity in the pod's spec; "
        "correct the value, or add nodes of that kind", message, Lesson.RAY_JOB,
    )  # fmt: skip
