"""A Serve application on a cluster: its replicas, its status, the autoscaler's own numbers.

Two sources, both of Ray itself. The dashboard's `/api/serve/applications/` has status,
target and replicas at once. The metrics page of the head (which Prometheus reads) has
what the autoscaler computed: the requests that it counted and the replicas that it
wants. Ray writes that page once a second at best, so it lags behind.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from workshop_lib.cluster.ray import RayDashboard, dashboard
from workshop_lib.cluster.workload import Workload
from workshop_lib.errors import ClusterError, NotFoundError, ServerError, WaitTimeoutError
from workshop_lib.production.autoscaling.policy import AutoscalingSettings
from workshop_lib.progress import Progress
from workshop_lib.serving.metrics import parse_metrics

__all__ = [
    "Replica",
    "ServeApp",
    "ServeSnapshot",
    "parse_autoscaler",
    "parse_snapshot",
    "serve_app",
]

SERVE_PORT = 8000
METRICS_PORT = 8080

_GAUGES = {
    "counted_requests": "ray_serve_autoscaling_total_requests",
    "wanted_replicas": "ray_serve_autoscaling_desired_replicas",
    "queued_requests": "ray_serve_deployment_queued_queries",
}
"""What a snapshot calls them, and the gauges of Ray 2.60."""


@dataclass(frozen=True)
class Replica:
    """One replica of a deployment.

    Attributes:
        name: Its id, as its answers carry it.
        state: `STARTING`, `RUNNING`, `STOPPING`, …
        pid: Its process, on its node.
        node_ip: The address of that node: a pod's.
        started_s: When its actor was started, Unix time.
    """

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

    @property
    def running(self) -> tuple[Replica, ...]:
        """The replicas that answer."""
        return tuple(each for each in self.replicas if each.state == "RUNNING")

    def settled(self, replicas: int) -> bool:
        """Whether there are exactly so many replicas, all running, and none on its way.

        Args:
            replicas: How many.
        """
        return self.target == replicas == len(self.running) == len(self.replicas)

    def __str__(self) -> str:
        states = Counter(each.state.lower() for each in self.replicas)
        listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        return f"{self.deployment}: {listed or 'no'} of {self.target} replicas"


def parse_snapshot(answer: Mapping[str, Any], application: str) -> ServeSnapshot:
    """A snapshot from what `/api/serve/applications/` answers.

    Args:
        answer: Its JSON.
        application: The application's name; its first deployment is taken.

    Raises:
        NotFoundError: There is no such application, or it has no deployment yet.
    """
    app = (answer.get("applications") or {}).get(application)
    deployments = (app or {}).get("deployments") or {}
    if app is None or not deployments:
        there = ", ".join(answer.get("applications") or {}) or "none"
        raise NotFoundError(
            f"Serve has no running application {application!r} (it has: {there}); "
            "next: read the component's events()"
        )
    deployment = next(iter(deployments.values()))
    config = deployment["deployment_config"].get("autoscaling_config")
    return ServeSnapshot(
        application=app["status"],
        deployment=deployment["status"],
        message=deployment.get("message") or app.get("message") or "",
        target=deployment["target_num_replicas"],
        replicas=tuple(
            Replica(each["replica_id"], each["state"], each.get("pid"),
                    each.get("node_ip") or "", each["start_time_s"])
            for each in deployment["replicas"]
        ),
        settings=AutoscalingSettings.from_config(config) if config else None,
    )  # fmt: skip


def parse_autoscaler(page: str) -> dict[str, float]:
    r"""The autoscaler's numbers from a Ray metrics page; what is not there is left out.

    Args:
        page: The text, in Prometheus' exposition format.

    Example:
        >>> parse_autoscaler('ray_serve_autoscaling_desired_replicas{deployment="A"} 3.0\n')
        {'wanted_replicas': 3.0}
    """
    # Ray's whole page has thousands of lines; only these are parsed.
    lines = [line for line in page.splitlines() if line.startswith(tuple(_GAUGES.values()))]
    values = parse_metrics("\n".join(lines) + "\n").values
    return {name: values[gauge] for name, gauge in _GAUGES.items() if gauge in values}


class ServeApp:
    """One Serve application: what it is asked by readers, and what its controller says.

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
            autoscaler: Read the autoscaler's numbers too.

        Raises:
            NotFoundError: It is not deployed.
            ClusterError: The dashboard does not answer.
        """
        found = parse_snapshot(self.dashboard.get("/api/serve/applications/"), self.name)
        if not autoscaler:
            return found
        return ServeSnapshot(**{**found.__dict__, "autoscaler": self._autoscaler()})

    def _autoscaler(self) -> dict[str, float]:
        import httpx

        try:
            answer = httpx.get(f"{self.metrics_url}/metrics", timeout=10, trust_env=False)
            return parse_autoscaler(answer.text) if answer.status_code == 200 else {}
        except (httpx.HTTPError, ServerError):
            return {}  # a page that is late or cut is a gap in the curve, no reason to stop

    def ask(self, reader: int = 0, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """One request: the articles for a reader, who answered, and how long it worked.

        Args:
            reader: Which reader.
            timeout_s: The longest to wait.

        Raises:
            ServerError: No answer, or an error.
        """
        import httpx

        try:
            answer = httpx.post(
                self.url, json={"reader": reader}, timeout=timeout_s, trust_env=False
            )
        except httpx.HTTPError as error:
            raise ServerError(
                f"{self.url} does not answer ({error or type(error).__name__}); "
                f"is the application {self.name!r} RUNNING?"
            ) from error
        if answer.status_code != 200:
            raise ServerError(
                f"{self.url} answered {answer.status_code}: {answer.text.strip()[:200]}"
            )
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

        def has_them(seen: ServeSnapshot) -> bool:
            return seen.settings is not None and all(
                getattr(seen.settings, name) == value for name, value in settings.items()
            )

        told = ", ".join(f"{name} {value:g}" for name, value in settings.items())
        return self._wait(has_them, told, timeout_s)

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
    cluster = workload.cluster
    with ExitStack() as stack:
        ray = stack.enter_context(dashboard(workload))
        url = stack.enter_context(cluster.forward(f"{workload.name}-serve-svc", SERVE_PORT))
        metrics = stack.enter_context(cluster.forward(f"{workload.name}-head-svc", METRICS_PORT))
        yield ServeApp(ray, url, metrics, name or workload.name)
