"""Pods that no node takes: the scheduler's words, the nodes where they are known, new nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.cluster.kube import parse_quantity, requests_of
from workshop_lib.production.diagnosis.cause import Cause, Level, Report, Stage, cause_of
from workshop_lib.production.diagnosis.patterns import Match, apply_claim, fact, patterns
from workshop_lib.production.diagnosis.view import Json, Pod, View

__all__ = ["unscheduled"]

_REASON = re.compile(r"(\d+) (.+?)(?=, \d+ [A-Zn(]|$)")
_HEAD = re.compile(r"nodes are available: (.*?)(?:\. *(?:preemption:|no new claims|not found|$)|$)")
_LACKS = re.compile(r"Insufficient (\S+)")
_TAINT = re.compile(r"\{([^:}]+):? ?([^}]*)\}")
_CONTROL_PLANE = re.compile(r"node-role\.kubernetes\.io/(?:control-plane|master)")

SOON_S, NODE_COMES_S = 30.0, 600.0
"""How long the scheduler takes to say something, and a machine with GPUs to come."""


def unscheduled(view: View, report: Report, pod: Pod) -> Iterator[Cause]:
    """Why no node takes a pod; nothing while the scheduler or a new node may still come."""
    condition = pod.conditions.get("PodScheduled", {})
    if pod.node or condition.get("status") == "True" or pod.over:
        return
    gates = ", ".join(each.get("name", "") for each in pod.spec.get("schedulingGates") or [])
    said = [event.message for event in view.events(pod.ref, "FailedScheduling")]
    message = str(condition.get("message") or "") or (said[-1] if said else "")
    if gates:
        yield _cause(pod, fact("scheduling-gate", pod=pod.name, gates=gates), message or gates)
    elif message:
        yield from _explain(view, report, pod, message)
    elif view.age_s(pod.made) <= SOON_S:
        report.starts([pod.ref], f"{pod.ref}: the scheduler has not come to it yet")
    else:
        keys = ("resourceClaimName", "resourceClaimTemplateName", "name")
        claims = [
            next(c[k] for k in keys if c.get(k)) for c in pod.spec.get("resourceClaims") or []
        ]
        scheduler = pod.spec.get("schedulerName") or "default-scheduler"
        if claims:
            match = fact("resource-claim", pod=pod.name, claims=", ".join(claims))
            yield _cause(pod, match, claims[0])
        elif scheduler != "default-scheduler":
            yield _cause(pod, fact("scheduler-missing", pod=pod.name, name=scheduler), scheduler)


def _cause(pod: Pod, match: Match, *evidence: str, **more: object) -> Cause:
    options = {"since": pod.made, **more}
    return cause_of(match, [pod.ref], evidence, Stage.SCHEDULING, **options)  # type: ignore[arg-type]


def _explain(view: View, report: Report, pod: Pod, message: str) -> Iterator[Cause]:
    match = patterns("start").match(message)
    if match and match.about.startswith("PersistentVolumeClaim"):
        match = match.add(apply_claim=apply_claim(match.groups["name"]))
        yield cause_of(match, [pod.ref], [message], Stage.VOLUMES)
        return
    if re.search("unbound immediate PersistentVolumeClaims|ephemeral volume controller", message):
        names = {f"PersistentVolumeClaim/{name}" for name in pod.claims}
        unbound = fact("pvc-unbound", pod=pod.name)
        yield _cause(pod, unbound, message, level=Level.FOLLOWS, waits_for=names)
        return
    found, told = _of_nodes(view, pod, message), _who_adds_nodes(view, pod)
    failed = next((m for text in told if (m := patterns("node-group").match(text))), None)
    told_s = view.events(pod.ref, "TriggeredScaleUp", "Nominated", "NotTriggerScaleUp")
    promised = bool(told_s) and told_s[-1].reason != "NotTriggerScaleUp"
    if failed and re.search(r"asks for|no node|waits for a node", found.cause):
        asks = re.match(r"[^;:.]*asks for [^,;.]+", found.cause)
        said = next(text for text in told if patterns("node-group").match(text))
        cause = _cause(pod, failed, said, *found.evidence, key=failed.rule)
        cause.cause = f"{asks[0]}. {cause.cause}" if asks else cause.cause
        yield cause
    elif promised and view.age_s(told_s[-1].time) <= NODE_COMES_S:
        report.starts([pod.ref], f"{pod.ref}: waits for a node that is being added: {told[-1]}")
    else:
        found.evidence += [text for text in told[-2:] if text not in found.evidence]
        found.cause += " A node was promised, and has not come." if promised else ""
        mates = [each for each in view.pods_of(pod.top) if "Preempt" in str(each.status)]
        found.waits_for |= {each.ref for each in mates if each is not pod}
        yield found


def _who_adds_nodes(view: View, pod: Pod) -> list[str]:
    """What Karpenter and the cluster autoscaler say: of the node for the pod, then of the pod."""
    events = view.events(pod.ref, "TriggeredScaleUp", "Nominated", "NotTriggerScaleUp")[-1:]
    karpenter = view.events(pod.ref, "FailedScheduling")
    events += [e for e in karpenter if re.search("nodepool|nodeclaim|instance type", e.message)][
        -1:
    ]
    said = [event.message for event in events]
    claimed = re.findall(r"nodeclaim/([\w.-]+)", " ".join(said))
    subjects = [f"NodeClaim/{name}" for name in claimed] or view.subjects("NodeClaim")
    subjects += view.subjects("NodePool", "EC2NodeClass", "NodeGroup")
    told = [e for subject in subjects for e in view.events(subject, warnings=True)]
    return [f"{e.reason}: {e.message}" for e in sorted(told, key=lambda e: -e.time)] + said


def _of_nodes(view: View, pod: Pod, message: str) -> Cause:
    """What the scheduler's reasons mean, together with the nodes where they were read."""
    if re.search(r"no nodes available|0/0 nodes are available", message, re.IGNORECASE):
        return _cause(pod, fact("no-nodes", pod=pod.name), message)
    head = _HEAD.search(message)
    reasons = [text.strip(" .") for _, text in _REASON.findall(head[1].strip(" ."))] if head else []
    nodes = view.items("Node")
    wanted = {
        key: much for key, much in requests_of({"containers": [], **pod.spec}).items() if much
    }
    lacks = [found[1].rstrip(".,") for each in reasons if (found := _LACKS.search(each))]
    lacks.sort(key=lambda name: "/" not in name)  # devices first
    for resource in lacks:
        most = max((_offers(node, resource) for node in nodes), default=0.0)
        if nodes and (not most or wanted.get(resource, 0.0) > most):
            return _short(pod, resource, wanted.get(resource, 0.0), message, most=most)
    able = [n for n in nodes if all(_offers(n, each) >= much for each, much in wanted.items())]
    barred = any(_taints(pod, node) or not _selected(pod, node) for node in able)
    others = [r for r in reasons if not _LACKS.search(r) and not _CONTROL_PLANE.search(r)]
    for reason in others if barred or not nodes or not lacks else []:
        if match := patterns("scheduler").match(reason):
            return _known(pod, match, reason, message, able or nodes)
    if lacks:
        return _short(pod, lacks[0], wanted.get(lacks[0], 0.0), message, seen=bool(nodes))
    for reason in [*reasons, message]:
        if match := patterns("scheduler").match(reason):
            return _known(pod, match, reason, message, nodes)
    match = fact("scheduler-refuses", pod=pod.name, message=message)
    return _cause(pod, match, message, level=Level.FAILED)


def _short(
    pod: Pod, resource: str, amount: float, message: str, most: float = -1.0, seen: bool = True
) -> Cause:
    """A resource that is short: no node has any, none has so much, others hold it, or unknown."""
    stem = "gpu" if "gpu" in resource else resource.rpartition("/")[2]
    words = {
        "pod": pod.name,
        "ask": _amount(resource, amount) if amount else resource,
        "resource": resource,
    }
    words |= {"most": _amount(resource, max(most, 0.0)), "stem": stem}
    if not most and "/" in resource:
        rule = "gpu-not-offered" if stem == "gpu" else "device-not-offered"
        return _cause(pod, fact(rule, **words), message, key=resource)
    name = "too-large" if most >= 0 else "insufficient" if seen else "insufficient-not-known"
    cause = _cause(pod, fact(name, **words), message, key=resource + pod.top * (most >= 0))
    cause.rule = f"{stem}-too-large" if most >= 0 else f"insufficient-{stem}"
    return cause


def _offers(node: Json, resource: str) -> float:
    status = node["status"]
    return parse_quantity(
        (status.get("allocatable") or status.get("capacity") or {}).get(resource, 0)
    )


def _taints(pod: Pod, node: Json) -> list[Json]:
    """A node's taints that keep a pod away."""

    def tolerates(each: Json, taint: Json) -> bool:
        same = each.get("key") in (None, "", taint.get("key"))
        effect = each.get("effect") in (None, "", taint.get("effect"))
        equal = (each.get("value") or "") == (taint.get("value") or "")
        return same and effect and (each.get("operator") == "Exists" or equal)

    hard = [t for t in node["spec"].get("taints") or [] if t.get("effect") != "PreferNoSchedule"]
    tolerations = pod.spec.get("tolerations") or []
    return [taint for taint in hard if not any(tolerates(each, taint) for each in tolerations)]


def _selected(pod: Pod, node: Json) -> bool:
    labels, selector = node["metadata"].get("labels") or {}, pod.spec.get("nodeSelector") or {}
    affinity = (pod.spec.get("affinity") or {}).get("nodeAffinity")
    return not affinity and all(labels.get(k) == v for k, v in selector.items())


def _known(pod: Pod, match: Match, reason: str, message: str, nodes: list[Json]) -> Cause:
    """A reason that a pattern knows, with what the pod and the nodes say of it."""
    named = _TAINT.search(reason)
    taints = [(t["key"], t.get("value") or "") for node in nodes for t in _taints(pod, node)]
    taints = [each for each in taints if not _CONTROL_PLANE.search(each[0])] or [("", "")]
    key, value = (named[1].strip(), named[2].strip()) if named else taints[0]
    if match.rule == "taint-not-tolerated" and key.startswith("node.kubernetes.io/"):
        match = patterns("scheduler").match(key) or match
    selector: Json = pod.spec.get("nodeSelector") or {}
    affinity = str((pod.spec.get("affinity") or {}).get("nodeAffinity") or "its node affinity")
    have = {k: {(n["metadata"].get("labels") or {}).get(k) for n in nodes} for k in selector}
    others = {k: sorted(filter(None, v)) for k, v in have.items() if selector[k] not in v}
    spread = [str(s.get("topologyKey")) for s in pod.spec.get("topologySpreadConstraints") or []]
    match = match.add(
        taint=f"the taint {key}{f'={value}' if value else ''}"
        if key
        else "a taint that the scheduler's message does not name",
        taint_key=key or "<key>",
        selector=", ".join(f"{k}={v}" for k, v in selector.items()) or affinity,
        node_labels="".join(f" Nodes have {k}={', '.join(v)}." for k, v in others.items() if v),
        spread=", ".join(spread),
    )
    names = {f"Node/{node['metadata']['name']}" for node in nodes}
    waits_for = names if match.rule == "node-not-ready" else set()
    cause = _cause(pod, match, message, key=f"{pod.top}/{key}", waits_for=waits_for)
    cause.cause = f"{pod.name} waits for a node. {cause.cause}"
    return cause


def _amount(resource: str, amount: float) -> str:
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages"):
        return f"{amount / 2**30:.4g} GiB of {resource}"
    return f"{amount:g} {resource}"
