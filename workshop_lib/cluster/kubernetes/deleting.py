"""Deleting what the workshop made: found by its labels, waited for until it is gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from workshop_lib.cluster.kube import (
    CLAIM,
    COMPONENT,
    LABELS,
    Json,
    key_of,
    pod_selector,
    pod_state,
)
from workshop_lib.cluster.kubernetes.api import Api
from workshop_lib.cluster.kubernetes.resources import (
    ADMINISTRATION,
    DELETE_ORDER,
    resource_of,
    resource_of_kind,
)
from workshop_lib.cluster.records import Remains
from workshop_lib.errors import ForbiddenError, NotFoundError, OperatorError, WaitTimeoutError
from workshop_lib.progress import Progress

__all__ = ["OWN_KINDS", "delete", "find", "find_component", "remains"]

RARE_KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule", *ADMINISTRATION)
"""Kinds that a learner may not be allowed to list, and then cannot have made."""

LEARNERS_KINDS = [kind for kind in DELETE_ORDER if kind not in ADMINISTRATION]
OWN_KINDS = [kind for kind in DELETE_ORDER if resource_of_kind(kind).namespaced]

POLL_S = 0.5


def _selector(component: str | None) -> str:
    labels = LABELS | ({COMPONENT: component} if component else {})
    return ",".join(f"{key}={value}" for key, value in labels.items())


def find(api: Api, namespace: str, kinds: Sequence[str], component: str | None = None) -> list[Any]:
    """The workshop's objects, or a component's, in the order of `kinds`."""
    found: list[dict[str, Any]] = []
    for kind in kinds:
        try:
            found += api.list(resource_of_kind(kind), namespace, labels=_selector(component))
        except OperatorError:
            continue  # a kind that the cluster does not know has no objects
        except ForbiddenError:
            if kind not in RARE_KINDS:
                raise
    # What a controller made carries its template's labels; it goes with its owner.
    return [body for body in found if not body["metadata"].get("ownerReferences")]


def find_component(api: Api, namespace: str, component: str) -> list[Any]:
    """A component's objects, volume claims apart, in the order in which they are deleted.

    What the whole cluster shares is a component of its own: it is asked for only when there
    is nothing else, since a learner may not ask.
    """
    shared = [kind for kind in DELETE_ORDER if kind not in OWN_KINDS]
    return find(api, namespace, OWN_KINDS, component) or find(api, namespace, shared, component)


def remains(api: Api, namespace: str) -> Remains:
    """What of the workshop is in a namespace, its pods too, whoever owns them."""
    pods = api.list(resource_of_kind("Pod"), namespace, labels=_selector(None))
    claims = find(api, namespace, [CLAIM])
    return Remains(
        objects=tuple(sorted(map(key_of, find(api, namespace, LEARNERS_KINDS)))),
        running=tuple(sorted(map(key_of, pods))),
        ports=None,
        claims=tuple(sorted(each["metadata"]["name"] for each in claims)),
    )


def delete(
    api: Api, namespace: str, component: str | None, *, claims: Sequence[str], timeout_s: float
) -> list[str]:
    """Delete a component, or everything that is a learner's, and wait until it is gone.

    A Namespace is never deleted (with it would go the data), a claim only by its name; the
    claims that were kept are returned.
    """
    known = {body["metadata"]["name"]: body for body in find(api, namespace, [CLAIM], component)}
    if unknown := sorted(set(claims) - set(known)):
        whose = f"component {component!r}" if component else "the workshop"
        there = ", ".join(known) or "none"
        raise NotFoundError(f"{whose} has no claim {unknown[0]!r}; it has {there}")
    if component is None:
        objects = find(api, namespace, LEARNERS_KINDS)
    else:
        objects = find_component(api, namespace, component)
    workloads = [body for body in objects if pod_selector(body)]
    rest = [body for body in objects if not pod_selector(body)]
    doomed = [known[name] for name in claims]
    if objects or doomed:
        pods = []
        for body in workloads:
            with contextlib.suppress(NotFoundError):  # deleted meanwhile by somebody else
                pods += api.workload(namespace, body["kind"], body["metadata"]["name"])[1]
        with Progress(label=f"deleting {component or 'everything'}") as progress:
            deadline = time.monotonic() + timeout_s
            # Workloads first: what they mount stays until their last pod has ended.
            for batch in ([*workloads, *pods], rest, doomed):
                for body in batch:
                    if body["kind"] != "Pod":  # pods go with their owner
                        api.delete(resource_of(body), namespace, body)
                while left := _still_there(api, namespace, batch):
                    more = f"; {len(left) - 3} more" if len(left) > 3 else ""
                    shown = "; ".join(f"{key_of(each)} {_why(each)}" for each in left[:3]) + more
                    progress.update(text=shown)
                    if time.monotonic() > deadline:
                        raise WaitTimeoutError(
                            f"not gone after {timeout_s:g} s: {shown}; deleting goes on by itself: "
                            "call delete again to go on waiting"
                        )
                    batch = left
                    time.sleep(POLL_S)
            progress.update(text="gone")
    return [name for name in known if name not in claims]


def _still_there(api: Api, namespace: str, bodies: Sequence[Any]) -> list[Any]:
    """These very objects, as far as they are there; one made anew under a name is another."""
    now = [api.get(resource_of(each), namespace, each["metadata"]["name"]) for each in bodies]
    return [
        found
        for found, body in zip(now, bodies, strict=True)
        if found and found["metadata"]["uid"] == body["metadata"]["uid"]
    ]


def _why(body: Json) -> str:
    """Why an object is still there, in words."""
    metadata = body["metadata"]
    since = metadata.get("deletionTimestamp")
    if body["kind"] == "Pod":
        node = (body.get("spec") or {}).get("nodeName", "no node")
        if not since:
            return f"is {pod_state(body)[0]} on {node}, not asked to end yet"
        grace_s = metadata.get("deletionGracePeriodSeconds", 0)
        return f"is ending on {node}, to be killed at {since[11:19]} UTC (grace {grace_s} s)"
    finalizers = metadata.get("finalizers") or []
    if "kubernetes.io/pvc-protection" in finalizers:
        return "is in use by a pod; delete what mounts it"
    if others := [each for each in finalizers if each != "foregroundDeletion"]:
        return f"waits for {', '.join(others)} (does its operator run?)"
    if finalizers:
        return "waits for its pods"
    return "is being deleted" if since else "was not deleted"
