"""What a killed runner or a killed shim leaves behind, found and ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from workshop_lib.cluster.local import processes

__all__ = ["PROBE_MARK", "SHIM", "end_shims", "kill_orphans", "mark", "term_adopted_shims"]

SHIM = Path(__file__).with_name("shim.py")

PROBE_MARK = "WORKSHOP_PROBE"
"""In the environment of a probe's command: a runner's child that is neither shim nor orphan."""


def mark(runtime: Path, key: str) -> str:
    """What the shims of a workload have on their command line, and nothing else has.

    Args:
        runtime: The state's private folder.
        key: `Kind/name` of the workload.
    """
    return f"{runtime}:{key}"


def end_shims(runtime: Path, key: str, *, grace_s: float) -> list[int]:
    """End the containers of a workload whose runner is no more.

    The supervisor adopted their shims; a shim that gets TERM takes its container along.

    Args:
        runtime: The state's private folder.
        key: `Kind/name` of the workload.
        grace_s: Seconds between TERM and KILL.

    Returns:
        The processes that could not be ended.
    """
    wanted = [os.fsencode(SHIM), os.fsencode(mark(runtime, key))]
    shims = [
        pid
        for pid in processes.all_pids()
        if all(word in processes.command_line(pid) for word in wanted)
    ]
    return processes.stop_all(shims, grace_s=grace_s)


def term_adopted_shims(parent: int) -> None:
    """Tell the shims that a subreaper adopted from a killed runner to stop."""
    for pid in processes.descendants(parent):
        adopted = processes.parent_of(pid) == parent
        if adopted and os.fsencode(SHIM) in processes.command_line(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


def kill_orphans(parent: int) -> None:
    """Kill the children of a subreaper that it did not start: a killed shim's containers.

    Args:
        parent: A runner, or supervisord.
    """
    own = processes.command_line(parent)
    while True:
        found = []
        for pid in processes.descendants(parent):
            words = processes.command_line(pid)
            if processes.parent_of(pid) != parent or not words or _is_probe(pid):
                continue
            ours = os.fsencode(SHIM) in words or any(
                word.startswith(b"workshop_lib.cluster.local.")
                or (b"/programs/" in word and word.endswith(b"/run.sh"))
                for word in words
            )
            # A child that has not become another program yet still looks like its parent.
            if not ours and words != own:
                found.append(pid)
        if not found:
            return
        for victim in [v for pid in found for v in [pid, *processes.descendants(pid)]]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(victim, signal.SIGKILL)
        if parent == os.getpid():
            for pid in found:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _is_probe(pid: int) -> bool:
    try:
        return f"{PROBE_MARK}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return True  # gone, or not ours
