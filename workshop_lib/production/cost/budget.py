"""What the whole workshop costs: the sections of its plan one after the other, for a room."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop_lib.cluster.catalogue import catalogue, service
from workshop_lib.cluster.prices import Cost, component_cost
from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PLAN", "Budget", "Phase", "budget"]


@dataclass(frozen=True)
class Phase:
    """One part of the workshop.

    Attributes:
        title: What learners do.
        components: What is applied then, one after the other: the dearest counts.
        minutes: How long it takes.
    """

    title: str
    components: tuple[str, ...]
    minutes: int


PLAN = (
    Phase("set-up: storage, model", ("storage", "model"), 30),
    Phase("01 Ray cluster", ("ray-cluster", "raycluster"), 20),
    Phase("02 vLLM serving", ("vllm", "ray-service"), 20),
    Phase("03 GRPO training", ("grpo",), 25),
    Phase("04 production", ("autoscale",), 10),
)
"""75 minutes as the lessons say, and half an hour before them."""

NODE_MINUTES = 15
"""Minutes for which a machine is paid before and after its use: it boots, loads images, drains."""


@dataclass(frozen=True)
class Budget:
    """A budget.

    Attributes:
        learners: How many people, each with machines of their own.
        rows: Phase to what it costs one learner an hour, in the plan's order.
        spot: Whether machines are spot instances.
        usd: All of it, for everyone.
        kept_usd: The same when nobody deletes anything until the end.
        notes: What to know of it.
    """

    learners: int
    rows: tuple[tuple[Phase, Cost], ...]
    spot: bool
    usd: float
    kept_usd: float
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """One row a phase: `phase`, `minutes`, `machines` and `usd` of one learner."""
        import pandas as pd

        rows = [
            {"phase": phase.title, "minutes": phase.minutes, "machines": cost.machines_text,
             "usd": round(_machines(cost, self.spot) * phase.minutes / 60, 2)}
            for phase, cost in self.rows
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def line(self) -> str:
        """The budget in a line."""
        who = "one learner" if self.learners == 1 else f"{self.learners} learners"
        how = "spot" if self.spot else "on demand"
        minutes = sum(phase.minutes for phase, _ in self.rows)
        return (
            f"${self.usd:,.2f} for {who} and {minutes} minutes, {how}; "
            f"${self.kept_usd:,.2f} when everything is kept until the end"
        )

    def __str__(self) -> str:
        return "\n".join([self.table().to_string(index=False), "", self.line(), *self.notes])


def _machines(cost: Cost, spot: bool) -> float:
    """Machines' price an hour; a type whose spot price is not verified stays on demand."""
    total = 0.0
    for name, count in cost.machines.items():
        found = catalogue()[name]
        price = found.spot_usd_per_hour if spot else found.usd_per_hour
        total += count * (price if price is not None else found.usd_per_hour or 0.0)
    return total


def _dearest(phase: Phase) -> Cost:
    """A phase's machines at its dearest moment, and all the claims that it makes."""
    costs = [component_cost(each) for each in phase.components]
    worst = max(costs, key=lambda cost: cost.machines_usd_per_hour)
    claims = {name: gib for cost in costs for name, gib in cost.claims.items()}
    unpriced = tuple(dict.fromkeys(each for cost in costs for each in cost.unpriced))
    return Cost(worst.machines, claims, worst.assumed, unpriced)


def budget(learners: int = 1, *, spot: bool = False, plan: Sequence[Phase] = PLAN) -> Budget:
    """What the workshop costs for a room.

    Each learner's machines are paid for the minutes of each phase, and each machine a quarter
    of an hour more (`NODE_MINUTES`); a learner's file systems from the first phase that makes
    them to the end; one cluster for all of them.

    Args:
        learners: How many.
        spot: Machines as spot instances.
        plan: The phases.

    Raises:
        WorkshopError: There are no learners.

    Example:
        >>> print(budget(12).line())          # doctest: +SKIP
        $521.23 for 12 learners and 105 minutes, on demand; $1,413.43 when everything is kept ...
    """
    if learners < 1:
        raise WorkshopError(f"a budget is for at least one learner, not {learners}")
    rows = tuple((phase, _dearest(phase)) for phase in plan)
    minutes = sum(phase.minutes for phase in plan)
    machines = sum(_machines(cost, spot) * phase.minutes for phase, cost in rows) / 60
    peak: dict[str, int] = {}
    for _, cost in rows:
        for name, count in cost.machines.items():
            peak[name] = max(peak.get(name, 0), count)
    peak_usd = _machines(Cost(peak), spot)
    since: dict[str, float] = {}
    storage = 0.0
    left = minutes
    for phase, cost in rows:
        for name in set(cost.claims) - set(since):
            since[name] = left / 60
            storage += Cost({}, {name: cost.claims[name]}).storage_usd_per_hour * left / 60
        left -= phase.minutes
    hours = math.ceil(minutes / 60)
    cluster = float(service("eks_cluster")["usd_per_hour"]) * hours
    usd = learners * (machines + peak_usd * NODE_MINUTES / 60 + storage) + cluster
    kept = learners * (peak_usd * (minutes + NODE_MINUTES) / 60 + storage) + cluster
    return Budget(learners, rows, spot, usd, kept, _notes(rows, peak, spot))


def _notes(rows: Sequence[tuple[Phase, Cost]], peak: dict[str, int], spot: bool) -> tuple[str, ...]:
    """Where the numbers come from, and what is not in them."""
    dates = sorted({f"{i.region}, {i.date}" for n in peak if (i := catalogue()[n]).date})
    notes = [f"Prices: {'; '.join(dates)}; without tax, traffic, and machines of the system."]
    notes += dict.fromkeys(f"{each}." for _, cost in rows for each in cost.unpriced)
    if any(not service(name)["verified"] for name in ("fsx_scratch_2", "eks_cluster")):
        notes.append("FSx and EKS fees are from public pages, not verified with AWS' own list.")
    if spot:
        facts = service("spot")
        often = ", ".join(
            f"{name} saved {i.spot_saves_percent}%, interrupted {i.spot_interrupted} a month"
            for name in peak
            if (i := catalogue()[name]).spot_saves_percent is not None
        )
        unknown = [name for name in peak if catalogue()[name].spot_usd_per_hour is None]
        if unknown:
            notes.append(f"Spot not verified, counted on demand: {', '.join(unknown)}.")
        notes.append(
            f"Spot as of {facts['advisor_date']}: {often}. An instance is taken back with "
            f"{facts['notice_s'] // 60} minutes' notice: fine for a training with checkpoints, "
            "not for the only replica of a service."
        )
    return tuple(notes)
