"""TRL's `GRPOTrainer`, tuned for a CPU and watched: who got which reward, where the time goes.

Built inside functions, because importing TRL takes seconds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from workshop_lib.metrics import (
    COLUMNS,
    COMPLETIONS_FILE,
    METRICS_FILE,
    marked_line,
)
from workshop_lib.training.checkpoints import Checkpoints
from workshop_lib.training.rewards import completion_text
from workshop_lib.training.shared_prompts import (
    can_share_prompts,
    pack,
    per_token_logps,
    share_prompts_in_generate,
)

__all__ = ["Recorder", "trainer_class"]

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


@cache
def trainer_class() -> type[Any]:
    """`GRPOTrainer` that computes a group's prompt once, with a stopwatch on its stages.

    Returns:
        A subclass whose instances have `seconds`, the time of the current step by stage.
    """
    import torch
    from trl import GRPOTrainer
    from trl.trainer.utils import RepeatSampler

    class EpochSampler(RepeatSampler):  # type: ignore[misc]
        """TRL's sampler; it can begin with a later epoch, in the order that it would have had."""

        def set_epoch(self, epoch: int) -> None:
            if self.shuffle:
                self.generator.manual_seed(self.seed)
                for _ in range(epoch):
                    torch.randperm(self.num_samples, generator=self.generator)

    class LaptopGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
        seconds: dict[str, float]
        checkpoints: Checkpoints
        updates_per_step: int
        _staging: Path | None = None  # where a checkpoint is being written

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if can_share_prompts(self.model):
                share_prompts_in_generate(self.model)

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: Any,
            attention_mask: Any,
            logits_to_keep: int,
            **settings: Any,
        ) -> tuple[Any, Any, Any]:
            packing = None
            if can_share_prompts(model) and not settings.get("compute_aux_loss"):
                packing = pack(input_ids, attention_mask, logits_to_keep, dtype=model.dtype)
            if packing is None:
                theirs: tuple[Any, Any, Any] = super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, **settings
                )
                return theirs
            targets = input_ids[:, -logits_to_keep:]
            logps, entropies = per_token_logps(
                model, packing, targets, temperature=self.temperature
            )
            # TRL's are zero at the padding.
            shown = attention_mask[:, -logits_to_keep:]
            return logps * shown, entropies * shown, None

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(dataset)
            sampler.__class__ = EpochSampler
            return sampler

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """As `Trainer` does, and whole or not at all; TRL adds a card for the hub."""
            step = self.state.global_step // self.updates_per_step
            with self.checkpoints.writing(step) as folder:
                self._staging = folder
                super(GRPOTrainer, self)._save_checkpoint(model, trial)
                # Its own name for it, below the folder that it is given.
                (inner,) = folder.iterdir()
                for file in inner.iterdir():
                    file.rename(folder / file.name)
                inner.rmdir()
            self._staging = None

        def _get_output_dir(self, trial: Any) -> str:
            # `Trainer` asks at the end too, whether or not anything was saved before.
            return str(self._staging or super()._get_output_dir(trial))

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with self._timed("generation"):
                return super()._generate_single_turn(*args, **kwargs)

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            with self._timed("reward"):
                return super()._calculate_rewards(*args, **kwargs)

        @contextmanager
        def _timed(self, stage: str) -> Iterator[None]:
            started = time.perf_counter()
            try:
                yield
            finally:
                took_s = time.perf_counter() - started
                self.seconds[stage] = self.seconds.get(stage, 0.0) + took_s

    tuned: type[Any] = LaptopGRPOTrainer
    return tuned


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
        record = {name: logs.get(theirs) for name, theirs in _TRL_NAMES.items()}
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
            # One completion of each group: enough to read, short enough for a log.
            self.report(marked_line("step", **plain, samples=rows[:: self.group_size]))

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
        kl = record["kl"]
        return (
            f"step {record['step']:>{width}}/{self.steps}"
            f"  reward {record['reward']:.3f}  std {record['reward_std']:.3f}"
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
