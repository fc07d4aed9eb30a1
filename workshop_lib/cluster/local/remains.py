"""What of a state is still there: objects, processes, open ports."""

from __future__ import annotations

import os
from pathlib import Path

from workshop_lib.cluster.kube import WORKLOAD_KINDS
from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.changes import key_of
from workshop_lib.cluster.local.network import AddressBook
from workshop_lib.cluster.local.objects import all_objects
from workshop_lib.cluster.local.paths import StatePaths
from workshop_lib.cluster.records import Remains

__all__ = ["listening", "remains"]

LISTEN = "0A"
"""The state of a listening socket in the kernel's table."""

KEPT = "PersistentVolumeClaim"


def listening(network: str) -> list[str]:
    """Addresses in a network of this machine where something listens, as `ip:port`.

    Args:
        network: Its first three bytes, such as `127.20.3`.

    Example:
        >>> listening("127.255.255")
        []
    """
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        address, port = local.split(":")
        ip = ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
        if state == LISTEN and ip.startswith(f"{network}."):
            found.append(f"{ip}:{int(port, 16)}")
    return sorted(found)


def remains(paths: StatePaths, book: AddressBook) -> Remains:
    """What of a state is still there.

    Processes and ports that belong to an object are not named beside it: what is named is
    what no object accounts for. Without objects that run, that is every one of the state.

    Args:
        paths: The state's files.
        book: Its addresses.
    """
    bodies = all_objects(paths)
    objects = sorted(key_of(body) for body in bodies if body["kind"] != KEPT)
    claims = sorted(body["metadata"]["name"] for body in bodies if body["kind"] == KEPT)
    workloads = [key_of(body) for body in bodies if body["kind"] in WORKLOAD_KINDS]
    services = any(body["kind"] == "Service" for body in bodies)
    known = book.by_ip() if paths.runtime.is_dir() and (workloads or services) else {}
    ports = [each for each in listening(paths.network) if each.rpartition(":")[0] not in known]
    return Remains(
        tuple(objects), tuple(_processes(paths, workloads, services=services)), tuple(ports),
        tuple(claims),
    )  # fmt: skip


def _processes(paths: StatePaths, workloads: list[str], *, services: bool) -> list[str]:
    """The state's processes that no object accounts for."""
    found = processes.mentioning(paths.runtime)
    if workloads or services:
        begin = os.fsencode(f"{paths.runtime}:")
        ours = [os.fsencode(f"{paths.runtime}:{key}") for key in workloads]
        marked = {pid: [w for w in processes.command_line(pid) if w.startswith(begin)]
                  for pid in found}  # fmt: skip
        found = [pid for pid, marks in marked.items() if marks and marks[0] not in ours]
    lines = {pid: b" ".join(processes.command_line(pid)).decode(errors="replace") for pid in found}
    return [f"process {pid}: {line[:80]}" for pid, line in lines.items()]
