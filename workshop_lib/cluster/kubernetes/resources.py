"""Kinds of objects: where the API server keeps them, and which operator brings them."""

from __future__ import annotations

from dataclasses import dataclass

from workshop_lib.cluster.kube import Json
from workshop_lib.errors import ManifestError

__all__ = ["ADMINISTRATION", "DELETE_ORDER", "OPERATORS", "Resource", "operator_hint",
           "resource_of", "resource_of_kind"]  # fmt: skip


@dataclass(frozen=True)
class Resource:
    """A kind of object, as the API server knows it; `plural`: its name in paths and permissions."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group, empty for the core one."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str, name: str = "") -> str:
        """Path of the collection, or of one object of it."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        where = f"/namespaces/{namespace}" if self.namespaced else ""
        return f"{root}{where}/{self.plural}" + (f"/{name}" if name else "")


_NAMESPACED = {
    "v1": "ResourceQuota LimitRange ServiceAccount Secret ConfigMap PersistentVolumeClaim Service "
    "Pod Event",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding",
    "networking.k8s.io/v1": "NetworkPolicy",
    "batch/v1": "Job",
    "apps/v1": "Deployment ReplicaSet",
    "discovery.k8s.io/v1": "EndpointSlice",
    "ray.io/v1": "RayCluster RayService RayJob",
    "monitoring.coreos.com/v1": "ServiceMonitor PodMonitor PrometheusRule",
}
_CLUSTER_WIDE = {
    "v1": "Namespace Node PersistentVolume",
    "storage.k8s.io/v1": "StorageClass",
    "rbac.authorization.k8s.io/v1": "ClusterRole ClusterRoleBinding",
}


def _plural(kind: str) -> str:
    word = kind.lower()
    if word.endswith("y"):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith("s") else f"{word}s"


_BY_KIND = {
    kind: Resource(version, kind, _plural(kind), namespaced)
    for namespaced, groups in ((True, _NAMESPACED), (False, _CLUSTER_WIDE))
    for version, kinds in groups.items()
    for kind in kinds.split()
}

ADMINISTRATION = (
    "NetworkPolicy", "RoleBinding", "Role", "ServiceAccount", "LimitRange", "ResourceQuota",
    "ClusterRoleBinding", "ClusterRole", "StorageClass", "PersistentVolume",
)  # fmt: skip
"""What an administrator applies for learners: it goes with its component, never with `clean`."""

DELETE_ORDER = (
    "RayService", "RayJob", "RayCluster", "Deployment", "Job",
    "ServiceMonitor", "PodMonitor", "PrometheusRule", "Service", "ConfigMap", "Secret",
    *ADMINISTRATION,
)  # fmt: skip
"""The kinds that `delete` looks for, in its order: what uses something goes before it."""

OPERATORS = {
    "ray.io": (
        "the KubeRay operator",
        "kuberay-operator",
        "helm install kuberay-operator kuberay-operator "
        "--repo https://ray-project.github.io/kuberay-helm --version 1.7.1",
    ),
    "monitoring.coreos.com": (
        "the Prometheus operator",
        "PrometheusOperator",
        "helm install monitoring kube-prometheus-stack --namespace monitoring --create-namespace "
        "--repo https://prometheus-community.github.io/helm-charts",
    ),
}
"""API group to its operator: in words, as it signs what it writes, and how it is installed."""


def resource_of(body: Json) -> Resource:
    """Where an object belongs; a kind that the workshop does not use is refused."""
    resource = _BY_KIND.get(str(body.get("kind")))
    if resource is None or resource.api_version != body.get("apiVersion"):
        raise ManifestError(
            f"{body.get('kind')} of {body.get('apiVersion')}: the workshop applies no such kind; "
            f"it knows {', '.join(sorted(_BY_KIND))}"
        )
    return resource


def resource_of_kind(kind: str) -> Resource:
    """Like `resource_of`, when only the kind is known."""
    if kind not in _BY_KIND:
        raise ManifestError(f"the workshop knows no kind {kind!r}; it knows {sorted(_BY_KIND)}")
    return _BY_KIND[kind]


def operator_hint(resource: Resource) -> str:
    """Which operator brings a kind, and how it is installed."""
    operator, _, command = OPERATORS.get(resource.group, ("its operator", "", ""))
    how = f": {command}" if command else ""
    return f"{operator} is not installed here; who administers the cluster installs it with{how}"
