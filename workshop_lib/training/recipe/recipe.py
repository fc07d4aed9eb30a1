"""A recipe that was read: its values, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workshop_lib.training.recipe.schema import dataset_entry

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked.

    Its sections are attributes: `recipe.policy.train_global_batch_size` is the recipe's value, or
    NeMo RL's own where it says nothing.

    Attributes:
        path: Its file.
        settings: What the file and those it inherits from say, references resolved.
        config: All sections; `grpo`, `policy` and the others are attributes of the recipe, too.
        notes: What is not wrong and yet worth a word, a line each.
    """

    path: Path
    settings: dict[str, Any]
    config: Any = field(repr=False)
    notes: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name == "generation":
            return self.config.policy.generation
        if name.startswith("_") or name == "config":
            raise AttributeError(name)
        return getattr(self.config, name)

    def value(self, key: str) -> Any:
        """The value of a dotted key, NeMo RL's own where the recipe is silent; null within null."""
        here: Any = self.config
        for part in key.split("."):
            if isinstance(here, Mapping):
                here = here.get(part)
            elif here is not None:
                here = getattr(here, part.lstrip("_"))
        return here

    @property
    def completions_per_step(self) -> int:
        """Answers that a step samples: prompts times answers a prompt."""
        return int(self.grpo.num_prompts_per_step * self.grpo.num_generations_per_prompt)

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates that a step makes; 1 is on-policy."""
        return self.completions_per_step // int(self.policy.train_global_batch_size)

    @property
    def normalize_rewards(self) -> bool:
        """Whether advantages are divided by their group's spread."""
        own = self.grpo.adv_estimator.normalize_rewards
        return bool(self.grpo.normalize_rewards if own is None else own)

    @property
    def leave_one_out(self) -> bool:
        """Whether an answer's baseline is the mean of the others in its group."""
        own = self.grpo.adv_estimator.use_leave_one_out_baseline
        return bool(self.grpo.use_leave_one_out_baseline if own is None else own)

    @property
    def plain_prompts(self) -> bool:
        """Whether prompts go to the model as they are, without a chat template."""
        return self.policy.tokenizer.chat_template is None

    @property
    def megatron(self) -> dict[str, Any]:
        """`policy.megatron_cfg` where it is enabled, else empty."""
        section = self.policy.megatron_cfg or {}
        return section if section.get("enabled") else {}

    def datasets(self, split: str) -> list[SimpleNamespace]:
        """The data sets of `data.train` or `data.validation`, `data.default` filled in."""
        entries = getattr(self.data, split) or []
        entries = entries if isinstance(entries, list) else [entries]
        return [dataset_entry((self.data.default or {}) | entry) for entry in entries]

    @property
    def environments(self) -> list[str]:
        """Names of the environments that score answers."""
        entries = [*self.datasets("train"), *self.datasets("validation")]
        return list(dict.fromkeys(entry.env_name for entry in entries if entry.env_name))
