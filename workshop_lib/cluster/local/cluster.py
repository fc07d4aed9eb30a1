"""`LocalCluster`: apply, read, follow, forward and delete on this machine."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workshop_lib.checklist import CheckList
from workshop_lib.cluster.base import Cluster, Workload, handle
from workshop_lib.cluster.kube import CLAIM, WORKLOAD_KINDS, component_of, key_of
from workshop_lib.cluster.local import processes, status
from workshop_lib.cluster.local.launch import node_environment, start_agent, stop_agent
from workshop_lib.cluster.local.logs import read_logs
from workshop_lib.cluster.local.machine import check_prerequisites
from workshop_lib.cluster.local.objects import (
    action,
    all_objects,
    data_of,
    find_object,
    store_object,
)
from workshop_lib.cluster.local.paths import (
    StatePaths,
    checkout,
    locked,
    read_json,
    remove_tree,
    write_json,
)
from workshop_lib.cluster.local.schema import checked
from workshop_lib.cluster.manifests import Object
from workshop_lib.cluster.records import ExecResult, LogLine, Observation, Remains
from workshop_lib.data import models_dir
from workshop_lib.errors import ClusterError, NotFoundError

__all__ = ["LocalCluster"]

LOCK_TIMEOUT_S = 180.0

END_TIMEOUT_S = 60.0
"""How long workloads may take to end: their pods' grace of at most 15 s, and a machine's load."""


class LocalCluster(Cluster):
    """Plays the workshop's manifests as processes of this machine.

    What it starts outlives the kernel, by design: the next notebook finds it. It ends at
    `delete`, `clean`, `make clean` or the end of `make run`.

    Args:
        state: The state's name; two states know nothing of each other.
        home: The checkout; default: the one that this library lies in.
        restart_backoff_s: How long the second restart of a failed container waits, and a
            Job's first retry, as a kubelet and the Job controller do; it doubles each time.

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
        restart_backoff_s: float = 10.0,
    ) -> None:
        self.paths = StatePaths((home or checkout()).resolve(), state)
        self._restart_backoff_s = restart_backoff_s

    def __repr__(self) -> str:
        return f"LocalCluster(state={self.paths.state!r})"

    # -- changing -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the state's lock: two kernels may use one state, one at a time may change it."""
        try:
            with locked(self.paths.lock, timeout_s=LOCK_TIMEOUT_S):
                yield
        except OSError as error:
            where = error.filename or self.paths.folder
            raise ClusterError(
                f"{where}: {error.strerror}; the state is in {self.paths.folder}"
            ) from error

    def apply_objects(self, component: str, objects: Sequence[Object]) -> Workload:
        """Like `apply`, for objects rendered by the caller, in the order of applying."""
        bodies, notes = checked(component, objects)
        with self._changing():
            old = {key_of(body): body for body in all_objects(self.paths)}
            actions = {
                key_of(body): action(old.get(key_of(body)), body, component) for body in bodies
            }
            self.paths.create()
            self._write_settings()
            workloads = [key_of(body) for body in bodies if body["kind"] in WORKLOAD_KINDS]
            # A delete or clean that was interrupted may still go on.
            self._await_end([key for key in workloads if actions[key] == "created"])
            if workloads:
                start_agent(self.paths)  # before the objects are there: see `status.look`
            for key in workloads:
                if actions[key] != "created" and status.look(self.paths, key).lost:
                    self.paths.forget(key)  # the agent starts it again
            for body in bodies:
                if actions[key_of(body)] != "unchanged":
                    store_object(self.paths, component, body, old.get(key_of(body)))
        return handle(self, component, bodies, actions=actions, notes=notes)

    def _write_settings(self) -> None:
        """Tell the agent what pods start from: this kernel's environment, not an earlier one's."""
        settings = {
            "restart_backoff_s": self._restart_backoff_s,
            "environment": node_environment(self.paths.runtime),
            "models": str(models_dir()),
        }
        write_json(self.paths.settings, settings)

    def delete(self, component: str, *, claims: Sequence[str] = ()) -> None:
        """Stop and remove what a component made, and wait until it is gone.

        Files of the model cache stay, even when its claim is named: all checkouts share it.
        """
        with self._changing():
            bodies = [body for body in all_objects(self.paths) if component_of(body) == component]
            known = [b["metadata"]["name"] for b in bodies if b["kind"] == CLAIM]
            if unknown := sorted(set(claims) - set(known)):
                raise NotFoundError(
                    f"component {component!r} has no claim {unknown[0]!r}; it has "
                    f"{', '.join(known) or 'none'}"
                )
            gone = [b for b in bodies if b["kind"] != CLAIM or b["metadata"]["name"] in claims]
            for body in gone:
                self.paths.object_file(key_of(body)).unlink(missing_ok=True)
            self._await_end([key_of(b) for b in bodies if b["kind"] in WORKLOAD_KINDS])
            for name in claims:
                remove_tree(self.paths.claims / name)
            if not any(body["kind"] in WORKLOAD_KINDS for body in all_objects(self.paths)):
                stop_agent(self.paths)

    def _await_end(self, keys: Sequence[str]) -> None:
        """Wait until the agent has ended workloads whose objects are gone."""
        deadline = time.monotonic() + END_TIMEOUT_S
        for key in keys:
            while self.paths.status_file(key).exists():
                if status.identity(self.paths) is None:  # what it had is stopped here
                    stop_agent(self.paths)
                    self.paths.forget(key)
                elif time.monotonic() > deadline:
                    raise ClusterError(
                        f"{key} did not end in {END_TIMEOUT_S:g} s; see {self.paths.agent_log}, "
                        "then stop everything with: make clean"
                    )
                time.sleep(0.02)

    def clean(self) -> None:
        """Stop and remove everything of this state, claims and logs included."""
        moved = not self.paths.home.is_dir()  # the checkout was deleted or moved away
        with contextlib.nullcontext() if moved else self._changing():
            remove_tree(self.paths.objects)  # first: see `status.look`
            stop_agent(self.paths)
            self.paths.remove()

    # -- reading ------------------------------------------------------------------------------

    def components(self) -> list[str]:
        """The names of the components that are applied; kept claims alone do not count."""
        found = all_objects(self.paths)
        return sorted({component_of(body) for body in found if body["kind"] != CLAIM})

    def remains(self) -> Remains:
        """What of this state is there: objects, and processes and ports beside theirs."""
        return status.remains(self.paths)

    def objects_of(self, component: str) -> list[dict[str, Any]]:
        """A component's objects as they were applied, volume claims apart."""
        bodies = [b for b in all_objects(self.paths) if component_of(b) == component]
        return [body for body in bodies if body["kind"] != CLAIM]

    def observe(self, kind: str, name: str) -> Observation:
        """A workload as it is now, unless it ended with its agent or with the machine."""
        look = status.look(self.paths, f"{kind}/{name}")
        if look.lost:
            component = component_of(look.body)
            raise ClusterError(
                f"{kind}/{name} {status.LOST}; start it again with cluster.apply({component!r})"
            )
        fresh = look.seen.get("generation") == look.body["metadata"]["generation"]
        seen = look.seen.get("status", {}) if fresh else {}
        return Observation({**look.body, "status": seen}, look.pods, look.seen.get("events", []))

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
        """The lines that a workload's containers wrote, pod by pod; with `follow`, new ones too."""
        return read_logs(
            self.paths, f"{kind}/{name}",
            follow=follow, previous=previous, tail=tail, timeout_s=timeout_s,
        )  # fmt: skip

    def take_snapshot(self) -> dict[str, Any]:
        """Everything that is known here, as one JSON object; no Secret is in it."""
        return status.take_snapshot(self.paths)

    def secret(self, name: str, key: str) -> str:
        """A Secret's value, for use and not for show."""
        data = data_of(find_object(self.paths, f"Secret/{name}") or {})
        if key in data:
            return data[key].decode()
        raise NotFoundError(f"Secret/{name} with key {key!r} is not there; apply its component")

    def prerequisites(self) -> CheckList:
        """Whether this machine can play the components; what a laptop has not is said."""
        return check_prerequisites(self.paths.network)

    # -- reaching in --------------------------------------------------------------------------

    def exec(
        self,
        pod: str,
        command: Sequence[str],
        *,
        container: str | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Run a command with a container's environment and working folder."""
        found = status.find_pod(self.paths, pod)
        name, main = found["metadata"]["name"], found["spec"]["containers"][0]["name"]
        if container not in (None, main):
            raise NotFoundError(f"{name} has no container {container!r}; it has {main}")
        known = read_json(self.paths.environments / f"{name}.{main}.json")
        if known is None:
            raise NotFoundError(
                f"container {main!r} of {name} does not run; see its workload's table()"
            )
        # Files and no pipes: what the command leaves in the background would keep a pipe open.
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    list(command), env=known["environment"], cwd=known["folder"],
                    start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                )  # fmt: skip
            except OSError as error:
                raise ClusterError(f"exec in {name}: {command[0]!r}: {error.strerror}") from None
            try:
                code = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise ClusterError(
                    f"exec in {name}: {' '.join(command)[:80]!r} did not end within {timeout_s:g} "
                    "s and was killed; give it more with timeout_s="
                ) from None
            finally:
                if process.poll() is None:
                    processes.stop(lambda: processes.tree(process.pid), grace_s=0.0)
                    process.wait()
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
            # A signal's number as kubectl reports it.
            return ExecResult(128 - code if code < 0 else code, *texts)

    @contextlib.contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """A URL for a port of a Service or pod: here, the pod's own address."""
        yield f"http://{status.address_of(self.paths, target, port)}"
