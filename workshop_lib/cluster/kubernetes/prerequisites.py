"""What an administrator must have made before the workshop, read through the Kubernetes API.

Read only. A learner may not see nodes, storage classes or node pools: a refusal is not taken
for "not there" but for "cannot tell", with whom to ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.catalogue import catalogue
from workshop_lib.cluster.kube import is_true, parse_quantity, pod_state
from workshop_lib.cluster.kubernetes.resources import Resource, operator_hint, resource_of_kind
from workshop_lib.cluster.needs import Needs, needs_of
from workshop_lib.errors import ForbiddenError, OperatorError

if TYPE_CHECKING:
    from workshop_lib.cluster.kubernetes.api import Api

__all__ = ["check_prerequisites"]

Json = Mapping[str, Any]

KUBERNETES = (1, 33)
"""`successPolicy` of a Job is stable from here on (KEP-3998)."""
KUBERAY = (1, 7)
GPU, EFA, POOL = "nvidia.com/gpu", "vpc.amazonaws.com/efa", "workshop.techpulse/pool"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"

NOT_PULLED = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")

MONITORING = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}

NODES = Resource("v1", "Node", "nodes", namespaced=False)
NODE_POOLS = Resource("karpenter.sh/v1", "NodePool", "nodepools", namespaced=False)
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments", namespaced=False)
ACCESS_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True)
class _Seen:
    """A list that was asked for: its objects, or why there are none.

    Attributes:
        items: The objects.
        refused: The rule that is missing; empty when the answer counts.
        absent: The cluster does not know the kind.
    """

    items: Sequence[Json] = ()
    refused: str = ""
    absent: bool = False


@dataclass
class _Cluster:
    """Everything that is asked of the API, once."""

    api: Api
    namespace: str
    needs: Needs
    lists: dict[str, _Seen] = field(default_factory=dict)

    def look(self) -> None:
        """Ask for all lists at once."""
        kinds = ("PersistentVolumeClaim", "ResourceQuota", "Pod", "StorageClass")
        wanted = [*(resource_of_kind(kind) for kind in kinds), NODES, NODE_POOLS, DEPLOYMENTS]
        with ThreadPoolExecutor(len(wanted)) as pool:
            answers = pool.map(self._list, wanted)
        self.lists = {each.kind: seen for each, seen in zip(wanted, answers, strict=True)}

    def _list(self, resource: Resource) -> _Seen:
        labels = "app.kubernetes.io/name=kuberay-operator" if resource is DEPLOYMENTS else ""
        try:
            return _Seen(self.api.list(resource, self.namespace, labels=labels))
        except ForbiddenError as error:
            return _Seen(refused=str(error).partition("; ask for this rule")[0])
        except OperatorError:
            return _Seen(absent=True)

    def serves(self, version: str) -> bool:
        """Whether the API server knows a group version; every user may ask."""
        return self.api.request("GET", f"/apis/{version}").ok


def check_prerequisites(api: Api, namespace: str, profile: str, version: str) -> CheckList:
    """Whether a cluster has what the components of a profile need.

    Args:
        api: The API server.
        namespace: The learner's.
        profile: Whose components.
        version: The server's version, such as `v1.36.0`.
    """
    cluster = _Cluster(api, namespace, needs_of(profile))
    cluster.look()
    steps: Sequence[Callable[[_Cluster], Check]] = (
        _nodes, _gpus, _device_plugin, _efa_plugin, _kuberay, _kuberay_version, _storage_class,
        _claims, _quota, _rights, _images, _node_pools, _pool_label, _prometheus,
    )  # fmt: skip
    return CheckList([_version(version), *(step(cluster) for step in steps)])


def _check(name: str, passed: bool | None, seen: str, fix: str, applies: bool = True) -> Check:
    return Check(name, passed, seen, "" if passed else fix, applies)


def _hidden(name: str, seen: _Seen, command: str) -> Check:
    """A check that this user may not make."""
    fix = f"ask who administers the cluster to run: {command}"
    return _check(name, None, seen.refused or "not served", fix)


def _version(version: str) -> Check:
    found = re.match(r"v(\d+)\.(\d+)", version)
    wanted = ".".join(map(str, KUBERNETES))
    new = (int(found[1]), int(found[2])) >= KUBERNETES if found else None
    return _check(f"Kubernetes {wanted} or newer", new, version, "upgrade the EKS cluster")


def _nodes(cluster: _Cluster) -> Check:
    name, seen = "nodes are ready", cluster.lists["Node"]
    if seen.refused:
        return _hidden(name, seen, "kubectl get nodes")
    bad = [_name(node) for node in seen.items if not is_true(node, "Ready")]
    shown = f"{len(seen.items) - len(bad)} of {len(seen.items)} ready"
    return _check(
        name, bool(seen.items) and not bad, shown + (f"; not: {', '.join(bad)}" if bad else ""),
        "kubectl describe node" + (f" {bad[0]}" if bad else "s") + ", its Conditions say why",
    )  # fmt: skip


def _allocatable(nodes: Sequence[Json], device: str) -> int:
    return sum(int((n["status"].get("allocatable") or {}).get(device, 0)) for n in nodes)


def _gpus(cluster: _Cluster) -> Check:
    name, wanted = "GPUs for the largest pod", cluster.needs.gpus_of_a_pod
    if not wanted:
        return _check(name, None, "no component of this profile asks for GPUs", "", False)
    seen = cluster.lists["Node"]
    if seen.refused:
        return _hidden(name, seen, f"kubectl describe nodes | grep {GPU}")
    most = max((_allocatable([node], GPU) for node in seen.items), default=0)
    shown = f"{_allocatable(seen.items, GPU)} GPUs, {most} on one node; a pod asks for {wanted}"
    if most < wanted and cluster.lists["NodePool"].items:
        shown += "; NodePools make nodes when pods ask"
        return _check(name, None, shown, "apply a component: its pods' events tell if one comes")
    fix = "add nodes with GPUs, such as p4d.24xlarge, or a NodePool"
    return _check(name, most >= wanted, shown, fix)


def _plugin(cluster: _Cluster, name: str, device: str, count: Callable[[str], int]) -> Check:
    """Whether nodes of types that have a device offer it."""
    seen = cluster.lists["Node"]
    if seen.refused:
        return _hidden(name, seen, f"kubectl describe nodes | grep {device}")
    types = {_name(n): _labels(n).get(INSTANCE_TYPE, "") for n in seen.items}
    having = [n for n in seen.items if types[_name(n)] in catalogue() and count(types[_name(n)])]
    if not having:
        offered = _allocatable(seen.items, device)
        shown = f"no node of a type with {device}" if not offered else f"{offered} offered"
        return _check(
            name, True if offered else None, shown, "look again when such a node is there"
        )
    lacking = []
    for node in having:
        offers, wanted = _allocatable([node], device), count(types[_name(node)])
        if offers != wanted:
            lacking.append(f"{_name(node)} ({types[_name(node)]}) offers {offers} of {wanted}")
    shown = "; ".join(lacking) or f"{len(having)} nodes offer all of theirs"
    return _check(name, not lacking, shown, "look at the plugin's DaemonSet in kube-system")


def _device_plugin(cluster: _Cluster) -> Check:
    name = "NVIDIA device plugin"
    if not cluster.needs.gpus_of_a_pod:
        return _check(name, None, "no component of this profile asks for GPUs", "", False)
    return _plugin(cluster, name, GPU, lambda kind: catalogue()[kind].gpus)


def _efa_plugin(cluster: _Cluster) -> Check:
    name = "EFA device plugin"
    if not cluster.needs.efa:
        return _check(name, None, "no component of this profile asks for EFA", "", False)
    found = _plugin(cluster, name, EFA, lambda kind: catalogue()[kind].efa)
    if found.outcome == "pass":
        return found
    only = f"only {' and '.join(cluster.needs.efa)} need it"
    return _check(name, found.passed, f"{found.evidence}; {only}", found.fix)


def _kuberay(cluster: _Cluster) -> Check:
    name = "KubeRay is installed"
    if cluster.serves("ray.io/v1"):
        return _check(name, True, "the API server serves ray.io/v1", "")
    hint = operator_hint(resource_of_kind("RayCluster"))
    return _check(name, False, "the API server knows no ray.io/v1", hint)


def _kuberay_version(cluster: _Cluster) -> Check:
    wanted = ".".join(map(str, KUBERAY))
    name, seen = f"KubeRay {wanted} or newer", cluster.lists["Deployment"]
    command = "kubectl get deploy -A -l app.kubernetes.io/name=kuberay-operator -o wide"
    if seen.refused:
        return _hidden(name, seen, command)
    images = [c["image"] for d in seen.items for c in d["spec"]["template"]["spec"]["containers"]]
    found = next((m for each in images if (m := re.search(r":v?(\d+)\.(\d+)", each))), None)
    if found is None:
        shown = f"its image is {images[0]}" if images else "no Deployment of the operator"
        return _check(name, None, shown, f"look for its version: {command}")
    new = (int(found[1]), int(found[2])) >= KUBERAY
    fix = f"helm upgrade kuberay-operator kuberay/kuberay-operator --version {wanted}.1"
    return _check(name, new, images[0], fix)


def _prometheus(cluster: _Cluster) -> Check:
    name, kinds = "the Prometheus operator is installed", sorted(cluster.needs.kinds & MONITORING)
    if not kinds:
        return _check(name, None, "no component brings monitors or rules", "", False)
    if cluster.serves("monitoring.coreos.com/v1"):
        return _check(name, True, "the API server serves monitoring.coreos.com/v1", "")
    # The lessons run without it: who wants alerts and dashboards on this cluster installs it.
    hint = operator_hint(resource_of_kind("ServiceMonitor"))
    shown = f"no monitoring.coreos.com/v1; only the component `monitoring` needs it: {hint}"
    return _check(name, None, shown, "", False)


def _storage_class(cluster: _Cluster) -> Check:
    wanted = sorted(cluster.needs.storage_classes)
    name = f"storage class {', '.join(wanted)}" if wanted else "storage class"
    if not wanted:
        return _check(name, None, "claims name none: the cluster's default is taken", "", False)
    seen = cluster.lists["StorageClass"]
    if seen.refused:
        return _hidden(name, seen, f"kubectl get storageclass {' '.join(wanted)}")
    there = {_name(each) for each in seen.items}
    missing = [each for each in wanted if each not in there]
    fix = 'cluster.apply("storage", subnet_id=..., security_group_id=...) as an administrator'
    return _check(name, not missing, f"there are {', '.join(sorted(there)) or 'none'}", fix)


def _claims(cluster: _Cluster) -> Check:
    name, seen = "volume claims are bound", cluster.lists["PersistentVolumeClaim"]
    if seen.refused:
        return _hidden(name, seen, f"kubectl -n {cluster.namespace} get pvc")
    if not seen.items:
        shown = "no claim in this namespace yet: the components make theirs"
        return _check(name, None, shown, 'cluster.apply("storage"), then look again', False)
    open_ = [f"{_name(c)} is {c['status'].get('phase', '?')}" for c in seen.items
             if (c.get("status") or {}).get("phase") != "Bound"]  # fmt: skip
    shown = "; ".join(open_) or f"{len(seen.items)} bound"
    return _check(
        name, not open_, shown, f"kubectl -n {cluster.namespace} describe pvc: its events"
    )


def _quota(cluster: _Cluster) -> Check:
    name, seen = "quota for the largest component", cluster.lists["ResourceQuota"]
    if seen.refused:
        return _hidden(name, seen, f"kubectl -n {cluster.namespace} describe quota")
    if not seen.items:
        return _check(name, True, "the namespace has no quota", "")
    short, looked = [], 0
    for quota in seen.items:
        status = quota.get("status") or {}
        hard = status.get("hard") or quota["spec"].get("hard") or {}
        for key, limit in hard.items():
            resource = key.removeprefix("requests.") if key != "requests.storage" else key
            amounts = {c: a[resource] for c, a in cluster.needs.amounts.items() if resource in a}
            if not amounts:
                continue
            looked += 1
            component = max(amounts, key=lambda each: amounts[each])
            used = parse_quantity((status.get("used") or {}).get(key, 0))
            if parse_quantity(limit) - used < amounts[component]:
                short.append(f"{key}: {_amount(used)} of {limit} used, "
                             f"{component} asks for {_amount(amounts[component])}")  # fmt: skip
    fix = "delete what runs (cluster.components()), or ask for more quota"
    return _check(name, not short, "; ".join(short) or f"{looked} limits looked at", fix)


def _amount(value: float) -> str:
    return f"{value / 2**30:.0f}Gi" if value >= 2**30 else f"{value:g}"


def _rights(cluster: _Cluster) -> Check:
    name, rules = "the rights of a learner", sorted(cluster.needs.rules)
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda rule: _may(cluster, *rule), rules))
    unknown = sum(answer is None for answer in allowed)
    if unknown:
        return _check(name, None, f"{unknown} of {len(rules)} reviews were refused",
                      f"kubectl -n {cluster.namespace} auth can-i --list")  # fmt: skip
    missing = [f"{verb} {resource}" for (_, resource, verb), may in zip(rules, allowed, strict=True)
               if not may]  # fmt: skip
    few = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    shown = f"{len(rules) - len(missing)} of {len(rules)} granted" + (
        f"; not: {few}" if few else ""
    )
    fix = 'ask an administrator for cluster.apply("namespace", learners=<your group>)'
    return _check(name, not missing, shown, fix)


def _may(cluster: _Cluster, group: str, resource: str, verb: str) -> bool | None:
    """A SelfSubjectAccessReview, which every user may ask for."""
    plural, _, sub = resource.partition("/")
    asked = {"namespace": cluster.namespace, "verb": verb, "group": group, "resource": plural}
    if sub:
        asked["subresource"] = sub
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked}}  # fmt: skip
    answer = cluster.api.request("POST", ACCESS_REVIEW, body=body, content_type="application/json")
    return bool(answer.json()["status"]["allowed"]) if answer.ok else None


def _images(cluster: _Cluster) -> Check:
    name, seen = "images can be pulled", cluster.lists["Pod"]
    failing = [
        (_name(pod), *pod_state(pod)) for pod in seen.items if pod_state(pod)[0] in NOT_PULLED
    ]
    if failing:
        pod, state, why = failing[0]
        return _check(name, False, f"{pod} is {state}: {' '.join(why.split())[:160]}",
                      "is the name right, may the nodes reach the registry?")  # fmt: skip
    nodes = cluster.lists["Node"].items
    pulled = {each for node in nodes for image in node["status"].get("images") or []
              for each in image.get("names") or []}  # fmt: skip
    ran = {c["image"] for pod in seen.items for c in pod["spec"]["containers"]
           if c.get("image") and pod_state(pod)[0] in ("Running", "Succeeded")}  # fmt: skip
    missing = [image for image in cluster.needs.images
               if not any(each.endswith(image) for each in pulled | ran)]  # fmt: skip
    total = len(cluster.needs.images)
    if not missing:
        return _check(name, True, f"all {total} images have been pulled", "")
    shown = f"{total - len(missing)} of {total} seen pulled; not yet: {missing[0]}"
    fix = "nothing can be told before the first pod: pre-pull, or apply a component and look"
    return _check(name, None, shown, fix)


def _node_pools(cluster: _Cluster) -> Check:
    name, seen = "Karpenter NodePools are ready", cluster.lists["NodePool"]
    if not cluster.serves("karpenter.sh/v1"):
        shown = "no Karpenter here: node groups, or EKS Auto Mode's own, give the nodes"
        return _check(name, None, shown, "", False)
    if seen.refused:
        return _hidden(name, seen, "kubectl get nodepools")
    bad = [_name(pool) for pool in seen.items if not is_true(pool, "Ready")]
    shown = ", ".join(_name(pool) for pool in seen.items) or "none"
    fix = f"kubectl describe nodepool {bad[0]}" if bad else "apply manifests/base/nodepool"
    return _check(name, bool(seen.items) and not bad,
                  shown + (f"; not ready: {', '.join(bad)}" if bad else ""), fix)  # fmt: skip


def _pool_label(cluster: _Cluster) -> Check:
    wanted = sorted(cluster.needs.pools)
    name = f"nodes labelled {POOL}"
    if not wanted:
        return _check(name, None, "no component selects nodes by it", "", False)
    nodes, pools = cluster.lists["Node"], cluster.lists["NodePool"]
    if nodes.refused or pools.refused:
        hidden = nodes if nodes.refused else pools
        return _hidden(name, hidden, f"kubectl get nodes,nodepools -L {POOL}")
    labels = [*map(_labels, nodes.items), *(_labels(p["spec"]["template"]) for p in pools.items)]
    missing = [each for each in wanted if all(found.get(POOL) != each for found in labels)]
    where = " is on no node or NodePool" if missing else ""
    shown = f"{POOL}={', '.join(missing or wanted)}{where}"
    return _check(name, not missing, shown, "an administrator applies manifests/base/nodepool once")


def _labels(body: Json) -> Json:
    return (body.get("metadata") or {}).get("labels") or {}


def _name(body: Json) -> str:
    return str(body["metadata"]["name"])
