"""What if: the same short training with one setting changed, value by value, side by side.

The trainings are real and small: fewer answers and steps than the recipe asks for. They run one
after the other, each as `training.train` in a process of its own, which ends with this one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.progress import Progress
from workshop_lib.training.plan import model_folder
from workshop_lib.training.recipe import Recipe, read_recipe
from workshop_lib.training.record import TrainingError
from workshop_lib.training.runs import MARK, steps_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SettingsComparison", "compare_settings", "follow"]

ANSWERS = 32
"""Answers of a step: 4 prompts x 8. Seen: 2.5 s a step on two cores."""

_LORA = "policy.dtensor_cfg.lora_cfg"
_GROUP_KEY = "grpo.num_generations_per_prompt"
_RATE = "policy.optimizer.kwargs.lr"
_UPDATES_TO_CLIP = 4


@dataclass(frozen=True)
class SettingsComparison:
    """The same training with one setting changed.

    Attributes:
        key: The recipe's key.
        values: What it was set to.
        frame: One row a step of each: `run`, `value`, then the columns of `runs.COLUMNS`.
        settings: What else is not as in the recipe, by dotted key, in every training.
        seconds: Seconds of each training, loading the model included.
    """

    key: str
    values: tuple[Any, ...]
    frame: pd.DataFrame = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    seconds: tuple[float, ...] = field(repr=False)

    def summary(self) -> pd.DataFrame:
        """One row a value: means of all steps, of the last two, and the largest.

        Returns:
            `value`, `reward_last` (mean of the last two steps), `kl_last`, `entropy_last`,
            `zero_std_share` (mean), `grad_norm` (largest), `clip_share` (mean), `seconds`.
        """
        runs = self.frame.groupby("run")
        last = runs[["reward", "kl", "entropy"]].apply(lambda steps: steps.tail(2).mean())
        table = runs[["value"]].first().join(last.add_suffix("_last"))
        means = runs[["zero_std_share", "clip_share"]].mean()
        table = table.assign(zero_std_share=means["zero_std_share"])
        table = table.assign(grad_norm=runs["grad_norm"].max(), clip_share=means["clip_share"])
        return table.assign(seconds=self.seconds).reset_index(drop=True)


def compare_settings(
    recipe: Recipe,
    key: str,
    values: Sequence[Any],
    *,
    steps: int = 6,
    model: str | Path | None = None,
) -> SettingsComparison:
    """Train a few steps with each value of a setting, and put the curves side by side.

    Every training begins with the same model, the same seed and the same prompts, so what
    differs comes from the setting and from the draws that follow from it. The answers of a step
    are as many for every value: with larger groups there are fewer prompts. What a setting
    cannot do without comes with it: a clip needs several updates a step, a LoRA rank LoRA.

    Args:
        recipe: The recipe.
        key: The key to change, for example `policy.generation.temperature`.
        values: Two or more values. None for `policy.dtensor_cfg.lora_cfg.dim` trains all
            parameters, at the recipe's own rate.
        steps: Steps of each training.
        model: Folder of the model; by default where the workshop prepared the recipe's.

    Returns:
        The curves.

    Raises:
        WorkshopError: A value is refused before anything is trained, or a training failed.

    Example:
        >>> key = "policy.generation.temperature"
        >>> compare_settings(recipe, key, [0.2, 1.0]).summary()   # doctest: +SKIP
    """
    import pandas as pd
    import yaml

    if len(values) < 2:
        raise TrainingError(f"{key}: give two or more values to compare, for example [1, 2]")
    small = _small(key, steps)
    runs = [small | _changed(key, value, recipe) for value in values]
    folder = model_folder(recipe, model)
    frames, seconds = [], []
    with (
        tempfile.TemporaryDirectory(prefix="grpo-experiment-") as scratch,
        Progress(label=f"trying {key.rpartition('.')[2]}", unit="steps") as progress,
    ):
        file = Path(scratch) / recipe.path.name
        file.write_text(yaml.safe_dump(recipe.settings), encoding="utf-8")
        for overrides in runs:
            read_recipe(file, overrides)  # a wrong value is an error before anything starts
        for number, (value, overrides) in enumerate(zip(values, runs, strict=True)):
            name, began, done = _label(value), time.monotonic(), number * steps
            progress.update(done, len(runs) * steps, f"{name}: loading torch and the model")
            records: list[Mapping[str, Any]] = []
            command = [str(file), *(f"{k}={json.dumps(v)}" for k, v in overrides.items())]
            for record in follow([*command, "--output", f"{scratch}/out", "--model", str(folder)]):
                records.append(record)
                text = f"{name}: step {record['step']} of {steps}, reward {record['reward']:.2f}"
                progress.update(done + len(records), len(runs) * steps, text)
            seconds.append(time.monotonic() - began)
            frames.append(steps_table(records).assign(run=number, value=name))
    return SettingsComparison(key, tuple(values), pd.concat(frames), small, tuple(seconds))


def _small(key: str, steps: int) -> dict[str, Any]:
    """What is not as in the recipe, so that a training is short and shows what the key does."""
    clips = key.startswith("loss_fn.ratio_clip")
    batch = ANSWERS // _UPDATES_TO_CLIP if clips else ANSWERS
    settings: dict[str, Any] = {
        "grpo.num_prompts_per_step": ANSWERS // 8,
        _GROUP_KEY: 8,
        "grpo.max_num_steps": steps,
        "grpo.max_num_epochs": 1000,
        "grpo.skip_reference_policy_logprobs_calculation": False,  # so that KL is recorded
        "policy.train_global_batch_size": batch,
        "policy.train_micro_batch_size": batch,
        "loss_fn.force_on_policy_ratio": not clips,
        "checkpointing.enabled": False,
    }
    if key.startswith(f"{_LORA}."):
        # An adapter that starts at 0 needs larger steps than a trained model.
        settings |= {"policy.dtensor_cfg._v2": True, f"{_LORA}.enabled": True, _RATE: 1e-4}
    return settings


def _changed(key: str, value: Any, recipe: Recipe) -> dict[str, Any]:
    """What a value means for a recipe."""
    if key == f"{_LORA}.dim" and value is None:
        return {f"{_LORA}.enabled": False, _RATE: recipe.policy.optimizer.kwargs.get("lr")}
    if key == _GROUP_KEY:
        if not isinstance(value, int) or value < 2 or ANSWERS % value:
            raise TrainingError(
                f"{key}: {value!r} does not divide the {ANSWERS} answers of a step; give 2, 4, 8"
                " or 16"
            )
        return {key: value, "grpo.num_prompts_per_step": ANSWERS // value}
    return {key: value}


def follow(arguments: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Run `training.train`, and give the record of each step when it is done.

    The process ends and its output folder is removed when the iteration is left, whatever the
    reason: its standard input is closed.
    """
    command = [sys.executable, "-m", "workshop_lib.training.train", *arguments]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            [*command, "--report", "--temporary"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # a notebook's interrupt is for the asker, who ends this
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            _, mark, text = line.partition(MARK)
            if mark and (event := json.loads(text))["event"] == "step":
                yield event
        if process.wait() != 0:
            errors.seek(0)
            said = [text.strip() for text in errors if text.strip()]
            raise TrainingError(f"the training failed: {(said or ['it said nothing'])[-1]}")


def _label(value: Any) -> str:
    if value is None:
        return "off"
    if not isinstance(value, float):
        return json.dumps(value).strip('"')
    text = f"{value:g}" if value == 0 or abs(value) >= 0.001 else f"{value:e}"
    digits, small, power = text.partition("e")
    return f"{float(digits):g}e{int(power)}" if small else text
