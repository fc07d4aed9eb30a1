"""What a component costs an hour, from its manifests as rendered: machines and file systems.

Pods are packed onto machines as the scheduler would: by their requests, one to a machine where
they say so (anti-affinity by hostname). A pod that names its instance type gets it; another
without GPU gets the cheapest CPU machine of the catalogue that it fits, which is an assumption
and said. Machines that are there already cost nothing more: the estimate does not know them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from workshop_lib.cluster import manifests
from workshop_lib.cluster.catalogue import Instance, catalogue, service
from workshop_lib.cluster.kube import (
    CLAIM,
    GPU,
    INSTANCE_TYPE,
    WORKLOAD_KINDS,
    Json,
    key_of,
    parse_quantity,
    pod_specs,
    requests_of,
)

__all__ = ["Cost", "announce", "component_cost", "cost_of"]

HOURS_PER_MONTH = 730.0
FSX_CLASS = "fsx-sc"


class _Pod(NamedTuple):
    """A pod to be placed: its owner, requests, instance type; alone: one to a machine."""

    owner: str
    requests: Mapping[str, float]
    wanted: str | None
    alone: bool


@dataclass(frozen=True)
class Cost:
    """What objects cost an hour.

    Attributes:
        machines: Instance type to how many.
        claims: Claims on FSx to their size, GiB.
        assumed: Instance types that no manifest names: the cheapest that fits.
        unpriced: What has no verified price, in words.
        most: The same with every autoscaled worker group at its largest; None when equal.
    """

    machines: Mapping[str, int] = field(default_factory=dict)
    claims: Mapping[str, float] = field(default_factory=dict)
    assumed: frozenset[str] = frozenset()
    unpriced: tuple[str, ...] = ()
    most: Cost | None = None

    @property
    def machines_usd_per_hour(self) -> float:
        """Of the machines, on demand."""
        prices = {name: catalogue()[name].usd_per_hour or 0.0 for name in self.machines}
        return sum(prices[name] * count for name, count in self.machines.items())

    @property
    def storage_usd_per_hour(self) -> float:
        """Of the file systems, which cost whether they are used or not."""
        monthly = float(service("fsx_scratch_2")["usd_per_gib_month"])
        return sum(self.claims.values()) * monthly / HOURS_PER_MONTH

    @property
    def usd_per_hour(self) -> float:
        """Of all of it."""
        return self.machines_usd_per_hour + self.storage_usd_per_hour

    @property
    def machines_text(self) -> str:
        """The machines in words."""
        return ", ".join(
            f"{count} x {name}{' (assumed)' if name in self.assumed else ''}"
            for name, count in self.machines.items()
        )

    def line(self) -> str:
        """The cost in a line, with the date of its prices."""
        parts = [self.machines_text] if self.machines else []
        if self.claims:
            gib = sum(self.claims.values())
            parts.append(f"{gib:.0f} GiB of FSx ${self.storage_usd_per_hour:.2f}")
        priced = [found for name in self.machines if (found := catalogue()[name]).date]
        when = f" ({priced[0].region}, prices of {priced[0].date})" if priced else ""
        more = [f"up to ${self.most.usd_per_hour:.2f} when it scales out"] if self.most else []
        notes = "".join(f"; {each}" for each in (*more, *self.unpriced))
        return f"${self.usd_per_hour:.2f} an hour on demand: {', '.join(parts)}{when}{notes}"


def cost_of(bodies: Iterable[Json]) -> Cost:
    """What objects cost an hour, as rendered: workloads and volume claims."""
    bodies = list(bodies)
    now, most = _cost(bodies, largest=False), _cost(bodies, largest=True)
    return now if most.machines == now.machines else replace(now, most=most)


def _cost(bodies: Sequence[Json], *, largest: bool) -> Cost:
    claims = {
        body["metadata"]["name"]: parse_quantity(body["spec"]["resources"]["requests"]["storage"])
        / 2**30
        for body in bodies
        if body["kind"] == CLAIM and body["spec"].get("storageClassName") == FSX_CLASS
    }
    groups: dict[str, list[_Pod]] = {}
    assumed, unpriced = set(), []
    for pod in _pods(bodies, largest=largest):
        name = pod.wanted or _cheapest(pod)
        if name is None or name not in catalogue():
            unpriced.append(f"not priced: {name or 'a machine with GPUs'} for {pod.owner}")
            continue
        if pod.wanted is None:
            assumed.add(name)
        if catalogue()[name].usd_per_hour is None:
            unpriced.append(f"the price of {name} is not verified")
        groups.setdefault(name, []).append(pod)
    machines = {name: _packed(group, catalogue()[name]) for name, group in groups.items()}
    return Cost(machines, claims, frozenset(assumed), tuple(dict.fromkeys(unpriced)))


def _pods(bodies: Sequence[Json], *, largest: bool) -> list[_Pod]:
    found = []
    for body in (each for each in bodies if each["kind"] in WORKLOAD_KINDS):
        for count, spec in pod_specs(body, largest=largest):
            rules = ((spec.get("affinity") or {}).get("podAntiAffinity") or {}).get(
                "requiredDuringSchedulingIgnoredDuringExecution"
            )
            alone = any(rule.get("topologyKey") == "kubernetes.io/hostname" for rule in rules or [])
            wanted = (spec.get("nodeSelector") or {}).get(INSTANCE_TYPE)
            found += [_Pod(key_of(body), requests_of(spec), wanted, alone)] * count
    return found


def _room(machine: Instance) -> dict[str, float]:
    return {name: parse_quantity(amount) for name, amount in machine.node.items()}


def _fits(pod: _Pod, room: Mapping[str, float]) -> bool:
    return all(
        amount <= room.get(name, math.inf if name == "ephemeral-storage" else 0.0)
        for name, amount in pod.requests.items()
    )


def _cheapest(pod: _Pod) -> str | None:
    """The cheapest CPU machine that a pod fits, or None."""
    fitting = [
        (each.usd_per_hour, each.name)
        for each in catalogue().values()
        if not each.gpus and each.usd_per_hour is not None and _fits(pod, _room(each))
    ]
    return min(fitting)[1] if fitting else None


def _packed(pods: Sequence[_Pod], machine: Instance) -> int:
    """How many machines of a type the pods take: the first with room, largest pods first."""
    machines: list[tuple[dict[str, float], set[str]]] = []
    for pod in sorted(pods, key=lambda pod: -pod.requests.get(GPU, 0.0)):
        for room, owners in machines:
            if _fits(pod, room) and not (pod.alone and pod.owner in owners):
                break
        else:
            room, owners = _room(machine), set()
            machines.append((room, owners))
        for name, amount in pod.requests.items():
            room[name] = room.get(name, 0.0) - amount
        owners.add(pod.owner)
    return len(machines)


def component_cost(component: str, *, profile: str = "eks", **parameters: Any) -> Cost:
    """What a component costs an hour, as `apply` would render it.

    Args:
        component: A folder's name under `manifests/overlays/<profile>`.
        profile: `eks`.
        **parameters: As for `cluster.apply`.

    Example:
        >>> print(component_cost("ray-cluster").machines_text)
        2 x p4d.24xlarge
    """
    return cost_of(each.body for each in manifests.render(profile, component, parameters))


def announce(profile: str, bodies: Iterable[Json]) -> str:
    """The line about money that `apply` shows before it changes anything; empty without any."""
    cost = cost_of(bodies) if profile == "eks" else Cost()  # only its machines are rented
    if not (cost.machines or cost.claims or cost.unpriced):
        return ""
    return f"{cost.line()}; machines that are there already cost nothing more"
