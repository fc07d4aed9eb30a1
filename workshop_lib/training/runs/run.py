"""A training run from whatever it left: one table of its steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.training.runs.records import (
    COMPLETIONS_FILE,
    MARK,
    METRICS_FILE,
    TrainingLog,
    read_completions,
    read_log,
    read_rows,
)
from workshop_lib.training.runs.rollouts import echo_share, read_rollouts
from workshop_lib.training.runs.sources import (
    Source,
    is_event_file,
    last_error,
    read_console,
    read_event_files,
    read_trainer_state,
)
from workshop_lib.training.runs.table import COLUMNS, VALIDATION_COLUMNS, collect, make_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "read_run", "run_of_log", "with_judge"]

_JUDGED_FILE = "steps.csv"  # what another judge said: columns `step` and `gold_in_text`
_STATE_FILE = "trainer_state.json"
# NeMo RL makes a folder `exp_001` in its log folder, and `exp_002` when it is started again; TRL
# writes its state into `checkpoint-<N>`.
_PARTS = re.compile(r"tensorboard|exp_\d+|checkpoint-\d+")


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        path: Where it was read from.
        source: What wrote it, for example `TRL console` or `NeMo RL event files`.
        frame: One row a finished step, the columns of `COLUMNS`. What the source does
            not say is NaN.
        validation: One row a validation, the columns of `VALIDATION_COLUMNS`.
        planned: Steps that it will have, where it says so.
        notes: What to know of single columns.
        error: The error that ended it, where its log says so.
    """

    path: Path
    source: str
    frame: pd.DataFrame = field(repr=False)
    validation: pd.DataFrame = field(repr=False)
    planned: int | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


def read_run(path: str | Path) -> Run:
    """Read a run, also while it is being written.

    Args:
        path: A run's folder (the laptop's, TRL's, or NeMo RL's log folder), a TensorBoard
            event file, `metrics.jsonl`, `trainer_state.json`, or a log: the console of NeMo RL
            or TRL, or what pods printed.

    Raises:
        WorkshopError: There is nothing there that is a run.

    Example:
        >>> from workshop_lib.data import data_path
        >>> run = read_run(data_path("recorded/nemo-rl/honest"))
        >>> run.source, len(run.frame), run.planned
        ('NeMo RL event files', 60, 60)
    """
    path = Path(path)
    try:
        run = _read_folder(path) if path.is_dir() else _read_file(path)
    except OSError as error:
        raise WorkshopError(f"{path} cannot be read: {error.strerror}") from error
    if run is None:
        raise WorkshopError(
            f"{path} is no run: no event file, no record, and no step that TRL or NeMo RL printed"
        )
    return run


def run_of_log(log: TrainingLog) -> Run:
    """A run of what a trainer's log says so far, for the verdict and the figures of whole runs.

    Args:
        log: `read_log`'s or `watch_training`'s.

    Example:
        >>> from workshop_lib.training.runs import read_log
        >>> run_of_log(read_log([])).source
        'marked log'
    """
    source = Source("marked log", *collect(log.records), log.steps)
    return _with_echoes(_run(Path(), source), log.samples)


def with_judge(run: Run, reward: Callable[[str, str], float]) -> Run:
    """A run of the laptop's trainer with what another judge says of its completions.

    Args:
        run: Of a folder that also holds the completions (`completions.jsonl`).
        reward: The judge: 1 for a right answer.

    Returns:
        The run with `right_share` of each step whose completions are there.

    Raises:
        WorkshopError: The completions are not there.

    Example:
        >>> from workshop_lib.training import math_verify_reward
        >>> with_judge(read_run("build/hacked"), math_verify_reward)   # doctest: +SKIP
    """
    folder = run.path if run.path.is_dir() else run.path.parent
    answers = read_completions(folder)
    if answers.empty:
        raise WorkshopError(f"{folder} holds no completions to judge: no {COMPLETIONS_FILE}")
    right = [float(reward(*pair) >= 1) for pair in answers[["completion", "answer"]].to_numpy()]
    shares = answers.assign(right=right).groupby("step")["right"].mean()
    frame = run.frame.assign(right_share=run.frame["step"].map(shares).astype(float))
    name = getattr(reward, "__name__", "another judge")
    return replace(run, frame=frame, notes=(*run.notes, f"right_share is {name}'s"))


def _run(path: Path, source: Source) -> Run:
    frame = make_table(source.rows, COLUMNS)
    validation = make_table(source.validations, VALIDATION_COLUMNS)
    notes = tuple(source.notes)
    return Run(path, source.name, frame, validation, source.planned, notes, source.error)


def _read_file(path: Path) -> Run | None:
    if path.name == _STATE_FILE:
        return _run(path, read_trainer_state(path))
    if path.name == METRICS_FILE or _holds_records(path):
        return _of_records(path)
    if is_event_file(path):
        return _run(path, read_event_files([path]))
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].split("\n")  # the last one may still be being written
    if marked := [number for number, line in enumerate(lines) if MARK in line]:
        run = run_of_log(read_log(lines))
        return replace(run, path=path, error=last_error(lines[marked[-1] :]))
    source = read_console(lines)
    return None if source is None else _run(path, source)


def _read_folder(folder: Path) -> Run:
    """The one run in a folder: the laptop's records, event files, TRL's state, or a log."""
    if (folder / METRICS_FILE).exists():
        return _of_records(folder / METRICS_FILE)
    logs = {path: run for path in sorted(folder.glob("*.log")) if (run := _read_file(path))}
    events = sorted(folder.rglob("events.out.tfevents.*"))
    # One in each checkpoint; the newest has the whole log.
    states = sorted(folder.rglob(_STATE_FILE), key=lambda path: path.stat().st_mtime)
    records = list(folder.rglob(METRICS_FILE))
    files = events or states or logs or records
    roots = sorted({_root(file, folder) for file in files})
    if len(roots) > 1 or (roots and not (events or states or logs)):
        names = ", ".join(str(root.relative_to(folder)) for root in roots)
        raise WorkshopError(
            f"{folder} holds {len(roots)} run{'s' * (len(roots) > 1)} below it: {names}; name one,"
            f" for example {roots[-1]}"
        )
    if events:
        run = _with_rollouts(_run(folder, read_event_files(events)), folder)
        for other in (*logs.values(), *map(_read_file, states[-1:])):
            if other is not None:
                run = replace(run, planned=other.planned, error=other.error)
        return _with_judged(run, folder)
    if states:
        return _run(folder, read_trainer_state(states[-1]))
    if logs:
        return next(iter(logs.values()))
    raise WorkshopError(
        f"{folder} holds no run: no {METRICS_FILE}, no event file (events.out.tfevents.*), no"
        f" {_STATE_FILE}, and no *.log of TRL or NeMo RL"
    )


def _root(file: Path, folder: Path) -> Path:
    """The folder of the run that a file belongs to, or a log itself."""
    if file.suffix == ".log":
        return file
    place = file.parent
    while place != folder and _PARTS.fullmatch(place.name):
        place = place.parent
    return place


def _of_records(file: Path) -> Run:
    try:  # the steps that the laptop's trainer noted when it began
        about = json.loads((file.parent / "run.json").read_text(encoding="utf-8"))
        planned = int(about["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        planned = None
    run = _run(file, Source("TRL records", *collect(read_rows(file)), planned))
    return _with_echoes(run, read_completions(file.parent))


def _holds_records(path: Path) -> bool:
    """Whether a file of another name begins with a record of a step."""
    try:
        with path.open(encoding="utf-8") as file:
            first = dict(json.loads(file.readline(1_000_000)))
            return "reward" in first and bool(collect([first])[0])
    except (ValueError, TypeError, KeyError):
        return False


def _with_echoes(run: Run, answers: pd.DataFrame) -> Run:
    shares = {step: echo_share(rows) for step, rows in answers.groupby("step")}
    echoes = run.frame["step"].map(shares).astype(float)
    return replace(run, frame=run.frame.assign(echo_share=echoes))


def _with_rollouts(run: Run, folder: Path) -> Run:
    """The share of echoes, of the steps whose completions are there."""
    shares = {}
    for path in sorted(folder.rglob("train_data_step*.jsonl")):  # exp_002 after exp_001
        step = path.stem.removeprefix("train_data_step")
        shares[int(step)] = echo_share(read_rollouts(path))
    echoes = run.frame["step"].map(shares).astype(float)
    return replace(run, frame=run.frame.assign(echo_share=echoes))


def _with_judged(run: Run, folder: Path) -> Run:
    import pandas as pd

    path = folder / _JUDGED_FILE
    if not path.exists():
        return run
    try:
        judged = pd.read_csv(path).groupby("step")["gold_in_text"].last().astype(float)
    except (KeyError, ValueError, TypeError) as error:
        raise WorkshopError(f"{path} lacks the columns step and gold_in_text") from error
    frame = run.frame.assign(right_share=run.frame["step"].map(judged).astype(float))
    note = f"right_share is {_JUDGED_FILE}'s gold_in_text: the right answer stands in the text"
    return replace(run, frame=frame, notes=(*run.notes, note))
