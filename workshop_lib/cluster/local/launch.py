"""Starts supervisord and ends: `python launch.py CONFIG OUTPUT IDENTITY`.

Supervisord gets a session of its own, which a kernel's Ctrl-C does not reach, and
becomes the adopter of every orphan below it. It is not the kernel's child, so it
lives on, and IDENTITY says who it is even when the kernel is killed meanwhile.

It is a script of the standard library alone, because a learner waits for it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# A script's own folder is on its path: the module beside it is found without the package.
import processes  # type: ignore[import-not-found]


def main(config: str, output: str, identity: str) -> None:
    """Fork; the parent writes who the child is, the child becomes supervisord."""
    child = os.fork()
    if child:
        scratch = Path(f"{identity}.new")
        scratch.write_text(json.dumps({"pid": child, "ticks": processes.start_ticks(child)}))
        scratch.replace(identity)
        return
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    processes.become_subreaper()
    program = [sys.executable, "-m", "supervisor.supervisord", "-c", config]
    os.execv(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])
