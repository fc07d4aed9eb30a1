"""The frame of `make bench`: two sides measured in turn, the ratio of their medians, a table.

A time by itself says more about the machine than about the code, so each comparison runs both
sides in turn (A B A B …) in one run, each in a process that is alive all the time. Every sample
is kept in build/bench/NAME.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import operator
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from workshop_lib.errors import WorkshopError

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bench"
Sample = Mapping[str, float]
# A quantity's key in the samples, its name with its unit, and the bar: "ratio" (of the medians, the
# first side's by the second's) or "median" (the first side's), a comparison, a limit. With a fourth
# word, "proves", the measurement is worth nothing when the bar is missed.
Row = tuple[str, str, str]

_COMPARE = {"<=": operator.le, ">=": operator.ge}


class Worker:
    """A fresh process that answers one question at a time; it ends with the `with` block.

    Its target gets a connection: it calls `answer`, or sends None when it is ready and then one
    message for each that it gets. What it prints goes to build/bench/NAME.log.
    """

    def __init__(
        self, name: str, target: Callable[[Connection], None], core: int | None = None
    ) -> None:
        self.name = name
        BUILD.mkdir(parents=True, exist_ok=True)
        self._log = BUILD / f"{name.replace(' ', '-')}.log"
        context = multiprocessing.get_context("spawn")  # nothing of this process is inherited
        self._link, self._other = context.Pipe()
        self._process = context.Process(
            target=_begin, args=(target, core, str(self._log), self._other), daemon=True
        )

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def __enter__(self) -> Self:
        print(f"starting the {self.name}", flush=True)
        self._process.start()
        self._other.close()
        self._receive(180)  # a cold import of vLLM or TRL and torch takes most of it
        return self

    def __exit__(self, *error: object) -> None:
        self._link.close()
        self._process.join(0 if error[0] else 30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, question: Any, timeout_s: float = 60) -> Any:
        """Send a message and return the answer."""
        with contextlib.suppress(OSError):  # it has ended, which the next line says
            self._link.send(question)
        return self._receive(timeout_s)

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._link.poll(timeout_s):
                raise WorkshopError(
                    f"{self.name} did not answer within {timeout_s:g} s; see {self._log}"
                )
            received = self._link.recv()
        except (EOFError, ConnectionError):
            self._process.join(30)
            status = self._process.exitcode
            raise WorkshopError(f"{self.name} ended with {status}; see {self._log}") from None
        if isinstance(received, Exception):
            raise WorkshopError(f"{self.name}: {received}; see {self._log}")
        return received


def _begin(
    target: Callable[[Connection], None], core: int | None, log: str, link: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is this process's parent's to handle
    if core is not None:
        os.sched_setaffinity(0, {core})
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(to, 1)
    os.dup2(to, 2)
    target(link)
    sys.stdout.flush()


def answer(link: Connection, handler: Callable[[Any], Any]) -> None:
    """Answer questions until the other end is closed; an error is an answer too."""
    link.send(None)  # ready
    while True:
        try:
            question = link.recv()
        except EOFError:
            return
        try:
            link.send(handler(question))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the asker raises it
            link.send(WorkshopError(" ".join(f"{type(error).__name__}: {error}".split())))


def two_cores() -> tuple[int, int]:
    """A core for the server and one for the clients, which take turns."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise WorkshopError("server and client need a core each and this process may use one")
    return cores[0], cores[-1]


def cpu_s(pid: int) -> float:
    """CPU time that a process and all its threads have used: the kernel's clock of it."""
    return time.clock_gettime((~pid << 3) | 2)  # what clock_getcpuclockid(3) returns


def peak_memory_bytes(pid: int, *, reset: bool = False) -> int:
    """The most memory that a process has held at once (VmHWM), or since it was reset."""
    if reset:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # proc(5)
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Bench:
    """One script's measurements: on screen, in its JSON file, and as an exit status."""

    def __init__(self, name: str, rounds: int) -> None:
        options = argparse.ArgumentParser(prog=f"tests/bench/{name}.py")
        options.add_argument("--rounds", type=int, default=rounds, help="of each side")
        options.add_argument("--strict", action="store_true", help="fail when a bar is missed")
        self._options = options.parse_args()
        self._name = name
        self._missed: list[str] = []
        self._reports: list[dict[str, Any]] = []
        self._load = os.getloadavg()[0]
        if self._load > 1:
            print(f"The machine is busy (load {self._load:.1f}): medians are less sure.")

    def compare(
        self,
        title: str,
        sides: Mapping[str, Callable[[], Sample]],
        rows: Sequence[Row],
        rounds: int = 0,
    ) -> None:
        """Measure each side once a round, in turn, and show the table."""
        samples: dict[str, dict[str, list[float]]] = {name: {} for name in sides}
        for number in range(rounds or self._options.rounds):
            for name, side in sides.items():
                print(f"  round {number + 1}: {name}", flush=True)
                for key, value in side().items():
                    samples[name].setdefault(key, []).append(value)
        print(f"\n{self._name}: {title}\n  {'':45}" + "".join(f"{n:>18}" for n in sides), end="")
        print(f"{'ratio':>9}  bar")
        for key, label, bar in rows:
            medians = [statistics.median(s[key]) if key in s else None for s in samples.values()]
            first, second = [*medians, None][:2]
            ratio = first / second if first is not None and second else None
            verdict = self._verdict(bar, {"ratio": ratio, "median": first}, f"{title}: {label}")
            cells = "".join(f"{'-' if m is None else format(m, ',.4g'):>18}" for m in medians)
            told = "-" if ratio is None else f"{ratio:.3g}"
            print(f"  {label:45}{cells}{told:>9}  {verdict}")
        self._reports.append({"title": title, "samples": samples})
        machine = {"load_before": self._load, "cores": os.cpu_count()}
        body = {"machine": machine, "comparisons": self._reports, "missed": self._missed}
        (BUILD / f"{self._name}.json").write_text(json.dumps(body, indent=1), encoding="utf-8")

    def _verdict(self, bar: str, values: Mapping[str, float | None], what: str) -> str:
        if not bar:
            return ""
        of, compares, limit, *proves = bar.split()
        value = values[of]
        if value is not None and _COMPARE[compares](value, float(limit)):
            return f"{of} {compares} {limit}: pass"
        if proves:
            raise WorkshopError(f"{what}: {of} {value} and not {compares} {limit}: proves nothing")
        self._missed.append(f"{what}: {of} {value}, the bar is {compares} {limit}")
        return f"{of} {compares} {limit}: MISSED"

    def finish(self) -> int:
        """Say what was missed; the exit status."""
        for line in self._missed:
            print(f"Missed: {line}")
        return int(self._options.strict and bool(self._missed))


def run(main: Callable[[], int]) -> None:
    """Run a script: one line and status 1 for a measurement that failed, 130 for Ctrl-C."""
    try:
        sys.exit(main())
    except WorkshopError as error:
        sys.exit(f"WorkshopError: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
