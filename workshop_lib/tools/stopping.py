"""How a command begins and ends: alone, interruptible, and with nothing left running."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.kernels import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

__all__ = ["Interrupted", "alone", "say", "signals_interrupt", "stop_everything"]

STOP_TIMEOUT_S = 120.0

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end.

    Attributes:
        signum: Which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def exit_status(self) -> int:
        """What a shell reports for a process that this signal ended."""
        return 128 + self.signum


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP in the block into `Interrupted`.

    Later ones only get an answer, so that nothing cuts the cleaning short.
    """

    def first(signum: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, later)
        if signum == signal.SIGHUP:  # the terminal has gone: writing to it would fail
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.close(null)
        raise Interrupted(signum)

    def later(signum: int, frame: FrameType | None) -> None:
        # os.write: print could be interrupted by itself here, which Python refuses.
        with contextlib.suppress(OSError):
            os.write(2, b"\nStill stopping what runs; a moment.\n")

    before = {each: signal.getsignal(each) for each in SIGNALS}
    for each in SIGNALS:
        signal.signal(each, first)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def alone(build: Path, state: str) -> Iterator[None]:
    """Let one command at a time use a state of a checkout.

    Args:
        build: Where the lock lies.
        state: The state's name.

    Raises:
        WorkshopError: Another command uses it.
    """
    build.mkdir(parents=True, exist_ok=True)
    with (build / f".{state}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkshopError(
                f"another command executes notebooks in {build} (state {state!r});"
                " wait for it, or interrupt it"
            ) from None
        yield


def stop_everything(state: str) -> str:
    """Stop whatever runs in a state of the local cluster, and remove it.

    A process of its own session does it, which a terminal's Ctrl-C does not reach.

    Args:
        state: The state's name.

    Returns:
        What went wrong, in one line; empty when nothing is left.
    """
    command = [sys.executable, "-m", "workshop_lib.cluster.local", "clean", "--state", state]
    process = subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"stopping what ran took more than {STOP_TIMEOUT_S:g} s; run `make clean`"
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit status {process.returncode}"
        return f"stopping what ran failed: {last}; run `make clean`"
    return ""


def say(text: str, *, error: bool = False) -> None:
    """Print a line, at once; a reader that has gone away is no error.

    Args:
        text: The line.
        error: On stderr.
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
