"""What a model wrote: NeMo RL's `train_data_step<N>.jsonl` and `val_data_step<N>.jsonl`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.training.runs.records import json_lines

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["echo_share", "read_rollouts"]

_QUESTION = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")  # of any script
# Two numbers with an operator between: something that is left to work out.
_CALCULATION = re.compile(r"\d\s*(?:[-+*/^\u00d7\u00f7\u00b7]|\\times|\\cdot)\s*\d")
_LONG_ECHO_WORDS = 4


def read_rollouts(path: str | Path) -> pd.DataFrame:
    """The completions of one training step or validation of NeMo RL.

    Args:
        path: The file.

    Returns:
        One row a completion: `prompt` (the user's words where a chat template stands
        around them), `completion`, `reward`.

    Raises:
        WorkshopError: The file cannot be read or holds something else.

    Example:
        >>> from workshop_lib.data import data_path
        >>> read_rollouts(data_path("recorded/nemo-rl/reward-hacking/val_data_step40.jsonl")).shape
        (64, 3)
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise WorkshopError(f"{path} cannot be read: there is no such file")
    rows = []
    for number, row in enumerate(json_lines(path), start=1):
        try:
            # A turn of a training rollout is a text, of a validation's a message.
            turns = [str(t["content"] if isinstance(t, dict) else t) for t in row["content"][0]]
            match = _QUESTION.search(turns[0])
            rows.append((match[1] if match else turns[0], turns[1], float(row["rewards"][0])))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WorkshopError(f"{path} line {number} is no rollout of NeMo RL") from error
    return pd.DataFrame(rows, columns=["prompt", "completion", "reward"])


def echo_share(rollouts: pd.DataFrame) -> float:
    """The share of the best-rewarded completions that only repeat their prompt; else NaN.

    Such an echo says nothing that the prompt does not, and either leaves a calculation of the
    prompt to be worked out ("7 + 14 =") or repeats half of the prompt, or is empty. A short answer
    that stands in the prompt (an option's letter, a name, a number) is none. Nobody has to know
    the right answers to see that.

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
    return fmean(map(_is_echo, paid["prompt"], paid["completion"]))


def _is_echo(asked: str, said: str) -> float:
    if not said.strip():
        return 1.0
    known, words = set(_WORD.findall(asked.casefold())), _WORD.findall(said.casefold())
    if not words or not set(words) <= known:
        return 0.0
    long = len(words) >= _LONG_ECHO_WORDS and 2 * len(set(words)) >= len(known)
    return float(long or bool(_CALCULATION.search(said)))
