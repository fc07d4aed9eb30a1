"""NeMo RL's names in the workshop's words, and its event files as one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.training.runs.columns import RUN_COLUMNS, VALIDATION_COLUMNS, from_steps
from workshop_lib.training.runs.event_file import Scalar, read_scalars

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BASELINE_NOTE",
    "NO_KL_NOTE",
    "STAGES",
    "forget_from",
    "read_event_files",
    "stage_times",
]

# By NeMo RL's tag (v0.7.0); `gen_kl_error` compares two engines, not two models, and is no KL.
_TAGS = {
    "train/reward": "reward",
    "train/filtered_reward": "filtered_reward",
    "train/dynamic_sampling_num_gen_batches": "batches",
    "train/kl_penalty": "kl",
    "train/approx_entropy": "entropy",
    "train/grad_norm": "grad_norm",
    "train/loss": "loss",
    "train/mean_gen_tokens_per_sample": "mean_length",
    "train/truncation_rate": "cut_share",
    "train/lr": "learning_rate",
    "timing/train/total_step_time": "step_s",
}
_VALIDATION_TAGS = {"validation/accuracy": "accuracy", "validation/avg_length": "mean_length"}
_TIMES = "timing/train/"

STAGES = {
    "generation": "generation_s",
    "reward_calculation": "reward_s",
    "policy_and_reference_logprobs": "logprob_s",
    "policy_training": "update_s",
    # Three of them; their sum is one column.
    "prepare_for_generation/total": "prepare_s",
    "logprob_inference_prep": "prepare_s",
    "training_prep": "prepare_s",
}
"""NeMo RL's timers and the columns that they are added to."""

BASELINE_NOTE = (
    "zero_std_share is the share of completions whose baseline is 0 or 1: with a leave-one-out"
    " baseline, one completion of a group with a single right or wrong answer is counted too"
)
NO_KL_NOTE = "NeMo RL logged a KL of 0 at every step: no penalty, so none was computed"


def read_event_files(
    paths: Sequence[Path],
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """One run of NeMo RL, of all the event files that it wrote.

    A run that was started again writes another file. Where it begins before the step
    that the last one had reached, the steps from there on are the later file's.

    Args:
        paths: The event files, in any order.

    Returns:
        The steps (`RUN_COLUMNS`), the validations (`VALIDATION_COLUMNS`), and notes.

    Raises:
        WorkshopError: One of them cannot be read.

    Example:
        >>> from workshop_lib.data import data_path
        >>> files = data_path("recorded/nemo-rl/honest").glob("events.*")
        >>> frame, validation, notes = read_event_files(list(files))
        >>> len(frame), len(validation)
        (60, 7)
    """
    scalars = sorted((s for path in paths for s in read_scalars(path)), key=lambda s: s.time)
    steps: dict[int, dict[str, Any]] = {}
    validations: dict[int, dict[str, Any]] = {}
    baselines: dict[int, dict[str, float]] = {}
    last = 0
    for scalar in scalars:
        if scalar.tag in _VALIDATION_TAGS:
            row = validations.setdefault(scalar.step, {})
            row[_VALIDATION_TAGS[scalar.tag]] = scalar.value
        elif scalar.tag.startswith(("train/", _TIMES)):
            if scalar.step < last:
                forget_from(scalar.step, steps, validations)
            last = scalar.step
            _add(steps.setdefault(scalar.step, {}), scalar)
            if scalar.tag.startswith("train/baseline_reward/pct_"):
                baselines.setdefault(scalar.step, {})[scalar.tag[-1]] = scalar.value / 100
    # A step is done when its time is known: NeMo RL writes that last.
    done = {step: stage_times(row) for step, row in steps.items() if "step_s" in row}
    notes = []
    if done and all(row.get("kl") == 0 for row in done.values()):
        notes.append(NO_KL_NOTE)
        for row in done.values():
            row["kl"] = None
    for step, row in done.items():
        shares = baselines.get(step, {})
        if {"0", "1"} <= set(shares):
            row["zero_std_share"] = shares["0"] + shares["1"]
    if baselines:
        notes.append(BASELINE_NOTE)
    if len(paths) > 1:
        notes.append(f"{len(paths)} starts, a file each; steps that were done again are the last's")
    if done:
        first = done[min(done)]
        began = first["time"] - first["step_s"]
        for row in done.values():
            row["elapsed_s"] = row["time"] - began
    frame = from_steps(done, RUN_COLUMNS)
    return frame, from_steps(validations, VALIDATION_COLUMNS), tuple(notes)


def forget_from(
    step: int, steps: dict[int, dict[str, Any]], validations: dict[int, dict[str, Any]]
) -> None:
    """Forget what a run had done from a step on: it was started again before that.

    Args:
        step: The step that is done again.
        steps: What is known of each step; changed.
        validations: What is known of each validation; changed.

    Example:
        >>> steps = {1: {}, 2: {}, 3: {}}
        >>> forget_from(2, steps, {})
        >>> steps
        {1: {}}
    """
    # A validation belongs to the step during which it was made.
    for known in (steps, validations):
        for later in [number for number in known if number >= step and number > 0]:
            del known[later]


def stage_times(row: dict[str, Any]) -> dict[str, Any]:
    """Add up the timers of a step that belong to one column.

    Args:
        row: What is known of the step; timers under NeMo RL's names.

    Example:
        >>> stage_times({"logprob_inference_prep": 0.5, "training_prep": 0.25})["prepare_s"]
        0.75
    """
    out = dict(row)
    for timer, column in STAGES.items():
        if timer in row:
            out[column] = out.get(column, 0.0) + row[timer]
    return out


def _add(row: dict[str, Any], scalar: Scalar) -> None:
    # Some tags are written twice a step, with one value: the last one counts.
    if scalar.tag in _TAGS:
        row[_TAGS[scalar.tag]] = scalar.value
        row["time"] = scalar.time
    elif scalar.tag.removeprefix(_TIMES) in STAGES:
        row[scalar.tag.removeprefix(_TIMES)] = scalar.value
