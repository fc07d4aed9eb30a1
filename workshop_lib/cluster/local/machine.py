"""This machine as a Kubernetes node: what it has, whether a pod fits beside the others."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.local.network import is_free

__all__ = ["capacity", "check_prerequisites", "unschedulable"]

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


NOT_ASKED = {
    "Kubernetes 1.33 or newer": "this machine plays the manifests itself: there is no API server",
    "NVIDIA device plugin": "no GPU is asked for: Ray counts logical ones here",
    "EFA device plugin": "processes of one machine talk over loopback",
    "KubeRay is installed": "RayCluster and RayService are played without the operator",
    "storage class": "claims are folders",
    "quota for the largest component": "nobody shares this machine through a quota",
    "the rights of a learner": "the machine is yours",
    "images can be pulled": "no container runs: programs come from this environment",
    "Karpenter NodePools are ready": "there is one node, this one",
}


def check_prerequisites(network: str) -> CheckList:
    """What is asked of a cluster, asked of this machine, whose pods get addresses of a network."""
    room = capacity()
    memory_gib, disk_gib = room["memory"] / 2**30, room["ephemeral-storage"] / 2**30
    address = f"{network}.254"
    return CheckList(
        [
            Check(
                "nodes are ready",
                room["cpu"] >= 2 and memory_gib >= 12 and disk_gib >= 4,
                f"this machine: {room['cpu']:g} cores, {memory_gib:.1f} GiB, "
                f"{disk_gib:.1f} GiB free in /tmp",
                "two cores, 12 GiB of memory and 4 GiB in /tmp are needed; see README",
            ),
            Check(
                "pods can have addresses",
                is_free(address, 0),
                f"a server can listen on {address}",
                "all of 127.0.0.0/8 has to be this machine, as on Linux (macOS has 127.0.0.1 only)",
            ),
            *(Check(name, None, why, applies=False) for name, why in NOT_ASKED.items()),
        ]
    )
