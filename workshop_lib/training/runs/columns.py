"""The columns of a run's table, whoever wrote the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workshop_lib.training.runs.records import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RUN_COLUMNS", "VALIDATION_COLUMNS", "from_steps"]

# What the laptop's records hold, and what only NeMo RL says. What a source does not
# say is NaN (None for lists); nothing is filled in.
RUN_COLUMNS = COLUMNS | {
    "filtered_reward": "mean reward of the completions that dynamic sampling kept",
    "batches": "batches that were sampled; more than one only under dynamic sampling",
    "prepare_s": "seconds of waking and loading the sampling engine and the trainer",
    "logprob_s": "seconds of log-probabilities, policy and reference",
    "update_s": "seconds of the update",
    "right_share": "share of answers that are right by another judge than the reward",
    "echo_share": "share of rewarded answers that say nothing but what the prompt says",
}

VALIDATION_COLUMNS = {
    "step": "after this step; 0 is before training",
    "accuracy": "mean reward on the validation problems",
    "mean_length": "mean length of a completion, tokens",
}


def from_steps(rows: Mapping[int, Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A table of one row a step from what is known of each.

    Args:
        rows: By step, what is known; other names are left out.
        columns: The table's columns and their meaning.

    Example:
        >>> from_steps({1: {"reward": 0.5}}, RUN_COLUMNS)["reward"].tolist()
        [0.5]
    """
    import pandas as pd

    table = [
        {name: rows[step].get(name) for name in columns} | {"step": step} for step in sorted(rows)
    ]
    frame = pd.DataFrame(table, columns=list(columns))
    kinds = {name: float for name in columns if name not in ("step", "group_means")}
    return frame.astype(
        kinds | {"step": int} | ({"group_means": object} if "group_means" in columns else {})
    )
