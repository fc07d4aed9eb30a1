"""`make bench`: performance, measured as ratios of medians.

```
python -m workshop_lib.tools.bench                          everything (13 minutes)
python -m workshop_lib.tools.bench --only apply --rounds 5
python -m workshop_lib.tools.bench --strict                 fail when a bar is missed
```

Each entry compares two sides in turn in one run (see `measures.frame`), because a time
by itself says more about the machine than about the code. `build/bench.json` keeps every
sample. The exit status is 1 when a measurement failed or proves nothing, and with
`--strict` also when a bar is missed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.local.paths import write_json
from workshop_lib.errors import WorkshopError
from workshop_lib.progress import format_duration
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.measures.apply import Apply
from workshop_lib.tools.measures.client import Client
from workshop_lib.tools.measures.frame import Report, measure, table
from workshop_lib.tools.measures.grpo_step import GrpoStep
from workshop_lib.tools.measures.live import LiveVllm
from workshop_lib.tools.measures.log_lines import LogLines
from workshop_lib.tools.run import describe_commit, describe_machine, describe_versions
from workshop_lib.tools.stopping import Interrupted, say, signals_interrupt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from workshop_lib.tools.measures.frame import Entry

BUSY_LOAD = 1.0
"""Processes that ran on average in the last minute: more disturb what is measured."""


def entries(build: Path) -> dict[str, Entry]:
    """List what can be measured, by name.

    Args:
        build: Where logs go.
    """
    logs = build / "bench"
    known: list[Entry] = [
        Client(logs=logs, say=say),
        LiveVllm(),
        Apply(),
        LogLines(logs=logs),
        GrpoStep(logs=logs),
    ]
    return {entry.name: entry for entry in known}


def _parse(arguments: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.tools.bench", description="Measure performance."
    )
    parser.add_argument(
        "--only", action="append", choices=names, help="measure only this; may be repeated"
    )
    parser.add_argument("--rounds", type=_positive, help="how often each side is measured")
    parser.add_argument("--strict", action="store_true", help="fail when a bar is missed")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds, 1 or more")
    return int(text)


class _Bench:
    """One run: what was measured so far, on screen and in build/bench.json."""

    def __init__(self, build: Path, *, strict: bool) -> None:
        self.build = build
        self.strict = strict
        self.began = time.monotonic()
        self.results: dict[str, dict[str, Any]] = {}
        self.problems: list[str] = []
        self.missed: list[str] = []
        load = os.getloadavg()[0]
        self.about = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": describe_commit(CHECKOUT),
            "machine": describe_machine() | {"load_before": round(load, 2)},
            "versions": describe_versions(),
        }
        if load > BUSY_LOAD:
            say(
                f"The machine is busy (load {load:.1f}): medians are less sure than on a quiet one."
            )

    def run(self, entry: Entry, rounds: int | None) -> None:
        """Measure an entry; its failure does not keep the others from being measured."""
        began = time.monotonic()
        reports: list[Report] = []
        error = ""
        try:
            measure(entry, rounds, reports.append)
        except WorkshopError as failure:
            error = str(failure)
            self.problems.append(f"{entry.name}: {error}")
            say(f"WorkshopError: {entry.name}: {error}", error=True)
        for report in reports:
            say(f"\n{table(report)}")
            self._judge(entry.name, report)
        say("")
        self.results[entry.name] = {
            "error": error,
            "seconds": round(time.monotonic() - began, 1),
            "comparisons": [report.data() for report in reports],
        }
        self._keep()

    def _judge(self, name: str, report: Report) -> None:
        """Note missed bars; one that proves the measurement makes it a broken one."""
        first, second = report.sides
        for row in (*report.missed, *report.unproven):
            value = f"{first} {row.first:.3g} {row.unit}" if row.first is not None else "unknown"
            ratio = f", {row.ratio:.3g} times {second}" if row.ratio is not None else ""
            line = f"{name}: {row.label}: {value}{ratio}; the bar is {row.bar}"
            (self.problems if row.proves else self.missed).append(line)

    def _keep(self) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        data = {**self.about, "seconds": seconds, "entries": self.results}
        write_json(self.build / "bench.json", data, mode=0o644)

    def finish(self) -> int:
        """Say how it went.

        Returns:
            The exit status.
        """
        for line in self.missed:
            say(f"Missed: {line}")
        for line in self.problems:
            say(f"Not measured: {line}", error=True)
        took = format_duration(time.monotonic() - self.began)
        say(f"Measuring took {took}. Every sample: {self.build / 'bench.json'}")
        return int(bool(self.problems) or (self.strict and bool(self.missed)))


def main(
    arguments: Sequence[str] | None = None,
    *,
    known: Mapping[str, Entry] | None = None,
    root: Path = CHECKOUT,
) -> int:
    """Measure, print, and write `build/bench.json`.

    Args:
        arguments: The command line; default: this process's.
        known: What can be measured; default: `entries`.
        root: The folder of `build/`.

    Returns:
        The exit status.
    """
    build = root / "build"
    known = entries(build) if known is None else known
    wishes = _parse(arguments, list(known))
    chosen = [known[name] for name in known if not wishes.only or name in wishes.only]
    bench = _Bench(build, strict=wishes.strict)
    try:
        with signals_interrupt():
            for entry in chosen:
                bench.run(entry, wishes.rounds)
    except Interrupted as signalled:
        say("Interrupted; what it started is stopped.", error=True)
        return signalled.exit_status
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
