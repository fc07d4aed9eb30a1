"""Services with an address of their own: connections go to ready pods, in turn.

One program for all Services of a state: `python -m workshop_lib.cluster.local.service_proxy
HOME STATE`. It plays the part of kube-proxy, one connection at a time to the next
ready pod that the selector names. A Service without a ready pod closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.network import AddressBook
from workshop_lib.cluster.local.objects import all_objects
from workshop_lib.cluster.local.paths import StatePaths
from workshop_lib.cluster.local.records import live_pods
from workshop_lib.errors import ClusterError

__all__ = ["main", "ready_targets"]

Address = tuple[str, int]


def ready_targets(
    paths: StatePaths, book: AddressBook, service: Mapping[str, Any], port: Mapping[str, Any]
) -> list[Address]:
    """Address and port of every ready pod behind one port of a Service.

    Args:
        paths: The state's files.
        book: The state's addresses.
        service: The Service.
        port: One entry of its `spec.ports`.
    """
    selector = service["spec"].get("selector") or {}
    unready_too = service["spec"].get("publishNotReadyAddresses", False)
    by_ip = book.by_ip()
    found = []
    for pod in live_pods(paths):
        status = pod["status"]
        conditions = {c["type"]: c["status"] for c in status["conditions"]}
        ready = conditions.get("Ready") == "True" or (unready_too and status["phase"] == "Running")
        if "deletionTimestamp" in pod["metadata"]:
            continue  # it still ends what it began, and gets nothing new
        if not ready or not selector or selector.items() - pod["metadata"]["labels"].items():
            continue
        number = _target_port(port.get("targetPort", port["port"]), pod)
        if number is not None and status["podIP"] in by_ip:
            ports = by_ip[status["podIP"]].ports
            found.append((status["podIP"], ports.get(number, number)))
    return found


def _target_port(wanted: int | str, pod: Mapping[str, Any]) -> int | None:
    """A pod's port by its number or name; None when it has none of that name."""
    for container in pod["spec"]["containers"]:
        for entry in container.get("ports", []):
            if entry.get("name") == wanted:
                return int(entry["containerPort"])
    return wanted if isinstance(wanted, int) else None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


class Proxy:
    """Listens for every Service of one state.

    Args:
        paths: The state's files.
    """

    def __init__(self, paths: StatePaths) -> None:
        self.paths = paths
        self.book = AddressBook(paths)
        self._servers: dict[Address, asyncio.Server] = {}
        self._behind: dict[Address, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._turns: dict[Address, int] = {}

    async def reconcile(self) -> None:
        """Listen where a Service is, stop where it no longer is."""
        self._behind = self._wanted()
        for address in set(self._servers) - set(self._behind):
            self._servers.pop(address).close()
        for address in set(self._behind) - set(self._servers):
            # A port that is still taken is tried again in the next round.
            with contextlib.suppress(OSError):
                self._servers[address] = await self._listen(address)

    def _wanted(self) -> dict[Address, tuple[dict[str, Any], dict[str, Any]]]:
        wanted: dict[Address, tuple[dict[str, Any], dict[str, Any]]] = {}
        for service in all_objects(self.paths, "Service"):
            own = self.book.find(f"Service/{service['metadata']['name']}")
            for port in service["spec"].get("ports", []):
                if own and port["port"] in own.ports:  # else it is being changed at this moment
                    wanted[(own.ip, own.ports[port["port"]])] = (service, port)
        return wanted

    async def _listen(self, address: Address) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._connect(reader, writer, address)
            finally:
                writer.close()

        return await asyncio.start_server(serve, *address)

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address
    ) -> None:
        if address not in self._behind:
            return
        targets = ready_targets(self.paths, self.book, *self._behind[address])
        turn = self._turns[address] = self._turns.get(address, -1) + 1
        # A pod that just went away is skipped; the next one may still be there.
        for offset in range(len(targets)):
            try:
                pod_reader, pod_writer = await asyncio.open_connection(
                    *targets[(turn + offset) % len(targets)]
                )
            except OSError:
                continue
            try:
                await asyncio.gather(_pump(reader, pod_writer), _pump(pod_reader, writer))
            finally:
                pod_writer.close()
            return


async def _run(paths: StatePaths) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    processes.end_with_parent()
    proxy = Proxy(paths)
    while not stop.is_set():
        try:
            await proxy.reconcile()
        except (ClusterError, OSError) as error:
            print(f"looking for services failed, trying again: {error}", flush=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.25)


def main(arguments: list[str]) -> int:
    """Serve one state's Services until told to stop: HOME STATE."""
    home, state = arguments
    asyncio.run(_run(StatePaths(Path(home), state)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
