"""Probes: the three ways to ask a container how it is, and what follows from the answers."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.orphans import PROBE_MARK

__all__ = ["Prober", "check_exec", "check_http", "check_tcp"]


def check_tcp(ip: str, port: int, timeout_s: float) -> str | None:
    """What is wrong with connecting to a port, or None."""
    try:
        socket.create_connection((ip, port), timeout_s).close()
    except OSError as error:
        return f"dial tcp {ip}:{port}: {_reason(error)}"
    return None


def check_http(ip: str, port: int, path: str, timeout_s: float) -> str | None:
    """What is wrong with a GET, or None: a status from 200 to 399 is well."""
    connection = http.client.HTTPConnection(ip, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"User-Agent": "kube-probe"})
        status = connection.getresponse().status
    except ConnectionRefusedError as error:
        return f'Get "http://{ip}:{port}{path}": dial tcp {ip}:{port}: {_reason(error)}'
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f'Get "http://{ip}:{port}{path}": {_reason(error)}'
    finally:
        connection.close()
    return None if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connect: connection refused"
    return str(error) or type(error).__name__


async def check_exec(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout_s: float
) -> str | None:
    """What is wrong with running a command in the container's environment, or None."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, env={**environment, PROBE_MARK: "1"}, cwd=folder, start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        return f"command {command[0]!r} did not start: {error}"
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        return f"command timed out: {' '.join(command)[:80]!r} timed out after {timeout_s:g}s"
    finally:
        if process.returncode is None:
            for pid in [process.pid, *processes.descendants(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await process.wait()
    return None if process.returncode == 0 else output.decode(errors="replace").strip()[-200:]


@dataclass
class Prober:
    """Runs the probes of one container while it runs.

    Attributes:
        container: The container's spec.
        ip: The pod's address.
        port: Returns the real port behind a probe's number or name.
        execute: Runs a command in the container; what is wrong, or None.
        say: Takes an event's reason and message about a failed probe.
        on_started: Called when the startup probe has succeeded.
        on_ready: Called with every change of readiness.
    """

    container: Mapping[str, Any]
    ip: str
    port: Callable[[int | str], int]
    execute: Callable[[Sequence[str], float], Any]
    say: Callable[[str, str], None]
    on_started: Callable[[], None]
    on_ready: Callable[[bool], None]

    async def run(self) -> str:
        """Startup first; then readiness and liveness side by side.

        Returns:
            The probe for whose sake the container must be restarted, `startup` or
            `liveness`; without such a failure it runs until it is cancelled.
        """
        self._began = time.monotonic()
        startup = self.container.get("startupProbe")
        if startup and not await self._until_started(startup):
            return "startup"
        self.on_started()
        readiness = self.container.get("readinessProbe")
        if not readiness:
            self.on_ready(True)
        watching = asyncio.create_task(self._watch_readiness(readiness)) if readiness else None
        try:
            if liveness := self.container.get("livenessProbe"):
                await self._until_unhealthy(liveness)
                return "liveness"
            if watching:
                await watching
            await asyncio.Event().wait()
            return ""
        finally:
            if watching:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching

    async def _initial_delay(self, probe: Mapping[str, Any]) -> None:
        """Wait for a probe's `initialDelaySeconds`, which begin with the container."""
        passed_s = time.monotonic() - self._began
        await asyncio.sleep(max(0.0, probe.get("initialDelaySeconds", 0) - passed_s))

    async def _until_started(self, probe: Mapping[str, Any]) -> bool:
        await self._initial_delay(probe)
        failures = 0
        while (problem := await self._check(probe)) is not None:
            failures += 1
            self.say("Unhealthy", f"Startup probe failed: {problem}")
            if failures >= probe.get("failureThreshold", 3):
                return False
            await asyncio.sleep(probe.get("periodSeconds", 10))
        return True

    async def _watch_readiness(self, probe: Mapping[str, Any]) -> None:
        await self._initial_delay(probe)
        period_s = probe.get("periodSeconds", 10)
        failures = successes = 0
        # Until it is ready for the first time, failures decide nothing: asking more often
        # at first spares a learner the wait for the next period.
        wait_s = 0.1
        while True:
            problem = await self._check(probe)
            failures, successes = (0, successes + 1) if problem is None else (failures + 1, 0)
            if problem is not None:
                self.say("Unhealthy", f"Readiness probe failed: {problem}")
            if successes >= probe.get("successThreshold", 1):
                self.on_ready(True)
            elif failures >= probe.get("failureThreshold", 3):
                self.on_ready(False)
            wait_s = period_s if problem is None else min(2 * wait_s, period_s)
            await asyncio.sleep(wait_s)

    async def _until_unhealthy(self, probe: Mapping[str, Any]) -> None:
        await self._initial_delay(probe)
        failures = 0
        while True:
            problem = await self._check(probe)
            failures = 0 if problem is None else failures + 1
            if problem is not None:
                self.say("Unhealthy", f"Liveness probe failed: {problem}")
            if failures >= probe.get("failureThreshold", 3):
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _check(self, probe: Mapping[str, Any]) -> str | None:
        """Run a probe once; what is wrong, or None."""
        timeout_s = float(probe.get("timeoutSeconds", 1))
        if "exec" in probe:
            answer: str | None = await self.execute(probe["exec"]["command"], timeout_s)
            return answer
        action = probe.get("httpGet") or probe["tcpSocket"]
        port = self.port(action["port"])
        if "tcpSocket" in probe:
            return await asyncio.to_thread(check_tcp, self.ip, port, timeout_s)
        path = action.get("path", "/")
        return await asyncio.to_thread(check_http, self.ip, port, path, timeout_s)
