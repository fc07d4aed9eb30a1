"""Can this machine hold the workshop's environment? Standard library only, see `environment`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

PYTHON_VERSION = (3, 11)
GLIBC_VERSION = (2, 31)  # the newest that a wheel in the lock asks for (llguidance)
NEEDED_DISK_GIB = 6.0


class Refusal(Exception):
    """The environment cannot be made; the message is the one line to show."""


class Machine(NamedTuple):
    """What is known of this machine before anything is installed."""

    python: tuple[int, int]
    system: str
    architecture: str
    glibc: tuple[int, int] | None
    cpu_flags: frozenset[str]
    has_venv: bool
    free_disk_gib: float


def dotted(version: tuple[int, int]) -> str:
    """Write a version as people do.

    Example:
        >>> dotted((3, 11))
        '3.11'
    """
    return ".".join(map(str, version))


def describe_machine(root: Path) -> Machine:
    """Look at this machine: interpreter, platform, processor and disk.

    Args:
        root: The checkout; its disk is the one that matters.
    """
    glibc = None
    with contextlib.suppress(ValueError, OSError):  # musl does not know the name
        found = re.match(r"glibc (\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
        if found:
            glibc = (int(found[1]), int(found[2]))
    flags: frozenset[str] = frozenset()
    with contextlib.suppress(OSError):
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        flags = frozenset(found[1].split()) if found else flags
    return Machine(
        python=sys.version_info[:2],
        system=platform.system(),
        architecture=platform.machine(),
        glibc=glibc,
        cpu_flags=flags,
        has_venv=all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
        free_disk_gib=shutil.disk_usage(root).free / 2**30,
    )


def refusal(machine: Machine, is_conda: bool = False) -> str | None:
    """Say in one line why the environment cannot be made here, or None if it can.

    Args:
        machine: What `describe_machine` saw.
        is_conda: Whether a conda environment is used, which needs no `venv` module.

    Example:
        >>> refusal(describe_machine(Path(".")))
    """
    wanted = dotted(PYTHON_VERSION)
    if (machine.system, machine.architecture) != ("Linux", "x86_64"):
        return (
            f"This is {machine.system} on {machine.architecture}: the local stack (vLLM's CPU"
            " build) needs Linux on x86_64; use such a machine, a Linux VM or a container."
        )
    if machine.python != PYTHON_VERSION:
        return (
            f"This is Python {dotted(machine.python)}: the workshop needs {wanted}. Install it"
            f" (apt-get install python{wanted} python{wanted}-venv, or"
            " `conda env create -f environment.yml`), or name it: make PYTHON=/path/to/python3.11 …"
        )
    if machine.glibc is None or machine.glibc < GLIBC_VERSION:
        seen = f"glibc {dotted(machine.glibc)}" if machine.glibc else "no glibc"
        return (
            f"This system has {seen}: the packages need glibc {dotted(GLIBC_VERSION)} or later"
            " (Debian 11, Ubuntu 20.04 or newer)."
        )
    if machine.cpu_flags and "avx2" not in machine.cpu_flags:
        return "This processor has no AVX2, which vLLM's CPU build needs: use another machine."
    if not is_conda and not machine.has_venv:
        return (
            "This Python has no venv or ensurepip module:"
            f" apt-get install python{wanted}-venv, then repeat."
        )
    if machine.free_disk_gib < NEEDED_DISK_GIB:
        return (
            f"{machine.free_disk_gib:.1f} GiB of disk are free here and the environment needs"
            f" {NEEDED_DISK_GIB:.0f} while it is installed: free some, then repeat."
        )
    return None
