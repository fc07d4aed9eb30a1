"""A snapshot, indexed: pods with their owners, events by object, logs, and the time it was taken.

Everything is looked up by `Kind/name`, since not every snapshot has UIDs.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis.shape import in_form

__all__ = ["Json", "View", "conditions", "event_time", "fits", "ref", "seconds"]

Json = Mapping[str, Any]

KINDS = {
    "pods": "Pod", "events": "Event", "jobs": "Job", "services": "Service",
    "endpointslices": "EndpointSlice", "persistentvolumeclaims": "PersistentVolumeClaim",
    "persistentvolumes": "PersistentVolume", "storageclasses": "StorageClass",
    "resourcequotas": "ResourceQuota", "limitranges": "LimitRange", "configmaps": "ConfigMap",
    "secrets": "Secret", "nodes": "Node", "deployments": "Deployment",
    "replicasets": "ReplicaSet", "statefulsets": "StatefulSet", "daemonsets": "DaemonSet",
    "networkpolicies": "NetworkPolicy", "namespaces": "Namespace",
    "serviceaccounts": "ServiceAccount", "rayclusters": "RayCluster",
    "rayservices": "RayService", "rayjobs": "RayJob",
    "horizontalpodautoscalers": "HorizontalPodAutoscaler",
    "customresourcedefinitions": "CustomResourceDefinition",
}  # fmt: skip
"""The lists of a snapshot, and the kind of what they hold."""

TAKEN_AFTER_S = 60.0
"""A snapshot that does not say when it was taken is so much younger than its oldest pod."""

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


@functools.lru_cache(maxsize=65536)
def seconds(stamp: str | None) -> float:
    """A Kubernetes timestamp as seconds since 1970; 0 for none or another text.

    Example:
        >>> seconds("1970-01-01T00:01:00Z")
        60.0
    """
    if not stamp or not _STAMP.match(str(stamp)):
        return 0.0
    then = datetime.strptime(str(stamp)[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return then.timestamp()


def ref(body: Json) -> str:
    """`Kind/name` of an object."""
    return f"{body.get('kind', '')}/{(body.get('metadata') or {}).get('name', '')}"


def conditions(body: Json) -> dict[str, Json]:
    """An object's conditions by type."""
    return {c.get("type", ""): c for c in (body.get("status") or {}).get("conditions") or []}


def event_time(event: Json) -> float:
    """When an event was last seen."""
    series = event.get("series") or {}
    return max(
        seconds(series.get("lastObservedTime")),
        seconds(event.get("lastTimestamp")),
        seconds(event.get("eventTime")),
        seconds(event.get("firstTimestamp")),
    ) or seconds((event.get("metadata") or {}).get("creationTimestamp"))


def fits(selector: Json | None, labels: Json | None) -> bool:
    """Whether a label selector fits; an empty one fits everything, none fits nothing.

    Args:
        selector: With `matchLabels` and `matchExpressions`.
        labels: An object's labels.
    """
    if selector is None:
        return False
    have = labels or {}
    if any(have.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or []:
        key, values = each.get("key"), each.get("values") or []
        ok = {
            "In": have.get(key) in values,
            "NotIn": have.get(key) not in values,
            "Exists": key in have,
            "DoesNotExist": key not in have,
        }.get(each.get("operator"), True)
        if not ok:
            return False
    return True


class View:
    """A snapshot as the rules read it.

    Args:
        snapshot: The snapshot.

    Raises:
        WorkshopError: It is none.
    """

    def __init__(self, snapshot: Json) -> None:
        if not isinstance(snapshot, Mapping) or not any(key in snapshot for key in KINDS):
            raise WorkshopError(
                "this is no snapshot: an object with lists such as 'pods' and 'events' is "
                "expected; take one with cluster.snapshot()"
            )
        answers = {key: _answer(snapshot[key]) for key in ("ray", "serve") if key in snapshot}
        self.raw: Json = {**snapshot, **answers}
        self._lists: dict[str, list[Json]] = {}
        for key, kind in KINDS.items():
            items = snapshot.get(key) or []
            if isinstance(items, Mapping):  # a List object, as `kubectl get -o json` prints it
                items = items.get("items") or []
            if not isinstance(items, list) or not all(isinstance(i, Mapping) for i in items):
                raise WorkshopError(f"this is no snapshot: {key!r} is not a list of objects")
            formed = (in_form(item) for item in items)
            self._lists[key] = [
                {**item, "kind": item.get("kind") or kind, "metadata": _named(item)}
                for item in formed
            ]
        logs = snapshot.get("logs") or {}
        self.logs: Mapping[str, str] = logs if isinstance(logs, Mapping) else {}
        self.has_nodes = bool(self._lists["nodes"])
        self.by_ref = {ref(b): b for key in KINDS if key != "events" for b in self._lists[key]}
        self._events: dict[str, list[Json]] = defaultdict(list)
        for event in sorted(self._lists["events"], key=event_time):
            about = event.get("involvedObject") or event.get("regarding") or {}
            said = event if "message" in event else {**event, "message": event.get("note") or ""}
            self._events[f"{about.get('kind')}/{about.get('name')}"].append(said)
        self.now = self._latest()
        self._owned: dict[str, list[Json]] = defaultdict(list)
        for pod in self.pods:
            for owner in self.owners(pod):
                self._owned[owner].append(pod)

    # -- objects --------------------------------------------------------------------------------

    def items(self, key: str) -> list[Json]:
        """The objects of one of the snapshot's lists."""
        return self._lists[key]

    @property
    def pods(self) -> list[Json]:
        """The pods."""
        return self._lists["pods"]

    @property
    def nodes(self) -> list[Json]:
        """The nodes; empty also when they may not be listed."""
        return self._lists["nodes"]

    def find(self, kind: str, name: str | None) -> Json | None:
        """One object, or None."""
        return self.by_ref.get(f"{kind}/{name}")

    def knows(self, key: str) -> bool:
        """Whether the snapshot has a list at all, so that what is not in it is not there."""
        return key in self.raw

    # -- who belongs to whom --------------------------------------------------------------------

    def owners(self, body: Json) -> list[str]:
        """The controllers of an object, the nearest first: ReplicaSet, then its Deployment."""
        chain: list[str] = []
        while len(chain) < 5:
            found = (body.get("metadata") or {}).get("ownerReferences") or []
            owner = next((o for o in found if o.get("controller")), found[0] if found else None)
            if owner is None:
                break
            name, kind = str(owner.get("name")), str(owner.get("kind"))
            chain.append(f"{kind}/{name}")
            above = self.find(kind, name)
            if above is None:
                labels = (body.get("metadata") or {}).get("labels") or {}
                suffix = "-" + str(labels.get("pod-template-hash"))
                if kind == "ReplicaSet" and name.endswith(suffix):
                    chain.append("Deployment/" + name.removesuffix(suffix))
                break
            body = above
        return chain

    def top(self, body: Json) -> str:
        """The outermost controller of an object, or the object itself."""
        chain = self.owners(body)
        return chain[-1] if chain else ref(body)

    def pods_of(self, owner: str) -> list[Json]:
        """The pods below a controller, given as `Kind/name`."""
        return self._owned.get(owner, [])

    def selected(self, service: Json) -> list[Json]:
        """The pods that a Service's selector fits, those that ended or are going apart."""
        selector = (service.get("spec") or {}).get("selector")
        if not selector:
            return []
        return [
            pod
            for pod in self.pods
            if fits({"matchLabels": selector}, pod["metadata"].get("labels"))
            and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
            and not pod["metadata"].get("deletionTimestamp")
        ]

    # -- events and logs ------------------------------------------------------------------------

    def events(self, about: str | Json, *reasons: str, uid: str | None = None) -> list[Json]:
        """The events about an object, oldest first.

        Args:
            about: `Kind/name`, or the object: then those of an earlier one of its name are
                left out.
            reasons: Only these reasons.
            uid: Only events about the object with this UID.
        """
        if not isinstance(about, str):
            uid = (about.get("metadata") or {}).get("uid")
            about = ref(about)
        return [
            event
            for event in self._events.get(about, [])
            if (not reasons or event.get("reason") in reasons)
            and (not uid or _uid(event) in (None, "", uid))
        ]

    def event_subjects(self) -> Iterable[str]:
        """What there are events about, as `Kind/name`."""
        return self._events.keys()

    def log(self, pod: str, container: str, *, previous: bool = False) -> str:
        """What a container wrote, or the run before its restart; empty when it is not known."""
        text = self.logs.get(f"{pod}/{container}" + ("/previous" if previous else "")) or ""
        if not isinstance(text, str) or text.startswith("unable to retrieve container logs"):
            return ""
        return text

    def age_s(self, stamp: str | None) -> float:
        """Seconds from a timestamp to the snapshot; 0 when there is none."""
        then = seconds(stamp)
        return max(0.0, self.now - then) if then else 0.0

    def _latest(self) -> float:
        """When the snapshot was taken: as it says, else the latest time in it."""
        said = seconds(self.raw.get("taken_at") if isinstance(self.raw, Mapping) else None)
        if said:
            return said
        latest = [event_time(event) for event in self._lists["events"]]
        for body in (*self.pods, *self._lists["jobs"], *self.nodes):
            metadata, status = body.get("metadata") or {}, body.get("status") or {}
            latest.append(seconds(metadata.get("creationTimestamp")))
            for condition in status.get("conditions") or []:
                latest.append(seconds(condition.get("lastTransitionTime")))
                latest.append(seconds(condition.get("lastHeartbeatTime")))
            latest += [seconds(stamp) for stamp in _state_times(status)]
        made = [
            seconds((body.get("metadata") or {}).get("creationTimestamp"))
            for body in (*self.pods, *self._lists["jobs"])
        ]
        # What hangs in silence leaves no time behind: nobody takes a snapshot at once.
        return max([*latest, *(stamp + TAKEN_AFTER_S for stamp in sorted(made)[:1])], default=0.0)


def _answer(body: object) -> object:
    """What Ray or Serve answered, in form; an empty object for another thing."""
    if isinstance(body, list):
        return [in_form(each, 1) for each in body if isinstance(each, Mapping)]
    return in_form(body) if isinstance(body, Mapping) else {}


def _named(item: Json) -> Json:
    """An object's metadata; one without a name gets an empty one."""
    metadata: Json = item.get("metadata") or {}
    return metadata if "name" in metadata else {**metadata, "name": ""}


def _uid(event: Json) -> str | None:
    about = event.get("involvedObject") or event.get("regarding") or {}
    uid: str | None = about.get("uid")
    return uid


def _state_times(status: Json) -> Sequence[str | None]:
    times: list[str | None] = []
    for each in status.get("containerStatuses") or []:
        state = each.get("state") or {}
        times.append((state.get("running") or {}).get("startedAt"))
        times.append((state.get("terminated") or {}).get("finishedAt"))
    return times
