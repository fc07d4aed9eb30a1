"""All rules, in the order of the decision tree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis.admission import admission_causes
from workshop_lib.production.diagnosis.cause import Cause, Depth
from workshop_lib.production.diagnosis.controllers import controller_causes
from workshop_lib.production.diagnosis.finding import Diagnosis
from workshop_lib.production.diagnosis.nodes import node_causes
from workshop_lib.production.diagnosis.pods import PodRules
from workshop_lib.production.diagnosis.ranking import finding_of, root_causes
from workshop_lib.production.diagnosis.ray import ray_causes
from workshop_lib.production.diagnosis.rendezvous import rendezvous_causes
from workshop_lib.production.diagnosis.services import service_causes
from workshop_lib.production.diagnosis.storage import storage_causes
from workshop_lib.production.diagnosis.view import Json, View, conditions

__all__ = ["diagnose", "load_snapshot", "save_snapshot"]


def diagnose(snapshot: Mapping[str, Any]) -> Diagnosis:
    """What is wrong in a snapshot, the root cause first.

    Args:
        snapshot: What `cluster.snapshot()` gives, or `load_snapshot` reads.

    Returns:
        The findings; none when all is well. It shows itself as a table.

    Raises:
        WorkshopError: It is no snapshot.

    Example:
        >>> diagnose({"pods": []}).verdict
        'healthy'
    """
    view = View(snapshot)
    rules = PodRules(view)
    causes = [cause for pod in view.pods for cause in rules.causes(pod)]
    notes = rules.notes
    causes += [
        *node_causes(view),
        *storage_causes(view, notes),
        *admission_causes(view),
        *controller_causes(view, notes),
        *rendezvous_causes(view),
        *ray_causes(view, notes),
        *service_causes(view, notes),
    ]
    said = snapshot.get("notes") or []
    notes += [str(each) for each in said] if isinstance(said, list) else []
    roots = root_causes(causes)
    _add_owners(view, [cause for cause, _ in roots])
    return Diagnosis(
        [finding_of(cause, explains) for cause, explains in roots], list(dict.fromkeys(notes))
    )


def _add_owners(view: View, causes: list[Cause]) -> None:
    """A pod's trouble is its controller's, too; what Kubernetes made of it is quoted last."""
    for cause in causes:
        pods = [view.by_ref[each] for each in cause.objects if each in view.by_ref]
        for pod in pods:
            top = view.top(pod)
            if top not in cause.objects:
                cause.objects.append(top)
            kind, _, name = top.partition("/")
            failed = conditions(view.find(kind, name) or {}).get("Failed", {})
            if failed.get("status") == "True":
                _quote(cause, str(failed.get("message") or ""))
        for pod in pods[:1] if cause.depth == Depth.CRASH else ():
            for event in view.events(pod, "BackOff")[-1:]:
                if any(map(_restarts, (pod.get("status") or {}).get("containerStatuses") or [])):
                    _quote(cause, str(event.get("message") or ""))


def _restarts(status: Json) -> bool:
    """Whether a container has been started again."""
    return bool(status.get("restartCount"))


def _quote(cause: Cause, text: str) -> None:
    if text and text not in cause.evidence:
        cause.evidence.append(text)


def load_snapshot(path: str | Path) -> dict[str, Any]:
    """A snapshot from a file.

    Args:
        path: The file, JSON.

    Raises:
        WorkshopError: It cannot be read, or is no snapshot.
    """
    try:
        data = json.loads(Path(path).read_text())
    except OSError as error:
        raise WorkshopError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise WorkshopError(f"{path} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise WorkshopError(f"{path} is no snapshot: it holds no JSON object")
    View(data)
    return data


def save_snapshot(snapshot: Mapping[str, Any], path: str | Path) -> Path:
    """Write a snapshot to a file, to look at later or to send to somebody who helps.

    Args:
        snapshot: The snapshot.
        path: The file; its folder must be there.

    Raises:
        WorkshopError: It cannot be written.
    """
    file = Path(path)
    try:
        file.write_text(json.dumps(snapshot, indent=1) + "\n")
    except OSError as error:
        raise WorkshopError(f"{file}: {error.strerror or error}") from None
    return file
