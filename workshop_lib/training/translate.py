"""A NeMo RL recipe in TRL's arguments, every key accounted for.

`data/nemo-rl-to-trl.yaml` has a row for each key, with the reason; `_computed` decides those that
depend on several values. A key without a row is refused where it is on.

Sources: NeMo RL v0.7.0 (`algorithms/grpo.py`, `loss/loss_functions.py`), NeMo Automodel
(`components/_peft/lora.py`), TRL 1.16 (`trainer/grpo_trainer.py`), peft 0.21 (`LoraConfig`). All
mappings are for one machine without vLLM, where one and the same model samples and learns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from workshop_lib.data import data_path
from workshop_lib.training.advantages import trl_advantages
from workshop_lib.training.recipe import Recipe, leaves, own_values

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["WATCHED_BETA", "Mapped", "Translation", "translate"]

Status: TypeAlias = Literal["exact", "approximated", "dropped", "refused"]
Verdict: TypeAlias = tuple[Status, str, dict[str, Any]]
Computed: TypeAlias = tuple[Status, dict[str, Any]]

# TRL measures the KL divergence only beside a penalty. This one is too small to change a float32.
WATCHED_BETA = 1e-30

_LORA = "policy.dtensor_cfg.lora_cfg."
_TORCH = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}  # AdamW's own


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
        lora: Arguments of `peft.LoraConfig`; empty without LoRA.
    """

    arguments: dict[str, Any]
    rows: tuple[Mapped, ...]
    steps: int
    updates_per_step: int
    lora: dict[str, Any] = field(default_factory=dict)

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


def translate(recipe: Recipe, *, problems: int) -> Translation:
    """Put a recipe into TRL's words.

    Args:
        recipe: The recipe.
        problems: How many problems there are to train on; they decide how long an epoch is.

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
    steps = min(grpo.max_num_steps, max(grpo.max_num_epochs * epoch, 1))
    arguments: dict[str, Any] = {"max_steps": steps * updates, "num_iterations": 1}
    rows: list[Mapped] = []
    lora: dict[str, Any] = {}
    given, computed = _given(recipe), _computed(recipe)
    known = [key for key in _table() if not key.endswith("*")]
    for key in dict.fromkeys((*given, *known)):
        status, reason, became = _verdict(recipe, key, computed)
        (lora if key.startswith(_LORA) else arguments).update(became)
        shown = ", ".join(f"{name}={value!r}" for name, value in became.items())
        # Of a key that the recipe leaves out, what TRL must be told or cannot do is worth a row.
        if key in given or shown or status in ("approximated", "refused"):
            rows.append(Mapped(key, _value(recipe, key), status, shown, reason))
    adapter = recipe.policy.dtensor_cfg.lora_cfg.enabled
    lora = {"task_type": "CAUSAL_LM", **lora} if adapter else {}
    return Translation(arguments, tuple(rows), steps, updates, lora)


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


@cache
def _table() -> dict[str, tuple[str, Any]]:
    """The kind of each plain row, and what the table says: by key, or by keys' beginning (`*`)."""
    import yaml

    kinds = yaml.safe_load(data_path("nemo-rl-to-trl.yaml").read_text(encoding="utf-8"))
    return {key: (kind, said) for kind, rows in kinds.items() for key, said in rows.items()}


def _verdict(recipe: Recipe, key: str, computed: Mapping[str, Computed]) -> Verdict:
    """What a key means under TRL, by its row or by that of what it is part of."""
    adapter = recipe.policy.dtensor_cfg.lora_cfg.enabled
    if key.startswith(_LORA) and not adapter and key != f"{_LORA}enabled":
        return "dropped", "no adapter is trained", {}
    value = _value(recipe, key)
    parts = re.sub(r"^data\.(train|validation)(\[\d+\])?\.", "data.default.", key).split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    found = (_table().get(p) or _table().get(f"{p}.*") for p in prefixes)
    kind, said = next(filter(None, found), ("switches", "this translation does not know it"))
    if kind == "computed":
        status, became = computed[next(prefix for prefix in prefixes if prefix in computed)]
        size = recipe.grpo.num_generations_per_prompt
        counts = trl_advantages([1.0] + [0.0] * (size - 1))[0]  # NeMo RL does not divide by 0: 1
        total = recipe.policy.max_total_sequence_length
        # A third is of what rewards that are normalised do to the baseline.
        reason = said[0 if status == "exact" else -1 if recipe.normalize_rewards else 1]
        return status, reason.format(size=size, others=size - 1, counts=counts, total=total), became
    if kind == "same":
        argument, reason = said[0], (said[1:] or [""])[0]
        return "exact", reason, {argument: value} if argument else {}
    if kind == "dropped":
        return "dropped", said, {}
    on = value and value != own_values().get(key)
    return ("refused", said, {}) if on else ("exact", "off in both", {})


def _computed(recipe: Recipe) -> dict[str, Computed]:
    """What several values decide: whether TRL does the same, and its arguments."""
    grpo, loss, policy, saving = recipe.grpo, recipe.loss_fn, recipe.policy, recipe.checkpointing
    updates, penalty = recipe.updates_per_step, loss.reference_policy_kl_penalty
    lora, total = policy.dtensor_cfg.lora_cfg, policy.max_total_sequence_length
    new = min(recipe.generation.max_new_tokens or total, total)
    scaled, others = recipe.normalize_rewards, recipe.leave_one_out
    watched = not penalty and not grpo.skip_reference_policy_logprobs_calculation
    kwargs = "policy.optimizer.kwargs"
    decay, betas = (
        float(_value(recipe, f"{kwargs}.weight_decay")),
        _value(recipe, f"{kwargs}.betas"),
    )
    modules = _modules_pattern(lora.target_modules or ["*_proj"])
    head = not lora.match_all_linear and re.fullmatch(modules, "lm_head")
    read = ("default", "math_hf_data_processor", None)
    unread = any(entry.processor not in read for entry in recipe.datasets("train"))
    level = "sequence" if loss.sequence_level_importance_ratios else "token"
    per_token = loss.token_level_loss
    clamps = {f"kl_{end}_clamp_value" for end in ("input", "output")}
    batch, micro = policy.train_global_batch_size, policy.train_micro_batch_size

    def near(other: Any, **became: Any) -> Computed:
        return "approximated" if other else "exact", became

    def never(other: Any, **became: Any) -> Computed:
        return ("refused", {}) if other else ("exact", became)

    return {
        "grpo.num_prompts_per_step": near(False, generation_batch_size=recipe.completions_per_step),
        "grpo.normalize_rewards": near(
            scaled and others, scale_rewards="group" if scaled else "none"
        ),
        "grpo.adv_estimator.normalize_rewards": near(scaled and others),
        "grpo.use_leave_one_out_baseline": near(others),
        "grpo.adv_estimator.use_leave_one_out_baseline": near(others),
        "grpo.skip_reference_policy_logprobs_calculation": near(False),
        "loss_fn.reference_policy_kl_penalty": near(
            False, beta=WATCHED_BETA if watched else penalty
        ),
        "loss_fn.reference_policy_kl_type": near(penalty and loss.reference_policy_kl_type != "k3"),
        **{f"loss_fn.{name}": near(penalty and getattr(loss, name) is not None) for name in clamps},
        "loss_fn.use_on_policy_kl_approximation": never(
            penalty and loss.use_on_policy_kl_approximation
        ),
        "loss_fn.token_level_loss": near(
            per_token and updates > 1, loss_type="dapo" if per_token else "grpo"
        ),
        "loss_fn.sequence_level_importance_ratios": near(False, importance_sampling_level=level),
        "loss_fn.force_on_policy_ratio": near(updates > 1),
        "policy.tokenizer.name": never(policy.tokenizer.name not in (None, policy.model_name)),
        "policy.train_global_batch_size": near(False, gradient_accumulation_steps=batch // micro),
        "policy.precision": near(policy.precision != "float32", bf16=False, fp16=False),
        "policy.max_grad_norm": near(False, max_grad_norm=policy.max_grad_norm or 0.0),
        "policy.optimizer.name": never(
            recipe.value("policy.optimizer.name") != "torch.optim.AdamW", optim="adamw_torch_fused"
        ),
        f"{kwargs}.weight_decay": near(decay, weight_decay=decay),
        f"{kwargs}.betas": near(False, adam_beta1=float(betas[0]), adam_beta2=float(betas[1])),
        "policy.scheduler": _schedule(recipe),
        f"{_LORA}dropout": near(lora.dropout, lora_dropout=lora.dropout),
        f"{_LORA}dropout_position": near(lora.dropout and lora.dropout_position == "post"),
        f"{_LORA}lora_A_init": near(lora.lora_A_init == "xavier"),
        f"{_LORA}match_all_linear": near(
            lora.match_all_linear, target_modules="all-linear" if lora.match_all_linear else modules
        ),
        f"{_LORA}target_modules": never(head),
        "policy.generation.top_k": near(False, top_k=recipe.generation.top_k or 0),
        "policy.generation.max_new_tokens": near(new == total, max_completion_length=new),
        "data.default.processor": never(unread),
        "checkpointing.enabled": near(False, save_strategy="steps" if saving.enabled else "no"),
        "checkpointing.save_period": near(False, save_steps=saving.save_period * updates),
        "checkpointing.save_optimizer": near(False, save_only_model=not saving.save_optimizer),
        "checkpointing.keep_top_k": near(saving.metric_name is not None),
    }


def _schedule(recipe: Recipe) -> Computed:
    scheduler = recipe.policy.scheduler
    parts = scheduler if isinstance(scheduler, list) else [scheduler or {}]
    named = [part for part in parts if "name" in part]
    kinds = [str(part["name"]).rpartition(".")[2] for part in named]
    settings = [part.get("kwargs", {}) for part in named]
    # torch's own defaults where nothing is said: ConstantLR 1/3, LinearLR up to 1 in 5 steps.
    level = kinds[-1:] == ["ConstantLR"] and settings[-1].get("factor", 1 / 3) == 1
    if scheduler is None or (kinds == ["ConstantLR"] and level):
        return "exact", {"lr_scheduler_type": "constant"}
    if kinds == ["LinearLR", "ConstantLR"] and level and settings[0].get("end_factor", 1) == 1:
        steps = int(settings[0].get("total_iters", 5)) * recipe.updates_per_step
        became = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": steps}
        return "approximated", became
    return "refused", {}


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
        return recipe.value(key) if recipe.value(key) is not None else _TORCH.get(name)
    return recipe.value(key) if key in own_values() else None


def _as_yaml(value: Any) -> str:
    """A value as a recipe has it: `null`, `true`, `1e-05`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
