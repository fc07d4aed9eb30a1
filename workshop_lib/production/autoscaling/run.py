"""Load and observation on one time axis: replicas that follow a load, and one that is killed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.base import Workload
from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError, WorkshopError
from workshop_lib.production.autoscaling.app import Replica, ServeApp, ServeSnapshot
from workshop_lib.production.autoscaling.load import Load
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recovery", "ScalingRun", "check_scaling", "run_load", "run_recovery"]

SAMPLE_EVERY_S = 0.5
PHASE_COLUMNS = ["users", "start_s", "end_s", "predicted", "replicas", "settled"]
SAMPLE_COLUMNS = [
    *("time_s", "users", "in_flight", "target", "running", "starting", "stopping", "application"),
    *("deployment", "counted_requests", "wanted_replicas", "queued_requests"),
]


@dataclass
class ScalingRun:
    """What a run left behind.

    Attributes:
        requests: A row for each attempt (`load.Request`).
        samples: A row for each look at the cluster: load, replicas, status, and the autoscaler's
            own numbers (missing where its metrics were).
        phases: A row for each stretch with a constant number of users: `users`, `start_s`,
            `end_s`, `predicted` (replicas that the autoscaler's settings ask for), `replicas`
            (that ran at its end) and `settled` (as many as predicted, and none on its way).
        target: `target_ongoing_requests` during the run; None without an autoscaler.
    """

    requests: pd.DataFrame
    samples: pd.DataFrame
    phases: pd.DataFrame
    target: float | None = None

    def summary(self, *, last_s: float = 3.0) -> pd.DataFrame:
        """Each phase in a row: replicas and latency, predicted and seen.

        The predicted latency is that of users who share replicas which work on one request at a
        time: `users / replicas x` the median time that a replica worked on one.

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
            attempts = self.requests["start_s"].between(start_s, end_s)
            at_the_end = good.loc[here & (ends_s > end_s - last_s), "latency_ms"]
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
                    "p50_at_the_end_ms": at_the_end.median(),
                }
            )
        latencies = ["p50_ms", "predicted_ms", "p50_at_the_end_ms"]
        table = pd.DataFrame(rows).astype(dict.fromkeys(latencies, float))
        return table.round(dict.fromkeys(latencies, 0))

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


class _Observer:
    """Looks at an application while a load runs, and keeps what it saw."""

    def __init__(self, app: ServeApp, load: Load, progress: Progress) -> None:
        self.app = app
        self.load = load
        self.progress = progress
        self.rows: list[dict[str, object]] = []
        self.latest: ServeSnapshot | None = None
        self.seen_s = 0.0

    @property
    def running(self) -> tuple[Replica, ...]:
        return self.latest.running if self.latest else ()

    def _look(self) -> ServeSnapshot | None:
        """One sample; None when the dashboard gave no answer this time."""
        load = self.load
        row = {"time_s": load.elapsed_s, "users": load.users, "in_flight": load.in_flight}
        self.latest = None
        # A dashboard that is late once leaves a gap; `until` sees to it that it is not for ever.
        with suppress(ClusterError):
            self.latest = self.app.snapshot()
        if self.latest is not None:
            self.seen_s, seen = row["time_s"], self.latest
            states = [each.state for each in seen.replicas]
            self.rows.append(
                {
                    **row,
                    "target": seen.target,
                    "running": len(seen.running),
                    "starting": states.count("STARTING"),
                    "stopping": states.count("STOPPING"),
                    "application": seen.application,
                    "deployment": seen.deployment,
                    **seen.autoscaler,
                }
            )
        return self.latest

    def until(
        self, done: Callable[[float, ServeSnapshot], bool], *, at_most_s: float, label: str
    ) -> bool:
        """Sample until something holds of the seconds since now and the newest snapshot.

        Raises:
            ClusterError: The dashboard gave no answer in all that time.
        """
        began, seen_once = time.monotonic(), False
        while True:
            turn = time.monotonic()
            seen = self._look()
            elapsed_s = time.monotonic() - began
            seen_once = seen_once or seen is not None
            if seen is not None and done(elapsed_s, seen):
                return True
            text = f"{label}: {seen or 'no answer from Ray'}, {len(self.load.attempts)} attempts"
            self.progress.update(done=round(self.load.elapsed_s), text=text)
            if elapsed_s > at_most_s:
                if not seen_once:
                    self.app.snapshot()  # says what is wrong
                return False
            time.sleep(max(0.0, SAMPLE_EVERY_S - (time.monotonic() - turn)))

    def result(self, phases: Sequence[Sequence[Any]], target: float | None) -> ScalingRun:
        """Everything that was seen and sent, once the load has ended."""
        import pandas as pd

        return ScalingRun(
            requests=self.load.frame(),
            samples=pd.DataFrame(self.rows, columns=SAMPLE_COLUMNS),
            phases=pd.DataFrame(phases, columns=PHASE_COLUMNS),
            target=target,
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

    A phase lasts its seconds, and longer until the replicas have stood for a moment where the
    deployment's own settings put them, so that a slow machine sees the same story.

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
    for step in profile or [()]:
        if len(step) != 2 or step[0] != int(step[0]) or step[0] < 0 or step[1] <= 0:
            raise WorkshopError(
                "a load profile has pairs of users and seconds, such as [(1, 5), (6, 20)]; "
                f"{step!r} is none"
            )
    settings = app.snapshot(autoscaler=False).settings
    app.ask()
    phases = []
    with (
        Load(app.url, retries=retries) as load,
        Progress(sum(seconds for _, seconds in profile), "load", unit="s") as progress,
    ):
        observer = _Observer(app, load, progress)
        for users, seconds in profile:
            wanted = settings.replicas_for(users) if settings else None
            start_s = load.elapsed_s
            load.set_users(int(users))
            settled = observer.until(
                _standing(wanted, seconds, hold_s),
                at_most_s=seconds + settle_timeout_s,
                label=f"{users} users",
            )
            there = len(observer.running)
            predicted = there if wanted is None else wanted
            phases.append((int(users), start_s, load.elapsed_s, predicted, there, settled))
    return observer.result(phases, settings.target_ongoing_requests if settings else None)


def _standing(
    wanted: int | None, seconds: float, hold_s: float
) -> Callable[[float, ServeSnapshot], bool]:
    """Whether a phase is over: long enough, and the replicas stand where they should."""
    since_s: float | None = None

    def over(elapsed_s: float, seen: ServeSnapshot) -> bool:
        nonlocal since_s
        if wanted is None:
            return elapsed_s >= seconds
        if not seen.settled(wanted):
            since_s = None
            return False
        since_s = elapsed_s if since_s is None else since_s
        return elapsed_s >= max(seconds, since_s + hold_s)

    return over


# -- a replica is killed --------------------------------------------------------------------------

# A pid alone could be somebody else's by now: the process must still be a replica of Serve.
_KILL = 'grep -aq ServeReplica "/proc/$1/cmdline" && kill -9 "$1"'


@dataclass
class Recovery:
    """What a killed replica did to the service.

    Attributes:
        run: Load and observation.
        killed: The replica that was killed.
        killed_s: When, in seconds since the load began.
        noticed_s: When Serve no longer listed it as running; None if that was not seen.
        recovered_s: When as many ran as before, without it; None if not in time.
    """

    run: ScalingRun
    killed: Replica
    killed_s: float
    noticed_s: float | None
    recovered_s: float | None

    def table(self) -> pd.DataFrame:
        """The numbers that matter, in a row."""
        import pandas as pd

        def after(time_s: float | None) -> float | None:
            return None if time_s is None else round(time_s - self.killed_s, 1)

        row = {
            "noticed_after_s": after(self.noticed_s),
            "recovered_after_s": after(self.recovered_s),
        }
        return pd.DataFrame([{**row, **self.run.counts()}])


def _kill(workload: Workload, replica: Replica) -> None:
    """Kill a replica's process where it runs, as the kernel does when memory runs out."""
    pods = workload.observe().pods
    names = [p["metadata"]["name"] for p in pods if p["status"].get("podIP") == replica.node_ip]
    if not names or replica.pid is None:
        raise NotFoundError(
            f"replica {replica.name} (process {replica.pid} on {replica.node_ip or 'no node'}) is "
            "in no pod of this component; run it again"
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
    after_s: float = 5.0,
    retries: int = 2,
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
        retries: Further attempts that a user makes when one fails.
        timeout_s: The longest to wait for the replicas, before and after.

    Raises:
        WaitTimeoutError: There were not so many replicas to begin with.
        ClusterError: The replica could not be killed.

    Example:
        >>> run_recovery(service, app, users=3, replicas=2).table()   # doctest: +SKIP
    """
    settings = app.snapshot(autoscaler=False).settings
    noticed: list[float] = []
    with (
        Load(app.url, retries=retries) as load,
        Progress(None, "kill a replica", unit="s") as progress,
    ):
        observer = _Observer(app, load, progress)
        load.set_users(users)
        if not observer.until(
            lambda elapsed_s, seen: elapsed_s >= before_s and seen.settled(replicas),
            at_most_s=before_s + timeout_s,
            label="before",
        ):
            raise WaitTimeoutError(
                f"{app!r} has not settled at {replicas} replicas under {users} users after "
                f"{timeout_s:g} s: {observer.latest}; is min_replicas {replicas}?"
            )
        victim = observer.running[0]
        _kill(workload, victim)
        killed_s = load.elapsed_s

        def recovered(_: float, seen: ServeSnapshot) -> bool:
            names = [each.name for each in seen.running]
            if victim.name not in names and not noticed:
                noticed.append(observer.seen_s)
            return victim.name not in names and len(names) >= replicas

        back = observer.until(recovered, at_most_s=timeout_s, label="killed one")
        recovered_s = observer.seen_s if back else None
        observer.until(lambda elapsed_s, _: elapsed_s >= after_s, at_most_s=after_s, label="after")
        phase = (users, 0.0, load.elapsed_s, replicas, len(observer.running), back)
    run = observer.result([phase], settings.target_ongoing_requests if settings else None)
    return Recovery(run, victim, killed_s, noticed[0] if noticed else None, recovered_s)


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
    failed = run.counts()["failed_attempts"]
    back = recovery.recovered_s
    took = "not in time" if back is None else f"after {back - recovery.killed_s:.1f} s"
    lost = f"{counts['failed_attempts']} failed attempts, {counts['lost_requests']} lost"
    return CheckList(
        [
            Check(
                "replicas were added",
                most > least,
                f"{most} at the most, {least} at the least",
                "more users, or a lower target_ongoing_requests",
            ),
            Check(
                "each part ended with the predicted number",
                bool(phases["settled"].all()),
                ", ".join(f"{seen} of {want}" for seen, want in ends),
                "more time (SETTLE_S), and ask `ray status` in the head's pod what is missing",
            ),
            Check(
                "no request failed while it scaled",
                failed == 0,
                f"{failed} failed attempts",
                "read the replicas' logs",
            ),
            Check(
                "a killed replica was replaced",
                back is not None,
                took,
                "read the application's message: app.snapshot().message",
            ),
            Check(
                "no reader lost a request for good",
                counts["lost_requests"] == 0,
                lost,
                "more replicas (min_replicas), more attempts",
            ),
        ]
    )
