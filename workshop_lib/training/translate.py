"""A NeMo RL recipe in TRL's arguments, every key accounted for.

TRL's `GRPOConfig` and NeMo RL's YAML describe the same algorithm in other words and
with other defaults. `translate` gives the arguments and a table that says of every
key of the recipe whether it means exactly the same under TRL, nearly the same,
nothing on one machine (GPUs, logging), or something that the laptop's trainer refuses to leave
out. `data/nemo-rl-to-trl.yaml` and `_COMPUTED` know the keys; a key that they do not is refused.

Sources: NeMo RL v0.7.0 (`algorithms/grpo.py`, `loss/loss_functions.py`), NeMo Automodel
(`components/_peft/lora.py`), TRL 1.16 (`trainer/grpo_trainer.py`), peft 0.21 (`LoraConfig`). All
mappings are for one machine without vLLM, where one and the same model samples and learns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from workshop_lib.data import data_path
from workshop_lib.training.advantages import trl_advantages
from workshop_lib.training.recipe import Recipe, leaves, own_values

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Mapped", "Translation", "translate"]

Status: TypeAlias = Literal["exact", "approximated", "dropped", "refused"]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What became of one key.

    Attributes:
        key: The recipe's key.
        value: Its value.
        status: `exact`, `approximated`, `dropped` (nothing on one machine answers to it),
            or `refused` (it would change what is learned, and this trainer cannot do it).
        trl: The argument that it became, if any.
        reason: Why.
    """

    key: str
    value: Any
    status: Status
    trl: str = ""
    reason: str = ""


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
    """

    arguments: dict[str, Any]
    rows: tuple[Mapped, ...]
    steps: int
    updates_per_step: int
    lora: dict[str, Any] = field(default_factory=dict)
    watch_kl: bool = False

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

        rows = [(r.key, _as_yaml(r.value), r.status, r.trl, r.reason) for r in self.rows]
        return pd.DataFrame(rows, columns=["key", "value", "status", "trl", "reason"])

    @property
    def refused(self) -> list[Mapped]:
        """Keys that the laptop's trainer would have to leave out although they matter."""
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
    grpo, updates = recipe.grpo, recipe.updates_per_step
    # NeMo RL drops what is left of an epoch and stops at the earlier of the two limits.
    epoch = problems // grpo.num_prompts_per_step
    planned = min(grpo.max_num_steps, max(grpo.max_num_epochs * epoch, 1))
    count = planned if steps is None else steps
    rows: dict[str, Mapped] = {}
    arguments: dict[str, Any] = {"max_steps": count * updates, "num_iterations": 1}
    arguments["seed"] = grpo.seed if seed is None else seed
    lora: dict[str, Any] = {}
    given, adapter = _given(recipe), recipe.policy.dtensor_cfg.lora_cfg.enabled
    silent = [key for key in _table() if not key.endswith("*") and key not in given]
    for key in (*given, *silent):
        unread = key.startswith(_LORA) and not adapter and not key.endswith("enabled")
        rule = _apart("no adapter is trained") if unread else _rule(key)
        status, reason, became = rule(recipe, key)
        (lora if key.startswith(_LORA) else arguments).update(became)
        shown = ", ".join(f"{name}={value!r}" for name, value in became.items() if name != "init")
        row = Mapped(key, _value(recipe, key), status, shown, reason)
        # Of a key that the recipe leaves out, what TRL must be told or cannot do is worth a row.
        if key in given or shown or status in ("approximated", "refused"):
            rows[key] = row
    return Translation(
        arguments=arguments,
        rows=tuple(rows.values()),
        steps=count,
        updates_per_step=updates,
        lora={"task_type": "CAUSAL_LM", **lora} if adapter else {},
        watch_kl=not grpo.skip_reference_policy_logprobs_calculation
        and recipe.loss_fn.reference_policy_kl_penalty == 0,
    )


def _given(recipe: Recipe) -> list[str]:
    """The recipe's keys, each with a row: data sets entry by entry, what the table has whole so."""
    keys: dict[str, None] = {}
    for key, value in leaves(recipe.settings).items():
        if key in ("data.train", "data.validation") and isinstance(value, list):
            keys |= {f"{key}[{n}].{name}": None for n, entry in enumerate(value) for name in entry}
        else:
            parts = key.split(".")
            above = [".".join(parts[:end]) for end in range(1, len(parts))]
            keys[next((part for part in above if part in _table()), key)] = None
    return list(keys)


# -- rules: what a key means under TRL, as (status, reason, arguments)

Verdict: TypeAlias = tuple[Status, str, dict[str, Any]]
Rule: TypeAlias = Callable[[Recipe, str], Verdict]


def _with(arguments: Callable[[Recipe], dict[str, Any]], reason: str = "") -> Rule:
    """It means the same, as arguments that are computed."""
    return lambda recipe, key: ("exact", reason, arguments(recipe))


def _max_new_tokens(recipe: Recipe, key: str) -> Verdict:
    total, new = recipe.policy.max_total_sequence_length, recipe.generation.max_new_tokens
    if new is not None and new < total:
        return "exact", "", {"max_completion_length": new}
    reason = (
        f"until prompt and answer are {total} tokens; here as many as the longest prompt leaves"
    )
    return "approximated", reason, {"max_completion_length": total}


def _advantages(recipe: Recipe, key: str) -> Verdict:
    size, scale = recipe.grpo.num_generations_per_prompt, recipe.normalize_rewards
    spread = key.endswith("normalize_rewards")
    became = (
        {"scale_rewards": "group" if scale else "none"} if key == "grpo.normalize_rewards" else {}
    )
    if not recipe.leave_one_out:
        reason = (
            "TRL adds 1e-4 to the spread, NeMo RL 1e-6" if spread else "the group's mean in both"
        )
        return "exact", reason, became
    if scale:
        # Alone among wrong ones it is 1 in NeMo RL, which does not divide by a spread of 0.
        counts = trl_advantages([1.0] + [0.0] * (size - 1))[0]
        reason = (
            "TRL's mean and spread are the whole group's, not the others' alone: 1 right completion"
            f" of {size} has the advantage {counts:.1f} with TRL and 1.0 with NeMo RL"
        )
        return "approximated", reason, became
    if spread:
        return "exact", "", became
    reason = f"TRL's advantages are {size}/{size - 1} times smaller, which AdamW evens out"
    return "approximated", reason, became


def _loss_type(recipe: Recipe, key: str) -> Verdict:
    if not recipe.loss_fn.token_level_loss:
        return "exact", "the mean of answers' means", {"loss_type": "grpo"}
    if recipe.updates_per_step == 1:
        return "exact", "the mean over the batch's tokens", {"loss_type": "dapo"}
    reason = "TRL divides by the tokens of a step, shared evenly between its updates"
    return "approximated", reason, {"loss_type": "dapo"}


def _ratio_level(recipe: Recipe, key: str) -> Verdict:
    level = "sequence" if recipe.loss_fn.sequence_level_importance_ratios else "token"
    return "exact", "", {"importance_sampling_level": level}


def _on_policy(recipe: Recipe, key: str) -> Verdict:
    if recipe.updates_per_step == 1:
        return "exact", "one update a step: the ratio is 1 in both", {}
    reason = "TRL shuffles a step's answers between its updates, NeMo RL takes them in order"
    return "approximated", reason, {}


def _reference(recipe: Recipe, key: str) -> Verdict:
    if recipe.loss_fn.reference_policy_kl_penalty:
        return "exact", "the penalty needs them", {}
    if recipe.grpo.skip_reference_policy_logprobs_calculation:
        return "exact", "no reference is kept", {}
    reason = "without a penalty NeMo RL logs a KL of 0; here the divergence is measured"
    return "exact", reason, {}


def _kl(recipe: Recipe, key: str) -> Verdict:
    """How the penalty is estimated; without one it is not read."""
    value = _value(recipe, key)
    if not recipe.loss_fn.reference_policy_kl_penalty:
        return "exact", "without a penalty it is not read", {}
    if key.endswith("approximation"):
        return (
            ("refused", "TRL has no such gradient", {}) if value else ("exact", "off in both", {})
        )
    if key.endswith("type"):
        same = value == "k3"
        reason = "TRL's estimator too" if same else f"TRL estimates with k3, not {value}"
        return "exact" if same else "approximated", reason, {}
    reason = "" if value is None else "TRL does not clamp; only extreme tokens reach it"
    return "exact" if value is None else "approximated", reason, {}


def _tokenizer(recipe: Recipe, key: str) -> Verdict:
    own = recipe.policy.tokenizer.name in (None, recipe.policy.model_name)
    return "exact" if own else "refused", "the model's own tokenizer", {}


def _optimizer(recipe: Recipe, key: str) -> Verdict:
    name = recipe.value(key)
    if name != "torch.optim.AdamW":
        return "refused", "AdamW is translated, no other", {}
    return "exact", "", {"optim": "adamw_torch_fused"}


def _weight_decay(recipe: Recipe, key: str) -> Verdict:
    decay = float(_value(recipe, key))
    spared = "TRL spares biases and norms" if decay else ""
    return "approximated" if decay else "exact", spared, {"weight_decay": decay}


def _betas(recipe: Recipe, key: str) -> Verdict:
    first, second = map(float, _value(recipe, key))
    return "exact", "", {"adam_beta1": first, "adam_beta2": second}


def _schedule(recipe: Recipe, key: str) -> Verdict:
    scheduler = recipe.policy.scheduler
    if scheduler is None:
        return "exact", "none: a constant rate", {"lr_scheduler_type": "constant"}
    parts = scheduler if isinstance(scheduler, list) else [scheduler]
    named = [part for part in parts if "name" in part]
    kinds = [str(part["name"]).rpartition(".")[2] for part in named]
    settings = [part.get("kwargs", {}) for part in named]
    # torch's own defaults where nothing is said: ConstantLR 1/3, LinearLR up to 1 in 5 steps.
    level = kinds[-1:] == ["ConstantLR"] and settings[-1].get("factor", 1 / 3) == 1
    if kinds == ["ConstantLR"] and level:
        return "exact", "", {"lr_scheduler_type": "constant"}
    if kinds == ["LinearLR", "ConstantLR"] and level and settings[0].get("end_factor", 1) == 1:
        steps = int(settings[0].get("total_iters", 5)) * recipe.updates_per_step
        became = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": steps}
        return "approximated", "TRL's warm-up starts at 0, not at start_factor", became
    shown = ", ".join(kinds) or "this schedule"
    return "refused", f"{shown}: only constant, with or without warm-up", {}


def _precision(recipe: Recipe, key: str) -> Verdict:
    same = recipe.policy.precision == "float32"
    reason = "" if same else "float32: without AVX-512 16-bit numbers are slower, not faster"
    return "exact" if same else "approximated", reason, {"bf16": False, "fp16": False}


def _kept(recipe: Recipe, key: str) -> Verdict:
    newest = recipe.checkpointing.metric_name is None
    reason = "the newest are kept" + ("" if newest else ", whatever the metric says")
    return "exact" if newest else "approximated", reason, {}


def _processor(recipe: Recipe, key: str) -> Verdict:
    same = _value(recipe, key) in (None, "default", "math_hf_data_processor")
    return "exact" if same else "refused", "prompts are read as math_hf_data_processor does", {}


def _modules(recipe: Recipe, key: str) -> Verdict:
    """Which layers get an adapter, of three keys of which one may speak."""
    lora, name = recipe.policy.dtensor_cfg.lora_cfg, key.rpartition(".")[2]
    spoken = [each for each in _MODULE_KEYS if getattr(lora, each)]
    if len(spoken) > 1:
        if name in spoken:
            return "refused", f"NeMo Automodel refuses {' with '.join(spoken)}", {}
        return "exact", "", {}
    speaks = spoken[0] if spoken else "target_modules"
    if name != speaks:
        return "exact", "", {}
    whole = "without the output layer, which TRL's log-probabilities go around"
    if speaks == "match_all_linear":
        return "approximated", whole, {"target_modules": "all-linear"}
    pattern = _modules_pattern(getattr(lora, speaks) or ["*_proj"])
    head = bool(re.fullmatch(pattern, "lm_head"))
    if speaks == "exclude_modules":
        became = {"target_modules": "all-linear", "exclude_modules": pattern}
        return "exact" if head else "approximated", "" if head else whole, became
    if head:
        return "refused", "the output layer (lm_head) cannot be adapted under TRL", {}
    return "exact", "", {"target_modules": pattern}


def _modules_pattern(patterns: Sequence[str]) -> str:
    """One regular expression for NeMo Automodel's module patterns.

    A name without `*` is that of a layer anywhere; with `*` it is that of the whole path.
    """
    parts = [
        ".*".join(map(re.escape, pattern.split("*")))
        if "*" in pattern
        else rf"(?:.*\.)?{re.escape(pattern)}"
        for pattern in patterns
    ]
    return "|".join(f"(?:{part})" for part in parts)


def _dropout(recipe: Recipe, key: str) -> Verdict:
    lora = recipe.policy.dtensor_cfg.lora_cfg
    same = lora.dropout == 0 or lora.dropout_position == "pre"
    became = {"lora_dropout": lora.dropout} if key.endswith("dropout") else {}
    reason = "" if same else "peft's dropout is before A, not behind B"
    return "exact" if same else "approximated", reason, became


_LORA = "policy.dtensor_cfg.lora_cfg."
_MODULE_KEYS = ("match_all_linear", "target_modules", "exclude_modules")

# Rows that depend on several values; the others are in data/nemo-rl-to-trl.yaml.
_COMPUTED: dict[str, Rule] = {
    "grpo.num_prompts_per_step": _with(
        lambda r: {"generation_batch_size": r.completions_per_step},
        "TRL counts answers: prompts times answers a prompt",
    ),
    "grpo.normalize_rewards": _advantages,
    "grpo.use_leave_one_out_baseline": _advantages,
    "grpo.adv_estimator.normalize_rewards": _advantages,
    "grpo.adv_estimator.use_leave_one_out_baseline": _advantages,
    "grpo.skip_reference_policy_logprobs_calculation": _reference,
    "loss_fn.token_level_loss": _loss_type,
    "loss_fn.sequence_level_importance_ratios": _ratio_level,
    "loss_fn.force_on_policy_ratio": _on_policy,
    "loss_fn.reference_policy_kl_type": _kl,
    "loss_fn.kl_input_clamp_value": _kl,
    "loss_fn.kl_output_clamp_value": _kl,
    "loss_fn.use_on_policy_kl_approximation": _kl,
    "policy.tokenizer.name": _tokenizer,
    "policy.train_global_batch_size": _with(
        lambda r: {
            "gradient_accumulation_steps": r.policy.train_global_batch_size
            // r.policy.train_micro_batch_size
        },
        "micro-batches of one update",
    ),
    "policy.precision": _precision,
    "policy.max_grad_norm": _with(
        lambda r: {"max_grad_norm": r.policy.max_grad_norm or 0.0}, "0 is TRL's word for none"
    ),
    "policy.optimizer.name": _optimizer,
    "policy.optimizer.kwargs.weight_decay": _weight_decay,
    "policy.optimizer.kwargs.betas": _betas,
    "policy.scheduler": _schedule,
    f"{_LORA}dropout": _dropout,
    f"{_LORA}dropout_position": _dropout,
    **{f"{_LORA}{name}": _modules for name in _MODULE_KEYS},
    "policy.generation.top_k": _with(
        lambda r: {"top_k": r.generation.top_k or 0}, "0 is TRL's word for none"
    ),
    "policy.generation.max_new_tokens": _max_new_tokens,
    "data.default.processor": _processor,
    "checkpointing.enabled": _with(
        lambda r: {"save_strategy": "steps" if r.checkpointing.enabled else "no"},
        "and always at the end",
    ),
    "checkpointing.save_period": _with(
        lambda r: {"save_steps": r.checkpointing.save_period * r.updates_per_step}
    ),
    "checkpointing.save_optimizer": _with(
        lambda r: {"save_only_model": not r.checkpointing.save_optimizer},
        "without its state no run can be resumed",
    ),
    "checkpointing.keep_top_k": _kept,
}


@cache
def _table() -> dict[str, Rule]:
    """Every rule by its key, or by the beginning of keys (`*`)."""
    import yaml

    rows = yaml.safe_load(data_path("nemo-rl-to-trl.yaml").read_text(encoding="utf-8"))
    table: dict[str, Rule] = {key: _same(*row) for key, row in rows["same"].items()}
    table |= {key: _off(reason) for key, reason in rows["switches"].items()}
    table |= {key: _apart(reason) for key, reason in rows["dropped"].items()}
    return table | _COMPUTED


def _same(argument: str, reason: str = "") -> Rule:
    def rule(recipe: Recipe, key: str) -> Verdict:
        return "exact", reason, {argument: _value(recipe, key)} if argument else {}

    return rule


def _off(reason: str) -> Rule:
    def rule(recipe: Recipe, key: str) -> Verdict:
        value = _value(recipe, key)
        on = value and value != own_values().get(key)
        return ("refused", reason, {}) if on else ("exact", "off in both", {})

    return rule


def _apart(reason: str) -> Rule:
    return lambda recipe, key: ("dropped", reason, {})


def _rule(key: str) -> Rule:
    """The rule of a key, of the part that it is of, or of the keys that begin alike."""
    table = _table()
    key = re.sub(r"^data\.(train|validation)(\[\d+\])?\.", "data.default.", key)
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        prefix = ".".join(parts[:end])
        if rule := table.get(prefix) or table.get(f"{prefix}.*"):
            return rule
    return _off("this translation does not know it")


def _value(recipe: Recipe, key: str) -> Any:
    """A key's value: the recipe's, or NeMo RL's own; of an optimizer's arguments torch's own."""
    place: Any = recipe.settings
    for part in re.sub(r"\[(\d+)\]", r".\1", key).split("."):
        if isinstance(place, list):
            place = place[int(part)]
        else:
            place = place.get(part) if isinstance(place, Mapping) else None
    if place is not None or key.startswith("data.default.") or "[" in key:
        return place
    section, _, name = key.rpartition(".")
    if section == "policy.optimizer.kwargs":
        kwargs = recipe.policy.optimizer.kwargs if recipe.policy.optimizer else {}
        return kwargs.get(name, _TORCH.get(name))
    return recipe.value(key) if key in own_values() else None


_TORCH = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}  # AdamW's own


def _as_yaml(value: Any) -> str:
    """A value as a recipe has it: `null`, `true`, `1e-05`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
