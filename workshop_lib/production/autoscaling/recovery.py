"""A replica is killed while readers use it: how long until there are enough again?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop_lib.cluster.workload import Workload
from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError
from workshop_lib.production.autoscaling.load import Load
from workshop_lib.production.autoscaling.run import Observer, Phase, ScalingRun
from workshop_lib.production.autoscaling.serve_app import Replica, ServeApp, ServeSnapshot
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Recovery", "kill_replica", "run_recovery"]

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

        return pd.DataFrame(
            [
                {
                    "noticed_after_s": after(self.noticed_s),
                    "recovered_after_s": after(self.recovered_s),
                    **self.run.counts(),
                }
            ]
        )


def kill_replica(workload: Workload, replica: Replica) -> str:
    """Kill a replica's process where it runs, as the kernel does when memory runs out.

    Serve is not told; it has to notice. The process is looked up in the pod first, so
    that a pid that belongs to somebody else by now is left alone.

    Args:
        workload: The RayService.
        replica: The replica, as a snapshot of the application has it.

    Returns:
        The name of the pod in which it ran.

    Raises:
        NotFoundError: No pod has its node's address.
        ClusterError: Its process is gone, or is no replica any more.
    """
    pods = [
        str(pod["metadata"]["name"])
        for pod in workload.observe().pods
        if pod["status"].get("podIP") == replica.node_ip
    ]
    if not pods or replica.pid is None:
        raise NotFoundError(
            f"replica {replica.name} (process {replica.pid} on {replica.node_ip or 'no node'}) is "
            "in no pod of this component; take it from a new snapshot()"
        )
    done = workload.cluster.exec(pods[0], ["bash", "-c", _KILL, "kill-replica", str(replica.pid)])
    if done.exit_code != 0:
        raise ClusterError(
            f"process {replica.pid} in pod {pods[0]} is no replica of Serve (any more); "
            "take the replica from a new snapshot()"
        )
    return pods[0]


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
    """
    settings = app.snapshot(autoscaler=False).settings
    noticed: list[float] = []
    with Load(app.url, retries=retries) as load:
        observer = Observer(app, load)
        load.set_users(users)
        with Progress(None, "kill a replica", unit="s") as progress:

            def steady(elapsed_s: float, seen: ServeSnapshot) -> bool:
                return elapsed_s >= before_s and seen.settled(replicas)

            def recovered(_: float, seen: ServeSnapshot) -> bool:
                names = [each.name for each in seen.running]
                if victim.name not in names and not noticed:
                    noticed.append(observer.seen_s)
                return victim.name not in names and len(names) >= replicas

            if not observer.until(
                steady, at_most_s=before_s + timeout_s, label="before", progress=progress
            ):
                raise WaitTimeoutError(
                    f"{app!r} has not settled at {replicas} replicas under {users} users after "
                    f"{timeout_s:g} s: {observer.latest}; is min_replicas {replicas}?"
                )
            assert observer.latest is not None
            victim = observer.latest.running[0]
            kill_replica(workload, victim)
            killed_s = load.elapsed_s
            back = observer.until(
                recovered, at_most_s=timeout_s, label="killed one", progress=progress
            )
            recovered_s = observer.seen_s if back else None
            observer.until(
                lambda elapsed_s, _: elapsed_s >= after_s, at_most_s=after_s, label="after",
                progress=progress,
            )  # fmt: skip
        running = len(observer.latest.running) if observer.latest else 0
        phase = Phase(users, 0.0, load.elapsed_s, replicas, running, back)
    return Recovery(
        observer.result([phase], settings), victim, killed_s,
        noticed[0] if noticed else None, recovered_s,
    )  # fmt: skip
