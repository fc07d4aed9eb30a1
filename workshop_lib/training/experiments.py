"""What if: the same short training with one setting changed, value by value, side by side.

```python
comparison = compare_settings(recipe, "policy.generation.temperature", [0.2, 1.0])
plot_settings(comparison.frame, key=comparison.key)   # of workshop_lib.plots
comparison.summary()                                  # one row a value
```

The trainings are real and small: fewer answers and fewer steps than the recipe asks for, as
`comparison.settings` says. They run one after the other, each as `training.train --report` in a
process of its own, which ends with this one, however this one ends.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.progress import Progress
from workshop_lib.training.recipe import Recipe, read_recipe
from workshop_lib.training.record import TrainingError
from workshop_lib.training.runs import COLUMNS, MARK
from workshop_lib.training.runs.table import collect, make_table
from workshop_lib.training.trainer import model_folder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SettingsComparison", "compare_settings", "follow", "small_settings"]

ANSWERS = 32
"""Answers of a step: 4 prompts x 8. Seen: 2.5 s a step on two cores."""

GROUP = 8
STEPS = 6

_LORA = "policy.dtensor_cfg.lora_cfg"
_GROUP_KEY = "grpo.num_generations_per_prompt"
_RATE = "policy.optimizer.kwargs.lr"
_CLIP_KEYS = ("loss_fn.ratio_clip_min", "loss_fn.ratio_clip_max")
_UPDATES_TO_CLIP = 4
_STOP_TIMEOUT_S = 10.0


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
        import pandas as pd

        rows = []
        for number, (value, seconds) in enumerate(zip(self.values, self.seconds, strict=True)):
            steps = self.frame[self.frame["run"] == number]
            last = steps.tail(2)
            rows.append(
                {
                    "value": _label(value),
                    "reward_last": last["reward"].mean(),
                    "kl_last": last["kl"].mean(),
                    "entropy_last": last["entropy"].mean(),
                    "zero_std_share": steps["zero_std_share"].mean(),
                    "grad_norm": steps["grad_norm"].max(),
                    "clip_share": steps["clip_share"].mean(),
                    "seconds": seconds,
                }
            )
        return pd.DataFrame(rows)


def compare_settings(
    recipe: Recipe,
    key: str,
    values: Sequence[Any],
    *,
    steps: int = STEPS,
    also: Mapping[str, Any] | None = None,
    model: str | Path | None = None,
    timeout_s: float = 900.0,
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
        also: Values by dotted key for all trainings.
        model: Folder of the model; by default where the workshop prepared the recipe's.
        timeout_s: The longest that all of it may take.

    Returns:
        The curves.

    Raises:
        RecipeError: The recipe has no such key, or cannot have such a value.
        TrainingError: Fewer than two values, the model is not here, or a training failed.

    Example:
        >>> compare_settings(recipe, "policy.optimizer.kwargs.lr",
        ...                  [1e-6, 1e-5, 1e-4])  # doctest: +SKIP
    """
    import pandas as pd
    import yaml

    if len(values) < 2:
        raise TrainingError(f"{key}: give two or more values to compare, for example [1, 2]")
    if steps < 1:
        raise TrainingError(f"steps is {steps}; train at least one step")
    shared = small_settings(key, steps) | dict(also or {})
    runs = [shared | overrides for overrides in _changes(key, values, recipe)]
    folder = model_folder(recipe, model, option="model")
    until = time.monotonic() + timeout_s
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
            command += ["--output", f"{scratch}/out", "--model", str(folder), "--steps", str(steps)]
            for record in follow(command, timeout_s=until - time.monotonic()):
                records.append(record)
                text = f"{name}: step {record['step']} of {steps}, reward {record['reward']:.2f}"
                progress.update(done + len(records), len(runs) * steps, text)
            seconds.append(time.monotonic() - began)
            frame = make_table(collect(records)[0], COLUMNS)
            frame.insert(0, "value", name)
            frame.insert(0, "run", number)
            frames.append(frame)
    return SettingsComparison(key, tuple(values), pd.concat(frames), shared, tuple(seconds))


def small_settings(key: str, steps: int = STEPS) -> dict[str, Any]:
    """What an experiment changes in a recipe besides its key, so that it takes seconds.

    Example:
        >>> small_settings("policy.generation.temperature")["grpo.num_prompts_per_step"]
        4
    """
    clips = key in _CLIP_KEYS
    batch = ANSWERS // _UPDATES_TO_CLIP if clips else ANSWERS
    settings: dict[str, Any] = {
        "grpo.num_prompts_per_step": ANSWERS // GROUP,
        _GROUP_KEY: GROUP,
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


def follow(arguments: Sequence[str], *, timeout_s: float) -> Iterator[Mapping[str, Any]]:
    """Run a training, and give the record of each step when it is done.

    The process is ended when the iteration is left, whatever the reason.

    Args:
        arguments: Of `training.train`; its output folder is removed at the end.
        timeout_s: The longest that it may take.

    Raises:
        TrainingError: The training failed, or it took too long.
    """
    until = time.monotonic() + timeout_s
    command = [sys.executable, "-m", "workshop_lib.training.train", *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, "--report", "--temporary"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # a notebook's interrupt is for the asker, who ends this
        )
        assert process.stdin is not None and process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()

        def read(stream: Any) -> None:
            for line in stream:
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            while (line := lines.get(timeout=max(until - time.monotonic(), 0.01))) is not None:
                _, mark, text = line.partition(MARK)
                if mark and (event := json.loads(text))["event"] == "step":
                    yield event
            if process.wait() != 0:
                errors.seek(0)
                said = [text.strip() for text in errors if text.strip()]
                raise TrainingError(f"the training failed: {(said or ['it said nothing'])[-1]}")
        except queue.Empty:
            raise TrainingError(
                f"the training was not done after {timeout_s:.4g} s and was stopped; give fewer"
                " steps or values, or a longer timeout_s"
            ) from None
        finally:
            with contextlib.suppress(OSError):  # it is gone already, with what we had written
                process.stdin.close()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join()
            process.stdout.close()


def _changes(key: str, values: Sequence[Any], recipe: Recipe) -> Iterator[dict[str, Any]]:
    """What each value means for a recipe."""
    for value in values:
        if key == f"{_LORA}.dim" and value is None:
            yield {f"{_LORA}.enabled": False, _RATE: recipe.policy.optimizer.kwargs.get("lr")}
        elif key == _GROUP_KEY:
            if not isinstance(value, int) or value < 2 or ANSWERS % value:
                raise TrainingError(
                    f"{key}: {value!r} does not divide the {ANSWERS} answers of a step; give 2, 4,"
                    " 8 or 16"
                )
            yield {key: value, "grpo.num_prompts_per_step": ANSWERS // value}
        else:
            yield {key: value}


def _label(value: Any) -> str:
    if value is None:
        return "off"
    if not isinstance(value, float):
        return json.dumps(value).strip('"')
    text = f"{value:g}" if value == 0 or abs(value) >= 0.001 else f"{value:e}"
    digits, small, power = text.partition("e")
    return f"{float(digits):g}e{int(power)}" if small else text
