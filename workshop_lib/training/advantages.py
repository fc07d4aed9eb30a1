"""Group-relative advantages, as NeMo RL and as TRL compute them.

Sources: Shao et al. 2024, "DeepSeekMath" (GRPO); Ahmadian et al. 2024, "Back to
Basics" (leave-one-out); NeMo RL v0.7.0, `calculate_baseline_and_std_per_prompt`;
TRL 1.16, `GRPOTrainer._generate_and_score_completions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

__all__ = ["nemo_rl_advantages", "trl_advantages"]

_TRL_EPSILON = 1e-4
_NEMO_RL_EPSILON = 1e-6


def trl_advantages(rewards: Sequence[float], *, normalize: bool = True) -> list[float]:
    """Advantages of one group as TRL computes them: the group's mean and spread.

    Args:
        rewards: The rewards of the answers to one prompt.
        normalize: Divide by the standard deviation (`scale_rewards="group"`, TRL's
            default) or not (`"none"`).

    Example:
        >>> [round(a, 2) for a in trl_advantages([1, 0, 0, 0])]
        [1.5, -0.5, -0.5, -0.5]
    """
    mean = fmean(rewards)
    spread = (stdev(rewards) + _TRL_EPSILON) if normalize else 1.0
    return [(reward - mean) / spread for reward in rewards]


def nemo_rl_advantages(
    rewards: Sequence[float], *, normalize: bool = True, leave_one_out: bool = True
) -> list[float]:
    """Advantages of one group as NeMo RL computes them.

    With `leave_one_out` an answer is compared with the mean of the *others*, and
    divided by *their* spread; where that is zero (the only right answer of a group)
    it is not divided at all.

    Args:
        rewards: The rewards of the answers to one prompt.
        normalize: `grpo.normalize_rewards`.
        leave_one_out: `grpo.use_leave_one_out_baseline`.

    Example:
        >>> [round(a, 2) for a in nemo_rl_advantages([1, 0, 0, 0])]
        [1.0, -0.58, -0.58, -0.58]
    """
    advantages = []
    for index, reward in enumerate(rewards):
        others = [r for i, r in enumerate(rewards) if i != index] if leave_one_out else rewards
        mean = fmean(others)
        advantage = reward - mean
        count = len(others)
        variance = (fmean([r * r for r in others]) - mean * mean) * count / max(count - 1, 1)
        spread = math.sqrt(variance) if variance > 1e-12 else 0.0  # what rounding leaves is zero
        if normalize and spread > 0:
            advantage /= spread + _NEMO_RL_EPSILON
        advantages.append(advantage)
    return advantages
