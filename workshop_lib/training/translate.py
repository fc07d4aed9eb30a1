"""A NeMo RL recipe in TRL's arguments, every key accounted for.

TRL's `GRPOConfig` and NeMo RL's YAML describe the same algorithm in other words and
with other defaults. `translate` gives the arguments and a table that says of every
key of the recipe whether it means exactly the same under TRL, nearly the same,
nothing (GPUs, logging), or something that the laptop's engine refuses to leave out.

Sources: NeMo RL v0.7.0 (`algorithms/grpo.py`, `loss/loss_functions.py`), TRL 1.16
(`trainer/grpo_trainer.py`). All mappings are for one machine without vLLM, where the
log-probabilities of sampling and of training are those of one and the same model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workshop_lib.training.advantages import trl_advantages
from workshop_lib.training.translate_lora import translate_lora
from workshop_lib.training.translate_notes import READ_HERE, different_defaults
from workshop_lib.training.translate_table import Mapped, Status, Table

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.training.recipe import Recipe

__all__ = ["Mapped", "Translation", "different_defaults", "translate"]


@dataclass(frozen=True)
class Translation:
    """A recipe for TRL.

    Attributes:
        arguments: Arguments of `trl.GRPOConfig`, those about the algorithm.
        rows: What became of each key.
        steps: Steps to train, each a batch of fresh answers.
        updates_per_step: Optimizer updates in a step.
        lora: Arguments of `peft.LoraConfig`, and `init`, how its A begins; empty without LoRA.
        watch_kl: Whether the KL divergence from the reference is recorded although it is not
            penalised.
        prompts_per_batch: Prompts that dynamic sampling asks at once; 0 without it.
        most_batches: Batches of a step after which dynamic sampling gives up.
    """

    arguments: dict[str, Any]
    rows: tuple[Mapped, ...]
    steps: int
    updates_per_step: int
    lora: dict[str, Any] = field(default_factory=dict)
    watch_kl: bool = False
    prompts_per_batch: int = 0
    most_batches: int = 0

    def table(self) -> pd.DataFrame:
        """One row a key: `key`, `value`, `status`, `trl`, `reason`.

        Example:
            >>> from workshop_lib.data import data_path
            >>> from workshop_lib.training.recipe import read_recipe
            >>> recipe = read_recipe(data_path("recipes/arithmetic.yaml"))
            >>> list(translate(recipe, problems=70).table().columns)
            ['key', 'value', 'status', 'trl', 'reason']
        """
        import pandas as pd

        rows = [
            (row.key, _as_yaml(row.value), row.status, row.trl, row.reason) for row in self.rows
        ]
        return pd.DataFrame(rows, columns=["key", "value", "status", "trl", "reason"])

    @property
    def refused(self) -> list[Mapped]:
        """Keys that the laptop's engine would have to leave out although they matter."""
        return [row for row in self.rows if row.status == "refused"]


def translate(
    recipe: Recipe, *, problems: int, steps: int | None = None, seed: int | None = None
) -> Translation:
    """Put a recipe into TRL's words.

    Args:
        recipe: The recipe.
        problems: How many problems there are to train on; they decide how long an epoch is.
        steps: Steps to train; by default the recipe's.
        seed: Seed; by default the recipe's.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.recipe import read_recipe
        >>> recipe = read_recipe(data_path("recipes/arithmetic.yaml"))
        >>> translation = translate(recipe, problems=70)
        >>> translation.arguments["loss_type"], translation.arguments["scale_rewards"]
        ('dapo', 'group')
        >>> translation.refused
        []
    """
    table = Table(recipe)
    _batches(table)
    _dynamic_sampling(table)
    count = _steps(table, problems, steps)
    table.exact("grpo.seed", seed=recipe.grpo.seed if seed is None else seed)
    _advantages(table)
    _loss(table)
    _sampling(table)
    _optimizer(table)
    _model(table)
    lora = translate_lora(table)
    _checkpoints(table)
    _data(table)
    watch_kl = _reference(table)
    table.switched_off()
    table.drop_the_rest()
    return Translation(
        arguments=table.arguments,
        rows=table.in_order(),
        steps=count,
        updates_per_step=recipe.updates_per_step,
        lora=lora,
        watch_kl=watch_kl,
        prompts_per_batch=_prompts_per_batch(recipe) if table.dynamic else 0,
        most_batches=recipe.grpo.dynamic_sampling_max_gen_batches + 1 if table.dynamic else 0,
    )


def _batches(table: Table) -> None:
    recipe = table.recipe
    grpo, policy = recipe.grpo, recipe.policy
    micro, batch = policy.train_micro_batch_size, policy.train_global_batch_size
    table.exact(
        "grpo.num_prompts_per_step",
        "TRL counts answers: prompts times answers a prompt",
        generation_batch_size=recipe.completions_per_step,
    )
    table.exact("grpo.num_generations_per_prompt", num_generations=grpo.num_generations_per_prompt)
    table.exact("policy.train_micro_batch_size", per_device_train_batch_size=micro)
    table.exact(
        "policy.train_global_batch_size",
        "micro-batches of one update",
        gradient_accumulation_steps=batch // micro,
        num_iterations=1,
    )


def _prompts_per_batch(recipe: Recipe) -> int:
    grpo = recipe.grpo
    return int(grpo.num_prompts_per_step * grpo.batch_multiplier)


def _dynamic_sampling(table: Table) -> None:
    """The three keys, which are the engine's own and no argument of TRL."""
    names = ("batch_multiplier", "dynamic_sampling_max_gen_batches")
    if not table.dynamic:
        table.exact("grpo.use_dynamic_sampling", "off in both")
        return
    if table.recipe.leave_one_out:
        reason = "whole groups here; NeMo RL with leave-one-out drops an only right answer too"
        table.add("grpo.use_dynamic_sampling", "approximated", reason)
    else:
        table.exact("grpo.use_dynamic_sampling", "groups without spread are replaced by others")
    for name in names:
        table.exact(f"grpo.{name}")
    limit = table.recipe.grpo.dynamic_sampling_max_gen_batches
    if limit < 1:
        table.add(f"grpo.{names[1]}", "refused", "NeMo RL wants at least 1")
    elif _prompts_per_batch(table.recipe) < 1:
        table.add(f"grpo.{names[0]}", "refused", "no prompt is left to sample")
    else:
        table.exact(f"grpo.{names[1]}", f"NeMo RL gives up after {limit + 1}, and so does this")


def _reference(table: Table) -> bool:
    """Whether the divergence from the reference is watched without being penalised."""
    key = "grpo.skip_reference_policy_logprobs_calculation"
    if table.recipe.loss_fn.reference_policy_kl_penalty != 0:
        table.exact(key, "the penalty needs them")
        return False
    skipped = table.recipe.grpo.skip_reference_policy_logprobs_calculation
    reason = "no reference is kept" if skipped else "computed, and the KL divergence recorded"
    table.exact(key, reason)
    return not skipped


def _steps(table: Table, problems: int, steps: int | None) -> int:
    grpo = table.recipe.grpo
    # NeMo RL drops what is left of an epoch and stops at the earlier of the two limits.
    epoch = problems // grpo.num_prompts_per_step
    planned = min(grpo.max_num_steps, max(grpo.max_num_epochs * epoch, 1))
    count = planned if steps is None else steps
    updates = table.recipe.updates_per_step
    table.exact(
        "grpo.max_num_steps",
        "TRL counts updates" if updates > 1 else "",
        max_steps=count * updates,
    )
    status: Status = "approximated" if table.dynamic else "exact"
    reason = ", those of batches thrown away not counted" if table.dynamic else ""
    about = f"an epoch is {epoch} steps of {problems} problems{reason}"
    table.add("grpo.max_num_epochs", status, about)
    return count


def _advantages(table: Table) -> None:
    recipe = table.recipe
    normalize, leave_one_out = recipe.normalize_rewards, recipe.leave_one_out
    size = recipe.grpo.num_generations_per_prompt
    own = recipe.grpo.adv_estimator
    baseline = "grpo.use_leave_one_out_baseline"
    spread = "grpo.normalize_rewards"
    scale = "group" if normalize else "none"
    if not leave_one_out:
        table.exact(baseline, "TRL's baseline is the group's mean")
        table.exact(spread, "TRL adds 1e-4 to the spread, NeMo RL 1e-6", scale_rewards=scale)
    elif normalize:
        # Alone among wrong ones it is 1 in NeMo RL, which does not divide by a spread of 0.
        counts = trl_advantages([1.0] + [0.0] * (size - 1))[0]
        reason = (
            "TRL's mean and spread are the whole group's, not the others' alone: an only right"
            f" answer of {size} counts {counts:.1f} times as much, others somewhat less"
        )
        table.add(baseline, "approximated", reason)
        table.add(spread, "approximated", reason, scale_rewards=scale)
    else:
        factor = f"{size}/{size - 1}"
        reason = f"TRL's advantages are {factor} times smaller, which AdamW evens out"
        table.add(baseline, "approximated", reason)
        table.exact(spread, scale_rewards=scale)
    for name, key in (("normalize_rewards", spread), ("use_leave_one_out_baseline", baseline)):
        if getattr(own, name) is not None:
            table.add(f"grpo.adv_estimator.{name}", table.rows[key].status, f"as {key}")


def _loss(table: Table) -> None:
    loss = table.recipe.loss_fn
    if not loss.token_level_loss:
        table.exact("loss_fn.token_level_loss", "the mean of answers' means", loss_type="grpo")
    elif table.recipe.updates_per_step == 1:
        table.exact(
            "loss_fn.token_level_loss", "the mean over the batch's tokens", loss_type="dapo"
        )
    else:
        reason = "TRL divides by the tokens of a step, shared evenly between its updates"
        table.add("loss_fn.token_level_loss", "approximated", reason, loss_type="dapo")
    level = "sequence" if loss.sequence_level_importance_ratios else "token"
    table.exact("loss_fn.sequence_level_importance_ratios", importance_sampling_level=level)
    table.exact("loss_fn.ratio_clip_min", epsilon=loss.ratio_clip_min)
    table.exact("loss_fn.ratio_clip_max", epsilon_high=loss.ratio_clip_max)
    table.exact("loss_fn.ratio_clip_c", "dual clipping", delta=loss.ratio_clip_c)
    table.exact("loss_fn.force_on_policy_ratio", "one update a step makes the ratio 1 in TRL too")
    penalty = loss.reference_policy_kl_penalty
    table.exact("loss_fn.reference_policy_kl_penalty", beta=penalty)
    if penalty == 0:
        for name in ("type", "input", "output"):
            key = "reference_policy_kl_type" if name == "type" else f"kl_{name}_clamp_value"
            table.exact(f"loss_fn.{key}", "without a penalty it is not read")
        return
    kind = loss.reference_policy_kl_type
    same = kind == "k3"
    reason = "TRL's estimator too" if same else f"TRL estimates with k3, not {kind}"
    table.add("loss_fn.reference_policy_kl_type", "exact" if same else "approximated", reason)
    for name in ("kl_input_clamp_value", "kl_output_clamp_value"):
        off = getattr(loss, name) is None
        reason = "" if off else "TRL does not clamp; only extreme tokens reach it"
        table.add(f"loss_fn.{name}", "exact" if off else "approximated", reason)


def _sampling(table: Table) -> None:
    recipe = table.recipe
    generation, total = recipe.generation, recipe.policy.max_total_sequence_length
    table.exact("policy.generation.temperature", temperature=generation.temperature)
    table.exact("policy.generation.top_p", top_p=generation.top_p)
    table.exact("policy.generation.top_k", "0 is TRL's word for none", top_k=generation.top_k or 0)
    table.exact(
        "policy.generation.max_new_tokens", max_completion_length=generation.max_new_tokens or total
    )
    table.exact(
        "policy.max_total_sequence_length",
        "TRL has no limit for prompts: they are measured before training starts",
    )
    tokenizer = recipe.policy.tokenizer
    table.exact("policy.tokenizer.chat_template", "prompts are given to TRL in the same form")
    table.exact(
        "policy.tokenizer.chat_template_kwargs", chat_template_kwargs=tokenizer.chat_template_kwargs
    )
    own = tokenizer.name in (None, recipe.policy.model_name)
    reason = "the model's own tokenizer"
    table.add("policy.tokenizer.name", "exact" if own else "refused", reason)


def _optimizer(table: Table) -> None:
    policy = table.recipe.policy
    given = policy.optimizer
    if given is None or given.name != "torch.optim.AdamW":
        table.add("policy.optimizer.name", "refused", "AdamW is translated, no other")
        return
    table.exact("policy.optimizer.name", optim="adamw_torch_fused")
    rate, decay = given.kwargs.get("lr", 1e-3), given.kwargs.get("weight_decay", 0.01)
    betas, eps = given.kwargs.get("betas", [0.9, 0.999]), given.kwargs.get("eps", 1e-8)
    table.exact("policy.optimizer.kwargs.lr", learning_rate=float(rate))
    table.add(
        "policy.optimizer.kwargs.weight_decay",
        "approximated" if decay else "exact",
        "TRL spares biases and norms" if decay else "",
        weight_decay=float(decay),
    )
    table.exact(
        "policy.optimizer.kwargs.betas", adam_beta1=float(betas[0]), adam_beta2=float(betas[1])
    )
    table.exact("policy.optimizer.kwargs.eps", adam_epsilon=float(eps))
    norm = policy.max_grad_norm
    table.exact("policy.max_grad_norm", "0 is TRL's word for none", max_grad_norm=norm or 0.0)
    _schedule(table)


def _schedule(table: Table) -> None:
    scheduler = table.recipe.policy.scheduler
    if scheduler is None:
        table.exact("policy.scheduler", "none: a constant rate", lr_scheduler_type="constant")
        return
    parts = scheduler if isinstance(scheduler, list) else [scheduler]
    named = [part for part in parts if "name" in part]
    kinds = [str(part["name"]).rpartition(".")[2] for part in named]
    settings = [part.get("kwargs", {}) for part in named]
    # torch's own defaults where nothing is said: ConstantLR 1/3, LinearLR up to 1 in 5 steps.
    level = kinds[-1:] == ["ConstantLR"] and settings[-1].get("factor", 1 / 3) == 1
    if kinds == ["ConstantLR"] and level:
        table.exact("policy.scheduler", lr_scheduler_type="constant")
    elif kinds == ["LinearLR", "ConstantLR"] and level and settings[0].get("end_factor", 1) == 1:
        table.add(
            "policy.scheduler",
            "approximated",
            "TRL's warm-up starts at 0, not at start_factor",
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=int(settings[0].get("total_iters", 5)) * table.recipe.updates_per_step,
        )
    else:
        shown = ", ".join(kinds) or "this schedule"
        table.add("policy.scheduler", "refused", f"{shown}: only constant, with or without warm-up")


def _model(table: Table) -> None:
    policy = table.recipe.policy
    table.exact("policy.model_name", "the folder given, or where the workshop prepared this model")
    if policy.precision == "float32":
        table.exact("policy.precision", bf16=False, fp16=False)
    else:
        table.add(
            "policy.precision",
            "approximated",
            "trained in float32: without AVX-512 16-bit numbers are slower, not faster",
            bf16=False,
            fp16=False,
        )
    table.exact(
        "policy.dtensor_cfg.activation_checkpointing",
        gradient_checkpointing=policy.dtensor_cfg.activation_checkpointing,
    )


def _checkpoints(table: Table) -> None:
    wanted, updates = table.recipe.checkpointing, table.recipe.updates_per_step
    strategy = "steps" if wanted.enabled else "no"
    table.exact("checkpointing.enabled", "and always at the end", save_strategy=strategy)
    table.exact("checkpointing.save_period", save_steps=wanted.save_period * updates)
    table.exact(
        "checkpointing.save_optimizer",
        "without its state no run can be resumed",
        save_only_model=not wanted.save_optimizer,
    )
    newest = wanted.metric_name is None
    reason = "the newest are kept" + ("" if newest else ", whatever the metric says")
    table.add("checkpointing.keep_top_k", "exact" if newest else "approximated", reason)


def _data(table: Table) -> None:
    table.exact("data.shuffle", "in another order", shuffle_dataset=table.recipe.data.shuffle)
    for key in table.given:
        if key.startswith("data.") and key.rpartition(".")[2] in READ_HERE:
            table.rows[key] = Mapped(key, table.given[key], "exact", "", "read the same way")
        elif key.startswith("env.") and key.split(".")[1] in table.recipe.environments:
            reason = "the reward function of that name scores answers, in this process"
            table.rows[key] = Mapped(key, table.given[key], "dropped", "", reason)


def _as_yaml(value: Any) -> str:
    """A value as a recipe has it: `null`, `true`, `1e-05`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
