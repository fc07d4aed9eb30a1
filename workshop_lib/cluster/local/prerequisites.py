"""What a laptop offers in place of a cluster: the same questions, and why some are not asked."""

from __future__ import annotations

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.cluster.local.network import is_free
from workshop_lib.cluster.local.paths import StatePaths

__all__ = ["check_prerequisites"]

_NOT_ASKED = {
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


def check_prerequisites(paths: StatePaths) -> CheckList:
    """Whether this machine can play the components of a state."""
    room = capacity()
    memory_gib, disk_gib = room["memory"] / 2**30, room["ephemeral-storage"] / 2**30
    address = f"{paths.network}.254"
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
            *(Check(name, None, why, applies=False) for name, why in _NOT_ASKED.items()),
        ]
    )
