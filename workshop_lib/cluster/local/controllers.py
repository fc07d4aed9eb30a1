"""Jobs and Deployments, as the controllers of a cluster drive their pods.

Reasons and messages are those of Kubernetes 1.36, so that what a learner reads here is
what they will read there.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from workshop_lib.cluster.kube import INDEX
from workshop_lib.cluster.local.network import Endpoint, named_ports
from workshop_lib.cluster.local.pod import Pod
from workshop_lib.cluster.local.world import Conditions, Events, World, now, suffix

__all__ = ["Controller", "DeploymentController", "JobController", "ReplicaSet"]

BACKOFF_LIMIT_S = 600.0

Json = Mapping[str, Any]


class Controller:
    """What drives the pods of one workload; the agent calls `step` ten times a second."""

    def __init__(self, world: World, body: Json) -> None:
        self.world = world
        self.kind: str = body["kind"]
        self.name: str = body["metadata"]["name"]
        self.uid: str = body["metadata"]["uid"]
        self.key = f"{self.kind}/{self.name}"
        self.events = Events()
        self.conditions = Conditions()
        self.pods: list[Pod] = []
        self.update(body)

    def update(self, body: Json) -> None:
        """Take a changed object."""
        self.spec: Json = body["spec"]
        self.generation: int = body["metadata"]["generation"]

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, for good."""
        return False

    async def step(self) -> None:
        """One look: create pods that are missing, stop those that should not be."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """The object's `status`."""
        raise NotImplementedError

    def say(self, reason: str, message: str, kind: str = "Normal") -> None:
        """Record an event about the workload."""
        self.events.say((self.kind, self.name), reason, message, kind)

    def new_pod(
        self,
        name: str,
        template: Json,
        endpoint: Endpoint,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> Pod:
        """Create a pod that the workload owns."""
        self.say("SuccessfulCreate", f"Created pod: {name}")
        return Pod(
            self.world, self.events, (self.kind, self.name), template,
            name=name, endpoint=endpoint, labels=labels, annotations=annotations,
        )  # fmt: skip

    async def stop(self, why: str) -> None:
        """Stop every pod and wait for its end."""
        await asyncio.gather(*(pod.stop(why) for pod in self.pods))


class JobController(Controller):
    """Drives one Job: plain or Indexed, with back-off and success policy."""

    def __init__(self, world: World, body: Json) -> None:
        super().__init__(world, body)
        self.indexed = self.spec.get("completionMode") == "Indexed"
        self.completions: int = self.spec.get("completions", 1)
        self.succeeded: set[int] = set()
        self.failed = 0
        self._times = {"startTime": now()}
        self._began = time.monotonic()
        self._running: dict[int, Pod] = {}
        self._failed_in_row = 0
        self._not_before = 0.0
        for index in range(self.completions):
            self._endpoint(index)  # before any pod starts, so each can be told of all

    def _endpoint(self, index: int) -> Endpoint:
        ports = named_ports(self.spec["template"]["spec"])
        return self.world.addresses.assign(f"{self.key}/{index}", ports)

    def status(self) -> dict[str, Any]:
        """The Job's status; counts of nothing are left out, as Kubernetes does."""
        there = [pod for pod in self.pods if not pod.finished]
        active = [pod for pod in there if not pod.stopping]
        counts = {"active": len(active), "succeeded": len(self.succeeded), "failed": self.failed}
        status: dict[str, Any] = {
            **self._times,
            "ready": sum(pod.ready for pod in active),
            "terminating": len(there) - len(active),
            "conditions": self.conditions.to_json(),
            **{name: count for name, count in counts.items() if count},
        }
        if self.indexed and self.succeeded:
            status["completedIndexes"] = _ranges(self.succeeded)
        return status

    @property
    def over(self) -> bool:
        """Whether the Job is Complete or Failed."""
        return self.conditions.is_true("Complete") or self.conditions.is_true("Failed")

    async def step(self) -> None:
        """Create pods until enough have succeeded, or too many have failed."""
        if self._collect():
            # As the Job controller does (it waits for a second): what ends together is
            # seen together.
            await asyncio.sleep(0.1)
            self._collect()
        deadline_s = self.spec.get("activeDeadlineSeconds", float("inf"))
        rules = self.spec.get("successPolicy", {}).get("rules", [])
        # The Job controller's own order: of what is seen at once, failures count first.
        if self.failed > self.spec.get("backoffLimit", 6):
            message = "Job has reached the specified backoff limit"
            await self._finish("Failed", "BackoffLimitExceeded", message)
        elif time.monotonic() - self._began >= deadline_s:
            message = "Job was active longer than specified deadline"
            await self._finish("Failed", "DeadlineExceeded", message)
        elif any(int(rule["succeededIndexes"]) in self.succeeded for rule in rules):
            await self._finish("Complete", "SuccessPolicy", "Matched rules at index 0")
        elif len(self.succeeded) >= self.completions:
            message = "Reached expected number of succeeded pods"
            await self._finish("Complete", "CompletionsReached", message)
        elif time.monotonic() >= self._not_before:
            for index in range(self.completions):
                done = index in self.succeeded or index in self._running
                if not done and len(self._running) < self.spec.get("parallelism", 1):
                    self._running[index] = self._new_pod(index)
                    self.pods.append(self._running[index])

    def _collect(self) -> bool:
        """Count the pods that ended since the last look, and say whether any did."""
        ended = [index for index, pod in self._running.items() if pod.finished]
        for index in ended:
            if self._running.pop(index).outcome() == "Succeeded":
                self.succeeded.add(index)
                self._failed_in_row = 0
            else:
                self.failed += 1
                self._failed_in_row += 1
                wait_s = self.world.settings["restart_backoff_s"] * 2 ** min(
                    self._failed_in_row - 1, 10
                )
                self._not_before = time.monotonic() + min(wait_s, BACKOFF_LIMIT_S)
        return bool(ended)

    def _new_pod(self, index: int) -> Pod:
        template = self.spec["template"]
        labels = {
            "batch.kubernetes.io/job-name": self.name,
            "batch.kubernetes.io/controller-uid": self.uid,
            "controller-uid": self.uid,
            "job-name": self.name,
        }
        endpoint = self._endpoint(index)
        if not self.indexed:
            return self.new_pod(f"{self.name}-{suffix()}", template, endpoint, labels, {})
        rank = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
        spec = dict(template["spec"])
        for kind in ("containers", "initContainers"):
            spec[kind] = [{**c, "env": [rank, *c.get("env", [])]} for c in spec.get(kind, [])]
        own = {INDEX: str(index)}
        name = f"{self.name}-{index}-{suffix()}"
        return self.new_pod(name, {**template, "spec": spec}, endpoint, labels | own, own)

    async def _finish(self, last: str, reason: str, message: str) -> None:
        """Say what was reached, stop the pods that still run, then say that it is over."""
        first = "SuccessCriteriaMet" if last == "Complete" else "FailureTarget"
        self.conditions.set(first, True, reason, message, lastProbeTime=now())
        still = [pod for pod in self.pods if not pod.finished]
        # On a cluster these pods are deleted; here they stay to be read.
        await self.stop(f"the Job was over: {message}")
        for pod in still:
            self.say("SuccessfulDelete", f"Deleted pod: {pod.name}")
        if last == "Complete":
            self._times["completionTime"] = now()
            self.say("Completed", "Job completed")
        else:
            self.failed += len(still)
            self.say(reason, message, "Warning")
        self.conditions.set(last, True, reason, message, lastProbeTime=now())


def _ranges(numbers: set[int]) -> str:
    """Numbers as Kubernetes writes them.

    Example:
        >>> _ranges({0, 2, 3, 4, 6, 7})
        '0,2-4,6,7'
    """
    parts = []
    for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        found = [str(number) for _, number in run]
        parts.append(f"{found[0]}-{found[-1]}" if len(found) > 2 else ",".join(found))
    return ",".join(parts)


class ReplicaSet:
    """Equal pods in numbered slots; a pod that ends is replaced in its slot.

    `slots` begins their addresses' owners; with `keeps_addresses` the next pod has the same.
    """

    # Set before the first look, and changed when the object does.
    prefix: str
    labels: Mapping[str, str]
    ports: Mapping[str, int]
    template: Callable[[Endpoint], Json]
    version = ""
    replicas = 0

    def __init__(self, controller: Controller, slots: str, *, keeps_addresses: bool) -> None:
        self.controller, self.slots = controller, slots
        self.keeps_addresses = keeps_addresses
        self._live: dict[int, tuple[Pod, str]] = {}

    @property
    def pods(self) -> list[Pod]:
        """The pods that exist, in slot order."""
        return [pod for _, (pod, _) in sorted(self._live.items())]

    @property
    def updated(self) -> int:
        """How many pods are as the template says now."""
        live = self._live.values()
        return sum(version == self.version and not pod.stopping for pod, version in live)

    def endpoint(self, slot: int) -> Endpoint:
        """The address of the pod in a slot."""
        return self.controller.world.addresses.assign(f"{self.slots}/{slot}", self.ports)

    async def reconcile(self) -> None:
        """One look: stop what should not be, start what is missing."""
        wrong = []
        for slot, (pod, version) in list(self._live.items()):
            if pod.finished:
                pod.outcome()
                self._forget(slot)
            elif slot >= self.replicas or version != self.version:
                wrong.append(slot)
        await asyncio.gather(*(self._remove(slot) for slot in wrong))
        for slot in range(self.replicas):
            if slot not in self._live:
                at, name = self.endpoint(slot), f"{self.prefix}-{suffix()}"
                pod = self.controller.new_pod(name, self.template(at), at, self.labels, {})
                self._live[slot] = (pod, self.version)

    async def _remove(self, slot: int) -> None:
        pod, _ = self._live[slot]
        await pod.stop("its owner wants fewer pods, or other ones")
        self.controller.say("SuccessfulDelete", f"Deleted pod: {pod.name}")
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        pod, _ = self._live.pop(slot)
        pod.remove_files()
        if slot >= self.replicas or not self.keeps_addresses:
            self.controller.world.addresses.release(f"{self.slots}/{slot}")


class DeploymentController(Controller):
    """Drives one Deployment; a changed template replaces all pods at once."""

    def __init__(self, world: World, body: Json) -> None:
        slots = f"Deployment/{body['metadata']['name']}"
        self._set = ReplicaSet(self, slots, keeps_addresses=False)
        super().__init__(world, body)

    def update(self, body: Json) -> None:
        """Take a changed number of replicas or a changed template."""
        super().update(body)
        template = self.spec["template"]
        version = hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]
        self._set.version = version
        self._set.template = lambda endpoint: template
        self._set.ports = named_ports(template["spec"])
        self._set.prefix = f"{self.name}-{version}"
        self._set.labels = {"pod-template-hash": version}
        self._set.replicas = self.spec.get("replicas", 1)

    async def step(self) -> None:
        """Keep the number of pods."""
        await self._set.reconcile()
        self.pods = self._set.pods

    def status(self) -> dict[str, Any]:
        """The Deployment's status; counts of nothing are left out, as Kubernetes does."""
        there = [pod for pod in self.pods if not pod.stopping]
        ready = sum(pod.ready for pod in there)
        available = ready >= self._set.replicas
        self.conditions.set(
            "Available",
            available,
            f"MinimumReplicas{'Available' if available else 'Unavailable'}",
            f"Deployment {'has' if available else 'does not have'} minimum availability.",
        )
        counts = {
            "replicas": len(there),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(0, self._set.replicas - ready),
            "updatedReplicas": self._set.updated,
        }
        return {
            "observedGeneration": self.generation,
            "conditions": self.conditions.to_json(),
            **{name: count for name, count in counts.items() if count},
        }
