"""GRPO training: one recipe, two trainers, and what became of it.

`recipe` reads a recipe in NeMo RL's YAML, `translate` says what of it TRL honours, `train` trains
on a laptop, `runs` reads and judges what either trainer writes. `rewards` and `verifier` are
shared with NeMo RL's pods.
"""

from __future__ import annotations

from workshop_lib.training.advantages import nemo_rl_advantages, trl_advantages
from workshop_lib.training.asking import (
    Accuracy,
    accuracy_by_level,
    accuracy_table,
    answers_table,
    evaluate_server,
    sample_groups,
    wilson_interval,
)
from workshop_lib.training.experiments import SettingsComparison, compare_settings
from workshop_lib.training.memory import training_models
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
from workshop_lib.training.translate import Translation, translate
from workshop_lib.training.watch import (
    check_training,
    read_training,
    training_recipe,
    watch_training,
)

__all__ = [
    "Accuracy",
    "Problem",
    "SettingsComparison",
    "Translation",
    "accuracy_by_level",
    "accuracy_table",
    "answers_table",
    "check_training",
    "compare_settings",
    "evaluate_server",
    "first_integer_reward",
    "format_reward",
    "load_problems",
    "math_verify_reward",
    "nemo_rl_advantages",
    "read_training",
    "reward_for",
    "sample_groups",
    "stock_math_reward",
    "techpulse_parts",
    "techpulse_reward",
    "training_models",
    "training_recipe",
    "translate",
    "trl_advantages",
    "watch_training",
    "wilson_interval",
]
