"""Runs pip for the environment: its log, its progress, its errors. Standard library only."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING or __package__:
    from workshop_lib.tools.machine import PYTHON_VERSION, Refusal, dotted
else:  # beside the script `environment`, before anything is installed
    from machine import PYTHON_VERSION, Refusal, dotted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TORCH_REQUIREMENT = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROGRESS_INTERVAL_S = 10.0
DISK_FULL = "no space left on device"


class Environment(NamedTuple):
    """A place to install into: `.venv`, or a conda environment."""

    prefix: Path
    is_conda: bool

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.prefix / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        """Where pip puts packages."""
        return self.prefix / "lib" / f"python{dotted(PYTHON_VERSION)}" / "site-packages"

    @property
    def stamp(self) -> Path:
        """The file that says what is installed."""
        return self.prefix / "workshop-environment.json"


def locked_names(lock: str) -> list[str]:
    r"""List the packages of a lock.

    Example:
        >>> locked_names("idna==3.10 \\\n    --hash=sha256:00\n")
        ['idna']
    """
    return re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==", lock, re.MULTILINE)


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def progress_of(log: str, installed: int, total: int) -> str:
    """Say what pip is doing, from its log so far.

    Args:
        log: What pip has printed.
        installed: Packages that are in place already.
        total: Packages in this call.
    """
    if "Installing collected packages" in log:
        return f"installing, {min(installed, total)} of {total} in place"
    fetched = re.findall(
        r"^(?:Collecting|Requirement already satisfied:) ([\w.-]+)", log, re.MULTILINE
    )
    if fetched:
        return f"fetching {len(fetched)} of {total}: {fetched[-1]}"
    return "starting pip"


def error_of(log: str) -> str:
    """Find the line of pip's log that says why it failed, shortened to one line."""
    if "No space left on device" in log:
        return DISK_FULL
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no output"]
    unreachable = "connection broken by" in log or "Max retries exceeded" in log
    if unreachable and ("No matching distribution" in errors[-1] or "OSError" in errors[-1]):
        return "the package index cannot be reached (network, proxy, or pip's index-url)"
    return errors[-1].replace("ERROR: ", "", 1)[:200]


class Display:
    """One line that changes in a terminal; a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.is_terminal = sys.stdout.isatty()
        self.last_s = 0.0

    def elapsed(self) -> str:
        """Time since the start, as minutes:seconds."""
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        return f"{minutes}:{seconds:02d}"

    def show(self, text: str) -> None:
        """Show what is being done, if it is time to."""
        now_s = time.monotonic() - self.started
        if now_s - self.last_s < (1.0 if self.is_terminal else PROGRESS_INTERVAL_S):
            return
        self.last_s = now_s
        start, end = ("\r\033[K", "") if self.is_terminal else ("", "\n")
        print(f"{start}  {self.elapsed()}  {text}"[:100], end=end, flush=True)

    def finish(self, text: str = "") -> None:
        """Remove the changing line and print the last one."""
        if self.is_terminal:
            print("\r\033[K", end="")
        if text:
            print(text, flush=True)


def clean_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Drop what would put packages from elsewhere before the lock's."""
    clean = {k: v for k, v in variables.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    clean["PYTHONNOUSERSITE"] = "1"
    return clean


class Installer:
    """Runs pip for one environment: a log, a display, and the lock file's descriptor."""

    def __init__(self, environment: Environment, root: Path, lock_fd: int) -> None:
        self.environment = environment
        self.root = root
        self.lock_fd = lock_fd
        self.display = Display()
        build = root / "build"
        self.temporary = build / "pip"  # not /tmp, which may be small: the lock's wheels go here
        shutil.rmtree(str(self.temporary), ignore_errors=True)  # of a killed run
        self.temporary.mkdir(parents=True)
        self.log = build / "install.log"
        self.log.write_text("")

    def run(self, command: Sequence[str], what: str, total: int = 0) -> str | None:
        """Run a command with its output in the log; None, or why it failed.

        Args:
            command: The command and its arguments.
            what: What it does, for the display.
            total: Packages that it installs; their progress is shown if there are many.
        """
        start = self.log.stat().st_size
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            # A killed parent leaves pip running: it keeps the lock until it ends.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock_fd,),
                start_new_session=True,  # a group of its own, to stop venv's children too
                env=self.variables(),
                cwd=str(self.root),
            )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.5)
                text = self.log.read_bytes()[start:].decode(errors="replace")
                if process.returncode is not None:
                    return error_of(text) if process.returncode else None
                installed = len(list(self.environment.site_packages.glob("*.dist-info")))
                detail = f": {progress_of(text, installed, total)}" if total else ""
                self.display.show(what + detail)
        finally:
            if process.poll() is None:
                self.stop(process)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Stop a command and what it started."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)

    def variables(self) -> dict[str, str]:
        """The variables that pip runs with: the user's configuration, nothing that redirects it."""
        variables = clean_variables(os.environ)
        for name in ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_HASHES"):
            variables.pop(name, None)
        variables.update(
            PIP_USER="0",
            PIP_NO_INPUT="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            PIP_ROOT_USER_ACTION="ignore",
            TMPDIR=str(self.temporary),
        )
        return variables

    def pip(self, *arguments: str) -> list[str]:
        """A pip command in the environment."""
        return [str(self.environment.python), "-m", "pip", *arguments]

    def torch(self, command: Sequence[str]) -> None:
        """Install or download the CPU build of torch; see the module's docstring.

        Args:
            command: The pip command, without the requirement.
        """
        quick = ["--retries", "1", "--timeout", "15", "--progress-bar", "off"]
        request = [*command, "--no-deps", *quick, TORCH_REQUIREMENT]
        error = self.run(request, "fetching torch from where pip is told to look")
        if error and error != DISK_FULL:
            error = self.run(
                [*request, "--index-url", TORCH_CPU_INDEX],
                "fetching torch from the PyTorch CPU index",
            )
        if error == DISK_FULL:
            raise self.failure("torch", error)
        if error:
            self.display.finish()
            raise Refusal(
                f"No CPU build of torch can be had: pip's configuration has no {TORCH_REQUIREMENT}"
                f" and {TORCH_CPU_INDEX} gives none. Restore the network, or set PIP_FIND_LINKS to"
                f" a folder that holds its wheel, then repeat. Log: {self.shown(self.log)}"
            )

    def failure(self, what: str, error: str) -> Refusal:
        """The refusal for a failed step."""
        self.display.finish()
        return Refusal(
            f"Installing {what} failed after {self.display.elapsed()}: {error}."
            f" Log: {self.shown(self.log)}; repeat the command to try again."
        )

    def shown(self, path: Path) -> str:
        """A path as the user would type it."""
        return os.path.relpath(str(path), str(self.root))
