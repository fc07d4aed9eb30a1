"""Kubernetes objects, read: pure functions over their JSON, the same for every cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from workshop_lib.errors import ManifestError

__all__ = [
    "CLAIM", "COMPONENT", "EFA", "GPU", "INDEX", "INSTANCE_TYPE", "LABELS", "POOL", "RAY_CLUSTER",
    "WORKLOAD_KINDS", "Json", "component_of", "conditions", "container_statuses", "events_about",
    "failure", "first_failed", "is_true", "key_of", "labels_of", "own_pods", "parse_quantity",
    "pod_selector", "pod_specs", "pod_state", "readiness", "requests_of", "seconds_since",
]  # fmt: skip

Json = Mapping[str, Any]

WORKLOAD_KINDS = ("Job", "Deployment", "RayCluster", "RayService")
"""The kinds that have pods; a component's handle watches the last of them it holds."""

CLAIM = "PersistentVolumeClaim"
COMPONENT = "app.kubernetes.io/component"
"""Label with the component that an object belongs to."""
LABELS = {
    "app.kubernetes.io/part-of": "ray-vllm-workshop",
    "app.kubernetes.io/managed-by": "workshop-lib",
}
"""What every object of the workshop carries; nothing without them is ever deleted."""
INDEX = "batch.kubernetes.io/job-completion-index"
RAY_CLUSTER = "ray.io/cluster"
GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
POOL = "workshop.techpulse/pool"

# -- names, labels, conditions --------------------------------------------------------------------


def key_of(body: Json) -> str:
    """`Kind/name` of an object."""
    return f"{body['kind']}/{body['metadata']['name']}"


def labels_of(body: Json) -> Json:
    """An object's labels, none if it has none."""
    return (body.get("metadata") or {}).get("labels") or {}


def component_of(body: Json) -> str:
    """The component that an object belongs to; empty when it is none of the workshop's."""
    return str(labels_of(body).get(COMPONENT, ""))


def conditions(body: Json) -> dict[str, Json]:
    """An object's conditions by type."""
    return {c["type"]: c for c in (body.get("status") or {}).get("conditions") or []}


def is_true(body: Json, kind: str) -> bool:
    """Whether an object has a condition, and it is True."""
    return conditions(body).get(kind, {}).get("status") == "True"


def seconds_since(stamp: str) -> float:
    """Seconds from a Kubernetes timestamp until now."""
    then = datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()


# -- quantities -----------------------------------------------------------------------------------

_SUFFIXES = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3,
    "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


def parse_quantity(text: str | int | float) -> float:
    """A Kubernetes quantity (`500m`, `2`, `64Gi`) as a number: cores, bytes or devices."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(?:[eE](\d{1,2})|([A-Za-z]{0,2}))", str(text))
    if match is None or isinstance(text, bool) or (match[3] or "") not in _SUFFIXES:
        raise ManifestError(f"{text!r} is not a Kubernetes quantity; write for example 500m or 2Gi")
    return float(match[1]) * 10.0 ** int(match[2] or 0) * _SUFFIXES[match[3] or ""]


def requests_of(pod_spec: Json) -> dict[str, float]:
    """A pod's requests: the sum over its containers, or an init container's if that is more.

    A limit without a request counts as the request, as the API server fills it in.
    """

    def of(container: Json) -> dict[str, float]:
        resources = container.get("resources") or {}
        wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        return {name: parse_quantity(value) for name, value in wanted.items()}

    total: dict[str, float] = {}
    for container in pod_spec["containers"]:
        for name, amount in of(container).items():
            total[name] = total.get(name, 0.0) + amount
    for container in pod_spec.get("initContainers") or []:
        for name, amount in of(container).items():
            total[name] = max(total.get(name, 0.0), amount)
    return total


def pod_specs(body: Json, *, largest: bool = False) -> Iterator[tuple[int, Json]]:
    """How many pods an object makes, and their spec; a RayCluster's groups one by one.

    `largest` counts an autoscaled worker group at its `maxReplicas`.
    """
    spec = body.get("spec") or {}
    if body["kind"] == "Job":
        yield int(spec.get("parallelism", 1)), spec["template"]["spec"]
    elif body["kind"] in ("Deployment", "DaemonSet", "StatefulSet"):
        yield int(spec.get("replicas", 1)), spec["template"]["spec"]
    elif body["kind"] in ("RayCluster", "RayService", "RayJob"):
        cluster = spec.get("rayClusterConfig") or spec.get("rayClusterSpec") or spec
        yield 1, cluster["headGroupSpec"]["template"]["spec"]
        scales = largest and cluster.get("enableInTreeAutoscaling")
        for group in cluster.get("workerGroupSpecs") or []:
            count = group.get("maxReplicas" if scales else "replicas", 1)
            yield int(count), group["template"]["spec"]


# -- pods -----------------------------------------------------------------------------------------


def container_statuses(pod: Json) -> dict[str, Any]:
    """A pod's containers' statuses by name, in the order in which they run."""
    status = pod.get("status") or {}
    both = [status.get(key) or [] for key in ("initContainerStatuses", "containerStatuses")]
    return {each["name"]: each for some in both for each in some}


def pod_state(pod: Json) -> tuple[str, str]:
    """A pod's state in one word, as kubectl prints it, and the reason in words, if any."""
    status = pod.get("status") or {}
    scheduled = conditions(pod).get("PodScheduled", {})
    if status.get("phase") == "Pending" and scheduled.get("status") == "False":
        return "Pending", scheduled.get("message", "")
    if status.get("reason"):  # of the whole pod: evicted, lost with its node, told to end
        return str(status["reason"]), str(status.get("message", ""))
    statuses = container_statuses(pod)
    for each in statuses.values():
        waiting = (each.get("state") or {}).get("waiting") or {}
        usual = waiting.get("reason") in (None, "ContainerCreating", "PodInitializing")
        if waiting.get("message") or not usual:
            return waiting.get("reason") or "Waiting", waiting.get("message", "")
    for name, each in statuses.items():
        ended = (each.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            reason = f"container {name} ended with exit code {ended['exitCode']}"
            said = f": {ended['message']}" if ended.get("message") else ""
            return ended.get("reason") or "Error", reason + said
    phase = str(status.get("phase", "Unknown"))
    if phase == "Running" and not is_true(pod, "Ready"):
        return "Running", "not ready yet"
    return phase, ""


def first_failed(pods: Iterable[Json]) -> str:
    """The name of the pod whose container ended badly first; empty when none did."""
    ended = [
        # A kubelet that lost the container gives no time: that pod comes last.
        (str(terminated.get("finishedAt") or "~"), str(pod["metadata"]["name"]))
        for pod in pods
        for each in container_statuses(pod).values()
        for state in (each.get("state") or {}, each.get("lastState") or {})
        if (terminated := state.get("terminated") or {}).get("exitCode")
    ]
    return min(ended)[1] if ended else ""


def pod_selector(body: Json) -> str | None:
    """The label selector that finds a workload's pods, perhaps with others; None: it has none."""
    kind, metadata = body["kind"], body["metadata"]
    if kind == "Job":
        return f"batch.kubernetes.io/controller-uid={metadata['uid']}"
    if kind == "Deployment":
        labels = (body["spec"].get("selector") or {}).get("matchLabels") or {}
        return ",".join(f"{key}={value}" for key, value in labels.items())
    if kind == "RayCluster":
        return f"{RAY_CLUSTER}={metadata['name']}"
    if kind == "RayService":
        return RAY_CLUSTER  # any: which clusters it has changes with its status
    return None


def own_pods(body: Json, pods: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the pods that fit a workload's selector its own, rank 0 or the head first."""
    own = list(pods)
    if body["kind"] == "Deployment":  # a stray pod may carry the same labels
        own = [pod for pod in own if _controller(pod).get("kind") == "ReplicaSet"]
    elif body["kind"] == "RayService":
        clusters = _ray_clusters(body)
        own = [pod for pod in own if labels_of(pod).get(RAY_CLUSTER) in clusters]
    return sorted(own, key=_order)


def _controller(body: Json) -> Json:
    owners = body["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


def _ray_clusters(body: Json) -> set[str]:
    """The names of the RayClusters that a RayService has now."""
    status = body.get("status") or {}
    both = [status.get(each) or {} for each in ("activeServiceStatus", "pendingServiceStatus")]
    return {each["rayClusterName"] for each in both if each.get("rayClusterName")}


def _order(pod: Json) -> tuple[int, int, str, str]:
    metadata = pod["metadata"]
    index = (metadata.get("annotations") or {}).get(INDEX, "0")
    head = labels_of(pod).get("ray.io/node-type") == "head"
    made = metadata.get("creationTimestamp") or ""
    return (0 if head else 1, int(index), made, metadata["name"])


def events_about(
    body: Json, pods: Sequence[Json], events: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The events about a workload, its pods and what stands between them, oldest first."""
    name, clusters = body["metadata"]["name"], _ray_clusters(body)
    uids = {body["metadata"].get("uid"), *(pod["metadata"].get("uid") for pod in pods)}
    uids |= {_controller(pod).get("uid") for pod in pods}

    def concerns(event: Json) -> bool:
        about = event.get("involvedObject") or {}
        # A ReplicaSet that may not make its pods (by quota) has no pod to find it by.
        replica_set = body["kind"] == "Deployment" and about.get("kind") == "ReplicaSet"
        return (
            about.get("uid") in uids - {None}
            or (replica_set and str(about.get("name")).rpartition("-")[0] == name)
            or (about.get("kind") == "RayCluster" and about.get("name") in clusters)
        )

    return sorted(filter(concerns, events), key=_seen_at)


def _seen_at(event: Json) -> str:
    series = event.get("series") or {}
    seen = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(seen or event["metadata"].get("creationTimestamp") or "")[:19]


# -- workloads ------------------------------------------------------------------------------------


def readiness(body: Json) -> tuple[int, int, str]:
    """How far a workload is: pods ready, pods wanted, and a line that says so."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    # What a controller said of an earlier version of the object does not count.
    generation = body["metadata"].get("generation")
    if status.get("observedGeneration", generation) != generation:
        status = {}
    body = {**body, "status": status}
    if body["kind"] == "Job":
        wanted = min(spec.get("parallelism", 1), spec.get("completions", 1))
        done = status.get("succeeded") or 0  # a pod that succeeded was ready
        ready = wanted if is_true(body, "Complete") else (status.get("ready") or 0) + done
        return min(ready, wanted), wanted, f"{min(ready, wanted)} of {wanted} pods ready"
    if body["kind"] == "Deployment":
        return _deployment_readiness(spec, status)
    if body["kind"] == "RayCluster":
        return _raycluster_readiness(body, status)
    if body["kind"] != "RayService":
        return 1, 1, "applied"  # nothing that runs
    applications = (status.get("activeServiceStatus") or {}).get("applicationStatuses") or {}
    states = ", ".join(f"{name} {app['status']}" for name, app in applications.items())
    return int(is_true(body, "Ready")), 1, states or "Ray starting"


def _deployment_readiness(spec: Json, status: Json) -> tuple[int, int, str]:
    """As `kubectl rollout status` decides: only pods of the current template count."""
    wanted = spec.get("replicas", 1)
    updated = status.get("updatedReplicas") or 0
    old = (status.get("replicas") or 0) - updated
    ready = max(0, min(updated, (status.get("availableReplicas") or 0) - old))
    if old and ready == wanted:
        ready = wanted - 1
    going = f", {old} old ones going" if old > 0 else ""
    return ready, wanted, f"{ready} of {wanted} pods ready{going}"


def _raycluster_readiness(body: Json, status: Json) -> tuple[int, int, str]:
    """The head, then the workers; `status.state` is deprecated in KubeRay 1.7.

    RayClusterProvisioned alone is no measure: it stays True when workers are added.
    """
    head = int(is_true(body, "HeadPodReady"))
    desired = status.get("desiredWorkerReplicas") or 0
    workers = status.get("readyWorkerReplicas") or 0
    provisioned = int(is_true(body, "RayClusterProvisioned"))
    text = f"head {'ready' if head else 'starting'}, {workers} of {desired} workers ready"
    return head + provisioned + min(workers, desired), 2 + desired, text


def failure(body: Json) -> str | None:
    """Why a workload can no longer succeed, or None."""
    failed = conditions(body).get("Failed", {})
    if failed.get("status") == "True":
        return f"{failed.get('reason')}: {failed.get('message')}"
    active = (body.get("status") or {}).get("activeServiceStatus") or {}
    for name, app in (active.get("applicationStatuses") or {}).items():
        if app["status"] == "DEPLOY_FAILED":
            return f"application {name} is DEPLOY_FAILED: {app.get('message', '')}"
    return None
