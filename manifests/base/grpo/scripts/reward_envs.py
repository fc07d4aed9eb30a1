"""The workshop's rewards for NeMo RL: an actor each, that scores a batch of conversations.

The rewards are `workshop_lib.training.rewards` itself: NeMo RL's image has no workshop_lib,
so the ConfigMap `grpo-rewards` brings its very files, mounted at /rewards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import ray
import torch
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn

from workshop_lib.training.rewards import (
    first_integer_reward,
    format_reward,
    math_verify_reward,
    techpulse_reward,
)

NAMES = {
    "first_integer": "FirstIntegerEnvironment",
    "math_verify": "MathVerifyEnvironment",
    "format": "FormatEnvironment",
    "techpulse": "TechPulseEnvironment",
}
"""By the name in a recipe's `env`. NeMo RL's own `math` is left to NeMo RL."""


class RewardEnvironment(EnvironmentInterface):
    """One turn: the answer is scored, and the conversation is over."""

    reward: ClassVar[Callable[[str, str], float]]

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def step(self, message_log_batch: list[Any], metadata: list[Any]) -> EnvironmentReturn:
        """Score the last answer of each conversation."""
        answers = [
            "".join(str(part["content"]) for part in log if part["role"] == "assistant")
            for log in message_log_batch
        ]
        right = [str(each["ground_truth"]) for each in metadata]
        scores = [type(self).reward(*pair) for pair in zip(answers, right, strict=True)]
        rewards = torch.tensor(scores)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in answers],
            metadata=metadata,
            next_stop_strings=[None] * len(answers),
            rewards=rewards,
            terminateds=torch.ones_like(rewards),
            answers=None,
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, Any]]:
        """Accuracy of a batch. An answer that was cut off may be right all the same."""
        return batch, {"accuracy": batch["rewards"].float().mean().item()}


_actor = ray.remote(max_restarts=-1, max_task_retries=-1)


@_actor
class FirstIntegerEnvironment(RewardEnvironment):
    """The first number of the answer is the right whole number."""

    reward = staticmethod(first_integer_reward)


@_actor
class MathVerifyEnvironment(RewardEnvironment):
    """The answer ends in what is mathematically the right value, worked out."""

    reward = staticmethod(math_verify_reward)


@_actor
class FormatEnvironment(RewardEnvironment):
    """The answer ends in the one line `Answer: <value>`."""

    reward = staticmethod(format_reward)


@_actor
class TechPulseEnvironment(RewardEnvironment):
    """TechPulse's composite: facts, reasoning, brevity, formatting."""

    reward = staticmethod(techpulse_reward)
