"""GRPO training: recipe, rewards, problems, the laptop's engine, metrics, evaluation.

`recipe` reads NeMo RL's YAML, `translate` says what of it TRL honours, `engine`
trains (`python -m workshop_lib.training.train`), `metrics` reads what it writes,
and `evaluate` compares before and after.
"""

from __future__ import annotations

from workshop_lib.training.advantages import nemo_rl_advantages, trl_advantages
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.recipe import Recipe, RecipeError, read_recipe
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
    "Recipe",
    "RecipeError",
    "first_integer_reward",
    "format_reward",
    "load_problems",
    "math_verify_reward",
    "nemo_rl_advantages",
    "read_recipe",
    "reward_for",
    "stock_math_reward",
    "techpulse_parts",
    "techpulse_reward",
    "trl_advantages",
]
