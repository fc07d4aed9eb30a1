"""What the agent says of each workload, and where things are: read by kernels, from files.

A status outlives its agent. So it says under which agent it was written, and what another
one wrote is known to be about pods that are no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import CLAIM, WORKLOAD_KINDS, key_of
from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.cluster.local.network import listening, real_port
from workshop_lib.cluster.local.objects import all_objects, find_object
from workshop_lib.cluster.local.paths import StatePaths, json_files, read_json, remove_tree
from workshop_lib.cluster.local.world import now
from workshop_lib.cluster.records import Remains
from workshop_lib.errors import NotFoundError

__all__ = [
    "Look", "address_of", "find_pod", "forget", "identity", "is_over", "look", "read_status",
    "remains", "status_file", "take_snapshot",
]  # fmt: skip

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Look:
    """What is known of an object at one instant.

    Attributes:
        body: The object as it was applied.
        seen: What the agent wrote; empty before it wrote anything.
        lost: Whether its pods ended with the agent that owned them.
    """

    body: dict[str, Any]
    seen: dict[str, Any]
    lost: bool


def identity(paths: StatePaths) -> list[int] | None:
    """The agent's process id and start time while it runs, else None."""
    known = read_json(paths.agent)
    if known and processes.is_running(known["pid"], known["ticks"]):
        return [known["pid"], known["ticks"]]
    return None


def status_file(paths: StatePaths, key: str) -> Path:
    """The status file of a workload, by its `Kind/name`."""
    return paths.statuses / f"{key.replace('/', '.', 1)}.json"


def read_status(paths: StatePaths, key: str) -> dict[str, Any] | None:
    """What the agent wrote last of a workload; None before it wrote anything."""
    found: dict[str, Any] | None = read_json(status_file(paths, key))
    return found


def forget(paths: StatePaths, key: str) -> None:
    """Remove what is kept of a workload that ended: its logs, and then its status."""
    remove_tree(paths.logs / key.replace("/", ".", 1))
    status_file(paths, key).unlink(missing_ok=True)


def is_over(seen: Json | None) -> bool:
    """Whether a status is that of a Job that is Complete or Failed."""
    conditions = ((seen or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def look(paths: StatePaths, kind: str, name: str) -> Look:
    """An object and what the agent wrote, as they were together at one instant.

    Nobody has to hold the state's lock for it: apply starts the agent before it stores an
    object, and delete and clean take the object away before they stop the agent. So a
    workload without its agent is lost, if it was there all the time.

    Raises:
        NotFoundError: There is no such object.
    """
    while True:
        body = find_object(paths, kind, name)
        if body is None:
            raise NotFoundError(f"{kind}/{name} is not there; start it with cluster.apply(...)")
        if kind not in WORKLOAD_KINDS:
            return Look(body, {}, lost=False)
        seen = read_status(paths, f"{kind}/{name}")
        running = identity(paths)
        lost = running is None if seen is None else not is_over(seen) and seen["agent"] != running
        again = find_object(paths, kind, name) if lost else body
        if again is not None and again["metadata"]["uid"] == body["metadata"]["uid"]:
            return Look(body, seen or {}, lost)


def live_pods(paths: StatePaths) -> Iterator[dict[str, Any]]:
    """The pods of every workload whose agent still runs."""
    running = identity(paths)
    for file in json_files(paths.statuses):
        seen = read_json(file)
        if seen and seen["agent"] == running:
            yield from seen["pods"]


# -- reaching pods ----------------------------------------------------------------------------


def find_pod(paths: StatePaths, name: str) -> dict[str, Any]:
    """A pod that has not ended, by its name or the beginning of it (`ray-cluster-0`).

    Raises:
        NotFoundError: No pod has that name, or several do.
    """
    pods = [pod for pod in live_pods(paths) if pod["status"]["phase"] in ("Pending", "Running")]
    exact = [pod for pod in pods if pod["metadata"]["name"] == name]
    found = exact or [pod for pod in pods if pod["metadata"]["name"].startswith(f"{name}-")]
    if len(found) != 1:
        names = ", ".join(pod["metadata"]["name"] for pod in found or pods) or "none"
        problem = "fits several pods" if found else "is no running pod's name"
        raise NotFoundError(f"{name!r} {problem}: {names}")
    return found[0]


def address_of(paths: StatePaths, target: str, port: int) -> str:
    """Where a port of a Service or pod really is, as `ip:port`: a ready pod's own address.

    Raises:
        NotFoundError: No such target, port or ready pod.
    """
    service = find_object(paths, "Service", target)
    if service is None:
        pod = find_pod(paths, target)
        if (real := real_port(pod, port)) is None:
            known = [
                p["containerPort"] for c in pod["spec"]["containers"] for p in c.get("ports", [])
            ]
            ports = ", ".join(map(str, known)) or "none"
            raise NotFoundError(f"{target} has no port {port}; it has {ports}")
        return f"{pod['status']['podIP']}:{real}"
    entries = {entry["port"]: entry for entry in service["spec"].get("ports", [])}
    if port not in entries:
        ports = ", ".join(map(str, entries)) or "none"
        raise NotFoundError(f"Service/{target} has no port {port}; it has {ports}")
    wanted = entries[port].get("targetPort", port)
    for pod in live_pods(paths):
        if _is_behind(service, pod):
            number = real_port(pod, wanted) or (wanted if isinstance(wanted, int) else None)
            if number is not None:
                return f"{pod['status']['podIP']}:{number}"
    raise NotFoundError(
        f"Service/{target} has no ready pod behind it; wait_ready() on its workload first"
    )


def _is_behind(service: Json, pod: Json) -> bool:
    """Whether a Service sends connections to a pod now."""
    selector = service["spec"].get("selector") or {}
    conditions = {c["type"]: c["status"] for c in pod["status"]["conditions"]}
    early = service["spec"].get("publishNotReadyAddresses") and pod["status"]["phase"] == "Running"
    return bool(
        selector
        and not selector.items() - pod["metadata"]["labels"].items()
        and "deletionTimestamp" not in pod["metadata"]
        and (conditions.get("Ready") == "True" or early)
    )


# -- what is there ----------------------------------------------------------------------------


def remains(paths: StatePaths) -> Remains:
    """What of a state is still there; what an object accounts for is not named beside it."""
    bodies = all_objects(paths)
    workloads = [key_of(body) for body in bodies if body["kind"] in WORKLOAD_KINDS]
    found = processes.mentioning(paths.runtime)
    if workloads:
        mark = f"{paths.runtime}:"
        marks = {pid: _marks(pid, mark) for pid in found}
        found = [pid for pid, keys in marks.items() if keys and keys[0] not in workloads]
    lines = {pid: b" ".join(processes.command_line(pid)).decode(errors="replace") for pid in found}
    known = {pod["status"]["podIP"] for pod in live_pods(paths)} if workloads else set()
    return Remains(
        objects=tuple(sorted(key_of(body) for body in bodies if body["kind"] != CLAIM)),
        running=tuple(f"process {pid}: {line[:80]}" for pid, line in lines.items()),
        ports=tuple(a for a in listening(paths.network) if a.partition(":")[0] not in known),
        claims=tuple(sorted(b["metadata"]["name"] for b in bodies if b["kind"] == CLAIM)),
    )


def _marks(pid: int, mark: str) -> list[str]:
    """The workloads that a process's command line names: a shim has one."""
    words = [word.decode(errors="replace") for word in processes.command_line(pid)]
    return [word.removeprefix(mark) for word in words if word.startswith(mark)]


SNAPSHOT = {
    "Job": "jobs", "Deployment": "deployments", "Service": "services", "ConfigMap": "configmaps",
    "PersistentVolumeClaim": "persistentvolumeclaims", "RayCluster": "rayclusters",
    "RayService": "rayservices",
}  # fmt: skip
"""What the snapshot holds; Secrets never."""

LOG_BYTES = 65536


def take_snapshot(paths: StatePaths) -> dict[str, Any]:
    """The objects of a state, its pods and events, this machine as a node, and the logs' ends."""
    found: dict[str, Any] = {"taken_at": now(), "pods": [], "events": [], "notes": [], "logs": {}}
    found |= {
        key: [] for key in (*SNAPSHOT.values(), "servicemonitors", "podmonitors", "prometheusrules")
    }
    found["nodes"] = [_node()]
    for body in all_objects(paths):
        kind, name = body["kind"], body["metadata"]["name"]
        if kind not in SNAPSHOT:
            continue
        try:
            seen = look(paths, kind, name)
        except NotFoundError:
            continue  # another kernel deleted it meanwhile
        if kind not in WORKLOAD_KINDS:
            bound = {"status": {"phase": "Bound"}} if kind == CLAIM else {}
            found[SNAPSHOT[kind]].append({**seen.body, **bound})
            continue
        found[SNAPSHOT[kind]].append({**seen.body, "status": seen.seen.get("status", {})})
        found["events"] += seen.seen.get("events", [])
        if seen.lost:
            found["notes"].append(f"{kind}/{name} {LOST}; apply it again")
            continue
        pods = seen.seen.get("pods", [])
        found["pods"] += pods
        folder = paths.logs / f"{kind}.{name}"
        found["logs"] |= {key: text for pod in pods for key, text in _log_ends(folder, pod)}
    return found


LOST = "does not run any more: this machine was restarted, or its agent was killed"


def _node() -> dict[str, Any]:
    """This machine as a node: what it has, always ready."""
    offered = {key: f"{amount:g}" if key in ("cpu", "nvidia.com/gpu") else str(int(amount))
               for key, amount in capacity().items() if amount}  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "this-machine", "labels": {}},
        "spec": {},
        "status": {"allocatable": offered, "capacity": offered,
                   "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
    }  # fmt: skip


def _log_ends(folder: Path, pod: Json) -> Iterator[tuple[str, str]]:
    """What a pod's containers wrote last: the last run, and the one before it."""
    name, status = pod["metadata"]["name"], pod["status"]
    for each in [*status["initContainerStatuses"], *status["containerStatuses"]]:
        last = each["restartCount"]
        # While it waits for its next start, the run that ended is the last one.
        for run, key in ((last, ""), (last - 1, "/previous")):
            file = folder / name / each["name"] / f"{run}.log"
            if file.exists() and (text := _tail(file)):
                yield f"{name}/{each['name']}{key}", text


def _tail(file: Path) -> str:
    """The end of a file, whole lines; empty when it was removed meanwhile."""
    try:
        with file.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - LOG_BYTES))
            data = log.read()
    except FileNotFoundError:
        return ""
    return (data.partition(b"\n")[2] if size > LOG_BYTES else data).decode(errors="replace")
