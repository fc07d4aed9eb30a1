"""The columns of a run's table, and what the sources call them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "TRL_NAMES", "VALIDATION_COLUMNS", "collect", "make_table", "steps_table"]

# In the order in which a table shows them. What a source does not say is NaN (None for lists);
# nothing is filled in. What it says is no number is NaN too: `not_finite` tells the two apart.
COLUMNS = {
    "step": "step, from 1",
    "reward": "mean reward of the step's completions",
    "reward_std": "standard deviation of the rewards",
    "group_means": "mean reward of each group (the completions of one prompt)",
    "zero_std_share": "share of completions in groups without spread: they teach nothing",
    "kl": "mean KL divergence from the reference model, nats a token",
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
    "prepare_s": "seconds of waking and loading the sampling engine and the trainer",
    "logprob_s": "seconds of log-probabilities, policy and reference",
    "update_s": "seconds of the update",
    "elapsed_s": "seconds since the first step began",
    "time": "when the step ended, seconds since 1970",
    "right_share": "share of answers that are right by another judge than the reward",
    "echo_share": "share of rewarded answers that only repeat their prompt",
    "not_finite": "names of the columns that the source says are NaN or infinite",
}
VALIDATION_COLUMNS = {
    "step": "after this step; 0 is before training",
    "accuracy": "mean reward on the validation problems",
    "mean_length": "mean length of a completion, tokens",
}

# Of TRL's log, which its console, TensorBoard and trainer_state.json share.
TRL_NAMES = {
    "frac_reward_zero_std": "zero_std_share",
    "clip_ratio": "clip_share",  # of older versions
    "clip_ratio/region_mean": "clip_share",
    "completion_length": "mean_length",  # of older versions
    "completions/mean_length": "mean_length",
    "completions/clipped_ratio": "cut_share",
    "step_time": "step_s",
}
# Of NeMo RL v0.7.0: its event files, then its console. `gen_kl_error` compares two engines, not
# two models, and is no KL.
_NEMO_NAMES = {
    "kl_penalty": "kl",
    "approx_entropy": "entropy",
    "mean_gen_tokens_per_sample": "mean_length",
    "truncation_rate": "cut_share",
    "lr": "learning_rate",
    "Loss": "loss",
    "Avg Reward": "reward",
    "Avg Total Reward": "reward",
    "Mean Generation Length": "mean_length",
    "Total step time": "step_s",
    "total_step_time": "step_s",
}
_STAGES = {  # NeMo RL's timers, and the columns that they are added to
    "generation": "generation_s",
    "reward_calculation": "reward_s",
    "policy_and_reference_logprobs": "logprob_s",
    "policy_training": "update_s",
    "prepare_for_generation/total": "prepare_s",
    "logprob_inference_prep": "prepare_s",
    "training_prep": "prepare_s",
}
_VALIDATION_NAMES = {
    "validation/accuracy": "accuracy",
    "validation/avg_length": "mean_length",
    "validation/Accuracy": "accuracy",
    "validation/Average response length": "mean_length",
    "eval/reward": "accuracy",
    "eval/completions/mean_length": "mean_length",
    "eval_reward": "accuracy",
    "eval_completions/mean_length": "mean_length",
}
_NAMES = dict(zip(COLUMNS, COLUMNS, strict=True)) | TRL_NAMES | _NEMO_NAMES
_NOT_NUMBERS = ("group_means", "not_finite")
_STEP_NAMES = ("step", "global_step", "global_step/max_steps")  # the last two of TRL's relatives

Rows = list[dict[str, Any]]


def collect(samples: Iterable[Mapping[str, Any]]) -> tuple[Rows, Rows]:
    """The rows of the steps and of the validations, of what a source said, in its order.

    A sample has values by the source's names, and a `step`; several may be of one step. A step that
    comes again, or one before it, was done again: the later counts. A value that is no number is a
    ValueError or TypeError, a sample without a step a KeyError.
    """
    steps: Rows = []
    validations: Rows = []
    for sample in samples:
        named = next((name for name in _STEP_NAMES if name in sample), "step")
        step = int(str(sample[named]).partition("/")[0])  # 5 of "5/100"
        for name, value in sample.items():
            if value is None or name in _STEP_NAMES:
                continue
            bare = name.removeprefix("train/").removeprefix("timing/train/")
            if name in _VALIDATION_NAMES:
                _row(validations, step)[_VALIDATION_NAMES[name]] = float(value)
            elif bare in _NOT_NUMBERS:
                _row(steps, step)[bare] = value
            elif bare in _NAMES or bare in _STAGES or bare.startswith("baseline_reward/pct_"):
                _row(steps, step)[_NAMES.get(bare, bare)] = float(value)
    # A trainer says a step's time last, if it says it: without, the step is not done.
    timed = any("step_s" in row for row in steps)
    rows = [_finished(row) for row in steps if "step_s" in row or not timed]
    last = rows[-1]["step"] if rows else math.inf
    return rows, [row for row in validations if row["step"] <= last]


def _row(rows: Rows, step: int) -> dict[str, Any]:
    """The row of a step that is under way; those of a start before it that it repeats go."""
    if not rows or rows[-1]["step"] != step:
        while rows and rows[-1]["step"] >= step:
            rows.pop()
        rows.append({"step": step})
    return rows[-1]


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    """With the timers of a stage added up, and what is no number by name."""
    for timer, column in _STAGES.items():
        if timer in row:
            row[column] = row.get(column, 0.0) + row.pop(timer)
    zero, one = (row.pop(f"baseline_reward/pct_{share}", None) for share in (0, 1))
    if zero is not None and one is not None:
        row["zero_std_share"] = (zero + one) / 100
    wrong = [n for n, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
    return row | {"not_finite": " ".join(wrong)}


def make_table(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of one row a step; other names than the columns' are left out."""
    import pandas as pd

    frame = pd.DataFrame([{n: row.get(n) for n in columns} for row in rows], columns=list(columns))
    # Said, not inferred: a column of nothing but null, or of no row, would have no type.
    types = {name: object if name in _NOT_NUMBERS else float for name in columns}
    return frame.astype(types | {"step": int})


def steps_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of records of steps, under our names or the sources'."""
    return make_table(collect(records)[0], COLUMNS)
