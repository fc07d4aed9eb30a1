"""This machine as a Kubernetes node: what it has, what is free, quantities.

A pod is placed when its requests fit beside those of the pods that run, as the
kube-scheduler decides; what does not fit is Pending, with the scheduler's words.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["capacity", "is_port_free", "unschedulable"]


def capacity() -> dict[str, float]:
    """What this machine offers: `cpu` in cores, memory and disk in bytes, GPUs by number."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # a container of this size; "max" is none
        memory = min(memory, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    gpus = sum(
        re.fullmatch(r"nvidia\d+", entry.name) is not None for entry in Path("/dev").iterdir()
    )
    return {
        "cpu": _cores(),
        "memory": memory,
        "ephemeral-storage": float(shutil.disk_usage("/tmp").free),
        "nvidia.com/gpu": float(gpus),
    }


def _cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """The cores that this process may use; a container may have fewer than its machine."""
    cores = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):  # "max 100000": no limit
        quota_us, period_us = map(float, limit.read_text().split())
        cores = min(cores, quota_us / period_us)
    return cores


def unschedulable(
    wanted: Mapping[str, float], running: Iterable[Mapping[str, float]]
) -> str | None:
    """Why a pod cannot be placed, in the kube-scheduler's words; None when it can.

    The words are those of Kubernetes 1.36: what the node never has cannot be got by
    preempting other pods, and what it has is held by pods of the same priority.

    Args:
        wanted: The pod's requests.
        running: The requests of each pod that is placed.

    Example:
        >>> print(unschedulable({"example.com/gpu": 8.0}, []).split(". ")[0])
        0/1 nodes are available: 1 Insufficient example.com/gpu
    """
    offered = capacity()
    used: dict[str, float] = {}
    for pod in running:
        for name, amount in pod.items():
            used[name] = used.get(name, 0.0) + amount
    missing = [
        name
        for name, amount in sorted(wanted.items())
        if amount > 0 and amount + used.get(name, 0.0) > offered.get(name, 0.0) + 1e-9
    ]
    if not missing:
        return None
    reasons = ", ".join(f"1 Insufficient {name}" for name in missing)
    never = any(wanted[name] > offered.get(name, 0.0) for name in missing)
    preemption = (
        "1 Preemption is not helpful for scheduling."
        if never
        else "1 No preemption victims found for incoming pod."
    )
    return (
        f"0/1 nodes are available: {reasons}. no new claims to deallocate, "
        f"preemption: 0/1 nodes are available: {preemption}"
    )


def is_port_free(address: str, port: int) -> bool:
    """Whether a server could listen on this address and port now.

    Args:
        address: An IPv4 address of this machine; `0.0.0.0` asks for all of them.
        port: A port number.
    """
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT counts as free, a listening one does not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True
