"""The rules of the production checklist, one function an item: objects in, finding out.

A finding is `(passed, evidence)`: True, False, None for "cannot tell", or the string
`"not applicable"` in place of `passed`. Evidence quotes the object and its value.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from workshop_lib.cluster.catalogue import catalogue
from workshop_lib.cluster.local.machine import parse_quantity
from workshop_lib.production.checks.evidence import EFA, GPU, Objects, Template

__all__ = ["Finding"]

Json = Mapping[str, Any]
Finding: TypeAlias = tuple[bool | Literal["not applicable"] | None, str]

GIB = 2**30
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
LONG_LOAD_S = 300
"""A model of tens of GiB takes minutes to load; a shorter startup probe kills it on the way."""


def _none(what: str) -> Finding:
    return "not applicable", f"no {what}"


def _lists() -> tuple[list[str], list[str]]:
    """For what breaks a rule, and for what keeps it."""
    return [], []


def _verdict(bad: Sequence[str], good: Sequence[str]) -> Finding:
    """Fails with everything bad, else passes with everything good."""
    return (False, "; ".join(dict.fromkeys(bad))) if bad else (
        True, "; ".join(dict.fromkeys(good)))  # fmt: skip


# -- infrastructure -------------------------------------------------------------------------------


def efa_plugin(objects: Objects) -> Finding:
    """GPU nodes offer the EFA devices of their type."""
    using = [each.owner for each in objects.templates if each.efa]
    nodes = objects.of("Node")
    if not using and not any(_efa_of(node)[1] for node in nodes):
        return _none(f"pod asks for {EFA} and no node is of a type that has it")
    if not nodes:
        return None, f"{', '.join(dict.fromkeys(using))} asks for {EFA}; no node can be seen"
    bad, good = _lists()
    for node in nodes:
        name, wanted = _efa_of(node)
        offered = int((node["status"].get("allocatable") or {}).get(EFA, 0))
        if wanted:
            (good if offered == wanted else bad).append(f"{name}: {EFA} {offered} of {wanted}")
    return _verdict(bad, good) if bad or good else (None, f"no node of a type with {EFA} is there")


def _efa_of(node: Json) -> tuple[str, int]:
    kind = (node["metadata"].get("labels") or {}).get(INSTANCE_TYPE, "")
    wanted = catalogue()[kind].efa if kind in catalogue() and catalogue()[kind].gpus > 1 else 0
    return f"Node/{node['metadata']['name']} ({kind})", wanted


def security_group(objects: Objects) -> Finding:
    """Not in any Kubernetes object: the EC2 API knows."""
    if not any(each.efa for each in objects.templates):
        return _none(f"pod asks for {EFA}: TCP needs no such rule")
    return None, "Kubernetes does not know security groups: efa_network.check_security_group"


def primary_cidr(objects: Objects) -> Finding:
    """Whether node addresses lie in the block that EKS users take for secondary CIDRs."""
    if not any(each.efa for each in objects.templates):
        return _none(f"pod asks for {EFA}")
    addresses = [
        (node["metadata"]["name"], each["address"])
        for node in objects.of("Node")
        for each in node["status"].get("addresses") or []
        if each["type"] == "InternalIP"
    ]
    shared = ipaddress.ip_network("100.64.0.0/10")
    odd = [f"Node/{name} {ip}" for name, ip in addresses if ipaddress.ip_address(ip) in shared]
    if odd:
        return None, f"{'; '.join(odd)} look secondary: compare hw counters under load"
    seen = ", ".join(f"Node/{name} {ip}" for name, ip in addresses[:3]) or "no node can be seen"
    return None, f"{seen}: only the VPC knows which block is primary (efa_network.check_subnets)"


def shared_volume(objects: Objects) -> Finding:
    """Claims are for several nodes, to write or to read, and bound where that can be seen."""
    claims = [each for each in objects.of("PersistentVolumeClaim") if not _private(each, objects)]
    if not claims:
        return None, "no PersistentVolumeClaim for several pods among the objects"
    bad, good = _lists()
    open_: list[str] = []
    for claim in claims:
        spec, name = claim["spec"], f"PersistentVolumeClaim/{claim['metadata']['name']}"
        phase = (claim.get("status") or {}).get("phase")
        text = f"{name}: {spec['accessModes']}, {spec.get('storageClassName', 'default class')}"
        many = {"ReadWriteMany", "ReadOnlyMany"} & set(spec["accessModes"])
        if not many or phase in ("Pending", "Lost"):
            bad.append(f"{text}, {phase or 'not applied'}")
        elif phase is None:
            open_.append(f"{text}, not applied")
        else:
            good.append(f"{text}, {phase}")
    if bad or not open_:
        return _verdict(bad, good)
    return None, "; ".join(dict.fromkeys(open_)) + ": whether it is bound shows on the cluster"


def _private(claim: Json, objects: Objects) -> bool:
    """Whether only a Job of one pod mounts a claim: a disk of its own, to work on."""
    name = claim["metadata"]["name"]
    users = [
        (pod.kind, pod.count)
        for pod in objects.templates
        for volume in pod.spec.get("volumes") or []
        if (volume.get("persistentVolumeClaim") or {}).get("claimName") == name
    ]
    return users == [("Job", 1)]


def host_network(objects: Objects) -> Finding:
    """`hostNetwork` where EFA is asked for and nowhere else."""
    loud = [each for each in objects.templates if each.spec.get("hostNetwork")]
    bad = [f"{t.owner}: hostNetwork true without {EFA}" for t in loud if not t.efa]
    good = [f"{t.owner}: hostNetwork true with {EFA} {t.efa}" for t in loud if t.efa]
    return _verdict(bad, good or ["no pod has hostNetwork"])


def shared_memory(objects: Objects) -> Finding:
    """Pods with GPUs have `/dev/shm` in memory, 128 GiB where they have a node's eight."""
    pods = [each for each in objects.templates if each.gpus]
    if not pods:
        return _none(f"pod asks for {GPU}")
    bad, good = _lists()
    for pod in pods:
        found = pod.volume_at("/dev/shm")
        empty = (found[1].get("emptyDir") or {}) if found and found[0] == "/dev/shm" else {}
        size = empty.get("sizeLimit")
        text = f"{pod.owner}: /dev/shm {empty.get('medium', 'none')} {size or ''}".rstrip()
        wanted = 128 * GIB if pod.gpus >= 8 else GIB
        enough = empty.get("medium") == "Memory" and (
            size is None or parse_quantity(size) >= wanted
        )
        (good if enough else bad).append(f"{text}, {pod.gpus} GPUs")
    return _verdict(bad, good)


# -- serving --------------------------------------------------------------------------------------


def _shares(objects: Objects) -> list[tuple[str, float]]:
    """`gpu_memory_utilization` of every server on GPUs."""
    said = [
        (f"{pod.owner}: GPU_MEMORY_UTILIZATION", pod.env.get("GPU_MEMORY_UTILIZATION"))
        for pod in objects.templates
        if pod.gpus
    ]
    for name, config in objects.llm_configs:
        share = (config.get("engine_kwargs") or {}).get("gpu_memory_utilization")
        said.append((f"{name}: gpu_memory_utilization", share))
    return [(name, number) for name, share in said if (number := _number(share)) is not None]


def _number(value: object) -> float | None:
    """A number, also as text; None for anything else, such as a reference to another key."""
    try:
        return float(str(value))
    except ValueError:
        return None


def memory_share(objects: Objects) -> Finding:
    """An explicit share between 0.85 and 0.95 for inference."""
    shares = _shares(objects)
    if not shares:
        return _none("server on GPUs names gpu_memory_utilization")
    bad = [f"{name} = {share}" for name, share in shares if not 0.85 <= share <= 0.95]
    return _verdict(bad, [f"{name} = {share}" for name, share in shares])


def probes(objects: Objects) -> Finding:
    """Startup, readiness and liveness probes, the first long enough for a model to load."""
    servers = [each for each in objects.templates if each.kind == "Deployment"]
    if not servers:
        own = [body["metadata"]["name"] for body in objects.of("RayService")]
        if own:
            return True, f"RayService/{own[0]}: KubeRay gives its pods their probes"
        return _none("Deployment or RayService")
    bad, good = _lists()
    for pod in servers:
        kinds = ("startupProbe", "readinessProbe", "livenessProbe")
        missing = [kind for kind in kinds if kind not in pod.container]
        if missing:
            bad.append(f"{pod.owner}: no {', '.join(missing)}")
            continue
        start = pod.container["startupProbe"]
        window = int(start.get("failureThreshold", 3)) * int(start.get("periodSeconds", 10))
        text = f"{pod.owner}: three probes, {window} s to start"
        (good if window >= LONG_LOAD_S or not pod.gpus else bad).append(text)
    return _verdict(bad, good)


def cached_weights(objects: Objects) -> Finding:
    """Servers read weights from a volume and may not download any."""
    bad, good = _lists()
    for pod in objects.templates:
        if pod.kind != "Deployment" or "MODEL" not in pod.env:
            continue
        volume = pod.volume_at(pod.env.get("MODELS_DIR", "/models"))
        claim = (volume[1].get("persistentVolumeClaim") or {}) if volume else {}
        text = f"{pod.owner}: models from {claim.get('claimName') or 'no claim'}"
        (good if claim else bad).append(f"{text}, HF_HUB_OFFLINE={pod.env.get('HF_HUB_OFFLINE')}")
    for name, config in objects.llm_configs:
        source = str((config.get("model_loading_config") or {}).get("model_source", ""))
        (good if source.startswith("/") else bad).append(f"{name}: model_source {source or 'none'}")
    return _verdict(bad, good) if bad or good else _none("server with a model")


def replicas(objects: Objects) -> Finding:
    """Autoscaled deployments have both bounds, and their workers' GPUs suffice for the upper."""
    bad, good = _lists()
    for name, config in objects.llm_configs:
        scaling = (config.get("deployment_config") or {}).get("autoscaling_config") or {}
        low, high = scaling.get("min_replicas"), scaling.get("max_replicas")
        each = int((config.get("engine_kwargs") or {}).get("tensor_parallel_size", 1))
        there = _most_gpus(objects, name)
        text = f"{name}: {low} to {high} replicas of {each} GPUs, {there} GPUs at most"
        fits = there == 0 or int(high or 0) * each <= there
        (good if low is not None and high is not None and fits else bad).append(text)
    for name, serve in objects.serve_configs:
        applications = serve.get("applications") or []
        for deployment in (each for app in applications for each in app.get("deployments") or []):
            scaling = deployment.get("autoscaling_config") or {}
            if scaling:
                low, high = scaling.get("min_replicas"), scaling.get("max_replicas")
                complete = low is not None and high is not None
                text = f"{name}/{deployment['name']}: {low} to {high} replicas"
                (good if complete else bad).append(text)
    return _verdict(bad, good) if bad or good else _none("autoscaled Serve deployment")


def _most_gpus(objects: Objects, name: str) -> int:
    """GPUs that a RayService's worker groups can have at their largest."""
    for body in objects.of("RayService"):
        if f"RayService/{body['metadata']['name']}" == name:
            groups = body["spec"]["rayClusterConfig"].get("workerGroupSpecs") or []
            return sum(
                int(each.get("maxReplicas", each.get("replicas", 1)))
                * Template(name, "RayService", 1, each["template"]["spec"]).gpus
                for each in groups
            )
    return 0


def executor(objects: Objects) -> Finding:
    """`ray.serve.llm` chooses the executor itself; "mp" is refused on GPUs."""
    if not objects.llm_configs:
        return _none("ray.serve.llm configuration")
    bad, good = _lists()
    for name, config in objects.llm_configs:
        chosen = (config.get("engine_kwargs") or {}).get("distributed_executor_backend")
        (bad if chosen == "mp" else good).append(
            f"{name}: distributed_executor_backend {chosen or 'not set'}"
        )
    return _verdict(bad, good)


# -- training -------------------------------------------------------------------------------------


def _trainers(objects: Objects) -> list[Template]:
    return [each for each in objects.templates if each.kind == "Job" and "RECIPE" in each.env]


def timeouts(objects: Objects) -> Finding:
    """A collective's timeout, where one is set, does not hide a hang for hours."""
    trainers = _trainers(objects)
    if not trainers:
        return _none("training Job")
    bad, good = _lists()
    for pod in trainers:
        said = {name: value for name, value in pod.env.items()
                if "TIMEOUT" in name and "NCCL" in name}  # fmt: skip
        for name, value in said.items():
            long = value.isdigit() and int(value) > 1800
            (bad if long else good).append(f"{pod.owner}: {name}={value}")
        if not said:
            good.append(f"{pod.owner}: none set, PyTorch's own limit counts")
    return _verdict(bad, good)


def head_address(objects: Objects) -> Finding:
    """Workers find their head by a DNS name that belongs to this Job, not by a shared file."""
    jobs = [t for t in objects.templates if t.kind == "Job" and t.count > 1]
    if not jobs:
        return _none("Job of several pods")
    headless = {
        body["metadata"]["name"]: bool(body["spec"].get("publishNotReadyAddresses"))
        for body in objects.of("Service")
        if body["spec"].get("clusterIP") == "None"
    }
    bad, good = _lists()
    for pod in jobs:
        address, file = pod.env.get("HEAD_ADDRESS", ""), pod.env.get("FILE_NAME", "")
        service = address.partition(":")[0].partition(".")[2]
        if address:
            text = f"{pod.owner}: HEAD_ADDRESS {address}"
            ready = headless.get(service.partition(".")[0])
            (good if ready else bad).append(text + ("" if ready else ", no headless Service"))
        elif file:
            (good if "RUN_ID" in file else bad).append(f"{pod.owner}: file {file!r}")
    return _verdict(bad, good) if bad or good else (None, "Jobs name no head")


def checkpoints(objects: Objects) -> Finding:
    """A training writes its checkpoints to a claim."""
    bad, good = _lists()
    for pod in _trainers(objects):
        folder = pod.env.get("OUTPUT_DIR", "")
        volume = pod.volume_at(folder)
        claim = (volume[1].get("persistentVolumeClaim") or {}).get("claimName") if volume else None
        text = f"{pod.owner}: OUTPUT_DIR {folder or 'not set'} on {claim or 'the pod itself'}"
        (good if claim else bad).append(text)
    return _verdict(bad, good) if bad or good else _none("training Job")


def colocated_share(objects: Objects) -> Finding:
    """Beside the trainer vLLM takes 0.4 to 0.7 of a GPU."""
    bad, good = _lists()
    for name, recipe in objects.recipes:
        generation = (recipe.get("policy") or {}).get("generation") or {}
        share = _number((generation.get("vllm_cfg") or {}).get("gpu_memory_utilization"))
        if not (generation.get("colocated") or {}).get("enabled", True) or share is None:
            continue
        (good if 0.4 <= share <= 0.7 else bad).append(
            f"{name}: policy.generation.vllm_cfg.gpu_memory_utilization = {share}"
        )
    return _verdict(bad, good) if bad or good else _none("recipe with colocated generation")


def lora(objects: Objects) -> Finding:
    """LoRA is a choice that memory decides."""
    recipes = objects.recipes
    if not recipes:
        return _none("recipe")
    for name, recipe in recipes:
        config = ((recipe.get("policy") or {}).get("dtensor_cfg") or {}).get("lora_cfg") or {}
        if config.get("enabled"):
            return True, f"{name}: lora_cfg.enabled true, dim {config.get('dim')}"
    names = [(recipe.get("policy") or {}).get("model_name") for _, recipe in recipes]
    model = next((name for name in names if name), "the model")
    return (
        "not applicable",
        f"all of {model} is trained: workshop_lib.serving.memory says whether it fits",
    )


# -- monitoring -----------------------------------------------------------------------------------


def dashboard(objects: Objects) -> Finding:
    """The dashboard has a port to reach it by, and a token in front of it."""
    ray = [t for t in objects.templates if t.kind == "Job" and "DASHBOARD_ADDRESS" in t.env]
    bad, good = _lists()
    for pod in ray:
        mode = pod.env.get("RAY_AUTH_MODE")
        text = f"{pod.owner}: {pod.env['DASHBOARD_ADDRESS']}, RAY_AUTH_MODE={mode}"
        (good if mode == "token" else bad).append(text)
    for body in objects.of("RayCluster", "RayService"):
        cluster = body["spec"].get("rayClusterConfig") or body["spec"]
        mode = (cluster.get("authOptions") or {}).get("mode")
        name = f"{body['kind']}/{body['metadata']['name']}"
        (good if mode == "token" else bad).append(f"{name}: 8265, authOptions.mode={mode}")
    return _verdict(bad, good) if bad or good else _none("Ray cluster")


def gpu_metrics(objects: Objects) -> Finding:
    """Somebody exports GPU metrics."""
    found = [
        f"{body['kind']}/{body['metadata']['name']}"
        for body in objects.of("DaemonSet", "ServiceMonitor", "PodMonitor")
        if "dcgm" in body["metadata"]["name"].lower()
    ]
    if found:
        return True, ", ".join(found)
    if not any(each.gpus for each in objects.templates):
        return _none(f"pod asks for {GPU}")
    return None, "no dcgm-exporter among the objects; it lives in another namespace where it does"


def training_metrics(objects: Objects) -> Finding:
    """A recipe logs its steps somewhere that outlives the pod."""
    bad, good = _lists()
    for name, recipe in objects.recipes:
        logger = recipe.get("logger")
        if logger is None:
            continue
        on = [key.removesuffix("_enabled") for key, value in logger.items()
              if key.endswith("_enabled") and value is True]  # fmt: skip
        (good if on else bad).append(f"{name}: logger {', '.join(on) or 'writes nothing'}")
    return _verdict(bad, good) if bad or good else _none("recipe with a logger")


def alerts(objects: Objects) -> Finding:
    """Rules alert on restarts, memory kills and GPU errors."""
    rules = objects.of("PrometheusRule")
    if not rules:
        return None, "no PrometheusRule among the objects"
    text = " ".join(
        f"{rule.get('alert', '')} {rule.get('expr', '')}".lower()
        for body in rules
        for group in body["spec"]["groups"]
        for rule in group["rules"]
    )
    wanted = {"restarts": ("restart",), "OOM": ("oom",), "GPU errors": ("dcgm", "xid", "gpu")}
    missing = [name for name, words in wanted.items() if not any(w in text for w in words)]
    names = ", ".join(f"PrometheusRule/{body['metadata']['name']}" for body in rules)
    return not missing, names + (f" without {', '.join(missing)}" if missing else "")
