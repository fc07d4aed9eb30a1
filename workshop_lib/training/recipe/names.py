"""Names that are not NeMo RL's (v0.7.0), and which of its names was meant.

Keys of earlier versions: the differences between the configurations that NeMo RL published
with v0.4.0, v0.5.0, v0.6.0 and v0.7.0 (`examples/configs`).
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workshop_lib.training.recipe.schema import Section

__all__ = ["ALGORITHMS", "MOVED", "NAMED", "UNREAD", "advice", "known_keys", "other_algorithm"]

# Keys of earlier NeMo RL versions (v0.4 to v0.6) and where they went.
MOVED = {
    "data.dataset_name": "data.train.dataset_name",
    "data.train_data_path": "data.train.data_path",
    "data.val_data_path": "data.validation.data_path",
    "data.train_split": "data.train.split",
    "data.val_split": "data.validation.split",
    "data.prompt_file": "data.default.prompt_file",
    "data.system_prompt_file": "data.default.system_prompt_file",
    "data.input_key": "data.default.input_key",
    "data.output_key": "data.default.output_key",
    "data.env_name": "data.default.env_name",
    "data.processor": "data.default.processor",
    "policy.activation_checkpointing_enabled": "policy.dtensor_cfg.activation_checkpointing",
}

# What the same thing is called elsewhere (mostly in TRL).
NAMED = {
    "lr": "policy.optimizer.kwargs.lr",
    "learning_rate": "policy.optimizer.kwargs.lr",
    "weight_decay": "policy.optimizer.kwargs.weight_decay",
    "beta": "loss_fn.reference_policy_kl_penalty",
    "kl_penalty": "loss_fn.reference_policy_kl_penalty",
    "epsilon": "loss_fn.ratio_clip_min",
    "epsilon_high": "loss_fn.ratio_clip_max",
    "num_generations": "grpo.num_generations_per_prompt",
    "max_completion_length": "policy.generation.max_new_tokens",
    "max_steps": "grpo.max_num_steps",
    "model": "policy.model_name",
    "kl_coef": "loss_fn.reference_policy_kl_penalty",
    "clip_range": "loss_fn.ratio_clip_min",
    "group_size": "grpo.num_generations_per_prompt",
    "num_iterations": "policy.train_global_batch_size",
    "scale_rewards": "grpo.normalize_rewards",
    "per_device_train_batch_size": "policy.train_micro_batch_size",
    "gradient_accumulation_steps": "policy.train_global_batch_size",
    "gradient_checkpointing": "policy.dtensor_cfg.activation_checkpointing",
    "vllm_gpu_memory_utilization": "policy.generation.vllm_cfg.gpu_memory_utilization",
    "save_steps": "checkpointing.save_period",
    "lora_r": "policy.dtensor_cfg.lora_cfg.dim",
    "lora_rank": "policy.dtensor_cfg.lora_cfg.dim",
    "lora_alpha": "policy.dtensor_cfg.lora_cfg.alpha",
}

UNREAD = {
    "grpo.num_val_generations_per_prompt": "",
    "grpo.penalize_invalid_tool_call": "grpo.invalid_tool_call_advantage",
    "grpo.invalid_tool_call_strategy": "grpo.invalid_tool_call_advantage",
    "grpo.penalize_malformed_thinking": "grpo.malformed_thinking_advantage",
    "policy.generation.vllm_cfg.enforce_monotonicity": "",
    "policy.generation.vllm_cfg.enable_thinking": "policy.tokenizer.chat_template_kwargs",
    "policy.generation.vllm_cfg.max_num_seqs": "policy.generation.vllm_kwargs",
}
"""Keys that configurations published with v0.7.0 (nemo_gym) hold and that nothing in it reads:
noted, not refused. By what was probably meant."""

ALGORITHMS = ("sft", "dpo", "rm", "ppo", "distillation", "eval")
"""Sections of NeMo RL's other recipes, each named after what it does."""


def other_algorithm(settings: Mapping[str, Any]) -> str:
    """What a recipe of NeMo RL is for if it is not for GRPO, in one line; else nothing.

    Args:
        settings: The recipe.

    Example:
        >>> other_algorithm({"dpo": {}, "policy": {}})
        'this is a recipe for dpo: it has a section dpo and none named grpo'
        >>> other_algorithm({"grpo": {}})
        ''
    """
    if "grpo" in settings:
        return ""
    name = next((name for name in ALGORITHMS if name in settings), "")
    return (
        f"this is a recipe for {name}: it has a section {name} and none named grpo" if name else ""
    )


def advice(key: str, location: Sequence[Any], prefix: str, model: type[Section]) -> str:
    """Which key was probably meant by one that does not exist.

    Args:
        key: The key, as the file has it.
        location: Its parts, with a number for a place in a list.
        prefix: What stands before the schema's own keys.
        model: The schema that does not have it.

    Example:
        >>> from workshop_lib.training.recipe.schema import RecipeConfig
        >>> advice("grpo.lr", ["grpo", "lr"], "", RecipeConfig)
        'did you mean policy.optimizer.kwargs.lr?'
    """
    if key in MOVED:
        return f"it is now {MOVED[key]}"
    names = [part for part in location if isinstance(part, str)]
    name, section = names[-1], ".".join(names[:-1])
    every = list(known_keys(model))
    beside = [known.rpartition(".")[2] for known in every if known.rpartition(".")[0] == section]
    here = prefix + (f"{section}." if section else "")
    if name in every:  # of one word, with dots in it
        *sections, last = name.split(".")
        return f"write it in sections: {': {'.join(sections)}: {{{last}: …{'}' * len(sections)}"
    elsewhere = [known for known in every if known.rpartition(".")[2] == name]
    if len(elsewhere) == 1:
        return f"did you mean {prefix}{elsewhere[0]}?"
    if name in NAMED:
        return f"did you mean {NAMED[name]}?"
    if close := difflib.get_close_matches(name, beside, n=1):
        return f"did you mean {here}{close[0]}?"
    if elsewhere:
        return f"did you mean {prefix}{elsewhere[0]}?"
    ends = {known.rpartition(".")[2]: known for known in reversed(every)}
    if close := difflib.get_close_matches(name, ends, n=1, cutoff=0.75):
        return f"did you mean {prefix}{ends[close[0]]}?"
    return f"{here.rstrip('.') or 'a recipe'} has {', '.join(sorted(beside))}"


def known_keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema.

    Args:
        model: The schema.
        prefix: Put before every key.

    Example:
        >>> from workshop_lib.training.recipe.schema import RecipeConfig
        >>> "loss_fn.ratio_clip_min" in known_keys(RecipeConfig)
        True
    """
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        yield key
        for inner in _sections_in(field.annotation):
            yield from known_keys(inner, f"{key}.")


def _sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field can hold, looked for through lists, unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [inner for part in typing.get_args(annotation) for inner in _sections_in(part)]
