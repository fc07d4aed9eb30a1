"""The tree: node, scheduling, volumes, image, start, health, dependants; then what is left over."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import conditions
from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis.cause import (
    Cause,
    Diagnosis,
    Level,
    Report,
    Stage,
    cause_of,
    rank,
)
from workshop_lib.production.diagnosis.hangs import hang_causes
from workshop_lib.production.diagnosis.logs import last_line
from workshop_lib.production.diagnosis.network import service_causes
from workshop_lib.production.diagnosis.owners import lacks, owner_causes
from workshop_lib.production.diagnosis.patterns import fact
from workshop_lib.production.diagnosis.pods import pod_causes
from workshop_lib.production.diagnosis.view import Pod, View, made, ref, seconds

__all__ = ["diagnose", "load_snapshot", "main", "save_snapshot"]

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
    causes = [cause for pod in view.pods for cause in pod_causes(view, report, pod)]
    causes += owner_causes(view, report)
    causes += hang_causes(view)
    causes += service_causes(view, report)
    for cause in causes:  # a pod's trouble is its controllers', too
        cause.objects = _with_owners(view, cause.objects)
    covered = set(_with_owners(view, report.starting))
    covered |= {each for cause in causes for each in cause.objects}
    causes += _leftovers(view, report, covered)
    said = snapshot.get("notes") or []
    notes = report.notes + [str(each) for each in said if isinstance(said, list)]
    return Diagnosis(rank(causes), list(dict.fromkeys(notes)), starting=bool(report.starting))


def _with_owners(view: View, objects: Sequence[str] | set[str]) -> list[str]:
    owners = (o for each in objects if each in view.pod_of for o in view.pod_of[each].owners)
    return list(dict.fromkeys([*objects, *owners]))


def _leftovers(view: View, report: Report, covered: set[str]) -> Iterator[Cause]:
    """What is not as it should be and of which nothing was said: not known yet, never healthy."""
    for pod in view.pods:
        well = pod.ready or pod.deleted or pod.phase == "Succeeded" or pod.ref in report.done
        if not well and pod.ref not in covered and pod.status:
            objects, facts = [pod.ref, *pod.owners], _last_facts(view, pod)
            covered |= set(objects)
            if _is_old(view, report, objects, "is not ready", pod.made):
                look = f"kubectl describe pod {pod.name}"
                match = fact("unknown", name=pod.ref, what="is not ready", look=look)
                rest = (facts, Stage.DEPENDANTS, Level.FOLLOWS)
                yield cause_of(match, objects, *rest, waits_for=view.companions(pod))
    kinds = ("Deployment", "StatefulSet", "Job", "RayCluster", "PersistentVolumeClaim")
    for body in view.items(*kinds):
        what, found = lacks(view, body), conditions(body)
        below = {pod.ref for pod in view.pods_of(ref(body))}
        below |= {ref(e) for e in view.items("ReplicaSet") if ref(body) in view.owners(e)}
        users = [p for p in view.pods if body["metadata"]["name"] in p.claims and not p.over]
        idle = {"Job": bool(below), "PersistentVolumeClaim": not users}.get(body["kind"], False)
        since = next((c for k in ("Available", "HeadPodReady") if (c := found.get(k))), {})
        since_s = seconds(since.get("lastTransitionTime")) or made(body)
        if not what or idle or ref(body) in covered or covered & below:
            continue
        if _is_old(view, report, [ref(body)], what, since_s):
            said = [f"{e.reason}: {e.message}" for e in view.events(ref(body), warnings=True)][-2:]
            for kind, each in found.items():
                if each.get("status") == "False":
                    said.append(f"{kind} is False: {each.get('reason')} {each.get('message')}")
            look = f"kubectl describe {body['kind'].lower()} {body['metadata']['name']}"
            match = fact("unknown", name=ref(body), what=what, look=look)
            yield cause_of(match, [ref(body)], said[:2] or [what], Stage.DEPENDANTS, Level.FOLLOWS)


def _is_old(view: View, report: Report, objects: list[str], what: str, since: float) -> bool:
    young = bool(since) and view.age_s(since) < NEWS_S
    if young:
        report.starts(objects, f"{objects[0]}: {what} yet ({view.age_s(since):.0f} s old)")
    return not young


def _last_facts(view: View, pod: Pod) -> list[str]:
    waiting = [each for each in pod.containers if not each.ready]
    states = [(c.name, key, value) for c in waiting for key, value in c.state.items() if value]
    found = [f"container {n}: {k} {value.get('reason') or ''}".strip() for n, k, value in states]
    found += [f"{e.reason}: {e.message}" for e in view.events(pod.ref, warnings=True)][-1:]
    found += [last_line(each.log) for each in waiting if each.log][-1:]
    return found[-3:] or [pod.phase]


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


def main(argv: Sequence[str] | None = None) -> int:
    """`workshop diagnose SNAPSHOT.json [--json]`: print what is wrong in a snapshot.

    Returns:
        0 when the diagnosis was printed, whatever it says; 2 for a file that is no snapshot.
    """
    about = "What is wrong in a snapshot of a cluster: cause, evidence and fix."
    parser = argparse.ArgumentParser(prog="workshop diagnose", description=about)
    parser.add_argument("snapshot", help="a file that cluster.snapshot() was saved to")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        found = diagnose(load_snapshot(options.snapshot))
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 0
