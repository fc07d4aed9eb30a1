"""Deployments: a number of equal pods, kept at that number."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from workshop_lib.cluster.local.conditions import Conditions
from workshop_lib.cluster.local.network import container_ports, port_annotations
from workshop_lib.cluster.local.pod import Pod
from workshop_lib.cluster.local.world import World

__all__ = ["DeploymentController", "ReplicaSet"]


def template_hash(template: Mapping[str, Any]) -> str:
    """Ten characters that change when the pod template does."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


class ReplicaSet:
    """Equal pods in numbered slots; a pod that ends is replaced in its slot.

    Args:
        world: The runner's surroundings.
        owner: Kind and name of what owns the pods.
        prefix: Beginning of their names.
        slots: Beginning of their address owners, such as `Deployment/vllm`.
        labels: Labels beside the template's.
    """

    def __init__(
        self,
        world: World,
        owner: tuple[str, str],
        prefix: str,
        slots: str,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.world = world
        self.owner = owner
        self.prefix = prefix
        self.slots = slots
        self.labels = dict(labels or {})
        self.template: Mapping[str, Any] = {}
        self.version = ""
        self.replicas = 0
        self._live: dict[int, tuple[Pod, asyncio.Task[None], str]] = {}

    @property
    def pods(self) -> list[Pod]:
        """The pods that exist, in slot order."""
        return [self._live[slot][0] for slot in sorted(self._live)]

    @property
    def current(self) -> list[Pod]:
        """The pods that are as the template says now."""
        live = self._live.items()
        return [pod for slot, (pod, _, version) in sorted(live) if version == self.version]

    async def reconcile(self) -> None:
        """One look: stop what should not be, start what is missing."""
        wrong: list[int] = []
        for slot, (_, task, version) in list(self._live.items()):
            if task.done():
                task.result()  # a defect in the runner must not pass as an ended pod
                del self._live[slot]
            elif slot >= self.replicas or version != self.version:
                wrong.append(slot)
        await asyncio.gather(*(self._remove(slot) for slot in wrong))
        for slot in range(self.replicas):
            if slot not in self._live:
                pod = self._new_pod(slot)
                self._live[slot] = (pod, asyncio.create_task(pod.run()), self.version)
                self._say("SuccessfulCreate", f"Created pod: {pod.name}")

    async def _remove(self, slot: int) -> None:
        pod, task, _ = self._live[slot]
        await pod.stop("its owner wants fewer pods, or other ones")
        await asyncio.wait({task}, timeout=5)
        del self._live[slot]
        self._say("SuccessfulDelete", f"Deleted pod: {pod.name}")
        if slot >= self.replicas:
            self.world.book.release(f"{self.slots}/{slot}")

    def _say(self, reason: str, message: str) -> None:
        self.world.event(self.owner, reason, message)

    def _new_pod(self, slot: int) -> Pod:
        spec = self.template["spec"]
        # Nothing of this slot runs: a port that a stranger took meanwhile is moved.
        endpoint = self.world.book.assign(f"{self.slots}/{slot}", container_ports(spec), probe=True)
        return Pod(
            self.world,
            self.template,
            name=f"{self.prefix}-{self.world.suffix()}",
            endpoint=endpoint,
            labels=self.labels,
            annotations=port_annotations(spec, endpoint.ports),
            owner=self.owner,
            slot=slot,
        )


class DeploymentController:
    """Drives one Deployment.

    Args:
        world: The runner's surroundings.
        body: The Deployment.
    """

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        self.world = world
        self.name: str = body["metadata"]["name"]
        self.set = ReplicaSet(
            world, ("Deployment", self.name), self.name, f"Deployment/{self.name}"
        )
        self._conditions = Conditions()
        self.update(body)

    def update(self, body: Mapping[str, Any]) -> None:
        """Take a changed number of replicas or a changed template."""
        self.set.template = body["spec"]["template"]
        self.set.version = template_hash(self.set.template)
        self.set.replicas = body["spec"].get("replicas", 1)
        self.set.prefix = f"{self.name}-{self.set.version}"
        self.set.labels = {"pod-template-hash": self.set.version}

    def resume(self, previous: Mapping[str, Any]) -> None:
        """Nothing is kept: the pods ended with the runner that had them."""

    @property
    def pods(self) -> Sequence[Pod]:
        """The Deployment's pods."""
        return self.set.pods

    def status(self) -> dict[str, Any]:
        """The Deployment's status."""
        there = [pod for pod in self.pods if not pod.stopping]
        ready = sum(pod.ready for pod in there)
        available = ready >= self.set.replicas
        self._conditions.set(
            "Available",
            available,
            "MinimumReplicasAvailable" if available else "MinimumReplicasUnavailable",
            f"Deployment {'has' if available else 'does not have'} minimum availability.",
        )
        counts = {
            "replicas": len(there),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(0, self.set.replicas - ready),
            "updatedReplicas": sum(not pod.stopping for pod in self.set.current),
        }
        return {
            "observedGeneration": self.world.generation,
            "conditions": self._conditions.to_json(),
            # Counts of nothing are left out, as Kubernetes does.
            **{name: count for name, count in counts.items() if count},
        }

    async def run(self) -> None:
        """Keep the number of pods, for ever."""
        while True:
            await self.set.reconcile()
            await asyncio.sleep(0.1)
