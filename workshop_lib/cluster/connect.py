"""The way into both worlds: `connect(PROFILE)` gives the cluster that a notebook works with."""

from __future__ import annotations

import os

from workshop_lib.cluster.base import Cluster
from workshop_lib.errors import ClusterError

__all__ = ["connect"]


def connect(
    profile: str = "local",
    *,
    state: str | None = None,
    namespace: str | None = None,
    context: str | None = None,
    kubeconfig: str | None = None,
) -> Cluster:
    """The cluster that a notebook works with.

    Args:
        profile: `local` plays the manifests on this machine; `eks` (GPU nodes) and `kind`
            (a small cluster without GPUs) apply them to the cluster of a kubeconfig.
        state: Name of the local cluster's state: two states know nothing of each
            other. Default: the environment variable `WORKSHOP_STATE`, else `default`.
        namespace: Where on a Kubernetes cluster; default: `WORKSHOP_NAMESPACE`, else the
            context's.
        context: The kubeconfig's context; default: its current one.
        kubeconfig: Its file; default: `KUBECONFIG`, else the usual one, else the pod's.

    Returns:
        The cluster. Nothing is started or changed by connecting; a Kubernetes cluster says
        which context, server and namespace it will touch.

    Raises:
        ClusterError: There is no such profile.
        ConnectError: A Kubernetes cluster cannot be reached with that configuration.

    Example:
        >>> connect("local").profile
        'local'
    """
    if profile == "local":
        from workshop_lib.cluster.local.cluster import LocalCluster

        return LocalCluster(state=state or os.environ.get("WORKSHOP_STATE", "default"))
    if profile in ("eks", "kind"):
        from workshop_lib.cluster.kubernetes import KubernetesCluster

        return KubernetesCluster(
            profile,
            kubeconfig=kubeconfig,
            context=context,
            namespace=namespace or os.environ.get("WORKSHOP_NAMESPACE"),
        )
    raise ClusterError(f"there is no profile {profile!r}; there are: local, eks, kind")
