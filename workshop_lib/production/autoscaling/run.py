"""Load and observation on one time axis: replicas that follow a load, and one that is killed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.base import Workload
from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError, WorkshopError
from workshop_lib.production.autoscaling.app import Replica, ServeApp, ServeSnapshot
from workshop_lib.production.autoscaling.load import Load
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_EVERY_S = 0.5
PHASE_COLUMNS = ["users", "start_s", "end_s", "predicted", "replicas", "settled"]
SAMPLE_COLUMNS = [
    *("time_s", "users", "in_flight", "target", "running"),
    *("counted_requests", "queued_requests"),
]


@dataclass
class ScalingRun:
    """What a run left behind.

    Attributes:
        requests: A row for each attempt (`load.Request`).
        samples: A row for each look at the cluster: users, requests in flight, replicas that Serve
            goes for and that run, and the autoscaler's own counts (missing where its metrics were).
        phases: A row for each stretch with a constant number of users: `users`, `start_s`,
            `end_s`, `predicted` (replicas that the autoscaler's settings ask for), `replicas`
            (that ran at its end) and `settled` (as many as predicted, and none on its way).
        target: `target_ongoing_requests` during the run.
    """

    requests: pd.DataFrame
    samples: pd.DataFrame
    phases: pd.DataFrame
    target: float

    def summary(self, *, last_s: float = 3.0) -> pd.DataFrame:
        """Each phase in a row: replicas and latency, predicted and seen.

        The predicted latency is that of users who share replicas which work on one request at a
        time: `users / replicas x` the median time that a replica worked on one.

        Args:
            last_s: How many seconds at the end of a phase count as its end.
        """
        good = self.requests[self.requests["error"] == ""]
        ends_s = good["start_s"] + good["latency_ms"] / 1000
        table = self.phases[["users", "predicted", "replicas"]].copy()
        times_s = zip(self.phases["start_s"], self.phases["end_s"], strict=True)
        table["answered"] = [int(ends_s.between(*each).sum()) for each in times_s]
        share = table["users"] / table["predicted"]
        table["predicted_ms"] = share * good["service_ms"].median()
        table["p50_at_the_end_ms"] = [
            good.loc[ends_s.between(end_s - last_s, end_s), "latency_ms"].median()
            for end_s in self.phases["end_s"]
        ]
        return table.round({"predicted_ms": 0, "p50_at_the_end_ms": 0})

    def reactions(self) -> pd.DataFrame:
        """For each change of the load: when Serve's target followed, and when the replicas did.

        Seconds since the change; missing where it did not happen in that phase. A look at the
        cluster every half second is as exact as it gets.
        """
        import pandas as pd

        rows = []
        for before, phase in itertools.pairwise(self.phases.to_dict("records")):
            here = self.samples[self.samples["time_s"].between(phase["start_s"], phase["end_s"])]
            decided = here[here["target"] == phase["predicted"]]
            done = decided[decided["running"] == phase["predicted"]]
            rows.append(
                {
                    "users": f"{before['users']} to {phase['users']}",
                    "replicas": f"{before['replicas']} to {phase['replicas']}",
                    "decided_after_s": round(decided["time_s"].min() - phase["start_s"], 1),
                    "done_after_s": round(done["time_s"].min() - phase["start_s"], 1),
                }
            )
        return pd.DataFrame(rows)

    def counts(self) -> dict[str, int]:
        """Attempts that failed, and requests that no further attempt saved."""
        failed = self.requests["error"] != ""
        lost = failed & self.requests["last"]
        return {"failed_attempts": int(failed.sum()), "lost_requests": int(lost.sum())}


class _Observer:
    """Looks at an application while a load runs, and keeps what it saw."""

    def __init__(self, app: ServeApp, load: Load, progress: Progress) -> None:
        self.app, self.load, self.progress = app, load, progress
        self.samples: list[dict[str, float]] = []
        self.phases: list[tuple[int, float, float, int, int, bool]] = []
        self.latest: ServeSnapshot | None = None

    def _look(self) -> ServeSnapshot | None:
        """One sample; None when the dashboard gave no answer: a gap in the curve."""
        sample: dict[str, float] = {"time_s": self.load.elapsed_s, "users": self.load.users}
        with suppress(ClusterError):
            seen = self.latest = self.app.snapshot()
            states = {"target": seen.target_num_replicas, "running": len(seen.running)}
            self.samples.append({**sample, **states, **self.app.gauges()})
            return seen
        return None

    def until(
        self,
        done: Callable[[ServeSnapshot], bool],
        label: str,
        *,
        at_least_s: float = 0.0,
        hold_s: float = 0.0,
        timeout_s: float = 0.0,
    ) -> bool:
        """Sample for some seconds, and longer until `done` has held for a while.

        Raises:
            ClusterError: The dashboard gave no answer in all that time.
        """
        began_s, since_s, self.latest = self.load.elapsed_s, None, None
        while True:
            turn_s, seen = self.load.elapsed_s, self._look()
            elapsed_s = self.load.elapsed_s - began_s
            if seen is not None:
                since_s = (since_s or elapsed_s) if done(seen) else None
                if since_s is not None and elapsed_s >= max(at_least_s, since_s + hold_s):
                    return True
            text = f"{label}: {seen or 'no answer from Ray'}, {len(self.load.attempts)} attempts"
            self.progress.update(text=text)
            if elapsed_s > at_least_s + timeout_s:
                self.latest = self.latest or self.app.snapshot()  # or says what is wrong
                return False
            time.sleep(max(0.0, SAMPLE_EVERY_S - (self.load.elapsed_s - turn_s)))

    def end_phase(self, users: int, start_s: float, wanted: int, settled: bool) -> None:
        """Note that users had so many replicas at the end of a stretch."""
        running = len(self.latest.running) if self.latest else 0
        self.phases.append((users, start_s, self.load.elapsed_s, wanted, running, settled))

    def result(self, target: float) -> ScalingRun:
        """Everything that was seen and sent, once the load has ended."""
        import pandas as pd

        requests = self.load.frame()
        samples = pd.DataFrame(self.samples, columns=SAMPLE_COLUMNS)
        ends_s = requests["start_s"] + requests["latency_ms"] / 1000
        samples["in_flight"] = [
            int(((requests["start_s"] <= at_s) & (at_s < ends_s)).sum())
            for at_s in samples["time_s"]
        ]
        phases = pd.DataFrame(self.phases, columns=PHASE_COLUMNS)
        return ScalingRun(requests, samples, phases, target)


def run_load(
    app: ServeApp,
    profile: Sequence[Sequence[float]],
    *,
    hold_s: float = 4.0,
    settle_timeout_s: float = 120.0,
) -> ScalingRun:
    """Let users come and go, and watch what the autoscaler makes of it.

    A phase lasts its seconds, and longer until the replicas have stood for a moment where the
    deployment's own settings put them, so that a slow machine sees the same story.

    Args:
        app: The application.
        profile: For each phase its users and its seconds.
        hold_s: How long they must stand there: the time in which their effect is seen.
        settle_timeout_s: How much longer a phase may wait for the replicas.

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
    for step in profile or [()]:
        if len(step) != 2 or step[0] != int(step[0]) or step[0] < 1 or step[1] <= 0:
            raise WorkshopError(
                "a load profile has pairs of users and seconds, such as [(1, 5), (6, 20)]; "
                f"{step!r} is none"
            )
    settings = app.snapshot().settings
    app.ask()
    with Load(app.url) as load, Progress(label="load") as progress:
        observer = _Observer(app, load, progress)
        for users, seconds in profile:
            wanted, start_s = settings.replicas_for(users), load.elapsed_s
            load.set_users(int(users))
            settled = observer.until(
                lambda seen, wanted=wanted: seen.settled(wanted),  # type: ignore[misc]
                f"{users} users",
                at_least_s=seconds,
                hold_s=hold_s,
                timeout_s=settle_timeout_s,
            )
            observer.end_phase(int(users), start_s, wanted, settled)
    return observer.result(settings.target_ongoing_requests)


# -- a replica is killed --------------------------------------------------------------------------

# A pid alone could be somebody else's by now: the process must still be a replica of Serve.
_KILL = 'grep -aq ServeReplica "/proc/$1/cmdline" && kill -9 "$1"'


@dataclass
class Recovery:
    """What a killed replica did to the service.

    Attributes:
        run: Load and observation.
        killed_s: When it was killed, in seconds since the load began.
        recovered_s: When as many ran as before, without it; None if not in time.
    """

    run: ScalingRun
    killed_s: float
    recovered_s: float | None


def _kill(workload: Workload, replica: Replica) -> None:
    """Kill a replica's process where it runs, as the kernel does when memory runs out."""
    pods = workload.observe().pods
    names = [p["metadata"]["name"] for p in pods if p["status"].get("podIP") == replica.node_ip]
    if not names:
        raise NotFoundError(
            f"replica {replica.replica_id} (process {replica.pid} on {replica.node_ip}) is in no "
            "pod of this component; run it again"
        )
    done = workload.cluster.exec(names[0], ["bash", "-c", _KILL, "kill-replica", str(replica.pid)])
    if done.exit_code != 0:
        raise ClusterError(
            f"process {replica.pid} in pod {names[0]} is no replica of Serve (any more); run it "
            "again"
        )


def run_recovery(
    workload: Workload,
    app: ServeApp,
    *,
    users: int,
    replicas: int,
    before_s: float = 5.0,
    after_s: float = 2.0,
    attempts: int = 3,
    timeout_s: float = 180.0,
) -> Recovery:
    """Kill one of several replicas under load, and watch until there are enough again.

    Serve is not told; it has to notice.

    Args:
        workload: The RayService.
        app: Its application.
        users: Users during the whole run; few enough that the autoscaler adds nothing.
        replicas: Replicas before it, and again after it.
        before_s: Seconds of load before the kill.
        after_s: Seconds of load after the recovery.
        attempts: How often a user sends a request until it is answered.
        timeout_s: The longest to wait for the replicas, before and after.

    Raises:
        WaitTimeoutError: There were not so many replicas to begin with.
        ClusterError: The replica could not be killed.

    Example:
        >>> run_recovery(service, app, users=3, replicas=2).recovered_s   # doctest: +SKIP
    """
    settings = app.snapshot().settings
    with Load(app.url, attempts=attempts) as load, Progress(label="kill a replica") as progress:
        observer = _Observer(app, load, progress)
        load.set_users(users)
        there = observer.until(
            lambda seen: seen.settled(replicas), "before", at_least_s=before_s, timeout_s=timeout_s
        )
        if not there or observer.latest is None:
            raise WaitTimeoutError(
                f"{app.name} has not settled at {replicas} replicas under {users} users after "
                f"{timeout_s:g} s: {observer.latest}; is min_replicas {replicas}?"
            )
        victim = observer.latest.running[0]
        _kill(workload, victim)
        killed_s = load.elapsed_s

        def recovered(seen: ServeSnapshot) -> bool:
            names = [each.replica_id for each in seen.running]
            return victim.replica_id not in names and len(names) >= replicas

        back = observer.until(recovered, "killed one", timeout_s=timeout_s)
        recovered_s = observer.samples[-1]["time_s"] if back else None
        observer.until(lambda _: True, "after", at_least_s=after_s)
        observer.end_phase(users, 0.0, replicas, back)
    return Recovery(observer.result(settings.target_ongoing_requests), killed_s, recovered_s)


def check_scaling(run: ScalingRun, recovery: Recovery) -> CheckList:
    """Whether the service scaled as its settings say, and survived the loss of a replica.

    Args:
        run: A load that rises and falls.
        recovery: A replica killed under load.

    Example:
        >>> check_scaling(run, recovery).passed   # doctest: +SKIP
        True
    """
    phases, counts = run.phases, recovery.run.counts()
    most, least = int(run.samples["running"].max()), int(phases["predicted"].min())
    ends = zip(phases["replicas"], phases["predicted"], strict=True)
    failed, back = run.counts()["failed_attempts"], recovery.recovered_s
    took = "not in time" if back is None else f"after {back - recovery.killed_s:.1f} s"
    checks = [
        (
            "replicas were added",
            most > least,
            f"{most} at the most, {least} at the least",
            "more users, or a lower target_ongoing_requests",
        ),
        (
            "each part ended with the predicted number",
            bool(phases["settled"].all()),
            ", ".join(f"{seen} of {want}" for seen, want in ends),
            "more time (SETTLE_S), and ask `ray status` in the head's pod what is missing",
        ),
        (
            "no request failed while it scaled",
            failed == 0,
            f"{failed} failed attempts",
            "read the replicas' logs",
        ),
        (
            "a killed replica was replaced",
            back is not None,
            took,
            "read the application's message: app.snapshot().message",
        ),
        (
            "no reader lost a request for good",
            counts["lost_requests"] == 0,
            f"{counts['failed_attempts']} failed attempts, {counts['lost_requests']} lost",
            "more replicas (min_replicas), more attempts",
        ),
    ]
    return CheckList([Check(*each) for each in checks])
