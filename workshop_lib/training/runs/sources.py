"""What TRL and NeMo RL write: event files, trainer_state.json, and what they print."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.training.runs.table import Rows, collect

__all__ = ["Source", "is_event_file", "last_error", "read_console", "read_event_files"]
__all__ += ["read_trainer_state"]

_BASELINE_NOTE = (
    "zero_std_share is the share of completions whose baseline is 0 or 1: with a leave-one-out"
    " baseline, one completion of a group with a single right or wrong answer is counted too"
)
_NO_KL_NOTE = "NeMo RL logged a KL of 0 at every step: no penalty, so none was computed"
_CONSOLE_NOTE = "a console tells no KL, gradient or entropy: read the event file for them"

_FIRST_RECORD = 64  # bytes: a shorter event file has only been made


@dataclass
class Source:
    """What one source says of a run: its rows, its length, and the error that ended it."""

    name: str
    rows: Rows
    validations: Rows = field(default_factory=list)
    planned: int | None = None
    notes: list[str] = field(default_factory=list)
    error: str = ""


def is_event_file(path: Path) -> bool:
    """Whether a file begins as TensorBoard's do."""
    return any(event.file_version for event in islice(_events(path), 1))


def _events(path: Path) -> Iterator[Any]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    # The loader stops at a record that is not whole yet, and at one that is damaged.
    yield from EventFileLoader(str(path)).Load()


def read_event_files(paths: Sequence[Path]) -> Source:
    """One run of NeMo RL or TRL, of all the event files that its starts wrote."""
    from tensorboard.util import tensor_util

    samples: list[dict[str, Any]] = []
    for path in paths:
        if path.stat().st_size >= _FIRST_RECORD and not is_event_file(path):
            raise WorkshopError(f"{path} is no TensorBoard event file, or damaged at its beginning")
        for event in _events(path):
            for value in event.summary.value:
                tensor, tag = value.tensor, value.tag
                if tensor.dtype and not tensor.tensor_shape.dim and not tensor.string_val:
                    number = float(tensor_util.make_ndarray(tensor))
                    samples.append({"step": event.step, tag: number, "at": event.wall_time})
    samples.sort(key=lambda sample: float(sample["at"]))
    nemo = any("timing/train/total_step_time" in sample for sample in samples)
    for sample in samples:
        at = sample.pop("at")
        if any(name.startswith(("train/", "timing/train/")) for name in sample):
            sample["time"] = at  # a validation's is not its step's
    rows, validations = collect(samples)
    rows = [row for row in rows if nemo or "reward" in row]
    notes = []
    if nemo and rows and all(row.get("kl", 0.0) == 0 for row in rows):
        notes.append(_NO_KL_NOTE)
        rows = [{name: row[name] for name in row if name != "kl"} for row in rows]
    if nemo and any("zero_std_share" in row for row in rows):
        notes.append(_BASELINE_NOTE)
    if len(paths) > 1:
        notes.append(f"{len(paths)} starts, a file each; steps that were done again are the last's")
    for before, row in pairwise(rows):  # TRL's older versions do not say how long a step took
        row.setdefault("step_s", (row["time"] - before["time"]) / (row["step"] - before["step"]))
    for row in rows:
        row["elapsed_s"] = row["time"] - rows[0]["time"] + rows[0].get("step_s", 0.0)
    return Source(f"{'NeMo RL' if nemo else 'TRL'} event files", rows, validations, notes=notes)


def read_trainer_state(path: Path) -> Source:
    """What TRL's trainer saves with each checkpoint: its log so far."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        rows, validations = collect(state["log_history"])
        planned = int(state.get("max_steps") or 0) or None
    except (ValueError, KeyError, TypeError) as error:
        raise WorkshopError(f"{path} is no trainer_state.json of TRL: {error}") from error
    rows = [row for row in rows if "reward" in row]  # the last entry of a run has totals only
    if state["log_history"] and not rows:
        raise WorkshopError(f"{path}: its log names no reward, so it is of no GRPO run")
    return Source("TRL trainer state", rows, validations, planned)


_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)"
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# TRL prints its log as a Python dictionary, with numbers or with texts of numbers.
_PAIR = re.compile(rf"'([\w/. -]+)': '?({_NUMBER})'?(?=[,}}])", re.IGNORECASE)
_BAR = re.compile(r"\b(\d+)/(\d+)(?: \[|'[,}])")  # a progress bar's, or a value's
_HEADER = re.compile(r"={10,} (Step|Epoch) (\d+)/(\d+) ={10,}")
_VALUE = re.compile(rf"• ([A-Za-z][\w /-]*): ({_NUMBER})\s*(?:s|tokens)?\b", re.IGNORECASE)


def read_console(lines: Iterable[str]) -> Source | None:
    """A run of NeMo RL or TRL in what it printed; None where there is none of either.

    Colours, progress bars that overwrite themselves and lines of Ray's workers may stand
    between; the log may hold several starts and end anywhere.
    """
    plain = [part for line in lines for part in _COLOUR.sub("", line).split("\r")]
    found = _nemo_console(plain) or _trl_console(plain)
    if found is None:
        return None
    source, progress = found
    source.error = last_error(plain[progress:])
    return source


def _trl_console(lines: Sequence[str]) -> tuple[Source, int] | None:
    """One dictionary a logged step. It names no step; the progress bar before it may."""
    samples: list[dict[str, Any]] = []
    step, bar, progress, counted = 0, (0, 0), 0, False
    for number, line in enumerate(lines):
        for match in _BAR.finditer(line):
            bar = int(match[1]), int(match[2])
        values = dict(_PAIR.findall(line)) if "{'" in line else {}
        if "reward" in values:
            counted |= bar[0] <= step
            step, progress = max(bar[0], step + 1), number
        if "reward" in values or "eval_reward" in values:
            samples.append(values | {"step": step})
    if not samples:
        return None
    notes = ["TRL's console names no step: its lines are counted"] if counted else []
    planned = None if counted else bar[1]
    return Source("TRL console", *collect(samples), planned, notes), progress


def _nemo_console(lines: Sequence[str]) -> tuple[Source, int] | None:
    """A header a step, then its results, its time, and the time of its stages."""
    samples: list[dict[str, Any]] = []
    step, offset, progress, starts, validating = 0, 0, 0, 0, False
    planned: int | None = None
    for number, line in enumerate(lines):
        if match := _HEADER.search(line):
            at, of = int(match[2]), int(match[3])
            if match[1] == "Epoch":  # steps are counted within one
                offset = step if at > 1 else 0
            else:
                step, planned, validating = offset + at, offset + of, False
        elif "Loaded configuration from" in line:
            starts, offset, step = starts + 1, 0, 0
        elif "Validation Results" in line or "Training Results" in line:
            validating = "Validation" in line
        elif (match := _VALUE.search(line)) and (step or validating):
            name = f"validation/{match[1]}" if validating else match[1]
            samples.append({"step": step, name: float(match[2])})
            progress = number
    if planned is None and not starts:
        return None
    notes = [_CONSOLE_NOTE]
    if starts > 1:
        notes.append(f"the run was started {starts} times; repeated steps are the last's")
    rows, validations = collect(samples)
    rows = [row for row in rows if "step_s" in row]
    return Source("NeMo RL console", rows, validations, planned, notes), progress


# An exception's last line, behind what Ray or a launcher puts before it: `(pid=7) `, `[rank0]: `.
_ERROR = re.compile(
    r"(?:^|[\s)\]:])((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*"
    r"(?:Error|Exception|Interrupt|Exit|Timeout|Died|Killed)(?:\([\w.]*\))?(?::\s.*)?)$"
)
_LAST_LINES = 30  # in which an error without a traceback counts


def last_error(lines: Sequence[str]) -> str:
    """The error that ended a log: of its last traceback, or the last among its last lines.

    The lines are those after the last progress: an error before it ended nothing.
    """
    tracebacks = [at for at, line in enumerate(lines) if "Traceback (most recent call" in line]
    rest = lines[tracebacks[-1] :] if tracebacks else lines[-_LAST_LINES:]
    found = [match[1] for line in rest if (match := _ERROR.search(line.rstrip()))]
    if found:
        return found[0 if tracebacks else -1][:300]
    said = [line.strip() for line in rest if line.strip()]
    return said[-1][:300] if tracebacks and said else ""
