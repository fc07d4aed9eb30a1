"""What all pods of a state share: objects, addresses, placement, processes.

It lives in the agent, in one asyncio loop, so plain dicts are enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import key_of, requests_of
from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.machine import unschedulable
from workshop_lib.cluster.local.network import Addresses, Hosts, named_ports
from workshop_lib.cluster.local.objects import all_objects
from workshop_lib.cluster.local.paths import StatePaths, read_json
from workshop_lib.cluster.local.podspec import NotYet

__all__ = ["Conditions", "Events", "World", "now", "suffix"]

EVENT_LIMIT = 300


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def suffix() -> str:
    """Five letters and digits for a pod's name, from the alphabet that Kubernetes uses."""
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))


class Conditions:
    """The conditions of one object; each keeps the time of its last change."""

    def __init__(self) -> None:
        self._by_type: dict[str, dict[str, Any]] = {}

    def set(self, kind: str, met: bool, reason: str = "", message: str = "", **more: str) -> None:
        """Set a condition."""
        old, status = self._by_type.get(kind, {}), "True" if met else "False"
        since = old["lastTransitionTime"] if old.get("status") == status else now()
        told = {"reason": reason, "message": message, **more}
        self._by_type[kind] = {
            "type": kind,
            "status": status,
            **{name: text for name, text in told.items() if text},
            "lastTransitionTime": since,
        }

    def is_true(self, kind: str) -> bool:
        """Whether the condition is there and met."""
        return bool(self._by_type.get(kind, {}).get("status") == "True")

    def to_json(self) -> list[dict[str, Any]]:
        """The conditions, in the order in which they appeared."""
        return list(self._by_type.values())


class Events(list[dict[str, Any]]):
    """What happened to one workload and its pods."""

    def say(self, about: tuple[str, str], reason: str, message: str, kind: str = "Normal") -> None:
        """Record an event about `(kind, name)`; the same one again only counts up."""
        who = {"kind": about[0], "name": about[1]}
        what = {"type": kind, "reason": reason, "message": message, "involvedObject": who}
        for event in self[-20:]:
            if what.items() <= event.items():
                event["count"] += 1
                event["lastTimestamp"] = now()
                return
        times = {"firstTimestamp": now(), "lastTimestamp": now()}
        self.append({**what, "count": 1, **times, "reportingComponent": "local-cluster"})
        del self[:-EVENT_LIMIT]


class World:
    """The state's objects as the API server has them, and this machine as its node."""

    def __init__(self, paths: StatePaths) -> None:
        self.paths = paths
        self.addresses = Addresses(paths.network, paths.offset)
        self.objects: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Any] = {}
        self._placed: dict[str, Mapping[str, float]] = {}
        self._children: dict[int, asyncio.Future[int]] = {}
        self._read: list[tuple[str, int, int]] = []

    # -- objects -------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what was applied, if it changed since the last look."""
        found = [
            (file.name, stat.st_ino, stat.st_mtime_ns)
            for file in [self.paths.settings, *sorted(self.paths.objects.iterdir())]
            if (stat := file.stat())
        ]
        if found != self._read:
            self.objects = {key_of(body): body for body in all_objects(self.paths)}
            self.settings = read_json(self.paths.settings) or {}
            self._read = found

    def find(self, key: str) -> dict[str, Any] | None:
        """One applied object by its `Kind/name`, or None."""
        return self.objects.get(key)

    def hosts(self) -> Hosts:
        """The ranks of Indexed Jobs by their DNS names: address and ports."""
        found = {}
        for key, body in self.objects.items():
            spec = body["spec"]["template"]["spec"] if body["kind"] == "Job" else {}
            for index in range(body["spec"]["completions"] if "subdomain" in spec else 0):
                if at := self.addresses.find(f"{key}/{index}"):
                    host = f"{body['metadata']['name']}-{index}.{spec['subdomain']}"
                    ports = {str(p): at.ports[name] for name, p in named_ports(spec).items()}
                    found[host] = (at.ip, ports)
        return found

    def claim(self, name: str) -> Path:
        """The folder behind a claim; the model cache is shared between checkouts."""
        body = self.find(f"PersistentVolumeClaim/{name}")
        if body is None:
            raise NotYet(f'persistentvolumeclaim "{name}" not found')
        cache = body["spec"]["storageClassName"] == "model-cache"
        folder = Path(self.settings["models"]) if cache else self.paths.claims / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- placement -----------------------------------------------------------------------------

    def place(self, pod: str, spec: Mapping[str, Any]) -> None:
        """Reserve a pod's requests on this machine, if they fit and its claims are there."""
        for volume in spec.get("volumes", []):
            name = volume.get("persistentVolumeClaim", {}).get("claimName")
            if name and self.find(f"PersistentVolumeClaim/{name}") is None:
                missing = f'persistentvolumeclaim "{name}" not found'
                raise NotYet(f"0/1 nodes are available: {missing}. not found")
        wanted = requests_of(spec)
        if problem := unschedulable(wanted, self._placed.values()):
            raise NotYet(problem)
        self._placed[pod] = wanted

    def unplace(self, pod: str) -> None:
        """Give back what a pod reserved."""
        self._placed.pop(pod, None)

    # -- processes -----------------------------------------------------------------------------

    def spawn(
        self,
        key: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        grace_s: float,
    ) -> tuple[int, asyncio.Future[int]]:
        """Start a shim with a command in it; its pid, and what becomes its exit code."""
        process = subprocess.Popen(
            # No site-packages and no PYTHON* variables for the shim: it starts faster.
            [sys.executable, "-S", "-E", str(processes.SHIM), f"{self.paths.runtime}:{key}",
             str(os.getpid()), str(grace_s), str(log), "--", *command],
            env=dict(environment), cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        process.returncode = 0  # `reap` collects it, and Popen must not
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._children[process.pid] = ended
        return process.pid, ended

    def reap(self) -> None:
        """Collect every child that ended (SIGCHLD), and kill what a killed shim left to us."""
        killed = False
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                code = os.waitstatus_to_exitcode(found[1])
                ended = self._children.pop(found[0], None)
                if ended is not None and not ended.done():
                    ended.set_result(128 - code if code < 0 else code)
                    killed |= code < 0
        if killed:  # this subreaper's children that it did not start, and all below them
            me = os.getpid()
            for pid in processes.descendants(me):
                if processes.parent_of(pid) == me and pid not in self._children:
                    processes.send(processes.tree(pid), signal.SIGKILL)
