"""One lesson, two worlds: a cluster, and the handle of what was applied to it.

`LocalCluster` plays the manifests on this machine; `KubernetesCluster` gives them to an API
server. Both speak in Kubernetes objects, so everything that reads them (waits, tables, plots,
diagnosis) is written once, here and in `kube`.
"""

from __future__ import annotations

import abc
import contextlib
import html
import random
import textwrap
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kube import (
    CLAIM,
    WORKLOAD_KINDS,
    Json,
    conditions,
    container_statuses,
    failure,
    first_failed,
    is_true,
    pod_state,
    readiness,
    seconds_since,
)
from workshop_lib.cluster.manifests import Object
from workshop_lib.cluster.ray import DASHBOARD_PORT, RayDashboard
from workshop_lib.cluster.records import ExecResult, LogLine, Observation, Remains
from workshop_lib.cluster.snapshot import of_component, ready_heads
from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError, WorkshopError
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.checklist import CheckList
    from workshop_lib.production.diagnosis import Diagnosis

__all__ = ["Cluster", "Workload", "dashboard", "handle", "head_ports"]

LAST_LINE_EVERY_S = 2.0
"""How often a wait reads the logs for the line that it shows."""


class Cluster(abc.ABC):
    """What a notebook can ask of a cluster, the same in every world.

    Attributes:
        profile: Whose overlays are applied: `local`, `eks` or `kind`.
    """

    profile: str
    poll_s = 0.1  # how often a workload that is waited for is looked at

    # -- changing -------------------------------------------------------------------------------

    def apply(self, component: str, /, **parameters: Any) -> Workload:
        """Render a component's manifests and make the cluster match them.

        Everything is checked before anything is changed: a wrong manifest changes nothing.
        What is there already and has not changed is left alone.

        Args:
            component: A folder's name under `manifests/overlays/<profile>`.
            **parameters: Values for what its `parameters.yaml` names; None leaves one as it is.

        Returns:
            Its handle; what was done is shown by it.

        Raises:
            ManifestError: The manifest or a parameter is wrong, or not played here.
            ClusterError: Something would change that cannot while it exists.

        Example:
            >>> cluster.apply("vllm", max_model_len=512)   # doctest: +SKIP
        """
        return self.apply_objects(component, manifests.render(self.profile, component, parameters))

    @abc.abstractmethod
    def apply_objects(self, component: str, objects: Sequence[Object]) -> Workload:
        """Like `apply`, for objects rendered by the caller, in their order."""

    @abc.abstractmethod
    def delete(self, component: str, *, claims: Sequence[str] = ()) -> None:
        """Remove what a component made, and wait until it is gone.

        Args:
            component: The component's name; one that is not there is no error.
            claims: Names of its persistent volume claims whose data goes too.

        Raises:
            NotFoundError: It has no such claim; nothing was deleted.
            ClusterError: Something is left; the line says what, and why.
        """

    @abc.abstractmethod
    def clean(self) -> None:
        """Remove everything that the workshop made here."""

    # -- reading --------------------------------------------------------------------------------

    @abc.abstractmethod
    def components(self) -> list[str]:
        """The names of the components that are applied; kept claims alone do not count."""

    @abc.abstractmethod
    def objects_of(self, component: str) -> list[dict[str, Any]]:
        """A component's objects as they were applied, volume claims apart."""

    def get(self, component: str) -> Workload:
        """The handle of a component that was applied before, by this kernel or another.

        Args:
            component: Its name.

        Raises:
            NotFoundError: It is not applied; the line says which components are.
        """
        if bodies := self.objects_of(component):
            return handle(self, component, bodies)
        there = ", ".join(self.components()) or "nothing"
        raise NotFoundError(
            f"component {component!r} is not applied ({there} is); "
            f"start it with cluster.apply({component!r})"
        )

    @abc.abstractmethod
    def observe(self, kind: str, name: str) -> Observation:
        """A workload as it is now: its object, pods and events."""

    def watch(self, kind: str, name: str) -> Generator[Observation, None, None]:
        """A workload as it is, again and again, until it is deleted; close it when done."""
        seen = self.observe(kind, name)
        uid = seen.body["metadata"].get("uid")
        while True:
            yield seen
            time.sleep(self.poll_s * random.uniform(0.8, 1.2))
            with contextlib.suppress(NotFoundError):
                seen = self.observe(kind, name)
                if seen.body["metadata"].get("uid") == uid:
                    continue
            raise NotFoundError(f"{kind}/{name} was deleted while it was waited for")

    @abc.abstractmethod
    def logs(
        self,
        kind: str,
        name: str,
        *,
        follow: bool = False,
        previous: bool = False,
        tail: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[LogLine]:
        """The lines that a workload's containers wrote, as `Workload.logs` describes them."""

    @abc.abstractmethod
    def take_snapshot(self) -> dict[str, Any]:
        """Everything that the API server, or this machine, knows; no Secret is in it."""

    def snapshot(self, component: str | None = None) -> dict[str, Any]:
        """Everything that the diagnosis reads, as one JSON object; no Secret is in it.

        Args:
            component: Only what belongs to it; default: everything.

        Raises:
            NotFoundError: The component is not applied.

        Example:
            >>> save_snapshot(cluster.snapshot(), "snapshot.json")   # doctest: +SKIP
        """
        if component is not None:
            self.get(component)
        found = self.take_snapshot()
        for each in ready_heads(found)[:1]:
            try:
                with dashboard(self.get(each)) as ray:
                    found |= ray.state()
            except WorkshopError as error:  # taken when things are broken: noted, no error
                found.setdefault("notes", []).append(f"Ray was not asked: {error}")
        return of_component(found, component) if component else found

    def diagnose(self, component: str | None = None) -> Diagnosis:
        """What is wrong, the root cause first: cause, evidence, fix, and where it is taught.

        Args:
            component: Only this component; default: everything.

        Raises:
            NotFoundError: The component is not applied.

        Example:
            >>> cluster.diagnose("vllm").verdict   # doctest: +SKIP
            'healthy'
        """
        from workshop_lib.production.diagnosis import diagnose

        return diagnose(self.snapshot(component))

    @abc.abstractmethod
    def secret(self, name: str, key: str) -> str:
        """A Secret's value, for use and not for show."""

    @abc.abstractmethod
    def remains(self) -> Remains:
        """What of the workshop is there: objects, pods or processes, ports."""

    @abc.abstractmethod
    def prerequisites(self) -> CheckList:
        """Whether this cluster has what the components of its profile need; changes nothing."""

    # -- reaching in ----------------------------------------------------------------------------

    @abc.abstractmethod
    def exec(
        self,
        pod: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Run a command in a container, and wait for its end.

        Args:
            pod: A pod's name, or its beginning when that fits one pod.
            command: The command and its arguments.
            container: Which container; default: the first.
            timeout_s: The longest to wait for its end.

        Raises:
            NotFoundError: No such pod, or its container does not run.
            ClusterError: The command does not exist, took too long, or its end is not known.
        """

    @abc.abstractmethod
    def forward(self, target: str, port: int) -> AbstractContextManager[str]:
        """A URL on this machine, loopback only, for a port of a Service or pod.

        Args:
            target: A Service's name, a pod's name, or the beginning of one.
            port: The port as the manifest says it.

        Raises:
            NotFoundError: No such target, port or ready pod.
        """


def handle(
    cluster: Cluster,
    component: str,
    bodies: Sequence[Json],
    *,
    actions: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Workload:
    """The handle of a component: it watches the last object that has pods.

    Without one it is for the last by kind and name; claims are passed over, since a kernel
    that looks for the component later does not count them.
    """
    workloads = [body for body in bodies if body["kind"] in WORKLOAD_KINDS]
    others = [body for body in bodies if body["kind"] != CLAIM] or bodies
    by_name = sorted(others, key=lambda body: (body["kind"], body["metadata"]["name"]))
    watched = (workloads or by_name)[-1]
    kind, name = watched["kind"], watched["metadata"]["name"]
    return Workload(cluster, component, kind, name, actions or {}, notes or {})


@dataclass(repr=False, eq=False)
class Workload:
    """The handle that `cluster.apply` returns: a component, and the object that it watches.

    Attributes:
        actions: Object (`Kind/name`) to what apply did with it.
        notes: Fields without effect in this cluster, and why.
    """

    cluster: Cluster
    component: str
    kind: str
    name: str
    actions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"{key.lower()} {action}" for key, action in self.actions.items()]
        return "\n".join(lines or [f"{self.kind}/{self.name}"])

    def _repr_html_(self) -> str:
        """The table of what apply did, and below it what has no effect in this cluster."""
        cell = "<td style='text-align:left'>{}</td>"
        rows = "".join(
            f"<tr>{''.join(cell.format(html.escape(each)) for each in row)}</tr>"
            for row in self.actions.items()
        )
        reasons: dict[str, dict[str, None]] = {}
        for where, why in self.notes.items():
            reasons.setdefault(why, {})[where.split(".")[-1]] = None
        notes = html.escape(
            "; ".join(f"{', '.join(each)} ({why})" for why, each in reasons.items())
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
            metadata, (state, reason) = pod["metadata"], pod_state(pod)
            if metadata.get("deletionTimestamp"):  # an old one, while its successor runs
                state = "Terminating"
            restarts = sum(s.get("restartCount", 0) for s in container_statuses(pod).values())
            address = (pod.get("status") or {}).get("podIP", "")
            age_s = round(seconds_since(metadata["creationTimestamp"]))
            ready = is_true(pod, "Ready")
            rows.append([metadata["name"], state, ready, restarts, address, age_s, reason])
        columns = ["pod", "state", "ready", "restarts", "address", "age_s", "reason"]
        return pd.DataFrame(rows, columns=columns)

    def events(self) -> pd.DataFrame:
        """What happened to it and its pods, oldest first."""
        import pandas as pd

        rows = [
            [
                (event.get("lastTimestamp") or event.get("eventTime") or "")[11:19],
                event["type"],
                event["reason"],
                f"{event['involvedObject']['kind']}/{event['involvedObject']['name']}",
                event.get("count") or 1,
                event["message"],
            ]
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
        return self._wait("ready", readiness, timeout_s)

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

        def look(body: Json) -> tuple[int, int, str]:
            done = is_true(body, "Complete")
            return int(done), 1, "complete" if done else ""

        return self._wait("complete", look, timeout_s)

    def _wait(
        self, goal: str, look: Callable[[Json], tuple[int, int, str]], timeout_s: float
    ) -> Workload:
        began = time.monotonic()
        last_line, read_at = "", 0.0
        with (
            Progress(total=None, label=f"{self.component} {goal}") as progress,
            contextlib.closing(self.cluster.watch(self.kind, self.name)) as observations,
        ):
            for seen in observations:
                done, wanted, text = look(seen.body)
                elapsed_s = time.monotonic() - began
                if reason := failure(seen.body):
                    raise ClusterError(
                        f"{self.kind}/{self.name} failed after {elapsed_s:.0f} s: {reason}"
                        f"{self._evidence(seen)}; next: read its logs() and events(), "
                        f"then cluster.delete({self.component!r})"
                    )
                if done >= wanted:
                    progress.update(done=done, total=wanted, text=text)
                    return self
                problem = _problem(seen)
                if not problem and time.monotonic() - read_at > LAST_LINE_EVERY_S:
                    last_line = next((line.text[:120] for line in self._last_lines(1)), "")
                    read_at = time.monotonic()
                news = problem or last_line or _last_event(seen.events)
                shown = "; ".join(filter(None, (text, news)))
                progress.update(done=done, total=wanted, text=shown)
                if elapsed_s > timeout_s:
                    warnings = [event for event in seen.events if event["type"] == "Warning"]
                    why = problem or _last_event(warnings)
                    state = "; ".join(filter(None, (text, why))) or "it still runs"
                    raise WaitTimeoutError(
                        f"{self.kind}/{self.name} is not {goal} after {timeout_s:g} s: {state}"
                        f"{self._evidence(seen)}; next: read its table(), events() and logs()"
                    )
        raise AssertionError("a watch goes on until it is closed")

    def _last_lines(self, tail: int) -> list[LogLine]:
        """The last lines of each container, the last first, as far as they can be had.

        A node that cannot give its logs now is no reason to end a wait, nor to hide why a
        workload failed.
        """
        found: list[LogLine] = []
        with contextlib.suppress(WorkshopError):
            for line in self.logs(tail=tail):
                found.insert(0, line)
        return [line for line in found if line.text.strip()]

    def _evidence(self, seen: Observation) -> str:
        """The last line of the container that ended badly first, quoted."""
        first = first_failed(seen.pods)
        for line in self._last_lines(5) if first else []:
            if line.pod == first:
                return f" ({first} said: {line.text.strip()[:200]})"
        return ""


def _problem(seen: Observation) -> str:
    """The first pod that has something to explain, by its state or its last event, in words."""
    for pod in seen.pods:
        state, reason = pod_state(pod)
        since = conditions(pod).get("PodScheduled", {}).get("lastTransitionTime")
        if since and (pod.get("status") or {}).get("phase") == "Pending":
            uid = pod["metadata"].get("uid")
            own = [each for each in seen.events if each["involvedObject"].get("uid") == uid]
            reason, state = reason or _last_event(own), f"{state} since {since[11:19]} UTC"
        if reason and reason != "not ready yet" and state != "Failed":
            return f"{pod['metadata']['name']} is {state}: {reason}"
    return ""


def _last_event(events: Sequence[Json]) -> str:
    """The last event in words, cut at a word's end."""
    said = [f"{event['reason']}: {event['message']}" for event in events]
    return textwrap.shorten(said[-1], 300, placeholder=" …") if said else ""


@contextlib.contextmanager
def dashboard(workload: Workload) -> Iterator[RayDashboard]:
    """The dashboard of a Ray cluster that the workshop started, with its token.

    Args:
        workload: The handle of `ray-cluster`, `raycluster`, `ray-service` or `autoscale`.

    Raises:
        NotFoundError: It does not run.

    Example:
        >>> with dashboard(cluster.get("raycluster")) as ray:   # doctest: +SKIP
        ...     ray.version()
        '2.60.0'
    """
    name, cluster = workload.name, workload.cluster
    target, secret = f"{name}-head-svc", name
    if workload.kind == "Job":
        target, secret = f"{name}-0", f"{name}-auth"
    elif workload.kind == "RayService":
        status = workload.observe().body.get("status") or {}
        secret = (status.get("activeServiceStatus") or {}).get("rayClusterName", name)
    token = cluster.secret(secret, "auth_token")
    with cluster.forward(target, DASHBOARD_PORT) as url:
        yield RayDashboard(url, token)


def head_ports(workload: Workload) -> dict[str, int]:
    """The ports on which the head of an Indexed Job's Ray cluster listens in fact.

    Args:
        workload: The handle of `ray-cluster`.

    Returns:
        Port of `gcs-server`, `dashboard` and `client`, as rank 0 was told them.

    Example:
        >>> head_ports(cluster.get("ray-cluster"))   # doctest: +SKIP
        {'gcs-server': 6379, 'dashboard': 8265, 'client': 10001}
    """
    variables = ("HEAD_ADDRESS", "DASHBOARD_ADDRESS", "CLIENT_ADDRESS")
    told = workload.cluster.exec(f"{workload.name}-0", ["printenv", *variables])
    ports = [int(address.rpartition(":")[2]) for address in told.stdout.split()]
    return dict(zip(("gcs-server", "dashboard", "client"), ports, strict=True))
