"""A workload as it is: its object, its pods in order, and the events about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workshop_lib.cluster.base import Observation
from workshop_lib.cluster.kubernetes.api import Api
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.errors import NotFoundError

__all__ = ["events_about", "get_workload", "observe", "own_pods", "pod_selector"]

Json = Mapping[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"
RAY_CLUSTER = "ray.io/cluster"


def get_workload(api: Api, namespace: str, kind: str, name: str) -> dict[str, Any]:
    """A workload's object.

    Raises:
        NotFoundError: It is not there.
    """
    body = api.get(resource_of_kind(kind), namespace, name)
    if body is None:
        raise NotFoundError(f"{kind}/{name} is not there; start it with cluster.apply(...)")
    return body


def pod_selector(body: Json) -> str | None:
    """The label selector that finds a workload's pods, perhaps with others; None: it has none.

    Example:
        >>> pod_selector({"kind": "RayCluster", "metadata": {"name": "raycluster"}})
        'ray.io/cluster=raycluster'
    """
    kind, metadata = body["kind"], body["metadata"]
    if kind == "Job":
        return f"batch.kubernetes.io/controller-uid={metadata['uid']}"
    if kind == "Deployment":
        return _selector(body["spec"].get("selector") or {})
    if kind == "RayCluster":
        return f"{RAY_CLUSTER}={metadata['name']}"
    if kind == "RayService":
        return RAY_CLUSTER  # any: which clusters it has changes with its status
    return None


def _selector(selector: Json) -> str:
    """A LabelSelector as a query."""
    terms = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for each in selector.get("matchExpressions") or []:
        values = f"({','.join(each.get('values') or [])})"
        terms.append({
            "In": f"{each['key']} in {values}", "NotIn": f"{each['key']} notin {values}",
            "Exists": each["key"], "DoesNotExist": f"!{each['key']}",
        }[each["operator"]])  # fmt: skip
    return ",".join(terms)


def own_pods(body: Json, pods: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pods that are the workload's own, rank 0 or the head first.

    Args:
        body: The workload.
        pods: Those that fit its selector.
    """
    kind, name = body["kind"], body["metadata"]["name"]
    own = list(pods)
    if kind == "Deployment":  # a stray pod may carry the same labels
        own = [pod for pod in own if _owner(pod).get("kind") == "ReplicaSet"]
    elif kind == "RayService":
        clusters = set(_ray_clusters(body))
        own = [pod for pod in own if pod["metadata"]["labels"].get(RAY_CLUSTER) in clusters]
    elif kind == "RayCluster":
        own = [pod for pod in own if pod["metadata"]["labels"].get(RAY_CLUSTER) == name]
    return sorted(own, key=_order)


def _owner(pod: Json) -> Json:
    owners = pod["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), {})


def _ray_clusters(body: Json) -> list[str]:
    """The names of the RayClusters that a RayService has now."""
    status = body.get("status") or {}
    both = [status.get(each) or {} for each in ("activeServiceStatus", "pendingServiceStatus")]
    return [each["rayClusterName"] for each in both if each.get("rayClusterName")]


def _order(pod: Json) -> tuple[int, int, str, str]:
    labels = pod["metadata"].get("labels") or {}
    index = (pod["metadata"].get("annotations") or {}).get(INDEX, "0")
    head = labels.get("ray.io/node-type") == "head"
    made = pod["metadata"].get("creationTimestamp") or ""
    return (0 if head else 1, int(index), made, pod["metadata"]["name"])


def events_about(
    body: Json, pods: Sequence[Json], events: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The events about a workload, its pods and what stands between them, oldest first.

    Args:
        body: The workload.
        pods: Its pods.
        events: All events of the namespace.
    """
    name = body["metadata"]["name"]
    uids = {body["metadata"].get("uid"), *(pod["metadata"].get("uid") for pod in pods)}
    uids |= {_owner(pod).get("uid") for pod in pods}
    clusters = set(_ray_clusters(body))
    found = []
    for event in events:
        about = event.get("involvedObject") or {}
        between = (
            # A ReplicaSet that may not make its pods (by quota) has no pod to find it by.
            body["kind"] == "Deployment"
            and about.get("kind") == "ReplicaSet"
            and str(about.get("name")).rpartition("-")[0] == name
        ) or (about.get("kind") == "RayCluster" and about.get("name") in clusters)
        if between or about.get("uid") in uids - {None}:
            found.append(event)
    return sorted(found, key=_when)


def _when(event: Json) -> str:
    series = event.get("series") or {}
    seen = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(seen or event["metadata"].get("creationTimestamp") or "")[:19]


def observe(api: Api, namespace: str, kind: str, name: str) -> Observation:
    """A workload as it is now.

    Raises:
        NotFoundError: It is not there.
    """
    body = get_workload(api, namespace, kind, name)
    selector = pod_selector(body)
    if selector is None:
        return Observation(body)
    pods, _ = api.list(resource_of_kind("Pod"), namespace, labels=selector)
    pods = own_pods(body, pods)
    events, _ = api.list(resource_of_kind("Event"), namespace)
    return Observation(body, pods, events_about(body, pods, events))
