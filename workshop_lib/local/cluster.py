"""`LocalCluster`: apply, read, follow, forward and delete on this machine."""

from __future__ import annotations

import base64
import contextlib
import secrets
import sys
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workshop_lib import manifests
from workshop_lib.cluster import WORKLOAD_KINDS, ExecResult, LogLine, Observation
from workshop_lib.errors import ClusterError, NotFoundError
from workshop_lib.local import changes, orphans, records, rules
from workshop_lib.local.changes import component_of, key_of
from workshop_lib.local.logs import LogReader, was_restarted
from workshop_lib.local.network import AddressBook, container_ports
from workshop_lib.local.paths import (
    Busy,
    StatePaths,
    checkout,
    locked,
    read_json,
    remove_tree,
    write_json,
)
from workshop_lib.local.ray_templates import HEAD_PORTS, port_list
from workshop_lib.local.reaching import address_of, execute, find_pod
from workshop_lib.local.supervisor import Supervisor
from workshop_lib.manifests import Object
from workshop_lib.workload import Workload

__all__ = ["LocalCluster"]

LOCK_TIMEOUT_S = 60.0

PROXY = "service-proxy"


class LocalCluster:
    """Plays the workshop's manifests as processes of this machine.

    What it starts outlives the kernel, by design: the next notebook finds it. It ends
    at `delete`, `clean`, `make clean` or the end of `make run`.

    Args:
        state: The state's name; two states know nothing of each other.
        home: The checkout; default: the one this library lies in.
        restart_backoff_s: How long the second restart of a failed container waits, and a
            Job's first retry; kept with the state. Default: what it was, at first 10 s.

    Example:
        >>> cluster = LocalCluster(state="demo")      # doctest: +SKIP
        >>> cluster.apply("vllm").wait_ready()        # doctest: +SKIP
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

    def apply(self, component: str, parameters: Mapping[str, Any] | None = None) -> Workload:
        """Render a component's manifests and make this machine match them.

        Everything is checked before anything is started: a wrong manifest changes nothing.
        What is there already and has not changed is left alone.

        Args:
            component: A folder's name under `manifests/overlays/local`.
            parameters: Values for what its `parameters.yaml` names.

        Returns:
            Its handle; what was done is shown by it.

        Raises:
            ManifestError: The manifest or a parameter is wrong, or not played here.
            ClusterError: Something would change that cannot while it exists.
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
                self._store(component, body, old.get(key_of(body)), actions[key_of(body)])
            self._run(bodies)
        workloads = [body for body in bodies if body["kind"] in WORKLOAD_KINDS]
        watched = workloads[-1] if workloads else bodies[-1]
        return Workload(
            self, component, watched["kind"], watched["metadata"]["name"],
            actions=actions, notes=notes,
        )  # fmt: skip

    def _run(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        """See that what has to run runs; what runs already is left alone."""
        workloads = [
            key_of(body)
            for body in bodies
            if body["kind"] in WORKLOAD_KINDS
            # A finished Job stays finished.
            and not records.is_over(records.read_status(self.paths, key_of(body)))
        ]
        services = any(_has_address(body) for body in self._objects())
        if workloads or services:
            self.supervisor.start()
        starting = [key for key in workloads if not self.supervisor.has_program(_program(key))]
        for body in bodies:
            self._assign_addresses(body, new=key_of(body) in starting)
        if services:
            self._start(PROXY, "workshop_lib.local.service_proxy")
        for key in workloads:
            if key in starting:
                records.reset_status(self.paths, key)
            self._start(_program(key), "workshop_lib.local.runner", key)

    def _start(self, program: str, module: str, *arguments: str) -> None:
        words = [sys.executable, "-m", module, str(self.paths.home), self.paths.state, *arguments]
        self.supervisor.start_program(program, words)

    def _file(self, kind: str, name: str) -> Path:
        return self.paths.objects / f"{kind}.{name}.json"

    def _store(
        self, component: str, body: dict[str, Any], old: Mapping[str, Any] | None, action: str
    ) -> None:
        if action == "unchanged":
            return
        metadata = dict(body["metadata"])
        metadata["labels"] = {**metadata.get("labels", {}), changes.COMPONENT: component}
        before = old["metadata"] if old else {}
        metadata["generation"] = before.get("generation", 0) + 1
        metadata["uid"] = before.get("uid") or str(uuid.uuid4())
        stored = {**body, "metadata": metadata}
        if (key := changes.generated_key(body)) and action == "created":
            stored["stringData"] = {**body.get("stringData", {}), key: secrets.token_hex(32)}
        write_json(self._file(body["kind"], metadata["name"]), stored)

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
            kind = "PersistentVolumeClaim"
            known = [b["metadata"]["name"] for b in bodies if b["kind"] == kind]
            if unknown := sorted(set(claims) - set(known)):
                raise NotFoundError(
                    f"component {component!r} has no claim {unknown[0]!r}; it has "
                    f"{', '.join(known) or 'none'}"
                )
            for body in bodies:
                if body["kind"] in WORKLOAD_KINDS:
                    self._remove_workload(key_of(body))
            for body in bodies:
                name = body["metadata"]["name"]
                if body["kind"] == kind:
                    if name not in claims:
                        continue
                    remove_tree(self.paths.claims / name)
                self._file(body["kind"], name).unlink(missing_ok=True)
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
            self._stop_everything()
            self.paths.remove()

    # -- reading ------------------------------------------------------------------------------

    def _objects(self) -> list[dict[str, Any]]:
        files = sorted(self.paths.objects.glob("*.json"))
        return [body for file in files if (body := read_json(file)) is not None]

    def components(self) -> list[str]:
        """The names of the components that are applied; kept claims alone do not count."""
        kept = "PersistentVolumeClaim"
        return sorted({component_of(body) for body in self._objects() if body["kind"] != kept})

    def get(self, component: str) -> Workload:
        """The handle of a component that was applied before, by this kernel or another.

        Args:
            component: Its name.

        Raises:
            NotFoundError: It is not applied.
        """
        if component not in self.components():
            there = ", ".join(self.components()) or "nothing"
            raise NotFoundError(
                f"component {component!r} is not applied ({there} is); "
                f"start it with cluster.apply({component!r})"
            )
        bodies = [b for b in self._objects() if component_of(b) == component]
        watched = [b for b in bodies if b["kind"] in WORKLOAD_KINDS] or bodies
        return Workload(self, component, watched[-1]["kind"], watched[-1]["metadata"]["name"])

    def observe(self, kind: str, name: str) -> Observation:
        """A workload as it is now.

        Args:
            kind: Its kind.
            name: Its name.

        Raises:
            NotFoundError: There is no such object.
            ClusterError: It was running when this machine stopped, or its supervisor.
        """
        body, seen, lost = self._look(kind, name)
        if lost:
            component = component_of(body)
            raise ClusterError(
                f"{kind}/{name} does not run any more: this machine was restarted, or its "
                f"supervisor was killed; start it again with cluster.apply({component!r})"
            )
        fresh = seen.get("generation") == body["metadata"].get("generation")
        return Observation(
            {**body, "status": seen.get("status", {}) if fresh else {}},
            seen.get("pods", []),
            seen.get("events", []),
        )

    def watch(self, kind: str, name: str) -> Generator[Observation, None, None]:
        """A workload as it is, and again every tenth of a second.

        Args:
            kind: Its kind.
            name: Its name.

        Raises:
            NotFoundError: There is no such object, or not any more.
        """
        while True:
            yield self.observe(kind, name)
            time.sleep(0.1)

    def _look(self, kind: str, name: str) -> tuple[dict[str, Any], dict[str, Any], bool]:
        """An object, what its runner wrote, and whether that runner's world has ended."""
        body = read_json(self._file(kind, name))
        if body is None:
            raise NotFoundError(f"{kind}/{name} is not there; start it with cluster.apply(...)")
        if kind not in WORKLOAD_KINDS:
            return body, {"generation": body["metadata"].get("generation")}, False
        seen = records.read_status(self.paths, f"{kind}/{name}")
        identity = self.supervisor.identity()
        if seen is None:
            return body, {}, identity is None
        return body, seen, records.is_lost(seen, identity)

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
        if previous and not any(map(was_restarted, self._look(kind, name)[1].get("pods", []))):
            raise NotFoundError(f"{kind}/{name}: nothing was restarted: there is no previous run")
        deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        reader = LogReader(self.paths.logs / f"{kind}.{name}", tail=tail, previous=previous)
        first = True
        while True:
            # Asked before reading: what is written until the end is read after it is known.
            try:
                _, seen, lost = self._look(kind, name)
            except NotFoundError:
                if first:
                    raise
                return  # deleted while it was followed
            late = deadline is not None and time.monotonic() > deadline
            last_look = not follow or late or lost or records.is_over(seen)
            yield from reader.read(seen.get("pods", []), over=last_look)
            if last_look:
                return
            first = False
            time.sleep(0.1)

    def secret(self, name: str, key: str) -> str:
        """A Secret's value, for use and not for show.

        Args:
            name: The Secret's name.
            key: Which of its values.

        Raises:
            NotFoundError: There is no such Secret or key.
        """
        body = read_json(self._file("Secret", name)) or {}
        if (value := (body.get("stringData") or {}).get(key)) is not None:
            return str(value)
        if (value := (body.get("data") or {}).get(key)) is not None:
            return base64.b64decode(value).decode()
        raise NotFoundError(f"Secret/{name} with key {key!r} is not there; apply its component")

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
