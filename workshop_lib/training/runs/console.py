"""NeMo RL's console, read as a table: what it prints of each step, between all else.

The log may hold colours, progress bars that overwrite themselves, lines of Ray's workers
between the driver's, several starts of one run, and end anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workshop_lib.training.runs.columns import RUN_COLUMNS, VALIDATION_COLUMNS, from_steps
from workshop_lib.training.runs.nemo_rl import STAGES, forget_from, stage_times

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ConsoleLog", "read_console"]

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HEADER = re.compile(r"={10,} (Step|Epoch) (\d+)/(\d+) ={10,}")
_ROLLOUTS = re.compile(r"Logged data to \S*?train_data_step(\d+)\.jsonl")
_DETECTED = re.compile(r"Detected \d+ prompts with non-zero std")
_VALUE = re.compile(
    r"• ([A-Za-z][\w /-]*): (-?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))\s*(s|tokens)?\b"
)
_NAMES = {
    "Loss": "loss",
    "Avg Reward": "reward",
    "Avg Total Reward": "reward",
    "Avg Filtered Reward": "filtered_reward",
    "Mean Generation Length": "mean_length",
    "Total step time": "step_s",
}
_VALIDATION_NAMES = {"Accuracy": "accuracy", "Average response length": "mean_length"}


@dataclass
class ConsoleLog:
    """What a console says so far.

    Attributes:
        planned: Steps that the run will have; None while it has not said.
        starts: How often the run was started.
    """

    planned: int | None = None
    starts: int = 0
    _steps: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)
    _validations: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a step whose time was printed, which comes after its results."""
        rows = {n: stage_times(row) for n, row in self._steps.items() if "step_s" in row}
        return from_steps(rows, RUN_COLUMNS)

    @property
    def validation(self) -> pd.DataFrame:
        """One row a validation."""
        return from_steps(self._validations, VALIDATION_COLUMNS)


def read_console(lines: Iterable[str]) -> ConsoleLog:
    """Find the steps of a NeMo RL run in what it printed.

    The console has no KL, gradient or entropy; those columns stay empty.

    Args:
        lines: The log's lines, whole ones.

    Example:
        >>> log = read_console([f"{'=' * 25} Step 1/60 {'=' * 25}",
        ...     "  • Avg Reward: 0.1289", "  • Total step time: 5.79s"])
        >>> log.planned, log.frame["reward"].tolist()
        (60, [0.1289])
    """
    reader = _Reader()
    for line in lines:
        plain = _COLOUR.sub("", line)
        # What a progress bar has overwritten was seen by somebody, and is not the end.
        for part in plain.split("\r"):
            reader.read(part)
    return reader.log


class _Reader:
    def __init__(self) -> None:
        self.log = ConsoleLog()
        self._offset = 0  # steps of earlier epochs: the console counts within one
        self._at = 0
        self._row: dict[str, Any] = {}
        self._validating = False

    def read(self, line: str) -> None:
        if match := _HEADER.search(line):
            self._header(match.group(1), int(match.group(2)), int(match.group(3)))
        elif "Loaded configuration from" in line:
            self.log.starts += 1
            self._offset, self._row = 0, {}
        elif "Validation Results" in line:
            self._validating = True
        elif "Training Results" in line:
            self._validating = False
            if "step_s" in self._row:  # of the step before: the header of this one is lost
                self._begin(self._at + 1)
        elif match := _ROLLOUTS.search(line):
            # The one place where the console names the step of the whole run.
            self._move(int(match.group(1)))
        elif _DETECTED.search(line):
            self._row["batches"] = self._row.get("batches", 0) + 1
        elif match := _VALUE.search(line):
            self._value(match.group(1), float(match.group(2)), match.group(3))

    def _header(self, kind: str, number: int, of: int) -> None:
        if kind == "Epoch":
            self._offset = max(self.log._steps, default=0) if number > 1 else 0
            return
        self._validating = False
        self.log.planned = max(of, self._offset + of) if self._offset else of
        # Dynamic sampling prints the header again for each batch of one step.
        if self._offset + number != self._at or "step_s" in self._row:
            self._begin(self._offset + number)

    def _begin(self, step: int) -> None:
        if step <= max((n for n, row in self.log._steps.items() if "step_s" in row), default=0):
            forget_from(step, self.log._steps, self.log._validations)
        self._at, self._row = step, {}
        self.log._steps[step] = self._row

    def _move(self, step: int) -> None:
        if step == self._at:
            return
        # What was printed since the header belongs to this step, if that is not done already.
        done = "step_s" in self._row
        row = {} if done else self.log._steps.pop(self._at, {})
        self._offset += step - self._at - done
        self._begin(step)
        self._row.update(row)

    def _value(self, name: str, value: float, unit: str | None) -> None:
        if self._validating:
            if name in _VALIDATION_NAMES:
                self.log._validations.setdefault(self._at, {})[_VALIDATION_NAMES[name]] = value
        elif self._at == 0:
            return
        elif name in _NAMES:
            self._row[_NAMES[name]] = value
        elif name in STAGES and unit == "s":
            self._row[name] = value
