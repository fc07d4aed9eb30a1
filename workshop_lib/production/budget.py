"""What the whole workshop costs: the sections of its plan one after the other, for a room."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from workshop_lib.cluster.catalogue import catalogue, catalogue_table, instance, service
from workshop_lib.cluster.manifests import components
from workshop_lib.cluster.prices import Cost, component_cost
from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Budget", "budget", "main"]


class Phase(NamedTuple):
    """A part of the workshop: what is applied then (the dearest counts), for how long."""

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


def _usd_per_hour(machines: Mapping[str, int], spot: bool) -> float:
    """Machines' price; a type whose spot price is not verified stays on demand."""
    total = 0.0
    for name, count in machines.items():
        found = catalogue()[name]
        price = found.spot_usd_per_hour if spot else None
        total += count * ((found.usd_per_hour or 0.0) if price is None else price)
    return total


@dataclass(frozen=True)
class Budget:
    """A budget: for how many learners, of phases and what each costs one learner, in dollars.

    Attributes:
        usd: All of it, for everyone.
        kept_usd: The same when nobody deletes anything until the end.
    """

    learners: int
    rows: tuple[tuple[Phase, Cost], ...]
    spot: bool
    usd: float
    kept_usd: float

    def table(self) -> pd.DataFrame:
        """One row a phase: `phase`, `minutes`, `machines` and `usd` of one learner."""
        import pandas as pd

        return pd.DataFrame(
            {
                "phase": phase.title,
                "minutes": phase.minutes,
                "machines": cost.machines_text,
                "usd": round(_usd_per_hour(cost.machines, self.spot) * phase.minutes / 60, 2),
            }
            for phase, cost in self.rows
        )

    def __str__(self) -> str:
        who = "one learner" if self.learners == 1 else f"{self.learners} learners"
        how = "spot" if self.spot else "on demand"
        minutes = sum(phase.minutes for phase, _ in self.rows)
        line = (
            f"${self.usd:,.2f} for {who} and {minutes} minutes, {how}; "
            f"${self.kept_usd:,.2f} when everything is kept until the end"
        )
        return "\n".join([self.table().to_string(index=False), "", line, *self._notes()])

    def _notes(self) -> list[str]:
        """Where the numbers come from, and what is not in them."""
        types = {name: catalogue()[name] for _, cost in self.rows for name in cost.machines}
        dates = sorted({f"{each.region}, {each.date}" for each in types.values() if each.date})
        notes = [f"Prices: {'; '.join(dates)}; without tax, traffic, and machines of the system."]
        notes += dict.fromkeys(f"{each}." for _, cost in self.rows for each in cost.unpriced)
        if any(not service(name)["verified"] for name in ("fsx_scratch_2", "eks_cluster")):
            notes.append("FSx and EKS fees are from public pages, not verified with AWS' own list.")
        if not self.spot:
            return notes
        often = ", ".join(
            f"{name} saved {each.spot_saves_percent}%, interrupted {each.spot_interrupted} a month"
            for name, each in types.items()
            if each.spot_saves_percent is not None
        )
        if unknown := [name for name, each in types.items() if each.spot_usd_per_hour is None]:
            notes.append(f"Spot not verified, counted on demand: {', '.join(unknown)}.")
        facts = service("spot")
        return [
            *notes,
            f"Spot as of {facts['advisor_date']}: {often}. An instance is taken back with "
            f"{facts['notice_s'] // 60} minutes' notice: fine for a training with checkpoints, "
            "not for the only replica of a service.",
        ]


def budget(learners: int = 1, *, spot: bool = False) -> Budget:
    """What the workshop costs for a room.

    Each learner's machines are paid for the minutes of each phase, and each machine a quarter of
    an hour more (`NODE_MINUTES`); a learner's file systems from the set-up to the end; one cluster
    for all of them.

    Args:
        learners: How many.
        spot: Machines as spot instances.

    Raises:
        WorkshopError: There are no learners.

    Example:
        >>> budget(12).usd < budget(12).kept_usd
        True
    """
    if learners < 1:
        raise WorkshopError(f"a budget is for at least one learner, not {learners}")
    rows, peak, claims = [], dict[str, int](), dict[str, float]()
    minutes = sum(phase.minutes for phase in PLAN)
    machines = 0.0
    for phase in PLAN:
        costs = [component_cost(each) for each in phase.components]
        dearest = max(costs, key=lambda cost: cost.machines_usd_per_hour)
        unpriced = tuple(dict.fromkeys(each for cost in costs for each in cost.unpriced))
        rows.append((phase, Cost(dearest.machines, {}, dearest.assumed, unpriced)))
        machines += _usd_per_hour(dearest.machines, spot) * phase.minutes / 60
        for name, count in dearest.machines.items():
            peak[name] = max(peak.get(name, 0), count)
        for cost in costs:
            claims |= cost.claims
    storage = Cost({}, claims).storage_usd_per_hour * minutes / 60
    at_the_peak = _usd_per_hour(peak, spot)
    cluster = float(service("eks_cluster")["usd_per_hour"]) * math.ceil(minutes / 60)
    usd = learners * (machines + at_the_peak * NODE_MINUTES / 60 + storage) + cluster
    kept = learners * (at_the_peak * (minutes + NODE_MINUTES) / 60 + storage) + cluster
    return Budget(learners, tuple(rows), spot, usd, kept)


def cluster_price(file: str | Path) -> str:
    """What an eksctl ClusterConfig costs an hour: its machines now, and each group's most."""
    try:
        groups = yaml.safe_load(Path(file).read_text())["managedNodeGroups"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise WorkshopError(f"{file} is no ClusterConfig with managedNodeGroups: {error}") from None
    total = float(service("eks_cluster")["usd_per_hour"])
    lines = [f"{'control plane':<16} ${total:.2f}"]
    for group in groups:
        price, now = instance(group["instanceType"]).usd_per_hour, group["desiredCapacity"]
        if price is None:
            raise WorkshopError(f"the price of {group['instanceType']} is not verified")
        total += now * price
        lines.append(
            f"{group['name']:<16} ${now * price:.2f}: {now} x {group['instanceType']} at "
            f"${price:.2f}; up to {group['maxSize']}, ${group['maxSize'] * price:.2f}"
        )
    lines.append(f"${total:.2f} an hour as created, without NAT, volumes, traffic and tax")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """`workshop cost`: print the tables; the exit status is 1 after bad input.

    Args:
        arguments: The command line; default: the process's.
    """
    parser = argparse.ArgumentParser(
        prog="workshop cost", description="What machines, components and the workshop cost."
    )
    parser.add_argument("--learners", type=int, default=1, help="people in the room (1)")
    parser.add_argument("--spot", action="store_true", help="machines as spot instances")
    parser.add_argument("--cluster", help="an eksctl ClusterConfig: what it costs, alone")
    options = parser.parse_args(arguments)
    try:
        if options.cluster:
            print(cluster_price(options.cluster))
            return 0
        found = budget(options.learners, spot=options.spot)
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    machines = catalogue_table().round(2).astype(object)
    machines = machines.where(machines.notna(), "not verified")
    machines.loc[machines["gpus"] == 0, "usd_per_gpu_hour"] = ""
    print(f"EC2 instance types, US dollars an hour\n\n{machines.to_string(index=False)}")
    print("\nComponents as rendered for EKS\n")
    for component in components("eks"):
        cost = component_cost(component)
        print(f"{component:<16}{cost.line() if cost.machines or cost.claims else 'nothing'}")
    how = " on spot instances" if options.spot else ""
    print(f"\nThe workshop, of one learner{how}\n\n{found}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
