"""A snapshot of a namespace: what the diagnosis reads, in one JSON object.

Secrets are never asked for. What the learner may not list is left out, and said; so are
kinds that the cluster does not know.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from workshop_lib.cluster.kube import container_statuses
from workshop_lib.cluster.kubernetes.api import Api
from workshop_lib.cluster.kubernetes.logs import LOST_LOG
from workshop_lib.cluster.kubernetes.resources import Resource, resource_of_kind
from workshop_lib.errors import ForbiddenError, OperatorError, WorkshopError

__all__ = ["take_snapshot"]

KINDS = (
    "Event", "Pod", "Job", "Deployment", "ReplicaSet", "Service", "EndpointSlice",
    "PersistentVolumeClaim", "ResourceQuota", "LimitRange", "ConfigMap", "ServiceAccount",
    "NetworkPolicy", "RayCluster", "RayService", "RayJob", "Node", "StorageClass",
    "ServiceMonitor", "PodMonitor", "PrometheusRule",
)  # fmt: skip
"""Events first, so that every object that they are about and that exists is listed after them."""

OTHERS = (
    Resource("apps/v1", "DaemonSet", "daemonsets", namespaced=False),
    Resource("apps/v1", "StatefulSet", "statefulsets"),
    Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
)
"""What the workshop never makes, and what explains something where it is.

DaemonSets of all namespaces: device plugins and exporters live elsewhere. A learner usually
may not list these, which is no news.
"""

LOG_LINES, LOG_BYTES = 300, 98304
WELL_LOGS = 50
"""Of so many pods that are ready the log is read, too: one that hangs is ready as well."""

_STAMP = re.compile(r"^(\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)) ", re.MULTILINE)


def take_snapshot(api: Api, namespace: str) -> dict[str, Any]:
    """The namespace's objects, the nodes, and the ends of the pods' logs."""
    found: dict[str, Any] = {"taken_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    notes: list[str] = []
    for resource in (*map(resource_of_kind, KINDS), *OTHERS):
        with contextlib.suppress(OperatorError):  # nothing of a kind that the cluster lacks
            try:
                found[resource.plural] = api.list(resource, namespace)
            except ForbiddenError as error:
                if resource.kind in ("Pod", "Event"):
                    raise
                if resource not in OTHERS:
                    notes.append(f"{resource.plural} were not read: {error}")
    logs = dict(_logs(api, namespace, found["pods"]))
    found["logs"] = {key: _STAMP.sub("", text) for key, text in logs.items()}
    stamps = {key: _STAMP.findall(text) for key, text in logs.items()}
    found["log_times"] = {key: times[-1] if times else "" for key, times in stamps.items()}
    found["notes"] = notes
    return found


def _logs(api: Api, namespace: str, pods: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The end of each container's log, and of the run before its last restart."""
    well = 0
    for pod in pods:
        statuses = container_statuses(pod)
        ready = all(each.get("ready") for each in statuses.values())
        well += ready or (pod.get("status") or {}).get("phase") == "Succeeded"
        for name, status in statuses.items():
            state = status.get("state") or {}
            restarted = bool(status.get("restartCount"))
            done = ((state.get("terminated") or {}).get("exitCode")) == 0
            if ("waiting" in state and not restarted) or (done and well > WELL_LOGS):
                continue
            if ready and well > WELL_LOGS and not restarted:
                continue
            for previous in (False, True) if restarted else (False,):
                text = _log(api, namespace, pod["metadata"]["name"], name, previous=previous)
                if text:
                    yield f"{pod['metadata']['name']}/{name}" + "/previous" * previous, text


def _log(api: Api, namespace: str, pod: str, container: str, *, previous: bool) -> str:
    """The end of one log, each line with its time; empty when the kubelet cannot give it."""
    path = f"{resource_of_kind('Pod').path(namespace, pod)}/log"
    params = {"container": container, "tailLines": str(LOG_LINES), "limitBytes": str(LOG_BYTES)}
    params |= {"timestamps": "true"} | ({"previous": "true"} if previous else {})
    try:
        answer = api.request("GET", path, params=params)
    except WorkshopError:
        return ""  # a node that does not answer: the rest of the snapshot counts all the more
    return answer.text if answer.ok and not answer.text.startswith(LOST_LOG) else ""
