"""The workshop on a Kubernetes cluster: the same manifests, through its API.

`KubernetesCluster` speaks the protocol of `workshop_lib.cluster.base.Cluster`.
"""

from __future__ import annotations

from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster

__all__ = ["KubernetesCluster"]
