"""Jobs and Deployments, as the controllers of a cluster drive their pods.

Reasons and messages are those of Kubernetes 1.36, so that what a learner reads here is
what they will read there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.kube import INDEX
from workshop_lib.cluster.local.network import Endpoint, named_ports
from workshop_lib.cluster.local.pod import Pod
from workshop_lib.cluster.local.world import Conditions, Events, World, now, suffix

__all__ = ["Controller", "DeploymentController", "JobController", "ReplicaSet", "indexes"]

BACKOFF_LIMIT_S = 600.0


def indexes(text: str) -> set[int]:
    """The indexes in a list such as `0,2-4`.

    Example:
        >>> sorted(indexes("0,2-4"))
        [0, 2, 3, 4]
    """
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


class Controller:
    """What drives the pods of one workload; the agent calls `step` ten times a second.

    Args:
        world: The state's surroundings.
        body: The workload's object.
    """

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        self.world = world
        self.kind: str = body["kind"]
        self.name: str = body["metadata"]["name"]
        self.uid: str = body["metadata"]["uid"]
        self.key = f"{self.kind}/{self.name}"
        self.events = Events()
        self.conditions = Conditions()
        self.pods: list[Pod] = []
        self.update(body)

    def update(self, body: Mapping[str, Any]) -> None:
        """Take a changed object."""
        self.spec: Mapping[str, Any] = body["spec"]
        self.generation: int = body["metadata"]["generation"]
        self.events.changed = True

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

    def condition(self, kind: str, met: bool, reason: str, message: str = "", **more: str) -> None:
        """Set a condition, keeping the time of its last change."""
        self.events.changed |= self.conditions.set(kind, met, reason, message, **more)

    async def stop(self, why: str) -> None:
        """Stop every pod and wait for its end."""
        await asyncio.gather(*(pod.stop(why) for pod in self.pods))


class JobController(Controller):
    """Drives one Job: plain or Indexed, with back-off and success policy."""

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        super().__init__(world, body)
        self.indexed = self.spec.get("completionMode") == "Indexed"
        self.completions: int = self.spec.get("completions", 1)
        self.succeeded: set[int] = set()
        self.failed = 0
        self._start_time = now()
        self._began = time.monotonic()
        self._completion_time = ""
        self._running: dict[int, Pod] = {}
        self._failed_in_row = 0
        self._not_before = 0.0
        if "subdomain" in self.spec["template"]["spec"]:
            for index in range(self.completions):
                self._endpoint(index)  # before any pod starts, so each can be told of all

    def _endpoint(self, index: int) -> Endpoint:
        ports = named_ports(self.spec["template"]["spec"])
        return self.world.addresses.assign(f"{self.key}/{index}", ports)

    def status(self) -> dict[str, Any]:
        """The Job's status; counts of nothing are left out, as Kubernetes does."""
        there = [pod for pod in self.pods if not pod.finished]
        active = [pod for pod in there if not pod.stopping]
        status: dict[str, Any] = {
            "startTime": self._start_time,
            "ready": sum(pod.ready for pod in active),
            "terminating": len(there) - len(active),
            "conditions": self.conditions.to_json(),
        }
        counts = {"active": len(active), "succeeded": len(self.succeeded), "failed": self.failed}
        status |= {name: count for name, count in counts.items() if count}
        if self.indexed and self.succeeded:
            status["completedIndexes"] = _ranges(self.succeeded)
        if self._completion_time:
            status["completionTime"] = self._completion_time
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
        deadline_s = self.spec.get("activeDeadlineSeconds")
        # The Job controller's own order: of what is seen at once, failures count first.
        if self.failed > self.spec.get("backoffLimit", 6):
            message = "Job has reached the specified backoff limit"
            await self._finish("FailureTarget", "Failed", "BackoffLimitExceeded", message)
        elif deadline_s is not None and time.monotonic() - self._began >= deadline_s:
            message = "Job was active longer than specified deadline"
            await self._finish("FailureTarget", "Failed", "DeadlineExceeded", message)
        elif rule := self._matched_rule():
            await self._finish("SuccessCriteriaMet", "Complete", "SuccessPolicy", rule)
        elif len(self.succeeded) >= self.completions:
            message = "Reached expected number of succeeded pods"
            await self._finish("SuccessCriteriaMet", "Complete", "CompletionsReached", message)
        elif time.monotonic() >= self._not_before:
            self._fill()

    def _collect(self) -> bool:
        """Count the pods that ended since the last look, and say whether any did."""
        ended = [index for index, pod in self._running.items() if pod.finished]
        failed = False
        for index in ended:
            if self._running.pop(index).outcome() == "Succeeded":
                self.succeeded.add(index)
                self._failed_in_row = 0
            else:
                self.failed += 1
                self._failed_in_row += 1
                failed = True
            self.events.changed = True
        if failed:
            exponent = min(max(self._failed_in_row - 1, 0), 10)
            wait_s = self.world.settings["restart_backoff_s"] * 2**exponent
            self._not_before = time.monotonic() + min(wait_s, BACKOFF_LIMIT_S)
        return bool(ended)

    def _matched_rule(self) -> str | None:
        for number, rule in enumerate(self.spec.get("successPolicy", {}).get("rules", [])):
            asked = indexes(rule.get("succeededIndexes", "")) or set(range(self.completions))
            if len(self.succeeded & asked) >= rule.get("succeededCount", len(asked)):
                return f"Matched rules at index {number}"
        return None

    def _fill(self) -> None:
        """Create the pods that are missing."""
        for index in range(self.completions):
            if len(self._running) >= self.spec.get("parallelism", 1):
                return
            if index not in self.succeeded and index not in self._running:
                pod = self._running[index] = self._new_pod(index)
                self.pods.append(pod)
                self.say("SuccessfulCreate", f"Created pod: {pod.name}")

    def _new_pod(self, index: int) -> Pod:
        template = self.spec["template"]
        labels = {
            "batch.kubernetes.io/job-name": self.name,
            "batch.kubernetes.io/controller-uid": self.uid,
            "controller-uid": self.uid,
            "job-name": self.name,
        }
        annotations = {}
        name = f"{self.name}-{suffix()}"
        if self.indexed:
            name = f"{self.name}-{index}-{suffix()}"
            labels[INDEX] = annotations[INDEX] = str(index)
            rank = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
            spec = dict(template["spec"])
            for kind in ("containers", "initContainers"):
                if kind in spec:
                    spec[kind] = [{**c, "env": [rank, *c.get("env", [])]} for c in spec[kind]]
            template = {**template, "spec": spec}
        return Pod(
            self.world, self.events, ("Job", self.name), template,
            name=name, endpoint=self._endpoint(index), labels=labels, annotations=annotations,
        )  # fmt: skip

    async def _finish(self, first: str, last: str, reason: str, message: str) -> None:
        """Say what was reached, stop the pods that still run, then say that it is over."""
        self.condition(first, True, reason, message, lastProbeTime=now())
        still = [pod for pod in self.pods if not pod.finished]
        # On a cluster these pods are deleted; here they stay to be read.
        await asyncio.gather(*(pod.stop(f"the Job was over: {message}") for pod in still))
        for pod in still:
            self.say("SuccessfulDelete", f"Deleted pod: {pod.name}")
        if last == "Complete":
            self._completion_time = now()
            self.say("Completed", "Job completed")
        else:
            self.failed += len(still)
            self.say(reason, message, "Warning")
        self.condition(last, True, reason, message, lastProbeTime=now())


def _ranges(numbers: set[int]) -> str:
    """Numbers as Kubernetes writes them.

    Example:
        >>> _ranges({0, 2, 3, 4, 6, 7})
        '0,2-4,6,7'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return ",".join(parts)


class ReplicaSet:
    """Equal pods in numbered slots; a pod that ends is replaced in its slot.

    Args:
        controller: Whose pods they are.
        prefix: Beginning of their names.
        labels: Labels beside the template's.
        slots: Beginning of their address owners, such as `Deployment/vllm`.
    """

    keeps_addresses = False
    """Whether the next pod in a slot has the address and ports of the one before it."""

    def __init__(
        self, controller: Controller, prefix: str, labels: Mapping[str, str], slots: str
    ) -> None:
        self.controller = controller
        self.prefix = prefix
        self.labels = labels
        self.slots = slots
        self.template: Mapping[str, Any] = {}
        self.version = ""
        self.replicas = 0
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
                endpoint = self.endpoint(slot)
                pod = Pod(
                    self.controller.world,
                    self.controller.events,
                    (self.controller.kind, self.controller.name),
                    self.pod_template(endpoint),
                    name=f"{self.prefix}-{suffix()}",
                    endpoint=endpoint,
                    labels=self.labels,
                )
                self._live[slot] = (pod, self.version)
                self.controller.say("SuccessfulCreate", f"Created pod: {pod.name}")

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

    def endpoint(self, slot: int) -> Endpoint:
        """The address of the pod in a slot."""
        ports = named_ports(self.template["spec"])
        return self.controller.world.addresses.assign(f"{self.slots}/{slot}", ports)

    def pod_template(self, endpoint: Endpoint) -> Mapping[str, Any]:
        """The template of a pod with this address."""
        return self.template


class DeploymentController(Controller):
    """Drives one Deployment; a changed template replaces all pods at once."""

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        self._set = ReplicaSet(self, "", {}, f"Deployment/{body['metadata']['name']}")
        super().__init__(world, body)

    def update(self, body: Mapping[str, Any]) -> None:
        """Take a changed number of replicas or a changed template."""
        super().update(body)
        template = json.dumps(self.spec["template"], sort_keys=True)
        self._set.template = self.spec["template"]
        self._set.version = hashlib.sha256(template.encode()).hexdigest()[:10]
        self._set.prefix = f"{self.name}-{self._set.version}"
        self._set.labels = {"pod-template-hash": self._set.version}
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
