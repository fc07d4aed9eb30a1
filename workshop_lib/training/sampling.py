"""Dynamic sampling: which prompts a step asks, and which groups of answers it keeps.

A group whose answers all got the same reward has advantages of 0 and teaches nothing. Dynamic
sampling (Yu et al. 2025, "DAPO", section 3.2; NeMo RL v0.7.0, `dynamic_sampling`) throws such
groups away and asks further prompts, until a step has all its groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Collected", "PromptStream", "groups_with_spread"]


class PromptStream:
    """Batches of problems without end, in the order in which TRL's sampler has them.

    An epoch is a shuffle of all problems; what is left of one after whole batches is dropped.

    Args:
        problems: How many there are.
        size: Problems in a batch.
        seed: Decides the order.
        shuffle: Whether to shuffle; else they come as they are.

    Attributes:
        batches: How many batches were taken. Set it to go on from there.

    Example:
        >>> stream = PromptStream(5, 2, seed=1, shuffle=False)
        >>> stream.take(), stream.take(), stream.take(), stream.batches
        ([0, 1], [2, 3], [0, 1], 3)
    """

    def __init__(self, problems: int, size: int, *, seed: int, shuffle: bool = True) -> None:
        if not 1 <= size <= problems:
            raise ValueError(f"batches of {size} of {problems} problems")
        self.problems = problems
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.batches = 0
        self._epoch = -1
        self._order: list[int] = []

    def take(self) -> list[int]:
        """The next batch: which problems."""
        epoch, within = divmod(self.batches, self.problems // self.size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        self.batches += 1
        return self._order[within * self.size : (within + 1) * self.size]

    def _shuffled(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.problems))
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.problems, generator=generator)
        order: list[int] = torch.randperm(self.problems, generator=generator).tolist()
        return order


def groups_with_spread(rewards: Sequence[float], size: int) -> list[int]:
    """Which groups have answers with different rewards.

    Args:
        rewards: The reward of each answer, group by group; NaN where nothing could score it.
        size: Answers of a group.

    Example:
        >>> groups_with_spread([1, 0, 1, 1, 0, 0, 0, 1], 2)
        [0, 3]
    """
    groups = [rewards[start : start + size] for start in range(0, len(rewards), size)]
    scored = [{reward for reward in group if reward == reward} for group in groups]
    return [number for number, values in enumerate(scored) if len(values) > 1]


@dataclass
class Collected:
    """Groups with spread, gathered from several batches of answers.

    Attributes:
        rows: The data set's row of each kept answer.
        generated: What was sampled, as `GRPOTrainer._generate` returns it: lists with one entry
            an answer, or None.
        rewards: The rewards of the kept answers, one row an answer and one column a function.
        every_reward: The reward of each answer that was sampled, kept or not.
        silent: How many of those are in groups without spread.
        batches: Batches sampled.
        discarded: Groups with spread that were sampled beyond what a step takes.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    generated: list[list[Any]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    every_reward: list[float] = field(default_factory=list)
    silent: int = 0
    batches: int = 0
    discarded: int = 0

    def add(
        self,
        rows: Sequence[dict[str, Any]],
        generated: Sequence[Sequence[Any]],
        rewards: Sequence[Sequence[float]],
        *,
        size: int,
        wanted: int,
    ) -> None:
        """Take from a batch the groups with spread, as many as are still wanted.

        Args:
            rows: The data set's row of each answer.
            generated: Lists with one entry an answer.
            rewards: One row an answer, one column a reward function.
            size: Answers of a group.
            wanted: Groups that a step takes.
        """
        totals = [sum(value for value in row if value == value) for row in rewards]
        kept = groups_with_spread(totals, size)
        self.batches += 1
        self.every_reward += totals
        self.silent += len(totals) - size * len(kept)
        room = wanted - len(self.rows) // size
        self.discarded += max(len(kept) - room, 0)
        places = [group * size + place for group in kept[:room] for place in range(size)]
        self.rows += [rows[place] for place in places]
        self.rewards += [list(rewards[place]) for place in places]
        if not self.generated:
            self.generated = [[] for _ in generated]
        for kept_values, values in zip(self.generated, generated, strict=True):
            kept_values += [values[place] for place in places]
