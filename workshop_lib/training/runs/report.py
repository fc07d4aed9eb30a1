"""A run's table and its verdict in a few lines, for `workshop metrics RUN`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from workshop_lib.training.runs.run import Run, read_run
from workshop_lib.training.runs.table import RUN_COLUMNS
from workshop_lib.training.runs.verdict import judge

__all__ = ["run_report"]


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
    names = [name for name in RUN_COLUMNS if name not in ("step", "group_means", "not_finite")]
    columns = {name: about for name in names if name != "time" and (about := _about(run, name))}
    if as_json:
        about = {
            "path": str(run.path),
            "source": run.source,
            "steps_done": len(run.frame),
            "steps_planned": run.planned,
            "error": run.error,
            "columns": columns,
            "validation": [
                {name: _plain(value) for name, value in row.items()}
                for row in run.validation.to_dict("records")
            ],
            "notes": list(run.notes),
            "verdict": verdict.to_dict(),
        }
        return json.dumps(about, indent=2)
    of = f" of {run.planned}" if run.planned else ""
    lines = [f"{run.path}: {run.source}, {len(run.frame)}{of} steps"]
    for name, about in columns.items():
        first, last = _shown(about["first"]), _shown(about["last"])
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
    return {key: _plain(value) for key, value in numbers.items()} | {"steps": len(known)}


def _plain(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _shown(value: float | None) -> str:
    return f"{'no number' if value is None else format(value, '.4g'):>10}"
