"""The reward of the workshop's arithmetic recipe, as the laptop computes it.

NeMo RL's image has no workshop_lib. A test compares this with
`workshop_lib.training.rewards.first_integer_reward`, case by case.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+))(\.\d+)?")


def first_integer(completion: str, answer: str) -> float:
    """1 if the first number in a completion is the right whole number, else 0."""
    match = _NUMBER.search(completion[:4000])
    if match is None or match.group(2):
        return 0.0
    digits = match.group(1).replace(",", "")
    return float(len(digits) < 300 and int(digits) == int(answer))
