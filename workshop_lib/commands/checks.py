"""Makes the second environment, with the tools that look at the manifests: `make checks`.

checkov and the workshop pin the same packages to different versions, so the tools have a
virtual environment of their own, `.venv-checks`, from `requirements-checks.txt`. Without it
`make test` skips the tests that use it, and says so.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["environment", "is_current", "main"]

ROOT = Path(__file__).resolve().parents[2]


def environment(root: Path = ROOT) -> Path:
    """The second environment's folder, there or not."""
    return root / ".venv-checks"


def _wanted(root: Path) -> str:
    lock = (root / "requirements-checks.txt").read_bytes()
    return f"{sys.version.split()[0]} {hashlib.sha256(lock).hexdigest()}"


def is_current(root: Path = ROOT) -> bool:
    """Whether the second environment holds what its lock asks for.

    Args:
        root: The checkout.
    """
    stamp = environment(root) / "stamp"
    return stamp.is_file() and stamp.read_text() == _wanted(root)


def install(root: Path = ROOT) -> None:
    """Make the second environment, anew if its lock has changed.

    Args:
        root: The checkout.

    Raises:
        CalledProcessError: pip could not install it.
    """
    folder = environment(root)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    lock = str(root / "requirements-checks.txt")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    # An index out of reach is to be noticed in seconds; this environment is not worth minutes.
    pip += ["-q", "--retries", "1", "--timeout", "15", "--no-deps", "--require-hashes", "-r", lock]
    subprocess.run(pip, check=True)
    (folder / "stamp").write_text(_wanted(root))  # last: what was interrupted is made anew


def main(root: Path = ROOT) -> int:
    """Make the second environment if it is not current.

    Args:
        root: The checkout.

    Returns:
        The exit status: 0, or 1 after one line that says what failed.
    """
    if is_current(root):
        return 0
    print(
        "Installing checkov and kubernetes-validate into .venv-checks: 1 to 3 minutes.", flush=True
    )
    try:
        install(root)
    except subprocess.CalledProcessError as error:
        print(
            f"the second environment could not be made: {' '.join(error.cmd[1:4])} ended with "
            f"{error.returncode}; is a package index in reach? Without it its tests are skipped",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
