"""Process trees on Linux: who descends from whom, and stopping all of them.

A child subreaper becomes the parent of every orphan below it, so its descendants are complete
at any time. Standard library alone: `shim.py` runs this once for every container.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

SHIM = Path(__file__).with_name("shim.py")

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
PR_SET_CHILD_SUBREAPER = 36

KILLED_S = 30.0
"""How long a killed process may take to be gone: an engine gives gigabytes back."""


def become_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants (prctl(2))."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have this process told to end (SIGTERM) when its parent dies, however that dies."""
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
    """Start time in clock ticks since boot: with the pid, a process's identity."""
    stat = _stat(pid)
    return stat and stat[2]


def is_running(pid: int, ticks: int | None = None) -> bool:
    """Whether the process runs; a zombie does not, nor does a reused pid (other `ticks`)."""
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX" and ticks in (None, stat[2])


def parent_of(pid: int) -> int | None:
    """A process's parent; None when it is gone."""
    stat = _stat(pid)
    return stat and stat[1]


def command_line(pid: int) -> list[bytes]:
    """A process's arguments; empty when it is gone, a zombie or not ours to read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def all_pids() -> list[int]:
    """Every process of this machine that we can see."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def descendants(root: int) -> list[int]:
    """Every running process below `root`, children before grandchildren."""
    stats = {pid: stat for pid in all_pids() if (stat := _stat(pid)) is not None}
    children: dict[int, list[int]] = {}
    for pid, (_, parent, _) in stats.items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    level = [root]
    while level:
        level = [child for pid in level for child in children.get(pid, [])]
        found += level
    return [pid for pid in found if stats[pid][0] not in "ZX"]


def tree(root: int) -> list[int]:
    """A process and all below it."""
    return [root, *descendants(root)]


def send(pids: Iterable[int], number: int) -> None:
    """Signal processes; one that ended by itself, or is another user's, is passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
            if number == signal.SIGTERM:
                os.kill(pid, signal.SIGCONT)  # a stopped process takes no TERM
        except (ProcessLookupError, PermissionError):
            continue


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return


def stop(find: Callable[[], list[int]], *, grace_s: float, reap: bool = False) -> list[int]:
    """Stop what `find` finds, again and again: TERM, wait, KILL; the processes that survived it.

    With `reap`, dead children of this process are collected (when it is the subreaper).
    """
    known: dict[int, int] = {}
    told: set[int] = set()

    def remaining() -> list[int]:
        if reap:
            _reap()
        for pid in find():
            if (ticks := start_ticks(pid)) is not None:
                known.setdefault(pid, ticks)
        return [pid for pid, ticks in known.items() if is_running(pid, ticks)]

    for number, limit_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILLED_S)):
        deadline = time.monotonic() + limit_s
        while left := remaining():
            send([pid for pid in left if number == signal.SIGKILL or pid not in told], number)
            told.update(left)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return []
    return remaining()


def mentioning(path: Path) -> list[int]:
    """Our own processes whose command line, environment or folder names `path`.

    The second net, for when the tree is broken because the agent was killed: `path` is a
    private folder that nothing else has a reason to name. This process and those above it
    are left out: the shell that runs a command may have the folder on its command line.
    """
    needle = os.fsencode(path)
    spared: set[int] = set()
    above: int | None = os.getpid()
    while above and above not in spared:
        spared.add(above)
        above = parent_of(above)
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


def stop_mentioning(path: Path, *, grace_s: float) -> list[int]:
    """Stop what names a private folder: shims in their own time, and then what is left.

    What has no shim any more has nobody to look after its end: no use waiting long for it.
    """
    shim = os.fsencode(SHIM)
    stop(lambda: [p for p in mentioning(path) if shim in command_line(p)], grace_s=grace_s)
    return stop(lambda: [each for p in mentioning(path) for each in tree(p)], grace_s=2.0)
