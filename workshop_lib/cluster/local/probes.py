"""Probes: asking a container over HTTP how it is, as a kubelet does, and what follows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Prober"]


class Prober:
    """Runs the probes of one container while it runs.

    Args:
        container: The container's spec.
        ip: The pod's address.
        port: Returns the real port behind a probe's number or name.
        fail: Takes what a failed probe has to say.
        started: Called when the startup probe has succeeded.
        ready: Called with each answer about readiness.
    """

    def __init__(
        self,
        container: Mapping[str, Any],
        ip: str,
        port: Callable[[int | str], int],
        *,
        fail: Callable[[str], None],
        started: Callable[[], None],
        ready: Callable[[bool], None],
    ) -> None:
        self._container = container
        self._ip = ip
        self._port = port
        self._fail = fail
        self._started = started
        self._ready = ready
        self._began = time.monotonic()

    async def run(self) -> str:
        """Startup first; then readiness and liveness side by side.

        Returns:
            The probe for whose sake the container must be stopped, `startup` or `liveness`;
            without such a failure it runs until it is cancelled.
        """
        startup, readiness, liveness = (
            self._container.get(f"{kind}Probe") for kind in ("startup", "readiness", "liveness")
        )
        if startup and not await self._until_started(startup):
            return "startup"
        self._started()
        if not readiness:
            self._ready(True)
        watching = asyncio.create_task(self._watch_readiness(readiness)) if readiness else None
        try:
            await (self._until_unhealthy(liveness) if liveness else asyncio.Event().wait())
            return "liveness"
        finally:
            if watching:
                watching.cancel()

    async def _initial_delay(self, probe: Mapping[str, Any]) -> None:
        """Wait for a probe's `initialDelaySeconds`, which begin with the container."""
        passed_s = time.monotonic() - self._began
        await asyncio.sleep(max(0.0, probe.get("initialDelaySeconds", 0) - passed_s))

    async def _until_started(self, probe: Mapping[str, Any]) -> bool:
        await self._initial_delay(probe)
        failures = 0
        while await self._fails(probe, "Startup"):
            failures += 1
            if failures >= probe.get("failureThreshold", 3):
                return False
            await asyncio.sleep(probe.get("periodSeconds", 10))
        return True

    async def _until_unhealthy(self, probe: Mapping[str, Any]) -> None:
        await self._initial_delay(probe)
        failures = 0
        while True:
            failures = failures + 1 if await self._fails(probe, "Liveness") else 0
            if failures >= probe.get("failureThreshold", 3):
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _watch_readiness(self, probe: Mapping[str, Any]) -> None:
        await self._initial_delay(probe)
        period_s = probe.get("periodSeconds", 10)
        failures = 0
        # Until it is ready for the first time, failures decide nothing: asking more often
        # at first spares a learner the wait for the next period.
        wait_s = 0.1
        while True:
            failures = failures + 1 if await self._fails(probe, "Readiness") else 0
            if failures in (0, probe.get("failureThreshold", 3)):
                self._ready(failures == 0)
            wait_s = min(2 * wait_s, period_s) if failures else period_s
            await asyncio.sleep(wait_s)

    async def _fails(self, probe: Mapping[str, Any], kind: str) -> bool:
        """Run a probe once."""
        action = probe["httpGet"]
        port, path = self._port(action["port"]), action.get("path", "/")
        problem = await _http_problem(self._ip, port, path, float(probe.get("timeoutSeconds", 1)))
        if problem is not None:
            self._fail(f"{kind} probe failed: {problem}")
        return problem is not None


async def _http_problem(ip: str, port: int, path: str, timeout_s: float) -> str | None:
    """What is wrong with a GET, in a kubelet's words, or None: a status from 200 to 399 is well."""
    url = f'Get "http://{ip}:{port}{path}"'
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(ip, port)
            request = f"GET {path} HTTP/1.1\r\nHost: {ip}:{port}\r\nUser-Agent: kube-probe/1.36\r\n"
            writer.write(f"{request}Connection: close\r\n\r\n".encode())
            status = int((await reader.readline()).split()[1])
    except ConnectionRefusedError:
        return f"{url}: dial tcp {ip}:{port}: connect: connection refused"
    except TimeoutError:
        late = "(Client.Timeout exceeded while awaiting headers)"
        return f"{url}: context deadline exceeded {late}"
    except (OSError, ValueError, IndexError) as error:
        return f"{url}: {'EOF' if isinstance(error, IndexError) else error}"
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    return None if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"
