"""Whether a lab is repaired: asked of the live cluster, not of what was typed."""

from __future__ import annotations

import time
from collections.abc import Callable

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.base import Cluster, Observation
from workshop_lib.cluster.workload import failure, readiness
from workshop_lib.errors import ClusterError, NotFoundError
from workshop_lib.production.labs.asking import ask
from workshop_lib.production.labs.breaking import kill_engine
from workshop_lib.production.labs.definition import Plan
from workshop_lib.progress import Progress

__all__ = ["check_repaired"]

AGAIN = "read logs() and events(), or ask cluster.diagnose(...); apply, wait_ready(), check again"


def check_repaired(cluster: Cluster, plan: Plan, *, timeout_s: float = 60.0) -> CheckList:
    """Whether a lab's component is well, and whether the same would not happen again.

    Args:
        cluster: Where it runs.
        plan: The lab.
        timeout_s: The longest that a part which tries something out may take.
    """
    try:
        observation = cluster.get(plan.component).observe()
    except NotFoundError:
        missing = f"{plan.component} is not applied"
        return CheckList([Check("it runs", False, missing, "apply it, with what repairs it")])
    checks = CheckList([_is_up(observation, plan), _answers(cluster, plan)])
    if plan.name in _MORE:
        checks.append(_MORE[plan.name](cluster, checks.passed, timeout_s))
    return checks


def _is_up(observation: Observation, plan: Plan) -> Check:
    if plan.component == "stale-address":  # it runs and ends; its pods are not ready for long
        ended = [pod["status"].get("phase") for pod in observation.pods]
        well = bool(ended) and set(ended) == {"Succeeded"}
        return Check("all ranks have ended well", well, ", ".join(map(str, ended)) or "no pods",
                     "delete and apply it, then wait_complete()")  # fmt: skip
    wrong = failure(observation)
    ready, wanted, text = readiness(observation.body)
    return Check("its pods are ready", not wrong and ready >= wanted, wrong or text, AGAIN)


def _answers(cluster: Cluster, plan: Plan) -> Check:
    answer = ask(cluster, plan.component)
    return Check("users get what they ask for", answer.ok, str(answer), AGAIN)


def _restarts_a_dead_engine(cluster: Cluster, well: bool, timeout_s: float) -> Check:
    """The engine is killed once more: somebody has to notice."""
    name = "an engine that dies is noticed"
    if not well:
        return Check(name, None, "asked only when the server answers", "first the others")
    try:
        pid = kill_engine(cluster)
    except ClusterError as error:
        return Check(name, None, str(error), "check again")
    began, gone = time.monotonic(), False
    with Progress(label="killed the engine once more") as progress:
        while (elapsed_s := time.monotonic() - began) < timeout_s:
            answer = ask(cluster, "lab-server")
            gone = gone or not answer.ok
            progress.update(text=answer.text[:60])
            if gone and answer.ok:
                seen = (
                    f"process {pid} was killed; readers had answers again after {elapsed_s:.0f} s"
                )
                return Check(name, True, seen)
            time.sleep(0.2)
    seen = f"process {pid} was killed, and nothing followed for {timeout_s:.0f} s"
    return Check(name, False, seen, "which probe restarts a container, and what does it ask?")


def _meets_next_time(cluster: Cluster, well: bool, timeout_s: float) -> Check:
    """A file's name that is the same in each run will be stale in the next one."""
    pods = cluster.get("stale-address").observe().pods
    told = {
        entry.get("value", "")
        for pod in pods
        for entry in pod["spec"]["containers"][0].get("env", [])
        if entry["name"] == "FILE_NAME"
    }
    another = bool(told) and all("$(RUN_ID)" in each or "$(POD_NAME)" in each for each in told)
    return Check("the next run has another file", another, ", ".join(sorted(told)) or "no pods",
                 "put something into its name that differs in each run: $(RUN_ID)")  # fmt: skip


def _both_nodes(cluster: Cluster, well: bool, timeout_s: float) -> Check:
    answer = ask(cluster, "ray-cluster")
    wanted = cluster.get("ray-cluster").observe().body["spec"]["completions"]
    whole = answer.ok and answer.text == f"{wanted} of {wanted} alive"
    return Check("every rank is a node of Ray", whole, answer.text, AGAIN)


_MORE: dict[str, Callable[[Cluster, bool, float], Check]] = {
    "killed-engine": _restarts_a_dead_engine,
    "stale-address": _meets_next_time,
    "killed-worker": _both_nodes,
}
