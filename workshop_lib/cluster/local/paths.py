"""Where one state of the local cluster keeps its files, and how they are written.

Two places. What should last (objects, logs, claims) lies in the checkout, under
`.workshop/<state>`. Sockets and scratch volumes lie under /tmp in a folder with
a short name, because a Unix socket's path ends at 107 bytes and Ray's take 70 of
them; the name is hashed from the checkout and the state, so two checkouts, or
two states of one, never meet.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.errors import ClusterError

__all__ = [
    "Busy",
    "StatePaths",
    "checkout",
    "json_files",
    "locked",
    "read_json",
    "remove_tree",
    "write_json",
]

TEMPORARY = Path("/tmp")


class Busy(Exception):
    """Somebody else holds a lock; the message names the process."""


def checkout() -> Path:
    """The folder that holds `workshop_lib`, `manifests` and the notebooks."""
    return Path(__file__).resolve().parents[3]


def write_json(path: Path, data: Any, *, mode: int = 0o600) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it.

    Args:
        path: The file.
        data: Anything that `json` can write.
        mode: Its permissions; by default only the owner may read it (Secrets pass here).

    Raises:
        OSError: It could not be written; a state's folder that is gone is not made anew.
    """
    path.parent.mkdir(exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(prefix=".", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(data, file, indent=1)
        Path(scratch).chmod(mode)
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any | None:
    """The file's content, or None when there is no such file.

    Raises:
        ClusterError: It is no JSON: a crash of the machine can leave an empty file.
    """
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ClusterError(f"{path} is damaged ({error}); start afresh with: make clean") from None


def json_files(folder: Path) -> list[Path]:
    """The JSON files in a folder, sorted; none when the folder is not there.

    `Path.glob` fails when another process removes the folder while it looks.

    Args:
        folder: The folder.
    """
    try:
        return sorted(file for file in folder.iterdir() if file.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold a file's lock, which the kernel gives back when this process ends, however it ends.

    The file may be deleted by whoever holds the lock (`clean` does): those who waited
    for it notice, and start again with a new one.

    Args:
        path: The lock file; it holds the process id of who has it.
        timeout_s: The longest to wait.

    Raises:
        Busy: Another process, named in the message, had it all the time.
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
                raise Busy(f"process {holder or 'unknown'}") from None
            time.sleep(0.05)
        os.close(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Delete a folder with all in it, folders that their owner made read-only included.

    Raises:
        ClusterError: Something could not be deleted.
    """

    def open_up(function: Callable[..., Any], path: str, error: Any) -> None:
        if isinstance(error[1], FileNotFoundError):
            return  # a process that just ended took it away itself
        with contextlib.suppress(OSError):
            for each in (Path(path).parent, Path(path)):
                if not each.is_symlink() and each.is_dir():
                    each.chmod(0o700)
            if Path(path).is_dir() and not Path(path).is_symlink():
                shutil.rmtree(path)
            else:
                Path(path).unlink()

    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        shutil.rmtree(folder, onerror=open_up)
        if folder.exists():
            raise ClusterError(f"{folder} could not be deleted; look at who owns what is in it")


@dataclass(frozen=True)
class StatePaths:
    """The folders and files of one state.

    Attributes:
        home: The checkout.
        state: The state's name: `default`, `run` (make run), one for each test.
    """

    home: Path
    state: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", self.state):
            raise ClusterError(
                f"state name {self.state!r} is not valid; use at most 32 lower-case letters, "
                "digits and '-'"
            )

    @property
    def _digest(self) -> bytes:
        return hashlib.sha256(f"{self.home.resolve()}\0{self.state}".encode()).digest()

    @property
    def folder(self) -> Path:
        """What lasts: objects, statuses, logs, claims."""
        return self.home / ".workshop" / self.state

    @property
    def runtime(self) -> Path:
        """Sockets and scratch volumes: a short path of our own."""
        return TEMPORARY / f"ws-{self._digest.hex()[:10]}"

    @property
    def network(self) -> str:
        """The first three bytes of this state's loopback addresses, as `127.x.y`."""
        return f"127.{self._digest[0] % 253 + 2}.{self._digest[1]}"

    @property
    def offset(self) -> int:
        """A number from the state's name: where it begins to look for free ports."""
        return int.from_bytes(self._digest[2:4], "big")

    @property
    def objects(self) -> Path:
        """Applied objects: `<Kind>.<name>.json`."""
        return self.folder / "objects"

    @property
    def statuses(self) -> Path:
        """What the runners say: `<Kind>.<name>.json`."""
        return self.folder / "status"

    @property
    def logs(self) -> Path:
        """Logs: `<Kind>.<name>/<pod>/<container>/<restart>.log`, and the runners' own."""
        return self.folder / "logs"

    @property
    def claims(self) -> Path:
        """Persistent volume claims' data."""
        return self.folder / "claims"

    @property
    def settings(self) -> Path:
        """What this state does otherwise than by default (see `world.DEFAULT_SETTINGS`)."""
        return self.folder / "settings.json"

    @property
    def lock(self) -> Path:
        """Held by whoever changes this state."""
        return self.folder / "lock"

    @property
    def addresses(self) -> Path:
        """Which pod and service has which address and ports."""
        return self.runtime / "addresses.json"

    @property
    def environments(self) -> Path:
        """The environment of each running container, for `exec`."""
        return self.runtime / "env"

    @property
    def volumes(self) -> Path:
        """Scratch volumes: `<last byte of the pod's address>-<volume>`."""
        return self.runtime / "v"

    @property
    def programs(self) -> Path:
        """What supervisord looks after: `<Kind>.<name>.conf` and `.sh`."""
        return self.runtime / "programs"

    @property
    def owner(self) -> Path:
        """Says whose the runtime folder is: checkout and state."""
        return self.runtime / "owner.json"

    @property
    def supervisor_socket(self) -> Path:
        """Where supervisord listens."""
        return self.runtime / "s.sock"

    @property
    def supervisor_config(self) -> Path:
        """Supervisord's configuration."""
        return self.runtime / "supervisord.conf"

    @property
    def supervisor_pid(self) -> Path:
        """Supervisord's process id and start time."""
        return self.runtime / "supervisor.json"

    def create(self) -> None:
        """Make the folders; refuse a runtime folder that somebody else made.

        Raises:
            ClusterError: Another user owns the folder in /tmp.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.runtime.mkdir(mode=0o700)
        found = self.runtime.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ClusterError(
                f"{self.runtime} belongs to another user; remove it or use another checkout"
            )
        self.runtime.chmod(0o700)
        for folder in (self.environments, self.volumes, self.programs):
            folder.mkdir(exist_ok=True)
        # Supervisord's configuration names the checkout through this link alone: its format
        # gives a meaning to `%`, `#`, `;` and spaces, and a folder's name may hold any of them.
        link = self.runtime / "state"
        if not link.is_symlink():
            link.symlink_to(self.folder)
        # `make clean` can tell whose folder this is even when the checkout has moved away.
        write_json(self.owner, {"home": str(self.home), "state": self.state})

    def remove(self) -> None:
        """Delete both folders.

        Raises:
            ClusterError: Something could not be deleted.
        """
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
