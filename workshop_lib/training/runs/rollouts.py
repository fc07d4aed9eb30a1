"""What NeMo RL's model wrote: `train_data_step<N>.jsonl` and `val_data_step<N>.jsonl`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["echo_share", "group_spread", "read_rollouts", "right_share"]

_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_QUESTION = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


def read_rollouts(path: str | Path) -> pd.DataFrame:
    """The answers of one training step or validation.

    Args:
        path: The file.

    Returns:
        One row an answer: `prompt` (the user's words where a chat template stands
        around them), `completion`, `reward`.

    Raises:
        WorkshopError: The file cannot be read or holds something else.

    Example:
        >>> from workshop_lib.data import data_path
        >>> read_rollouts(data_path("recorded/nemo-rl/reward-hacking/val_data_step40.jsonl")).shape
        (64, 3)
    """
    import pandas as pd

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkshopError(f"{path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            turns = [_text(turn) for turn in row["content"][0]]
            rows.append((_question(turns[0]), turns[1], float(row["rewards"][0])))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WorkshopError(f"{path} line {number} is no rollout of NeMo RL") from error
    return pd.DataFrame(rows, columns=["prompt", "completion", "reward"])


def right_share(
    rollouts: pd.DataFrame, answers: Mapping[str, str], reward: Callable[[str, str], float]
) -> float:
    """The share of answers that another judge finds right.

    Args:
        rollouts: `read_rollouts`' table.
        answers: The right answer to each prompt.
        reward: The judge: 1 for a right answer.

    Raises:
        WorkshopError: A prompt has no answer, or there are no rollouts.

    Example:
        >>> import pandas as pd
        >>> from workshop_lib.training import first_integer_reward
        >>> table = pd.DataFrame({"prompt": ["3 + 4"], "completion": [" 7"], "reward": [1.0]})
        >>> right_share(table, {"3 + 4": "7"}, first_integer_reward)
        1.0
    """
    if rollouts.empty:
        raise WorkshopError("there are no rollouts to judge")
    unknown = set(rollouts["prompt"]) - set(answers)
    if unknown:
        raise WorkshopError(f"no right answer is known to {min(unknown)[:80]!r}")
    pairs = zip(rollouts["completion"], rollouts["prompt"], strict=True)
    return fmean(float(reward(said, answers[prompt]) >= 1) for said, prompt in pairs)


def echo_share(rollouts: pd.DataFrame) -> float:
    """The share of rewarded answers that say nothing but what their prompt says.

    An answer to a question that can be checked holds something that the question does
    not: the result. Where most of what is paid for holds no such word or number, the
    reward pays for the question. Nobody has to know the right answers to see that. An
    honest answer can look the same by chance (7 + 0 is 7), so a small share means nothing.

    Args:
        rollouts: A table with `prompt`, `completion` and `reward`.

    Returns:
        The share of the answers with the best reward; NaN if none was rewarded.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"prompt": ["What is 3 + 4?"] * 2, "completion": ["3 + 4 =", "7"]})
        >>> echo_share(table.assign(reward=1.0))
        0.5
    """
    best = rollouts["reward"].max() if len(rollouts) else 0.0
    if not best > 0:
        return math.nan
    paid = rollouts[rollouts["reward"] == best]
    pairs = zip(paid["prompt"], paid["completion"], strict=True)
    return fmean(float(_words(said) <= _words(asked)) for asked, said in pairs)


def _words(text: str) -> set[str]:
    """Words and numbers; an answer without any says nothing."""
    return set(_WORD.findall(text.lower()))


def group_spread(rollouts: pd.DataFrame) -> dict[str, Any]:
    """A training step's rewards by group: the answers to one prompt follow each other.

    Args:
        rollouts: `read_rollouts`' table of a training step.

    Returns:
        `reward_std`, `group_means` and `zero_std_share`, or nothing for under two answers.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"prompt": ["a", "a", "b", "b"], "reward": [0.0, 1.0, 1.0, 1.0]})
        >>> group_spread(table)["group_means"]
        [0.5, 1.0]
    """
    rewards = rollouts["reward"].tolist()
    if len(rewards) < 2:
        return {}
    # One prompt may be drawn twice in a row: the groups' size divides every run's length.
    lengths = [len(list(run)) for _, run in groupby(rollouts["prompt"])]
    size = math.gcd(*lengths)
    groups = [rewards[at : at + size] for at in range(0, len(rewards), size)]
    silent = sum(len(set(group)) == 1 for group in groups)
    return {
        "reward_std": stdev(rewards),
        "group_means": [fmean(group) for group in groups],
        "zero_std_share": silent / len(groups),
    }


def _text(turn: Any) -> str:
    """A turn of a training rollout is a text, of a validation's a message."""
    return str(turn["content"]) if isinstance(turn, dict) else str(turn)


def _question(prompt: str) -> str:
    match = _QUESTION.search(prompt)
    return match.group(1) if match else prompt
