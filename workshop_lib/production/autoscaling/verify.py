"""What a learner can check: replicas followed the load, the service came back, nothing is left."""

from __future__ import annotations

from collections.abc import Sequence

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.base import Cluster
from workshop_lib.errors import NotFoundError
from workshop_lib.production.autoscaling.recovery import Recovery
from workshop_lib.production.autoscaling.run import ScalingRun

__all__ = ["check_gone", "check_scaling"]


def check_scaling(run: ScalingRun, recovery: Recovery) -> CheckList:
    """Whether the service scaled as its settings say, and survived the loss of a replica.

    Args:
        run: A load that rises and falls.
        recovery: A replica killed under load.
    """
    phases, samples, counts = run.phases, run.samples, recovery.run.counts()
    most, least = int(samples["running"].max()), int(phases["predicted"].min())
    wrong = phases[~phases["settled"]]
    failed = run.counts()["failed_attempts"]
    took_s = None if recovery.recovered_s is None else recovery.recovered_s - recovery.killed_s
    return CheckList(
        [
            Check("replicas were added", most > least, f"{most} at the most, {least} at the least",
                  "more users, or a lower target_ongoing_requests"),
            Check("each part ended with the predicted number", wrong.empty,
                  ", ".join(f"{seen} of {want}" for seen, want in
                            zip(phases["replicas"], phases["predicted"], strict=True)),
                  "more time (SETTLE_S), and ask `ray status` in the head's pod what is missing"),
            Check("no request failed while it scaled", failed == 0, f"{failed} failed attempts",
                  "read the replicas' logs"),
            Check("a killed replica was replaced", took_s is not None,
                  "not in time" if took_s is None else f"after {took_s:.1f} s",
                  "read the application's message: app.snapshot().message"),
            Check("no reader lost a request for good", counts["lost_requests"] == 0,
                  f"{counts['failed_attempts']} failed attempts, {counts['lost_requests']} lost",
                  "more replicas (min_replicas), more attempts"),
        ]
    )  # fmt: skip


def check_gone(cluster: Cluster, component: str, *, url: str, before: Sequence[str]) -> CheckList:
    """Whether a component is gone, and everything else is still there.

    Args:
        cluster: Where it ran.
        component: Its name.
        url: Where it answered.
        before: The components that were there before it was applied.
    """
    import httpx

    left = cluster.components()
    try:
        cluster.get(component)
        known = True
    except NotFoundError:
        known = False
    try:
        status = httpx.get(url, timeout=5, trust_env=False).status_code
        said = f"HTTP {status}"
    except httpx.HTTPError as error:
        status, said = None, type(error).__name__
    others = [name for name in before if name != component]
    missing = sorted(set(others) - set(left))
    fix = f"cluster.delete({component!r}) again, then cluster.clean()"
    return CheckList(
        [
            Check("the cluster no longer has it", not known,
                  f"it has {', '.join(left) or 'nothing'}", fix),
            Check("nobody answers at its address", status is None, said, fix),
            Check("what was there before is still there", not missing,
                  f"before: {', '.join(others) or 'nothing'}", f"apply {', '.join(missing)} again"),
        ]
    )  # fmt: skip
