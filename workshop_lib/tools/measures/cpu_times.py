"""CPU time of processes, read from outside."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

__all__ = ["family_cpu_s", "process_cpu_s", "process_family"]

_CPUCLOCK_SCHED = 2


def process_cpu_s(pid: int) -> float:
    """CPU time that a process has used, all its threads, in seconds.

    The kernel's clock of that process, nanoseconds fine; what clock_getcpuclockid(3)
    returns is `~pid << 3 | CPUCLOCK_SCHED`.

    Args:
        pid: The process.

    Raises:
        OSError: There is no such process.

    Example:
        >>> import os
        >>> process_cpu_s(os.getpid()) > 0
        True
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)


def process_family(pid: int) -> list[int]:
    """A process and what descends from it, as Linux lists them.

    Args:
        pid: The process; nothing is listed of one that has ended.

    Example:
        >>> import os
        >>> process_family(os.getpid())[0] == os.getpid()
        True
    """
    family = [pid]
    for parent in family:  # which grows meanwhile
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                family += map(int, children.read_text(encoding="ascii").split())
    return family


def family_cpu_s(family: list[int]) -> float:
    """CPU time that processes have used together, seconds; of one that has ended, nothing."""
    total = 0.0
    for pid in family:
        with contextlib.suppress(OSError):
            total += process_cpu_s(pid)
    return total
