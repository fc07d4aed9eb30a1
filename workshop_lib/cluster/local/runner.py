"""Runs one workload: `python -m workshop_lib.cluster.local.runner HOME STATE Job/name`.

Supervisord keeps one for each Job, Deployment, RayCluster and RayService. It reads
the workload's object from the state's folder, does what a cluster's controllers and
kubelet would do, and writes what it sees to a status file, whole each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from workshop_lib.cluster.local import orphans, processes, records
from workshop_lib.cluster.local.paths import StatePaths
from workshop_lib.cluster.local.pod import PodLike
from workshop_lib.cluster.local.world import World

__all__ = ["Controller", "main"]


class Controller(Protocol):
    """What drives the pods of one workload."""

    @property
    def pods(self) -> Sequence[PodLike]:
        """Its pods, in order."""

    async def run(self) -> None:
        """Drive the workload until it is done for good, or the task is cancelled."""

    def update(self, body: Mapping[str, Any]) -> None:
        """Take a changed object."""

    def resume(self, previous: Mapping[str, Any]) -> None:
        """Go on from what a runner before this one had written."""

    def status(self) -> dict[str, Any]:
        """The object's `status`."""


def _controller(world: World, body: Mapping[str, Any]) -> Controller:
    if body["kind"] == "Job":
        from workshop_lib.cluster.local.jobs import JobController

        return JobController(world, body)
    if body["kind"] == "Deployment":
        from workshop_lib.cluster.local.deployments import DeploymentController

        return DeploymentController(world, body)
    if body["kind"] == "RayCluster":
        from workshop_lib.cluster.local.ray_cluster import RayClusterController

        return RayClusterController(world, body)
    from workshop_lib.cluster.local.ray_service import RayServiceController

    return RayServiceController(world, body)


def _take_over(world: World) -> Mapping[str, Any]:
    """End what a runner before this one left, and return what it had written."""
    records.reset_status(world.paths, world.key)
    if left := orphans.end_shims(world.paths.runtime, world.key, grace_s=20.0):
        print(f"processes {left} of an earlier runner survive", flush=True)
    orphans.kill_orphans(os.getppid())
    world.forget_placements()
    return records.read_status(world.paths, world.key) or {}


async def _run(world: World) -> None:
    kind, name = world.key.split("/")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    processes.end_with_parent()  # pods whose supervisord was killed count as lost
    body = world.find(kind, name)
    if body is None:
        return
    previous = await asyncio.to_thread(_take_over, world)
    world.generation = body["metadata"].get("generation")
    world.events = list(previous.get("events", []))
    controller = _controller(world, body)
    if previous.get("status"):
        controller.resume(previous)

    def collect() -> dict[str, Any]:
        pods = [pod.to_json() for pod in controller.pods]
        return {"status": controller.status(), "pods": pods}

    drive = asyncio.create_task(controller.run())
    ending = {drive, asyncio.create_task(stop.wait())}
    try:
        while not drive.done() and not stop.is_set():
            # Soon after a change, seldom without one, and never more often than 20 times a second.
            look = asyncio.create_task(world.wait_changed(at_most_s=0.2))
            await asyncio.wait({*ending, look}, return_when=asyncio.FIRST_COMPLETED)
            look.cancel()
            await asyncio.wait(ending, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
            changed = world.find(kind, name)
            generation = (changed or body)["metadata"].get("generation")
            if changed is not None and generation != world.generation:
                world.generation = generation
                controller.update(changed)
                world.changed()
            world.write_status(collect)
        if stop.is_set():
            drive.cancel()
            stopping = asyncio.gather(*(pod.stop("stopped") for pod in controller.pods))
            while not stopping.done():  # who looks, and Services, see that they end
                world.write_status(collect)
                await asyncio.wait({stopping}, timeout=0.05)
            await stopping
        with contextlib.suppress(asyncio.CancelledError):
            await drive
    except Exception as error:
        # The reason is kept where a learner looks; supervisord's restart follows.
        world.event((kind, name), "RunnerFailed", f"{type(error).__name__}: {error}", "Warning")
        raise
    finally:
        for task in ending:
            task.cancel()
        world.write_status(collect, force=True)


def main(arguments: list[str]) -> int:
    """Run one workload: HOME STATE KIND/NAME."""
    home, state, key = arguments
    processes.become_subreaper()
    world = World(StatePaths(Path(home), state), key)
    left: list[int] = []
    try:
        asyncio.run(_run(world))
    finally:
        # A second TERM must not end this process before its pods.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        left = processes.stop_tree(os.getpid(), grace_s=2.0, reap=True)
        world.forget_placements()
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
