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
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import key_of, requests_of
from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.machine import unschedulable
from workshop_lib.cluster.local.network import Addresses, Endpoint, named_ports
from workshop_lib.cluster.local.objects import all_objects
from workshop_lib.cluster.local.paths import StatePaths, read_json
from workshop_lib.cluster.local.podspec import ConfigError

__all__ = ["Conditions", "Events", "World", "now", "suffix"]

EVENT_LIMIT = 300

# A clock of the file system ticks a few hundred times a second: what was changed so shortly
# ago may be changed again without a sign of it.
FRESH_S = 1.0


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def suffix() -> str:
    """Five letters and digits for a pod's name, from the alphabet that Kubernetes uses."""
    return "".join(secrets.choice("bcdfghjklmnpqrstvwxz2456789") for _ in range(5))


class Conditions:
    """The conditions of one object; each keeps the time of its last change.

    Example:
        >>> conditions = Conditions()
        >>> conditions.set("Ready", False, "Starting"), conditions.set("Ready", False, "Starting")
        (True, False)
    """

    def __init__(self) -> None:
        self._by_type: dict[str, dict[str, Any]] = {}

    def set(self, kind: str, met: bool, reason: str = "", message: str = "", **more: str) -> bool:
        """Set a condition, and say whether anything changed."""
        old = self._by_type.get(kind, {})
        new = {
            "type": kind,
            "status": "True" if met else "False",
            **({"reason": reason} if reason else {}),
            **({"message": message} if message else {}),
            **more,
        }
        if new == {key: old[key] for key in old if key != "lastTransitionTime"}:
            return False
        same = old.get("status") == new["status"]
        new["lastTransitionTime"] = old["lastTransitionTime"] if same else now()
        self._by_type[kind] = new
        return True

    def is_true(self, kind: str) -> bool:
        """Whether the condition is there and met."""
        return bool(self._by_type.get(kind, {}).get("status") == "True")

    def to_json(self) -> list[dict[str, Any]]:
        """The conditions, in the order in which they appeared."""
        return [dict(condition) for condition in self._by_type.values()]


class Events:
    """What happened to one workload and its pods; `changed` says that its status is out of date."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.changed = True

    def say(self, about: tuple[str, str], reason: str, message: str, kind: str = "Normal") -> None:
        """Record an event about `(kind, name)`; the same one again only counts up."""
        self.changed = True
        who = {"kind": about[0], "name": about[1]}
        for event in self.items[-20:]:
            if (event["involvedObject"], event["reason"], event["message"]) == (
                who, reason, message,
            ):  # fmt: skip
                event["count"] += 1
                event["lastTimestamp"] = now()
                return
        moment = now()
        self.items.append(
            {
                "type": kind, "reason": reason, "message": message, "count": 1,
                "firstTimestamp": moment, "lastTimestamp": moment, "involvedObject": who,
                "reportingComponent": "local-cluster",
            }
        )  # fmt: skip
        del self.items[:-EVENT_LIMIT]


class World:
    """The state's objects as the API server has them, and this machine as its node.

    Args:
        paths: The state's files.
    """

    def __init__(self, paths: StatePaths) -> None:
        self.paths = paths
        self.addresses = Addresses(paths.network, paths.offset)
        self.objects: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, Any] = {}
        self._placed: dict[str, Mapping[str, float]] = {}
        self._children: dict[int, asyncio.Future[int]] = {}
        self._read_at: tuple[int, int] | None = None

    # -- objects -------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read what was applied, if it changed since the last look."""
        changed = self.paths.objects.stat().st_mtime_ns
        told = self.paths.settings.stat().st_mtime_ns
        if (changed, told) == self._read_at and time.time() - changed / 1e9 > FRESH_S:
            return
        self.objects = {key_of(body): body for body in all_objects(self.paths)}
        self.settings = read_json(self.paths.settings) or {}
        self._read_at = (changed, told)

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """One applied object, or None."""
        return self.objects.get(f"{kind}/{name}")

    def hosts(self) -> dict[str, tuple[Endpoint, dict[int, str]]]:
        """The ranks of Indexed Jobs by their DNS names: address, and the declared ports' names."""
        found = {}
        for key, body in self.objects.items():
            if body["kind"] != "Job" or "subdomain" not in body["spec"]["template"]["spec"]:
                continue
            spec = body["spec"]["template"]["spec"]
            names = {port: name for name, port in named_ports(spec).items()}
            for index in range(body["spec"].get("completions", 1)):
                if endpoint := self.addresses.find(f"{key}/{index}"):
                    host = f"{body['metadata']['name']}-{index}.{spec['subdomain']}"
                    found[host] = (endpoint, names)
        return found

    def claim(self, name: str) -> Path:
        """The folder behind a claim; the model cache is shared between checkouts.

        Raises:
            ConfigError: There is no such claim.
        """
        body = self.find("PersistentVolumeClaim", name)
        if body is None:
            raise ConfigError(f'persistentvolumeclaim "{name}" not found')
        cache = body["spec"]["storageClassName"] == "model-cache"
        folder = Path(self.settings["models"]) if cache else self.paths.claims / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- placement -----------------------------------------------------------------------------

    def place(self, pod: str, spec: Mapping[str, Any]) -> str | None:
        """Reserve a pod's requests on this machine, or say why they do not fit."""
        for volume in spec.get("volumes", []):
            claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
            if claim and self.find("PersistentVolumeClaim", claim) is None:
                missing = f'persistentvolumeclaim "{claim}" not found'
                return f"0/1 nodes are available: {missing}. not found"
        wanted = requests_of(spec)
        problem = unschedulable(wanted, (r for p, r in self._placed.items() if p != pod))
        if problem is None:
            self._placed[pod] = wanted
        return problem

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
            env=dict(environment), cwd=folder, start_new_session=True,
            stdin=subprocess.DEVNULL, close_fds=True,
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
        if killed:
            self.kill_orphans()

    def kill_orphans(self) -> None:
        """Kill the children that this subreaper did not start, and all below them."""
        me = os.getpid()
        for pid in processes.descendants(me):
            if processes.parent_of(pid) == me and pid not in self._children:
                processes.send(processes.tree(pid), signal.SIGKILL)
