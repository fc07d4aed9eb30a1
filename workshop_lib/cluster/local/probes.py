"""Probes: asking a container over HTTP how it is, as a kubelet does, and what follows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

__all__ = ["watch"]


async def watch(
    container: Mapping[str, Any],
    ip: str,
    port: Callable[[int | str], int],
    tell: Callable[[str], None],
    status: dict[str, Any],
) -> str:
    """Run a container's probes: startup first; then readiness and liveness side by side.

    It sets `started` and `ready` in the container's status, and returns the probe for whose sake
    the container must be stopped; without such a failure it runs until it is cancelled.
    """

    async def ask(kind: str) -> AsyncIterator[tuple[int, int]]:
        """After each time a probe was run: its failures in a row, and how many are too many."""
        probe = container.get(f"{kind}Probe")
        failures, wait_s = 0, 0.1
        while probe:
            number, path = port(probe["httpGet"]["port"]), probe["httpGet"].get("path", "/")
            problem = await _problem(ip, number, path, float(probe.get("timeoutSeconds", 1)))
            failures = failures + 1 if problem else 0
            if problem:
                tell(f"{kind.capitalize()} probe failed: {problem}")
            yield failures, probe.get("failureThreshold", 3)
            # Until it is ready, failures of readiness decide nothing: asking more often at first
            # spares a learner the wait for the next period.
            period_s = float(probe.get("periodSeconds", 10))
            wait_s = min(2 * wait_s, period_s) if kind == "readiness" and failures else period_s
            await asyncio.sleep(wait_s)

    async def watch_readiness() -> None:
        async for failures, limit in ask("readiness"):
            if failures in (0, limit):
                status["ready"] = failures == 0

    async for failures, limit in ask("startup"):
        if failures == limit:
            return "startup"
        if failures == 0:
            break
    status["started"] = True
    if "readinessProbe" not in container:
        status["ready"] = True
    watching = asyncio.create_task(watch_readiness())
    try:
        async for failures, limit in ask("liveness"):
            if failures == limit:
                return "liveness"
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never
    finally:
        watching.cancel()


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
