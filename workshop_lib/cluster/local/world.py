"""What a workload's pods share: files, objects, events, placement on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import requests_of
from workshop_lib.cluster.local import machine, orphans, records
from workshop_lib.cluster.local.conditions import now
from workshop_lib.cluster.local.network import AddressBook, Endpoint, endpoints
from workshop_lib.cluster.local.objects import all_objects, find_object
from workshop_lib.cluster.local.paths import Busy, StatePaths, locked, read_json, write_json
from workshop_lib.cluster.local.podspec import ConfigError
from workshop_lib.cluster.local.supervisor import Supervisor
from workshop_lib.errors import ClusterError

__all__ = ["DEFAULT_SETTINGS", "World"]

DEFAULT_SETTINGS = {"restart_backoff_s": 10.0}
"""A kubelet's and the Job controller's first wait after a failure; it doubles each time."""

EVENT_LIMIT = 300


class World:
    """The surroundings of one workload's pods.

    Args:
        paths: The state's files.
        key: `Kind/name` of the workload.
    """

    def __init__(self, paths: StatePaths, key: str) -> None:
        self.paths = paths
        self.key = key
        self.book = AddressBook(paths)
        self.environment = dict(os.environ)
        self.settings = {**DEFAULT_SETTINGS, **(read_json(paths.settings) or {})}
        self.events: list[dict[str, Any]] = []
        self.generation: int | None = None
        self._supervisor = Supervisor(paths).identity() or (0, 0)
        self._changed = asyncio.Event()
        self._changed.set()

    @property
    def mark(self) -> str:
        """What this workload's shims have on their command line."""
        return orphans.mark(self.paths.runtime, self.key)

    def kill_orphans(self) -> None:
        """Kill what a killed shim left to this process."""
        orphans.kill_orphans(os.getpid())

    # -- objects -------------------------------------------------------------------------------

    def objects(self) -> list[dict[str, Any]]:
        """Every applied object of this state."""
        return all_objects(self.paths)

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """One applied object, or None."""
        return find_object(self.paths, kind, name)

    def endpoints(self) -> dict[str, Endpoint]:
        """What each service name means now."""
        return endpoints(self.objects(), self.book)

    # -- files -----------------------------------------------------------------------------------

    def scratch(self, endpoint: Endpoint) -> str:
        """Prefix of a pod's scratch folders: short, because Ray puts its sockets there."""
        return str(self.paths.volumes / endpoint.ip.rsplit(".", 1)[1])

    def environment_file(self, pod: str, container: str) -> Path:
        """Where a container's environment is kept for `exec`; only its owner reads it."""
        return self.paths.environments / f"{pod}.{container}.json"

    def log_folder(self, pod: str, container: str) -> Path:
        """Where a container's logs lie, one file for each time it ran."""
        return self.paths.logs / self.key.replace("/", ".") / pod / container

    def claim(self, name: str) -> Path:
        """The folder behind a claim; the model cache is shared between checkouts.

        Raises:
            ConfigError: There is no such claim.
        """
        body = self.find("PersistentVolumeClaim", name)
        if body is None:
            raise ConfigError(f'persistentvolumeclaim "{name}" not found')
        if body["spec"]["storageClassName"] == "model-cache":
            from workshop_lib.data import models_dir

            folder = models_dir()
        else:
            folder = self.paths.claims / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- placement -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _placements(self) -> Iterator[dict[str, Any]]:
        file = self.paths.runtime / "placements.json"
        try:
            with locked(file.with_suffix(".lock"), timeout_s=60):
                placed = read_json(file) or {}
                yield placed
                with contextlib.suppress(OSError):  # a full disk is no reason to let pods down
                    write_json(file, placed)
        except Busy as error:
            raise ClusterError(f"{error} holds {file} for 60 s") from None

    def place(self, pod: str, spec: Mapping[str, Any]) -> str | None:
        """Reserve a pod's requests on this machine, or say why they do not fit.

        Args:
            pod: The pod's name.
            spec: Its spec.
        """
        for volume in spec.get("volumes", []):
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if claim and self.find("PersistentVolumeClaim", claim) is None:
                return (
                    f'0/1 nodes are available: persistentvolumeclaim "{claim}" not found. not found'
                )
        wanted = requests_of(spec)
        with self._placements() as placed:
            others = [r for pods in placed.values() for name, r in pods.items() if name != pod]
            problem = machine.unschedulable(wanted, others)
            if problem is None:
                placed.setdefault(self.key, {})[pod] = wanted
        return problem

    def unplace(self, pod: str) -> None:
        """Give back what a pod reserved."""
        with self._placements() as placed:
            placed.get(self.key, {}).pop(pod, None)

    def forget_placements(self) -> None:
        """Give back all that this workload reserved (a runner before us may have crashed)."""
        with self._placements() as placed:
            placed.pop(self.key, None)

    # -- what happened ---------------------------------------------------------------------------

    def new_uid(self) -> str:
        """A random object id."""
        return str(uuid.uuid4())

    def suffix(self) -> str:
        """Five letters and digits for a pod's name, from the alphabet Kubernetes uses."""
        return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))

    def changed(self) -> None:
        """Say that the status file is out of date."""
        self._changed.set()

    async def wait_changed(self, *, at_most_s: float) -> None:
        """Wait until the status file is out of date, but not for long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), at_most_s)

    def event(
        self, about: tuple[str, str], reason: str, message: str, kind: str = "Normal"
    ) -> None:
        """Record an event; the same one again only counts up.

        Args:
            about: Kind and name of the object.
            reason: One word.
            message: What a person reads.
            kind: `Normal` or `Warning`.
        """
        self._changed.set()
        for event in self.events[-20:]:
            same = event["involvedObject"] == {"kind": about[0], "name": about[1]}
            if same and event["reason"] == reason and event["message"] == message:
                event["count"] += 1
                event["lastTimestamp"] = now()
                return
        moment = now()
        self.events.append(
            {
                "type": kind, "reason": reason, "message": message, "count": 1,
                "firstTimestamp": moment, "lastTimestamp": moment,
                "involvedObject": {"kind": about[0], "name": about[1]},
                "reportingComponent": "local-cluster",
            }
        )  # fmt: skip
        del self.events[:-EVENT_LIMIT]

    def write_status(self, collect: Callable[[], dict[str, Any]], *, force: bool = False) -> None:
        """Write the status file if anything changed.

        A full disk is no reason to let the pods down: it is written when there is room.

        Args:
            collect: Returns `status` and `pods`.
            force: Write it in any case.
        """
        if not (self._changed.is_set() or force):
            return
        self._changed.clear()
        whole = {
            **collect(),
            "generation": self.generation,
            "events": self.events,
            "supervisor": self._supervisor,
            "runner": os.getpid(),
        }
        try:
            write_json(records.status_file(self.paths, self.key), whole)
        except OSError as error:
            self._changed.set()
            print(f"the status was not written: {error}", flush=True)
