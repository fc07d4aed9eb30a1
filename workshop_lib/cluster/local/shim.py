"""One container: runs a command and takes everything it started down with it.

Run by the agent as `python shim.py MARK PARENT GRACE_S LOG_FILE -- COMMAND...`. A container's
PID namespace ends with its process 1; here the shim is the subreaper of its command, and stops
what is left when the command ends, when it is told to (SIGTERM), or when the agent dies. It
ends with the command's exit code, 128 + n for signal n. MARK names the workload.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

# A script's own folder is on its path: the module beside it is found without the package.
import processes  # type: ignore[import-not-found]


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    _mark, parent, grace_s, log_file, _separator, *command = arguments
    child: subprocess.Popen[bytes] | None = None
    told_to_stop = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told_to_stop
        told_to_stop = True
        if child is not None:
            # Not Popen's own method: it would collect a dead child, whose status we wait for.
            os.kill(child.pid, signal.SIGTERM)
            # From here the command has the grace period to end; then it is killed.
            signal.setitimer(signal.ITIMER_REAL, max(0.1, float(grace_s)))

    def kill(number: int, frame: FrameType | None) -> None:
        if child is not None:
            os.kill(child.pid, signal.SIGKILL)

    # Before the command starts: a TERM that comes while it does must not be lost.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, kill)
    processes.become_subreaper()
    processes.end_with_parent()
    if os.getppid() != int(parent):  # it died before we could ask to be told
        return 143
    log = Path(log_file).open("ab", buffering=0)  # noqa: SIM115  (lives as long as the shim)
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    except OSError as error:
        # What a shell says, and its exit codes, when a command cannot start.
        log.write(f'exec: "{command[0]}": {error.strerror}\n'.encode())
        return 127 if isinstance(error, FileNotFoundError) else 126
    if told_to_stop:
        stop(signal.SIGTERM, None)
    code = _wait(child.pid)
    child = None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    me = os.getpid()
    processes.stop(lambda: processes.descendants(me), grace_s=min(3.0, float(grace_s)), reap=True)
    return 128 - code if code < 0 else code


def _wait(pid: int) -> int:
    """Wait for the command, and collect the orphans that end before it, as process 1 does."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
