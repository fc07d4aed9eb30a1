"""A lab that runs: its symptoms, its hints, the check of the repair, its end."""

from __future__ import annotations

import functools
import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.base import Cluster
from workshop_lib.cluster.kube import failure, is_true, readiness
from workshop_lib.data import data_path
from workshop_lib.errors import ClusterError, NotFoundError, WorkshopError
from workshop_lib.production.labs.breaking import ask, end_rank, kill_engine, until_it_shows
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

LOADING_S = 1800.0
AGAIN = "read logs() and events(), or ask cluster.diagnose(...); apply, wait_ready(), check again"


@dataclass(frozen=True)
class Plan:
    """One lab, as `data/labs.yaml` has it. Nothing but `report` is shown unasked."""

    number: int
    name: str
    component: str
    shows: str
    report: str
    hints: tuple[str, ...]
    solution: str
    taught_in: str
    seconds: int
    parameters: dict[str, dict[str, Any]]
    needs: tuple[str, ...] = ()

    def broken(self, profile: str) -> dict[str, Any]:
        """The parameters with which the component is applied to break it."""
        return {**self.parameters.get("all", {}), **self.parameters.get(profile, {})}


@functools.cache
def _plans() -> tuple[Plan, ...]:
    entries = yaml.safe_load(data_path("labs.yaml").read_text())
    return tuple(
        Plan(number, **{"parameters": {}, **entry}) for number, entry in enumerate(entries, start=1)
    )


def plan(which: int | str) -> Plan:
    """A lab by its number in `table()`, or its name."""
    for each in _plans():
        if which in (each.number, each.name):
            return each
    raise WorkshopError(f"there is no lab {which!r}; labs.table() has 1 to {len(_plans())}")


def table() -> pd.DataFrame:
    """The labs to choose from: what is reported, on which component, how long it takes to break.

    Example:
        >>> list(table().columns)
        ['lab', 'component', 'what is reported', 'background', 'seconds']
    """
    import pandas as pd

    return pd.DataFrame(
        {
            "lab": each.number,
            "component": each.component,
            "what is reported": each.report,
            "background": f"notebook {each.taught_in}",
            "seconds": each.seconds,
        }
        for each in _plans()
    )


@dataclass(frozen=True)
class Symptoms:
    """What is seen from outside, without why: the report, what a user sees, the pods."""

    report: str
    user: str
    pods: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.report}\n{self.user}\n{self.pods.to_string(index=False)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        report, user = html.escape(self.report), html.escape(self.user)
        return (
            f"<p>{report}</p><p><code>{user}</code></p>{self.pods.to_html(index=False, border=0)}"
        )


class Lab:
    """One broken component, on the learner's own cluster.

    Example:
        >>> lab = labs.start(cluster, 3)                                    # doctest: +SKIP
        >>> lab.symptoms(); lab.hint(); cluster.diagnose(lab.component)     # doctest: +SKIP
        >>> cluster.apply(lab.component, ...)                               # doctest: +SKIP
        >>> lab.check(); lab.end()                                          # doctest: +SKIP
    """

    def __init__(self, cluster: Cluster, which: Plan, started: Sequence[str] = ()) -> None:
        self.cluster, self.plan, self.started = cluster, which, started
        self._hints = 0

    def __repr__(self) -> str:
        return f"lab {self.plan.number}, component {self.component!r}: {self.plan.report}"

    def _repr_html_(self) -> str:
        return self.symptoms()._repr_html_()

    @property
    def component(self) -> str:
        """The component that it broke, for `cluster.get`, `diagnose` and `apply`."""
        return self.plan.component

    def symptoms(self) -> Symptoms:
        """What is seen from outside, now."""
        columns = ["pod", "state", "ready", "restarts", "age_s"]
        pods = self.cluster.get(self.component).table()[columns]
        return Symptoms(self.plan.report, str(ask(self.cluster, self.component)), pods)

    def hint(self) -> str:
        """The next hint; the first says where to look, the last what it is."""
        hints = self.plan.hints
        self._hints = min(self._hints + 1, len(hints))
        return f"hint {self._hints} of {len(hints)}: {hints[self._hints - 1]}"

    def solution(self) -> str:
        """Cause, repair and lesson, in words."""
        return f"{self.plan.name}: {self.plan.solution} (Notebook {self.plan.taught_in}.)"

    def check(self, *, timeout_s: float = 60.0) -> CheckList:
        """Whether it is repaired, and whether the same would not happen again: from the live state.

        Args:
            timeout_s: The longest that a part which tries something out may take.
        """
        try:
            checks = CheckList([self._is_up(), self._answers()])
        except NotFoundError:
            missing = f"{self.component} is not applied"
            return CheckList([Check("it runs", False, missing, "apply it, with what repairs it")])
        if self.plan.name == "killed-engine":
            checks.append(self._notices_a_dead_engine(checks.passed, timeout_s))
        if self.plan.name == "stale-address":
            checks.append(self._meets_next_time())
        return checks

    def _is_up(self) -> Check:
        seen = self.cluster.get(self.component).observe()
        if self.component == "stale-address":  # it runs and ends; its pods are not ready for long
            well, fix = is_true(seen.body, "Complete"), "delete and apply it, then wait_complete()"
            return Check("all ranks have ended well", well, readiness(seen.body)[2], fix)
        wrong, (ready, wanted, text) = failure(seen.body), readiness(seen.body)
        return Check("its pods are ready", not wrong and ready >= wanted, wrong or text, AGAIN)

    def _answers(self) -> Check:
        answer = ask(self.cluster, self.component)
        return Check("users get what they ask for", answer.ok, str(answer), AGAIN)

    def _notices_a_dead_engine(self, well: bool, timeout_s: float) -> Check:
        """The engine is killed once more: somebody has to notice."""
        name = "an engine that dies is noticed"
        if not well:
            return Check(name, None, "asked only when the server answers", "first the others")
        try:
            pid = kill_engine(self.cluster)
        except ClusterError as error:
            return Check(name, None, str(error), "check again")
        began, gone = time.monotonic(), False
        with Progress(label="killed the engine once more") as progress:
            while (elapsed_s := time.monotonic() - began) < timeout_s:
                answer = ask(self.cluster, self.component)
                progress.update(text=answer.text[:60])
                if gone and answer.ok:
                    seen = f"process {pid} was killed; readers had answers again after"
                    return Check(name, True, f"{seen} {elapsed_s:.0f} s")
                gone = gone or not answer.ok
                time.sleep(0.2)
        seen = f"process {pid} was killed, and nothing followed for {timeout_s:.0f} s"
        return Check(name, False, seen, "which probe restarts a container, and what does it ask?")

    def _meets_next_time(self) -> Check:
        """A file's name that is the same in each run will be stale in the next one."""
        told = {
            entry.get("value", "")
            for pod in self.cluster.get(self.component).observe().pods
            for entry in pod["spec"]["containers"][0].get("env", [])
            if entry["name"] == "FILE_NAME"
        }
        another = bool(told) and all("$(RUN_ID)" in each or "$(POD_NAME)" in each for each in told)
        fix = "put something into its name that differs in each run: $(RUN_ID)"
        seen = ", ".join(sorted(told)) or "no pods"
        return Check("the next run has another file", another, seen, fix)

    def end(self) -> None:
        """Remove what the lab started; the data on volumes stays."""
        self.cluster.delete(self.component)
        if self.component == "stale-address":  # files that runs left on a volume that stays
            self.cluster.apply(self.component, clean_up=True).wait_complete(timeout_s=300)
            self.cluster.delete(self.component)
        for component in self.started:
            self.cluster.delete(component)


def start(cluster: Cluster, which: int | str, *, timeout_s: float = 900.0) -> Lab:
    """Break a component on purpose, and wait until it shows.

    Args:
        cluster: The learner's cluster.
        which: A lab's number in `table()`, or its name.
        timeout_s: The longest to wait for each step.

    Returns:
        The lab; shown, it tells the symptoms and no more.

    Raises:
        WorkshopError: There is no such lab.
        ClusterError: The component runs already; nothing was changed.

    Example:
        >>> labs.start(cluster, 1)                                          # doctest: +SKIP
    """
    chosen = plan(which)
    there = cluster.components()
    if chosen.component in there:
        raise ClusterError(
            f"lab {chosen.number} breaks the component {chosen.component!r}, which is applied; "
            f"it starts after cluster.delete({chosen.component!r}), or labs.get(cluster, "
            f"{chosen.number}).end() when it is left of a lab"
        )
    lab = Lab(cluster, chosen, [name for name in chosen.needs if name not in there])
    try:
        for component in lab.started:
            cluster.apply(component).wait_complete(timeout_s=LOADING_S)
        _break(cluster, chosen, timeout_s)
    except BaseException:
        lab.end()  # half a lab is only in the way
        raise
    return lab


def _break(cluster: Cluster, chosen: Plan, timeout_s: float) -> None:
    """Apply a lab's component with its one wrong value, or end a process, until it shows."""
    parameters = chosen.broken(cluster.profile)
    workload = cluster.apply(chosen.component, **parameters)
    if chosen.name == "killed-worker":
        workload.wait_ready(timeout_s=timeout_s)
        end_rank(cluster, "ray-cluster-1")
    elif chosen.name == "killed-engine":
        workload.wait_ready(timeout_s=timeout_s)
        kill_engine(cluster)
    elif chosen.name == "stale-address":  # the run that leaves its file for the next one
        workload.wait_complete(timeout_s=timeout_s)
        cluster.delete(chosen.component)
        workload = cluster.apply(chosen.component, **parameters)
    until_it_shows(workload, chosen.number, chosen.shows, timeout_s=timeout_s)


def get(cluster: Cluster, which: int | str) -> Lab:
    """The handle of a lab that was started before, by this kernel or another."""
    chosen = plan(which)
    cluster.get(chosen.component)  # or says that it is not applied
    return Lab(cluster, chosen)
