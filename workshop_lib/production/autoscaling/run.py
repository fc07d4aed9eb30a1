"""Load and observation on one time axis."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workshop_lib.errors import ClusterError, WorkshopError
from workshop_lib.production.autoscaling.load import Load
from workshop_lib.production.autoscaling.policy import AutoscalingSettings
from workshop_lib.production.autoscaling.serve_app import ServeApp, ServeSnapshot
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Observer", "Phase", "ScalingRun", "run_load"]

SAMPLE_EVERY_S = 0.5

SAMPLE_COLUMNS = [
    "time_s", "users", "in_flight", "target", "running", "starting", "stopping", "application",
    "deployment", "counted_requests", "wanted_replicas", "queued_requests",
]  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with a constant number of users.

    Attributes:
        users: How many.
        start_s: Its beginning, in seconds since the load began.
        end_s: Its end.
        predicted: Replicas that the autoscaler's own settings ask for.
        replicas: Replicas that ran at its end.
        settled: Whether these were all there were, and as many as predicted.
    """

    users: int
    start_s: float
    end_s: float
    predicted: int
    replicas: int
    settled: bool


@dataclass
class ScalingRun:
    """What a run left behind.

    Attributes:
        requests: A row for each attempt (`Request`).
        samples: A row for each look at the cluster: load, replicas, status, and the
            autoscaler's own numbers (missing where its metrics were).
        phases: A row for each `Phase`.
        target: `target_ongoing_requests` during the run; None without an autoscaler.
    """

    requests: pd.DataFrame
    samples: pd.DataFrame
    phases: pd.DataFrame
    target: float | None = None

    def summary(self, *, last_s: float = 3.0) -> pd.DataFrame:
        """Each phase in a row: replicas and latency, predicted and seen.

        The predicted latency is that of users who share replicas which work on one request
        at a time: `users / replicas x` the median time that a replica worked on one.

        Args:
            last_s: How many seconds at the end of a phase count as its end.
        """
        import pandas as pd

        good = self.requests[self.requests["error"] == ""]
        ends_s = good["start_s"] + good["latency_ms"] / 1000
        service_ms = float(good["service_ms"].astype(float).median())
        rows = []
        for phase in self.phases.to_dict("records"):
            start_s, end_s = phase["start_s"], phase["end_s"]
            here = (ends_s > start_s) & (ends_s <= end_s)
            end = good.loc[here & (ends_s > end_s - last_s), "latency_ms"]
            attempts = self.requests["start_s"].between(start_s, end_s)
            rows.append(
                {
                    "users": phase["users"],
                    "predicted": phase["predicted"],
                    "replicas": phase["replicas"],
                    "seconds": round(end_s - start_s, 1),
                    "answered": int(here.sum()),
                    "failed": int((attempts & (self.requests["error"] != "")).sum()),
                    "p50_ms": good.loc[here, "latency_ms"].median(),
                    "predicted_ms": phase["users"] / max(1, phase["predicted"]) * service_ms,
                    "p50_at_the_end_ms": end.median(),
                }
            )
        table = pd.DataFrame(rows)
        latencies = ["p50_ms", "predicted_ms", "p50_at_the_end_ms"]
        return table.astype(dict.fromkeys(latencies, float)).round(dict.fromkeys(latencies, 0))

    def reactions(self) -> pd.DataFrame:
        """For each change of the load: when Serve's target followed, and when the replicas did.

        Seconds since the change; missing where it did not happen in that phase. A look
        at the cluster every half second is as exact as it gets.
        """
        import pandas as pd

        rows = []
        for before, phase in itertools.pairwise(self.phases.to_dict("records")):
            here = self.samples[self.samples["time_s"].between(phase["start_s"], phase["end_s"])]
            decided = here[here["target"] == phase["predicted"]]
            there = decided[decided["running"] == phase["predicted"]]
            rows.append(
                {
                    "users": f"{before['users']} to {phase['users']}",
                    "replicas": f"{before['replicas']} to {phase['replicas']}",
                    "decided_after_s": round(decided["time_s"].min() - phase["start_s"], 1),
                    "done_after_s": round(there["time_s"].min() - phase["start_s"], 1),
                }
            )
        return pd.DataFrame(rows)

    def counts(self) -> dict[str, int]:
        """Requests, failed attempts, requests that a further attempt saved, and lost ones."""
        failed = self.requests["error"] != ""
        lost = set(self.requests.loc[failed & self.requests["last"], "number"])
        bad = set(self.requests.loc[failed, "number"])
        return {
            "requests": int(self.requests["number"].nunique()),
            "failed_attempts": int(failed.sum()),
            "saved_by_retry": len(bad - lost),
            "lost_requests": len(lost),
        }


@dataclass
class Observer:
    """Looks at an application while a load runs, and keeps what it saw.

    Args:
        app: What is looked at.
        load: The load on it.
    """

    app: ServeApp
    load: Load
    rows: list[dict[str, object]] = field(default_factory=list)
    latest: ServeSnapshot | None = None
    seen_s: float = 0.0

    def look(self) -> ServeSnapshot | None:
        """One sample; None when the dashboard gave no answer this time."""
        time_s, users, in_flight = self.load.elapsed_s, self.load.users, self.load.in_flight
        self.latest = None
        # A dashboard that is late once leaves a gap; `run_load` sees to it that it is not for ever.
        with suppress(ClusterError):
            self.latest = self.app.snapshot()
        if self.latest is not None:
            self.seen_s, seen = time_s, self.latest
            states = [each.state for each in seen.replicas]
            self.rows.append(
                {
                    "time_s": time_s, "users": users, "in_flight": in_flight,
                    "target": seen.target, "running": len(seen.running),
                    "starting": states.count("STARTING"), "stopping": states.count("STOPPING"),
                    "application": seen.application, "deployment": seen.deployment,
                    **seen.autoscaler,
                }
            )  # fmt: skip
        return self.latest

    def until(
        self, done: Callable[[float, ServeSnapshot], bool], *, at_most_s: float, label: str,
        progress: Progress,
    ) -> bool:  # fmt: skip
        """Sample until something holds, with progress.

        Args:
            done: Called with the seconds since the beginning and the newest snapshot.
            at_most_s: The longest to wait for it.
            label: What is going on, for the display.
            progress: The display.

        Returns:
            Whether it held in time.

        Raises:
            ClusterError: The dashboard gave no answer in all that time.
        """
        began, seen_once = time.monotonic(), False
        while True:
            turn = time.monotonic()
            seen = self.look()
            elapsed_s = time.monotonic() - began
            if seen is not None:
                seen_once = True
                if done(elapsed_s, seen):
                    return True
            progress.update(
                done=round(self.load.elapsed_s),
                text=f"{label}: {seen or 'no answer from Ray'}, {len(self.load.attempts)} attempts",
            )
            if elapsed_s > at_most_s:
                if not seen_once:
                    self.app.snapshot()  # says what is wrong
                return False
            time.sleep(max(0.0, SAMPLE_EVERY_S - (time.monotonic() - turn)))

    def result(self, phases: Sequence[Phase], settings: AutoscalingSettings | None) -> ScalingRun:
        """Everything that was seen and sent, once the load has ended.

        Args:
            phases: The parts that the load had.
            settings: What the autoscaler ran with.
        """
        import pandas as pd

        return ScalingRun(
            requests=self.load.frame(),
            samples=pd.DataFrame(self.rows, columns=SAMPLE_COLUMNS),
            phases=pd.DataFrame(
                [each.__dict__ for each in phases], columns=list(Phase.__dataclass_fields__)
            ),
            target=settings.target_ongoing_requests if settings else None,
        )


def run_load(
    app: ServeApp,
    profile: Sequence[Sequence[float]],
    *,
    hold_s: float = 4.0,
    settle_timeout_s: float = 120.0,
    retries: int = 0,
) -> ScalingRun:
    """Let users come and go, and watch what the autoscaler makes of it.

    A phase lasts its seconds, and longer until the replicas have stood for a moment where
    the deployment's own settings put them, so that a slow machine sees the same story.

    Args:
        app: The application.
        profile: For each phase its users and its seconds.
        hold_s: How long they must stand there: the time in which their effect is seen.
        settle_timeout_s: How much longer a phase may wait for the replicas.
        retries: Further attempts that a user makes when one fails.

    Returns:
        What happened; a phase that did not settle in time says so.

    Raises:
        WorkshopError: The profile is empty or holds something else; nothing is sent then.
        NotFoundError: The application is not there.
        ServerError: It does not answer.

    Example:
        >>> with serve_app(cluster.get("autoscale")) as app:   # doctest: +SKIP
        ...     run = run_load(app, [(1, 5), (6, 20), (1, 10)])
        >>> run.summary()                                      # doctest: +SKIP
    """
    steps = _checked(profile)
    settings = app.snapshot(autoscaler=False).settings
    app.ask()
    phases = []
    total_s = sum(seconds for _, seconds in steps)
    with Load(app.url, retries=retries) as load:
        observer = Observer(app, load)
        with Progress(total_s, "load", unit="s") as progress:
            for users, seconds in steps:
                wanted = settings.replicas_for(users) if settings else None
                start_s = load.elapsed_s
                load.set_users(users)

                stands = _Standing(wanted, seconds, hold_s)
                settled = observer.until(
                    stands, at_most_s=seconds + settle_timeout_s, label=f"{users} users",
                    progress=progress,
                )  # fmt: skip
                running = len(observer.latest.running) if observer.latest else 0
                wanted = running if wanted is None else wanted
                phases.append(Phase(users, start_s, load.elapsed_s, wanted, running, settled))
    return observer.result(phases, settings)


@dataclass
class _Standing:
    """Whether a phase is over: long enough, and the replicas stand where they should."""

    wanted: int | None
    seconds: float
    hold_s: float
    since_s: float | None = None

    def __call__(self, elapsed_s: float, seen: ServeSnapshot) -> bool:
        if self.wanted is None:
            return elapsed_s >= self.seconds
        if not seen.settled(self.wanted):
            self.since_s = None
            return False
        self.since_s = elapsed_s if self.since_s is None else self.since_s
        return elapsed_s >= max(self.seconds, self.since_s + self.hold_s)


def _checked(profile: Sequence[Sequence[float]]) -> list[tuple[int, float]]:
    """The profile as pairs.

    Raises:
        WorkshopError: It is not one.
    """
    steps = []
    for step in profile:
        whole = len(step) == 2 and float(step[0]).is_integer() and step[0] >= 0 and step[1] > 0
        if not whole:
            raise WorkshopError(
                f"a load profile has pairs of users and seconds, such as [(1, 5), (6, 20)]; "
                f"{step!r} is none"
            )
        steps.append((int(step[0]), float(step[1])))
    if not steps:
        raise WorkshopError("the load profile is empty; give pairs of users and seconds")
    return steps
