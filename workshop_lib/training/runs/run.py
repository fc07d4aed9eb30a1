"""A training run from whatever it left: one table of its steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.training.runs.columns import RUN_COLUMNS, VALIDATION_COLUMNS, from_steps
from workshop_lib.training.runs.console import read_console
from workshop_lib.training.runs.event_file import is_event_file
from workshop_lib.training.runs.nemo_rl import read_event_files
from workshop_lib.training.runs.records import (
    COMPLETIONS_FILE,
    MARK,
    METRICS_FILE,
    TrainingLog,
    read_completions,
    read_log,
    read_metrics,
)
from workshop_lib.training.runs.rollouts import echo_share, group_spread, read_rollouts

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JUDGED_FILE", "Run", "read_run", "run_of_log", "with_judge"]

JUDGED_FILE = "steps.csv"
"""What another judge said of a run's answers: columns `step` and `gold_in_text`."""

_START = re.compile(r"exp_\d+")


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        path: Where it was read from.
        source: What wrote it: `TRL records`, `marked log`, `NeMo RL event files` or
            `NeMo RL console`.
        frame: One row a finished step, the columns of `RUN_COLUMNS`. What the source does
            not say is NaN.
        validation: One row a validation, the columns of `VALIDATION_COLUMNS`.
        planned: Steps that it will have, where it says so.
        notes: What to know of single columns.
    """

    path: Path
    source: str
    frame: pd.DataFrame = field(repr=False)
    validation: pd.DataFrame = field(repr=False)
    planned: int | None = None
    notes: tuple[str, ...] = ()


def read_run(path: str | Path) -> Run:
    """Read a run, also while it is being written.

    Args:
        path: A run's folder (the laptop's, or NeMo RL's log folder), a TensorBoard event
            file, `metrics.jsonl`, or a log: NeMo RL's console, or what pods printed.

    Raises:
        WorkshopError: There is nothing there that is a run.

    Example:
        >>> from workshop_lib.data import data_path
        >>> run = read_run(data_path("recorded/nemo-rl/honest"))
        >>> run.source, len(run.frame), run.planned
        ('NeMo RL event files', 60, 60)
    """
    path = Path(path)
    if path.exists() and not path.is_dir() and not path.is_file():
        raise WorkshopError(f"{path} is neither a file nor a folder")  # reading a pipe waits
    try:
        if path.is_dir():
            return _read_folder(path)
        if is_event_file(path):
            return _of_event_files(path, [path])
    except OSError as error:
        raise WorkshopError(f"{path} cannot be read: {error.strerror}") from error
    if path.name == METRICS_FILE or _holds_records(path):
        return _of_records(path, path.parent)
    return _of_log(path)


def run_of_log(log: TrainingLog, path: str | Path = "") -> Run:
    """A run of what a trainer's log says so far, for the figures of whole runs.

    Args:
        log: `read_log`'s or `watch_training`'s.
        path: Where it was read from.

    Example:
        >>> run_of_log(read_log([])).source
        'marked log'
    """
    frame = _with_echoes(log.frame, log.samples)
    empty = from_steps({}, VALIDATION_COLUMNS)
    return Run(Path(path), "marked log", frame, empty, planned=log.steps)


def with_judge(run: Run, reward: Callable[[str, str], float]) -> Run:
    """A run of the laptop's trainer with what another judge says of its answers.

    Args:
        run: Of a folder that also holds the answers (`completions.jsonl`).
        reward: The judge: 1 for a right answer.

    Returns:
        The run with `right_share` of each step whose answers are there.

    Raises:
        WorkshopError: The answers are not there.

    Example:
        >>> from workshop_lib.training import math_verify_reward
        >>> with_judge(read_run("build/hacked"), math_verify_reward)   # doctest: +SKIP
    """
    folder = run.path if run.path.is_dir() else run.path.parent
    answers = read_completions(folder)
    if answers.empty:
        raise WorkshopError(f"{folder} holds no answers to judge: no {COMPLETIONS_FILE}")
    pairs = zip(answers["completion"], answers["answer"], strict=True)
    right = answers.assign(right=[float(reward(said, answer) >= 1) for said, answer in pairs])
    shares = right.groupby("step")["right"].mean()
    frame = run.frame.assign(right_share=run.frame["step"].map(shares).astype(float))
    name = getattr(reward, "__name__", "another judge")
    return replace(run, frame=frame, notes=(*run.notes, f"right_share is {name}'s"))


def _holds_records(path: Path) -> bool:
    """Whether a file of another name begins with a record of a step."""
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline(1_000_000))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"step", "reward"} <= set(first)


def _read_folder(folder: Path) -> Run:
    if (folder / METRICS_FILE).exists():
        return _of_records(folder, folder)
    # NeMo RL: <log_dir>/exp_001/tensorboard/events.out.tfevents.*
    files = sorted(folder.rglob("events.out.tfevents.*"))
    roots = sorted({_root(file, folder) for file in files})
    if len(roots) > 1:
        raise _several(folder, roots)
    texts = sorted(folder.glob("*.log"))
    found = [run for log in texts if (run := _run_in_log(log)) is not None]
    # One that has not said how long it will be has only begun; the others are the ones meant.
    logs = [run for run in found if run.planned] or found
    if files:
        run = _of_event_files(folder, files)
        if logs:
            run = replace(run, planned=logs[0].planned)
        return _with_judged(_with_rollouts(run, folder), folder)
    if len(logs) > 1:
        raise _several(folder, [run.path for run in logs])
    if logs:
        return _with_judged(logs[0], folder)
    if texts:
        raise _no_run(texts[0])
    below = sorted(file.parent for file in folder.rglob(METRICS_FILE))
    if below:
        raise _several(folder, below)
    raise WorkshopError(
        f"{folder} holds no run: no {METRICS_FILE}, no event file (events.out.tfevents.*) and"
        " no *.log"
    )


def _root(file: Path, folder: Path) -> Path:
    """The folder of the run that an event file belongs to.

    NeMo RL makes a folder `exp_001` in its log folder, and `exp_002` when it is started again.
    """
    place = file.parent
    if place != folder and place.name == "tensorboard":
        place = place.parent
    if place != folder and _START.fullmatch(place.name):
        place = place.parent
    return place


def _several(folder: Path, runs: list[Path]) -> WorkshopError:
    names = [str(run.relative_to(folder)) for run in runs]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    several = "a run" if len(names) == 1 else f"{len(names)} runs"
    return WorkshopError(
        f"{folder} holds {several} below it: {', '.join(names[:3])}{more}; name one, for example"
        f" {runs[-1]}"
    )


def _of_records(path: Path, folder: Path) -> Run:
    records = read_metrics(path if path.is_file() else folder)
    frame = _with_echoes(records, read_completions(folder))
    return Run(path, "TRL records", frame, from_steps({}, VALIDATION_COLUMNS))


def _of_event_files(path: Path, files: list[Path]) -> Run:
    frame, validation, notes = read_event_files(files)
    return Run(path, "NeMo RL event files", frame, validation, notes=notes)


def _of_log(path: Path) -> Run:
    run = _run_in_log(path)
    if run is None:
        raise _no_run(path)
    return run


def _no_run(path: Path) -> WorkshopError:
    return WorkshopError(f"{path} is no run: no event file, no record and no step of NeMo RL")


def _run_in_log(path: Path) -> Run | None:
    """What a log says of a run, if it says anything."""
    lines = _lines(path)
    if any(MARK in line for line in lines):
        return run_of_log(read_log(lines), path)
    console = read_console(lines)
    if console.planned is None and not console.starts:
        return None
    notes = ["a console tells no KL, gradient or entropy: read the event file for them"]
    if console.starts > 1:
        notes.append(f"the run was started {console.starts} times; repeated steps are the last's")
    return Run(
        path, "NeMo RL console", console.frame, console.validation, console.planned, tuple(notes)
    )


def _with_echoes(frame: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """All columns, `echo_share` from the answers of each step that are there."""
    whole = frame.reindex(columns=list(RUN_COLUMNS))
    if answers.empty:
        return whole
    shares = {step: echo_share(rows) for step, rows in answers.groupby("step")}
    return whole.assign(echo_share=whole["step"].map(shares).astype(float))


def _lines(path: Path) -> list[str]:
    """The whole lines of a log; the last one may still be being written."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].split("\n")


def _with_rollouts(run: Run, folder: Path) -> Run:
    """The exact spread of the groups, of the steps whose answers are there."""
    rows = run.frame.set_index("step", drop=False)
    found = {
        int(path.stem.removeprefix("train_data_step")): path
        for path in sorted(folder.rglob("train_data_step*.jsonl"))  # exp_002 after exp_001
        if path.stem.removeprefix("train_data_step").isdigit()
    }
    for step in sorted(set(found) & set(rows.index)):
        rollouts = read_rollouts(found[step])
        for name, value in group_spread(rollouts).items():
            rows.at[step, name] = value
        rows.at[step, "echo_share"] = echo_share(rollouts)
    return replace(run, frame=rows.reset_index(drop=True))


def _with_judged(run: Run, folder: Path) -> Run:
    import pandas as pd

    path = folder / JUDGED_FILE
    if not path.exists():
        return run
    try:
        judged = pd.read_csv(path).groupby("step")["gold_in_text"].last().astype(float)
    except (KeyError, ValueError, TypeError) as error:
        raise WorkshopError(f"{path} lacks the columns step and gold_in_text") from error
    frame = run.frame.assign(right_share=run.frame["step"].map(judged).astype(float))
    note = f"right_share is {JUDGED_FILE}'s gold_in_text: the right answer stands in the text"
    return replace(run, frame=frame, notes=(*run.notes, note))
