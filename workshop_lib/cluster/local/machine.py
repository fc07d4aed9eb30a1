"""This machine as a Kubernetes node: what it has, and whether a pod fits beside the others."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

__all__ = ["capacity", "unschedulable"]

CGROUPS = Path("/sys/fs/cgroup")


def _cgroup_values(file: str) -> Iterator[list[str]]:
    """A cgroup file's words, of this process's group and of those above it that have the file."""
    group = "/"
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next((line[3:] for line in lines if line.startswith("0::")), group)
    folder = CGROUPS / group.lstrip("/")
    for each in (folder, *folder.parents):
        if each.is_relative_to(CGROUPS):
            with contextlib.suppress(OSError):
                yield (each / file).read_text().split()


def capacity() -> dict[str, float]:
    """What this machine offers: `cpu` in cores, memory and disk in bytes, GPUs by number.

    A container of limited size counts as what its limits are (`cpu.max`, `memory.max`).

    Example:
        >>> capacity()["cpu"] > 0
        True
    """
    cpu = float(len(os.sched_getaffinity(0)))
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for quota, period in (words for words in _cgroup_values("cpu.max") if len(words) == 2):
        cpu = cpu if quota == "max" else min(cpu, float(quota) / float(period))
    for (limit,) in (words for words in _cgroup_values("memory.max") if len(words) == 1):
        memory = memory if limit == "max" else min(memory, float(limit))
    gpus = sum(re.fullmatch(r"nvidia\d+", each.name) is not None for each in Path("/dev").iterdir())
    return {
        "cpu": cpu,
        "memory": memory,
        "ephemeral-storage": float(shutil.disk_usage("/tmp").free),
        "nvidia.com/gpu": float(gpus),
    }


def unschedulable(
    wanted: Mapping[str, float], running: Iterable[Mapping[str, float]]
) -> str | None:
    """Why a pod cannot be placed, in the kube-scheduler's words; None when it can.

    The words are those of Kubernetes 1.36: what the node never has cannot be got by
    preempting other pods, and what it has is held by pods of the same priority.

    Args:
        wanted: The pod's requests by resource.
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
