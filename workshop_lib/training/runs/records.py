"""What a training run writes, read while it is being written: in its folder, and in its log.

The engine appends one JSON object a step to `metrics.jsonl` and one a completion to
`completions.jsonl`, each line flushed whole. A trainer in a pod, the laptop's or NeMo RL,
also prints each step as one marked line, `@grpo {"event": "step", ...}`: a log can be read
from anywhere, and after the pod has ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLUMNS",
    "COMPLETIONS_FILE",
    "MARK",
    "METRICS_FILE",
    "TrainingLog",
    "marked_line",
    "read_completions",
    "read_log",
    "read_metrics",
    "steps_to_reward",
]

METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"

MARK = "@grpo "
"""What a line of a log begins with that is meant for `read_log`."""

# What a record holds, in the order in which a table shows it.
COLUMNS = {
    "step": "step, from 1",
    "reward": "mean reward of the step's completions, all that were sampled",
    "filtered_reward": "mean reward of the completions that dynamic sampling kept",
    "batches": "batches that were sampled; more than one only under dynamic sampling",
    "reward_std": "standard deviation of the rewards, all completions together",
    "group_means": "mean reward of each group (the completions of one prompt)",
    "zero_std_share": "share of completions in groups without spread: they teach nothing",
    "kl": "mean KL divergence from the reference model; none where none is kept",
    "entropy": "mean entropy of a token, nats",
    "grad_norm": "norm of the gradient before clipping",
    "loss": "the loss; its size says little",
    "clip_share": "share of tokens whose ratio was clipped",
    "mean_length": "mean length of a completion, tokens",
    "cut_share": "share of completions cut at the longest allowed length",
    "learning_rate": "learning rate",
    "step_s": "seconds of the whole step",
    "generation_s": "seconds of sampling",
    "reward_s": "seconds of scoring",
    "elapsed_s": "seconds since the first step began",
    "time": "when the step ended, seconds since 1970",
}

_WHOLE_NUMBERS = {"step", "group"}
_NOT_NUMBERS = {"group_means", "prompt", "answer", "completion"}
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
        """Steps that are done."""
        return len(self.records)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a step, the columns of `COLUMNS`."""
        return _frame(
            [{name: record.get(name) for name in COLUMNS} for record in self.records],
            list(COLUMNS),
        )

    @property
    def samples(self) -> pd.DataFrame:
        """One completion of each group of each step: the columns of `read_completions`."""
        rows = [
            {name: sample.get(name) for name in _COMPLETION_COLUMNS} | {"step": record["step"]}
            for record in self.records
            for sample in record.get("samples") or []
        ]
        return _frame(rows, _COMPLETION_COLUMNS)

    def group(self, step: int) -> pd.DataFrame:
        """All answers of the group with the largest spread of a step.

        Args:
            step: The step, from 1.

        Returns:
            The columns of `read_completions`; no row where the trainer did not report it.

        Example:
            >>> TrainingLog().group(1).empty
            True
        """
        rows = [
            {name: answer.get(name) for name in _COMPLETION_COLUMNS} | {"step": step}
            for record in self.records
            if record["step"] == step
            for answer in record.get("group") or []
        ]
        return _frame(rows, _COMPLETION_COLUMNS)


def marked_line(event: str, **values: Any) -> str:
    """A line for `read_log`.

    Args:
        event: `start` (with `steps`), `step` (with a record), `saved` (with `checkpoint`).
        values: What happened. A `start` that goes on with a run says `after` which step.

    Example:
        >>> marked_line("start", steps=12)
        '@grpo {"event": "start", "steps": 12}'
    """
    return MARK + json.dumps({"event": event, **values})


def read_log(lines: Iterable[str], *, output: str = "") -> TrainingLog:
    """Find a training run in what its pods printed.

    Args:
        lines: The lines of a log, also those of others.
        output: The run's folder, which a checkpoint's name is relative to.

    Raises:
        WorkshopError: A marked line holds something else.

    Example:
        >>> log = read_log(["Loading", marked_line("start", steps=12)])
        >>> log.steps, log.done
        (12, 0)
    """
    steps: int | None = None
    records: dict[int, Mapping[str, Any]] = {}
    checkpoint = ""
    for line in lines:
        # A progress bar that ends without a newline may stand before the mark.
        _, mark, text = line.partition(MARK)
        if not mark:
            continue
        try:
            event = json.loads(text)
            if event["event"] == "start":
                # A run that goes on says after which step; what came later is done again.
                after = int(event.get("after", 0))
                steps, checkpoint = int(event["steps"]), ""
                records = {step: row for step, row in records.items() if step <= after}
            elif event["event"] == "step":
                _typed({name: event.get(name) for name in COLUMNS})
                records[int(event["step"])] = event
            elif event["event"] == "saved":
                checkpoint = "/".join(filter(None, (output, str(event["checkpoint"]))))
        except (ValueError, KeyError, TypeError) as error:
            raise WorkshopError(f"this line is no record of a run: {line[:120]}") from error
    ordered = tuple(records[step] for step in sorted(records))
    return TrainingLog(steps, ordered, checkpoint)


def read_metrics(folder: str | Path) -> pd.DataFrame:
    """The steps that a run has finished so far.

    Args:
        folder: The run's output folder, or a file of its records.

    Returns:
        One row a step, the columns of `COLUMNS`; no row before the first step is done
        or while the folder is not there yet. A line that is still being written is
        left for the next call. A step that stands twice was done again: the later counts,
        and what followed the earlier is left out.

    Raises:
        WorkshopError: The file holds something else.

    Example:
        >>> read_metrics("build/no-run-yet").empty
        True
    """
    path = Path(folder)
    frame = _read(path if path.is_file() else path / METRICS_FILE, list(COLUMNS))
    # A row counts if no later one is of the same step or of one before.
    least = frame["step"][::-1].cummin().shift(1)[::-1]
    return frame[~(least <= frame["step"])].reset_index(drop=True)


def read_completions(folder: str | Path) -> pd.DataFrame:
    """What the model wrote in each step so far, with rewards and advantages.

    Args:
        folder: The run's output folder.

    Returns:
        One row a completion: `step`, `group`, `prompt`, `answer`, `completion`,
        `reward`, `advantage`.

    Raises:
        WorkshopError: The file holds something else.

    Example:
        >>> list(read_completions("build/no-run-yet").columns)[:3]
        ['step', 'group', 'prompt']
    """
    return _read(Path(folder) / COMPLETIONS_FILE, _COMPLETION_COLUMNS)


def steps_to_reward(frame: pd.DataFrame, reward: float = 0.9, consecutive: int = 3) -> int | None:
    """The step at which the mean reward of the last few steps first reached a level.

    Args:
        frame: `read_metrics`' table.
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


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        text = ""
    except (OSError, UnicodeDecodeError) as error:
        raise WorkshopError(f"{path} cannot be read: {error}") from error
    whole = text[: text.rfind("\n") + 1]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            rows.append(_typed({name: row.get(name) for name in columns}))
        except (ValueError, TypeError, AttributeError) as error:
            raise WorkshopError(f"{path} line {number} is no record of a run: {error}") from error
    return _frame(rows, columns)


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """The record, if its values are what a column of the table can hold."""
    for name, value in row.items():
        if name in _WHOLE_NUMBERS:
            int(value)
        elif name not in _NOT_NUMBERS and value is not None:
            float(value)
    return row


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=columns)
    # Said, not inferred: a column of nothing but null, or of no row, would have no type.
    whole_numbers = dict.fromkeys(_WHOLE_NUMBERS & set(columns), int)
    others = set(columns) - set(whole_numbers) - _NOT_NUMBERS
    return frame.astype(whole_numbers | dict.fromkeys(others, float))
