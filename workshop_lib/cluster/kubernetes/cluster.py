"""`KubernetesCluster`: apply, read, follow, reach and delete through a Kubernetes API."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.base import Cluster, Workload, handle
from workshop_lib.cluster.kube import WORKLOAD_KINDS, component_of, events_about
from workshop_lib.cluster.kubernetes import deleting, logs, reaching, snapshot
from workshop_lib.cluster.kubernetes.access import load_access
from workshop_lib.cluster.kubernetes.answers import problem
from workshop_lib.cluster.kubernetes.api import Api
from workshop_lib.cluster.kubernetes.applying import Applier, prepared
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.manifests import Object
from workshop_lib.cluster.prices import announce
from workshop_lib.cluster.records import ExecResult, LogLine, Observation, Remains
from workshop_lib.errors import ConnectError, NotFoundError, WorkshopError
from workshop_lib.progress import Progress

if TYPE_CHECKING:
    from workshop_lib.checklist import CheckList

__all__ = ["KubernetesCluster"]

NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class KubernetesCluster(Cluster):
    """The workshop's manifests on a Kubernetes cluster.

    Connecting reads the kubeconfig, asks the server for its version and says which
    context, server and namespace will be touched; it changes nothing.

    Args:
        profile: Which overlays are applied: `eks` or `kind`.
        kubeconfig: The file; default: `$KUBECONFIG`, `~/.kube/config`, or the pod's own
            service account.
        context: A context of it; default: its current one.
        namespace: Where everything goes; default: the context's. It must be there.

    Raises:
        ConnectError: No configuration, no credentials that count, or no answer.

    Example:
        >>> cluster = KubernetesCluster("kind", namespace="ada")   # doctest: +SKIP
        context kind-kind, server https://127.0.0.1:6443 (v1.36.0), namespace ada
    """

    poll_s = 2.0

    def __init__(
        self,
        profile: str = "eks",
        *,
        kubeconfig: str | Path | None = None,
        context: str | None = None,
        namespace: str | None = None,
    ) -> None:
        self.profile = profile
        self._api = Api(lambda: load_access(profile, kubeconfig=kubeconfig, context=context))
        self.namespace = namespace or self._api.access.namespace
        try:
            if not NAMESPACE.fullmatch(self.namespace):
                raise ConnectError(
                    f"{self.namespace!r} is no namespace's name: at most 63 lower-case letters, "
                    "digits and '-'; correct it in the call, WORKSHOP_NAMESPACE or the context"
                )
            answer = self._api.request("GET", "/version")
            if answer.status in (400, 404):  # HTTP where TLS is spoken, or another server
                raise ConnectError(
                    f"{self.server} does not answer as a Kubernetes API server does "
                    f"({answer.status}: {answer.message}); correct `server` in the kubeconfig"
                )
            if not answer.ok:
                raise problem(answer, f"connecting to {self.server}")
        except WorkshopError:
            self.close()
            raise
        self.version = str(answer.json().get("gitVersion", "unknown"))
        print(self)

    def __repr__(self) -> str:
        access = self._api.access
        return (
            f"context {access.context}, server {access.server} ({self.version}), "
            f"namespace {self.namespace}"
        )

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self._api.access.server

    def close(self) -> None:
        """Close the connections that are kept for their next use."""
        self._api.close()

    # -- changing -------------------------------------------------------------------------------

    def apply(self, component: str, /, *, force: bool = False, **parameters: Any) -> Workload:
        """As every cluster's; first it says what the component costs an hour.

        The server checks every object (dry run, strict fields) before the first is changed.

        Args:
            component: A folder's name under `manifests/overlays/<profile>`.
            force: Take over fields that another manager has set.
            **parameters: Values for what its `parameters.yaml` names; None leaves one as it is.

        Raises:
            ClusterError: Somebody else has set the same fields, a rule or an operator is missing.
        """
        objects = manifests.render(self.profile, component, parameters)
        return self.apply_objects(component, objects, force=force)

    def apply_objects(
        self, component: str, objects: Sequence[Object], *, force: bool = False
    ) -> Workload:
        """Like `apply`, for objects rendered by the caller."""
        bodies = prepared(component, objects, self.namespace)
        if price := announce(self.profile, bodies):
            print(f"{component}: {price}")
        with Progress(label=f"applying {component}"):
            actions = Applier(self._api, self.namespace, component, force).apply(bodies)
        return handle(self, component, bodies, actions=actions)

    def delete(
        self, component: str, *, claims: Sequence[str] = (), timeout_s: float = 300.0
    ) -> None:
        """As every cluster's; a namespace stays, since its data would go with it."""
        deleting.delete(self._api, self.namespace, component, claims=claims, timeout_s=timeout_s)

    def clean(self, *, claims: Sequence[str] = (), timeout_s: float = 600.0) -> None:
        """Delete every component in this namespace; claims go only by name.

        What an administrator applied for it (quota, rights, network policies) stays.
        """
        kept = deleting.delete(self._api, self.namespace, None, claims=claims, timeout_s=timeout_s)
        if kept:
            print(f"kept, with their data: {', '.join(kept)}; clean(claims=[...]) deletes them")

    # -- reading --------------------------------------------------------------------------------

    def components(self) -> list[str]:
        """The names of the components in this namespace; kept claims alone do not count."""
        found = deleting.find(self._api, self.namespace, deleting.OWN_KINDS)
        return sorted({component_of(body) for body in found} - {""})

    def objects_of(self, component: str) -> list[dict[str, Any]]:
        """A component's objects as they were applied, volume claims apart."""
        found = deleting.find(self._api, self.namespace, WORKLOAD_KINDS, component)
        return found or deleting.find_component(self._api, self.namespace, component)

    def remains(self) -> Remains:
        """As every cluster's; what an administrator applied for the namespace does not count."""
        return deleting.remains(self._api, self.namespace)

    def observe(self, kind: str, name: str) -> Observation:
        """A workload as it is now: its object, pods and events."""
        body, pods = self._api.workload(self.namespace, kind, name)
        if kind not in WORKLOAD_KINDS:
            return Observation(body)
        events = self._api.list(resource_of_kind("Event"), self.namespace)
        return Observation(body, pods, events_about(body, pods, events))

    def logs(
        self,
        kind: str,
        name: str,
        *,
        follow: bool = False,
        previous: bool = False,
        tail: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[LogLine]:
        """As every cluster's, of a kind `Pod`, too; an answer that breaks off is read on."""
        return logs.read_logs(
            self._api, self.namespace, kind, name,
            follow=follow, previous=previous, tail=tail, timeout_s=timeout_s,
        )  # fmt: skip

    def take_snapshot(self) -> dict[str, Any]:
        """The namespace's objects, the nodes, and the ends of the pods' logs; no Secret."""
        return snapshot.take_snapshot(self._api, self.namespace)

    def secret(self, name: str, key: str) -> str:
        """A Secret's value, for use and not for show."""
        body = self._api.get(resource_of_kind("Secret"), self.namespace, name) or {}
        if (value := (body.get("data") or {}).get(key)) is None:
            raise NotFoundError(f"Secret/{name} with key {key!r} is not there; apply its component")
        return base64.b64decode(value).decode()

    def prerequisites(self) -> CheckList:
        """As every cluster's; what this user may not see is "cannot tell", and whom to ask."""
        from workshop_lib.cluster.kubernetes.prerequisites import check_prerequisites

        return check_prerequisites(self._api, self.namespace, self.profile, self.version)

    # -- reaching in ----------------------------------------------------------------------------

    def exec(
        self,
        pod: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """As every cluster's; the command is sent once, whatever happens to the connection."""
        return reaching.execute(self._api, self.namespace, pod, command, container, timeout_s)

    def forward(self, target: str, port: int) -> AbstractContextManager[str]:
        """As every cluster's; each connection finds its pod anew, so it survives a restart."""
        return reaching.forwarded(self._api, self.namespace, target, port)
