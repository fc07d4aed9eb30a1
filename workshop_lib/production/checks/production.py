"""The production checklist, evaluated on a cluster or on manifests, with evidence.

The items, their fixes and what was corrected of the workshop's first checklist are in
`data/checklist.yaml`; here is a rule for each.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
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
Findings = Iterator[tuple[bool | None, str]]
"""What a rule saw, object by object: whether it holds (None: cannot be told), and the evidence."""

GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
BROKEN_ON_PURPOSE = ("lab-server", "stale-address")
ENGINE_TAKES = 256
"""vLLM's `max_num_seqs` where none is set: requests that an engine works on at once."""


RULES: dict[str, Callable[[_Objects], Findings]] = {}
"""A rule by its name in `data/checklist.yaml`; it says nothing when it is not asked here."""


def _rule(rule: Callable[[_Objects], Findings]) -> Callable[[_Objects], Findings]:
    RULES[rule.__name__] = rule
    return rule


@dataclass(frozen=True)
class _Pod:
    """The pods that a workload makes: `Kind/name`, the kind, how many, their spec."""

    owner: str
    kind: str
    count: int
    spec: Json

    @property
    def container(self) -> Json:
        first: Json = self.spec["containers"][0]
        return first

    def device(self, name: str) -> int:
        return int(requests_of(self.spec).get(name, 0))

    @property
    def env(self) -> dict[str, str]:
        entries = self.container.get("env") or []
        return {each["name"]: str(each["value"]) for each in entries if "value" in each}

    def volume(self, path: str) -> Json:
        """The volume that holds a path of the main container; empty without one."""
        mounts = {
            m["mountPath"].rstrip("/"): m["name"] for m in self.container.get("volumeMounts") or []
        }
        fitting = [place for place in mounts if f"{path}/".startswith(f"{place}/")]
        volumes = {each["name"]: each for each in self.spec.get("volumes") or []}
        return volumes.get(mounts[max(fitting, key=len)], {}) if fitting else {}

    def claim(self, path: str) -> str:
        """The claim that holds a path; empty when it is no claim's."""
        found = (self.volume(path).get("persistentVolumeClaim") or {}).get("claimName", "")
        return str(found)


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

    def of(self, *kinds: str) -> list[Json]:
        return [body for body in self.bodies if body.get("kind") in kinds]

    def serving(self) -> Iterator[tuple[Json, Json]]:
        """Each RayService with its parsed Serve configuration."""
        for body in self.of("RayService"):
            yield body, yaml.safe_load(body["spec"].get("serveConfigV2") or "{}") or {}

    def llms(self) -> Iterator[tuple[Json, str, Json]]:
        """Each `LLMConfig`, with its RayService and name."""
        for body, serve in self.serving():
            for application in serve.get("applications") or []:
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
    """A number, also as text; None for anything else, such as a reference to another key."""
    with suppress(ValueError):
        return float(str(value))
    return None


# -- infrastructure -------------------------------------------------------------------------------


@_rule
def efa_plugin(objects: _Objects) -> Findings:
    using = [pod.owner for pod in objects.pods if pod.device(EFA)]
    nodes = objects.of("Node")
    if using and not nodes:
        yield None, f"{', '.join(dict.fromkeys(using))} asks for {EFA}; no node can be seen"
    for node in nodes:
        kind = (node["metadata"].get("labels") or {}).get(INSTANCE_TYPE, "")
        found = catalogue().get(kind)
        if found is not None and found.efa and found.gpus > 1:
            offered = int((node["status"].get("allocatable") or {}).get(EFA, 0))
            yield offered == found.efa, f"{_name(node)} ({kind}): {EFA} {offered} of {found.efa}"


@_rule
def security_group(objects: _Objects) -> Findings:
    if any(pod.device(EFA) for pod in objects.pods):
        yield None, "Kubernetes does not know security groups: check_network(ec2, ...) does"


@_rule
def primary_cidr(objects: _Objects) -> Findings:
    if not any(pod.device(EFA) for pod in objects.pods):
        return
    addresses = [
        f"{_name(node)} {each['address']}"
        for node in objects.of("Node")
        for each in node["status"].get("addresses") or []
        if each["type"] == "InternalIP"
    ]
    shared = ipaddress.ip_network("100.64.0.0/10")  # what EKS users take for secondary CIDRs
    odd = [each for each in addresses if ipaddress.ip_address(each.split()[1]) in shared]
    seen = ", ".join(odd or addresses[:3]) or "no node can be seen"
    yield None, f"{seen}{' looks secondary' if odd else ''}: only the VPC knows its primary block"


@_rule
def shared_volume(objects: _Objects) -> Findings:
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
        where = spec.get("storageClassName", "default class")
        seen = f"{_name(body)}: {spec['accessModes']}, {where}, {phase or 'not applied'}"
        yield bound if many else False, seen


@_rule
def host_network(objects: _Objects) -> Findings:
    loud = [pod for pod in objects.pods if pod.spec.get("hostNetwork")]
    for pod in loud:
        yield bool(pod.device(EFA)), f"{pod.owner}: hostNetwork true, {EFA} {pod.device(EFA)}"
    if objects.pods and not loud:
        yield True, "no pod has hostNetwork"


@_rule
def shared_memory(objects: _Objects) -> Findings:
    for pod in objects.pods:
        if gpus := pod.device(GPU):
            found = pod.volume("/dev/shm").get("emptyDir") or {}
            medium, size = found.get("medium", "none"), found.get("sizeLimit")
            wanted = (128 if gpus >= 8 else 1) * 2**30
            enough = medium == "Memory" and (size is None or parse_quantity(size) >= wanted)
            yield enough, f"{pod.owner}: /dev/shm {medium} {size or 'no limit'}, {gpus} GPUs"


# -- serving --------------------------------------------------------------------------------------


@_rule
def memory_share(objects: _Objects) -> Findings:
    said = [
        (f"{pod.owner}: GPU_MEMORY_UTILIZATION", pod.env.get("GPU_MEMORY_UTILIZATION"))
        for pod in objects.pods
        if pod.device(GPU)
    ]
    said += [
        (f"{name}: gpu_memory_utilization", _at(llm, "engine_kwargs", "gpu_memory_utilization"))
        for _, name, llm in objects.llms()
    ]
    for name, share in said:
        if (number := _number(share)) is not None:
            yield 0.85 <= number <= 0.95, f"{name} = {share}"


@_rule
def probes(objects: _Objects) -> Findings:
    for pod in objects.pods:
        if pod.kind != "Deployment":
            continue
        kinds = ("startupProbe", "readinessProbe", "livenessProbe")
        missing = [kind for kind in kinds if kind not in pod.container]
        if missing:
            yield False, f"{pod.owner}: no {', '.join(missing)}"
            continue
        budget_s = probe_budget_s(pod.container["startupProbe"])
        enough = budget_s >= LOADING_S or not pod.device(GPU)
        yield enough, f"{pod.owner}: three probes, {budget_s} s to start"
    for body in objects.of("RayService"):
        yield True, f"{_name(body)}: KubeRay gives its pods their probes"


@_rule
def cached_weights(objects: _Objects) -> Findings:
    for pod in objects.pods:
        if pod.kind == "Deployment" and "MODEL" in pod.env:
            claim = pod.claim(pod.env.get("MODELS_DIR", "/models"))
            offline = f"HF_HUB_OFFLINE={pod.env.get('HF_HUB_OFFLINE')}"
            yield bool(claim), f"{pod.owner}: models from {claim or 'no claim'}, {offline}"
    for _, name, llm in objects.llms():
        source = str(_at(llm, "model_loading_config", "model_source") or "none")
        yield source.startswith("/"), f"{name}: model_source {source}"


@_rule
def replicas(objects: _Objects) -> Findings:
    for body, name, llm in objects.llms():
        bounds = [
            _at(llm, "deployment_config", "autoscaling_config", key)
            for key in ("min_replicas", "max_replicas")
        ]
        each = int(_at(llm, "engine_kwargs", "tensor_parallel_size") or 1)
        there = _most_gpus(body)
        seen = f"{name}: {bounds[0]} to {bounds[1]} replicas of {each} GPUs, {there} GPUs at most"
        yield None not in bounds and (not there or int(bounds[1]) * each <= there), seen
    for body, serve in objects.serving():
        for application in serve.get("applications") or []:
            for deployment in application.get("deployments") or []:
                if scaling := deployment.get("autoscaling_config"):
                    low, high = scaling.get("min_replicas"), scaling.get("max_replicas")
                    seen = f"{_name(body)}/{deployment['name']}: {low} to {high} replicas"
                    yield None not in (low, high), seen


def _most_gpus(body: Json) -> int:
    """GPUs of a RayService's worker groups: at their largest only where something scales them."""
    cluster = body["spec"]["rayClusterConfig"]
    size = "maxReplicas" if cluster.get("enableInTreeAutoscaling") else "replicas"
    return sum(
        int(group.get(size, group.get("replicas", 1)))
        * int(requests_of(group["template"]["spec"]).get(GPU, 0))
        for group in cluster.get("workerGroupSpecs") or []
    )


@_rule
def router(objects: _Objects) -> Findings:
    for _, name, llm in objects.llms():
        limit = _at(llm, "deployment_config", "max_ongoing_requests")
        takes = int(_at(llm, "engine_kwargs", "max_num_seqs") or ENGINE_TAKES)
        seen = f"{name}: max_ongoing_requests {limit or 'not set'}, the engine takes {takes}"
        yield limit is None or int(limit) >= takes, seen


@_rule
def executor(objects: _Objects) -> Findings:
    for _, name, llm in objects.llms():
        chosen = _at(llm, "engine_kwargs", "distributed_executor_backend")
        yield chosen != "mp", f"{name}: distributed_executor_backend {chosen or 'not set'}"


# -- training -------------------------------------------------------------------------------------


def _trainers(objects: _Objects) -> list[_Pod]:
    return [pod for pod in objects.pods if pod.kind == "Job" and "RECIPE" in pod.env]


@_rule
def timeouts(objects: _Objects) -> Findings:
    for pod in _trainers(objects):
        said = {k: v for k, v in pod.env.items() if "TIMEOUT" in k and "NCCL" in k}
        for name, value in said.items():
            yield not (value.isdigit() and int(value) > 1800), f"{pod.owner}: {name}={value}"
        if not said:
            yield True, f"{pod.owner}: none set, PyTorch's own limit counts"


@_rule
def head_address(objects: _Objects) -> Findings:
    headless = {
        body["metadata"]["name"]
        for body in objects.of("Service")
        if body["spec"].get("clusterIP") == "None" and body["spec"].get("publishNotReadyAddresses")
    }
    for pod in objects.pods:
        if pod.kind != "Job" or pod.count < 2:
            continue
        address, file = pod.env.get("HEAD_ADDRESS", ""), pod.env.get("FILE_NAME", "")
        if address:
            known = address.partition(":")[0].split(".")[1:2]
            yield set(known) <= headless and bool(known), f"{pod.owner}: HEAD_ADDRESS {address}"
        elif file:
            yield "RUN_ID" in file, f"{pod.owner}: file {file!r}"


@_rule
def checkpoints(objects: _Objects) -> Findings:
    for pod in _trainers(objects):
        folder = pod.env.get("OUTPUT_DIR", "")
        claim = pod.claim(folder)
        yield bool(claim), f"{pod.owner}: OUTPUT_DIR {folder} on {claim or 'the pod itself'}"


@_rule
def colocated_share(objects: _Objects) -> Findings:
    for name, recipe in objects.recipes():
        generation = _at(recipe, "policy", "generation") or {}
        share = _number(_at(generation, "vllm_cfg", "gpu_memory_utilization"))
        if share is not None and _at(generation, "colocated", "enabled") is not False:
            seen = f"{name}: policy.generation.vllm_cfg.gpu_memory_utilization = {share}"
            yield 0.4 <= share <= 0.7, seen


@_rule
def lora(objects: _Objects) -> Findings:
    for name, recipe in objects.recipes():
        config = _at(recipe, "policy", "dtensor_cfg", "lora_cfg") or {}
        if config.get("enabled"):
            yield True, f"{name}: lora_cfg.enabled true, dim {config.get('dim')}"


# -- monitoring -----------------------------------------------------------------------------------


@_rule
def dashboard(objects: _Objects) -> Findings:
    for pod in objects.pods:
        if pod.kind == "Job" and "DASHBOARD_ADDRESS" in pod.env:
            mode, address = pod.env.get("RAY_AUTH_MODE"), pod.env["DASHBOARD_ADDRESS"]
            yield mode == "token", f"{pod.owner}: {address}, RAY_AUTH_MODE={mode}"
    for body in objects.of("RayCluster", "RayService"):
        cluster = body["spec"].get("rayClusterConfig") or body["spec"]
        mode = _at(cluster, "authOptions", "mode")
        yield mode == "token", f"{_name(body)}: 8265, authOptions.mode={mode}"


@_rule
def gpu_metrics(objects: _Objects) -> Findings:
    exporters = objects.of("DaemonSet", "ServiceMonitor", "PodMonitor")
    found = [_name(body) for body in exporters if "dcgm" in body["metadata"]["name"].lower()]
    if found:
        yield True, ", ".join(found)
    elif any(pod.device(GPU) for pod in objects.pods):
        yield None, "no dcgm-exporter among the objects; it lives in a namespace of its own"


@_rule
def training_metrics(objects: _Objects) -> Findings:
    for name, recipe in objects.recipes():
        logger = recipe.get("logger") or {}
        on = [key.removesuffix("_enabled") for key, value in logger.items() if value is True]
        if logger:
            yield bool(on), f"{name}: logger {', '.join(on) or 'writes nothing'}"


@_rule
def alerts(objects: _Objects) -> Findings:
    wanted = {"restarts": ("restart",), "OOM": ("oom",), "GPU errors": ("dcgm", "xid", "gpu")}
    rules = objects.of("PrometheusRule")
    text = yaml.safe_dump(rules).lower()
    missing = [name for name, words in wanted.items() if not any(w in text for w in words)]
    names = ", ".join(map(_name, rules))
    if rules:
        yield not missing, names + (f" without {', '.join(missing)}" if missing else "")
    elif objects.bodies:
        yield None, "no PrometheusRule among the objects"


# -- evaluated ------------------------------------------------------------------------------------


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
    objects = _Objects(_bodies(target))
    return CheckList(_checked(item, objects) for item in _items())


@functools.cache
def _items() -> list[dict[str, str]]:
    """The items in their order, each with its `section` and its `rule`'s name."""
    sections = yaml.safe_load(data_path("checklist.yaml").read_text())
    return [
        {"corrected": "", **item, "section": section, "rule": rule}
        for section, items in sections.items()
        for rule, item in items.items()
    ]


def _checked(item: Mapping[str, str], objects: _Objects) -> Check:
    name, found = f"{item['section']}: {item['name']}", list(RULES[item["rule"]](objects))
    if not found:
        return Check(name, None, f"no {item['nothing']}", applies=False)
    worst = next((each for each in (False, None) if each in [ok for ok, _ in found]), True)
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
