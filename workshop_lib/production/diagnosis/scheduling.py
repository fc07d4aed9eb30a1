"""Pods that no node takes: the scheduler's words, the nodes where they are known, new nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workshop_lib.cluster.kube import parse_quantity, requests_of
from workshop_lib.production.diagnosis.cause import Cause, Level, Report, Stage, cause_of
from workshop_lib.production.diagnosis.patterns import Match, apply_claim, fact, patterns
from workshop_lib.production.diagnosis.view import Json, Pod, View

__all__ = ["unscheduled"]

SOON_S, NODE_COMES_S = 30.0, 600.0
"""How long the scheduler takes to say something, and a machine with GPUs to come."""

_REASON = re.compile(r"(\d+) (.+?)(?=, \d+ [A-Zn(]|$)")
_HEAD = re.compile(r"nodes are available: (.*?)(?:\. *(?:preemption:|no new claims|not found|$)|$)")
_LACKS = re.compile(r"Insufficient (\S+)")
_TAINT = re.compile(r"\{([^:}]+):? ?([^}]*)\}")
_CONTROL_PLANE = re.compile(r"node-role\.kubernetes\.io/(?:control-plane|master)")
_ADDS_NODES = ("TriggeredScaleUp", "Nominated", "NotTriggerScaleUp")


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
        keys, asked = ("resourceClaimName", "resourceClaimTemplateName", "name"), []
        for claim in pod.spec.get("resourceClaims") or []:
            asked.append(next(claim[key] for key in keys if claim.get(key)))
        scheduler = pod.spec.get("schedulerName") or "default-scheduler"
        if asked:
            match = fact("resource-claim", pod=pod.name, claims=", ".join(asked))
            yield _cause(pod, match, asked[0])
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
    known = [(text, m) for text in told if (m := patterns("node-group").match(text))]
    events = view.events(pod.ref, *_ADDS_NODES)
    promised = bool(events) and events[-1].reason != "NotTriggerScaleUp"
    if known and re.search(r"asks for|no node|waits for a node", found.cause):
        said, failed = known[0]
        asks = re.match(r"[^;:.]*asks for [^,;.]+", found.cause)
        cause = _cause(pod, failed, said, *found.evidence, key=failed.rule)
        cause.cause = f"{asks[0]}. {cause.cause}" if asks else cause.cause
        yield cause
    elif promised and view.age_s(events[-1].time) <= NODE_COMES_S:
        report.starts([pod.ref], f"{pod.ref}: waits for a node that is being added: {told[-1]}")
    else:
        found.evidence += [text for text in told[-2:] if text not in found.evidence]
        found.cause += " A node was promised, and has not come." if promised else ""
        mates = [each for each in view.pods_of(pod.top) if "Preempt" in str(each.status)]
        found.waits_for |= {each.ref for each in mates if each is not pod}
        yield found


def _who_adds_nodes(view: View, pod: Pod) -> list[str]:
    """What Karpenter and the cluster autoscaler say: of the node for the pod, then of the pod."""
    own = [e.message for e in view.events(pod.ref, *_ADDS_NODES)[-1:]]
    refused = [e.message for e in view.events(pod.ref, "FailedScheduling")]
    own += [each for each in refused if re.search("nodepool|nodeclaim|instance type", each)][-1:]
    claimed = re.findall(r"nodeclaim/([\w.-]+)", " ".join(own))
    subjects = [f"NodeClaim/{name}" for name in claimed] or view.subjects("NodeClaim")
    subjects += view.subjects("NodePool", "EC2NodeClass", "NodeGroup")
    told = [e for subject in subjects for e in view.events(subject, warnings=True)]
    return [f"{e.reason}: {e.message}" for e in sorted(told, key=lambda e: -e.time)] + own


def _of_nodes(view: View, pod: Pod, message: str) -> Cause:
    """What the scheduler's reasons mean, together with the nodes where they were read."""
    if re.search(r"no nodes available|0/0 nodes are available", message, re.IGNORECASE):
        return _cause(pod, fact("no-nodes", pod=pod.name), message)
    head, nodes = _HEAD.search(message), view.items("Node")
    reasons = [text.strip(" .") for _, text in _REASON.findall(head[1].strip(" ."))] if head else []
    every = requests_of({"containers": [], **pod.spec})
    wanted = {key: much for key, much in every.items() if much}
    lacks = [found[1].rstrip(".,") for each in reasons if (found := _LACKS.search(each))]
    lacks.sort(key=lambda name: "/" not in name)  # devices first
    for resource in lacks:
        most = max((_offers(node, resource) for node in nodes), default=0.0)
        if nodes and (not most or wanted.get(resource, 0.0) > most):
            return _short(pod, resource, wanted.get(resource, 0.0), message, most)
    # Where a node could hold the pod and does not take it, what keeps the pod away is the cause.
    able = [n for n in nodes if all(_offers(n, each) >= much for each, much in wanted.items())]
    barred = any(_taints(pod, node) or not _selected(pod, node) for node in able)
    others = [r for r in reasons if not _LACKS.search(r) and not _CONTROL_PLANE.search(r)]
    for reason in others if barred or not nodes or not lacks else []:
        if match := patterns("scheduler").match(reason):
            return _known(pod, match, reason, message, able or nodes)
    if lacks:
        cause = _short(pod, lacks[0], wanted.get(lacks[0], 0.0), message, None if nodes else -1.0)
        cause.cause += f" Other nodes: {'; '.join(others)}." if others else ""
        return cause
    for reason in [*reasons, message]:
        if match := patterns("scheduler").match(reason):
            return _known(pod, match, reason, message, nodes)
    match = fact("scheduler-refuses", pod=pod.name, message=message)
    return _cause(pod, match, message, level=Level.FAILED)


def _short(pod: Pod, resource: str, amount: float, message: str, most: float | None) -> Cause:
    """A resource that is short: the most that a node offers; None: enough, -1: not known."""
    stem = "gpu" if "gpu" in resource else resource.rpartition("/")[2]
    asks = _amount(resource, amount) if amount else resource
    words = {"pod": pod.name, "ask": asks, "resource": resource, "stem": stem}
    if most == 0 and "/" in resource:
        rule = "gpu-not-offered" if stem == "gpu" else "device-not-offered"
        return _cause(pod, fact(rule, **words), message, key=resource)
    large = most is not None and most >= 0
    words["most"] = _amount(resource, most or 0.0)
    rule = "too-large" if large else "insufficient" if most is None else "insufficient-not-known"
    cause = _cause(pod, fact(rule, **words), message, key=resource + pod.top * large)
    cause.rule = f"{stem}-too-large" if large else f"insufficient-{stem}"
    return cause


def _offers(node: Json, resource: str) -> float:
    offered = node["status"].get("allocatable") or node["status"].get("capacity") or {}
    return parse_quantity(offered.get(resource, 0))


def _taints(pod: Pod, node: Json) -> list[Json]:

    def tolerates(each: Json, taint: Json) -> bool:
        equal = (each.get("value") or "") == (taint.get("value") or "")
        fits = all(each.get(k) in (None, "", taint.get(k)) for k in ("key", "effect"))
        return fits and (each.get("operator") == "Exists" or equal)

    hard = [t for t in node["spec"].get("taints") or [] if t.get("effect") != "PreferNoSchedule"]
    tolerations = pod.spec.get("tolerations") or []
    return [taint for taint in hard if not any(tolerates(each, taint) for each in tolerations)]


def _selected(pod: Pod, node: Json) -> bool:
    labels, selector = node["metadata"].get("labels") or {}, pod.spec.get("nodeSelector") or {}
    affinity = (pod.spec.get("affinity") or {}).get("nodeAffinity")
    return not affinity and all(labels.get(k) == v for k, v in selector.items())


def _known(pod: Pod, match: Match, reason: str, message: str, nodes: list[Json]) -> Cause:
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
    unnamed = "a taint that the scheduler's message does not name"
    match = match.add(
        taint=f"the taint {key}={value}".rstrip("=") if key else unnamed,
        taint_key=key or "<key>",
        selector=", ".join(f"{k}={v}" for k, v in selector.items()) or affinity,
        node_labels="".join(f" Nodes have {k}={', '.join(v)}." for k, v in others.items() if v),
        spread=", ".join(spread),
    )
    lost = match.rule == "node-not-ready"
    names = {f"Node/{node['metadata']['name']}" for node in nodes} if lost else set()
    cause = _cause(pod, match, message, key=f"{pod.top}/{key}", waits_for=names)
    cause.cause = f"{pod.name} waits for a node. {cause.cause}"
    return cause


def _amount(resource: str, amount: float) -> str:
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages"):
        return f"{amount / 2**30:.4g} GiB of {resource}"
    return f"{amount:g} {resource}"
