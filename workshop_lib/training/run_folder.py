"""The output folder of a training: who may write into it, and what it holds.

- `run.json`: the recipe, the model, the seed and the versions;
- `metrics.jsonl` and `completions.jsonl`: one record a step, see `metrics`;
- `checkpoints/step_<N>`: the model after that step, see `checkpoints`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.training.checkpoints import Checkpoints
from workshop_lib.training.runs import COMPLETIONS_FILE, METRICS_FILE

if TYPE_CHECKING:
    from workshop_lib.training.engine import Plan

__all__ = [
    "TrainingError",
    "check_free",
    "check_resume",
    "checkpoints_of",
    "claim",
    "latest_checkpoint",
]

_RUN_FILE = "run.json"


class TrainingError(WorkshopError):
    """Training cannot start, or failed."""


def checkpoints_of(output: str | Path, *, keep: int | None = None) -> Checkpoints:
    """The checkpoints of a run.

    Args:
        output: The run's output folder.
        keep: How many of the newest stay when another is written; None: all.

    Example:
        >>> checkpoints_of("build/no-run-yet").steps()
        []
    """
    return Checkpoints(Path(output) / "checkpoints", keep=keep)


def latest_checkpoint(output: str | Path) -> Path:
    """The newest checkpoint of a run.

    Args:
        output: The run's output folder.

    Raises:
        CheckpointError: It has none.

    Example:
        >>> latest_checkpoint("build/grpo")  # doctest: +SKIP
        PosixPath('build/grpo/checkpoints/step_12')
    """
    return checkpoints_of(output).newest()


def check_free(place: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, or that holds a run which is to be kept.

    Args:
        place: The output folder.
        overwrite: Its run need not be kept.

    Raises:
        TrainingError: What is wrong with it.
    """
    if place.exists() and not place.is_dir():
        raise TrainingError(f"--output {place} is a file; give a folder")
    if not overwrite and (place / METRICS_FILE).exists():
        raise TrainingError(
            f"--output {place} holds a run already; give another folder, --resume, or --overwrite"
        )
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(above, os.W_OK):
        raise TrainingError(f"--output {place} cannot be written: no permission in {above}")


def check_resume(plan: Plan) -> Path:
    """Find the checkpoint to go on from.

    Args:
        plan: What to train.

    Returns:
        The newest checkpoint that has what is needed.

    Raises:
        CheckpointError: There is none.
        TrainingError: The run in the folder is another one, or has all the steps.
    """
    checkpoint = plan.checkpoints.newest_to_resume()
    file = plan.output / _RUN_FILE
    try:
        before = _decides(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(f"--resume: {file} does not say what was run: {error}") from error
    now = _decides(json.loads(json.dumps(_about(plan), default=str)))
    if changed := sorted(key for key in before | now if before.get(key) != now.get(key)):
        raise TrainingError(
            f"--resume: the run in {plan.output} was started with another {', '.join(changed)};"
            " give what it was started with, or another --output"
        )
    done = int(checkpoint.name.removeprefix("step_"))
    if done >= plan.translation.steps:
        raise TrainingError(
            f"--resume: {checkpoint} is of step {done} and {plan.translation.steps} steps are"
            " wanted; raise --steps"
        )
    return checkpoint


def claim(plan: Plan) -> float:
    """Make the output folder, remove what an earlier run left, note what is run.

    Args:
        plan: What to train.

    Returns:
        Seconds of training that a resumed run has behind it.
    """
    elapsed_s = 0.0
    if plan.resume_from is None:
        for name in (METRICS_FILE, COMPLETIONS_FILE, _RUN_FILE):
            (plan.output / name).unlink(missing_ok=True)
        plan.checkpoints.clear()
    else:
        step = int(plan.resume_from.name.removeprefix("step_"))
        _keep_records(plan.output / COMPLETIONS_FILE, up_to=step)
        elapsed_s = _keep_records(plan.output / METRICS_FILE, up_to=step)
        plan.checkpoints.forget_after(step)
    plan.output.mkdir(parents=True, exist_ok=True)
    partial = plan.output / f".{_RUN_FILE}.partial"
    partial.write_text(json.dumps(_about(plan), indent=1, default=str) + "\n", encoding="utf-8")
    partial.replace(plan.output / _RUN_FILE)
    return elapsed_s


def _about(plan: Plan) -> dict[str, Any]:
    """What is run, for `run.json`."""
    return {
        "recipe": str(plan.recipe.path),
        "settings": plan.recipe.settings,
        "model": str(plan.model),
        "steps": plan.translation.steps,
        "seed": plan.translation.arguments["seed"],
        "arguments": plan.translation.arguments,
        "lora": plan.translation.lora,
        "dynamic_sampling": plan.translation.prompts_per_batch,
        "versions": _versions(),
        "started": time.time(),
    }


def _decides(about: dict[str, Any]) -> dict[str, Any]:
    """What a step depends on: neither how many follow, nor when the model is saved."""
    apart = ("max_steps", "save_strategy", "save_steps", "save_only_model")
    arguments = {key: value for key, value in about["arguments"].items() if key not in apart}
    sections = {key: about["settings"].get(key) for key in ("data", "env")}
    # Runs of earlier versions say nothing of these, and had none.
    own = {"lora": about.get("lora") or {}, "dynamic_sampling": about.get("dynamic_sampling") or 0}
    return {"model": about["model"], **sections, **own, **arguments}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "trl", "peft")}


def _keep_records(file: Path, *, up_to: int) -> float:
    """Cut a file of records after a step, so that a repeated step stands in it once.

    Args:
        file: One JSON object with a `step` a line; the last line may be half written.
        up_to: The last step that stays.

    Returns:
        Seconds of training up to there, if the records say so (`elapsed_s`); else 0.
    """
    if not file.exists():
        return 0.0
    text = file.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    records = [(line, json.loads(line)) for line in lines]
    kept = [(line, record) for line, record in records if record["step"] <= up_to]
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text("".join(f"{line}\n" for line, _ in kept), encoding="utf-8")
    partial.replace(file)
    return float(kept[-1][1].get("elapsed_s", 0.0)) if kept else 0.0
