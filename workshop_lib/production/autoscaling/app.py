"""A Serve application on a cluster: its replicas and status, and the autoscaler's own numbers.

Ray's dashboard has status, target and replicas at once. The metrics page of the head, renewed once
a second at best, has the requests that the autoscaler counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

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
from workshop_lib.production.autoscaling.load import post
from workshop_lib.production.autoscaling.settings import AutoscalingSettings
from workshop_lib.production.monitoring.serving import read_page
from workshop_lib.progress import Progress
from workshop_lib.serving.metrics import parse_metrics

if TYPE_CHECKING:
    import pandas as pd

SERVE_PORT, METRICS_PORT = 8000, 8080
GAUGES = {
    "counted_requests": "ray_serve_autoscaling_total_requests",
    "queued_requests": "ray_serve_deployment_queued_queries",
}


class Replica(BaseModel):
    """A replica, in Ray's words; its start is in Unix time."""

    replica_id: str
    state: str
    start_time_s: float
    pid: int | None = None
    node_ip: str | None = None


class ServeSnapshot(BaseModel):
    """A deployment as Serve's controller sees it, in Ray's words."""

    status: str
    message: str = ""
    target_num_replicas: int
    replicas: list[Replica]
    settings: AutoscalingSettings

    @classmethod
    def of(cls, answer: Mapping[str, Any], name: str) -> ServeSnapshot:
        """From what `/api/serve/applications/` answers; the first deployment is taken."""
        app = (answer.get("applications") or {}).get(name) or {}
        if not app.get("deployments"):
            there = ", ".join(answer.get("applications") or {}) or "none"
            raise NotFoundError(
                f"Serve has no running application {name!r} (it has: {there}); "
                "next: read the component's events()"
            )
        found = next(iter(app["deployments"].values()))
        config = found["deployment_config"].get("autoscaling_config")
        if not config:
            raise ClusterError(f"application {name!r} has no autoscaling_config: nothing scales it")
        return cls.model_validate({**found, "settings": config})

    @property
    def running(self) -> list[Replica]:
        """The replicas that answer."""
        return [each for each in self.replicas if each.state == "RUNNING"]

    def settled(self, replicas: int) -> bool:
        """Whether there are exactly so many replicas, all running, and none on its way."""
        return self.target_num_replicas == replicas == len(self.running) == len(self.replicas)

    def __str__(self) -> str:
        states = Counter(each.state.lower() for each in self.replicas)
        listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{self.status}: {listed or 'no'} of {self.target_num_replicas} replicas"


@dataclass
class ServeApp:
    """One Serve application: where it answers, and where its controller tells of it."""

    dashboard: RayDashboard
    url: str
    metrics_url: str
    name: str

    def snapshot(self) -> ServeSnapshot:
        """The application as it is now.

        Raises:
            NotFoundError: It is not deployed.
            ClusterError: The dashboard does not answer.
        """
        return ServeSnapshot.of(self.dashboard.get("/api/serve/applications/"), self.name)

    def gauges(self) -> dict[str, float]:
        """The autoscaler's numbers, as far as the head's page has them at this moment."""
        try:
            values = parse_metrics(read_page(self.metrics_url, tuple(GAUGES.values()))).values
        except ServerError:
            return {}  # a page that is late or cut is a gap in the curve, no reason to stop
        return {name: values[gauge] for name, gauge in GAUGES.items() if gauge in values}

    def ask(self, reader: int = 0) -> dict[str, Any]:
        """One request: the articles for a reader, who answered, and how long it worked.

        Args:
            reader: Which reader.

        Raises:
            ServerError: No answer, or an error.
        """
        import httpx

        with httpx.Client(trust_env=False, timeout=30) as client:
            error, answer = post(client, self.url, reader)
        if error:
            raise ServerError(f"{self.url}: {error}; is the application {self.name!r} RUNNING?")
        return answer

    def wait_settings(self, *, timeout_s: float = 120.0, **settings: float) -> ServeSnapshot:
        """Wait until Serve runs with changed settings, and return what was seen.

        Args:
            timeout_s: The longest to wait.
            **settings: Fields of `autoscaling_config` and their values.

        Raises:
            WaitTimeoutError: It still had others at the end.

        Example:
            >>> app.wait_settings(target_ongoing_requests=4)   # doctest: +SKIP
        """
        goal = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        wanted = settings.items()
        return self._wait(lambda seen: wanted <= vars(seen.settings).items(), goal, timeout_s)

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
            while not done(seen := self.snapshot()):
                progress.update(text=str(seen))
                if time.monotonic() > deadline:
                    raise WaitTimeoutError(
                        f"application {self.name!r}: not there after {timeout_s:g} s: {goal}; "
                        f"{seen}. {seen.message}".strip()
                    )
                time.sleep(0.2)
            progress.update(text=str(seen))
        return seen


@contextmanager
def serve_app(workload: Workload) -> Iterator[ServeApp]:
    """The ways to a RayService's application: its own port, Ray's dashboard and metrics.

    Args:
        workload: The handle of a RayService, whose application has its name.

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
    forward, name = workload.cluster.forward, workload.name
    with (
        dashboard(workload) as ray,
        forward(f"{name}-serve-svc", SERVE_PORT) as url,
        forward(f"{name}-head-svc", METRICS_PORT) as metrics_url,
    ):
        yield ServeApp(ray, url, metrics_url, name)


# -- a cold start ---------------------------------------------------------------------------------


def _unix_s(stamp: str | None) -> float | None:
    return datetime.fromisoformat(stamp).timestamp() if stamp else None


def _since(body: Mapping[str, Any], condition: str) -> float | None:
    return _unix_s(conditions(body).get(condition, {}).get("lastTransitionTime"))


def _container_started(pod: Mapping[str, Any]) -> float | None:
    """When the pod's first container began to run, the last time."""
    first = (pod["status"].get("containerStatuses") or [{}])[0]
    return _unix_s(((first.get("state") or {}).get("running") or {}).get("startedAt"))


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

    head, workers = observation.pods[0], observation.pods[1:]
    pulled = [
        _unix_s(event.get("lastTimestamp") or event.get("eventTime"))
        for event in observation.events
        if event["reason"] == "Pulled"
        and event["involvedObject"]["name"] == head["metadata"]["name"]
    ]
    seen: dict[str, list[float | None]] = {
        # Where images are pulled, a node may have to boot first: two steps that a laptop lacks.
        "a node is found for the head": [_since(head, "PodScheduled")] if pulled else [],
        "its image is there": pulled[-1:],
        "the head's container runs": [_container_started(head)],
        "Ray's head is ready": [_since(head, "Ready")],
        "a worker's container runs": [_container_started(pod) for pod in workers],
        "Serve starts the first replica": [each.start_time_s for each in snapshot.replicas],
        "the application is RUNNING": [_since(observation.body, "Ready")],
        "first answer": [answered_s],
    }
    times = {
        step: min(found) for step, all_of in seen.items() if (found := [*filter(None, all_of)])
    }
    ran_before_s = applied_s - times.get("the head's container runs", applied_s)
    if ran_before_s > 1:
        raise WorkshopError(
            f"Ray's head has been running since {ran_before_s:.0f} s before the manifests "
            "were applied: no cold start; cluster.delete(...) it first"
        )
    table = pd.DataFrame({"step": list(times), "done_after_s": list(times.values())})
    # Whole seconds are cut off: a step cannot be done before the last one.
    table["done_after_s"] = (table["done_after_s"] - applied_s).clip(lower=0).cummax().round(1)
    table["took_s"] = table["done_after_s"].diff().fillna(table["done_after_s"]).round(1)
    return table
