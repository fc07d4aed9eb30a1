"""GRPO training: rewards, problems, the laptop's engine, evaluation.

`translate` says what of a recipe (`workshop_lib.training.recipe`) TRL honours, `engine`
trains (`python -m workshop_lib.training.train`), and `evaluate` compares before
and after. What a training writes is read by `workshop_lib.training.runs`.
"""

from __future__ import annotations

from workshop_lib.training.advantages import nemo_rl_advantages, trl_advantages
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.rewards import (
    first_integer_reward,
    format_reward,
    math_verify_reward,
    reward_for,
    stock_math_reward,
    techpulse_parts,
    techpulse_reward,
)

__all__ = [
    "Problem",
    "first_integer_reward",
    "format_reward",
    "load_problems",
    "math_verify_reward",
    "nemo_rl_advantages",
    "reward_for",
    "stock_math_reward",
    "techpulse_parts",
    "techpulse_reward",
    "trl_advantages",
]
