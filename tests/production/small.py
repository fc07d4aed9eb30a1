"""Small snapshots in Kubernetes' form, for what no recording shows."""

from workshop_lib.production.diagnosis import diagnose

TAKEN = "2026-11-21T12:00:00Z"


def at(ago_s):
    """So many seconds before the snapshot."""
    clock = 12 * 3600 - int(ago_s)
    return f"2026-11-21T{clock // 3600:02d}:{clock % 3600 // 60:02d}:{clock % 60:02d}Z"


def running(age_s=1500, ready=False, **more):
    return {"state": {"running": {"startedAt": at(age_s)}}, "ready": ready, **more}


def waiting(reason, message=""):
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def crashed(code=1, reason="Error", ago=60, restarts=6):
    ended = {"exitCode": code, "reason": reason, "finishedAt": at(ago)}
    back_off = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}}
    return {"state": back_off, "lastState": {"terminated": ended}, "restartCount": restarts}


def container(state, name="main", env=None, resources=None, **spec):
    """A container's spec and its status, side by side."""
    named = [{"name": key, "value": value} for key, value in (env or {}).items()]
    asked = {"limits": resources or {}}
    return {"name": name, "image": "image:1", "env": named, "resources": asked, **spec}, {
        "name": name,
        "restartCount": 0,
        "ready": False,
        "started": True,
        **state,
    }


def pod(name, *containers, owner=None, labels=None, inits=(), age=1800, spec=None, **status):
    """A pod on node-a; without containers it waits for a node."""
    ready = bool(containers) and all(each["ready"] for _, each in containers)
    kind, _, owner_name = (owner or "").partition("/")
    owners = [{"kind": kind, "name": owner_name, "controller": True}] if owner else []
    conditions = [
        {"type": "PodScheduled", "status": str(bool(containers))},
        {"type": "Ready", "status": str(ready)},
    ]
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "demo",
            "uid": f"uid-{name}",
            "labels": labels or {},
            "creationTimestamp": at(age),
            "ownerReferences": owners,
        },
        "spec": {
            "containers": [each for each, _ in containers],
            "restartPolicy": "Always",
            "initContainers": [each for each, _ in inits],
            **({"nodeName": "node-a"} if containers else {}),
            **(spec or {}),
        },
        "status": {
            "phase": "Running",
            "startTime": at(age),
            "conditions": conditions,
            "containerStatuses": [each for _, each in containers],
            "initContainerStatuses": [each for _, each in inits],
            **status,
        },
    }


def pending(message, name="vllm-0", resources=None, **more):
    """A pod of which the scheduler says something."""
    condition = {"type": "PodScheduled", "status": "False", "message": message}
    asked = {"containers": [{"name": "main", "resources": {"limits": resources or {}}}]}
    more["spec"] = {**asked, **more.get("spec", {})}
    return pod(name, phase="Pending", conditions=[condition], **more)


def event(about, reason, message, ago=20, normal=False, uid=None):
    kind, _, name = about.partition("/")
    return {
        "kind": "Event",
        "type": "Normal" if normal else "Warning",
        "reason": reason,
        "message": message,
        "count": 5,
        "lastTimestamp": at(ago),
        "metadata": {},
        "involvedObject": {"kind": kind, "name": name, "uid": uid},
    }


def node(name="node-a", taints=(), labels=None, conditions=(), **offers):
    has = {"cpu": "8", "memory": "32Gi", **offers}
    ready = [{"type": "Ready", "status": "True"}, *conditions]
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": has, "conditions": ready},
    }


def thing(kind, name, spec=None, status=None, age=1800, **metadata):
    return {
        "kind": kind,
        "metadata": {"name": name, "creationTimestamp": at(age), **metadata},
        "spec": spec or {},
        "status": status or {},
    }


def service(name, selector, port=8000, **spec):
    ports = [{"port": port, "targetPort": port}]
    return thing("Service", name, {"selector": selector, "ports": ports, **spec})


LISTS = {
    "Pod": "pods",
    "Event": "events",
    "Node": "nodes",
    "Service": "services",
    "Job": "jobs",
    "NetworkPolicy": "networkpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "RayCluster": "rayclusters",
    "RayService": "rayservices",
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "ConfigMap": "configmaps",
    "RayJob": "rayjobs",
}


def snapshot(*things, logs=None, **more):
    """A snapshot of these objects; the lists of the other kinds are empty, nodes unread if none."""
    found = {key: [] for kind, key in LISTS.items() if kind != "Node"}
    for each in things:
        found.setdefault(LISTS[each["kind"]], []).append(each)
    return {"taken_at": TAKEN, **found, "logs": logs or {}, **more}


def look(*things, **more):
    """The diagnosis of a small snapshot."""
    return diagnose(snapshot(*things, **more))
