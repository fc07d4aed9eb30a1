"""`env.first_integer` for NeMo RL: an actor that scores a batch of conversations."""

from __future__ import annotations

from typing import Any

import ray
import torch
from first_integer import first_integer
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn


@ray.remote(max_restarts=-1, max_task_retries=-1)
class FirstIntegerEnvironment(EnvironmentInterface):
    """One turn: the answer is scored, and the conversation is over."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def step(self, message_log_batch: list[Any], metadata: list[Any]) -> EnvironmentReturn:
        """Score the last answer of each conversation."""
        answers = [
            "".join(str(part["content"]) for part in log if part["role"] == "assistant")
            for log in message_log_batch
        ]
        right = [str(each["ground_truth"]) for each in metadata]
        scores = [first_integer(*pair) for pair in zip(answers, right, strict=True)]
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
