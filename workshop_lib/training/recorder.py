"""One record and one line a step, while a trainer of TRL runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean, pvariance
from typing import IO, Any

from workshop_lib.training.rewards import completion_text
from workshop_lib.training.runs import (
    COLUMNS,
    COMPLETIONS_FILE,
    METRICS_FILE,
    marked_line,
)

__all__ = ["Recorder"]

# The names of TRL's log, by those of a record.
_TRL_NAMES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "zero_std_share": "frac_reward_zero_std",
    "kl": "kl",
    "entropy": "entropy",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "clip_share": "clip_ratio/region_mean",
    "mean_length": "completions/mean_length",
    "cut_share": "completions/clipped_ratio",
    "learning_rate": "learning_rate",
}


class Recorder:
    """Writes one record a step, and says one line.

    Args:
        folder: The run's output folder.
        group_size: Completions of one prompt.
        updates_per_step: Optimizer updates in a step.
        answers: The right answer of each prompt.
        say: Called with the line of each step.
        report: Called with the marked line of each step, for who follows the log.
        elapsed_s: Seconds of training that a resumed run has behind it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        group_size: int,
        updates_per_step: int,
        steps: int,
        answers: Mapping[str, str],
        say: Callable[[str], None],
        report: Callable[[str], None] | None = None,
        elapsed_s: float = 0.0,
    ) -> None:
        self.folder = folder
        self.group_size = group_size
        self.updates_per_step = updates_per_step
        self.steps = steps
        self.answers = answers
        self.say = say
        self.report = report
        self.trainer: Any = None
        self._metrics: IO[str] | None = None
        self._completions: IO[str] | None = None
        self._began = self._last = 0.0
        self._behind_s = elapsed_s

    def callback(self) -> Any:
        """What the trainer calls."""
        from transformers import TrainerCallback

        recorder = self

        class Callback(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                recorder.begin()

            def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
                if "reward" in logs:  # the last log of a run has totals only
                    recorder.record(state.global_step, logs)

            def on_train_end(self, *_: Any, **__: Any) -> None:
                recorder.close()

        return Callback()

    def begin(self) -> None:
        """Open the files and start the clock."""
        self._metrics = (self.folder / METRICS_FILE).open("a", encoding="utf-8")
        self._completions = (self.folder / COMPLETIONS_FILE).open("a", encoding="utf-8")
        self._last = time.perf_counter()
        self._began = self._last - self._behind_s
        self.trainer.seconds = {}

    def record(self, updates: int, logs: Mapping[str, Any]) -> None:
        """Write a step's record and its completions.

        Args:
            updates: Optimizer updates so far.
            logs: TRL's log of the step.
        """
        assert self._metrics is not None and self._completions is not None
        now = time.perf_counter()
        step = updates // self.updates_per_step
        rows = self._completion_rows(step)
        rewards = [row["reward"] for row in rows]
        size = self.group_size
        groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
        record: dict[str, Any] = dict.fromkeys(COLUMNS)
        record |= {name: logs.get(theirs) for name, theirs in _TRL_NAMES.items()}
        record |= self._sampled(logs)
        record |= {
            "step": step,
            "group_means": [round(fmean(group), 6) for group in groups],
            "step_s": now - self._last,
            "generation_s": self.trainer.seconds.get("generation", 0.0),
            "reward_s": self.trainer.seconds.get("reward", 0.0),
            "elapsed_s": now - self._began,
            "time": time.time(),
        }
        self._last = now
        self.trainer.seconds = {}
        # Completions first: who sees the step in the metrics finds its completions.
        for row in rows:
            self._completions.write(json.dumps(row) + "\n")
        self._completions.flush()
        plain = {name: _finite(record[name]) for name in COLUMNS}
        self._metrics.write(json.dumps(plain) + "\n")
        self._metrics.flush()
        self.say(self._line(record))
        if self.report is not None:
            # One completion of each group, and all of the group with the largest spread: enough
            # to read and to compute with, short enough for a log.
            starts = range(0, len(rows), size)
            divided = max(starts, key=lambda at: pvariance(rewards[at : at + size]))
            group = rows[divided : divided + size]
            self.report(marked_line("step", **plain, samples=rows[::size], group=group))

    def _sampled(self, logs: Mapping[str, Any]) -> dict[str, Any]:
        """With what dynamic sampling threw away: as in NeMo RL, `reward` is of all answers."""
        collected = getattr(self.trainer, "collected", None)
        if collected is None:
            return {}
        rewards = collected.every_reward
        return {
            "reward": fmean(rewards),
            "filtered_reward": logs["reward"],
            "batches": collected.batches,
            "zero_std_share": collected.silent / len(rewards),
        }

    def close(self) -> None:
        """Close the files."""
        for file in (self._metrics, self._completions):
            if file is not None:
                file.close()

    def _completion_rows(self, step: int) -> list[dict[str, Any]]:
        """The step's completions, group by group, as TRL keeps them for its own log."""
        logged = self.trainer._logs
        rewards = next(iter(logged["rewards"].values()))
        texts, prompts = list(logged["completion"]), list(logged["prompt"])
        rows = []
        for index, (prompt, text, reward, advantage) in enumerate(
            zip(prompts, texts, rewards, logged["advantages"], strict=True)
        ):
            shown = completion_text(prompt)
            rows.append(
                {
                    "step": step,
                    "group": index // self.group_size,
                    "prompt": shown,
                    "answer": self.answers.get(shown, ""),
                    "completion": completion_text(text),
                    "reward": _finite(reward),
                    "advantage": _finite(advantage),
                }
            )
        return rows

    def _line(self, record: Mapping[str, Any]) -> str:
        width = len(str(self.steps))
        kl, kept = record["kl"], record["filtered_reward"]
        sampling = "" if kept is None else f"  kept {kept:.3f} of {record['batches']} batches"
        return (
            f"step {record['step']:>{width}}/{self.steps}"
            f"  reward {record['reward']:.3f}{sampling}  std {record['reward_std']:.3f}"
            f"  kl {'-' if kl is None else f'{kl:.4f}'}"
            f"  grad norm {record['grad_norm'] or 0.0:.2f}  {record['step_s']:.1f} s"
        )


def _finite(value: Any) -> Any:
    """A number that JSON knows, or None."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, int) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
