"""What the runners say of their workloads: one status file each, written whole.

A file outlives its runner. So it says under which supervisord it was written, and
what another one wrote is known to be about pods that are no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workshop_lib.cluster.kube import WORKLOAD_KINDS
from workshop_lib.cluster.local.objects import find_object
from workshop_lib.cluster.local.paths import StatePaths, json_files, read_json, write_json
from workshop_lib.cluster.local.supervisor import Supervisor
from workshop_lib.errors import NotFoundError

__all__ = ["Look", "is_over", "live_pods", "look", "read_status", "reset_status", "status_file"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """What is known of an object at one instant.

    Attributes:
        body: The object as it was applied.
        seen: What its runner wrote; empty before it wrote anything.
        lost: Whether its pods ended with the supervisord that owned them.
    """

    body: Json
    seen: Json
    lost: bool


def status_file(paths: StatePaths, key: str) -> Any:
    """The status file of a workload.

    Args:
        paths: The state's files.
        key: `Kind/name`.
    """
    return paths.statuses / f"{key.replace('/', '.')}.json"


def read_status(paths: StatePaths, key: str) -> Json | None:
    """What a workload's runner wrote last; None before it wrote anything."""
    return read_json(status_file(paths, key))


def is_over(seen: Mapping[str, Any] | None) -> bool:
    """Whether a status is that of a Job that is Complete or Failed."""
    conditions = ((seen or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def is_lost(seen: Mapping[str, Any], identity: tuple[int, int] | None) -> bool:
    """Whether the pods of a status ended with the supervisord that owned them.

    Args:
        seen: A status file's content.
        identity: The supervisord that runs now.
    """
    return not is_over(seen) and tuple(seen.get("supervisor", ())) != identity


def look(paths: StatePaths, kind: str, name: str) -> Look:
    """An object and what its runner wrote, as they were together at one instant.

    Nobody has to hold the state's lock for it: apply starts supervisord before it stores
    an object, and delete and clean take the object away before they stop supervisord.
    So a workload without its supervisord is lost, if it was there all the time.

    Args:
        paths: The state's files.
        kind: The object's kind.
        name: Its name.

    Raises:
        NotFoundError: There is no such object.
    """
    while True:
        body = find_object(paths, kind, name)
        if body is None:
            raise NotFoundError(f"{kind}/{name} is not there; start it with cluster.apply(...)")
        if kind not in WORKLOAD_KINDS:
            return Look(body, {"generation": body["metadata"].get("generation")}, lost=False)
        seen = read_status(paths, f"{kind}/{name}")
        identity = Supervisor(paths).identity()
        lost = identity is None if seen is None else is_lost(seen, identity)
        again = find_object(paths, kind, name) if lost else body
        if again is not None and again["metadata"]["uid"] == body["metadata"]["uid"]:
            return Look(body, seen or {}, lost)


def live_pods(paths: StatePaths) -> Iterator[Json]:
    """The pods of every workload whose supervisord still runs."""
    identity = Supervisor(paths).identity()
    for file in json_files(paths.statuses):
        seen = read_json(file)
        if seen and tuple(seen.get("supervisor", ())) == identity:
            yield from seen["pods"]


def reset_status(paths: StatePaths, key: str) -> None:
    """Take back what a status says of pods that ended with their runner.

    What a Job has achieved stays: the next runner goes on from it.
    """
    seen = read_status(paths, key)
    if seen is None or is_over(seen):
        return
    seen["supervisor"] = Supervisor(paths).identity() or (0, 0)
    if key.startswith("Job/"):
        seen["status"]["ready"] = 0
    else:
        seen["status"], seen["pods"] = {}, []
    for pod in seen["pods"]:
        if pod["status"]["phase"] not in ("Succeeded", "Failed"):
            pod["status"]["phase"] = "Failed"
            pod["status"]["reason"] = "NodeLost"
            pod["status"]["message"] = "the process that ran it was killed"
            for condition in pod["status"]["conditions"]:
                if condition["type"] in ("Ready", "ContainersReady"):
                    condition["status"] = "False"
    write_json(status_file(paths, key), seen)
