"""Small clusters in Kubernetes' own JSON, for the diagnosis: pods, events, nodes, controllers."""

import json
import re
from datetime import UTC, datetime, timedelta

from workshop_lib.production.diagnosis import diagnose

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def at(seconds_ago=0.0):
    """A timestamp so long before the snapshot."""
    return (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def snapshot(*bodies, logs=None, **more):
    """A snapshot of these objects; of every kind that is asked of a recording there is a list."""
    lists = {
        "Pod": "pods", "Event": "events", "Job": "jobs", "Service": "services",
        "EndpointSlice": "endpointslices", "PersistentVolumeClaim": "persistentvolumeclaims",
        "ResourceQuota": "resourcequotas", "ConfigMap": "configmaps", "Node": "nodes",
        "Deployment": "deployments", "ReplicaSet": "replicasets", "RayCluster": "rayclusters",
        "RayService": "rayservices", "RayJob": "rayjobs", "Namespace": "namespaces",
        "NetworkPolicy": "networkpolicies", "HorizontalPodAutoscaler": "horizontalpodautoscalers",
    }  # fmt: skip
    found = {"taken_at": at(0)}
    found |= {lists[kind]: [] for kind in list(lists)[:9]}
    for body in bodies:
        found.setdefault(lists[body["kind"]], []).append(body)
    return {**found, "logs": logs or {}, **more}


def container(name="main", image="vllm/vllm-openai:v0.25.1", **more):
    return {"name": name, "image": image, "resources": {}, **more}


def asks(**amounts):
    """A container's resources: `asks(gpu=1, memory="8Gi")`."""
    names = {"gpu": "nvidia.com/gpu", "efa": "vpc.amazonaws.com/efa"}
    wanted = {names.get(key, key.replace("_", "-")): str(v) for key, v in amounts.items()}
    return {"limits": wanted, "requests": wanted}


def pod(name="vllm-0", *, owner=None, labels=None, phase="Running", node="node-a", ready=None,
        statuses=(), inits=(), containers=None, conditions=(), age=300.0, annotations=None,
        reason=None, message=None, policy="Always", deleted=None, finalizers=(),
        **spec):  # fmt: skip
    """A pod; `owner` is `Kind/name`, `ready` sets its condition."""
    metadata = {"name": name, "namespace": "demo", "uid": f"uid-{name}", "labels": labels or {},
                "annotations": annotations or {}, "creationTimestamp": at(age)}  # fmt: skip
    if owner:
        kind, _, of = owner.partition("/")
        metadata["ownerReferences"] = [{"kind": kind, "name": of, "controller": True}]
    if deleted is not None:
        metadata["deletionTimestamp"] = at(deleted)
    if finalizers:
        metadata["finalizers"] = list(finalizers)
    body_spec = {"containers": containers or [container()], "restartPolicy": policy, **spec}
    found = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at(age)}]
    if node:
        body_spec["nodeName"] = node
    if ready is not None:
        found.append({"type": "Ready", "status": "True" if ready else "False",
                      "reason": "" if ready else "ContainersNotReady",
                      "lastTransitionTime": at(age)})  # fmt: skip
    status = {
        "phase": phase, "conditions": [*found, *conditions], "startTime": at(age),
        "containerStatuses": list(statuses), "initContainerStatuses": list(inits),
    }  # fmt: skip
    if reason:
        status["reason"] = reason
    if message:
        status["message"] = message
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body_spec,
            "status": status}  # fmt: skip


def pending(message, name="vllm-0", reason="Unschedulable", **more):
    """A pod that no node takes."""
    body = pod(name, phase="Pending", node=None, **more)
    body["status"]["conditions"] = [{
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "lastTransitionTime": at(200)}]  # fmt: skip
    return body


def status(name="main", state=None, last=None, restarts=0, ready=False, started=None):
    return {"name": name, "image": "x:1", "state": state or {}, "lastState": last or {},
            "restartCount": restarts, "ready": ready,
            "started": "running" in (state or {}) if started is None else started}  # fmt: skip


def waiting(reason, message="", name="main", **more):
    inner = {"reason": reason, **({"message": message} if message else {})}
    return status(name, {"waiting": inner}, **more)


def running(seconds=250.0, name="main", **more):
    return status(name, {"running": {"startedAt": at(seconds)}}, **more)


def ended(code=1, reason=None, message=None, ago=30.0):
    """A terminated state."""
    body = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"),
            "startedAt": at(ago + 5), "finishedAt": at(ago)}  # fmt: skip
    return {"terminated": {**body, **({"message": message} if message else {})}}


def crash_loop(code=1, name="main", restarts=4, **more):
    """A container between two starts."""
    return waiting("CrashLoopBackOff", f"back-off 1m20s restarting failed container={name} pod=x",
                   name, last=ended(code, **more), restarts=restarts)  # fmt: skip


def crashing(name="vllm-0", code=1, text="", *, reason=None, restarts=4, **more):
    """A pod that crashes again and again, and its log."""
    body = pod(name, ready=False, statuses=[crash_loop(code, reason=reason, restarts=restarts)],
               **more)  # fmt: skip
    return body, {f"{name}/main": text} if text else {}


def event(about, reason, message, *, ago=20.0, count=5, kind="Warning", field=None):
    of, _, name = about.partition("/")
    who = {"kind": of, "name": name, "namespace": "demo"}
    if field:
        who["fieldPath"] = f"spec.containers{{{field}}}"
    return {"apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason,
            "message": message, "count": count, "involvedObject": who,
            "metadata": {"name": f"{name}.{abs(hash((reason, message))):x}"},
            "firstTimestamp": at(ago + 60), "lastTimestamp": at(ago)}  # fmt: skip


def node(name="node-a", *, ready="True", taints=(), labels=None, unschedulable=False, message="",
         pressure=None, **offers):  # fmt: skip
    names = {"gpu": "nvidia.com/gpu", "efa": "vpc.amazonaws.com/efa"}
    offered = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    offered |= {names.get(key, key): str(v) for key, v in offers.items()}
    found = [{"type": "Ready", "status": ready, "reason": "KubeletReady", "message": message}]
    if pressure:
        found.append({"type": pressure, "status": "True", "reason": f"KubeletHas{pressure}",
                      "message": f"kubelet has {pressure}"})  # fmt: skip
    spec = {"taints": [dict(zip(("key", "value", "effect"), t, strict=True)) for t in taints]}
    if unschedulable:
        spec["unschedulable"] = True
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels or {}},
            "spec": spec, "status": {
                "allocatable": offered, "capacity": offered, "conditions": found}}  # fmt: skip


def job(name="vllm", *, failed=None, message="", complete=False, labels=None, ago=20.0, **spec):
    found = []
    if failed:
        found = [{"type": kind, "status": "True", "reason": failed, "message": message,
                  "lastTransitionTime": at(ago)} for kind in ("FailureTarget", "Failed")
        ]  # fmt: skip
    if complete:
        found = [{"type": "Complete", "status": "True", "reason": "CompletionsReached"}]
    template = {"metadata": {"labels": labels or {"app": name}}, "spec": {}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {
        "completions": 1, "parallelism": 1, "backoffLimit": 0, "template": template, **spec},
        "status": {"conditions": found, "startTime": at(280)}}  # fmt: skip


def deployment(name="vllm", *, replicas=1, available=0, labels=None, conditions=(), **spec):
    labels = labels or {"app": name}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {}}, **spec},
        "status": {"availableReplicas": available, "updatedReplicas": replicas,
                   "conditions": list(conditions)}}  # fmt: skip


def service(name="vllm", *, selector=None, port=8000, target=None, **spec):
    ports = [{"port": port, "protocol": "TCP", "targetPort": target or port}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
        "selector": {"app": name} if selector is None else selector, "ports": ports,
        "clusterIP": "10.96.0.7", "type": "ClusterIP", **spec}}  # fmt: skip


def claim(name="shared", *, phase="Pending", storage_class="gp3", age=300.0, mode="ReadWriteOnce"):
    spec = {"accessModes": [mode], "resources": {"requests": {"storage": "100Gi"}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "creationTimestamp": at(age)}, "spec": spec,
            "status": {"phase": phase}}  # fmt: skip


def mounts(name="shared"):
    return {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]}


def ray_pod(role, name=None, cluster="raycluster", **more):
    labels = {"ray.io/cluster": cluster, "ray.io/node-type": role,
              "ray.io/group": "headgroup" if role == "head" else "gpu"}  # fmt: skip
    return pod(name or f"{cluster}-{role}-abcde", owner=f"RayCluster/{cluster}", labels=labels,
               **more)  # fmt: skip


def custom(kind, name, conditions=(), age=300.0, spec=None, **status_fields):
    return {"apiVersion": "ray.io/v1", "kind": kind,
            "metadata": {"name": name, "creationTimestamp": at(age)}, "spec": spec or {},
            "status": {"conditions": list(conditions), **status_fields}}  # fmt: skip


def condition(kind, met, reason="", message="", ago=120.0):
    return {"type": kind, "status": "True" if met else "False", "reason": reason,
            "message": message, "lastTransitionTime": at(ago)}  # fmt: skip


def strings(body):
    """Every text in a snapshot."""
    if isinstance(body, str):
        yield body
    elif isinstance(body, dict):
        for each in body.values():
            yield from strings(each)
    elif isinstance(body, list):
        for each in body:
            yield from strings(each)


def check(snap, *rules, cause="", evidence="", objects=()):
    """Diagnose, and hold every finding to what all must be: quoted, fixable, taught."""
    found = diagnose(json.loads(json.dumps(snap)))
    assert found.rules == list(rules), f"{found}"
    texts, whole = set(strings(snap)), json.dumps(snap)
    for each in found:
        assert each.cause[0].isupper() and not re.search(r"[{}]{2}|\{\w+\}", each.cause), each.cause
        assert each.fix and each.taught_in and each.objects and each.evidence
        for quote in each.evidence:
            assert quote and (any(quote in text for text in texts) or quote in whole), quote
        for each_object in each.objects:
            assert re.fullmatch(r"\w+/[\w.-]+", each_object), each_object
    if rules:
        assert cause.lower() in found[0].cause.lower(), found[0].cause
        assert evidence in "\n".join(found[0].evidence), found[0].evidence
        assert set(objects) <= set(found[0].objects), found[0].objects
    return found
