"""One lesson, two worlds: the cluster that a notebook asks for, wherever it runs.

`connect(PROFILE)` gives a `Cluster`. `LocalCluster` plays the manifests on this
machine; a Kubernetes cluster gets the same ones through its API. Both speak in
Kubernetes objects, so everything that reads them (waits, tables, plots, diagnosis)
is written once.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from workshop_lib.errors import ClusterError

if TYPE_CHECKING:
    from workshop_lib.checklist import CheckList
    from workshop_lib.cluster.workload import Workload
    from workshop_lib.production.diagnosis import Diagnosis

__all__ = ["Cluster", "ExecResult", "LogLine", "Observation", "Remains", "connect"]

WORKLOAD_KINDS = ("Job", "Deployment", "RayCluster", "RayService")
"""The kinds that have pods; a component's handle watches the last of them it holds."""


class LogLine(NamedTuple):
    """One line that a container wrote; a tuple, because logs have millions of them.

    Attributes:
        pod: The pod's name.
        rank: Its index in an Indexed Job, else None.
        container: The container's name.
        text: The line, without its end.
    """

    pod: str
    rank: int | None
    container: str
    text: str

    def __str__(self) -> str:
        who = self.pod if self.rank is None else f"rank {self.rank}"
        return f"[{who}] {self.text}"


@dataclass(frozen=True)
class ExecResult:
    """What a command in a container said.

    Attributes:
        exit_code: 0 when it succeeded.
        stdout: Its output.
        stderr: Its errors.
    """

    exit_code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        text = (self.stdout + self.stderr).rstrip()
        return text if self.exit_code == 0 else f"{text}\n(exit code {self.exit_code})".lstrip()


@dataclass(frozen=True)
class Observation:
    """A workload as it is now, in Kubernetes' own JSON.

    Attributes:
        body: The object with its `status`.
        pods: Its pods.
        events: Events about it and its pods, oldest first.
    """

    body: dict[str, Any]
    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Remains:
    """What of the workshop is there, by the workshop's own labels and marks.

    Attributes:
        objects: `Kind/name` of each object; volume claims apart.
        running: Pods, or on this machine processes, beside those of these objects.
        ports: Where something listens that no object accounts for; None where a cluster's
            ports are its pods' own.
        claims: Volume claims: data outlives what used it, on purpose.
    """

    objects: tuple[str, ...]
    running: tuple[str, ...]
    ports: tuple[str, ...] | None
    claims: tuple[str, ...] = ()


class Cluster(Protocol):
    """What a notebook can ask of a cluster, the same in every world."""

    profile: str

    def apply(self, component: str, /, **parameters: Any) -> Workload:
        """Render a component's manifests and make the cluster match them."""

    def get(self, component: str) -> Workload:
        """The handle of a component that was applied before, by this kernel or another."""

    def components(self) -> list[str]:
        """The names of the components that are applied; kept claims alone do not count."""

    def observe(self, kind: str, name: str) -> Observation:
        """A workload as it is now."""

    def watch(self, kind: str, name: str) -> Generator[Observation, None, None]:
        """A workload as it is, and again after each change or a moment; close it when done."""

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
        """The lines that a workload's containers wrote."""

    def exec(
        self,
        pod: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Run a command in a pod; a name's beginning is enough when it fits one pod."""

    def forward(self, target: str, port: int) -> AbstractContextManager[str]:
        """A URL on this machine for a port of a Service or pod."""

    def snapshot(self, component: str | None = None) -> dict[str, Any]:
        """Everything that the diagnosis reads, as one JSON object; no Secret is in it."""

    def diagnose(self, component: str | None = None) -> Diagnosis:
        """What is wrong, the root cause first: cause, evidence, fix, and where it is taught."""

    def secret(self, name: str, key: str) -> str:
        """A Secret's value, for use and not for show."""

    def delete(self, component: str, *, claims: Sequence[str] = ()) -> None:
        """Remove what a component made; data in claims only when they are named."""

    def clean(self) -> None:
        """Remove everything that the workshop made here."""

    def remains(self) -> Remains:
        """What of the workshop is there: objects, pods or processes, ports."""

    def prerequisites(self) -> CheckList:
        """Whether this cluster has what the components of its profile need; changes nothing."""


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
