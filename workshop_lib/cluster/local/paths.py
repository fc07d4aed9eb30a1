"""Where one state of the local cluster keeps its files, and how they are written.

What should last lies in the checkout, under `.workshop/<state>`; sockets and scratch volumes
lie under /tmp in a folder with a short name, because a Unix socket's path ends at 107 bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workshop_lib.errors import ClusterError

__all__ = [
    "StatePaths",
    "checkout",
    "json_files",
    "locked",
    "read_json",
    "remove_tree",
    "write_json",
]

TEMPORARY = Path("/tmp")


def checkout() -> Path:
    """The folder that holds `workshop_lib`, `manifests` and the notebooks."""
    return Path(__file__).resolve().parents[3]


def write_json(path: Path, data: Any) -> None:
    """Write JSON, readable by its owner alone; a reader sees the old file or the new one.

    A state's folder that was removed is not made anew.
    """
    path.parent.mkdir(exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(data, file, indent=1)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any | None:
    """The file's content, or None when there is none; a crash can leave one that is no JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ClusterError(f"{path} is damaged ({error}); start afresh with: make clean") from None


def json_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, sorted; `Path.glob` fails when the folder goes meanwhile."""
    try:
        return sorted(file for file in folder.iterdir() if file.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold a state's lock; the operating system gives it back however this process ends.

    The file may be deleted by whoever holds the lock (`clean` does): those who waited
    notice that, and start again with a new file.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # the folder was removed a moment ago
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        except (BlockingIOError, FileNotFoundError):
            holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ClusterError(
                    f"state {path.parent.name!r} has been locked by process "
                    f"{holder or 'unknown'} for {timeout_s:g} s; wait for what it does to end"
                ) from None
            time.sleep(0.05)
        os.close(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Delete a folder with all in it, folders that their owner made read-only included."""
    if folder.is_symlink():
        folder.unlink()
        return
    for each, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):  # another user's, or a process took it away itself
            Path(each).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise ClusterError(f"{folder} could not be deleted; look at who owns what is in it")


class StatePaths:
    """The folders and files of one state of a checkout."""

    def __init__(self, home: Path, state: str) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", state):
            raise ClusterError(
                f"state name {state!r} is not valid; use at most 32 lower-case letters, "
                "digits and '-'"
            )
        self.home, self.state = home, state
        # Two checkouts, or two states of one, never meet: their hashes differ.
        digest = hashlib.sha256(f"{home.resolve()}\0{state}".encode()).digest()
        # The first three bytes of this state's loopback addresses, and where it begins to
        # look for free ports: elsewhere than other states.
        self.network = f"127.{digest[0] % 253 + 2}.{digest[1]}"
        self.offset = int.from_bytes(digest[2:4], "big")
        # What lasts.
        self.folder = home / ".workshop" / state
        self.objects = self.folder / "objects"  # applied objects
        self.statuses = self.folder / "status"  # what the agent says of each workload
        self.logs = self.folder / "logs"  # `<Kind>.<name>/<pod>/<container>/<restart>.log`
        self.claims = self.folder / "claims"  # persistent volume claims' data
        self.settings = self.folder / "settings.json"  # what apply tells the agent
        self.agent_log = self.folder / "agent.log"
        self.lock = self.folder / "lock"  # held by whoever changes this state
        # Sockets and scratch volumes.
        self.runtime = TEMPORARY / f"ws-{digest.hex()[:10]}"
        self.environments = self.runtime / "env"  # of each running container, for `exec`
        self.volumes = self.runtime / "v"  # `<last byte of the pod's address>-<volume>`
        self.owner = self.runtime / "owner.json"  # whose folder this is: checkout and state
        self.agent = self.runtime / "agent.json"  # the agent's process id and start time

    def object_file(self, key: str) -> Path:
        """Where an object is kept, by its `Kind/name`."""
        return self.objects / f"{key.replace('/', '.', 1)}.json"

    def status_file(self, key: str) -> Path:
        """Where the agent's word on a workload is kept."""
        return self.statuses / f"{key.replace('/', '.', 1)}.json"

    def log_folder(self, key: str) -> Path:
        """Where a workload's pods write their logs."""
        return self.logs / key.replace("/", ".", 1)

    def forget(self, key: str) -> None:
        """Remove what is kept of a workload that ended: its logs, and then its status."""
        remove_tree(self.log_folder(key))
        self.status_file(key).unlink(missing_ok=True)

    def create(self) -> None:
        """Make the folders, unless another user owns the one in /tmp."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.runtime.mkdir(mode=0o700)
        found = self.runtime.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ClusterError(
                f"{self.runtime} belongs to another user; remove it or use another checkout"
            )
        self.runtime.chmod(0o700)
        for folder in (self.objects, self.statuses, self.logs, self.environments, self.volumes):
            folder.mkdir(exist_ok=True)
        # `make clean` can tell whose folder this is even when the checkout has moved away.
        write_json(self.owner, {"home": str(self.home), "state": self.state})

    def remove(self) -> None:
        """Delete both folders."""
        remove_tree(self.runtime)
        for entry in self.folder.glob("*"):
            if entry.is_dir() and not entry.is_symlink():
                remove_tree(entry)
            elif entry != self.lock:
                entry.unlink(missing_ok=True)
        # The lock goes last: from then on another process may make the state anew.
        self.lock.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it did, or other states are there
            self.folder.rmdir()
            self.folder.parent.rmdir()
