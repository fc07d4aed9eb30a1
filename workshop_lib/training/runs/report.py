"""`workshop metrics RUN`: a run's table and its verdict in a few lines."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workshop_lib.training.runs.run import Run, read_run
from workshop_lib.training.runs.table import COLUMNS
from workshop_lib.training.runs.verdict import judge

__all__ = ["main", "run_report"]


def run_report(path: str | Path, *, as_json: bool = False) -> str:
    """What a run has done, and what to think of it.

    Args:
        path: As for `read_run`.
        as_json: One JSON object in place of lines.

    Raises:
        WorkshopError: There is nothing there that is a run.

    Example:
        >>> from workshop_lib.data import data_path
        >>> print(run_report(data_path("recorded/nemo-rl/honest")).splitlines()[-1][:44])
        learning: the reward rose from 0.12 to 0.86
    """
    run = read_run(path)
    verdict = judge(run)
    names = [n for n in COLUMNS if n not in ("step", "group_means", "not_finite", "time")]
    columns = {name: about for name in names if (about := _about(run, name))}
    if as_json:
        about = {
            "path": str(run.path),
            "source": run.source,
            "steps_done": len(run.frame),
            "steps_planned": run.planned,
            "error": run.error,
            "columns": columns,
            "validation": json.loads(run.validation.to_json(orient="records")),
            "notes": list(run.notes),
            "verdict": verdict.to_dict(),
        }
        return json.dumps(about, indent=2)
    of = f" of {run.planned}" if run.planned else ""
    lines = [f"{run.path}: {run.source}, {len(run.frame)}{of} steps"]
    for name, about in columns.items():
        first, last = (
            f"{'no number' if about[at] is None else format(about[at], '.4g'):>10}"
            for at in ("first", "last")
        )
        lines.append(f"  {name:<16} {first} at first {last} at last")
    return "\n".join([*lines, *(f"  note: {note}" for note in run.notes), str(verdict)])


def _about(run: Run, name: str) -> dict[str, Any]:
    """A column's first and last value and range; null where it is said to be no number."""
    values, said = run.frame[name], run.frame["not_finite"].str.split()
    known = values[values.notna() | said.map(lambda names: name in names)]
    if known.empty:
        return {}
    numbers = {"first": known.iloc[0], "last": known.iloc[-1], "min": known.min()}
    numbers |= {"median": known.median(), "max": known.max()}
    finite = {key: float(v) if math.isfinite(v) else None for key, v in numbers.items()}
    return finite | {"steps": len(known)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a run's metrics and its verdict. A bad verdict is an answer, not an error."""
    parser = argparse.ArgumentParser(
        prog="workshop metrics", description="A GRPO run's metrics, and a verdict with its reasons."
    )
    parser.add_argument(
        "path",
        type=Path,
        help="a run's folder (the laptop's, TRL's, NeMo RL's), an event file, trainer_state.json,"
        " or a log",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    print(run_report(options.path, as_json=options.json))
    return 0
