"""Deleting what the workshop made: found by its labels, waited for until it is gone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from workshop_lib.cluster.kube import COMPONENT, LABELS, key_of, own_pods, pod_selector, pod_state
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

__all__ = ["delete", "find", "find_component", "remains"]

CLAIM = "PersistentVolumeClaim"
RARE_KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule", *ADMINISTRATION)
"""Kinds that a learner may not be allowed to list, and then cannot have made."""

POLL_S = 0.5


def find(api: Api, namespace: str, kinds: Sequence[str], component: str | None = None) -> list[Any]:
    """The workshop's objects, in the order of `kinds`.

    Args:
        api: The server.
        namespace: Where.
        kinds: Which kinds.
        component: Of this component only.
    """
    labels = dict(LABELS) | ({COMPONENT: component} if component else {})
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    found: list[dict[str, Any]] = []
    for kind in kinds:
        try:
            found += api.list(resource_of_kind(kind), namespace, labels=selector)
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

    Args:
        api: The server.
        namespace: Where.
        component: Its name.
    """
    own = [kind for kind in DELETE_ORDER if resource_of_kind(kind).namespaced]
    shared = [kind for kind in DELETE_ORDER if kind not in own]
    return find(api, namespace, own, component) or find(api, namespace, shared, component)


def delete(
    api: Api,
    namespace: str,
    component: str | None,
    *,
    claims: Sequence[str] = (),
    timeout_s: float = 300.0,
) -> list[str]:
    """Delete a component, or everything that is a learner's, and wait until it is gone.

    A Namespace is never deleted: with it would go the data.

    Args:
        api: The server.
        namespace: Where.
        component: The component; None for all of them.
        claims: Names of the volume claims whose data goes too; no other claim is touched.
        timeout_s: The longest to wait.

    Returns:
        The claims that were kept.

    Raises:
        NotFoundError: There is no such claim; nothing was deleted.
        WaitTimeoutError: Something is still there; the line says what, and why.
    """
    known = find(api, namespace, [CLAIM], component)
    names = [claim["metadata"]["name"] for claim in known]
    if unknown := sorted(set(claims) - set(names)):
        whose = f"component {component!r}" if component else "the workshop"
        raise NotFoundError(
            f"{whose} has no claim {unknown[0]!r}; it has {', '.join(names) or 'none'}"
        )
    doomed = [claim for claim in known if claim["metadata"]["name"] in claims]
    if component is None:
        learners = [kind for kind in DELETE_ORDER if kind not in ADMINISTRATION]
        objects = find(api, namespace, learners)
    else:
        objects = find_component(api, namespace, component)
    workloads = [body for body in objects if pod_selector(body)]
    rest = [body for body in objects if not pod_selector(body)]
    kept = [name for name in names if name not in claims]
    if not objects and not doomed:
        return kept
    pods = _pods_of(api, namespace, workloads)
    with Progress(label=f"deleting {component or 'everything'}") as progress:
        deadline = time.monotonic() + timeout_s
        # Workloads first: what they mount stays until their last pod has ended.
        for batch in ([*workloads, *pods], rest, doomed):
            for body in batch:
                if body["kind"] != "Pod":  # pods go with their owner
                    api.delete(resource_of(body), namespace, body)
            _wait_gone(api, namespace, batch, deadline, timeout_s, progress)
    return kept


def remains(api: Api, namespace: str) -> Remains:
    """What of the workshop is in a namespace, its pods too, whoever owns them.

    Args:
        api: The server.
        namespace: Where.
    """
    learners = [kind for kind in DELETE_ORDER if kind not in ADMINISTRATION]
    own = [kind for kind in learners if resource_of_kind(kind).namespaced and kind != CLAIM]
    selector = ",".join(f"{key}={value}" for key, value in LABELS.items())
    pods = api.list(resource_of_kind("Pod"), namespace, labels=selector)
    return Remains(
        objects=tuple(sorted(key_of(body) for body in find(api, namespace, own))),
        running=tuple(sorted(f"Pod/{pod['metadata']['name']}" for pod in pods)),
        ports=None,
        claims=tuple(sorted(each["metadata"]["name"] for each in find(api, namespace, [CLAIM]))),
    )


def _pods_of(api: Api, namespace: str, workloads: Sequence[Any]) -> list[Any]:
    pods: list[dict[str, Any]] = []
    for body in workloads:
        found = api.list(resource_of_kind("Pod"), namespace, labels=pod_selector(body) or "")
        pods += own_pods(body, found)
    return pods


def _wait_gone(
    api: Api,
    namespace: str,
    bodies: Sequence[Any],
    deadline: float,
    timeout_s: float,
    progress: Progress,
) -> None:
    """Wait until none of these very objects is there; one made anew under the name is another."""
    left = list(bodies)
    while True:
        left = [now for body in left if (now := _still(api, namespace, body)) is not None]
        progress.update(text=_what_is_left(left) if left else "gone")
        if not left:
            return
        if time.monotonic() > deadline:
            raise WaitTimeoutError(
                f"not gone after {timeout_s:g} s: {_what_is_left(left)}; deleting goes on by "
                "itself: call delete again to go on waiting"
            )
        time.sleep(POLL_S)


def _still(api: Api, namespace: str, body: Any) -> Any:
    metadata = body["metadata"]
    now = api.get(resource_of(body), namespace, metadata["name"])
    return now if now is not None and now["metadata"]["uid"] == metadata["uid"] else None


def _what_is_left(left: Sequence[Any]) -> str:
    return "; ".join(f"{key_of(body)} {_why(body)}" for body in left[:3]) + (
        f"; {len(left) - 3} more" if len(left) > 3 else ""
    )


def _why(body: Any) -> str:
    """Why an object is still there, in words."""
    metadata = body["metadata"]
    since = metadata.get("deletionTimestamp")
    if body["kind"] == "Pod":
        node = (body.get("spec") or {}).get("nodeName", "no node")
        state = pod_state(body)[0]
        grace_s = metadata.get("deletionGracePeriodSeconds", 0)
        if since:
            return f"is ending on {node}, to be killed at {since[11:19]} UTC (grace {grace_s} s)"
        return f"is {state} on {node}, not asked to end yet"
    finalizers = metadata.get("finalizers") or []
    if "kubernetes.io/pvc-protection" in finalizers:
        return "is in use by a pod; delete what mounts it"
    if others := [each for each in finalizers if each != "foregroundDeletion"]:
        return f"waits for {', '.join(others)} (does its operator run?)"
    if finalizers:
        return "waits for its pods"
    return "is being deleted" if since else "was not deleted"
