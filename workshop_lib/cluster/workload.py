"""A component that was applied: wait for it, read it, follow what it writes.

Everything here is computed from Kubernetes objects (`Observation`), so it holds for
every cluster. The pure functions at the top turn an object into words.
"""

from __future__ import annotations

import contextlib
import html
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.base import WORKLOAD_KINDS, Cluster, LogLine, Observation
from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError, WorkshopError
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Workload", "failure", "found_handle", "handle", "pod_state", "readiness", "seconds_since",
]  # fmt: skip

Json = Mapping[str, Any]

LAST_LINE_EVERY_S = 2.0
"""How often a wait reads the logs for the line that it shows."""


def conditions(body: Json) -> dict[str, Json]:
    """An object's conditions by type."""
    return {c["type"]: c for c in (body.get("status") or {}).get("conditions") or []}


def is_true(body: Json, kind: str) -> bool:
    """Whether an object has a condition, and it is True."""
    return conditions(body).get(kind, {}).get("status") == "True"


def pod_state(pod: Json) -> tuple[str, str]:
    """A pod's state in one word, as kubectl prints it, and the reason in words.

    Args:
        pod: A Pod object.

    Returns:
        Such as `("Pending", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")`.
        The reason is empty when there is nothing to explain.
    """
    status = pod.get("status") or {}
    scheduled = conditions(pod).get("PodScheduled", {})
    if status.get("phase") == "Pending" and scheduled.get("status") == "False":
        return "Pending", scheduled.get("message", "")
    if status.get("reason"):  # of the whole pod: evicted, lost with its node, told to end
        return str(status["reason"]), str(status.get("message", ""))
    statuses = [
        *(status.get("initContainerStatuses") or []),
        *(status.get("containerStatuses") or []),
    ]
    for each in statuses:
        waiting = (each.get("state") or {}).get("waiting") or {}
        usual = waiting.get("reason") in (None, "ContainerCreating", "PodInitializing")
        if waiting.get("message") or not usual:
            return waiting["reason"], waiting.get("message", "")
    for each in statuses:
        ended = (each.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            reason = f"container {each['name']} ended with exit code {ended['exitCode']}"
            said = f": {ended['message']}" if ended.get("message") else ""
            return ended.get("reason") or "Error", reason + said
    phase = str(status.get("phase", "Unknown"))
    if phase == "Running" and not is_true(pod, "Ready"):
        return "Running", "not ready yet"
    return phase, ""


def readiness(body: Json) -> tuple[int, int, str]:
    """How far a workload is: pods ready, pods wanted, and a line that says so.

    Args:
        body: A Job, Deployment, RayCluster or RayService with its status.

    Returns:
        `(ready, wanted, text)`; a workload is ready when `ready >= wanted`.
    """
    spec, status = body.get("spec") or {}, body.get("status") or {}
    # What a controller said of an earlier version of the object does not count.
    generation = body["metadata"].get("generation")
    if status.get("observedGeneration", generation) != generation:
        status = {}
    body = {**body, "status": status}
    if body["kind"] == "Job":
        wanted = min(spec.get("parallelism", 1), spec.get("completions", 1))
        done = status.get("succeeded") or 0  # a pod that succeeded was ready
        ready = wanted if is_true(body, "Complete") else (status.get("ready") or 0) + done
        return min(ready, wanted), wanted, f"{min(ready, wanted)} of {wanted} pods ready"
    if body["kind"] == "Deployment":
        return _deployment_readiness(spec, status)
    if body["kind"] == "RayCluster":
        return _raycluster_readiness(body, status)
    if body["kind"] != "RayService":
        return 1, 1, "applied"  # nothing that runs
    active = status.get("activeServiceStatus") or {}
    applications = active.get("applicationStatuses") or {}
    states = ", ".join(f"{name} {app['status']}" for name, app in applications.items())
    return int(is_true(body, "Ready")), 1, states or "Ray starting"


def _deployment_readiness(spec: Json, status: Json) -> tuple[int, int, str]:
    """As `kubectl rollout status` decides: only pods of the current template count."""
    wanted = spec.get("replicas", 1)
    updated = status.get("updatedReplicas") or 0
    old = (status.get("replicas") or 0) - updated
    ready = max(0, min(updated, (status.get("availableReplicas") or 0) - old))
    if old and ready == wanted:
        ready = wanted - 1
    going = f", {old} old ones going" if old > 0 else ""
    return ready, wanted, f"{ready} of {wanted} pods ready{going}"


def _raycluster_readiness(body: Json, status: Json) -> tuple[int, int, str]:
    """The head, then the workers; `status.state` is deprecated in KubeRay 1.7.

    RayClusterProvisioned alone is no measure: it stays True when workers are added.
    """
    head = int(is_true(body, "HeadPodReady"))
    desired = status.get("desiredWorkerReplicas") or 0
    workers = status.get("readyWorkerReplicas") or 0
    provisioned = int(is_true(body, "RayClusterProvisioned"))
    text = f"head {'ready' if head else 'starting'}, {workers} of {desired} workers ready"
    return head + provisioned + min(workers, desired), 2 + desired, text


def failure(observation: Observation) -> str | None:
    """Why a workload can no longer succeed, or None.

    Args:
        observation: The workload as it is.
    """
    failed = conditions(observation.body).get("Failed", {})
    if failed.get("status") == "True":
        return f"{failed['reason']}: {failed['message']}"
    active = (observation.body.get("status") or {}).get("activeServiceStatus") or {}
    for name, app in (active.get("applicationStatuses") or {}).items():
        if app["status"] == "DEPLOY_FAILED":
            return f"application {name} is DEPLOY_FAILED: {app.get('message', '')}"
    return None


def seconds_since(stamp: str) -> float:
    """Seconds from a Kubernetes timestamp until now."""
    then = datetime.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return (datetime.now(UTC) - then).total_seconds()


def handle(
    cluster: Cluster,
    component: str,
    bodies: Sequence[Json],
    *,
    actions: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Workload:
    """The handle of a component: it watches the last object that has pods.

    Without one it is for the last by kind and name, the same for every kernel; claims are
    passed over, since a kernel that looks for the component later does not count them.

    Args:
        cluster: Where it is applied.
        component: Its name.
        bodies: Its objects, at least one, in the order in which they were applied.
        actions: What apply did with them.
        notes: Fields without effect in this cluster, and why.
    """
    workloads = [body for body in bodies if body["kind"] in WORKLOAD_KINDS]
    others = [body for body in bodies if body["kind"] != "PersistentVolumeClaim"] or bodies
    by_name = sorted(others, key=lambda body: (body["kind"], body["metadata"]["name"]))
    watched = (workloads or by_name)[-1]
    kind, name = watched["kind"], watched["metadata"]["name"]
    return Workload(cluster, component, kind, name, actions=actions, notes=notes)


def found_handle(cluster: Cluster, component: str, bodies: Sequence[Json]) -> Workload:
    """The handle of a component that was applied before.

    Args:
        cluster: Where it should be applied.
        component: Its name.
        bodies: Its objects there, volume claims apart: they stay when it is deleted.

    Raises:
        NotFoundError: There are none; the line says which components are applied.
    """
    if not bodies:
        there = ", ".join(cluster.components()) or "nothing"
        raise NotFoundError(
            f"component {component!r} is not applied ({there} is); "
            f"start it with cluster.apply({component!r})"
        )
    return handle(cluster, component, bodies)


class Workload:
    """The handle that `cluster.apply` returns.

    Args:
        cluster: Where it runs.
        component: Its component's name.
        kind: Kind of the object that it watches, such as `Job`.
        name: That object's name.
        actions: Object (`Kind/name`) to what apply did with it.
        notes: Fields without effect in this cluster, and why.
    """

    def __init__(
        self,
        cluster: Cluster,
        component: str,
        kind: str,
        name: str,
        *,
        actions: Mapping[str, str] | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        self.cluster = cluster
        self.component = component
        self.kind = kind
        self.name = name
        self.actions = dict(actions or {})
        self.notes = dict(notes or {})

    def __repr__(self) -> str:
        lines = [f"{key.lower()} {action}" for key, action in self.actions.items()]
        return "\n".join(lines or [f"{self.kind}/{self.name}"])

    def _repr_html_(self) -> str:
        """The table of what apply did, and below it what has no effect in this cluster."""
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(key)}</td>"
            f"<td style='text-align:left'>{html.escape(action)}</td></tr>"
            for key, action in self.actions.items()
        )
        reasons: dict[str, list[str]] = {}
        for where, why in self.notes.items():
            reasons.setdefault(why, []).append(where.split(".")[-1])
        notes = "; ".join(
            f"{html.escape(', '.join(dict.fromkeys(fields)))} ({html.escape(why)})"
            for why, fields in reasons.items()
        )
        below = f"<div style='color:#666'>Not run here: {notes}</div>" if notes else ""
        return f"<table>{rows}</table>{below}"

    # -- reading --------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """The workload as it is now: its object, pods and events."""
        return self.cluster.observe(self.kind, self.name)

    @property
    def pods(self) -> list[str]:
        """The names of its pods, rank 0 or the head first."""
        return [pod["metadata"]["name"] for pod in self.observe().pods]

    def table(self) -> pd.DataFrame:
        """Its pods as a table: state, reason, restarts, address, age."""
        import pandas as pd

        rows = []
        for pod in self.observe().pods:
            state, reason = pod_state(pod)
            if pod["metadata"].get("deletionTimestamp"):  # an old one, while its successor runs
                state = "Terminating"
            statuses = pod["status"].get("containerStatuses") or []
            rows.append(
                {
                    "pod": pod["metadata"]["name"],
                    "state": state,
                    "ready": is_true(pod, "Ready"),
                    "restarts": sum(each.get("restartCount", 0) for each in statuses),
                    "address": pod["status"].get("podIP", ""),
                    "age_s": round(seconds_since(pod["metadata"]["creationTimestamp"])),
                    "reason": reason,
                }
            )
        columns = ["pod", "state", "ready", "restarts", "address", "age_s", "reason"]
        return pd.DataFrame(rows, columns=columns)

    def events(self) -> pd.DataFrame:
        """What happened to it and its pods, oldest first."""
        import pandas as pd

        rows = [
            {
                "time": (event.get("lastTimestamp") or event.get("eventTime") or "")[11:19],
                "type": event["type"],
                "reason": event["reason"],
                "object": f"{event['involvedObject']['kind']}/{event['involvedObject']['name']}",
                "count": event.get("count") or 1,
                "message": event["message"],
            }
            for event in self.observe().events
        ]
        return pd.DataFrame(rows, columns=["time", "type", "reason", "object", "count", "message"])

    def logs(
        self,
        *,
        follow: bool = False,
        previous: bool = False,
        tail: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[LogLine]:
        """The lines that its containers wrote, each with pod and rank.

        Args:
            follow: Go on with new lines until the workload is done for good.
            previous: The lines of each container's run before its last restart.
            tail: Only this many last lines of each container.
            timeout_s: Stop following after so long; None follows to the end.
        """
        return self.cluster.logs(
            self.kind, self.name, follow=follow, previous=previous, tail=tail, timeout_s=timeout_s
        )

    # -- waiting --------------------------------------------------------------------------------

    def wait_ready(self, *, timeout_s: float = 300.0) -> Workload:
        """Wait until every pod is ready, with progress.

        Args:
            timeout_s: The longest to wait.

        Raises:
            ClusterError: It failed for good.
            WaitTimeoutError: It was not ready in time; the line says what is missing and why.
        """
        if self.kind not in WORKLOAD_KINDS:  # nothing runs: to be there is to be ready
            self.observe()
            return self
        return self._wait("ready", lambda seen: readiness(seen.body), timeout_s)

    def wait_complete(self, *, timeout_s: float = 600.0) -> Workload:
        """Wait until a Job is Complete, with progress.

        Args:
            timeout_s: The longest to wait.

        Raises:
            ClusterError: The Job failed, or this is no Job.
            WaitTimeoutError: It was not done in time.
        """
        if self.kind != "Job":
            raise ClusterError(f"{self.kind}/{self.name} runs until deleted; only a Job completes")

        def look(observation: Observation) -> tuple[float, float, str]:
            done = is_true(observation.body, "Complete")
            return float(done), 1.0, "complete" if done else ""

        return self._wait("complete", look, timeout_s)

    def _wait(
        self,
        goal: str,
        look: Callable[[Observation], tuple[float, float, str]],
        timeout_s: float,
    ) -> Workload:
        began = time.monotonic()
        last_line, read_at = "", 0.0
        with (
            Progress(total=None, label=f"{self.component} {goal}") as progress,
            contextlib.closing(self.cluster.watch(self.kind, self.name)) as observations,
        ):
            for observation in observations:
                done, wanted, text = look(observation)
                elapsed_s = time.monotonic() - began
                if reason := failure(observation):
                    raise ClusterError(
                        f"{self.kind}/{self.name} failed after {elapsed_s:.0f} s: {reason}"
                        f"{self._evidence(observation)}; next: read its logs() and events(), "
                        f"then cluster.delete({self.component!r})"
                    )
                if done >= wanted:
                    progress.update(done=done, total=wanted, text=text)
                    return self
                problems = _problems(observation.pods)
                if not problems and time.monotonic() - read_at > LAST_LINE_EVERY_S:
                    last_line, read_at = self._last_line(), time.monotonic()
                news = problems or last_line or _last_event(observation.events)
                shown = "; ".join(filter(None, (text, news)))
                progress.update(done=done, total=wanted, text=shown)
                if elapsed_s > timeout_s:
                    seen = observation.events
                    why = (
                        problems or _held_up(observation.pods, seen) or _last_event(seen, "Warning")
                    )
                    state = "; ".join(filter(None, (text, why))) or "it still runs"
                    raise WaitTimeoutError(
                        f"{self.kind}/{self.name} is not {goal} after {timeout_s:g} s: {state}"
                        f"{self._evidence(observation)}; "
                        "next: read its table(), events() and logs()"
                    )
        raise AssertionError("a watch goes on until it is closed")

    def _last_line(self) -> str:
        lines = self._lines(1)
        return lines[-1].text[:120] if lines else ""

    def _lines(self, tail: int) -> list[LogLine]:
        """The last lines of each container, as far as they can be had.

        A node that cannot give its logs now is no reason to end a wait, nor to hide why a
        workload failed.
        """
        found = []
        with contextlib.suppress(WorkshopError):
            for line in self.logs(tail=tail):
                found.append(line)
        return [line for line in found if line.text.strip()]

    def _evidence(self, observation: Observation) -> str:
        """The last line of the container that ended badly first, quoted."""
        ended = [
            # A kubelet that lost the container gives no time: that one comes last.
            (str(terminated.get("finishedAt") or "~"), str(pod["metadata"]["name"]))
            for pod in observation.pods
            for each in pod["status"].get("containerStatuses") or []
            for state in (each.get("state") or {}, each.get("lastState") or {})
            if (terminated := state.get("terminated") or {}).get("exitCode")
        ]
        if not ended:
            return ""
        first = min(ended)[1]
        said = [line.text.strip() for line in self._lines(5) if line.pod == first]
        return f" ({first} said: {said[-1][:200]})" if said else ""


def _problems(pods: Sequence[Json]) -> str:
    """The first pod that has something to explain, in words."""
    for pod in pods:
        state, reason = pod_state(pod)
        if reason and reason != "not ready yet" and state != "Failed":
            return f"{pod['metadata']['name']} is {state}{_since(pod)}: {reason}"
    return ""


def _held_up(pods: Sequence[Json], events: Sequence[Json]) -> str:
    """The first pod that is Pending for a reason that only its last warning tells, in words."""
    for pod in pods:
        uid = pod["metadata"].get("uid")
        own = [each for each in events if each["involvedObject"].get("uid") == uid]
        if (since := _since(pod)) and (why := _last_event(own, "Warning")):
            return f"{pod['metadata']['name']} is {pod_state(pod)[0]}{since}: {why}"
    return ""


def _since(pod: Json) -> str:
    """Since when a pod is Pending, in words: for a node, or on its node for an image or volume."""
    stamp = conditions(pod).get("PodScheduled", {}).get("lastTransitionTime")
    pending = (pod.get("status") or {}).get("phase") == "Pending"
    return f" since {stamp[11:19]} UTC" if pending and stamp else ""


def _last_event(events: Sequence[Json], kind: str | None = None) -> str:
    """The last event in words, of one type when it is given."""
    said = [f"{e['reason']}: {e['message']}" for e in events if kind in (None, e["type"])]
    return textwrap.shorten(said[-1], 300, placeholder=" …") if said else ""
