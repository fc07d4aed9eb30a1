"""Which nodes could take a pod, by what the snapshot knows: a small scheduler for one question.

The scheduler's message counts nodes for each reason, but does not say which nodes. Of
five nodes, three may lack GPUs and two have GPUs and a taint: what is missing is a
toleration, not GPUs. So each node is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.kube import parse_quantity, requests_of
from workshop_lib.errors import ManifestError
from workshop_lib.production.diagnosis.view import Json

__all__ = ["CONTROL_PLANE", "extended", "node_affinity_fits", "obstacles", "offered", "tolerates",
           "untolerated", "wanted"]  # fmt: skip

CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
"""Taints of nodes that are not for workloads: that they refuse a pod is as it should be."""


def wanted(pod: Json) -> dict[str, float]:
    """What a pod requests, by resource: cores, bytes or devices."""
    try:
        return requests_of(pod.get("spec") or {})
    except (ManifestError, KeyError):
        return {}


def offered(node: Json, resource: str) -> float:
    """How much of a resource a node has to give away."""
    status = node.get("status") or {}
    text = (status.get("allocatable") or status.get("capacity") or {}).get(resource, "0")
    try:
        return parse_quantity(text)
    except ManifestError:
        return 0.0


def extended(resource: str) -> bool:
    """Whether a resource is brought by a device plugin."""
    return "/" in resource and not resource.startswith("kubernetes.io/")


def tolerates(pod: Json, taint: Json) -> bool:
    """Whether a pod tolerates a taint."""
    for each in (pod.get("spec") or {}).get("tolerations") or []:
        if each.get("effect") not in (None, "", taint.get("effect")):
            continue
        if each.get("operator") == "Exists":
            if each.get("key") in (None, "", taint.get("key")):
                return True
        elif each.get("key") == taint.get("key") and (each.get("value") or "") == (
            taint.get("value") or ""
        ):
            return True
    return False


def untolerated(pod: Json, node: Json) -> list[Json]:
    """A node's taints that keep a pod away."""
    taints = (node.get("spec") or {}).get("taints") or []
    return [
        taint
        for taint in taints
        if taint.get("effect") in ("NoSchedule", "NoExecute") and not tolerates(pod, taint)
    ]


def node_affinity_fits(pod: Json, node: Json) -> bool:
    """Whether a node has the labels that a pod's nodeSelector and node affinity ask for."""
    spec = pod.get("spec") or {}
    labels = (node.get("metadata") or {}).get("labels") or {}
    if any(labels.get(k) != v for k, v in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms = affinity.get("nodeSelectorTerms")
    return not terms or any(_term_fits(term, node, labels) for term in terms)


def _term_fits(term: Json, node: Json, labels: Mapping[str, str]) -> bool:
    name = (node.get("metadata") or {}).get("name")
    fields = [({"metadata.name": name}, e) for e in term.get("matchFields") or []]
    return all(
        _expression_fits(expression, have)
        for have, expression in [*((labels, e) for e in term.get("matchExpressions") or []),
                                 *fields]
    )  # fmt: skip


def _expression_fits(each: Json, have: Mapping[str, Any]) -> bool:
    key, values = each.get("key", ""), each.get("values") or []
    value = have.get(key)
    operator = each.get("operator")
    if operator in ("Gt", "Lt"):
        try:
            number, bound = int(str(value)), int(values[0])
        except (ValueError, IndexError):
            return False
        return number > bound if operator == "Gt" else number < bound
    answers = {
        "In": value in values, "NotIn": value not in values,
        "Exists": key in have, "DoesNotExist": key not in have,
    }  # fmt: skip
    return answers.get(str(operator), True)


def obstacles(pod: Json, node: Json) -> set[str]:
    """What about a node itself keeps a pod away, whatever else runs there.

    Returns:
        Some of `selector`, `taint`, `cordoned`, and the names of resources of which the
        node has less than the pod requests even when it is empty.
    """
    found: set[str] = set()
    if not node_affinity_fits(pod, node):
        found.add("selector")
    if (node.get("spec") or {}).get("unschedulable"):
        found.add("cordoned")
    cordon = "node.kubernetes.io/unschedulable"
    if any(taint.get("key") != cordon for taint in untolerated(pod, node)):
        found.add("taint")
    found |= {
        resource
        for resource, amount in wanted(pod).items()
        if amount > offered(node, resource) + 1e-9
    }
    return found
