"""What an administrator must have made before the workshop, read through the Kubernetes API.

Read only. A learner may not see nodes, storage classes or node pools: a refusal is not taken
for "not there" but for "cannot tell", with whom to ask.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.catalogue import catalogue
from workshop_lib.cluster.kube import (
    EFA,
    GPU,
    INSTANCE_TYPE,
    POOL,
    Json,
    is_true,
    labels_of,
    parse_quantity,
    pod_state,
)  # fmt: skip
from workshop_lib.cluster.kubernetes.api import JSON, Api
from workshop_lib.cluster.kubernetes.resources import Resource, operator_hint, resource_of_kind
from workshop_lib.cluster.needs import Needs, needs_of
from workshop_lib.errors import ForbiddenError, OperatorError

__all__ = ["check_prerequisites"]

KUBERNETES = (1, 33)
"""`successPolicy` of a Job is stable from here on (KEP-3998)."""
KUBERAY = (1, 7)

NOT_PULLED = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
MONITORING = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}

OPERATOR = "app.kubernetes.io/name=kuberay-operator"
RESOURCES = (
    *(resource_of_kind(kind)
      for kind in ("PersistentVolumeClaim", "ResourceQuota", "Pod", "StorageClass", "Node")),
    Resource("karpenter.sh/v1", "NodePool", "nodepools", namespaced=False),
    Resource("apps/v1", "Deployment", "deployments", namespaced=False),
)  # fmt: skip
ACCESS_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class _NotAskedError(Exception):
    """A question that this cluster or profile does not raise; the words say why."""


class _HiddenError(Exception):
    """What this user may not see: the rule that is missing, and the command for who may."""


Found = tuple[bool | None, str, str]
"""Whether it is as it should be (None: cannot tell), what was seen, and what to do."""


@dataclass
class _Cluster:
    """Everything that is asked of the API, once."""

    api: Api
    namespace: str
    version: str
    needs: Needs

    def __post_init__(self) -> None:
        with ThreadPoolExecutor(len(RESOURCES)) as pool:
            found = pool.map(self._list, RESOURCES)
        self._lists = {each.kind: seen for each, seen in zip(RESOURCES, found, strict=True)}

    def _list(self, resource: Resource) -> list[dict[str, Any]] | str:
        labels = OPERATOR if resource.kind == "Deployment" else ""
        try:
            return self.api.list(resource, self.namespace, labels=labels)
        except ForbiddenError as error:
            return str(error).partition("; ask for this rule")[0]
        except OperatorError:
            return []  # nothing of a kind that the cluster does not know

    def items(self, kind: str, command: str = "") -> list[dict[str, Any]]:
        """All of a kind; with a command, what may not be seen ends the check."""
        found = self._lists[kind]
        if isinstance(found, list):
            return found
        if command:
            raise _HiddenError(found, command)
        return []

    def serves(self, version: str) -> bool:
        """Whether the API server knows a group version; every user may ask."""
        return self.api.request("GET", f"/apis/{version}").ok


def check_prerequisites(api: Api, namespace: str, profile: str, version: str) -> CheckList:
    """Whether a cluster has what the components of a profile need, in the learner's namespace."""
    cluster = _Cluster(api, namespace, version, needs_of(profile))
    needs = cluster.needs
    classes = ", ".join(sorted(needs.storage_classes))
    steps: Sequence[tuple[str, Callable[[_Cluster], Found]]] = (
        (f"Kubernetes {'.'.join(map(str, KUBERNETES))} or newer", _version),
        ("nodes are ready", _nodes),
        ("GPUs for the largest pod", _gpus),
        ("NVIDIA device plugin", _device_plugin),
        ("EFA device plugin", _efa_plugin),
        ("KubeRay is installed", _kuberay),
        (f"KubeRay {'.'.join(map(str, KUBERAY))} or newer", _kuberay_version),
        (f"storage class {classes}".strip(), _storage_class),
        ("volume claims are bound", _claims),
        ("quota for the largest component", _quota),
        ("the rights of a learner", _rights),
        ("images can be pulled", _images),
        ("Karpenter NodePools are ready", _node_pools),
        (f"nodes labelled {POOL}", _pool_label),
        ("the Prometheus operator is installed", _prometheus),
    )
    return CheckList([_check(name, step, cluster) for name, step in steps])


def _check(name: str, step: Callable[[_Cluster], Found], cluster: _Cluster) -> Check:
    try:
        passed, seen, fix = step(cluster)
    except _NotAskedError as why:
        return Check(name, None, str(why), "", applies=False)
    except _HiddenError as hidden:
        refused, command = hidden.args
        return Check(name, None, refused, f"ask who administers the cluster to run: {command}")
    return Check(name, passed, seen, "" if passed else fix)


def _name(body: Json) -> str:
    return str(body["metadata"]["name"])


def _at_least(text: str, wanted: tuple[int, int]) -> bool | None:
    found = re.search(r"v?(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) >= wanted if found else None


def _version(cluster: _Cluster) -> Found:
    return _at_least(cluster.version, KUBERNETES), cluster.version, "upgrade the EKS cluster"


def _nodes(cluster: _Cluster) -> Found:
    nodes = cluster.items("Node", "kubectl get nodes")
    bad = [_name(node) for node in nodes if not is_true(node, "Ready")]
    seen = f"{len(nodes) - len(bad)} of {len(nodes)} ready"
    fix = f"kubectl describe node{f' {bad[0]}' if bad else 's'}, its Conditions say why"
    return bool(nodes) and not bad, seen + (f"; not: {', '.join(bad)}" if bad else ""), fix


def _offered(nodes: Sequence[Json], device: str) -> int:
    return sum(int((n["status"].get("allocatable") or {}).get(device, 0)) for n in nodes)


def _gpus(cluster: _Cluster) -> Found:
    wanted = cluster.needs.gpus_of_a_pod
    if not wanted:
        raise _NotAskedError("no component of this profile asks for GPUs")
    nodes = cluster.items("Node", f"kubectl describe nodes | grep {GPU}")
    most = max((_offered([node], GPU) for node in nodes), default=0)
    seen = f"{_offered(nodes, GPU)} GPUs, {most} on one node; a pod asks for {wanted}"
    if most < wanted and cluster.items("NodePool"):
        seen += "; NodePools make nodes when pods ask"
        return None, seen, "apply a component: its pods' events tell if one comes"
    return most >= wanted, seen, "add nodes with GPUs, such as p4d.24xlarge, or a NodePool"


def _plugin(cluster: _Cluster, device: str, of_type: str) -> Found:
    """Whether nodes of types that have a device offer it; `of_type`: its count's field."""
    nodes = cluster.items("Node", f"kubectl describe nodes | grep {device}")
    having, lacking = 0, []
    for node in nodes:
        kind = labels_of(node).get(INSTANCE_TYPE, "")
        if wanted := getattr(catalogue().get(kind), of_type, 0):
            having += 1
            if (offers := _offered([node], device)) != wanted:
                lacking.append(f"{_name(node)} ({kind}) offers {offers} of {wanted}")
    if not having:
        offered = _offered(nodes, device)
        seen = f"{offered} offered" if offered else f"no node of a type with {device}"
        return True if offered else None, seen, "look again when such a node is there"
    seen = "; ".join(lacking) or f"{having} nodes offer all of theirs"
    return not lacking, seen, "look at the plugin's DaemonSet in kube-system"


def _device_plugin(cluster: _Cluster) -> Found:
    if not cluster.needs.gpus_of_a_pod:
        raise _NotAskedError("no component of this profile asks for GPUs")
    return _plugin(cluster, GPU, "gpus")


def _efa_plugin(cluster: _Cluster) -> Found:
    if not cluster.needs.efa:
        raise _NotAskedError("no component of this profile asks for EFA")
    passed, seen, fix = _plugin(cluster, EFA, "efa")
    only = f"; only {' and '.join(cluster.needs.efa)} need it"
    return passed, seen if passed else seen + only, fix


def _kuberay(cluster: _Cluster) -> Found:
    if cluster.serves("ray.io/v1"):
        return True, "the API server serves ray.io/v1", ""
    hint = operator_hint(resource_of_kind("RayCluster"))
    return False, "the API server knows no ray.io/v1", hint


def _kuberay_version(cluster: _Cluster) -> Found:
    command = f"kubectl get deploy -A -l {OPERATOR} -o wide"
    deployments = cluster.items("Deployment", command)
    images = [c["image"] for d in deployments for c in d["spec"]["template"]["spec"]["containers"]]
    tag = next((found[0] for each in images if (found := re.search(r":v?\d+\.\d+.*", each))), "")
    if not tag:
        seen = f"its image is {images[0]}" if images else "no Deployment of the operator"
        return None, seen, f"look for its version: {command}"
    wanted = ".".join(map(str, KUBERAY))
    fix = f"helm upgrade kuberay-operator kuberay/kuberay-operator --version {wanted}.0"
    return _at_least(tag, KUBERAY), images[0], fix


def _prometheus(cluster: _Cluster) -> Found:
    if not cluster.needs.kinds & MONITORING:
        raise _NotAskedError("no component brings monitors or rules")
    if cluster.serves("monitoring.coreos.com/v1"):
        return True, "the API server serves monitoring.coreos.com/v1", ""
    # The lessons run without it: who wants alerts and dashboards on this cluster installs it.
    hint = operator_hint(resource_of_kind("ServiceMonitor"))
    raise _NotAskedError(
        f"no monitoring.coreos.com/v1; only the component `monitoring` needs it: {hint}"
    )


def _storage_class(cluster: _Cluster) -> Found:
    wanted = sorted(cluster.needs.storage_classes)
    if not wanted:
        raise _NotAskedError("claims name none: the cluster's default is taken")
    items = cluster.items("StorageClass", f"kubectl get storageclass {' '.join(wanted)}")
    there = sorted(map(_name, items))
    fix = 'cluster.apply("storage", subnet_id=..., security_group_id=...) as an administrator'
    return set(wanted) <= set(there), f"there are {', '.join(there) or 'none'}", fix


def _claims(cluster: _Cluster) -> Found:
    claims = cluster.items("PersistentVolumeClaim", f"kubectl -n {cluster.namespace} get pvc")
    if not claims:
        raise _NotAskedError("no claim in this namespace yet: the components make theirs")
    phases = {_name(claim): (claim.get("status") or {}).get("phase", "?") for claim in claims}
    unbound = [f"{name} is {phase}" for name, phase in phases.items() if phase != "Bound"]
    fix = f"kubectl -n {cluster.namespace} describe pvc: its events"
    return not unbound, "; ".join(unbound) or f"{len(claims)} bound", fix


def _quota(cluster: _Cluster) -> Found:
    quotas = cluster.items("ResourceQuota", f"kubectl -n {cluster.namespace} describe quota")
    if not quotas:
        return True, "the namespace has no quota", ""
    short, looked = [], 0
    for quota in quotas:
        status = quota.get("status") or {}
        for key, limit in (status.get("hard") or quota["spec"].get("hard") or {}).items():
            resource = key if key == "requests.storage" else key.removeprefix("requests.")
            asked = [(a[resource], c) for c, a in cluster.needs.amounts.items() if resource in a]
            if not asked:
                continue
            looked += 1
            most, component = max(asked)
            used = parse_quantity((status.get("used") or {}).get(key, 0))
            if parse_quantity(limit) - used < most:
                short.append(f"{key}: {_amount(used)} of {limit} used, "
                             f"{component} asks for {_amount(most)}")  # fmt: skip
    fix = "delete what runs (cluster.components()), or ask for more quota"
    return not short, "; ".join(short) or f"{looked} limits looked at", fix


def _amount(value: float) -> str:
    return f"{value / 2**30:.0f}Gi" if value >= 2**30 else f"{value:g}"


def _rights(cluster: _Cluster) -> Found:
    """A SelfSubjectAccessReview of each rule, which every user may ask for."""

    def may(rule: tuple[str, str, str]) -> bool | None:
        plural, _, sub = rule[1].partition("/")
        asked = {"namespace": cluster.namespace, "verb": rule[2], "group": rule[0],
                 "resource": plural, **({"subresource": sub} if sub else {})}  # fmt: skip
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked}}  # fmt: skip
        answer = cluster.api.request("POST", ACCESS_REVIEW, body=body, content_type=JSON)
        return bool(answer.json()["status"]["allowed"]) if answer.ok else None

    rules = sorted(cluster.needs.rules)
    with ThreadPoolExecutor(8) as pool:
        allowed = dict(zip(rules, pool.map(may, rules), strict=True))
    if unknown := list(allowed.values()).count(None):
        command = f"kubectl -n {cluster.namespace} auth can-i --list"
        return None, f"{unknown} of {len(rules)} reviews were refused", command
    missing = [f"{verb} {resource}" for (_, resource, verb), yes in allowed.items() if not yes]
    few = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
    seen = f"{len(rules) - len(missing)} of {len(rules)} granted{f'; not: {few}' if few else ''}"
    fix = 'ask an administrator for cluster.apply("namespace", learners=<your group>)'
    return not missing, seen, fix


def _images(cluster: _Cluster) -> Found:
    pods = [(pod, *pod_state(pod)) for pod in cluster.items("Pod")]
    for pod, state, why in pods:
        if state in NOT_PULLED:
            seen = f"{_name(pod)} is {state}: {' '.join(why.split())[:160]}"
            return False, seen, "is the name right, may the nodes reach the registry?"
    there = {name for node in cluster.items("Node") for image in node["status"].get("images") or []
             for name in image.get("names") or []}  # fmt: skip
    there |= {c["image"] for pod, state, _ in pods if state in ("Running", "Succeeded")
              for c in pod["spec"]["containers"] if c.get("image")}  # fmt: skip
    wanted = cluster.needs.images
    missing = [image for image in wanted if not any(each.endswith(image) for each in there)]
    if not missing:
        return True, f"all {len(wanted)} images have been pulled", ""
    seen = f"{len(wanted) - len(missing)} of {len(wanted)} seen pulled; not yet: {missing[0]}"
    fix = "nothing can be told before the first pod: pre-pull, or apply a component and look"
    return None, seen, fix


def _node_pools(cluster: _Cluster) -> Found:
    if not cluster.serves("karpenter.sh/v1"):
        raise _NotAskedError(
            "no Karpenter here: node groups, or EKS Auto Mode's own, give the nodes"
        )
    pools = cluster.items("NodePool", "kubectl get nodepools")
    bad = [_name(pool) for pool in pools if not is_true(pool, "Ready")]
    seen = ", ".join(map(_name, pools)) or "none"
    fix = f"kubectl describe nodepool {bad[0]}" if bad else "apply manifests/base/nodepool"
    return bool(pools) and not bad, seen + (f"; not ready: {', '.join(bad)}" if bad else ""), fix


def _pool_label(cluster: _Cluster) -> Found:
    wanted = sorted(cluster.needs.pools)
    if not wanted:
        raise _NotAskedError("no component selects nodes by it")
    command = f"kubectl get nodes,nodepools -L {POOL}"
    nodes, pools = cluster.items("Node", command), cluster.items("NodePool", command)
    labels = [*map(labels_of, nodes), *(labels_of(p["spec"]["template"]) for p in pools)]
    missing = [each for each in wanted if all(found.get(POOL) != each for found in labels)]
    where = " is on no node or NodePool" if missing else ""
    seen = f"{POOL}={', '.join(missing or wanted)}{where}"
    return not missing, seen, "an administrator applies manifests/base/nodepool once"
