"""A lab that runs: its symptoms, its hints, the check of the repair, its end."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.checklist import CheckList
from workshop_lib.cluster.base import Cluster
from workshop_lib.errors import ClusterError
from workshop_lib.production.labs.asking import ask
from workshop_lib.production.labs.breaking import break_it
from workshop_lib.production.labs.catalogue import PLANS, plan
from workshop_lib.production.labs.checking import check_repaired
from workshop_lib.production.labs.definition import Plan

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Lab", "Symptoms", "get", "start", "table"]


@dataclass(frozen=True)
class Symptoms:
    """What is seen from outside, without why.

    Attributes:
        report: What is reported.
        user: What a user sees who asks now.
        pods: The component's pods, as `kubectl get pods` lists them.
    """

    report: str
    user: str
    pods: pd.DataFrame

    def __str__(self) -> str:
        return f"{self.report}\n{self.user}\n{self.pods.to_string(index=False)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        table = self.pods.to_html(index=False, border=0)
        return (
            f"<p>{html.escape(self.report)}</p><p><code>{html.escape(self.user)}</code></p>{table}"
        )


class Lab:
    """One broken component, on the learner's own cluster.

    Args:
        cluster: Where it is.
        which: The plan.
        started: Components that were started for it, beside its own.

    Example:
        >>> lab = labs.start(cluster, 3)                                    # doctest: +SKIP
        >>> lab.symptoms(); lab.hint(); cluster.diagnose(lab.component)     # doctest: +SKIP
        >>> cluster.apply(lab.component, ...)                               # doctest: +SKIP
        >>> lab.check(); lab.end()                                          # doctest: +SKIP
    """

    def __init__(self, cluster: Cluster, which: Plan, started: Sequence[str] = ()) -> None:
        self.cluster = cluster
        self.plan = which
        self._started = list(started)
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
        """What is seen from outside, now.

        Raises:
            NotFoundError: The component is not applied.
        """
        columns = ["pod", "state", "ready", "restarts", "age_s"]
        pods = self.cluster.get(self.component).table()[columns]
        return Symptoms(self.plan.report, str(ask(self.cluster, self.component)), pods)

    def hint(self) -> str:
        """The next hint; the first says where to look, the last what it is."""
        hints = self.plan.hints
        self._hints = min(self._hints + 1, len(hints))
        return f"hint {self._hints} of {len(hints)}: {hints[self._hints - 1]}"

    def check(self, *, timeout_s: float = 60.0) -> CheckList:
        """Whether it is repaired, from the live state.

        Args:
            timeout_s: The longest that a part which tries something out may take.
        """
        return check_repaired(self.cluster, self.plan, timeout_s=timeout_s)

    def solution(self) -> str:
        """Cause, repair and lesson, in words."""
        return f"{self.plan.name}: {self.plan.solution} (Notebook {self.plan.taught_in}.)"

    def end(self) -> None:
        """Remove what the lab started; the data on volumes stays.

        Raises:
            ClusterError: Something could not be removed.
        """
        self.cluster.delete(self.component)
        if self.plan.name == "stale-address":  # files that runs left on a volume that stays
            self.cluster.apply(self.component, clean_up=True).wait_complete(timeout_s=300)
            self.cluster.delete(self.component)
        for component in self._started:
            self.cluster.delete(component)
        self._started = []


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
        break_it(cluster, chosen, timeout_s=timeout_s)
    except BaseException:
        lab.end()  # half a lab is only in the way
        raise
    return lab


def get(cluster: Cluster, which: int | str) -> Lab:
    """The handle of a lab that was started before, by this kernel or another.

    Args:
        cluster: Where it runs.
        which: Its number or name.

    Raises:
        WorkshopError: There is no such lab.
        NotFoundError: Its component is not applied.
    """
    chosen = plan(which)
    cluster.get(chosen.component)
    return Lab(cluster, chosen)


def table() -> pd.DataFrame:
    """The labs to choose from: what is reported, on which component, how long it takes to break.

    Example:
        >>> list(table().columns)
        ['lab', 'component', 'what is reported', 'background', 'seconds']
    """
    import pandas as pd

    rows: list[dict[str, Any]] = [
        {
            "lab": each.number,
            "component": each.component,
            "what is reported": each.report,
            "background": f"notebook {each.taught_in}",
            "seconds": each.seconds,
        }
        for each in PLANS
    ]
    return pd.DataFrame(rows)
