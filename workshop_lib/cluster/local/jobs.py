"""Jobs, as the Job controller runs them: plain and Indexed, back-off, success policy.

Reasons and messages are those of Kubernetes 1.36, so that what a learner reads
here is what they will read there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.local.conditions import Conditions, now, seconds_since
from workshop_lib.cluster.local.network import container_ports, port_annotations
from workshop_lib.cluster.local.pod import PastPod, Pod, PodLike
from workshop_lib.cluster.local.world import World

__all__ = ["INDEX_LABEL", "JobController", "indexes"]

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

BACKOFF_LIMIT_S = 600.0

LOOK_EVERY_S = 0.1


def indexes(text: str) -> set[int]:
    """The indexes in a list such as `0,2-4`.

    Args:
        text: Numbers and ranges, separated by commas.

    Raises:
        ValueError: It is no such list.

    Example:
        >>> sorted(indexes("0,2-4"))
        [0, 2, 3, 4]
    """
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


class JobController:
    """Drives one Job.

    Args:
        world: The runner's surroundings.
        body: The Job.
    """

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        self.world = world
        self.name: str = body["metadata"]["name"]
        self.uid: str = body["metadata"]["uid"]
        self.spec: dict[str, Any] = dict(body["spec"])
        self.indexed = self.spec.get("completionMode") == "Indexed"
        self.completions: int = self.spec.get("completions", 1)
        self.pods: list[PodLike] = []
        self.succeeded: set[int] = set()
        self.failed = 0
        self.start_time = now()
        self._began = time.time()
        self.completion_time: str | None = None
        self._conditions = Conditions()
        self._running: dict[int, tuple[Pod, asyncio.Task[None]]] = {}
        self._failed_in_row = 0
        self._not_before = 0.0

    def resume(self, previous: Mapping[str, Any]) -> None:
        """Go on from what a runner before this one had written.

        Args:
            previous: The content of its status file.
        """
        status = previous["status"]
        self.pods = [PastPod(pod) for pod in previous["pods"]]
        self.succeeded = indexes(status.get("completedIndexes", ""))
        if not self.indexed:
            self.succeeded = set(range(status.get("succeeded", 0)))
        self._conditions = Conditions(status.get("conditions", []))
        self.start_time = status["startTime"]
        self._began = time.time() - seconds_since(self.start_time)
        self.completion_time = status.get("completionTime")
        # The pods that ran were lost with their runner, as they are with a node.
        self.failed = status.get("failed", 0) + status.get("active", 0)

    def update(self, body: Mapping[str, Any]) -> None:
        """Take what may change while a Job exists; its pods may not."""
        for field in ("parallelism", "backoffLimit", "activeDeadlineSeconds"):
            self.spec.pop(field, None)
            if field in body["spec"]:
                self.spec[field] = body["spec"][field]

    def status(self) -> dict[str, Any]:
        """The Job's status; counts of nothing are left out, as Kubernetes does."""
        there = [pod for pod in self.pods if not pod.finished]
        active = [pod for pod in there if not pod.stopping]
        status: dict[str, Any] = {
            "startTime": self.start_time,
            "ready": sum(pod.ready for pod in active),
            "terminating": len(there) - len(active),
            "conditions": self._conditions.to_json(),
        }
        counts = {"active": len(active), "succeeded": len(self.succeeded), "failed": self.failed}
        status |= {name: count for name, count in counts.items() if count}
        if self.indexed and self.succeeded:
            status["completedIndexes"] = _ranges(self.succeeded)
        if self.completion_time:
            status["completionTime"] = self.completion_time
        return status

    @property
    def finished(self) -> bool:
        """Whether the Job is Complete or Failed."""
        return self._conditions.is_true("Complete") or self._conditions.is_true("Failed")

    async def run(self) -> None:
        """Create pods until enough have succeeded, or too many have failed."""
        while not self.finished:
            if self._collect():
                # As the Job controller does (it waits for a second): what ends together is
                # seen together.
                await asyncio.sleep(LOOK_EVERY_S)
                self._collect()
            deadline_s = self.spec.get("activeDeadlineSeconds")
            # The Job controller's own order: of what is seen at once, failures count first.
            if self._too_many_failures():
                message = "Job has reached the specified backoff limit"
                await self._finish("FailureTarget", "Failed", "BackoffLimitExceeded", message)
            elif deadline_s is not None and time.time() - self._began >= deadline_s:
                message = "Job was active longer than specified deadline"
                await self._finish("FailureTarget", "Failed", "DeadlineExceeded", message)
            elif rule := self._matched_rule():
                await self._finish("SuccessCriteriaMet", "Complete", "SuccessPolicy", rule)
            elif len(self.succeeded) >= self.completions:
                message = "Reached expected number of succeeded pods"
                await self._finish("SuccessCriteriaMet", "Complete", "CompletionsReached", message)
            else:
                self._fill()
                await asyncio.sleep(LOOK_EVERY_S)

    def _too_many_failures(self) -> bool:
        """Failed pods count; with restartPolicy OnFailure their containers' restarts do."""
        limit = self.spec.get("backoffLimit", 6)
        restarts = sum(pod.restarts for pod in self.pods if not pod.finished)
        return bool(self.failed > limit or (restarts and restarts >= limit))

    def _collect(self) -> bool:
        """Count the pods that ended since the last look, and say whether any did."""
        before = len(self._running)
        failed = False
        for index, (pod, task) in list(self._running.items()):
            if not task.done():
                continue
            del self._running[index]
            task.result()  # a defect in the runner must not pass as a failed pod
            if pod.phase == "Succeeded":
                self.succeeded.add(index)
                self._failed_in_row = 0
            else:
                self.failed += 1
                self._failed_in_row += 1
                failed = True
            self.world.changed()
        if failed:
            exponent = min(max(self._failed_in_row - 1, 0), 10)
            wait_s = self.world.settings["restart_backoff_s"] * 2**exponent
            self._not_before = time.monotonic() + min(wait_s, BACKOFF_LIMIT_S)
        return len(self._running) < before

    def _matched_rule(self) -> str | None:
        for number, rule in enumerate(self.spec.get("successPolicy", {}).get("rules", [])):
            asked = indexes(rule.get("succeededIndexes", "")) or set(range(self.completions))
            enough = rule.get("succeededCount", len(asked))
            if len(self.succeeded & asked) >= enough:
                return f"Matched rules at index {number}"
        return None

    def _fill(self) -> None:
        """Create the pods that are missing."""
        if time.monotonic() < self._not_before:
            return
        for index in range(self.completions):
            if len(self._running) >= self.spec.get("parallelism", 1):
                return
            if index in self.succeeded or index in self._running:
                continue
            pod = self._new_pod(index)
            self.pods.append(pod)
            self._running[index] = (pod, asyncio.create_task(pod.run()))
            self.world.event(("Job", self.name), "SuccessfulCreate", f"Created pod: {pod.name}")

    def _new_pod(self, index: int) -> Pod:
        template = self.spec["template"]
        spec = dict(template["spec"])
        endpoint = self.world.book.assign(f"Job/{self.name}/{index}", container_ports(spec))
        labels = {
            "batch.kubernetes.io/job-name": self.name,
            "batch.kubernetes.io/controller-uid": self.uid,
            "controller-uid": self.uid,
            "job-name": self.name,
        }
        annotations = port_annotations(spec, endpoint.ports)
        name = f"{self.name}-{self.world.suffix()}"
        if self.indexed:
            name = f"{self.name}-{index}-{self.world.suffix()}"
            labels[INDEX_LABEL] = annotations[INDEX_LABEL] = str(index)
            rank = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
            for kind in ("containers", "initContainers"):
                if kind in spec:
                    spec[kind] = [{**c, "env": [rank, *c.get("env", [])]} for c in spec[kind]]
        return Pod(
            self.world,
            {**template, "spec": spec},
            name=name,
            endpoint=endpoint,
            labels=labels,
            annotations=annotations,
            owner=("Job", self.name),
            slot=index,
        )

    async def _finish(self, first: str, last: str, reason: str, message: str) -> None:
        """Say what was reached, stop the pods that still run, then say that it is over."""
        self._add_condition(first, reason, message)
        still = [pod for pod in self.pods if not pod.finished]
        # On a cluster these pods are deleted; here they stay to be read.
        await asyncio.gather(*(pod.stop(f"the Job was over: {message}") for pod in still))
        for pod in still:
            self.world.event(("Job", self.name), "SuccessfulDelete", f"Deleted pod: {pod.name}")
        if last == "Complete":
            self.completion_time = now()
        else:
            self.failed += len(still)
        self._add_condition(last, reason, message)
        if last == "Complete":
            self.world.event(("Job", self.name), "Completed", "Job completed")
        else:
            self.world.event(("Job", self.name), reason, message, "Warning")

    def _add_condition(self, kind: str, reason: str, message: str) -> None:
        self._conditions.set(kind, True, reason, message, lastProbeTime=now())
        self.world.changed()


def _ranges(numbers: set[int]) -> str:
    """Numbers as Kubernetes writes them: `0,2-4`.

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
