"""RayClusters, as the KubeRay operator runs them: a head, groups of workers, conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from workshop_lib.cluster.local.conditions import Conditions
from workshop_lib.cluster.local.deployments import ReplicaSet
from workshop_lib.cluster.local.network import Endpoint
from workshop_lib.cluster.local.pod import Pod
from workshop_lib.cluster.local.ray_templates import (
    HEAD_PORTS,
    WORKER_PORTS,
    group_template,
    port_list,
)
from workshop_lib.cluster.local.world import World

__all__ = ["RayClusterController", "cluster_spec"]


def cluster_spec(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The RayCluster's spec, which a RayService has under `rayClusterConfig`."""
    spec: Mapping[str, Any] = body["spec"]
    return spec.get("rayClusterConfig", spec)  # type: ignore[no-any-return]


class _Group(ReplicaSet):
    """The head, or one worker group."""

    def __init__(
        self, world: World, owner: tuple[str, str], prefix: str, slots: str,
        labels: Mapping[str, str], group: Mapping[str, Any], ports: Mapping[str, int],
    ) -> None:  # fmt: skip
        super().__init__(world, owner, prefix, slots, labels)
        self.group = group
        self.template = group["template"]
        self.ports = port_list(ports)
        self.head: Endpoint | None = None

    def endpoint(self, slot: int) -> Endpoint:
        """The address of one of the group's pods."""
        owner = self.slots if self.slots.endswith("/head") else f"{self.slots}/{slot}"
        return self.world.book.assign(owner, self.ports)

    def _new_pod(self, slot: int) -> Pod:
        endpoint = self.endpoint(slot)
        template = group_template(
            self.template,
            self.group.get("rayStartParams") or {},
            endpoint,
            head=self.head,
            token_secret=self.owner[1],
        )
        return Pod(
            self.world,
            template,
            name=f"{self.prefix}-{self.world.suffix()}",
            endpoint=endpoint,
            labels=self.labels,
            annotations={},
            owner=self.owner,
            slot=slot,
        )


class RayClusterController:
    """Drives one RayCluster.

    Args:
        world: The runner's surroundings.
        body: The RayCluster, or a RayService with the cluster under `rayClusterConfig`.
    """

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        self.world = world
        self.kind: str = body["kind"]
        self.name: str = body["metadata"]["name"]
        spec = cluster_spec(body)
        owner = (self.kind, self.name)
        slots = f"{self.kind}/{self.name}"
        shared = {
            "ray.io/cluster": self.name,
            "ray.io/originated-from-cr-name": self.name,
            "ray.io/is-ray-node": "yes",
        }
        self.head_set = _Group(
            world, owner, f"{self.name}-head", f"{slots}/head",
            {**shared, "ray.io/node-type": "head", "ray.io/group": "headgroup",
             "ray.io/serve": "true"},
            spec["headGroupSpec"], HEAD_PORTS,
        )  # fmt: skip
        self.head_set.replicas = 1
        self.worker_sets = {
            group["groupName"]: _Group(
                world, owner, f"{self.name}-{group['groupName']}-worker",
                f"{slots}/workers/{group['groupName']}",
                {**shared, "ray.io/node-type": "worker", "ray.io/group": group["groupName"]},
                group, WORKER_PORTS,
            )
            for group in spec.get("workerGroupSpecs", [])
        }  # fmt: skip
        self._conditions = Conditions()
        self.update(body)

    def update(self, body: Mapping[str, Any]) -> None:
        """Take changed replica counts; other changes need delete and apply, as with KubeRay."""
        for group in cluster_spec(body).get("workerGroupSpecs", []):
            wanted = group.get("replicas", group.get("minReplicas", 0))
            self.worker_sets[group["groupName"]].replicas = wanted

    def resume(self, previous: Mapping[str, Any]) -> None:
        """Nothing is kept: Ray ended with the runner that had it."""

    @property
    def pods(self) -> Sequence[Pod]:
        """Head first, then the workers group by group."""
        return [*self.head_set.pods, *(p for s in self.worker_sets.values() for p in s.pods)]

    def condition(self, kind: str, met: bool, reason: str, message: str = "") -> None:
        """Set a condition, keeping the time of its last change."""
        if self._conditions.set(kind, met, reason, message):
            self.world.changed()

    async def reconcile(self) -> None:
        """One look at head and workers."""
        head_endpoint = self.head_set.endpoint(0)
        await self.head_set.reconcile()
        for group in self.worker_sets.values():
            group.head = head_endpoint
            await group.reconcile()
        head_ready = any(pod.ready for pod in self.head_set.pods)
        self.condition(
            "HeadPodReady", head_ready,
            "HeadPodRunningAndReady" if head_ready else "ContainersNotReady",
        )  # fmt: skip
        wanted = 1 + sum(group.replicas for group in self.worker_sets.values())
        ready = sum(pod.ready for pod in self.pods)
        # KubeRay never takes this back: it says that the cluster was whole once.
        if not self._conditions.is_true("RayClusterProvisioned"):
            done = ready >= wanted
            reason = "AllPodRunningAndReadyFirstTime" if done else "RayClusterPodsProvisioning"
            self.condition("RayClusterProvisioned", done, reason, f"{ready} of {wanted} pods ready")

    def status(self) -> dict[str, Any]:
        """The RayCluster's status."""
        workers = [pod for group in self.worker_sets.values() for pod in group.pods]
        head = self.head_set.pods
        return {
            "observedGeneration": self.world.generation,
            "conditions": self._conditions.to_json(),
            "desiredWorkerReplicas": sum(g.replicas for g in self.worker_sets.values()),
            "readyWorkerReplicas": sum(pod.ready for pod in workers),
            "availableWorkerReplicas": sum(pod.phase == "Running" for pod in workers),
            "head": {
                "podIP": head[0].endpoint.ip if head else "",
                "podName": head[0].name if head else "",
                "serviceName": f"{self.name}-head-svc",
            },
        }

    async def run(self) -> None:
        """Keep head and workers as they should be, for ever."""
        while True:
            await self.reconcile()
            await asyncio.sleep(0.1)
