"""A snapshot, indexed: objects by `Kind/name`, pods with their containers, events that count.

An event counts while its object exists: Kubernetes keeps events for an hour, and what was deleted
since is no fault any more. Lists that the snapshot could not read stay unknown, not empty.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from workshop_lib.cluster.kube import INDEX, Json, conditions
from workshop_lib.cluster.kube import key_of as ref
from workshop_lib.errors import WorkshopError

__all__ = ["Container", "Event", "Json", "Pod", "View"]
__all__ += ["conditions", "fits", "is_on", "made", "ref", "seconds"]

KINDS = {
    **{"pods": "Pod", "jobs": "Job", "deployments": "Deployment", "replicasets": "ReplicaSet"},
    **{"statefulsets": "StatefulSet", "services": "Service", "configmaps": "ConfigMap"},
    **{"rayclusters": "RayCluster", "rayservices": "RayService", "rayjobs": "RayJob"},
    **{"persistentvolumeclaims": "PersistentVolumeClaim", "storageclasses": "StorageClass"},
    **{"resourcequotas": "ResourceQuota", "networkpolicies": "NetworkPolicy", "nodes": "Node"},
    **{"serviceaccounts": "ServiceAccount", "endpointslices": "EndpointSlice"},
}
"""The lists of a snapshot that are read, and the kind of what they hold."""

TAKEN_AFTER_S = 60.0
"""A snapshot that does not say when it was taken is so much younger than its oldest pod."""

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


@functools.lru_cache(maxsize=65536)
def seconds(stamp: str | None) -> float:
    """A Kubernetes timestamp as seconds since 1970; 0 for none."""
    if not stamp or not _STAMP.match(str(stamp)):
        return 0.0
    return datetime.fromisoformat(str(stamp)[:19]).replace(tzinfo=UTC).timestamp()


def made(body: Json) -> float:
    """When an object was created, seconds since 1970."""
    return seconds(body["metadata"].get("creationTimestamp"))


def is_on(found: Mapping[str, Json], *kinds: str) -> bool:
    """Whether one of these conditions holds."""
    return any(found.get(kind, {}).get("status") == "True" for kind in kinds)


def fits(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a label selector fits; an empty one fits everything."""
    for each in selector.get("matchExpressions") or []:
        value, values = labels.get(each["key"]), each.get("values") or []
        verdicts = {"In": value in values, "NotIn": value not in values}
        verdicts |= {"Exists": value is not None, "DoesNotExist": value is None}
        if not verdicts.get(each.get("operator"), True):
            return False
    return all(labels.get(k) == v for k, v in (selector.get("matchLabels") or {}).items())


@dataclass(frozen=True)
class Event:
    """What the cluster said about an object."""

    subject: str
    reason: str
    message: str
    time: float
    warning: bool
    count: int
    field: str


class Container:
    """A container of a pod: its spec, its status and its logs."""

    def __init__(self, spec: Json, status: Json, log: str, previous: str, init: bool) -> None:
        state, last = status.get("state") or {}, status.get("lastState") or {}
        self.name, self.spec, self.init = str(spec.get("name")), spec, init
        self.log, self.previous = log, previous
        self.state: Json = state
        self.waiting: Json = state.get("waiting") or {}
        self.running: bool = "running" in state
        self.ended: Json = state.get("terminated") or last.get("terminated") or {}
        self.ended_at = seconds(self.ended.get("finishedAt"))
        self.started = seconds((state.get("running") or {}).get("startedAt"))
        self.restarts, self.ready = int(status.get("restartCount") or 0), bool(status.get("ready"))
        self.up = bool(status.get("started"))
        self.sidecar = init and spec.get("restartPolicy") == "Always"
        named = [each for each in spec.get("env") or [] if "name" in each]
        self.env = {each["name"]: str(each.get("value") or "") for each in named}
        resources: Json = spec.get("resources") or {}
        self.limits: Json = resources.get("limits") or {}
        self.requests: Json = {**self.limits, **(resources.get("requests") or {})}
        self.words = " ".join([*(spec.get("command") or []), *(spec.get("args") or [])])
        ports = spec.get("ports") or []
        self.ports: dict[str, int] = {p.get("name", ""): p.get("containerPort", 0) for p in ports}

    @property
    def last_run(self) -> str:
        """What the run wrote that ended: the previous one when another one runs now."""
        now_first = not self.running or not self.previous
        text = (self.log or self.previous) if now_first else self.previous
        said = str(self.ended.get("message") or "")
        return f"{text}\n{said}" if said and said not in text else text

    def probe(self, kind: str) -> tuple[Json, Json, int]:
        """A probe, what it asks, and at which port; 0 when it asks none."""
        probe: Json = self.spec.get(f"{kind.lower()}Probe") or {}
        action: Json = probe.get("httpGet") or probe.get("tcpSocket") or probe.get("grpc") or {}
        port = str(self.ports.get(str(action.get("port")), action.get("port")))
        return probe, action, int(port) if port.isdigit() else 0


class Pod:
    """A pod with its containers and controllers, the nearest first."""

    def __init__(self, body: Json, owners: list[str], containers: list[Container]) -> None:
        metadata: Json = body["metadata"]
        self.body, self.owners, self.containers = body, owners, containers
        self.name: str = metadata["name"]
        self.ref = f"Pod/{self.name}"
        self.spec: Json = body["spec"]
        self.status: Json = body["status"]
        self.labels: Mapping[str, str] = metadata.get("labels") or {}
        self.phase: str = self.status.get("phase", "Pending")
        self.over = self.phase in ("Succeeded", "Failed")
        self.deleted = seconds(metadata.get("deletionTimestamp"))
        self.conditions = conditions(body)
        refused = self.conditions.get("PodScheduled", {}).get("status") == "False"
        self.node: str = "" if refused else self.spec.get("nodeName") or ""
        self.ready = is_on(self.conditions, "Ready")
        self.top = owners[-1] if owners else self.ref
        index = (metadata.get("annotations") or {}).get(INDEX) or self.labels.get(INDEX)
        self.rank = None if index is None else str(index)
        self.cluster = self.labels.get("ray.io/cluster", "")
        self.kind = self.labels.get("ray.io/node-type", "")
        self.made = made(body)
        self.began = seconds(self.status.get("startTime")) or self.made
        self.volumes: list[Json] = self.spec.get("volumes") or []
        sources = [each.get("persistentVolumeClaim") or {} for each in self.volumes]
        self.claims = [each["claimName"] for each in sources if "claimName" in each]

    @property
    def role(self) -> str:
        """What it is in a Ray cluster or a Job, in words; empty for a plain pod."""
        if self.kind:
            return f" ({'the' if self.kind == 'head' else 'a'} Ray {self.kind})"
        return f" (rank {self.rank})" if self.rank is not None else ""


class View:
    """A snapshot as the rules read it."""

    def __init__(self, snapshot: Json) -> None:
        if not isinstance(snapshot, Mapping) or not ({*KINDS, "events"} & set(snapshot)):
            raise WorkshopError(
                "this is no snapshot: an object with lists such as 'pods' and 'events' is "
                "expected; take one with cluster.snapshot()"
            )
        self.raw = snapshot
        self._lists = {kind: _objects(snapshot, key, kind) for key, kind in KINDS.items()}
        self._read = {kind for key, kind in KINDS.items() if key in snapshot}
        self._by_ref = {ref(b): b for items in self._lists.values() for b in items}
        self.facts = functools.cache(lambda pod: "\n".join(self._facts(pod)))
        self._together = functools.cache(
            lambda top, cluster: frozenset(
                p.ref for p in self.pods_of(top) + self.pods_of(f"RayCluster/{cluster or '?'}")
            )
        )
        self.pods = [self._pod(body) for body in self._lists["Pod"]]
        self.pod_of = {pod.ref: pod for pod in self.pods}
        self._owned: dict[str, list[Pod]] = defaultdict(list)
        for pod in self.pods:
            for owner in {*pod.owners, f"RayCluster/{pod.cluster}"}:
                self._owned[owner].append(pod)
        events = _objects(snapshot, "events", "Event")
        self._events: dict[str, list[Event]] = defaultdict(list)
        for event in sorted(filter(None, map(self._event, events)), key=lambda each: each.time):
            self._events[event.subject].append(event)
        self.now = seconds(snapshot.get("taken_at")) or self._latest(events)

    def items(self, *kinds: str) -> list[Json]:
        """The objects of these kinds."""
        return [body for kind in kinds for body in self._lists[kind]]

    def find(self, kind: str | None, name: str | None) -> Json | None:
        """One object, or None."""
        return self._by_ref.get(f"{kind}/{name}")

    def get(self, reference: str) -> Json | None:
        """The object of `Kind/name`, or None."""
        return self._by_ref.get(reference)

    def read(self, kind: str) -> bool:
        """Whether the snapshot has the list of a kind, so that what is not in it does not exist."""
        return kind in self._read

    def pods_of(self, owner: str) -> list[Pod]:
        """The pods below a controller, given as `Kind/name`."""
        return self._owned.get(owner, [])

    def companions(self, pod: Pod) -> frozenset[str]:
        """The pods that work together with one, itself too: of its Ray cluster, Job or set."""
        return self._together(pod.top, pod.cluster)

    def selected(self, service: Json) -> list[Pod]:
        """The pods behind a Service: not those that ended or are being deleted."""
        selector = {"matchLabels": service["spec"].get("selector") or {"": "nobody"}}
        alive = (pod for pod in self.pods if not pod.over and not pod.deleted)
        return [pod for pod in alive if fits(selector, pod.labels)]

    def owners(self, body: Json) -> list[str]:
        """The controllers of an object, the nearest first: ReplicaSet, then its Deployment."""
        chain: list[str] = []
        above: Json | None = body
        while above is not None and len(chain) < 5:
            found = above["metadata"].get("ownerReferences") or []
            if not found:
                break
            owner = next((each for each in found if each.get("controller")), found[0])
            kind, name = str(owner.get("kind")), str(owner.get("name"))
            chain.append(f"{kind}/{name}")
            labels = above["metadata"].get("labels") or {}
            above = self.find(kind, name)
            stem = name.removesuffix("-" + str(labels.get("pod-template-hash")))
            if above is None and kind == "ReplicaSet" and stem != name:
                chain.append(f"Deployment/{stem}")
        return chain

    def ray(self, key: str) -> list[Json]:
        """A list of Ray's own state (`nodes`, `placement_groups`, `jobs`), as it was asked."""
        answers = self.raw.get("ray") or {}
        body: Any = answers.get(key) or [] if isinstance(answers, Mapping) else []
        for step in ("data", "result", "result"):
            body = (body.get(step) or []) if isinstance(body, Mapping) else body
        return [each for each in body if isinstance(each, Mapping)]

    def events(self, about: str, *reasons: str, warnings: bool = False) -> list[Event]:
        """The events about an object that exists, oldest first."""
        found = self._events.get(about, [])
        found = [event for event in found if not reasons or event.reason in reasons]
        return [event for event in found if event.warning or not warnings]

    def subjects(self, *kinds: str) -> list[str]:
        """What there are events about, as `Kind/name`, of these kinds."""
        return [subject for subject in self._events if subject.partition("/")[0] in kinds]

    def age_s(self, then: float) -> float:
        """Seconds from a time to the snapshot; 0 when it is not known."""
        return max(0.0, self.now - then) if then else 0.0

    def _facts(self, pod: Pod) -> Iterator[str]:
        """A pod's environment, requests and node, a line each; then its command, settings, logs."""
        for each in pod.containers:
            yield from (f"ENV {name}={value}" for name, value in each.env.items())
            yield from (f"RES {name}={value}" for name, value in each.requests.items())
        node = self.find("Node", pod.node)
        labels = (node["metadata"].get("labels") or {}) if node else {}
        yield from (f"LABEL {name}={value}" for name, value in labels.items())
        names = [(volume.get("configMap") or {}).get("name") for volume in pod.volumes]
        maps = [body for name in names if (body := self.find("ConfigMap", name))]
        text = "\n".join(str(v) for body in maps for v in (body.get("data") or {}).values())
        text += "\n".join(f"{each.words}\n{each.last_run}" for each in pod.containers)
        if "val_period" in text and "save_period" in text:
            keys = ("val_period", "save_period")
            found = [re.search(rf"\b{key}['\"]?[:=] *(\d+)", text) for key in keys]
            if found[0] and found[1] and found[0][1] != found[1][1]:
                yield f"PERIODS differ: {found[0][0]}, {found[1][0]}"
        yield text

    def _pod(self, body: Json) -> Pod:
        found = []
        for init, specs in ((True, "initContainers"), (False, "containers")):
            statuses = body["status"].get(f"{specs.removesuffix('s')}Statuses") or []
            by_name = {each.get("name"): each for each in statuses}
            for spec in body["spec"].get(specs) or []:
                key = f"{body['metadata']['name']}/{spec.get('name')}"
                logs = self._log(key), self._log(f"{key}/previous")
                found.append(Container(spec, by_name.get(spec.get("name")) or {}, *logs, init))
        return Pod(body, self.owners(body), found)

    def _log(self, key: str) -> str:
        text = (self.raw.get("logs") or {}).get(key) or ""
        lost = not isinstance(text, str) or text.startswith("unable to retrieve container logs")
        return "" if lost else text

    def _event(self, body: Json) -> Event | None:
        about = body.get("involvedObject") or body.get("regarding") or {}
        kind, name, uid = about.get("kind"), about.get("name"), about.get("uid")
        if kind != "Node" and kind in self._read and uid:
            there = self.find(kind, name)
            if there is None or there["metadata"].get("uid", uid) != uid:
                return None  # its object was deleted, or another one has its name now
        series, message = body.get("series") or {}, body.get("message") or body.get("note")
        what = (f"{kind}/{name}", str(body.get("reason") or ""), str(message or ""), _time(body))
        count = int(series.get("count") or body.get("count") or 1)
        return Event(*what, body.get("type") != "Normal", count, str(about.get("fieldPath") or ""))

    def _latest(self, events: list[Json]) -> float:
        times = [_time(event) for event in events]
        for body in self.items("Pod", "Job", "Node"):
            times += [made(body), *map(seconds, _STAMP.findall(str(body["status"])))]
        first = sorted(pod.made for pod in self.pods if pod.made)
        return max([*times, *(time + TAKEN_AFTER_S for time in first[:1])], default=0.0)


def _objects(snapshot: Json, key: str, kind: str) -> list[Json]:
    """A list of the snapshot, each object with a kind, metadata, spec and status."""
    items = snapshot.get(key) or []
    if isinstance(items, Mapping):  # a List object, as `kubectl get -o json` prints it
        items = items.get("items") or []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise WorkshopError(f"this is no snapshot: {key!r} is not a list of objects")
    found: list[Json] = []
    for item in items:
        parts = {part: item.get(part) or {} for part in ("metadata", "spec", "status")}
        if not all(isinstance(part, Mapping) for part in parts.values()):
            raise WorkshopError(f"this is no snapshot: an object of {key!r} is malformed")
        parts["metadata"] = {"name": "", **parts["metadata"]}
        found.append({**item, **parts, "kind": item.get("kind") or kind})
    return found


def _time(event: Json) -> float:
    stamps = [event.get(key) for key in ("lastTimestamp", "eventTime", "firstTimestamp")]
    stamps.append((event.get("series") or {}).get("lastObservedTime"))
    return max(map(seconds, stamps)) or made(event)
