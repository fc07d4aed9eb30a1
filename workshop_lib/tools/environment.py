"""Makes the workshop's Python environment current, then runs a command in it.

Every `make` target starts here, with the system's Python and before anything is
installed: this file and its neighbours `machine` and `installer` use the standard
library only, and their syntax is old enough for an old Python to read and be refused.

```
python3 workshop_lib/tools/environment.py                   installs what the lock asks for
… environment.py --say "Running …" -- -m pytest                and then prints that and runs that
… environment.py --existing -- -m workshop_lib.cluster.local clean  only if something may be running
```

The environment is `.venv`, or the active conda environment (`environment.yml`).
It is filled by two pip calls, because one `--hash` turns on hash checking for a
whole call, and torch comes from several places, with no hash in common:

1. `torch==…+cpu`, from whatever pip is configured with, else from the PyTorch CPU
   index, which is asked for nothing else. The `+cpu` keeps PyPI's CUDA build out.
2. `requirements.txt` with `--require-hashes --no-deps`: exactly the lock.

A stamp in the environment says which lock it holds. It says "installing" from
before the first change until after the last, so that what a killed run left is
never taken for complete; such an environment is made anew.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from workshop_lib.tools.installer import (
        TORCH_REQUIREMENT,
        Environment,
        Installer,
        clean_variables,
        locked_names,
        normalized,
    )
    from workshop_lib.tools.machine import (
        PYTHON_VERSION,
        Refusal,
        describe_machine,
        dotted,
        refusal,
    )
else:  # a script, before anything is installed: its neighbours are top-level modules
    from installer import (
        TORCH_REQUIREMENT,
        Environment,
        Installer,
        clean_variables,
        locked_names,
        normalized,
    )
    from machine import PYTHON_VERSION, Refusal, describe_machine, dotted, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INSTALLED_GB = 3.5

PRIVATE_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""No usage statistics leave the learner's machine, unless the learner says so."""


def choose_environment(root: Path, variables: Mapping[str, str]) -> Environment:
    """Choose where to install: the active conda environment unless it is `base`, else `.venv`.

    Args:
        root: The checkout.
        variables: The process's environment variables.
    """
    prefix = variables.get("CONDA_PREFIX")
    if prefix and variables.get("CONDA_DEFAULT_ENV") != "base":
        return Environment(Path(prefix), is_conda=True)
    return Environment(root / ".venv", is_conda=False)


def wanted_stamp(root: Path) -> dict[str, str]:
    """Describe the environment that this checkout wants; equal stamps mean nothing to do."""
    return {
        "state": "complete",
        "lock": hashlib.sha256((root / "requirements.txt").read_bytes()).hexdigest(),
        "torch": TORCH_REQUIREMENT,
        "python": dotted(PYTHON_VERSION),
        "root": str(root),
    }


def read_stamp(environment: Environment) -> dict[str, str] | None:
    """Read the environment's stamp; None if there is none, empty if it is unreadable."""
    try:
        stamp = json.loads(environment.stamp.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(environment: Environment, stamp: Mapping[str, str]) -> None:
    """Replace the stamp in one step, on disk before this returns."""
    temporary = environment.stamp.with_suffix(".new")
    with temporary.open("w") as file:
        json.dump(dict(stamp), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(environment.stamp)


def is_current(environment: Environment, root: Path) -> bool:
    """Whether the environment holds exactly what the lock asks for."""
    return os.access(str(environment.python), os.X_OK) and (
        read_stamp(environment) == wanted_stamp(root)
    )


def command_variables(environment: Environment, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables for a command in the environment: its programs come first on PATH."""
    result = {**PRIVATE_SETTINGS, **clean_variables(variables)}
    result["PATH"] = os.pathsep.join([str(environment.python.parent), variables.get("PATH", "")])
    if not environment.is_conda:
        result["VIRTUAL_ENV"] = str(environment.prefix)
    return result


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[int]:
    """Hold the lock on a folder; yields the descriptor that holds it.

    A lock on the folder itself leaves no file behind, and the kernel drops it
    when the last process that has the descriptor ends.
    """
    import fcntl  # here, so that a system without it is refused by name instead

    descriptor = os.open(str(folder), os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another command is installing this environment; waiting for it.", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def ensure(environment: Environment, root: Path) -> None:
    """Make the environment current; does nothing, quickly, if it is.

    Args:
        environment: Where to install.
        root: The checkout, whose lock is installed.

    Raises:
        Refusal: The machine cannot hold it, or pip failed.
    """
    if is_current(environment, root):
        return
    with exclusive(environment.prefix if environment.is_conda else root) as lock_fd:
        if is_current(environment, root):
            return  # the other command did it
        reason = refusal(describe_machine(root), environment.is_conda)
        if reason:
            raise Refusal(reason)
        install(environment, root, lock_fd)


def install(environment: Environment, root: Path, lock_fd: int) -> None:
    """Install the lock: anew, or on top of a complete environment of this checkout.

    Args:
        environment: Where to install.
        root: The checkout.
        lock_fd: The descriptor that holds the lock.

    Raises:
        Refusal: The place belongs to somebody else, or a step failed.
    """
    stamp = read_stamp(environment)
    wanted = wanted_stamp(root)
    reusable = (
        stamp is not None
        and stamp.get("state") == "complete"
        and os.access(str(environment.python), os.X_OK)
        and (environment.is_conda or stamp.get("root") == wanted["root"])  # a venv cannot be moved
    )
    if environment.is_conda and not environment.site_packages.is_dir():
        raise Refusal(
            f"The active conda environment {environment.prefix} has no Python"
            f" {dotted(PYTHON_VERSION)}: run `conda env create -f environment.yml` and activate"
            " that, or `conda deactivate`."
        )
    foreign = not environment.is_conda and stamp is None and environment.prefix.exists()
    if foreign and any(environment.prefix.iterdir()):
        raise Refusal(f"{environment.prefix} was not made by this project: move it away, repeat.")

    installer = Installer(environment, root, lock_fd)
    names = locked_names((root / "requirements.txt").read_text())
    total = len(names) + 1
    if reusable:
        print(
            "Refreshing the environment: its lock has changed, usually under a minute.", flush=True
        )
    else:
        print(
            f"Installing the environment: {total} packages, {INSTALLED_GB} GB,"
            " usually 2 to 5 minutes.",
            flush=True,
        )
    environment.prefix.mkdir(exist_ok=True)
    write_stamp(environment, {**wanted, "state": "installing"})
    overwrite: list[str] = []
    if not reusable and environment.is_conda:
        # Half-written packages look installed to pip; those of conda stay as they are.
        overwrite = ["--ignore-installed"] if stamp is not None else []
    elif not reusable:
        make_venv(environment, installer)

    pip_install = installer.pip("install", "--no-compile", *overwrite)
    installer.torch(pip_install)
    exactly = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", "requirements.txt"]
    error = installer.run([*pip_install, "--progress-bar", "off", *exactly], "the lock", total)
    if error:
        raise installer.failure("the lock", error)
    if reusable and not environment.is_conda:
        remove_others(installer, {*names, "torch", "pip", "setuptools"})
    (environment.site_packages / "workshop.pth").write_text(f"{root}\n")
    # Compiled by all cores: pip's own compiling, with one, is half of its time. Some packages
    # bring templates that are no Python, so its exit status says nothing.
    compiling = [str(environment.python), "-m", "compileall", "-qq", "-j", "0"]
    installer.run([*compiling, str(environment.site_packages)], "compiling")
    shutil.rmtree(str(installer.temporary), ignore_errors=True)
    write_stamp(environment, wanted)
    installer.display.finish(f"The environment is ready after {installer.display.elapsed()}.")


def make_venv(environment: Environment, installer: Installer) -> None:
    """Empty `.venv`, all but its stamp, and create it with a pip of its own."""
    for path in environment.prefix.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        elif path != environment.stamp:
            path.unlink()
    # Not sys.executable: an activated .venv's own python has just been removed.
    python = getattr(sys, "_base_executable", None) or sys.executable
    error = installer.run([python, "-m", "venv", str(environment.prefix)], "creating .venv")
    if error:
        raise installer.failure(".venv", error)


def remove_others(installer: Installer, names: set[str]) -> None:
    """Uninstall what the lock no longer holds, so that old and new environments are the same."""
    listed = subprocess.run(
        installer.pip("list", "--format=json"),
        env=installer.variables(),
        stdout=subprocess.PIPE,
        check=True,
    )
    present = {str(package["name"]) for package in json.loads(listed.stdout)}
    kept = {normalized(name) for name in names}
    others = sorted(name for name in present if normalized(name) not in kept)
    if others:
        error = installer.run(installer.pip("uninstall", "--yes", *others), "removing old packages")
        if error:
            raise installer.failure("(removing old packages)", error)


def processes_of(root: Path) -> list[int]:
    """Find processes that run from this checkout's `.venv` or `.workshop`, by /proc."""
    marks = [os.fsencode(str(root / name)) + b"/" for name in (".venv", ".workshop")]
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if any(mark in entry.read_bytes() for mark in marks):
                found.append(int(entry.parent.name))
    return sorted(set(found) - {os.getpid(), os.getppid()})


def stop_on_signal(signum: int, frame: object) -> None:
    """Turn SIGTERM into an exception, so that pip is stopped too."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Make the environment current and run the command after `--` in it.

    Args:
        arguments: As in the module's docstring.

    Returns:
        The exit status, if no command replaces this process.
    """
    options, command = list(arguments), []
    if "--" in options:
        at = options.index("--")
        options, command = options[:at], options[at + 1 :]
    parser = argparse.ArgumentParser(description="Make the workshop's environment current.")
    parser.add_argument("--say", help="a line to print before the command after -- is run")
    parser.add_argument(
        "--existing", action="store_true", help="install nothing unless processes of ours still run"
    )
    wishes = parser.parse_args(options)
    root = Path(__file__).resolve().parents[2]
    os.chdir(str(root))
    environment = choose_environment(root, os.environ)
    stamp = read_stamp(environment) or {}
    usable = stamp.get("state") == "complete" and os.access(str(environment.python), os.X_OK)
    try:
        signal.signal(signal.SIGTERM, stop_on_signal)
        if wishes.existing and not usable and not processes_of(root):
            print("There is no environment, so nothing of the workshop runs: nothing to stop.")
            return 0
        if not (wishes.existing and usable):
            ensure(environment, root)
    except Refusal as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"The environment cannot be written: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; repeat the command to install the environment.", file=sys.stderr)
        return 130
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if wishes.say:
        print(wishes.say, flush=True)
    if command:
        variables = command_variables(environment, os.environ)
        os.execve(str(environment.python), [str(environment.python), *command], variables)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
