"""What a trainer writes for us, read while it is being written: in its folder, and in its log.

The laptop's trainer appends one JSON object a step to `metrics.jsonl` and one a completion to
`completions.jsonl`, each line flushed whole. A trainer in a pod, the laptop's or NeMo RL,
also prints each step as one marked line, `@grpo {"event": "step", ...}`: a log can be read
from anywhere, and after the pod has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.training.runs.table import collect, steps_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COMPLETIONS_FILE",
    "MARK",
    "METRICS_FILE",
    "TrainingLog",
    "json_lines",
    "marked_line",
    "read_completions",
    "read_log",
    "read_metrics",
    "read_rows",
    "steps_to_reward",
]

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"
MARK = "@grpo "  # what a line of a log begins with that is meant for `read_log`

_COMPLETION_COLUMNS = ["step", "group", "prompt", "answer", "completion", "reward", "advantage"]


@dataclass(frozen=True)
class TrainingLog:
    """What a trainer's log says so far.

    Attributes:
        steps: Steps that it will train; None while it has not said.
        records: One record a step that is done, in order.
        checkpoint: Folder of the trained model, as pods see it; empty until it is saved.
    """

    steps: int | None = None
    records: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    checkpoint: str = ""

    @property
    def done(self) -> int:
        """Steps that are done, those before a run was resumed included."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def frame(self) -> pd.DataFrame:
        """One row a step, the columns of `COLUMNS`."""
        return steps_table(self.records)

    @property
    def samples(self) -> pd.DataFrame:
        """One completion of each group of each step: the columns of `read_completions`."""
        return _completions("samples", self.records)

    def group(self, step: int) -> pd.DataFrame:
        """All completions of the group with the largest spread of a step, counted from 1.

        Returns:
            The columns of `read_completions`; no row where the trainer did not report it.

        Example:
            >>> TrainingLog().group(1).empty
            True
        """
        return _completions("group", [row for row in self.records if row["step"] == step])


def marked_line(event: str, **values: Any) -> str:
    """A line for `read_log`: `start` (`steps`, `after`), `step` (a record), `saved` (`checkpoint`).

    Example:
        >>> marked_line("start", steps=12)
        '@grpo {"event": "start", "steps": 12}'
    """
    return MARK + json.dumps({"event": event, **values})


def read_log(lines: Iterable[str], *, output: str = "") -> TrainingLog:
    """Find a training run in what its pods printed, between the lines of others.

    A checkpoint's name is relative to `output`, the run's folder.
    """
    steps: int | None = None
    records: list[Mapping[str, Any]] = []
    checkpoint = ""
    for line in lines:
        # A progress bar that ends without a newline may stand before the mark.
        _, mark, text = line.partition(MARK)
        if not mark:
            continue
        try:
            event = json.loads(text)
            # A run that goes on says after which step; what came later is done again.
            if event["event"] == "start":
                after = int(event.get("after", 0))
                steps, checkpoint = int(event["steps"]), ""
                records = [row for row in records if row["step"] <= after]
            elif event["event"] == "step":
                collect([event])
                records = [row for row in records if row["step"] < event["step"]] + [event]
            elif event["event"] == "saved":
                checkpoint = "/".join(filter(None, (output, str(event["checkpoint"]))))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkshopError(f"this line is no record of a run: {line[:120]}") from error
    return TrainingLog(steps, tuple(records), checkpoint)


def read_metrics(folder: str | Path) -> pd.DataFrame:
    """The steps that a run of the laptop has finished so far: the columns of `COLUMNS`.

    There is no row before the first step is done or while the folder is not there yet.

    Example:
        >>> read_metrics("build/no-run-yet").empty
        True
    """
    return steps_table(read_rows(Path(folder) / METRICS_FILE))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of records, under our names or TRL's."""
    rows = list(json_lines(path))
    for number, row in enumerate(rows, start=1):
        try:
            collect([row])
        except (ValueError, TypeError, KeyError) as error:
            raise WorkshopError(f"{path} line {number} is no record of a run: {error}") from error
    return rows


def read_completions(folder: str | Path) -> pd.DataFrame:
    """What the model wrote in each step so far, one row a completion, with its reward.

    Example:
        >>> list(read_completions("build/no-run-yet").columns)[:3]
        ['step', 'group', 'prompt']
    """
    return _completions("all", [{"all": list(json_lines(Path(folder) / COMPLETIONS_FILE))}])


def steps_to_reward(frame: pd.DataFrame, reward: float = 0.9, consecutive: int = 3) -> int | None:
    """The step at which the mean reward of the last few steps first reached a level.

    Args:
        frame: A table of steps.
        reward: The level.
        consecutive: How many steps are averaged.

    Returns:
        The last of those steps, or None if the level was never reached.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"step": [1, 2, 3, 4], "reward": [0.2, 0.9, 0.95, 1.0]})
        >>> steps_to_reward(frame)
        4
    """
    means = frame["reward"].rolling(consecutive).mean()
    reached = frame.loc[means >= reward, "step"]
    return None if reached.empty else int(reached.iloc[0])


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file's whole lines; none where there is no file."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    # The last line may still be being written.
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise WorkshopError(f"{path} line {number} is no record of a run: {error}") from error


def _completions(name: str, records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {column: each.get(column, record.get(column)) for column in _COMPLETION_COLUMNS}
        for record in records
        for each in record.get(name) or []
    ]
    frame = pd.DataFrame(rows, columns=_COMPLETION_COLUMNS)
    return frame.astype({"step": int, "group": int, "reward": float, "advantage": float})
