"""One pod: placement, volumes, init containers, containers, as a kubelet runs them.

What it says of itself is a Kubernetes Pod object, so that the tables, the plots and
the diagnosis read both worlds with the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from workshop_lib.cluster.local.conditions import Conditions, now
from workshop_lib.cluster.local.container import GRACE_LIMIT_S, Container
from workshop_lib.cluster.local.network import Endpoint
from workshop_lib.cluster.local.podspec import ConfigError, PodContext
from workshop_lib.cluster.local.volumes import Volumes

if TYPE_CHECKING:
    from workshop_lib.cluster.local.world import World

__all__ = ["PastPod", "Pod", "PodLike"]


class PodLike(Protocol):
    """What a controller asks of a pod, be it there or past."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def finished(self) -> bool:
        """Whether it ended for good."""

    @property
    def ready(self) -> bool:
        """Whether every container runs and is ready."""

    @property
    def stopping(self) -> bool:
        """Whether it was told to end."""

    @property
    def restarts(self) -> int:
        """How often its containers were restarted."""

    def to_json(self) -> dict[str, Any]:
        """The pod as a Kubernetes object."""

    async def stop(self, why: str) -> None:
        """Stop it and wait for its end."""


class PastPod:
    """A pod that ended under a runner before this one.

    Args:
        body: The pod as that runner wrote it.
    """

    finished = True
    stopping = False
    ready = False
    restarts = 0

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = dict(body)
        self.name: str = body["metadata"]["name"]

    def to_json(self) -> dict[str, Any]:
        """The pod as a Kubernetes object."""
        return self._body

    async def stop(self, why: str) -> None:
        """Nothing is left to stop."""


class Pod:
    """A pod that runs, or ran, on this machine.

    Args:
        world: The runner's surroundings (files, objects, events, placement).
        template: The pod template's `metadata` and `spec`.
        name: The pod's name.
        endpoint: Its address and ports.
        labels: Labels beside the template's.
        annotations: Annotations beside the template's.
        owner: Kind and name of what owns it.
        slot: Its number among its owner's pods.
    """

    def __init__(
        self,
        world: World,
        template: Mapping[str, Any],
        *,
        name: str,
        endpoint: Endpoint,
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
        owner: tuple[str, str],
        slot: int = 0,
    ) -> None:
        self.world = world
        self.spec: dict[str, Any] = dict(template["spec"])
        self.name = name
        self.endpoint = endpoint
        self.slot = slot
        metadata = template.get("metadata") or {}
        self.metadata: dict[str, Any] = {
            "name": name,
            "namespace": "default",
            "uid": world.new_uid(),
            "creationTimestamp": now(),
            "labels": {**(metadata.get("labels") or {}), **labels},
            "annotations": {**(metadata.get("annotations") or {}), **annotations},
            "ownerReferences": [{"kind": owner[0], "name": owner[1], "controller": True}],
        }
        self.phase = "Pending"
        self.stopping = False
        self._reason: tuple[str, str] | None = None
        self._start_time: str | None = None
        self._conditions = Conditions()
        self._ended = asyncio.Event()
        inits = self.spec.get("initContainers", [])
        self._init_containers = [Container(self, each, init=True) for each in inits]
        self._containers = [Container(self, each) for each in self.spec["containers"]]
        for each in self._containers if inits else []:
            each.wait_for("PodInitializing")
        self._volumes = Volumes(self.spec, world.scratch(endpoint), world.find, world.claim)

    # -- what it says of itself ------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether every container runs and is ready, and nobody told the pod to end."""
        return self._conditions.is_true("Ready") and not self.stopping

    @property
    def finished(self) -> bool:
        """Whether it ended for good."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def restarts(self) -> int:
        """How often its containers were restarted."""
        everything = [*self._init_containers, *self._containers]
        return sum(each.status["restartCount"] for each in everything)

    def to_json(self) -> dict[str, Any]:
        """The pod as a Kubernetes object."""
        status: dict[str, Any] = {
            "phase": self.phase,
            "conditions": self._conditions.to_json(),
            "podIP": self.endpoint.ip,
            "hostIP": self.endpoint.ip,
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
        self.world.event(("Pod", self.name), reason, message, kind)

    def _set(self, kind: str, met: bool, reason: str = "", message: str = "") -> None:
        if self._conditions.set(kind, met, reason, message):
            self.world.changed()

    def update_ready(self) -> None:
        """Bring the pod's conditions in line with its containers."""
        waiting = [each.name for each in self._containers if not each.status["ready"]]
        if self.finished:
            reason = "PodCompleted" if self.phase == "Succeeded" else "PodFailed"
            self._set("ContainersReady", False, reason)
            self._set("Ready", False, reason)
        elif waiting:
            message = f"containers with unready status: [{' '.join(waiting)}]"
            self._set("ContainersReady", False, "ContainersNotReady", message)
            self._set("Ready", False, "ContainersNotReady", message)
        else:
            self._set("ContainersReady", True)
            self._set("Ready", True)
        self.world.changed()

    def container_started(self, container: Container) -> None:
        """Take note that one of its containers has a process."""
        if not container.init:
            self.phase = "Running"
        self.event("Started", "Container started")

    # -- its life ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until it ends for good, or `stop` is called."""
        self._set("PodScheduled", False)
        try:
            if await self._place() and await self._mount():
                self.update_ready()
                refreshing = asyncio.create_task(self._refresh())
                try:
                    await self._run_containers()
                finally:
                    refreshing.cancel()
        finally:
            if self.stopping and not self.finished:
                self.phase = "Failed"
            self.update_ready()
            self.world.unplace(self.name)
            self._ended.set()

    async def _place(self) -> bool:
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

    async def _mount(self) -> bool:
        """Fill the volumes, waiting for what is missing; False when stopped first."""
        said = ""
        while not self.stopping:
            try:
                self._volumes.prepare()
                if said:
                    self._show_waiting("")
                return True
            except (ConfigError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self.event("FailedMount", said, "Warning")
                    self._show_waiting(said)
                await self.pause(0.5)
        return False

    def _show_waiting(self, message: str) -> None:
        for each in self._init_containers or self._containers:
            each.wait_for("ContainerCreating", message)

    async def _run_containers(self) -> None:
        waiting = [each.name for each in self._init_containers]
        for each in self._init_containers:
            message = f"containers with incomplete status: [{' '.join(waiting)}]"
            self._set("Initialized", False, "ContainersNotInitialized", message)
            await each.run()
            if self.stopping:
                return
            if each.exit_code != 0:
                self.phase = "Failed"
                return
            waiting.remove(each.name)
        self._set("Initialized", True)
        await asyncio.gather(*(each.run() for each in self._containers))
        if not self.stopping:
            codes = [each.exit_code for each in self._containers]
            self.phase = "Succeeded" if all(code == 0 for code in codes) else "Failed"

    def context(self) -> PodContext:
        """What the values of its containers refer to, as it is now.

        Raises:
            ConfigError: A claim is not there any more.
        """
        containers = [*self._init_containers, *self._containers]
        return PodContext(
            metadata=self.metadata,
            ip=self.endpoint.ip,
            mounts={each.name: self._volumes.mounts(each.spec) for each in containers},
            names=self.world.endpoints(),
            find=self.world.find,
            base={**self.world.environment, "TMPDIR": str(self._volumes.temporary)},
        )

    async def _refresh(self) -> None:
        """Keep the files of ConfigMaps and Secrets up to date, as a kubelet does now and then."""
        while True:
            await asyncio.sleep(1.0)
            with contextlib.suppress(OSError):  # a full disk: the next round tries again
                self._volumes.refresh()

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
        self.world.changed()
        self._reason = ("Terminated", why)
        everything = [*self._init_containers, *self._containers]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for each in everything:
                each.send(number)
            # The shims kill at the end of the grace period; they need a little longer.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), GRACE_LIMIT_S + 5.0)
                return
