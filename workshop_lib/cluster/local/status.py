"""What the agent says of each workload, and where things are: read by kernels, from files.

A status outlives its agent. So it says under which agent it was written, and what another
one wrote is known to be about pods that are no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workshop_lib.cluster.kube import (
    CLAIM,
    WORKLOAD_KINDS,
    container_statuses,
    is_true,
    key_of,
    labels_of,
)
from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.cluster.local.network import listening, real_port
from workshop_lib.cluster.local.objects import all_objects, find_object
from workshop_lib.cluster.local.paths import StatePaths, json_files, read_json
from workshop_lib.cluster.local.world import now
from workshop_lib.cluster.records import Remains
from workshop_lib.errors import NotFoundError

__all__ = ["LOST", "Look", "address_of", "find_pod", "identity", "is_over", "look", "remains",
           "take_snapshot"]  # fmt: skip

Json = Mapping[str, Any]

LOST = "does not run any more: this machine was restarted, or its agent was killed"

LOG_BYTES = 65536


class Look(NamedTuple):
    """What is known of an object at one instant."""

    body: dict[str, Any]  # as it was applied
    seen: dict[str, Any]  # what the agent wrote; empty before it wrote anything
    lost: bool  # its pods ended with the agent that owned them

    @property
    def pods(self) -> list[dict[str, Any]]:
        """Its pods."""
        return list(self.seen.get("pods", []))


def identity(paths: StatePaths) -> list[int] | None:
    """The agent's process id and start time while it runs, else None."""
    known = read_json(paths.agent)
    if known and processes.is_running(known["pid"], known["ticks"]):
        return [known["pid"], known["ticks"]]
    return None


def is_over(seen: Json) -> bool:
    """Whether a status is that of a Job that is Complete or Failed."""
    return is_true(seen, "Complete") or is_true(seen, "Failed")


def look(paths: StatePaths, key: str) -> Look:
    """An object and what the agent wrote, as they were together at one instant.

    Nobody has to hold the state's lock for it: apply starts the agent before it stores an
    object, and delete and clean take the object away before they stop the agent. So a
    workload without its agent is lost, if it was there all the time.
    """
    while True:
        body = find_object(paths, key)
        if body is None:
            raise NotFoundError(f"{key} is not there; start it with cluster.apply(...)")
        if body["kind"] not in WORKLOAD_KINDS:
            return Look(body, {}, lost=False)
        seen = read_json(paths.status_file(key))
        running = identity(paths)
        lost = running is None if seen is None else not is_over(seen) and seen["agent"] != running
        again = find_object(paths, key) if lost else body
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
    """A pod that has not ended, by its name or the beginning of it (`ray-cluster-0`)."""
    pods = {
        pod["metadata"]["name"]: pod
        for pod in live_pods(paths)
        if pod["status"]["phase"] in ("Pending", "Running")
    }
    found = [each for each in pods if each == name or each.startswith(f"{name}-")]
    if name in pods or len(found) == 1:
        return pods[name if name in pods else found[0]]
    names = ", ".join(found or pods) or "none"
    problem = "fits several pods" if found else "is no running pod's name"
    raise NotFoundError(f"{name!r} {problem}: {names}")


def address_of(paths: StatePaths, target: str, port: int) -> str:
    """Where a port of a Service or pod really is, as `ip:port`: a ready pod's own address."""
    service = find_object(paths, f"Service/{target}")
    if service is None:
        pod = find_pod(paths, target)
        declared = [p for c in pod["spec"]["containers"] for p in c.get("ports", [])]
        known: dict[int, Any] = {each["containerPort"]: each["containerPort"] for each in declared}
    else:
        entries = service["spec"]["ports"]
        known = {each["port"]: each.get("targetPort", each["port"]) for each in entries}
    if port not in known:
        name = target if service is None else f"Service/{target}"
        ports = ", ".join(map(str, known)) or "none"
        raise NotFoundError(f"{name} has no port {port}; it has {ports}")
    behind = [pod] if service is None else [p for p in live_pods(paths) if _is_behind(service, p)]
    for each in behind:
        wanted = known[port]
        number = real_port(each, wanted) or (wanted if isinstance(wanted, int) else None)
        if number is not None:
            return f"{each['status']['podIP']}:{number}"
    raise NotFoundError(
        f"Service/{target} has no ready pod behind it; wait_ready() on its workload first"
    )


def _is_behind(service: Json, pod: Json) -> bool:
    spec = service["spec"]
    early = spec.get("publishNotReadyAddresses") and pod["status"]["phase"] == "Running"
    selected = spec["selector"].items() <= labels_of(pod).items()
    going = "deletionTimestamp" in pod["metadata"]
    return bool(selected and not going and (is_true(pod, "Ready") or early))


# -- what is there ----------------------------------------------------------------------------


def remains(paths: StatePaths) -> Remains:
    """What of a state is still there; what an object accounts for is not named beside it."""
    bodies = all_objects(paths)
    workloads = [key_of(body) for body in bodies if body["kind"] in WORKLOAD_KINDS]
    found = processes.mentioning(paths.runtime)
    if workloads:  # a shim names its workload
        mark = os.fsencode(f"{paths.runtime}:")
        known = {mark + key.encode() for key in workloads}
        words = {pid: processes.command_line(pid) for pid in found}
        marks = {pid: [w for w in words[pid] if w.startswith(mark)] for pid in found}
        found = [pid for pid in found if marks[pid] and marks[pid][0] not in known]
    lines = {pid: b" ".join(processes.command_line(pid)).decode(errors="replace") for pid in found}
    ours = {pod["status"]["podIP"] for pod in live_pods(paths)} if workloads else set()
    return Remains(
        objects=tuple(sorted(key_of(body) for body in bodies if body["kind"] != CLAIM)),
        running=tuple(f"process {pid}: {line[:80]}" for pid, line in lines.items()),
        ports=tuple(at for at in listening(paths.network) if at.partition(":")[0] not in ours),
        claims=tuple(sorted(b["metadata"]["name"] for b in bodies if b["kind"] == CLAIM)),
    )


SNAPSHOT = {
    "Job": "jobs", "Deployment": "deployments", "Service": "services", "ConfigMap": "configmaps",
    CLAIM: "persistentvolumeclaims", "RayCluster": "rayclusters", "RayService": "rayservices",
}  # fmt: skip
"""What the snapshot holds; Secrets never."""


def take_snapshot(paths: StatePaths) -> dict[str, Any]:
    """The objects of a state, its pods and events, this machine as a node, and the logs' ends."""
    found: dict[str, Any] = {"taken_at": now(), "pods": [], "events": [], "notes": [], "logs": {}}
    found |= {
        key: [] for key in (*SNAPSHOT.values(), "servicemonitors", "podmonitors", "prometheusrules")
    }
    found["nodes"] = [_node()]
    for body in all_objects(paths):
        if body["kind"] not in SNAPSHOT:
            continue
        key, items = key_of(body), found[SNAPSHOT[body["kind"]]]
        try:
            seen = look(paths, key)
        except NotFoundError:
            continue  # another kernel deleted it meanwhile
        status = {"phase": "Bound"} if body["kind"] == CLAIM else seen.seen.get("status", {})
        items.append({**seen.body, "status": status})
        found["events"] += seen.seen.get("events", [])
        if seen.lost:
            found["notes"].append(f"{key} {LOST}; apply it again")
            continue
        found["pods"] += seen.pods
        for pod in seen.pods:
            found["logs"] |= _log_ends(paths.log_folder(key), pod)
    return found


def _node() -> dict[str, Any]:
    """This machine as a node: what it has, always ready."""
    offered = {key: f"{amount:g}" if key in ("cpu", "nvidia.com/gpu") else str(int(amount))
               for key, amount in capacity().items() if amount}  # fmt: skip
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "this-machine", "labels": {}},
        "spec": {}, "status": {"allocatable": offered, "capacity": offered, "conditions": [ready]},
    }  # fmt: skip


def _log_ends(folder: Path, pod: Json) -> dict[str, str]:
    """What a pod's containers wrote last: the last run, and the one before it."""
    pod_name, found = pod["metadata"]["name"], {}
    for name, each in container_statuses(pod).items():
        last = each["restartCount"]
        # While it waits for its next start, the run that ended is the last one.
        for run, key in ((last, ""), (last - 1, "/previous")):
            if text := _tail(folder / pod_name / name / f"{run}.log"):
                found[f"{pod_name}/{name}{key}"] = text
    return found


def _tail(file: Path) -> str:
    """The end of a file, whole lines; empty when there is none, or not any more."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return ""
    end = data if len(data) <= LOG_BYTES else data[-LOG_BYTES:].partition(b"\n")[2]
    return end.decode(errors="replace")
