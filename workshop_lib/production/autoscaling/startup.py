"""Where the time of a cold start goes, from the timestamps that the cluster keeps.

Kubernetes and Serve write down when things happened, in whole seconds for the most
part; the application's first answer is timed by whoever asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.base import Observation
from workshop_lib.cluster.workload import conditions
from workshop_lib.errors import WorkshopError
from workshop_lib.production.autoscaling.serve_app import ServeSnapshot

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["startup_timeline"]


def _unix_s(stamp: str | None) -> float | None:
    """Unix time of a Kubernetes timestamp."""
    if not stamp:
        return None
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).astimezone(UTC).timestamp()


def _container_started(pod: Mapping[str, Any]) -> float | None:
    """When the pod's first container began to run, the last time."""
    statuses = pod["status"].get("containerStatuses") or [{}]
    running = (statuses[0].get("state") or {}).get("running") or {}
    return _unix_s(running.get("startedAt"))


def _image_pulled(observation: Observation, pod: Mapping[str, Any]) -> float | None:
    """When the last image of a pod was there, by its events; None where none is pulled."""
    name = (pod.get("metadata") or {}).get("name")
    stamps = [
        _unix_s(event.get("lastTimestamp") or event.get("eventTime"))
        for event in observation.events
        if event["reason"] == "Pulled" and (event.get("involvedObject") or {}).get("name") == name
    ]
    return max((stamp for stamp in stamps if stamp is not None), default=None)


def startup_timeline(
    observation: Observation,
    snapshot: ServeSnapshot,
    *,
    applied_s: float,
    answered_s: float,
) -> pd.DataFrame:
    """The steps of a RayService's cold start, with the second at which each was done.

    Args:
        observation: The RayService, as `Workload.observe` gives it.
        snapshot: Its application, for the time when its replica was started.
        applied_s: When its manifests were applied, Unix time.
        answered_s: When it answered for the first time, Unix time.

    Returns:
        Columns `step`, `done_after_s` (since it was applied) and `took_s`. A step whose
        time the cluster does not tell is left out.

    Raises:
        WorkshopError: It ran before it was applied: that was no cold start.

    Example:
        >>> startup_timeline(service.observe(), app.snapshot(),           # doctest: +SKIP
        ...     applied_s=applied, answered_s=time.time())
    """
    import pandas as pd

    head = observation.pods[0] if observation.pods else {"status": {}}
    workers = [_container_started(pod) for pod in observation.pods[1:]]
    pulled = _image_pulled(observation, head)
    ready = conditions(observation.body).get("Ready", {})
    replicas = [each.started_s for each in snapshot.replicas]
    scheduled = conditions(head).get("PodScheduled", {}).get("lastTransitionTime")
    seen = {
        # Where images are pulled, a node may have to boot first: two steps that a laptop lacks.
        "a node is found for the head": _unix_s(scheduled) if pulled is not None else None,
        "its image is there": pulled,
        "the head's container runs": _container_started(head),
        "Ray's head is ready": _unix_s(conditions(head).get("Ready", {}).get("lastTransitionTime")),
        "a worker's container runs": min((each for each in workers if each), default=None),
        "Serve starts the first replica": min(replicas, default=None),
        "the application is RUNNING": _unix_s(ready.get("lastTransitionTime")),
        "first answer": answered_s,
    }
    started_s = seen["the head's container runs"]
    if started_s is not None and started_s < applied_s - 1:
        raise WorkshopError(
            f"Ray's head has been running since {applied_s - started_s:.0f} s before the manifests "
            "were applied: no cold start; cluster.delete(...) it first"
        )
    rows, latest = [], 0.0
    for step, at_s in seen.items():
        if at_s is None:
            continue
        # Whole seconds are cut off, never rounded up: a step cannot be done before the last one.
        done_s = max(latest, at_s - applied_s)
        rows.append({"step": step, "done_after_s": round(done_s, 1),
                     "took_s": round(done_s - latest, 1)})  # fmt: skip
        latest = done_s
    return pd.DataFrame(rows, columns=["step", "done_after_s", "took_s"])
