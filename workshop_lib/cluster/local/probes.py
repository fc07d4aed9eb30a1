"""Probes: asking a container over HTTP how it is, as a kubelet does, and what follows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

__all__ = ["Prober"]


class Prober:
    """Runs the probes of one container while it runs.

    Args:
        container: The container's spec.
        ip: The pod's address.
        port: Returns the real port behind a probe's number or name.
        tell: Takes what a failed probe has to say.
        status: The container's status, whose `started` and `ready` it sets.
    """

    def __init__(
        self,
        container: Mapping[str, Any],
        ip: str,
        port: Callable[[int | str], int],
        tell: Callable[[str], None],
        status: dict[str, Any],
    ) -> None:
        self._container, self._ip, self._port = container, ip, port
        self._tell, self._status = tell, status

    async def run(self) -> str:
        """Startup first; then readiness and liveness side by side.

        Returns:
            The probe for whose sake the container must be stopped, `startup` or `liveness`;
            without such a failure it runs until it is cancelled.
        """
        if "startupProbe" in self._container:
            async for failures, limit in self._ask("startup"):
                if failures == limit:
                    return "startup"
                if failures == 0:
                    break
        self._status["started"] = True
        if "readinessProbe" not in self._container:
            self._status["ready"] = True
        watching = asyncio.create_task(self._watch_readiness())
        try:
            async for failures, limit in self._ask("liveness"):
                if failures == limit:
                    return "liveness"
            never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            return await never
        finally:
            watching.cancel()

    async def _watch_readiness(self) -> None:
        async for failures, limit in self._ask("readiness"):
            if failures in (0, limit):
                self._status["ready"] = failures == 0

    async def _ask(self, kind: str) -> AsyncIterator[tuple[int, int]]:
        """After each time that a probe was run: its failures in a row, and how many are too many.

        Nothing when the container has no such probe.
        """
        probe = self._container.get(f"{kind}Probe")
        failures, wait_s = 0, 0.1
        while probe:
            port, path = self._port(probe["httpGet"]["port"]), probe["httpGet"].get("path", "/")
            problem = await _problem(self._ip, port, path, float(probe.get("timeoutSeconds", 1)))
            failures = failures + 1 if problem else 0
            if problem:
                self._tell(f"{kind.capitalize()} probe failed: {problem}")
            yield failures, probe.get("failureThreshold", 3)
            # Until it is ready, failures of readiness decide nothing: asking more often at first
            # spares a learner the wait for the next period.
            period_s = float(probe.get("periodSeconds", 10))
            hurry = kind == "readiness" and failures
            wait_s = min(2 * wait_s, period_s) if hurry else period_s
            await asyncio.sleep(wait_s)


async def _problem(ip: str, port: int, path: str, timeout_s: float) -> str | None:
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
