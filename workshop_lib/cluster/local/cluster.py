"""`LocalCluster`: apply, read, follow, forward and delete on this machine."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.base import Cluster, Workload, handle
from workshop_lib.cluster.kube import WORKLOAD_KINDS
from workshop_lib.cluster.local import changes, orphans, records, rules
from workshop_lib.cluster.local.changes import component_of, key_of
from workshop_lib.cluster.local.logs import read_logs
from workshop_lib.cluster.local.network import AddressBook, container_ports
from workshop_lib.cluster.local.objects import all_objects, find_object, object_file, store_object
from workshop_lib.cluster.local.paths import (
    Busy,
    StatePaths,
    checkout,
    locked,
    remove_tree,
    write_json,
)
from workshop_lib.cluster.local.podspec import object_data
from workshop_lib.cluster.local.ray_templates import HEAD_PORTS, port_list
from workshop_lib.cluster.local.reaching import address_of, execute, find_pod
from workshop_lib.cluster.local.remains import remains
from workshop_lib.cluster.local.snapshot import take_snapshot
from workshop_lib.cluster.local.supervisor import Supervisor
from workshop_lib.cluster.manifests import Object
from workshop_lib.cluster.records import ExecResult, LogLine, Observation, Remains
from workshop_lib.errors import ClusterError, NotFoundError

if TYPE_CHECKING:
    from workshop_lib.checklist import CheckList

__all__ = ["LocalCluster"]

LOCK_TIMEOUT_S = 180.0

PROXY = "service-proxy"

KEPT = "PersistentVolumeClaim"
"""The kind that stays when its component is deleted."""


class LocalCluster(Cluster):
    """Plays the workshop's manifests as processes of this machine.

    What it starts outlives the kernel, by design: the next notebook finds it. It ends
    at `delete`, `clean`, `make clean` or the end of `make run`.

    Args:
        state: The state's name; two states know nothing of each other.
        home: The checkout; default: the one this library lies in.
        restart_backoff_s: How long the second restart of a failed container waits, and a
            Job's first retry; kept with the state. Default: what it was, at first 10 s.

    Example:
        >>> cluster = LocalCluster(state="demo")
        >>> cluster.components()
        []
        >>> vllm = cluster.apply("vllm").wait_ready()        # doctest: +SKIP
        >>> print(cluster.exec("vllm", ["nproc"]))           # doctest: +SKIP
        >>> with cluster.forward("vllm", 8000) as url: ...   # doctest: +SKIP
        >>> cluster.delete("vllm")                           # doctest: +SKIP
    """

    profile = "local"

    def __init__(
        self,
        *,
        state: str = "default",
        home: Path | None = None,
        restart_backoff_s: float | None = None,
    ) -> None:
        self.paths = StatePaths((home or checkout()).resolve(), state)
        self.supervisor = Supervisor(self.paths)
        self.book = AddressBook(self.paths)
        self._settings = (
            {} if restart_backoff_s is None else {"restart_backoff_s": restart_backoff_s}
        )

    def __repr__(self) -> str:
        return f"LocalCluster(state={self.paths.state!r})"

    # -- changing -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the state's lock: two kernels may use one state, one at a time may change it."""
        folder = self.paths.folder
        try:
            with locked(self.paths.lock, timeout_s=LOCK_TIMEOUT_S):
                yield
        except Busy as error:
            raise ClusterError(
                f"state {self.paths.state!r} has been locked by {error} for {LOCK_TIMEOUT_S:g} s; "
                "wait for its apply or delete to end"
            ) from None
        except OSError as error:
            name = error.filename or folder
            raise ClusterError(f"{name}: {error.strerror}; the state is in {folder}") from error

    def apply(self, component: str, /, **parameters: Any) -> Workload:
        """Render a component's manifests and make this machine match them.

        Everything is checked before anything is started: a wrong manifest changes nothing.
        What is there already and has not changed is left alone.

        Args:
            component: A folder's name under `manifests/overlays/local`.
            **parameters: Values for what its `parameters.yaml` names; None leaves one as it is.

        Returns:
            Its handle; what was done is shown by it.

        Raises:
            ManifestError: The manifest or a parameter is wrong, or not played here.
            ClusterError: Something would change that cannot while it exists.

        Example:
            >>> LocalCluster(state="demo").apply("vllm", max_model_len=512)   # doctest: +SKIP
        """
        return self.apply_objects(component, manifests.render(self.profile, component, parameters))

    def apply_objects(self, component: str, objects: Sequence[Object]) -> Workload:
        """Like `apply`, for objects rendered by the caller.

        Args:
            component: The name under which they are known.
            objects: The objects, in the order in which they are applied.
        """
        bodies, notes = rules.checked(component, objects)
        with self._changing():
            old = {key_of(body): body for body in self._objects()}
            actions = {
                key_of(body): changes.action(old.get(key_of(body)), body, component)
                for body in bodies
            }
            self.paths.create()
            if self._settings:
                write_json(self.paths.settings, self._settings)
            for body in bodies:
                # A delete or clean that was interrupted may have left what ran under this name.
                if actions[key_of(body)] == "created" and body["kind"] in WORKLOAD_KINDS:
                    self._remove_workload(key_of(body))
            services = any(map(_has_address, [*old.values(), *bodies]))
            workloads = self._unfinished(bodies)
            if workloads or services:
                self.supervisor.start()  # before the objects are there: see `records.look`
            for body in bodies:
                if actions[key_of(body)] != "unchanged":
                    store_object(self.paths, component, body, old.get(key_of(body)))
            self._run(bodies, workloads, services=services)
        return handle(self, component, bodies, actions=actions, notes=notes)

    def _unfinished(self, bodies: Sequence[Mapping[str, Any]]) -> list[str]:
        """The workloads that have to run; a finished Job stays finished."""
        keys = [key_of(body) for body in bodies if body["kind"] in WORKLOAD_KINDS]
        return [key for key in keys if not records.is_over(records.read_status(self.paths, key))]

    def _run(
        self, bodies: Sequence[Mapping[str, Any]], workloads: Sequence[str], *, services: bool
    ) -> None:
        """See that what has to run runs; what runs already is left alone."""
        starting = [key for key in workloads if not self.supervisor.has_program(_program(key))]
        for body in bodies:
            self._assign_addresses(body, new=key_of(body) in starting)
        if services:
            self._start(PROXY, "workshop_lib.cluster.local.service_proxy")
        for key in workloads:
            if key in starting:
                records.reset_status(self.paths, key)
            self._start(_program(key), "workshop_lib.cluster.local.runner", key)

    def _start(self, program: str, module: str, *arguments: str) -> None:
        words = [sys.executable, "-m", module, str(self.paths.home), self.paths.state, *arguments]
        self.supervisor.start_program(program, words)

    def _assign_addresses(self, body: Mapping[str, Any], *, new: bool) -> None:
        """Addresses are known before the first pod starts, so every pod can be told of all."""
        kind, name, spec = body["kind"], body["metadata"]["name"], body.get("spec", {})
        if _has_address(body):
            # Without its program nobody of ours listens there.
            probe = not self.supervisor.has_program(PROXY)
            self.book.assign(f"Service/{name}", spec["ports"], probe=probe)
        elif kind == "Job":
            ports = container_ports(spec["template"]["spec"])
            for index in range(spec.get("completions", 1)):
                self.book.assign(f"Job/{name}/{index}", ports, probe=new)
        elif kind in ("RayCluster", "RayService"):
            self.book.assign(f"{kind}/{name}/head", port_list(HEAD_PORTS), probe=new)

    def delete(self, component: str, *, claims: Sequence[str] = ()) -> None:
        """Stop and remove what a component made; wait until it is gone.

        Args:
            component: The component's name; one that is not there is no error.
            claims: Names of its persistent volume claims whose data goes too. The model
                cache, which all checkouts share, keeps its files.

        Raises:
            NotFoundError: It has no such claim.
            ClusterError: Something could not be stopped.
        """
        with self._changing():
            bodies = [b for b in self._objects() if component_of(b) == component]
            known = [b["metadata"]["name"] for b in bodies if b["kind"] == KEPT]
            if unknown := sorted(set(claims) - set(known)):
                raise NotFoundError(
                    f"component {component!r} has no claim {unknown[0]!r}; it has "
                    f"{', '.join(known) or 'none'}"
                )
            if self.supervisor.identity() is None:
                self._stop_everything()  # what a killed one had may still run
            for body in bodies:
                if body["kind"] in WORKLOAD_KINDS:
                    self._remove_workload(key_of(body))
            for body in bodies:
                name = body["metadata"]["name"]
                if body["kind"] == KEPT:
                    if name not in claims:
                        continue
                    remove_tree(self.paths.claims / name)
                object_file(self.paths, body["kind"], name).unlink(missing_ok=True)
                if self.paths.runtime.is_dir():
                    self.book.release(key_of(body))
            if not any(b["kind"] in WORKLOAD_KINDS for b in self._objects()):
                self._stop_everything()

    def _remove_workload(self, key: str) -> None:
        program = _program(key)
        self.supervisor.stop_program(program)
        # A runner that was killed, not stopped, leaves its containers to the supervisor.
        self._refuse_survivors(orphans.end_shims(self.paths.runtime, key, grace_s=20.0))
        records.status_file(self.paths, key).unlink(missing_ok=True)
        remove_tree(self.paths.logs / program)
        for endpoint in self.book.below(key):
            # A pod's scratch folders are `v/<last byte of its address>-<volume>`.
            byte = endpoint.ip.rsplit(".", 1)[1]
            for folder in self.paths.volumes.glob(f"{byte}-*"):
                remove_tree(folder)

    def _stop_everything(self) -> None:
        self._refuse_survivors(self.supervisor.stop())

    def _refuse_survivors(self, left: Sequence[int]) -> None:
        if left:
            pids = ",".join(map(str, left))
            raise ClusterError(
                f"processes {pids} of state {self.paths.state!r} survived SIGKILL; "
                f"see what they wait for with: ps -o pid,stat,wchan,args -p {pids}"
            )

    def clean(self) -> None:
        """Stop and remove everything of this state, claims and logs included.

        Raises:
            ClusterError: Something could not be stopped or deleted.
        """
        if not self.paths.home.is_dir():  # the checkout was deleted or moved away
            self._stop_everything()
            self.paths.remove()
            return
        with self._changing():
            remove_tree(self.paths.objects)  # first: see `records.look`
            self._stop_everything()
            self.paths.remove()

    # -- reading ------------------------------------------------------------------------------

    def _objects(self) -> list[dict[str, Any]]:
        return all_objects(self.paths)

    def components(self) -> list[str]:
        """The names of the components that are applied; kept claims alone do not count."""
        return sorted({component_of(body) for body in self._objects() if body["kind"] != KEPT})

    def remains(self) -> Remains:
        """What of this state is there: objects, and processes and ports beside theirs."""
        return remains(self.paths, self.book)

    def objects_of(self, component: str) -> list[dict[str, Any]]:
        """A component's objects as they were applied, volume claims apart."""
        bodies = [body for body in self._objects() if component_of(body) == component]
        return [body for body in bodies if body["kind"] != KEPT]

    def observe(self, kind: str, name: str) -> Observation:
        """A workload as it is now.

        Args:
            kind: Its kind.
            name: Its name.

        Raises:
            NotFoundError: There is no such object.
            ClusterError: It was running when this machine stopped, or its supervisor.
        """
        look = records.look(self.paths, kind, name)
        if look.lost:
            component = component_of(look.body)
            raise ClusterError(
                f"{kind}/{name} does not run any more: this machine was restarted, or its "
                f"supervisor was killed; start it again with cluster.apply({component!r})"
            )
        fresh = look.seen.get("generation") == look.body["metadata"].get("generation")
        return Observation(
            {**look.body, "status": look.seen.get("status", {}) if fresh else {}},
            look.seen.get("pods", []),
            look.seen.get("events", []),
        )

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
        """The lines that a workload's containers wrote, pod by pod; with `follow`, new ones too.

        Args:
            kind: The workload's kind.
            name: Its name.
            follow: Go on until the workload is over, or deleted.
            previous: The lines of the run before each container's last restart.
            tail: Only so many last lines of each container.
            timeout_s: Stop following after so long.

        Raises:
            NotFoundError: There is no such workload, or no previous run.
        """
        return read_logs(
            self.paths, kind, name, follow=follow, previous=previous, tail=tail, timeout_s=timeout_s
        )

    def take_snapshot(self) -> dict[str, Any]:
        """Everything that is known here, as one JSON object; no Secret is in it."""
        return take_snapshot(self.paths)

    def secret(self, name: str, key: str) -> str:
        """A Secret's value, for use and not for show.

        Args:
            name: The Secret's name.
            key: Which of its values.

        Raises:
            NotFoundError: There is no such Secret or key.
        """
        find = functools.partial(find_object, self.paths)
        data = object_data(find, "Secret", name, optional=True)
        if key in data:
            return data[key].decode()
        raise NotFoundError(f"Secret/{name} with key {key!r} is not there; apply its component")

    def prerequisites(self) -> CheckList:
        """Whether this machine can play the components; what a laptop has not is said."""
        from workshop_lib.cluster.local.prerequisites import check_prerequisites

        return check_prerequisites(self.paths)

    # -- reaching in --------------------------------------------------------------------------

    def exec(
        self,
        pod: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Run a command with a container's environment and working folder.

        Args:
            pod: A pod's name, or its beginning when that fits one pod.
            command: The command and its arguments.
            container: Which container; default: the first.
            timeout_s: The longest it may take; then it is killed.

        Raises:
            NotFoundError: No such pod, or its container does not run.
            ClusterError: The command does not exist, or took too long.
        """
        return execute(self.paths, find_pod(self.paths, pod), command, container, timeout_s)

    @contextlib.contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """A URL for a port of a Service or pod: here, the pod's own address.

        Args:
            target: A Service's name, a pod's name, or the beginning of one.
            port: The port as the manifest says it.

        Raises:
            NotFoundError: No such target, port or ready pod.
        """
        yield f"http://{address_of(self.paths, self.book, target, port)}"


def _program(key: str) -> str:
    """Name of the program that runs a workload."""
    return key.replace("/", ".")


def _has_address(body: Mapping[str, Any]) -> bool:
    return bool(body["kind"] == "Service" and body["spec"].get("clusterIP") != "None")
