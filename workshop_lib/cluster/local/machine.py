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


def _limits(file: str) -> Iterator[list[str]]:
    """A cgroup file's words, of this process's group and of those above it, where it sets one."""
    group = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        group = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    for each in (CGROUPS / group, *(CGROUPS / group).parents):
        with contextlib.suppress(OSError):
            words = (each / file).read_text().split() if each.is_relative_to(CGROUPS) else []
            if words and words[0] != "max":
                yield words


def capacity() -> dict[str, float]:
    """What this machine offers: `cpu` in cores, memory and disk in bytes, GPUs by number.

    A container of limited size counts as what its limits are (`cpu.max`, `memory.max`).

    Example:
        >>> capacity()["cpu"] > 0
        True
    """
    cpu = float(len(os.sched_getaffinity(0)))
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    gpus = sum(re.fullmatch(r"nvidia\d+", each.name) is not None for each in Path("/dev").iterdir())
    return {
        "cpu": min([cpu, *(float(quota) / float(period) for quota, period in _limits("cpu.max"))]),
        "memory": min([memory, *(float(limit) for (limit,) in _limits("memory.max"))]),
        "ephemeral-storage": float(shutil.disk_usage("/tmp").free),
        "nvidia.com/gpu": float(gpus),
    }


def unschedulable(
    wanted: Mapping[str, float], running: Iterable[Mapping[str, float]]
) -> str | None:
    """Why a pod cannot be placed beside others, in Kubernetes 1.36's words; None when it can."""
    offered, placed = capacity(), list(running)
    used = {name: sum(pod.get(name, 0.0) for pod in placed) for name in wanted}
    missing = [
        name
        for name, amount in sorted(wanted.items())
        if amount > 0 and amount + used[name] > offered.get(name, 0.0) + 1e-9
    ]
    if not missing:
        return None
    reasons = ", ".join(f"1 Insufficient {name}" for name in missing)
    # What the node never has cannot be got by preempting other pods; what it has is held by
    # pods of the same priority.
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
