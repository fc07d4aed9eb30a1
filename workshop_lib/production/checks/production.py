"""The production checklist, evaluated on a cluster or on manifests, with evidence.

The items, their fixes and what was corrected of the workshop's first checklist are in
`data/checklist.yaml`; here is what each kind of object says of them.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster import manifests
from workshop_lib.cluster.catalogue import catalogue
from workshop_lib.cluster.kube import parse_quantity, pod_specs, requests_of
from workshop_lib.data import data_path
from workshop_lib.production.probes import LOADING_S, probe_budget_s

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.cluster.base import Cluster

__all__ = ["check_production", "production_table"]

Json = Mapping[str, Any]
Findings = Iterator[tuple[str, bool | None, str]]
"""An item of the checklist, whether it holds of an object (None: cannot be told), the evidence."""

GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
BROKEN_ON_PURPOSE = ("lab-server", "stale-address")
ENGINE_TAKES = 256
"""vLLM's `max_num_seqs` where none is set: requests that an engine works on at once."""


@dataclass(frozen=True)
class _Pod:
    """The pods that a workload makes: `Kind/name`, the kind, how many, their spec."""

    owner: str
    kind: str
    count: int
    spec: Json

    @property
    def container(self) -> Json:
        return dict(self.spec["containers"][0])

    def device(self, name: str) -> int:
        return int(requests_of(self.spec).get(name, 0))

    @property
    def env(self) -> dict[str, str]:
        entries = self.container.get("env") or []
        return {each["name"]: str(each["value"]) for each in entries if "value" in each}

    def volume(self, path: str) -> Json:
        """The volume that holds a path of the main container; empty without one."""
        mounts = self.container.get("volumeMounts") or []
        names = {each["mountPath"].rstrip("/"): each["name"] for each in mounts}
        fitting = [place for place in names if f"{path}/".startswith(f"{place}/")]
        volumes = {each["name"]: each for each in self.spec.get("volumes") or []}
        return volumes.get(names[max(fitting, key=len)], {}) if fitting else {}

    def claim(self, path: str) -> str:
        """The claim that holds a path; empty when it is no claim's."""
        return str((self.volume(path).get("persistentVolumeClaim") or {}).get("claimName", ""))


class _Objects:
    """Objects by kind, whether rendered or read from a cluster."""

    def __init__(self, bodies: Iterable[Json]) -> None:
        self.bodies = list(bodies)
        # A RayService's own RayClusters are left out: its template says the same.
        self.pods = [
            _Pod(_name(body), body["kind"], count, spec)
            for body in self.of("Job", "Deployment", "RayCluster", "RayService")
            if not body["metadata"].get("ownerReferences")
            for count, spec in pod_specs(body)
        ]
        self.uses_efa = list(dict.fromkeys(pod.owner for pod in self.pods if pod.device(EFA)))

    def of(self, *kinds: str) -> list[Json]:
        return [body for body in self.bodies if body.get("kind") in kinds]

    def applications(self) -> Iterator[tuple[Json, Json]]:
        """Each Serve application with its RayService."""
        for body in self.of("RayService"):
            config = yaml.safe_load(body["spec"].get("serveConfigV2") or "{}") or {}
            yield from ((body, each) for each in config.get("applications") or [])

    def llms(self) -> Iterator[tuple[Json, str, Json]]:
        """Each `LLMConfig`, with its RayService and name."""
        for body, application in self.applications():
            for config in (application.get("args") or {}).get("llm_configs") or []:
                yield body, _name(body), config

    def recipes(self) -> Iterator[tuple[str, Json]]:
        """Each NeMo RL recipe in a ConfigMap, with where it lies."""
        for body in self.of("ConfigMap"):
            for key, text in (body.get("data") or {}).items():
                if key.endswith((".yaml", ".yml")) and "grpo:" in text:
                    with suppress(yaml.YAMLError):  # somebody else's, and not for us to judge
                        yield f"{_name(body)}:{key}", yaml.safe_load(text)


def _name(body: Json) -> str:
    return f"{body['kind']}/{body['metadata']['name']}"


def _at(body: Any, *path: str) -> Any:
    """A value some levels down; None where a level is missing."""
    for part in path:
        body = body.get(part) if isinstance(body, Mapping) else None
    return body


def _number(value: object) -> float | None:
    with suppress(ValueError):
        return float(str(value))
    return None


def _nodes(objects: _Objects) -> Findings:
    nodes, addresses = objects.of("Node"), []
    for node in nodes:
        kind = (node["metadata"].get("labels") or {}).get(INSTANCE_TYPE, "")
        found = catalogue().get(kind)
        if found is not None and found.efa and found.gpus > 1:
            offered = int((node["status"].get("allocatable") or {}).get(EFA, 0))
            seen = f"{_name(node)} ({kind}): {EFA} {offered} of {found.efa}"
            yield "efa_plugin", offered == found.efa, seen
        listed = node["status"].get("addresses") or []
        own = [each["address"] for each in listed if each["type"] == "InternalIP"]
        addresses += [(_name(node), address) for address in own]
    if not objects.uses_efa:
        return
    if not nodes:
        seen = f"{', '.join(objects.uses_efa)} asks for {EFA}; no node can be seen"
        yield "efa_plugin", None, seen
    yield (
        "security_group",
        None,
        "Kubernetes does not know security groups: check_network(ec2, ...) does",
    )
    shared = ipaddress.ip_network("100.64.0.0/10")  # what EKS users take for secondary CIDRs
    odd = [each for each in addresses if ipaddress.ip_address(each[1]) in shared]
    seen = ", ".join(" ".join(each) for each in odd or addresses[:3]) or "no node can be seen"
    secondary = " looks secondary" if odd else ""
    yield "primary_cidr", None, f"{seen}{secondary}: only the VPC knows its primary block"


def _volumes(objects: _Objects) -> Findings:
    for body in objects.of("PersistentVolumeClaim"):
        name, spec = body["metadata"]["name"], body["spec"]
        users = [
            (pod.kind, pod.count)
            for pod in objects.pods
            for volume in pod.spec.get("volumes") or []
            if _at(volume, "persistentVolumeClaim", "claimName") == name
        ]
        if users == [("Job", 1)]:
            continue  # a disk to work on, of one pod
        phase = _at(body, "status", "phase")
        many = {"ReadWriteMany", "ReadOnlyMany"} & set(spec["accessModes"])
        bound = None if phase is None else phase == "Bound"
        where = spec.get("storageClassName", "default class") or "no class"
        modes = " and ".join(spec["accessModes"])
        seen = f"{_name(body)}: {modes}, {where}, {phase or 'not applied'}"
        yield "shared_volume", bound if many else False, seen


def _pods(objects: _Objects) -> Findings:
    loud = [pod for pod in objects.pods if pod.spec.get("hostNetwork")]
    if objects.pods and not loud:
        yield "host_network", True, "no pod has hostNetwork"
    for pod in loud:
        efa = pod.device(EFA)
        yield "host_network", bool(efa), f"{pod.owner}: hostNetwork true, {EFA} {efa}"
    for pod in objects.pods:
        name, env, gpus = pod.owner, pod.env, pod.device(GPU)
        if gpus:
            found = pod.volume("/dev/shm").get("emptyDir") or {}
            medium, size = found.get("medium", "none"), found.get("sizeLimit")
            wanted = (128 if gpus >= 8 else 1) * 2**30
            enough = medium == "Memory" and (size is None or parse_quantity(size) >= wanted)
            seen = f"{name}: /dev/shm {medium} {size or 'no limit'}, {gpus} GPUs"
            yield "shared_memory", enough, seen
            yield from _share(f"{name}: GPU_MEMORY_UTILIZATION", env.get("GPU_MEMORY_UTILIZATION"))
        if pod.kind == "Deployment":
            missing = [kind for kind in PROBES if kind not in pod.container]
            budget_s = 0 if missing else probe_budget_s(pod.container["startupProbe"])
            seen = f"no {', '.join(missing)}" if missing else f"three probes, {budget_s} s to start"
            enough = not missing and (budget_s >= LOADING_S or not gpus)
            yield "probes", enough, f"{name}: {seen}"
            if "MODEL" in env:
                claim = pod.claim(env.get("MODELS_DIR", "/models"))
                offline = f"HF_HUB_OFFLINE={env.get('HF_HUB_OFFLINE')}"
                seen = f"{name}: models from {claim or 'no claim'}, {offline}"
                yield "cached_weights", bool(claim), seen
        if pod.kind == "Job" and "DASHBOARD_ADDRESS" in env:
            mode = env.get("RAY_AUTH_MODE")
            seen = f"{name}: {env['DASHBOARD_ADDRESS']}, RAY_AUTH_MODE={mode}"
            yield "dashboard", mode == "token", seen


def _share(name: str, share: object) -> Findings:
    if (number := _number(share)) is not None:
        yield "memory_share", 0.85 <= number <= 0.95, f"{name} = {share}"


def _ray(objects: _Objects) -> Findings:
    for body in objects.of("RayCluster", "RayService"):
        cluster = body["spec"].get("rayClusterConfig") or body["spec"]
        mode = _at(cluster, "authOptions", "mode")
        yield "dashboard", mode == "token", f"{_name(body)}: 8265, authOptions.mode={mode}"
        if body["kind"] == "RayService":
            yield "probes", True, f"{_name(body)}: KubeRay gives its pods their probes"
    for body, name, llm in objects.llms():
        engine, deployment = llm.get("engine_kwargs") or {}, llm.get("deployment_config") or {}
        share = engine.get("gpu_memory_utilization")
        yield from _share(f"{name}: gpu_memory_utilization", share)
        source = str(_at(llm, "model_loading_config", "model_source") or "none")
        yield "cached_weights", source.startswith("/"), f"{name}: model_source {source}"
        scaling = deployment.get("autoscaling_config") or {}
        low, high = scaling.get("min_replicas"), scaling.get("max_replicas")
        each, there = int(engine.get("tensor_parallel_size") or 1), _most_gpus(body)
        seen = f"{name}: {low} to {high} replicas of {each} GPUs, {there} GPUs at most"
        fits = None not in (low, high) and (not there or int(high or 0) * each <= there)
        yield "replicas", fits, seen
        limit = deployment.get("max_ongoing_requests")
        takes = int(engine.get("max_num_seqs") or ENGINE_TAKES)
        seen = f"{name}: max_ongoing_requests {limit or 'not set'}, the engine takes {takes}"
        yield "router", limit is None or int(limit) >= takes, seen
        chosen = engine.get("distributed_executor_backend")
        seen = f"{name}: distributed_executor_backend {chosen or 'not set'}"
        yield "executor", chosen != "mp", seen
    for body, application in objects.applications():
        for deployment in application.get("deployments") or []:
            if scaling := deployment.get("autoscaling_config"):
                low, high = scaling.get("min_replicas"), scaling.get("max_replicas")
                seen = f"{_name(body)}/{deployment['name']}: {low} to {high} replicas"
                yield "replicas", None not in (low, high), seen


def _most_gpus(body: Json) -> int:
    """GPUs of a RayService's worker groups: at their largest only where something scales them."""
    cluster = body["spec"]["rayClusterConfig"]
    size = "maxReplicas" if cluster.get("enableInTreeAutoscaling") else "replicas"
    return sum(
        int(group.get(size, group.get("replicas", 1)))
        * int(requests_of(group["template"]["spec"]).get(GPU, 0))
        for group in cluster.get("workerGroupSpecs") or []
    )


def _training(objects: _Objects) -> Findings:
    services = [
        body["metadata"]["name"]
        for body in objects.of("Service")
        if body["spec"].get("clusterIP") == "None" and body["spec"].get("publishNotReadyAddresses")
    ]
    for pod in (pod for pod in objects.pods if pod.kind == "Job"):
        name, env = pod.owner, pod.env
        address, file = env.get("HEAD_ADDRESS", ""), env.get("FILE_NAME", "")
        if pod.count > 1 and address:
            known = [*address.partition(":")[0].split("."), ""][1] in services
            yield "head_address", known, f"{name}: HEAD_ADDRESS {address}"
        elif pod.count > 1 and file:
            yield "head_address", "RUN_ID" in file, f"{name}: file {file!r}"
        if "RECIPE" in env:
            said = {k: v for k, v in env.items() if "TIMEOUT" in k and "NCCL" in k}
            for key, value in said.items():
                long = value.isdigit() and int(value) > 1800
                yield "timeouts", not long, f"{name}: {key}={value}"
            if not said:
                yield "timeouts", True, f"{name}: none set, PyTorch's own limit counts"
            folder = env.get("OUTPUT_DIR", "")
            claim = pod.claim(folder)
            seen = f"{name}: OUTPUT_DIR {folder} on {claim or 'the pod itself'}"
            yield "checkpoints", bool(claim), seen
    for name, recipe in objects.recipes():
        generation = _at(recipe, "policy", "generation") or {}
        share = _number(_at(generation, "vllm_cfg", "gpu_memory_utilization"))
        if share is not None and _at(generation, "colocated", "enabled") is not False:
            seen = f"{name}: policy.generation.vllm_cfg.gpu_memory_utilization = {share}"
            yield "colocated_share", 0.4 <= share <= 0.7, seen
        lora = _at(recipe, "policy", "dtensor_cfg", "lora_cfg") or {}
        if lora.get("enabled"):
            yield "lora", True, f"{name}: lora_cfg.enabled true, dim {lora.get('dim')}"
        if logger := recipe.get("logger") or {}:
            on = [key.removesuffix("_enabled") for key, value in logger.items() if value is True]
            seen = f"{name}: logger {', '.join(on) or 'writes nothing'}"
            yield "training_metrics", bool(on), seen


def _monitoring(objects: _Objects) -> Findings:
    exporters = objects.of("DaemonSet", "ServiceMonitor", "PodMonitor")
    found = [_name(body) for body in exporters if "dcgm" in body["metadata"]["name"].lower()]
    if found:
        yield "gpu_metrics", True, ", ".join(found)
    elif any(pod.device(GPU) for pod in objects.pods):
        seen = "no dcgm-exporter among the objects; it lives in a namespace of its own"
        yield "gpu_metrics", None, seen
    wanted = {"restarts": ("restart",), "OOM": ("oom",), "GPU errors": ("dcgm", "xid", "gpu")}
    rules = objects.of("PrometheusRule")
    text = yaml.safe_dump(rules).lower()
    missing = [name for name, words in wanted.items() if not any(w in text for w in words)]
    names = ", ".join(map(_name, rules))
    if rules:
        without = f" without {', '.join(missing)}" if missing else ""
        yield "alerts", not missing, f"{names}{without}"
    elif objects.bodies:
        yield "alerts", None, "no PrometheusRule among the objects"


def check_production(target: Cluster | Mapping[str, Any] | str | Iterable[Json]) -> CheckList:
    """The checklist's verdicts.

    Args:
        target: A cluster (its `snapshot()` is taken), a snapshot, a profile's name (all of its
            manifests but the labs are rendered), or objects.

    Returns:
        One check an item, named `section: item`.

    Raises:
        ManifestError: There is no such profile.

    Example:
        >>> check_production([])[0].outcome
        'not applicable'
    """
    objects, found = _Objects(_bodies(target)), defaultdict(list)
    for part in (_nodes, _volumes, _pods, _ray, _training, _monitoring):
        for rule, holds, evidence in part(objects):
            found[rule].append((holds, evidence))
    return CheckList(_checked(item, found[item["rule"]]) for item in _items())


@functools.cache
def _items() -> list[dict[str, str]]:
    """The items in their order, each with its `section` and its `rule`'s name."""
    sections = yaml.safe_load(data_path("checklist.yaml").read_text())
    return [
        {"corrected": "", **item, "section": section, "rule": rule}
        for section, items in sections.items()
        for rule, item in items.items()
    ]


def _checked(item: Mapping[str, str], found: list[tuple[bool | None, str]]) -> Check:
    name, verdicts = f"{item['section']}: {item['name']}", [ok for ok, _ in found]
    if not found:
        return Check(name, None, f"no {item['nothing']}", applies=False)
    worst = next((each for each in (False, None) if each in verdicts), True)
    seen = "; ".join(dict.fromkeys(text for ok, text in found if ok is worst))
    return Check(name, worst, seen, "" if worst else item["fix"])


def _bodies(target: Cluster | Mapping[str, Any] | str | Iterable[Json]) -> Iterable[Json]:
    if isinstance(target, str):
        names = [n for n in manifests.components(target) if n not in BROKEN_ON_PURPOSE]
        return [each.body for name in names for each in manifests.render(target, name)]
    if not isinstance(target, Mapping):
        if isinstance(target, Iterable):
            return target
        target = target.snapshot()
    lists = (value for value in target.values() if isinstance(value, list))
    return [each for found in lists for each in found if isinstance(each, dict) and "kind" in each]


def production_table(target: Cluster | Mapping[str, Any] | str | Iterable[Json]) -> pd.DataFrame:
    """The checklist as a table, with what was corrected.

    Args:
        target: As for `check_production`.

    Returns:
        Columns `section`, `item`, `outcome`, `evidence`, `corrected`.

    Example:
        >>> production_table("eks")["outcome"].value_counts()   # doctest: +SKIP
    """
    import pandas as pd

    rows = [
        [item["section"], item["name"], check.outcome, check.evidence, item["corrected"]]
        for item, check in zip(_items(), check_production(target), strict=True)
    ]
    return pd.DataFrame(rows, columns=["section", "item", "outcome", "evidence", "corrected"])
