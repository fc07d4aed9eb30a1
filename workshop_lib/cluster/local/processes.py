"""Process trees on Linux: who descends from whom, and stopping all of them.

Ray's agents outlive a killed `ray start`, so a process group is not enough and
neither are environment cookies (Ray does not pass them on). What holds is the
kernel's own bookkeeping: a process that is a *child subreaper* becomes the
parent of every orphan below it, so its descendants are complete at any time.

This module uses the standard library alone: `shim.py` runs it once for every
container, and its start-up time and memory are paid each time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "all_pids",
    "ancestors",
    "become_subreaper",
    "command_line",
    "descendants",
    "end_with_parent",
    "is_running",
    "mentioning",
    "parent_of",
    "start_ticks",
    "stop_all",
    "stop_tree",
]

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36

KILLED_S = 30.0
"""How long a killed process may take to be gone: an engine gives gigabytes back, and a busy
machine does not get round to it at once."""


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants.

    The setting survives `execve` and is not inherited by children (prctl(2)).

    Raises:
        OSError: The kernel refused.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have this process told to end (SIGTERM) when its parent dies, however that dies.

    Raises:
        OSError: The kernel refused.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent and start time of a process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    # The command name may hold spaces and parentheses: fields follow the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[1]), int(fields[19])


def start_ticks(pid: int) -> int | None:
    """Start time in clock ticks since boot: with the pid, a process's identity.

    Args:
        pid: A process id.

    Returns:
        The ticks, or None when no such process runs.

    Example:
        >>> import os
        >>> start_ticks(os.getpid()) is not None
        True
    """
    stat = _stat(pid)
    return None if stat is None else stat[2]


def is_running(pid: int, ticks: int | None = None) -> bool:
    """Whether the process runs; a zombie does not, nor does a reused pid.

    Args:
        pid: A process id.
        ticks: Its start time from `start_ticks`; None skips the identity check.
    """
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX" and ticks in (None, stat[2])


def parent_of(pid: int) -> int | None:
    """A process's parent; None when it is gone."""
    stat = _stat(pid)
    return None if stat is None else stat[1]


def command_line(pid: int) -> list[bytes]:
    """A process's arguments; empty when it is gone, a zombie or not ours to read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def ancestors(pid: int) -> set[int]:
    """A process and all above it."""
    found: set[int] = set()
    current: int | None = pid
    while current and current not in found:
        found.add(current)
        current = parent_of(current)
    return found


def all_pids() -> list[int]:
    """Every process of this machine that we can see."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def descendants(root: int) -> list[int]:
    """Every running process below `root`, children before grandchildren.

    Args:
        root: The process id at the top; not part of the answer.
    """
    children: dict[int, list[int]] = {}
    running: set[int] = set()
    for pid in all_pids():
        if (stat := _stat(pid)) is not None:
            children.setdefault(stat[1], []).append(pid)
            if stat[0] not in "ZX":
                running.add(pid)
    found: list[int] = []
    level = [root]
    while level:
        level = [child for pid in level for child in children.get(pid, [])]
        found += level
    return [pid for pid in found if pid in running]


def _signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
            if number == signal.SIGTERM:
                os.kill(pid, signal.SIGCONT)  # a stopped process takes no TERM
        except ProcessLookupError:
            continue  # it ended by itself: that is what we want
        except PermissionError:
            continue  # another user's (setuid): the caller is told that it survived


def _reap() -> None:
    """Collect our own dead children, so that they do not stay as zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return


def stop_tree(root: int, *, grace_s: float = 15.0, reap: bool = False) -> list[int]:
    """Stop everything below `root`: TERM, wait, KILL until nothing is left.

    Args:
        root: The process whose descendants are stopped; it stays.
        grace_s: Seconds between TERM and KILL.
        reap: Also collect dead children of this process (when it is the subreaper).

    Returns:
        The processes that survived KILL for `KILLED_S`; empty when all is well.
    """
    deadline = time.monotonic() + grace_s
    signalled: set[int] = set()
    while remaining := descendants(root):
        fresh = [pid for pid in remaining if pid not in signalled]
        _signal(fresh, signal.SIGTERM)
        signalled.update(fresh)
        if reap:
            _reap()
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    hard_deadline = time.monotonic() + KILLED_S
    while remaining := descendants(root):
        _signal(remaining, signal.SIGKILL)
        if reap:
            _reap()
        if time.monotonic() > hard_deadline:
            return remaining
        time.sleep(0.02)
    if reap:
        _reap()
    return []


def stop_all(pids: Iterable[int], *, grace_s: float) -> list[int]:
    """Stop processes and all below them: TERM, wait, KILL.

    Args:
        pids: The processes at the top.
        grace_s: Seconds between TERM and KILL.

    Returns:
        Those that survived KILL for `KILLED_S`.
    """
    known: dict[int, int] = {}

    def remaining() -> list[int]:
        # What a process starts while it ends is found below those that are still there.
        for pid in [*known, *pids]:
            for each in [pid, *descendants(pid)] if is_running(pid, known.get(pid)) else []:
                if (ticks := start_ticks(each)) is not None:
                    known.setdefault(each, ticks)
        return [pid for pid, ticks in known.items() if is_running(pid, ticks)]

    pids = list(pids)
    _signal(remaining(), signal.SIGTERM)
    for number, wait_s in ((0, grace_s), (signal.SIGKILL, KILLED_S)):
        deadline = time.monotonic() + wait_s
        while (left := remaining()) and time.monotonic() < deadline:
            if number:
                _signal(left, number)
            time.sleep(0.05)
    return remaining()


def mentioning(path: Path) -> list[int]:
    """Our own processes whose command line, environment or folder names `path`.

    The second net, for when the supervisor itself was killed and the tree is
    broken: `path` is a private folder that nothing else has a reason to name.
    This process and those above it are left out: the shell that runs a command
    may have the folder's name on its command line.

    Args:
        path: A folder that belongs to one state.
    """
    needle = os.fsencode(path)
    spared = ancestors(os.getpid())
    found = []
    for pid in all_pids():
        entry = Path(f"/proc/{pid}")
        try:
            if pid in spared or entry.stat().st_uid != os.getuid():
                continue
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            folder = os.fsencode((entry / "cwd").readlink())
        except OSError:
            continue  # it ended while we looked, or it is not ours to read
        here = folder == needle or folder.startswith(needle + b"/")
        if (needle in text or here) and is_running(pid):
            found.append(pid)
    return found
