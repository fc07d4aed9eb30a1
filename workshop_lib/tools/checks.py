"""Makes the environments of tools that do not fit into the workshop's own.

```
python -m workshop_lib.tools.checks             .venv-checks: checkov, kubernetes-validate
python -m workshop_lib.tools.checks guidellm    .venv-guidellm: a client for make bench
```

These tools and the workshop pin the same packages to different versions, so each has a
virtual environment of its own, from `requirements-<name>.txt`. Without `.venv-checks` `make
test` skips the tests that use it, without `.venv-guidellm` `make bench` leaves a comparison
out; both say so.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workshop_lib.tools.installer import TORCH_CPU_INDEX

__all__ = ["environment", "is_current", "main"]

ROOT = Path(__file__).resolve().parents[2]

CONTENTS = {
    "checks": "checkov and kubernetes-validate into .venv-checks: 1 to 3 minutes",
    "guidellm": "guidellm into .venv-guidellm (1.5 GB): 1 to 3 minutes",
}
WITHOUT = {
    "checks": "Without it its tests are skipped",
    "guidellm": "Without it make bench leaves its comparison out",
}


def environment(root: Path = ROOT, name: str = "checks") -> Path:
    """An environment's folder, there or not."""
    return root / f".venv-{name}"


def _wanted(root: Path, name: str = "checks") -> str:
    lock = (root / f"requirements-{name}.txt").read_bytes()
    return f"{sys.version.split()[0]} {hashlib.sha256(lock).hexdigest()}"


def is_current(root: Path = ROOT, name: str = "checks") -> bool:
    """Whether an environment holds what its lock asks for.

    Args:
        root: The checkout.
        name: Which one.
    """
    stamp = environment(root, name) / "stamp"
    return stamp.is_file() and stamp.read_text() == _wanted(root, name)


def install(root: Path = ROOT, name: str = "checks") -> None:
    """Make an environment, anew if its lock has changed.

    Args:
        root: The checkout.
        name: Which one.

    Raises:
        CalledProcessError: pip could not install it.
    """
    folder = environment(root, name)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    # An index out of reach is to be noticed in seconds; this environment is not worth minutes.
    pip += ["-q", "--retries", "1", "--timeout", "15", "--no-deps"]
    source = root / f"requirements-{name}.in"
    pin = re.search(r"^torch==\S+", source.read_text(), re.MULTILINE) if source.is_file() else None
    if pin:  # as in the workshop's own: the CPU build, from where pip looks, else from its index
        try:
            subprocess.run([*pip, pin[0]], check=True, stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError:
            subprocess.run([*pip, pin[0], "--index-url", TORCH_CPU_INDEX], check=True)
    lock = str(root / f"requirements-{name}.txt")
    subprocess.run([*pip, "--require-hashes", "-r", lock], check=True)
    (folder / "stamp").write_text(_wanted(root, name))  # last: what was interrupted is made anew


def main(root: Path = ROOT, name: str = "checks") -> int:
    """Make an environment if it is not current.

    Args:
        root: The checkout.
        name: Which one.

    Returns:
        The exit status: 0, or 1 after one line that says what failed.
    """
    if is_current(root, name):
        return 0
    print(f"Installing {CONTENTS[name]}.", flush=True)
    try:
        install(root, name)
    except subprocess.CalledProcessError as error:
        print(
            f"the environment .venv-{name} could not be made: {' '.join(error.cmd[1:4])} ended "
            f"with {error.returncode}; is a package index in reach? {WITHOUT[name]}",
            file=sys.stderr,
        )
        return 1
    return 0


def _name(arguments: Sequence[str]) -> str:
    name = arguments[0] if arguments else "checks"
    if name not in CONTENTS or len(arguments) > 1:
        sys.exit(f"unknown environment {' '.join(arguments)!r}; there are: {', '.join(CONTENTS)}")
    return name


if __name__ == "__main__":
    sys.exit(main(name=_name(sys.argv[1:])))
