"""A workload as it is: its object, its pods in order, and the events about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.kube import events_about, own_pods, pod_selector
from workshop_lib.cluster.kubernetes.api import Api
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.records import Observation
from workshop_lib.errors import NotFoundError

__all__ = [
    "get_workload",
    "observe",
]

Json = Mapping[str, Any]


def get_workload(api: Api, namespace: str, kind: str, name: str) -> dict[str, Any]:
    """A workload's object.

    Raises:
        NotFoundError: It is not there.
    """
    body = api.get(resource_of_kind(kind), namespace, name)
    if body is None:
        raise NotFoundError(f"{kind}/{name} is not there; start it with cluster.apply(...)")
    return body


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
