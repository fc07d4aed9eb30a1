"""The command line: `workshop metrics PATH --json`."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.training.runs.columns import RUN_COLUMNS
from workshop_lib.training.runs.run import Run, read_run
from workshop_lib.training.runs.verdict import Verdict, judge


def main(argv: Sequence[str] | None = None) -> int:
    """Print what a run has done and what to think of it.

    Args:
        argv: Arguments; those of the command line by default.

    Returns:
        Exit code: 0, or 2 for what is no run. A bad verdict is an answer, not an error.

    Example:
        >>> main(["data/recorded/nemo-rl/honest", "--json"])  # doctest: +SKIP
    """
    parser = argparse.ArgumentParser(
        prog="workshop metrics",
        description="A GRPO run's metrics, and a verdict with its reasons.",
    )
    parser.add_argument(
        "path", type=Path, help="a run's folder, a TensorBoard event file, or a console log"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        run = read_run(options.path)
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    verdict = judge(run.frame, run.validation)
    print(json.dumps(_summary(run, verdict), indent=2) if options.json else _text(run, verdict))
    return 0


def _summary(run: Run, verdict: Verdict) -> dict[str, Any]:
    columns = {}
    for name in RUN_COLUMNS:
        if name in ("step", "group_means", "time"):
            continue
        known = run.frame[name].dropna()
        if len(known):
            columns[name] = {
                "first": _plain(known.iloc[0]),
                "last": _plain(known.iloc[-1]),
                "min": _plain(known.min()),
                "median": _plain(known.median()),
                "max": _plain(known.max()),
                "steps": len(known),
            }
    validation = [
        {name: _plain(value) for name, value in row.items()}
        for row in run.validation.to_dict("records")
    ]
    return {
        "path": str(run.path),
        "source": run.source,
        "steps_done": len(run.frame),
        "steps_planned": run.planned,
        "columns": columns,
        "validation": validation,
        "notes": list(run.notes),
        "verdict": verdict.to_dict(),
    }


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _shown(value: float | None) -> str:
    return f"{'no number' if value is None else format(value, '.4g'):>10}"


def _text(run: Run, verdict: Verdict) -> str:
    of = f" of {run.planned}" if run.planned else ""
    lines = [f"{run.path}: {run.source}, {len(run.frame)}{of} steps"]
    for name, about in _summary(run, verdict)["columns"].items():
        lines.append(
            f"  {name:<16} {_shown(about['first'])} at first {_shown(about['last'])} at last"
        )
    lines += [f"  note: {note}" for note in run.notes]
    return "\n".join([*lines, str(verdict)])
