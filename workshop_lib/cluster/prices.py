"""What a component costs an hour, from its manifests as rendered: machines and file systems.

Pods are packed onto machines as the scheduler would: by their requests, one to a machine where
they say so (anti-affinity by hostname). A pod that names its instance type gets it; another
without GPU gets the cheapest CPU machine of the catalogue that it fits, which is an assumption
and said. Machines that are there already cost nothing more: the estimate does not know them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.catalogue import Instance, catalogue, service
from workshop_lib.cluster.kube import parse_quantity, requests_of

__all__ = ["Cost", "announce", "component_cost", "cost_of"]

Json = Mapping[str, Any]

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
HOURS_PER_MONTH = 730.0
FSX_CLASS = "fsx-sc"
PAID_PROFILES = ("eks",)
"""Profiles whose machines are rented by the hour."""


@dataclass(frozen=True)
class _Pod:
    """A pod to be placed."""

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
        return sum(
            (catalogue()[name].usd_per_hour or 0.0) * count for name, count in self.machines.items()
        )

    @property
    def storage_usd_per_hour(self) -> float:
        """Of the file systems, which cost whether they are used or not."""
        gib = sum(self.claims.values())
        return gib * float(service("fsx_scratch_2")["usd_per_gib_month"]) / HOURS_PER_MONTH

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
        """The cost in a line, with the date of its prices.

        Example:
            >>> print(Cost({"p4d.24xlarge": 2}).line())
            $43.92 an hour on demand: 2 x p4d.24xlarge (us-east-1, prices of 2026-07-20)
        """
        parts = [self.machines_text] if self.machines else []
        if self.claims:
            gib = sum(self.claims.values())
            parts.append(f"{gib:.0f} GiB of FSx ${self.storage_usd_per_hour:.2f}")
        priced = [found for name in self.machines if (found := catalogue()[name]).date]
        when = f" ({priced[0].region}, prices of {priced[0].date})" if priced else ""
        more = (
            f"; up to ${self.most.usd_per_hour:.2f} when it scales out" if self.most else ""
        ) + "".join(f"; {each}" for each in self.unpriced)
        return f"${self.usd_per_hour:.2f} an hour on demand: {', '.join(parts)}{when}{more}"


def cost_of(bodies: Iterable[Json]) -> Cost:
    """What objects cost an hour.

    Args:
        bodies: Objects as rendered: Jobs, Deployments, RayClusters, RayServices, claims.

    Example:
        >>> spec = {"containers": [], "nodeSelector": {INSTANCE_TYPE: "g5.8xlarge"}}
        >>> body = {"kind": "Deployment", "spec": {"replicas": 3, "template": {"spec": spec}},
        ...         "metadata": {"name": "server"}}
        >>> cost_of([body]).machines
        {'g5.8xlarge': 1}
    """
    bodies = list(bodies)
    now = _cost(bodies, largest=False)
    most = _cost(bodies, largest=True)
    return now if most.machines == now.machines else Cost(
        now.machines, now.claims, now.assumed, now.unpriced, most
    )  # fmt: skip


def _cost(bodies: Sequence[Json], *, largest: bool) -> Cost:
    claims = {
        body["metadata"]["name"]: parse_quantity(body["spec"]["resources"]["requests"]["storage"])
        / 2**30
        for body in bodies
        if body["kind"] == "PersistentVolumeClaim"
        and body["spec"].get("storageClassName") == FSX_CLASS
    }
    pods = [pod for body in bodies for pod in _pods(body, largest=largest)]
    groups: dict[str, list[_Pod]] = {}
    assumed, unpriced = set(), []
    for pod in pods:
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


def _pods(body: Json, *, largest: bool) -> list[_Pod]:
    """The pods that an object makes."""
    spec, name = body.get("spec") or {}, f"{body['kind']}/{body['metadata']['name']}"
    if body["kind"] == "Job":
        return [_pod(name, spec["template"]["spec"])] * int(spec.get("parallelism", 1))
    if body["kind"] == "Deployment":
        return [_pod(name, spec["template"]["spec"])] * int(spec.get("replicas", 1))
    if body["kind"] not in ("RayCluster", "RayService"):
        return []
    cluster = spec.get("rayClusterConfig") or spec
    found = [_pod(name, cluster["headGroupSpec"]["template"]["spec"])]
    scales = bool(cluster.get("enableInTreeAutoscaling")) and largest
    for group in cluster.get("workerGroupSpecs") or []:
        count = group.get("maxReplicas" if scales else "replicas", 1)
        found += [_pod(name, group["template"]["spec"])] * int(count)
    return found


def _pod(owner: str, spec: Json) -> _Pod:
    rules = ((spec.get("affinity") or {}).get("podAntiAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or []
    alone = any(rule.get("topologyKey") == "kubernetes.io/hostname" for rule in rules)
    selector = spec.get("nodeSelector") or {}
    return _Pod(owner, requests_of(spec), selector.get(INSTANCE_TYPE), alone)


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
        each for each in catalogue().values()
        if not each.gpus and each.usd_per_hour is not None and _fits(pod, _room(each))
    ]  # fmt: skip
    return min(fitting, key=lambda each: each.usd_per_hour or 0.0).name if fitting else None


def _packed(pods: Sequence[_Pod], machine: Instance) -> int:
    """How many machines of a type the pods take: the first with room, largest pods first."""
    machines: list[tuple[dict[str, float], set[str]]] = []
    for pod in sorted(pods, key=lambda pod: -pod.requests.get("nvidia.com/gpu", 0.0)):
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

    Raises:
        ManifestError: There is no such component or parameter.
    """
    return cost_of(each.body for each in manifests.render(profile, component, parameters))


def announce(profile: str, bodies: Iterable[Json]) -> str:
    """The line about money that `apply` shows before it changes anything; empty without any.

    Args:
        profile: The cluster's profile.
        bodies: What is about to be applied.
    """
    if profile not in PAID_PROFILES:
        return ""
    cost = cost_of(bodies)
    if not (cost.machines or cost.claims or cost.unpriced):
        return ""
    return f"{cost.line()}; machines that are there already cost nothing more"
