"""Breaking things: what each lab does beside setting one wrong value, and when it shows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workshop_lib.cluster.base import Cluster, Observation
from workshop_lib.cluster.workload import Workload, conditions, failure, is_true
from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError
from workshop_lib.production.labs.asking import ask
from workshop_lib.production.labs.definition import Plan
from workshop_lib.progress import Progress

__all__ = ["break_it", "end_rank", "engine_pid", "kill_engine"]

# A pid or a name alone could be somebody else's process: it must be the one that is meant.
_KILL_ENGINE = 'grep -aq "server.py" "/proc/$1/cmdline" && kill -9 "$1"'
_END_RANK = """
for each in /proc/[0-9]*; do
  tr '\\0' '\\n' < "$each/cmdline" 2>/dev/null | grep -q '/ray-node.sh$' || continue
  tr '\\0' '\\n' < "$each/environ" 2>/dev/null | grep -qx "POD_IP=$POD_IP" || continue
  tr '\\0' '\\n' < "$each/environ" | grep -qx "HEAD_ADDRESS=$HEAD_ADDRESS" || continue
  # A moment later: the container may end, and this command with it, before it can say so.
  (sleep 1; kill -TERM "${each##*/}") >/dev/null 2>&1 &
  found=yes
done
[ -n "${found:-}" ]
"""
LOADING_S = 1800.0


def break_it(cluster: Cluster, plan: Plan, *, timeout_s: float) -> Workload:
    """Apply a lab's component with its one wrong value, and wait until the symptoms show.

    Args:
        cluster: The cluster.
        plan: The lab.
        timeout_s: The longest to wait for each step.

    Raises:
        WaitTimeoutError: It did not break in time.
    """
    for component in plan.needs:
        if component not in cluster.components():
            cluster.apply(component).wait_complete(timeout_s=LOADING_S)
    parameters = plan.broken(cluster.profile)
    workload = cluster.apply(plan.component, **parameters)
    if plan.name == "killed-worker":
        workload.wait_ready(timeout_s=timeout_s)
        end_rank(cluster, "ray-cluster-1")
    elif plan.name == "killed-engine":
        workload.wait_ready(timeout_s=timeout_s)
        kill_engine(cluster)
    elif plan.name == "stale-address":
        workload.wait_complete(timeout_s=timeout_s)
        cluster.delete(plan.component)
        workload = cluster.apply(plan.component, **parameters)
    _until_it_shows(workload, plan, timeout_s)
    return workload


def _until_it_shows(workload: Workload, plan: Plan, timeout_s: float) -> None:
    shows = _SHOWS[plan.name]
    began = time.monotonic()
    with (
        Progress(label=f"lab {plan.number}") as progress,
        contextlib.closing(workload.cluster.watch(workload.kind, workload.name)) as seen,
    ):
        for observation in seen:
            if shows(observation) and not _still_fine(workload, plan):
                progress.update(text="the symptoms show")
                return
            progress.update(text="waiting for the symptoms")
            if time.monotonic() - began > timeout_s:
                raise WaitTimeoutError(
                    f"lab {plan.number} has not broken {workload.kind}/{workload.name} after "
                    f"{timeout_s:g} s; next: lab.end(), and start it again"
                )


def _still_fine(workload: Workload, plan: Plan) -> bool:
    """Whether users are still answered, where only they can tell."""
    if plan.name not in ("wrong-port", "no-endpoints", "killed-engine"):
        return False
    return ask(workload.cluster, plan.component).ok


def _statuses(observation: Observation) -> list[Mapping[str, Any]]:
    return [
        each for pod in observation.pods for each in pod["status"].get("containerStatuses") or []
    ]


def _is_ready(observation: Observation) -> bool:
    return bool(observation.pods) and all(is_true(pod, "Ready") for pod in observation.pods)


def _probe_failed(observation: Observation) -> bool:
    return not _is_ready(observation) and any(
        event.get("reason") == "Unhealthy" and "Readiness" in event.get("message", "")
        for event in observation.events
    )


def _restarts(observation: Observation) -> bool:
    """It has ended at least once."""
    return any(
        each.get("restartCount", 0) >= 1 or (each.get("lastState") or {}).get("terminated")
        for each in _statuses(observation)
    )


def _pending(observation: Observation) -> bool:
    scheduled = [conditions(pod).get("PodScheduled", {}) for pod in observation.pods]
    return any(each.get("status") == "False" for each in scheduled)


def _not_configured(observation: Observation) -> bool:
    waiting = [(each.get("state") or {}).get("waiting") or {} for each in _statuses(observation)]
    return any(each.get("reason") == "CreateContainerConfigError" for each in waiting)


def _failed(observation: Observation) -> bool:
    return failure(observation) is not None


def _complete(observation: Observation) -> bool:
    return is_true(observation.body, "Complete")


_SHOWS: dict[str, Callable[[Observation], bool]] = {
    "wrong-port": _is_ready,
    "no-endpoints": _is_ready,
    "failing-probe": _probe_failed,
    "impatient-probe": _restarts,
    "killed-engine": lambda observation: bool(observation.pods),
    "no-gpus": _pending,
    "missing-setting": _not_configured,
    "stale-address": _complete,
    "missing-model": _restarts,
    "too-much-kv": _restarts,
    "killed-worker": _failed,
}


def engine_pid(cluster: Cluster) -> int:
    """The process number of `lab-server`'s engine, in its pod.

    Args:
        cluster: Where it runs.

    Raises:
        ClusterError: The server does not answer.
    """
    import httpx

    pod = _only_pod(cluster, "lab-server")
    try:
        with cluster.forward(pod, 8000) as url:
            return int(httpx.get(f"{url}/health", timeout=20, trust_env=False).json()["pid"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise ClusterError(f"{pod} does not say which process its engine is ({error})") from error


def kill_engine(cluster: Cluster) -> int:
    """Kill `lab-server`'s engine where it runs, as the kernel does when memory runs out.

    Args:
        cluster: Where it runs.

    Returns:
        The process number that was killed.

    Raises:
        ClusterError: It is gone already.
    """
    pid = engine_pid(cluster)
    _run(cluster, _only_pod(cluster, "lab-server"), _KILL_ENGINE, str(pid))
    return pid


def end_rank(cluster: Cluster, pod: str) -> None:
    """Tell a rank of `ray-cluster` to end, as when its machine is taken away.

    Args:
        cluster: Where it runs.
        pod: The pod, or the beginning of its name.

    Raises:
        ClusterError: Its process is not there.
    """
    _run(cluster, pod, _END_RANK)


def _run(cluster: Cluster, pod: str, script: str, *arguments: str) -> None:
    words: Sequence[str] = ["bash", "-c", script, "lab", *arguments]
    done = cluster.exec(pod, words)
    if done.exit_code != 0:
        raise ClusterError(f"what the lab ends in pod {pod} does not run (any more): {done}")


def _only_pod(cluster: Cluster, component: str) -> str:
    pods = cluster.get(component).pods
    if not pods:
        raise NotFoundError(f"{component} has no pod; read its events()")
    return pods[-1]
