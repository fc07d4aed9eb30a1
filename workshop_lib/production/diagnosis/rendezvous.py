"""Ranks that dial a head of a former run: the address in their log is nobody's of this one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from workshop_lib.production.diagnosis.cause import Cause, Depth, Lesson
from workshop_lib.production.diagnosis.view import Json, View, ref

__all__ = ["rendezvous_causes"]

INDEX = "batch.kubernetes.io/job-completion-index"
_DIALS = re.compile(
    r"(?:dials|connecting to (?:the )?(?:head|master)(?: at)?|(?:head|master)[ _-]"
    r"(?:ip|address|host)(?: is|:|=)?|GCS at address) *['\"]?(?P<who>[\w.-]+)", re.IGNORECASE,
)  # fmt: skip


def rendezvous_causes(view: View) -> Iterator[Cause]:
    """Workers of an Indexed Job whose log names another head than the Job has.

    Such a Job may even end well: what was dialled is only in the log. A name is an old one
    when it is that of a rank 0 of this Job that is not there any more, an address when no
    pod of the namespace has it while rank 0's own is known.
    """
    jobs: dict[str, list[Json]] = defaultdict(list)
    for pod in view.pods:
        if _rank(pod) is not None:
            jobs[view.top(pod)].append(pod)
    for owner, pods in jobs.items():
        heads = [pod for pod in pods if _rank(pod) == "0"]
        if not heads:
            continue
        head = max(heads, key=lambda p: str(p["metadata"].get("creationTimestamp") or ""))
        stale = [(p, line) for p in pods if p not in heads and (line := _stale(view, p, heads))]
        if not stale:
            continue
        yield Cause(
            "stale-head-address", owner,
            f"The workers dial a head of a former run: rank 0 is now "
            f"{head['metadata']['name']}, and the address that they read (from a file on a shared "
            "volume, or a fixed setting) is that of one that is gone.",
            list(dict.fromkeys(line for _, line in stale))[:3],
            "delete the file and apply the Job again; so that it cannot come back: a file name of "
            "this run alone (with the Job's UID), or a headless Service that names rank 0",
            Lesson.RAY_STALE, [owner, *(ref(pod) for pod, _ in stale)], Depth.SETUP,
        )  # fmt: skip


def _rank(pod: Json) -> str | None:
    metadata = pod.get("metadata") or {}
    found = (metadata.get("annotations") or {}).get(INDEX) or (metadata.get("labels") or {}).get(
        INDEX
    )
    return None if found is None else str(found)


def _stale(view: View, pod: Json, heads: list[Json]) -> str:
    """The line in which a worker dials who is no more; empty when there is none."""
    name = pod["metadata"]["name"]
    stem = re.sub(r"-\w{5}$", "", heads[0]["metadata"]["name"])  # without the random letters
    known = {p["metadata"]["name"] for p in heads}
    ips = {str((p.get("status") or {}).get(key)) for p in view.pods for key in ("podIP", "hostIP")}
    ips |= {str((s.get("spec") or {}).get("clusterIP")) for s in view.items("services")}
    head_ip = str((heads[-1].get("status") or {}).get("podIP") or "")
    for container in (pod.get("spec") or {}).get("containers") or []:
        lines = view.log(name, str(container.get("name"))).splitlines()[-200:]
        for line in reversed(lines):
            if not (found := _DIALS.search(line)):
                continue
            who = found["who"].rstrip(".")
            if re.fullmatch(r"[\d.]+", who):
                old = bool(head_ip) and who not in ips and who.count(".") == 3
            else:
                old = re.fullmatch(re.escape(stem) + r"-\w{5}", who) is not None and (
                    who not in known
                )
            return line.strip() if old else ""
    return ""
