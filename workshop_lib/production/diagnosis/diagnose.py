"""The tree: node, scheduling, volumes, image, start, health, dependants; then what is left over."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis.cause import Level, Report, Stage, cause_of, rank
from workshop_lib.production.diagnosis.finding import Diagnosis
from workshop_lib.production.diagnosis.hangs import hang_causes
from workshop_lib.production.diagnosis.logs import last_line
from workshop_lib.production.diagnosis.network import service_causes
from workshop_lib.production.diagnosis.owners import owner_causes
from workshop_lib.production.diagnosis.patterns import fact
from workshop_lib.production.diagnosis.pods import pod_causes
from workshop_lib.production.diagnosis.view import Json, Pod, View, conditions, made, ref, seconds

__all__ = ["diagnose", "load_snapshot", "save_snapshot"]

NEWS_S = 120.0
"""What was made so short a time ago may just not be ready yet."""


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
    view, report = View(snapshot), Report()
    for pod in view.pods:
        report.causes += pod_causes(view, report, pod)
    report.causes += owner_causes(view, report)
    report.causes += hang_causes(view)
    report.causes += service_causes(view, report)
    for cause in report.causes:  # a pod's trouble is its controllers', too
        owners = [
            o for each in cause.objects if each in view.pod_of for o in view.pod_of[each].owners
        ]
        cause.objects = list(dict.fromkeys([*cause.objects, *owners]))
    _leftovers(view, report)
    findings = rank(report.causes)
    said = snapshot.get("notes") or []
    report.notes += [str(each) for each in said] if isinstance(said, list) else []
    return Diagnosis(findings, list(dict.fromkeys(report.notes)), starting=bool(report.starting))


def _leftovers(view: View, report: Report) -> None:
    """What is not as it should be and of which nothing was said: not known yet, never healthy."""
    covered = report.covered()
    covered |= {o for each in covered if each in view.pod_of for o in view.pod_of[each].owners}
    for pod in view.pods:
        well = pod.ready or pod.deleted or pod.phase == "Succeeded" or pod.ref in report.done
        if not well and pod.ref not in covered and pod.status:
            mates, look = view.companions(pod), f"kubectl describe pod {pod.name}"
            objects = [pod.ref, *pod.owners]
            _unsaid(view, report, objects, "is not ready", pod.made, _facts(view, pod), look, mates)
            covered |= set(objects)
    for body, what, since, below in _short(view):
        if ref(body) in covered or covered & set(below):
            continue
        warnings = [f"{e.reason}: {e.message}" for e in view.events(ref(body), warnings=True)]
        false = [c for c in conditions(body).values() if c.get("status") == "False"]
        said = [
            f"{c.get('type')} is False: {c.get('reason')} {c.get('message') or ''}" for c in false
        ]
        look = f"kubectl describe {body['kind'].lower()} {body['metadata']['name']}"
        _unsaid(view, report, [ref(body)], what, since, warnings[-2:] or said[:2] or [what], look)


def _unsaid(
    view: View,
    report: Report,
    objects: list[str],
    what: str,
    since: float,
    facts: list[str],
    look: str,
    waits_for: Collection[str] = (),
) -> None:
    if since and view.age_s(since) < NEWS_S:
        report.starts(objects, f"{objects[0]}: {what} yet ({view.age_s(since):.0f} s old)")
        return
    match, level = fact("unknown", name=objects[0], what=what, look=look), Level.FOLLOWS
    cause = cause_of(match, objects, facts, Stage.DEPENDANTS, level, waits_for=waits_for)
    report.causes.append(cause)


def _facts(view: View, pod: Pod) -> list[str]:
    """The last facts about a pod."""
    waiting = [each for each in pod.containers if not each.ready]
    states = [(c.name, key, value) for c in waiting for key, value in c.state.items() if value]
    found = [
        f"container {n}: {key} {value.get('reason') or ''}".strip() for n, key, value in states
    ]
    found += [f"{e.reason}: {e.message}" for e in view.events(pod.ref, warnings=True)][-1:]
    found += [last_line(each.log) for each in waiting if each.log][-1:]
    return found[-3:] or [pod.phase]


def _short(view: View) -> Iterator[tuple[Json, str, float, list[str]]]:
    """Who has less than it wants: what, since when, and the pods and sets that it has."""
    for body in view.items("Deployment", "StatefulSet"):
        status, wanted = body["status"], body["spec"].get("replicas", 1)
        have = status.get("availableReplicas") or status.get("readyReplicas") or 0
        if have < wanted:
            change = conditions(body).get("Available", {}).get("lastTransitionTime")
            sets = [
                ref(each) for each in view.items("ReplicaSet") if ref(body) in view.owners(each)
            ]
            below = [pod.ref for pod in view.pods_of(ref(body))] + sets
            since = seconds(change) or made(body)
            yield body, f"has {have} of {wanted} pods ready", since, below
    for body in view.items("Job"):
        ends = ("Complete", "Failed", "SuccessCriteriaMet", "Suspended", "FailureTarget")
        ended = any(conditions(body).get(each, {}).get("status") == "True" for each in ends)
        idle = body["spec"].get("suspend") or body["spec"].get("parallelism", 1) == 0
        if not (ended or idle or view.pods_of(ref(body))):
            yield body, "has no pod", made(body), []
    for body in view.items("RayCluster"):
        status, head = body["status"], conditions(body).get("HeadPodReady", {})
        have = max(status.get(f"{word}WorkerReplicas") or 0 for word in ("ready", "available"))
        wanted, since = (
            status.get("desiredWorkerReplicas") or 0,
            seconds(head.get("lastTransitionTime")),
        )
        if head.get("status") == "False" or have < wanted:
            what = "has no ready head" if head.get("status") == "False" else ""
            below = [pod.ref for pod in view.pods_of(ref(body))]
            yield body, what or f"has {have} of {wanted} workers", since or made(body), below
    for body in view.items("PersistentVolumeClaim"):
        users = [p.ref for p in view.pods if body["metadata"]["name"] in p.claims and not p.over]
        if body["status"].get("phase") == "Pending" and users:
            yield body, "has no volume", made(body), users


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
        path: The file; its folder must exist.

    Raises:
        WorkshopError: It cannot be written.
    """
    file = Path(path)
    try:
        file.write_text(json.dumps(snapshot, indent=1) + "\n")
    except OSError as error:
        raise WorkshopError(f"{file}: {error.strerror or error}") from None
    return file
