"""The agent of one state: `python -m workshop_lib.cluster.local.agent HOME STATE`.

One detached process plays the control plane and the kubelet of a state: it makes what runs
match the objects that kernels apply, and writes what it sees into `status/*.json`, whole
each time. It outlives the kernel that started it, and owns every pod: as a subreaper it
becomes the parent of whatever they orphan, and when it dies, so do they (see `shim`).
It ends when it is told to (SIGTERM), after its pods.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import WORKLOAD_KINDS
from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.controllers import Controller, DeploymentController, JobController
from workshop_lib.cluster.local.kuberay import RayClusterController, RayServiceController
from workshop_lib.cluster.local.paths import StatePaths, json_files, write_json
from workshop_lib.cluster.local.world import World
from workshop_lib.errors import ClusterError

__all__ = ["main"]

LOOK_EVERY_S = 0.1

CONTROLLERS: Mapping[str, type[Controller]] = {
    "Job": JobController,
    "Deployment": DeploymentController,
    "RayCluster": RayClusterController,
    "RayService": RayServiceController,
}


class Agent:
    """Reconciles all workloads of a state."""

    def __init__(self, paths: StatePaths) -> None:
        self.paths = paths
        self.world = World(paths)
        self.identity = (os.getpid(), processes.start_ticks(os.getpid()))
        self._controllers: dict[str, Controller] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._written: dict[str, str] = {}
        self._said = ""

    async def run(self) -> None:
        """Reconcile until told to stop; then stop every pod."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGCHLD, self.world.reap)
        while not stop.is_set():
            try:
                self.world.refresh()
                self._reconcile()
            except (ClusterError, OSError) as error:  # a damaged file, a full disk
                self._complain(str(error))
            self._write()
            await asyncio.sleep(LOOK_EVERY_S)
        ending = asyncio.gather(*(self._halt(each) for each in self._controllers.values()))
        while not ending.done():  # who looks, sees that they end
            await asyncio.wait({ending}, timeout=LOOK_EVERY_S)
            self._write()
        ending.result()

    def _reconcile(self) -> None:
        wanted = {k: b for k, b in self.world.objects.items() if b["kind"] in WORKLOAD_KINDS}
        for key, body in wanted.items():
            controller, metadata = self._controllers.get(key), body["metadata"]
            # A status that is there was written of a Job that is over, or under another agent:
            # what runs no more starts again when it is applied again, and not by itself.
            if controller is None and not self.paths.status_file(key).exists():
                self._controllers[key] = CONTROLLERS[body["kind"]](self.world, body)
                self._tasks[key] = asyncio.create_task(self._drive(self._controllers[key]))
            elif (
                controller is not None
                and controller.uid == metadata["uid"]
                and controller.generation != metadata["generation"]
            ):
                controller.update(body)
        for key, controller in self._controllers.items():
            gone = key not in wanted or wanted[key]["metadata"]["uid"] != controller.uid
            if gone and key not in self._ending:
                self._ending[key] = asyncio.create_task(self._end(controller))
        for file in json_files(self.paths.statuses):
            key = file.stem.replace(".", "/", 1)
            if key not in wanted and key not in self._controllers:
                self.paths.forget(key)

    async def _drive(self, controller: Controller) -> None:
        try:
            while not controller.over:
                await controller.step()
                await asyncio.sleep(LOOK_EVERY_S)
        except Exception as error:
            # A defect of ours; the reason is kept where a learner looks.
            traceback.print_exc()
            controller.say("ControllerFailed", f"{type(error).__name__}: {error}", "Warning")
            raise

    async def _halt(self, controller: Controller) -> None:
        task = self._tasks[controller.key]
        task.cancel()
        await asyncio.wait({task})
        await controller.stop("it was deleted")

    async def _end(self, controller: Controller) -> None:
        """Stop a workload that was deleted, and remove what is its own."""
        key = controller.key
        await self._halt(controller)
        for pod in controller.pods:
            pod.remove_files()
        self.world.addresses.release(key)
        del self._controllers[key], self._tasks[key], self._ending[key]
        self._written.pop(key, None)
        self.paths.forget(key)

    def _write(self) -> None:
        for key, controller in self._controllers.items():
            whole: dict[str, Any] = {
                "status": controller.status(),
                "pods": [pod.to_json() for pod in controller.pods],
                "generation": controller.generation,
                "events": controller.events,
                "agent": self.identity,
            }
            if (text := repr(whole)) == self._written.get(key):
                continue
            try:
                write_json(self.paths.status_file(key), whole)
                self._written[key] = text
            except OSError as error:  # a full disk is no reason to let the pods down
                self._complain(f"the status of {key} was not written: {error}")

    def _complain(self, problem: str) -> None:
        if problem != self._said:
            print(problem, flush=True)
            self._said = problem


def main(arguments: list[str]) -> None:
    """Detach, and play one state: HOME STATE.

    The agent is no child of the kernel, and is known even when the kernel is killed meanwhile.
    """
    home, state = arguments
    paths = StatePaths(Path(home), state)
    if child := os.fork():
        identity = {"pid": child, "ticks": processes.start_ticks(child)}
        write_json(paths.agent, identity)
        os._exit(0)
    os.setsid()
    log = os.open(paths.agent_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    processes.become_subreaper()
    try:
        asyncio.run(Agent(paths).run())
    finally:
        me = os.getpid()
        processes.stop(lambda: processes.descendants(me), grace_s=2.0, reap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
