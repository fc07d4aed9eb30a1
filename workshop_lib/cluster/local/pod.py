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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.network import Endpoint, port_annotations, real_port
from workshop_lib.cluster.local.paths import remove_tree, write_json
from workshop_lib.cluster.local.podspec import (
    ConfigError,
    PodContext,
    Volumes,
    container_command,
    container_environment,
    working_folder,
)
from workshop_lib.cluster.local.probes import Prober
from workshop_lib.cluster.local.world import Conditions, Events, World, now

__all__ = ["Pod"]

GRACE_LIMIT_S = 15.0
"""No pod on this machine takes longer to stop, whatever its grace period says."""

FORGIVEN_AFTER_S = 600.0
"""A kubelet forgets earlier crashes when a container has run for ten minutes."""

BACKOFF_LIMIT_S = 300.0


@dataclass(frozen=True)
class _Prepared:
    """What a container runs, with which environment and where."""

    command: list[str]
    environment: dict[str, str]
    folder: Path


class Container:
    """A container, run again and again while its pod's restart policy says so.

    Args:
        pod: The pod it belongs to.
        spec: The container's spec.
        init: It is an init container: it has no probes, and success is its end.
    """

    def __init__(self, pod: Pod, spec: Mapping[str, Any], *, init: bool = False) -> None:
        self.pod = pod
        self.spec = spec
        self.name: str = spec["name"]
        self.init = init
        self.status: dict[str, Any] = {
            "name": self.name,
            "image": spec["image"],
            "ready": False,
            "started": False,
            "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}},
            "lastState": {},
        }
        self._pid: int | None = None
        self._gave_up = False

    @property
    def exit_code(self) -> int | None:
        """The exit code of its last run, when it does not run."""
        code = self.status["state"].get("terminated", {}).get("exitCode")
        return None if code is None else int(code)

    def wait_for(self, reason: str, message: str = "") -> None:
        """Show why the container does not run yet."""
        waiting = {"reason": reason, **({"message": message} if message else {})}
        self.status["state"] = {"waiting": waiting}
        self.pod.update_ready()

    def send(self, number: int) -> None:
        """Signal its shim: TERM stops the container and all it started, KILL is the last word."""
        if self._pid is not None:
            processes.send([self._pid], number)

    async def run(self) -> None:
        """Run until the restart policy lets it rest, or the pod is stopped."""
        always = self.pod.spec.get("restartPolicy", "Always") == "Always"
        first_s = float(self.pod.world.settings["restart_backoff_s"])
        backoff_s = 0.0  # the first restart comes at once
        while (prepared := await self._prepare()) is not None:
            began = time.monotonic()
            code = await self._run_once(prepared)
            # What a probe gave up has failed even when it then ended well.
            again = always and not (self.init and code == 0 and not self._gave_up)
            if self.pod.stopping or not again:
                return
            if time.monotonic() - began > FORGIVEN_AFTER_S:
                backoff_s = 0.0
            self.status["lastState"] = self.status["state"]
            if backoff_s:
                await self._back_off(backoff_s)
            backoff_s = min(backoff_s * 2 or first_s, BACKOFF_LIMIT_S)
            self.status["restartCount"] += 1

    async def _back_off(self, seconds: float) -> None:
        where = f"{self.pod.name}_default({self.pod.metadata['uid']})"
        said = f"Back-off restarting failed container {self.name} in pod {where}"
        self.pod.event("BackOff", said, "Warning")
        self.wait_for(
            "CrashLoopBackOff",
            f"back-off {seconds:g}s restarting failed container={self.name} pod={where}",
        )
        await self.pod.pause(seconds)

    async def _prepare(self) -> _Prepared | None:
        """What to run; waits, as a kubelet does, for a ConfigMap, Secret or key that is missing.

        None when the pod is stopped first.
        """
        said = ""
        while not self.pod.stopping:
            try:
                context = self.pod.context()
                environment = container_environment(self.spec, context)
                command = container_command(self.spec, context, environment)
                return _Prepared(command, environment, working_folder(self.spec, context))
            except (ConfigError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self.pod.event("Failed", f"Error: {said}", "Warning")
                    self.wait_for("CreateContainerConfigError", said)
                await self.pod.pause(0.5)
        return None

    async def _run_once(self, prepared: _Prepared) -> int:
        """Start the process, watch its probes, wait for its end; its exit code."""
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
            return self._ended(128, "StartError", said)
        self._gave_up = False
        running = {"state": {"running": {"startedAt": now()}}, "started": False, "ready": False}
        self.status.update(running)
        self.pod.container_started(init=self.init)
        if self.pod.stopping:  # stop() came while the process was being made
            self.send(signal.SIGTERM)
        watch = asyncio.create_task(self._watch_probes())
        code = await ended
        watch.cancel()
        await asyncio.wait({watch})
        if not watch.cancelled():
            watch.result()  # a defect in a probe must not pass
        self._pid = None
        environment_file.unlink(missing_ok=True)
        return self._ended(code, "Completed" if code == 0 else "Error")

    def _spawn(self, prepared: _Prepared) -> tuple[int, asyncio.Future[int]]:
        number = self.status["restartCount"]
        folder = self.pod.world.paths.logs / self.pod.key.replace("/", ".", 1)
        log = folder / self.pod.name / self.name / f"{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        grace_s = min(float(self.pod.spec.get("terminationGracePeriodSeconds", 30)), GRACE_LIMIT_S)
        return self.pod.world.spawn(
            self.pod.key, prepared.command, prepared.environment, prepared.folder, log, grace_s
        )

    def _ended(self, code: int, reason: str, message: str = "") -> int:
        """Write down how a run ended."""
        moment = now()
        began = self.status["state"].get("running", {}).get("startedAt", moment)
        ended = {"exitCode": code, "reason": reason, "startedAt": began, "finishedAt": moment}
        if message:
            ended["message"] = message
        ready = self.init and code == 0
        self.status.update({"ready": ready, "started": False, "state": {"terminated": ended}})
        self.pod.update_ready()
        return code

    async def _watch_probes(self) -> None:
        """Run the probes, and stop the process when one of them gives it up."""
        if self.init:
            return
        prober = Prober(
            self.spec,
            self.pod.ip,
            self._real_port,
            fail=lambda message: self.pod.event("Unhealthy", message, "Warning"),
            started=lambda: self._set("started", True),
            ready=lambda ready: self._set("ready", ready),
        )
        failed = await prober.run()
        self._gave_up = True
        never = self.pod.spec.get("restartPolicy") == "Never"
        what_next = "" if never else ", will be restarted"
        self.pod.event("Killing", f"Container {self.name} failed {failed} probe{what_next}")
        self.send(signal.SIGTERM)

    def _set(self, field: str, value: bool) -> None:
        self.status[field] = value
        self.pod.update_ready()

    def _real_port(self, wanted: int | str) -> int:
        pod = {"metadata": self.pod.metadata, "spec": {"containers": [self.spec]}}
        return real_port(pod, wanted) or int(wanted)


def _cannot_start(prepared: _Prepared) -> str | None:
    """Why a program cannot be started, in a container runtime's words; None when it can."""
    program = prepared.command[0]
    if "/" not in program:
        path = prepared.environment.get("PATH", os.defpath)
        if shutil.which(program, path=path) is None:
            return f'exec: "{program}": executable file not found in $PATH'
        return None
    file = prepared.folder / program
    if not file.exists():
        return f'exec: "{program}": stat {program}: no such file or directory'
    if file.is_dir() or not os.access(file, os.X_OK):
        return f'exec: "{program}": permission denied'
    return None


class Pod:
    """A pod that runs, or ran, on this machine.

    Args:
        world: The state's surroundings (objects, addresses, placement, processes).
        events: Where its workload's events go.
        owner: Kind and name of its workload.
        template: The pod template's `metadata` and `spec`.
        name: The pod's name.
        endpoint: Its address and ports.
        labels: Labels beside the template's.
        annotations: Annotations beside the template's.
    """

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
        annotations: Mapping[str, str] | None = None,
    ) -> None:
        self.world = world
        self.key = "/".join(owner)
        self.spec: dict[str, Any] = dict(template["spec"])
        self.name = name
        self.ip = endpoint.ip
        self._events = events
        metadata = template.get("metadata") or {}
        own = {**port_annotations(endpoint), **(annotations or {})}
        self.metadata: dict[str, Any] = {
            "name": name,
            "namespace": "default",
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            "labels": {**(metadata.get("labels") or {}), **labels},
            "annotations": {**(metadata.get("annotations") or {}), **own},
            "ownerReferences": [{"kind": owner[0], "name": owner[1], "controller": True}],
        }
        self.phase = "Pending"
        self.stopping = False
        self._reason: tuple[str, str] | None = None
        self._start_time: str | None = None
        self._conditions = Conditions()
        scratch = str(world.paths.volumes / endpoint.ip.rpartition(".")[2])
        self._volumes = Volumes(self.spec, scratch, world.find, world.claim)
        inits = self.spec.get("initContainers", [])
        self._init_containers = [Container(self, each, init=True) for each in inits]
        self._containers = [Container(self, each) for each in self.spec["containers"]]
        self._all = [*self._init_containers, *self._containers]
        for each in self._containers if inits else []:
            each.status["state"] = {"waiting": {"reason": "PodInitializing"}}
        self._task = asyncio.create_task(self._run())

    # -- what it says of itself ------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every container runs and is ready, and nobody told the pod to end."""
        return self._conditions.is_true("Ready") and not self.stopping

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
        status: dict[str, Any] = {
            "phase": self.phase,
            "conditions": self._conditions.to_json(),
            "podIP": self.ip,
            "hostIP": self.ip,
            "containerStatuses": [each.status for each in self._containers],
            "initContainerStatuses": [each.status for each in self._init_containers],
        }
        if self._start_time:
            status["startTime"] = self._start_time
        if self._reason:
            status["reason"], status["message"] = self._reason
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.metadata,
            "spec": {**self.spec, "nodeName": "this-machine"},
            "status": status,
        }

    def event(self, reason: str, message: str, kind: str = "Normal") -> None:
        """Record an event about this pod."""
        self._events.say(("Pod", self.name), reason, message, kind)

    def _set(self, kind: str, met: bool, reason: str = "", message: str = "") -> None:
        if self._conditions.set(kind, met, reason, message):
            self._events.changed = True

    def update_ready(self) -> None:
        """Bring the pod's conditions in line with its containers."""
        waiting = [each.name for each in self._containers if not each.status["ready"]]
        if self.phase in ("Succeeded", "Failed"):
            reason, message = f"Pod{'Completed' if self.phase == 'Succeeded' else 'Failed'}", ""
        elif waiting:
            reason = "ContainersNotReady"
            message = f"containers with unready status: [{' '.join(waiting)}]"
        else:
            reason = message = ""
        for kind in ("ContainersReady", "Ready"):
            self._set(kind, not reason, reason, message)
        self._events.changed = True

    def container_started(self, *, init: bool) -> None:
        """Take note that one of its containers has a process."""
        if not init:
            self.phase = "Running"
        self.event("Started", "Container started")

    # -- its life ----------------------------------------------------------------------------

    async def _run(self) -> None:
        """Run until it ends for good, or `stop` is called."""
        self._set("PodScheduled", False)
        try:
            if await self._until_placed() and await self._until_mounted():
                self.update_ready()
                await self._run_containers()
        finally:
            if self.phase not in ("Succeeded", "Failed"):
                self.phase = "Failed"  # it was told to stop
            self.update_ready()
            self.world.unplace(self.name)

    async def _until_placed(self) -> bool:
        """Wait until this machine has room, saying why it has not; False when stopped first."""
        said = ""
        while not self.stopping:
            problem = self.world.place(self.name, self.spec)
            if problem is None:
                self._set("PodScheduled", True)
                where = f"Successfully assigned default/{self.name} to this-machine"
                self.event("Scheduled", where)
                self._start_time = now()
                return True
            if problem != said:
                said = problem
                self.event("FailedScheduling", problem, "Warning")
                self._set("PodScheduled", False, "Unschedulable", problem)
            await self.pause(0.5)
        return False

    async def _until_mounted(self) -> bool:
        """Fill the volumes, waiting for what is missing; False when stopped first."""
        said = ""
        while not self.stopping:
            try:
                self._volumes.prepare()
                return True
            except (ConfigError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self.event("FailedMount", said, "Warning")
                    for each in self._init_containers or self._containers:
                        each.wait_for("ContainerCreating", said)
                await self.pause(0.5)
        return False

    async def _run_containers(self) -> None:
        waiting = [each.name for each in self._init_containers]
        for each in self._init_containers:
            message = f"containers with incomplete status: [{' '.join(waiting)}]"
            self._set("Initialized", False, "ContainersNotInitialized", message)
            await each.run()
            if self.stopping or each.exit_code != 0:
                self.phase = "Failed"
                return
            waiting.remove(each.name)
        self._set("Initialized", True)
        await asyncio.gather(*(each.run() for each in self._containers))
        well = all(each.exit_code == 0 for each in self._containers) and not self.stopping
        self.phase = "Succeeded" if well else "Failed"

    def context(self) -> PodContext:
        """What the values of its containers refer to, as it is now.

        Raises:
            ConfigError: A claim is not there any more.
        """
        base = {**self.world.settings["environment"], "TMPDIR": str(self._volumes.temporary)}
        return PodContext(
            metadata=self.metadata,
            ip=self.ip,
            mounts={each.name: self._volumes.mounts(each.spec) for each in self._all},
            hosts=self.world.hosts(),
            find=self.world.find,
            base=base,
        )

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the pod is to stop."""
        deadline = time.monotonic() + seconds
        while not self.stopping and time.monotonic() < deadline:
            await asyncio.sleep(min(0.05, seconds))

    async def stop(self, why: str) -> None:
        """TERM every container, wait the grace period, make sure that all ended.

        Args:
            why: What a reader of the pod's status is told.
        """
        if self.finished:
            return
        self.stopping = True
        self.metadata["deletionTimestamp"] = now()
        self._reason = ("Terminated", why)
        self._events.changed = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            for each in self._all:
                each.send(number)
            # The shims kill at the end of the grace period; they need a little longer.
            done, _ = await asyncio.wait({self._task}, timeout=GRACE_LIMIT_S + 5.0)
            if done:
                break

    def remove_files(self) -> None:
        """Delete its scratch volumes; its logs stay with its workload."""
        for folder in self._volumes.own:
            remove_tree(folder)
