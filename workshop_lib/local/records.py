"""What the runners say of their workloads: one status file each, written whole.

A file outlives its runner. So it says under which supervisord it was written, and
what another one wrote is known to be about pods that are no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workshop_lib.local.paths import StatePaths, read_json, write_json
from workshop_lib.local.supervisor import Supervisor

__all__ = ["is_over", "live_pods", "read_status", "reset_status", "status_file"]

Json = dict[str, Any]


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


def live_pods(paths: StatePaths) -> Iterator[Json]:
    """The pods of every workload whose supervisord still runs."""
    identity = Supervisor(paths).identity()
    for file in sorted(paths.statuses.glob("*.json")):
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
