"""Pods that no node takes: the scheduler's message, read together with the nodes.

The reasons are those of Kubernetes' scheduler plugins (`pkg/scheduler/framework/plugins`,
the `ErrReason...` constants), joined as "N reason" by `framework.FitError`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.disruptions import preempted_mates
from workshop_lib.production.diagnosis.node_groups import (
    KARPENTER,
    no_group,
    not_added,
    plugin_says,
)
from workshop_lib.production.diagnosis.placement import (
    CONTROL_PLANE,
    extended,
    node_affinity_fits,
    obstacles,
    offered,
    untolerated,
    wanted,
)
from workshop_lib.production.diagnosis.scheduling_nodes import cause_of, selector, taint
from workshop_lib.production.diagnosis.scheduling_texts import TEXTS, devices_say
from workshop_lib.production.diagnosis.view import Json, View, conditions, ref

__all__ = ["is_unscheduled", "parse_reasons", "unscheduled"]

_REASON = re.compile(r"(\d+) (.+?)(?=, \d+ [A-Zn(]|$)")
_HEAD = re.compile(r"nodes are available: (.*?)(?:\. *(?:preemption:|no new claims|not found|$)|$)")
_INSUFFICIENT = re.compile(r"Insufficient (\S+)")

_SOON_S = 30.0
"""A pod that was made so short a time ago may not have been looked at yet."""

# Which words stand for which rule, the most telling first.
_RULES: list[tuple[str, str]] = [
    (r"untolerated taint|had taints? .*that the pod didn't tolerate", "taint-not-tolerated"),
    (r"didn't match Pod's node affinity/selector|node\(s\) didn't match node selector"
     r"|didn't match the requested node name|plugin\(s\) \[Node(?:Affinity|Name)", "node-selector"),
    (r"anti-affinity", "pod-anti-affinity"),
    (r"pod affinity", "pod-affinity"),
    (r"topology spread", "topology-spread"),
    (r"volume node affinity conflict|no available volume zone|PersistentVolume's node affinity",
     "volume-zone"),
    (r"didn't find available persistent volumes|non-existent pv|non-existent persistentvolume",
     "volume-not-found"),
    (r"exceed max volume count", "too-many-volumes"),
    (r"ReadWriteOncePod", "claim-in-use"),
    (r"enough free storage", "storage-full"),
    (r"free ports for the requested pod ports", "host-port-taken"),
    (r"Too many pods", "too-many-pods"),
    (r"were unschedulable", "nodes-cordoned"),
    (r"claims|resource ?claim|[Dd]evice|DynamicResources", "resource-claim"),
    (r"Insufficient", "insufficient"),
]  # fmt: skip


def parse_reasons(message: str) -> list[tuple[int, str]]:
    """The counted reasons of a FailedScheduling message, what it says of preemption left out.

    Example:
        >>> parse_reasons("0/5 nodes are available: 2 Insufficient nvidia.com/gpu, 3 node(s) had "
        ...               "untolerated taint {a: b}. preemption: 0/5 nodes are available: ...")
        [(2, 'Insufficient nvidia.com/gpu'), (3, 'node(s) had untolerated taint {a: b}')]
    """
    head = _HEAD.search(message)
    if head is None:
        return []
    return [(int(n), text.strip(" .")) for n, text in _REASON.findall(head[1].strip(" ."))]


def is_unscheduled(pod: Json) -> bool:
    """Whether a pod waits for a node."""
    status = pod.get("status") or {}
    if (pod.get("spec") or {}).get("nodeName") and conditions(pod).get("PodScheduled", {}).get(
        "status"
    ) != "False":
        return False
    return status.get("phase", "Pending") == "Pending" and (
        conditions(pod).get("PodScheduled", {}).get("status") != "True"
    )


def unscheduled(view: View, pod: Json) -> Iterator[Cause]:
    """Why no node takes a pod; nothing when the scheduler may just not have come to it."""
    condition = conditions(pod).get("PodScheduled", {})
    message = str(condition.get("message") or "")
    if condition.get("reason") == "SchedulingGated" or (
        not message and (pod.get("spec") or {}).get("schedulingGates")
    ):
        yield _gated(pod, message)
        return
    if not message:
        said = [str(e.get("message") or "") for e in view.events(pod, "FailedScheduling")]
        said = [m for m in said if not KARPENTER.search(m)] or said
        message = said[-1] if said else ""
    if not message:
        if view.age_s(pod["metadata"].get("creationTimestamp")) > _SOON_S:
            yield _nobody_schedules(pod)
        return
    found = _explain(view, pod, message)
    if (refused := no_group(view, pod)) and refused not in found.evidence:
        found.evidence.append(refused)
        not_added(found, refused)
    found.waits_for |= preempted_mates(view, pod)
    yield found


def _gated(pod: Json, message: str) -> Cause:
    gates = [g.get("name", "") for g in (pod.get("spec") or {}).get("schedulingGates") or []]
    name = ", ".join(gates) or "a gate"
    return cause_of(
        pod, "scheduling-gate", name,
        f"The pod is held back by the scheduling gate {name}: until whoever set it takes it away, "
        "no node is looked for.",
        f"find out who sets {name} (a queue such as Kueue admits pods one after the other: kubectl "
        "get workloads), or remove it from spec.schedulingGates",
        message or (gates[0] if gates else "schedulingGates"),
    )  # fmt: skip


def _nobody_schedules(pod: Json) -> Cause:
    claims = [
        str(c.get("resourceClaimName") or c.get("resourceClaimTemplateName") or c.get("name"))
        for c in (pod.get("spec") or {}).get("resourceClaims") or []
    ]
    if claims:  # the scheduler does not even begin before they are there, and says nothing
        return cause_of(
            pod, "resource-claim", ",".join(claims),
            f"The pod waits for the devices that it claims ({', '.join(claims)}, dynamic resource "
            "allocation): until the ResourceClaim is there, no node is looked for.",
            "kubectl get resourceclaims,resourceclaimtemplates,deviceclasses; make the claim, or "
            "correct its name in spec.resourceClaims", claims[0],
        )  # fmt: skip
    name = (pod.get("spec") or {}).get("schedulerName", "default-scheduler")
    if name != "default-scheduler":
        return cause_of(
            pod, "scheduler-missing", name,
            f"The pod asks for the scheduler {name!r}, and no scheduler has said a word about it: "
            "there is none of that name, or it does not run.",
            "take spec.schedulerName out, or install that scheduler", name,
        )  # fmt: skip
    return Cause(
        "unknown", ref(pod), "The pod waits for a node, and the scheduler has not said why.",
        ["Pending"], f"look at: kubectl describe pod {pod['metadata']['name']}; and whether the "
        "scheduler runs: kubectl get pods -n kube-system", Lesson.WHEN, [ref(pod)], Depth.UNKNOWN,
        waits_for={f"PersistentVolumeClaim/{name}" for name in claim_names(pod)},
    )  # fmt: skip


def _explain(view: View, pod: Json, message: str) -> Cause:
    lowered = message.lower()
    if "no nodes available to schedule pods" in lowered or "0/0 nodes are available" in lowered:
        return cause_of(
            pod, "no-nodes", "nodes", "The cluster has no node at all that could run a pod.",
            "kubectl get nodes; scale the node group up, or look at Karpenter's NodePool: kubectl "
            "get nodepools,nodeclaims", message, Lesson.BELOW_SERVE,
        )  # fmt: skip
    if claim := _claim_trouble(view, pod, message):
        return claim
    if KARPENTER.search(message):
        return cause_of(
            pod, "no-node-group", "nodepools",
            "No node has room for the pod, and Karpenter cannot add one: none of its NodePools "
            "allows an instance type that has what the pod asks for.",
            "compare the pod's requests, nodeSelector and tolerations with: kubectl describe "
            "nodepools; add a NodePool (GPU instance types, zones, capacity type, limits)",
            message, Lesson.BELOW_SERVE,
        )  # fmt: skip
    reasons = parse_reasons(message)
    rule, detail = _primary(view, pod, message, reasons)
    return _of_rule(view, pod, message, reasons, rule, detail)


def _claim_trouble(view: View, pod: Json, message: str) -> Cause | None:
    """What the scheduler says of a pod's claims before it looks at nodes."""
    found = re.search(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted|bound to '
                      r"non-existent persistentvolume)", message)  # fmt: skip
    name = found[1] if found else ""
    if found and found[2] == "not found":
        return Cause(
            "pvc-missing", name, f"The pod mounts the claim {name!r}, and there is no "
            "PersistentVolumeClaim of that name in its namespace.", [message],
            f"apply the claim (cluster.apply('storage')), or correct claimName: {name}",
            Lesson.WHEN, [f"PersistentVolumeClaim/{name}", ref(pod)], Depth.STORAGE,
        )  # fmt: skip
    if found and found[2] == "is being deleted":
        return Cause(
            "pvc-deleting", name, f"The claim {name!r} is being deleted, and goes when its last "
            "pod does; a new pod may not use it any more.", [message],
            f"delete the pods that still use it, wait until kubectl get pvc {name} finds nothing, "
            "and apply the claim again", Lesson.WHEN,
            [f"PersistentVolumeClaim/{name}", ref(pod)], Depth.STORAGE,
        )  # fmt: skip
    if found:
        return Cause(
            "volume-lost", f"PersistentVolumeClaim/{name}",
            f"The claim {name!r} is bound to a volume that does not exist any more; its data is "
            "gone with it.", [message],
            f"kubectl delete pvc {name}, then apply it again and fill it anew", Lesson.WHEN,
            [f"PersistentVolumeClaim/{name}", ref(pod)], Depth.STORAGE,
        )  # fmt: skip
    if "unbound immediate PersistentVolumeClaims" not in message and (
        "waiting for ephemeral volume controller" not in message
    ):
        return None
    claims = {f"PersistentVolumeClaim/{name}" for name in claim_names(pod)}
    unseen = sorted(claims - set(view.by_ref))
    return Cause(
        "pvc-unbound", ",".join(sorted(claims)), "The pod mounts a claim that has no volume yet.",
        [message], "kubectl describe pvc says what the claim waits for", Lesson.WHEN,
        [*unseen, ref(pod)], Depth.SCHEDULING, waits_for=claims, vague=True,
    )  # fmt: skip


def claim_names(pod: Json) -> list[str]:
    """The claims that a pod mounts."""
    names = []
    for volume in (pod.get("spec") or {}).get("volumes") or []:
        if claim := (volume.get("persistentVolumeClaim") or {}).get("claimName"):
            names.append(claim)
        elif "ephemeral" in volume:
            names.append(f"{pod['metadata']['name']}-{volume.get('name')}")
    return names


def _rule_of(reason: str) -> str:
    return next((rule for words, rule in _RULES if re.search(words, reason)), "scheduler-refuses")


def _primary(
    view: View, pod: Json, message: str, reasons: list[tuple[int, str]]
) -> tuple[str, str]:
    """The rule that names what to change, and the reason or resource it is about."""
    by_rule: dict[str, str] = {}
    for _, reason in reasons:
        if any(taint in reason for taint in CONTROL_PLANE) and len(reasons) > 1:
            continue  # a control plane refuses everybody
        by_rule.setdefault(_rule_of(reason), reason)
    if not by_rule and reasons:
        return _rule_of(reasons[0][1]), reasons[0][1]
    if not by_rule:  # it speaks of the pod as a whole, and counts no nodes
        return _rule_of(message.split(" preemption:")[0]), message
    if len(by_rule) > 1 and (best := _by_nodes(view, pod, set(by_rule))):
        return best, by_rule.get(best, "")
    # Without nodes to look at: GPU nodes usually carry a taint, the others lack GPUs.
    gpu = any("Insufficient" in r and extended(r.split()[-1]) for _, r in reasons)
    if gpu and "nvidia.com/gpu" in by_rule.get("taint-not-tolerated", ""):
        return "taint-not-tolerated", by_rule["taint-not-tolerated"]
    order = ["volume-zone", "volume-not-found", "resource-claim", "host-port-taken",
             "pod-anti-affinity", "pod-affinity", "topology-spread", "insufficient",
             "node-selector", "taint-not-tolerated"]  # fmt: skip
    rule = min(by_rule, key=lambda each: order.index(each) if each in order else 5)
    return rule, by_rule[rule]


_OBSTACLES = {
    "selector": "node-selector", "taint": "taint-not-tolerated", "cordoned": "nodes-cordoned",
}  # fmt: skip


def _by_nodes(view: View, pod: Json, candidates: set[str]) -> str | None:
    """Which single change would open the most nodes, or None when nodes cannot tell."""
    if not view.nodes:
        return None
    alone: Counter[str] = Counter()
    open_nodes = 0
    for node in view.nodes:
        found = obstacles(pod, node)
        if not found:
            open_nodes += 1
        kinds = {_OBSTACLES.get(each, "insufficient") for each in found}
        control = any(taint.get("key") in CONTROL_PLANE for taint in untolerated(pod, node))
        if len(kinds) == 1 and not control:
            alone[kinds.pop()] += 1
    if open_nodes:  # nothing fixed about them keeps the pod away: something else uses them up
        rest = [each for each in candidates if each not in _OBSTACLES.values()]
        if len(rest) == 1:
            return rest[0]
        return None
    ranked = [rule for rule, _ in alone.most_common() if rule in candidates]
    missing = [r for r in wanted(pod) if extended(r)
               and not any(offered(node, r) for node in view.nodes)]  # fmt: skip
    if missing and "insufficient" in candidates:
        return "insufficient"
    better = [rule for rule in ranked if rule != "insufficient"]
    return next(iter([*better, *ranked]), None)


def _of_rule(view: View, pod: Json, message: str, reasons: list[tuple[int, str]], rule: str,
             detail: str) -> Cause:  # fmt: skip
    if rule == "insufficient":
        return _insufficient(view, pod, message, detail, reasons)
    if rule == "taint-not-tolerated":
        return taint(view, pod, message, detail)
    if rule == "node-selector":
        return selector(view, pod, message)
    counted = "; ".join(f"{n}: {text}" for n, text in reasons) or message
    if rule in TEXTS:
        text, fix, lesson = TEXTS[rule]
        if rule == "topology-spread" and "missing required label" in message:
            spread = (pod.get("spec") or {}).get("topologySpreadConstraints") or []
            keys = ", ".join(str(s.get("topologyKey")) for s in spread if isinstance(s, dict))
            text += f" Some nodes lack the label that it spreads over ({keys or 'topologyKey'})."
        if rule == "resource-claim":
            text += devices_say(message)
        nodes = [ref(n) for n in view.nodes if (n.get("spec") or {}).get("unschedulable")]
        first = nodes if rule == "nodes-cordoned" else []
        return cause_of(pod, rule, view.top(pod), text, fix, message, lesson, first=first)
    return cause_of(
        pod, "scheduler-refuses", view.top(pod),
        f"No node takes the pod; the scheduler says of its nodes: {counted}.",
        f"kubectl describe pod {pod['metadata']['name']}; compare what it asks for with kubectl "
        "describe nodes", message,
    )  # fmt: skip


def _insufficient(view: View, pod: Json, message: str, detail: str,
                  reasons: list[tuple[int, str]]) -> Cause:  # fmt: skip
    lacking = [m[1].rstrip(".,") for _, text in reasons if (m := _INSUFFICIENT.search(text))]
    lacking.sort(key=lambda name: not extended(name))
    resource = lacking[0] if lacking else detail.rsplit(" ", 1)[-1]
    amount = wanted(pod).get(resource, 0.0)
    usable = [n for n in view.nodes if node_affinity_fits(pod, n)] or view.nodes
    most = max((offered(node, resource) for node in usable), default=0.0)
    ask = _amount(resource, amount)
    gpu = "gpu" in resource or extended(resource)
    lesson = Lesson.RAY_GPUS if gpu else Lesson.WHEN
    if extended(resource) and view.has_nodes and not any(offered(n, resource) for n in view.nodes):
        rule = "gpu-not-offered" if "gpu" in resource else "device-not-offered"
        what = "GPUs" if "gpu" in resource else "EFA devices" if "efa" in resource else "devices"
        return cause_of(
            pod, rule, resource,
            f"The pod asks for {ask}, and no node of the cluster offers that resource: either it "
            f"has no nodes with {what}, or their device plugin does not run"
            f"{plugin_says(view, resource)}.",
            f"kubectl get nodes -o custom-columns=NAME:.metadata.name,HAS:'.status.allocatable."
            f"{resource.replace('.', chr(92) + '.')}'; then add a node group with {what}, or "
            "install the device plugin (kubectl get daemonsets -A)", message, lesson,
        )  # fmt: skip
    stem = "gpu" if "gpu" in resource else resource.split("/")[-1]
    if view.has_nodes and amount > most == 0:
        return cause_of(
            pod, f"{stem}-too-large", resource + view.top(pod),
            f"The pod asks for {ask}, and no node of the cluster offers any of it.",
            f"take {resource} out of resources, or add nodes that are set up to offer it",
            message, lesson,
        )  # fmt: skip
    if view.has_nodes and amount > most + 1e-9:
        return cause_of(
            pod, f"{stem}-too-large", resource + view.top(pod),
            f"The pod asks for {ask}, more than any node has: the largest offers "
            f"{_amount(resource, most)}. It can never be placed here, however empty the nodes are.",
            f"ask for at most {_amount(resource, most)} in resources.requests, or add a larger "
            "instance type", message, lesson,
        )  # fmt: skip
    return cause_of(
        pod, f"insufficient-{stem}", resource,
        f"The pod asks for {ask}; the nodes have that resource, but not that much of it is free: "
        "other pods hold it.",
        "see who holds it: kubectl describe nodes | grep -A9 'Allocated resources'; delete what "
        f"is not needed, ask for less {resource}, or add a node", message, lesson,
    )  # fmt: skip


def _amount(resource: str, amount: float) -> str:
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages"):
        return f"{amount / 2**30:.4g} GiB of {resource}"
    return f"{amount:g} {resource}"
