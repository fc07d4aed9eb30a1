"""A Serve application on a cluster: its replicas, its status, the autoscaler's own numbers.

Two sources, both of Ray itself. The dashboard's `/api/serve/applications/` has status, target and
replicas at once. The metrics page of the head (which Prometheus reads) has the requests that the
autoscaler counted and the replicas that it wants. Ray writes that page once a second at best.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.base import Workload, dashboard
from workshop_lib.cluster.kube import conditions
from workshop_lib.cluster.ray import RayDashboard
from workshop_lib.cluster.records import Observation
from workshop_lib.errors import (
    ClusterError,
    NotFoundError,
    ServerError,
    WaitTimeoutError,
    WorkshopError,
)
from workshop_lib.production.autoscaling.settings import AutoscalingSettings
from workshop_lib.progress import Progress
from workshop_lib.serving.metrics import parse_metrics

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Replica", "ServeApp", "ServeSnapshot", "serve_app", "startup_timeline"]

SERVE_PORT, METRICS_PORT = 8000, 8080

_GAUGES = {
    "counted_requests": "ray_serve_autoscaling_total_requests",
    "wanted_replicas": "ray_serve_autoscaling_desired_replicas",
    "queued_requests": "ray_serve_deployment_queued_queries",
}
"""What a snapshot calls them, and the gauges of Ray 2.60."""


@dataclass(frozen=True)
class Replica:
    """A replica: its id, state, process, its node's address, its start (Unix time)."""

    name: str
    state: str
    pid: int | None
    node_ip: str
    started_s: float


@dataclass(frozen=True)
class ServeSnapshot:
    """A deployment as Serve's controller sees it.

    Attributes:
        application: The application's status, such as `RUNNING`.
        deployment: The deployment's, such as `UPSCALING`.
        message: What Serve says about a problem.
        target: Replicas that the controller works towards.
        replicas: Those that there are.
        settings: What the autoscaler runs with; None without one.
        autoscaler: The autoscaler's numbers, as far as its metrics are there.
    """

    application: str
    deployment: str
    message: str
    target: int
    replicas: tuple[Replica, ...]
    settings: AutoscalingSettings | None
    autoscaler: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Mapping[str, Any], name: str) -> ServeSnapshot:
        """From what `/api/serve/applications/` answers; the first deployment is taken."""
        app = (answer.get("applications") or {}).get(name) or {}
        deployments = app.get("deployments") or {}
        if not deployments:
            there = ", ".join(answer.get("applications") or {}) or "none"
            raise NotFoundError(
                f"Serve has no running application {name!r} (it has: {there}); "
                "next: read the component's events()"
            )
        found = next(iter(deployments.values()))
        config = found["deployment_config"].get("autoscaling_config")
        names = AutoscalingSettings.__dataclass_fields__
        return cls(
            application=app["status"],
            deployment=found["status"],
            message=found.get("message") or app.get("message") or "",
            target=found["target_num_replicas"],
            replicas=tuple(
                Replica(
                    each["replica_id"],
                    each["state"],
                    each.get("pid"),
                    each.get("node_ip") or "",
                    each["start_time_s"],
                )
                for each in found["replicas"]
            ),
            settings=AutoscalingSettings(**{key: config[key] for key in names}) if config else None,
        )

    @property
    def running(self) -> tuple[Replica, ...]:
        """The replicas that answer."""
        return tuple(each for each in self.replicas if each.state == "RUNNING")

    def settled(self, replicas: int) -> bool:
        """Whether there are exactly so many replicas, all running, and none on its way."""
        return self.target == replicas == len(self.running) == len(self.replicas)

    def __str__(self) -> str:
        states = Counter(each.state.lower() for each in self.replicas)
        listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{self.deployment}: {listed or 'no'} of {self.target} replicas"


class ServeApp:
    """One Serve application: what readers ask it, and what its controller says.

    Args:
        dashboard: The cluster's dashboard.
        url: Where the application answers.
        metrics_url: The head's metrics port.
        name: The application's name.
    """

    def __init__(self, dashboard: RayDashboard, url: str, metrics_url: str, name: str) -> None:
        self.dashboard = dashboard
        self.url = url
        self.metrics_url = metrics_url
        self.name = name

    def __repr__(self) -> str:
        return f"ServeApp({self.name!r}, {self.url!r})"

    def snapshot(self, *, autoscaler: bool = True) -> ServeSnapshot:
        """The application as it is now.

        Args:
            autoscaler: Read the autoscaler's numbers, too.

        Raises:
            NotFoundError: It is not deployed.
            ClusterError: The dashboard does not answer.
        """
        found = ServeSnapshot.of(self.dashboard.get("/api/serve/applications/"), self.name)
        return replace(found, autoscaler=self._autoscaler()) if autoscaler else found

    def _autoscaler(self) -> dict[str, float]:
        import httpx

        try:
            answer = httpx.get(f"{self.metrics_url}/metrics", timeout=10, trust_env=False)
            # Ray's whole page has thousands of lines; only these are parsed.
            wanted = tuple(_GAUGES.values())
            lines = [line for line in answer.text.splitlines() if line.startswith(wanted)]
            values = parse_metrics("\n".join(lines) + "\n").values
        except (httpx.HTTPError, ServerError):
            return {}  # a page that is late or cut is a gap in the curve, no reason to stop
        return {name: values[gauge] for name, gauge in _GAUGES.items() if gauge in values}

    def ask(self, reader: int = 0, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """One request: the articles for a reader, who answered, and how long it worked.

        Args:
            reader: Which reader.
            timeout_s: The longest to wait.

        Raises:
            ServerError: No answer, or an error.
        """
        import httpx

        body = {"reader": reader}
        try:
            answer = httpx.post(self.url, json=body, timeout=timeout_s, trust_env=False)
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.url} does not answer ({error or type(error).__name__}); "
                f"is the application {self.name!r} RUNNING?"
            ) from error
        if answer.status_code != 200:
            said = answer.text.strip()[:200]
            raise ServerError(f"{self.url} answered {answer.status_code}: {said}")
        return dict(answer.json())

    def wait_settings(self, *, timeout_s: float = 120.0, **settings: float) -> ServeSnapshot:
        """Wait until Serve runs with changed settings, and return what was seen.

        Args:
            timeout_s: The longest to wait.
            settings: Fields of `autoscaling_config` and their values.

        Raises:
            WaitTimeoutError: It still had others at the end.

        Example:
            >>> app.wait_settings(target_ongoing_requests=3)   # doctest: +SKIP
        """
        goal = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        wanted = settings.items()
        return self._wait(lambda s: wanted <= vars(s.settings or object).items(), goal, timeout_s)

    def wait_settled(self, replicas: int, *, timeout_s: float = 120.0) -> ServeSnapshot:
        """Wait until exactly so many replicas run, and return what was seen.

        Args:
            replicas: How many.
            timeout_s: The longest to wait.

        Raises:
            WaitTimeoutError: There were others at the end.
        """
        return self._wait(lambda seen: seen.settled(replicas), f"{replicas} replicas", timeout_s)

    def _wait(
        self, done: Callable[[ServeSnapshot], bool], goal: str, timeout_s: float
    ) -> ServeSnapshot:
        deadline = time.monotonic() + timeout_s
        with Progress(label=goal) as progress:
            while not done(seen := self.snapshot(autoscaler=False)):
                progress.update(text=str(seen))
                if time.monotonic() > deadline:
                    raise WaitTimeoutError(
                        f"application {self.name!r}: not there after {timeout_s:g} s: {goal}; "
                        f"{seen}. {seen.message}".strip()
                    )
                time.sleep(0.5)
            progress.update(text=str(seen))
        return seen


@contextmanager
def serve_app(workload: Workload, name: str | None = None) -> Iterator[ServeApp]:
    """The ways to a RayService's application: its own port, Ray's dashboard and metrics.

    Args:
        workload: The handle of a RayService.
        name: The application's name; default: the RayService's.

    Raises:
        ClusterError: The component is no RayService.
        NotFoundError: It does not run.

    Example:
        >>> with serve_app(cluster.get("autoscale")) as app:   # doctest: +SKIP
        ...     print(app.snapshot())
        HEALTHY: 1 running of 1 replicas
    """
    if workload.kind != "RayService":
        raise ClusterError(f"{workload.kind}/{workload.name} is no RayService; Serve is not there")
    forward = workload.cluster.forward
    with ExitStack() as stack:
        ray = stack.enter_context(dashboard(workload))
        url = stack.enter_context(forward(f"{workload.name}-serve-svc", SERVE_PORT))
        metrics = stack.enter_context(forward(f"{workload.name}-head-svc", METRICS_PORT))
        yield ServeApp(ray, url, metrics, name or workload.name)


# -- a cold start ---------------------------------------------------------------------------------


def _unix_s(stamp: str | None) -> float | None:
    """Unix time of a Kubernetes timestamp."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else None


def _container_started(pod: Mapping[str, Any]) -> float | None:
    """When the pod's first container began to run, the last time."""
    statuses = pod["status"].get("containerStatuses") or [{}]
    running = (statuses[0].get("state") or {}).get("running") or {}
    return _unix_s(running.get("startedAt"))


def startup_timeline(
    observation: Observation, snapshot: ServeSnapshot, *, applied_s: float, answered_s: float
) -> pd.DataFrame:
    """The steps of a RayService's cold start, with the second at which each was done.

    Kubernetes and Serve write down when things happened, mostly in whole seconds; the first
    answer is timed by whoever asked.

    Args:
        observation: The RayService, as `Workload.observe` gives it.
        snapshot: Its application, for the time when its replica was started.
        applied_s: When its manifests were applied, Unix time.
        answered_s: When it answered for the first time, Unix time.

    Returns:
        Columns `step`, `done_after_s` (since it was applied) and `took_s`. A step whose time the
        cluster does not tell is left out.

    Raises:
        WorkshopError: It ran before it was applied: that was no cold start.

    Example:
        >>> startup_timeline(service.observe(), app.snapshot(),           # doctest: +SKIP
        ...     applied_s=applied, answered_s=time.time())
    """
    import pandas as pd

    head: Mapping[str, Any] = observation.pods[0] if observation.pods else {"status": {}}
    name = (head.get("metadata") or {}).get("name")
    workers = [_container_started(pod) for pod in observation.pods[1:]]
    pulls = [
        _unix_s(event.get("lastTimestamp") or event.get("eventTime"))
        for event in observation.events
        if event["reason"] == "Pulled" and event.get("involvedObject", {}).get("name") == name
    ]
    pulled = max(filter(None, pulls), default=None)

    def since(body: Mapping[str, Any], condition: str) -> float | None:
        return _unix_s(conditions(body).get(condition, {}).get("lastTransitionTime"))

    seen = {
        # Where images are pulled, a node may have to boot first: two steps that a laptop lacks.
        "a node is found for the head": since(head, "PodScheduled") if pulled else None,
        "its image is there": pulled,
        "the head's container runs": _container_started(head),
        "Ray's head is ready": since(head, "Ready"),
        "a worker's container runs": min(filter(None, workers), default=None),
        "Serve starts the first replica": min(
            (r.started_s for r in snapshot.replicas), default=None
        ),
        "the application is RUNNING": since(observation.body, "Ready"),
        "first answer": answered_s,
    }
    started_s = seen["the head's container runs"]
    if started_s is not None and started_s < applied_s - 1:
        raise WorkshopError(
            f"Ray's head has been running since {applied_s - started_s:.0f} s before the manifests "
            "were applied: no cold start; cluster.delete(...) it first"
        )
    rows, latest = [], 0.0
    for step, at_s in seen.items():
        if at_s is not None:
            # Whole seconds are cut off: a step cannot be done before the last one.
            done_s = max(latest, at_s - applied_s)
            rows.append([step, round(done_s, 1), round(done_s - latest, 1)])
            latest = done_s
    return pd.DataFrame(rows, columns=["step", "done_after_s", "took_s"])
