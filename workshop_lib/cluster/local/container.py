"""One container of a pod: its process, its restarts, its probes, as a kubelet looks after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.local import probes
from workshop_lib.cluster.local.conditions import now
from workshop_lib.cluster.local.orphans import SHIM
from workshop_lib.cluster.local.paths import write_json
from workshop_lib.cluster.local.podspec import (
    ConfigError,
    PodContext,
    container_command,
    container_environment,
    rewrite,
    working_folder,
)

if TYPE_CHECKING:
    from workshop_lib.cluster.local.pod import Pod

__all__ = ["GRACE_LIMIT_S", "Container"]

GRACE_LIMIT_S = 15.0
"""No pod on this machine takes longer to stop, whatever its grace period says."""

FORGIVEN_AFTER_S = 600.0
"""A kubelet forgets earlier crashes when a container has run for ten minutes."""

BACKOFF_LIMIT_S = 300.0


@dataclass(frozen=True)
class _Prepared:
    """What a container runs, where, and what its values refer to."""

    command: list[str]
    environment: dict[str, str]
    folder: Path
    context: PodContext


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
        self._process: asyncio.subprocess.Process | None = None
        self._gave_up = False

    @property
    def exit_code(self) -> int | None:
        """The exit code of its last run, when it does not run."""
        code = self.status["state"].get("terminated", {}).get("exitCode")
        return None if code is None else int(code)

    def wait_for(self, reason: str, message: str = "") -> None:
        """Show why the container does not run yet."""
        waiting = {"reason": reason, **({"message": message} if message else {})}
        if self.status["state"] != {"waiting": waiting}:
            self.status["state"] = {"waiting": waiting}
            self.pod.world.changed()

    def send(self, number: int) -> None:
        """Signal its shim: TERM stops the container and all it started, KILL is the last word."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def run(self) -> None:
        """Run until the restart policy lets it rest, or the pod is stopped."""
        policy = self.pod.spec.get("restartPolicy", "Always")
        first_s = float(self.pod.world.settings["restart_backoff_s"])
        backoff_s = 0.0  # the first restart comes at once
        while (prepared := await self._prepare()) is not None:
            began = time.monotonic()
            code = await self._run_once(prepared)
            # What a probe gave up starts again even when it then ended well.
            failed = code != 0 or self._gave_up
            again = (policy == "Always" and not self.init) or (policy != "Never" and failed)
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
        self.pod.event(
            "BackOff",
            f"Back-off restarting failed container {self.name} in pod {where}",
            "Warning",
        )
        self.wait_for(
            "CrashLoopBackOff",
            f"back-off {seconds:g}s restarting failed container={self.name} pod={where}",
        )
        await self.pod.pause(seconds)

    async def _prepare(self) -> _Prepared | None:
        """What to run, in which environment and folder; None when the pod is stopped first.

        Waits, as a kubelet does, for a ConfigMap, Secret or key that is missing.
        """
        said = ""
        while not self.pod.stopping:
            try:
                context = self.pod.context()
                environment = container_environment(self.spec, context)
                command = container_command(self.spec, context, environment)
                folder = working_folder(self.spec, context)
                return _Prepared(command, environment, folder, context)
            except (ConfigError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    self.pod.event("Failed", f"Error: {said}", "Warning")
                    self.wait_for("CreateContainerConfigError", said)
                await self.pod.pause(0.5)
        return None

    async def _run_once(self, prepared: _Prepared) -> int:
        """Start the process, watch its probes, wait for its end; its exit code."""
        process = await self._start(prepared)
        if process is None:
            return self._ended(128)
        self._process = process
        self._gave_up = False
        self.status.update(
            {"state": {"running": {"startedAt": now()}}, "started": False, "ready": False}
        )
        self.pod.container_started(self)
        if self.pod.stopping:  # stop() came while the process was being made
            self.send(signal.SIGTERM)
        watch = asyncio.create_task(self._watch(prepared))
        code = await process.wait()
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
        self._process = None
        if code < 0:
            # The shim itself was killed, so it could not take its container down with it.
            self.pod.world.kill_orphans()
            code = 128 - code
        self.pod.world.environment_file(self.pod.name, self.name).unlink(missing_ok=True)
        return self._ended(code)

    async def _start(self, prepared: _Prepared) -> asyncio.subprocess.Process | None:
        """The shim with the command in it, or None when the command cannot be started."""
        command, environment, folder = prepared.command, prepared.environment, prepared.folder
        problem = _cannot_start(command[0], environment, folder)
        if problem is None:
            number = self.status["restartCount"]
            log = self.pod.world.log_folder(self.pod.name, self.name) / f"{number}.log"
            grace_s = float(self.pod.spec.get("terminationGracePeriodSeconds", 30))
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                log.touch()
                write_json(
                    self.pod.world.environment_file(self.pod.name, self.name),
                    {"environment": environment, "folder": str(folder)},
                )
                return await asyncio.create_subprocess_exec(
                    # No site-packages and no PYTHON* variables for the shim: it starts faster.
                    sys.executable, "-S", "-E", str(SHIM), self.pod.world.mark,
                    str(min(grace_s, GRACE_LIMIT_S)), str(log), "--", *command,
                    env=environment, cwd=folder, start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                problem = str(error)
        message = f"unable to start container process: {problem}"
        self.pod.event("Failed", f"Error: {message}", "Warning")
        moment = now()
        self.status["state"] = {
            "terminated": {
                "exitCode": 128, "reason": "StartError", "message": message,
                "startedAt": moment, "finishedAt": moment,
            }
        }  # fmt: skip
        return None

    def _ended(self, code: int) -> int:
        """Write down how a run ended."""
        state = self.status["state"]
        if "running" in state:
            state = {
                "terminated": {
                    "exitCode": code,
                    "reason": "Completed" if code == 0 else "Error",
                    "startedAt": state["running"]["startedAt"],
                    "finishedAt": now(),
                }
            }
        self.status.update({"ready": self.init and code == 0, "started": False, "state": state})
        self.pod.update_ready()
        return code

    # -- probes ------------------------------------------------------------------------------

    async def _watch(self, prepared: _Prepared) -> None:
        """Run the probes, and stop the process when one of them gives it up."""
        if self.init:
            return
        context = prepared.context

        async def execute(command: Sequence[str], timeout_s: float) -> str | None:
            mounts = context.mounts[self.name]
            words = [rewrite(word, mounts, context.names) for word in command]
            return await probes.check_exec(words, prepared.environment, prepared.folder, timeout_s)

        prober = probes.Prober(
            container=self.spec,
            ip=self.pod.endpoint.ip,
            port=self._port,
            execute=execute,
            say=lambda reason, message: self.pod.event(reason, message, "Warning"),
            on_started=self._set_started,
            on_ready=self._set_ready,
        )
        failed = await prober.run()
        self._gave_up = True
        never = self.pod.spec.get("restartPolicy") == "Never"
        what_next = "" if never else ", will be restarted"
        self.pod.event("Killing", f"Container {self.name} failed {failed} probe{what_next}")
        self.send(signal.SIGTERM)

    def _set_started(self) -> None:
        self.status["started"] = True
        self.pod.world.changed()

    def _set_ready(self, ready: bool) -> None:
        self.status["ready"] = ready
        self.pod.update_ready()

    def _port(self, wanted: int | str) -> int:
        """The real port behind a probe's number or name."""
        for port in self.spec.get("ports", []):
            if wanted in (port.get("name"), port["containerPort"]):
                return self.pod.endpoint.ports[port["containerPort"]]
        return int(wanted)


def _cannot_start(program: str, environment: Mapping[str, str], folder: Path) -> str | None:
    """Why a program cannot be started, in a container runtime's words; None when it can."""
    if "/" not in program:
        if shutil.which(program, path=environment.get("PATH", os.defpath)) is None:
            return f'exec: "{program}": executable file not found in $PATH'
        return None
    file = folder / program
    if not file.exists():
        return f'exec: "{program}": stat {program}: no such file or directory'
    if file.is_dir() or not os.access(file, os.X_OK):
        return f'exec: "{program}": permission denied'
    return None
