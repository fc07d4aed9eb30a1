"""What must fit together in a recipe: batches, lengths, the loss, the data.

NeMo RL stops at some of these after minutes on a cluster, at the first assertion
that meets them; others it never notices.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workshop_lib.training.recipe import Recipe

__all__ = ["contradictions", "oddities"]

_ADAMW = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "foreach", "fused")


def contradictions(recipe: Recipe) -> Iterator[str]:
    """What the settings of a recipe say that cannot be true together.

    Args:
        recipe: A recipe whose keys and types are right.

    Yields:
        One line a contradiction, with the keys, their values and what would be right.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.recipe import read_recipe
        >>> list(contradictions(read_recipe(data_path("recipes/arithmetic.yaml"))))
        []
    """
    yield from _batch_contradictions(recipe)
    yield from _length_contradictions(recipe)
    yield from _loss_contradictions(recipe)
    yield from _backend_problems(recipe)
    yield from _optimizer_problems(recipe)
    yield from _data_contradictions(recipe)


def oddities(recipe: Recipe) -> Iterator[str]:
    """What a recipe's settings do that is not wrong and may not be meant.

    Args:
        recipe: A recipe without contradictions.

    Yields:
        One line each.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.recipe import read_recipe
        >>> list(oddities(read_recipe(data_path("recipes/arithmetic.yaml"))))
        []
    """
    two = recipe.grpo.num_generations_per_prompt == 2
    if two and recipe.normalize_rewards and recipe.leave_one_out:
        yield (
            "with 2 answers a prompt and a leave-one-out baseline nothing is normalised: the spread"
            " is that of the other answers, and one answer has none"
        )


def _batch_contradictions(recipe: Recipe) -> Iterator[str]:
    grpo, policy, sampled = recipe.grpo, recipe.policy, recipe.completions_per_step
    batch = policy.train_global_batch_size
    made = (
        f"grpo.num_prompts_per_step x grpo.num_generations_per_prompt ="
        f" {grpo.num_prompts_per_step} x {grpo.num_generations_per_prompt} = {sampled}"
    )
    if grpo.num_generations_per_prompt < 2:
        yield "grpo.num_generations_per_prompt must be at least 2: one answer is no group"
    if sampled % batch:
        yield f"policy.train_global_batch_size {batch} does not divide {made}"
    if recipe.loss_fn.force_on_policy_ratio and batch != sampled:
        yield (
            f"loss_fn.force_on_policy_ratio needs policy.train_global_batch_size = {sampled},"
            f" one update a step ({made}); it is {batch}"
        )
    if batch % policy.train_micro_batch_size:
        yield (
            f"policy.train_micro_batch_size {policy.train_micro_batch_size} does not divide"
            f" policy.train_global_batch_size {batch}"
        )
    if grpo.batch_multiplier != 1 and not grpo.use_dynamic_sampling:
        yield "grpo.batch_multiplier other than 1 needs grpo.use_dynamic_sampling: true"


def _length_contradictions(recipe: Recipe) -> Iterator[str]:
    total = recipe.policy.max_total_sequence_length
    new, held = recipe.generation.max_new_tokens, recipe.generation.vllm_cfg.max_model_len
    if new is not None and new > total:
        yield (
            f"policy.generation.max_new_tokens {new} is more than"
            f" policy.max_total_sequence_length {total}, which holds prompt and answer"
        )
    if held is not None and held < total:
        yield (
            f"policy.generation.vllm_cfg.max_model_len {held} is less than"
            f" policy.max_total_sequence_length {total}: vLLM would cut the answers"
        )


def _loss_contradictions(recipe: Recipe) -> Iterator[str]:
    loss, skip = recipe.loss_fn, recipe.grpo.skip_reference_policy_logprobs_calculation
    if skip and loss.reference_policy_kl_penalty != 0:
        yield (
            "grpo.skip_reference_policy_logprobs_calculation needs"
            " loss_fn.reference_policy_kl_penalty: 0"
        )
    if loss.sequence_level_importance_ratios and loss.token_level_loss:
        yield (
            "loss_fn.sequence_level_importance_ratios (GSPO) needs loss_fn.token_level_loss: false"
        )
    if loss.use_cispo and (loss.disable_ppo_ratio or loss.force_on_policy_ratio):
        yield (
            "loss_fn.use_cispo needs the probability ratio: not with disable_ppo_ratio or"
            " force_on_policy_ratio"
        )
    if loss.truncated_importance_sampling_type and not loss.use_importance_sampling_correction:
        yield (
            "loss_fn.truncated_importance_sampling_type needs"
            " loss_fn.use_importance_sampling_correction: true"
        )


def _backend_problems(recipe: Recipe) -> Iterator[str]:
    policy = recipe.policy
    dtensor, megatron = policy.dtensor_cfg, bool((policy.megatron_cfg or {}).get("enabled"))
    if dtensor.enabled == megatron:
        which = "both are" if megatron else "neither is"
        yield (
            f"exactly one of policy.dtensor_cfg and policy.megatron_cfg must be enabled; {which}"
        )
    if dtensor.enabled and dtensor.lora_cfg.enabled and not dtensor.v2:
        yield "policy.dtensor_cfg.lora_cfg.enabled needs policy.dtensor_cfg._v2: true"
    if dtensor.enabled and policy.scheduler is None and "scheduler" in policy.model_fields_set:
        yield "policy.scheduler is null, which NeMo RL cannot use; leave it out: a constant rate"
    colocated = recipe.generation.colocated
    if not colocated.enabled and colocated.resources.gpus_per_node is None:
        yield (
            "policy.generation.colocated.enabled is false, so generation needs GPUs of its own:"
            " set policy.generation.colocated.resources.gpus_per_node"
        )


def _optimizer_problems(recipe: Recipe) -> Iterator[str]:
    optimizer = recipe.policy.optimizer
    if optimizer is None or optimizer.name != "torch.optim.AdamW":
        return  # Megatron's, or another class: its arguments are its own
    place = "policy.optimizer.kwargs"
    for name in optimizer.kwargs:
        if name not in _ADAMW:
            close = difflib.get_close_matches(name, _ADAMW, n=1)
            meant = f"did you mean {place}.{close[0]}?" if close else f"it has {', '.join(_ADAMW)}"
            yield f"unknown key {place}.{name} of torch.optim.AdamW; {meant}"
    rate = optimizer.kwargs.get("lr", 1e-3)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf:
        yield f"{place}.lr is {rate!r} and should be a number of at least 0"
    betas = optimizer.kwargs.get("betas", [0.9, 0.999])
    pair = isinstance(betas, list) and len(betas) == 2
    if not pair or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in betas):
        yield f"{place}.betas is {betas!r} and should be two numbers from 0 to under 1"


def _data_contradictions(recipe: Recipe) -> Iterator[str]:
    grpo, known = recipe.grpo, ", ".join(recipe.config.env) or "nothing"
    for split in ("train", "validation"):
        for entry in recipe.datasets(split):
            if entry.env_name is None:
                yield f"data.{split} names no env_name, so nothing scores the answers"
            elif entry.env_name not in recipe.config.env:
                yield f"data.{split} is scored by env.{entry.env_name}, and env has {known}"
    validates = grpo.val_period > 0 or grpo.val_at_start or grpo.val_at_end
    splits = any(entry.split_validation_size for entry in recipe.datasets("train"))
    if validates and not recipe.data.validation and not splits:
        yield "grpo.val_period asks for validation, and data.validation has no problems"
