"""One pod and its containers: placement, volumes, processes, restarts, as a kubelet runs them.

What a pod says of itself is a Kubernetes Pod object, so that the tables, the plots and the
diagnosis read both worlds with the same code.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.network import Endpoint, port_annotations, real_port
from workshop_lib.cluster.local.paths import remove_tree, write_json
from workshop_lib.cluster.local.podspec import (
    NotYet,
    PodContext,
    Volumes,
    container_command,
    container_environment,
    working_folder,
)
from workshop_lib.cluster.local.probes import watch
from workshop_lib.cluster.local.world import Conditions, Events, World, now

__all__ = ["Pod"]

GRACE_LIMIT_S = 15.0
"""No pod on this machine takes longer to stop, whatever its grace period says."""

BACKOFF_LIMIT_S = 300.0

T = TypeVar("T")


class _Prepared(NamedTuple):
    """What a container runs, with which environment and where."""

    command: list[str]
    environment: dict[str, str]
    folder: Path


class Container:
    """A container, run again and again while its pod's restart policy says so."""

    def __init__(self, pod: Pod, spec: Mapping[str, Any], waiting: str) -> None:
        self.pod = pod
        self.spec = spec
        self.name: str = spec["name"]
        self.status: dict[str, Any] = {
            "name": self.name,
            "image": spec["image"],
            "ready": False,
            "started": False,
            "restartCount": 0,
            "state": {"waiting": {"reason": waiting}},
            "lastState": {},
        }
        self._pid: int | None = None

    @property
    def succeeded(self) -> bool:
        """Whether its last run ended, and ended well."""
        return bool(self.status["state"].get("terminated", {}).get("exitCode") == 0)

    def send(self, number: int) -> None:
        """Signal its shim: TERM stops the container and all it started, KILL is the last word."""
        if self._pid is not None:
            processes.send([self._pid], number)

    def wait_for(self, reason: str, message: str) -> None:
        """Show why the container does not run yet."""
        self.status["state"] = {"waiting": {"reason": reason, "message": message}}

    async def run(self, *, again: bool) -> None:
        """Run to the end; with `again`, restart it until the pod is stopped."""
        first_s = float(self.pod.world.settings["restart_backoff_s"])
        backoff_s = 0.0  # the first restart comes at once
        while (prepared := await self._prepared()) is not None:
            await self._run_once(prepared)
            if self.pod.stopping or not again:
                return
            self.status["lastState"] = self.status["state"]
            if backoff_s:
                where = f"{self.pod.name}_default({self.pod.metadata['uid']})"
                said = f"restarting failed container {self.name} in pod {where}"
                self.pod.event("BackOff", f"Back-off {said}", "Warning")
                said = f"restarting failed container={self.name} pod={where}"
                self.wait_for("CrashLoopBackOff", f"back-off {backoff_s:g}s {said}")
                await self.pod.pause(backoff_s)
            backoff_s = min(backoff_s * 2 or first_s, BACKOFF_LIMIT_S)
            self.status["restartCount"] += 1

    async def _prepared(self) -> _Prepared | None:
        """What to run; waits for a ConfigMap, Secret or key that is missing."""

        def prepare() -> _Prepared:
            context = self.pod.context(self.spec)
            environment = container_environment(self.spec, context)
            command = container_command(self.spec, context, environment)
            return _Prepared(command, environment, working_folder(self.spec, context))

        def tell(problem: str) -> None:
            self.pod.event("Failed", f"Error: {problem}", "Warning")
            self.wait_for("CreateContainerConfigError", problem)

        return await self.pod.retried(prepare, tell)

    async def _run_once(self, prepared: _Prepared) -> None:
        environment_file = self.pod.world.paths.environments / f"{self.pod.name}.{self.name}.json"
        problem = _cannot_start(prepared)
        if problem is None:
            try:
                write_json(
                    environment_file,
                    {"environment": prepared.environment, "folder": str(prepared.folder)},
                )
                self._pid, ended = self._spawn(prepared)
            except (OSError, ValueError) as error:
                problem = str(error)
        if problem is not None:
            said = f"unable to start container process: {problem}"
            self.pod.event("Failed", f"Error: {said}", "Warning")
            self._ended(128, "StartError", message=said)
            return
        self.status |= {
            "state": {"running": {"startedAt": now()}},
            "started": False,
            "ready": False,
        }
        if self is self.pod.main:
            self.pod.phase = "Running"
        self.pod.event("Started", "Container started")
        if self.pod.stopping:  # stop() came while the process was being made
            self.send(signal.SIGTERM)
        probes = asyncio.create_task(self._watch_probes())
        code = await ended
        probes.cancel()
        await asyncio.wait({probes})
        if not probes.cancelled():
            probes.result()  # a defect in a probe must not pass
        self._pid = None
        environment_file.unlink(missing_ok=True)
        self._ended(code, "Completed" if code == 0 else "Error")

    def _spawn(self, prepared: _Prepared) -> tuple[int, asyncio.Future[int]]:
        pod = self.pod
        log = pod.world.paths.log_folder(pod.key) / pod.name / self.name
        log.mkdir(parents=True, exist_ok=True)
        log /= f"{self.status['restartCount']}.log"
        log.touch()
        grace_s = min(float(pod.spec.get("terminationGracePeriodSeconds", 30)), GRACE_LIMIT_S)
        return pod.world.spawn(pod.key, *prepared, log, grace_s)

    def _ended(self, code: int, reason: str, **more: str) -> None:
        began = self.status["state"].get("running", {}).get("startedAt", now())
        ended = {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": now()}
        self.status |= {"ready": False, "started": False, "state": {"terminated": ended | more}}

    async def _watch_probes(self) -> None:
        """Run the probes, and stop the process when one of them gives it up."""
        if self is not self.pod.main:
            return

        def port(wanted: int | str) -> int:
            pod = {"metadata": self.pod.metadata, "spec": {"containers": [self.spec]}}
            return real_port(pod, wanted) or int(wanted)

        def tell(problem: str) -> None:
            self.pod.event("Unhealthy", problem, "Warning")

        failed = await watch(self.spec, self.pod.ip, port, tell, self.status)
        what_next = ", will be restarted" if self.pod.restarts else ""
        self.pod.event("Killing", f"Container {self.name} failed {failed} probe{what_next}")
        self.send(signal.SIGTERM)


def _cannot_start(prepared: _Prepared) -> str | None:
    """Why a program cannot be started, in a container runtime's words; None when it can."""
    program = prepared.command[0]
    if "/" not in program:
        path = prepared.environment.get("PATH", os.defpath)
        found = shutil.which(program, path=path) is not None
        return None if found else f'exec: "{program}": executable file not found in $PATH'
    file = prepared.folder / program
    if not file.exists():
        return f'exec: "{program}": stat {program}: no such file or directory'
    runs = file.is_file() and os.access(file, os.X_OK)
    return None if runs else f'exec: "{program}": permission denied'


class Pod:
    """A pod that runs, or ran, on this machine; its labels are beside its template's."""

    def __init__(
        self,
        world: World,
        events: Events,
        owner: tuple[str, str],
        template: Mapping[str, Any],
        *,
        name: str,
        endpoint: Endpoint,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> None:
        self.world = world
        self.key = "/".join(owner)
        self.spec: Mapping[str, Any] = template["spec"]
        self.restarts = self.spec.get("restartPolicy") != "Never"
        self.name = name
        self.ip = endpoint.ip
        self._events = events
        metadata = template.get("metadata", {})
        own = {**port_annotations(endpoint), **annotations}
        self.metadata: dict[str, Any] = {
            "name": name,
            "namespace": "default",
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            "labels": {**metadata.get("labels", {}), **labels},
            "annotations": {**metadata.get("annotations", {}), **own},
            "ownerReferences": [{"kind": owner[0], "name": owner[1], "controller": True}],
        }
        self.phase = "Pending"
        self.stopping = False
        self._more: dict[str, str] = {}
        self._conditions = Conditions()
        self._conditions.set("PodScheduled", False)
        scratch = str(world.paths.volumes / endpoint.ip.rpartition(".")[2])
        self._volumes = Volumes(self.spec, scratch, world.find, world.claim)
        first = self.spec.get("initContainers", [])
        self._init_containers = [Container(self, each, "ContainerCreating") for each in first]
        waiting = "PodInitializing" if first else "ContainerCreating"
        self.main = Container(self, self.spec["containers"][0], waiting)
        self._task = asyncio.create_task(self._run())

    # -- what it says of itself ------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether its container runs and is ready, and nobody told the pod to end."""
        return bool(self.main.status["ready"]) and not self.stopping

    @property
    def finished(self) -> bool:
        """Whether it ended for good."""
        return self._task.done()

    def outcome(self) -> str:
        """Its phase in the end; a defect in this library is raised, and no pod's end."""
        self._task.result()
        return self.phase

    def to_json(self) -> dict[str, Any]:
        """The pod as a Kubernetes object."""
        reason = message = ""
        if self.phase in ("Succeeded", "Failed"):
            reason = f"Pod{'Completed' if self.phase == 'Succeeded' else 'Failed'}"
        elif not self.main.status["ready"]:
            reason = "ContainersNotReady"
            message = f"containers with unready status: [{self.main.name}]"
        if self._conditions.is_true("PodScheduled"):
            for kind in ("ContainersReady", "Ready"):
                self._conditions.set(kind, not reason, reason, message)
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.metadata,
            "spec": {**self.spec, "nodeName": "this-machine"},
            "status": {
                "phase": self.phase,
                "conditions": self._conditions.to_json(),
                "podIP": self.ip,
                "hostIP": self.ip,
                "containerStatuses": [self.main.status],
                "initContainerStatuses": [each.status for each in self._init_containers],
                **self._more,
            },
        }

    def event(self, reason: str, message: str, kind: str = "Normal") -> None:
        """Record an event about this pod."""
        self._events.say(("Pod", self.name), reason, message, kind)

    # -- its life ----------------------------------------------------------------------------

    async def _run(self) -> None:
        """Run until it ends for good, or `stop` is called."""
        well = False
        try:
            well = bool(
                await self.retried(self._place, self._tell_unplaced)
                and await self.retried(self._mount, self._tell_unmounted)
                and await self._run_containers()
            )
        finally:
            self.phase = "Succeeded" if well else "Failed"
            self.world.unplace(self.name)

    def _place(self) -> bool:
        self.world.place(self.name, self.spec)
        self._conditions.set("PodScheduled", True)
        self.event("Scheduled", f"Successfully assigned default/{self.name} to this-machine")
        self._more["startTime"] = now()
        return True

    def _tell_unplaced(self, problem: str) -> None:
        self.event("FailedScheduling", problem, "Warning")
        self._conditions.set("PodScheduled", False, "Unschedulable", problem)

    def _mount(self) -> bool:
        self._volumes.prepare()
        return True

    def _tell_unmounted(self, problem: str) -> None:
        self.event("FailedMount", problem, "Warning")
        for each in self._init_containers or [self.main]:
            each.wait_for("ContainerCreating", problem)

    async def _run_containers(self) -> bool:
        """Run the init containers one by one, then the main one; whether all ended well."""
        waiting = [each.name for each in self._init_containers]
        for each in self._init_containers:
            message = f"containers with incomplete status: [{' '.join(waiting)}]"
            self._conditions.set("Initialized", False, "ContainersNotInitialized", message)
            await each.run(again=False)
            if self.stopping or not each.succeeded:
                return False
            each.status["ready"] = True
            waiting.remove(each.name)
        self._conditions.set("Initialized", True)
        await self.main.run(again=self.restarts)
        return self.main.succeeded and not self.stopping

    def context(self, container: Mapping[str, Any]) -> PodContext:
        """What the values of a container refer to, as it is now."""
        return PodContext(
            metadata=self.metadata,
            ip=self.ip,
            mounts=self._volumes.mounts(container),
            hosts=self.world.hosts(),
            find=self.world.find,
            base={**self.world.settings["environment"], "TMPDIR": str(self._volumes.temporary)},
        )

    def claim_mounts(self) -> dict[str, Path]:
        """The folders that its container has from claims: models lie there."""
        return self._volumes.mounts(self.main.spec, claims_only=True)

    async def retried(self, do: Callable[[], T], tell: Callable[[str], None]) -> T | None:
        """What a function returns in the end, or None; a new reason why it cannot yet is told."""
        said = ""
        while not self.stopping:
            try:
                return do()
            except (NotYet, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    tell(said)
                await self.pause(0.5)
        return None

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the pod is to stop."""
        deadline = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < deadline:
            await asyncio.sleep(min(0.05, seconds))

    async def stop(self, why: str) -> None:
        """TERM every container, wait the grace period, make sure that all ended."""
        if self.finished:
            return
        self.stopping = True
        self.metadata["deletionTimestamp"] = now()
        self._more |= {"reason": "Terminated", "message": why}
        for number in (signal.SIGTERM, signal.SIGKILL):
            for each in [*self._init_containers, self.main]:
                each.send(number)
            # The shims kill at the end of the grace period; they need a little longer.
            done, _ = await asyncio.wait({self._task}, timeout=GRACE_LIMIT_S + 5.0)
            if done:
                break

    def remove_files(self) -> None:
        """Delete its scratch volumes; its logs stay with its workload."""
        for folder in self._volumes.own:
            remove_tree(folder)
