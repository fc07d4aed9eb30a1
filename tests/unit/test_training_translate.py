"""The translation to TRL: every key has its row, and the arguments mean the same."""

from __future__ import annotations

from typing import Any

import pytest

from workshop_lib.data import data_path
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.recipe.files import leaves
from workshop_lib.training.translate import Translation, different_defaults, translate

ARITHMETIC = data_path("recipes/arithmetic.yaml")
LORA_CFG = "policy.dtensor_cfg.lora_cfg"
LORA = {f"{LORA_CFG}.enabled": True, "policy.dtensor_cfg._v2": True}
DYNAMIC = {"grpo.use_dynamic_sampling": True}
OFF_POLICY = {
    "loss_fn.force_on_policy_ratio": False,
    "policy.train_global_batch_size": 32,
    "policy.train_micro_batch_size": 16,
}


def translated(overrides: dict[str, Any] | None = None, **options: Any) -> Translation:
    return translate(read_recipe(ARITHMETIC, overrides), problems=70, **options)


def status(overrides: dict[str, Any], key: str) -> str:
    return {row.key: row.status for row in translated(overrides).rows}[key]


def test_the_laptops_task() -> None:
    arguments = translated().arguments
    assert arguments == arguments | {
        "generation_batch_size": 64,
        "num_generations": 8,
        "per_device_train_batch_size": 64,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 6,
        "max_steps": 12,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "temperature": 1.0,
        "loss_type": "dapo",
        "scale_rewards": "group",
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 42,
    }
    assert translated().refused == []


def test_every_key_has_one_row() -> None:
    given = leaves(read_recipe(ARITHMETIC).settings)
    table = translated().table()
    assert set(given) <= set(table.key) and table.key.is_unique
    assert set(table.status) == {"exact", "dropped"}
    dropped = table[table.status == "dropped"]
    assert dropped.reason.str.len().min() > 5
    assert table.key.tolist()[: len(given)] == list(given)
    # Nothing that decides what is learned is dropped.
    assert not [key for key in dropped.key if key.startswith(("loss_fn.ratio", "policy.optimizer"))]
    assert table.set_index("key").value["policy.optimizer.kwargs.eps"] == "1e-08"


def test_trl_takes_the_arguments() -> None:
    trl = pytest.importorskip("trl")
    for overrides in ({}, OFF_POLICY):
        translation = translated(overrides)
        config = trl.GRPOConfig(output_dir="x", use_cpu=True, **translation.arguments)
        assert config.generation_batch_size == 64
        assert config.steps_per_generation * config.per_device_train_batch_size == 64
        updates = config.steps_per_generation // config.gradient_accumulation_steps
        assert updates == translation.updates_per_step


def test_defaults_that_differ_are_trls() -> None:
    trl = pytest.importorskip("trl")
    config = trl.GRPOConfig(output_dir="x", use_cpu=True)
    frame = different_defaults()
    for row in frame.itertuples():
        if row.trl_argument:
            value = getattr(config, row.trl_argument)
            assert getattr(value, "value", value) == row.trl, row.trl_argument


def test_several_updates_a_step() -> None:
    translation = translated(OFF_POLICY)
    assert translation.updates_per_step == 2 and translation.steps == 12
    assert translation.arguments["max_steps"] == 24
    assert translation.arguments["gradient_accumulation_steps"] == 2
    assert status(OFF_POLICY, "loss_fn.token_level_loss") == "approximated"


def test_steps_and_seed_can_be_given() -> None:
    translation = translated(steps=3, seed=7)
    assert translation.steps == translation.arguments["max_steps"] == 3
    assert translation.arguments["seed"] == 7


def test_epochs_end_a_run_too() -> None:
    assert translated({"grpo.max_num_epochs": 1}).steps == 8  # 70 problems, 8 a step
    assert translated({"grpo.max_num_epochs": 2}).steps == 12


@pytest.mark.parametrize(
    ("normalize", "leave_one_out", "expected", "scale"),
    [
        (True, False, ("exact", "exact"), "group"),
        (False, False, ("exact", "exact"), "none"),
        (True, True, ("approximated", "approximated"), "group"),
        (False, True, ("exact", "approximated"), "none"),
    ],
)
def test_advantages(
    normalize: bool, leave_one_out: bool, expected: tuple[str, str], scale: str
) -> None:
    overrides = {
        "grpo.normalize_rewards": normalize,
        "grpo.use_leave_one_out_baseline": leave_one_out,
    }
    assert translated(overrides).arguments["scale_rewards"] == scale
    keys = ("grpo.normalize_rewards", "grpo.use_leave_one_out_baseline")
    assert tuple(status(overrides, key) for key in keys) == expected
    assert status(overrides, keys[1].replace("grpo.", "grpo.adv_estimator.")) == expected[1]


def test_loss() -> None:
    gspo = {
        "loss_fn.token_level_loss": False,
        "loss_fn.sequence_level_importance_ratios": True,
    }
    arguments = translated(gspo).arguments
    assert (arguments["loss_type"], arguments["importance_sampling_level"]) == ("grpo", "sequence")
    clipped = {"loss_fn.ratio_clip_max": 0.28, "loss_fn.ratio_clip_c": 3.0}
    arguments = translated(clipped).arguments
    assert (arguments["epsilon"], arguments["epsilon_high"], arguments["delta"]) == (0.2, 0.28, 3.0)


def test_kl_penalty() -> None:
    penalty = {
        "loss_fn.reference_policy_kl_penalty": 0.05,
        "grpo.skip_reference_policy_logprobs_calculation": False,
    }
    assert translated(penalty).arguments["beta"] == 0.05
    assert status(penalty, "loss_fn.reference_policy_kl_type") == "exact"
    assert status(penalty, "loss_fn.reference_policy_kl_penalty") == "exact"
    k1 = penalty | {"loss_fn.reference_policy_kl_type": "k1"}
    assert status(k1, "loss_fn.reference_policy_kl_type") == "approximated"
    unclamped = penalty | {"loss_fn.kl_input_clamp_value": None}
    assert status(unclamped, "loss_fn.kl_input_clamp_value") == "exact"


def test_optimizer_and_schedule() -> None:
    assert status({"policy.optimizer.kwargs.weight_decay": 0.01}, WEIGHT_DECAY) == "approximated"
    assert translated({"policy.max_grad_norm": None}).arguments["max_grad_norm"] == 0.0
    warm = [
        {
            "name": "torch.optim.lr_scheduler.LinearLR",
            "kwargs": {"start_factor": 0.1, "end_factor": 1.0, "total_iters": 5},
        },
        {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {"factor": 1.0}},
        {"milestones": [5]},
    ]
    arguments = translated({"policy.scheduler": warm}).arguments
    assert arguments["lr_scheduler_type"] == "constant_with_warmup"
    assert arguments["warmup_steps"] == 5
    cosine = {"name": "torch.optim.lr_scheduler.CosineAnnealingLR", "kwargs": {"T_max": 5}}
    assert status({"policy.scheduler": cosine}, "policy.scheduler") == "refused"
    torchs_constant = {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {}}
    assert status({"policy.scheduler": torchs_constant}, "policy.scheduler") == "refused"


WEIGHT_DECAY = "policy.optimizer.kwargs.weight_decay"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"grpo.async_grpo.enabled": True}, "grpo.async_grpo.enabled"),
        ({"grpo.adv_estimator.name": "reinforce_plus_plus"}, "grpo.adv_estimator.name"),
        ({"grpo.reward_shaping.enabled": True}, "grpo.reward_shaping.enabled"),
        (
            {
                **LORA,
                f"{LORA_CFG}.match_all_linear": False,
                f"{LORA_CFG}.target_modules": ["*head"],
            },
            f"{LORA_CFG}.target_modules",
        ),
        ({"policy.generation.stop_strings": ["\n"]}, "policy.generation.stop_strings"),
        ({"policy.hf_config_overrides": {"a": 1}}, "policy.hf_config_overrides"),
        ({"policy.tokenizer.name": "other"}, "policy.tokenizer.name"),
        ({"policy.optimizer.name": "torch.optim.SGD"}, "policy.optimizer.name"),
    ],
)
def test_what_cannot_be_left_out_is_refused(overrides: dict[str, Any], key: str) -> None:
    assert [row.key for row in translated(overrides).refused] == [key]


def test_lora_in_peft_s_words() -> None:
    assert translated().lora == {}
    settings = translated(LORA | {f"{LORA_CFG}.dim": 4, f"{LORA_CFG}.alpha": 16}).lora
    assert settings == {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "init": "xavier",
        "target_modules": "all-linear",
    }
    rows = {row.key: row for row in translated(LORA | {f"{LORA_CFG}.dim": 4}).rows}
    assert rows[f"{LORA_CFG}.dim"].trl == "r=4" and rows[f"{LORA_CFG}.dim"].status == "exact"
    assert rows[f"{LORA_CFG}.match_all_linear"].status == "approximated"
    dropped = {f"{LORA_CFG}.dropout": 0.1}
    assert status(LORA | dropped, f"{LORA_CFG}.dropout") == "approximated"
    before = dropped | {f"{LORA_CFG}.dropout_position": "pre"}
    assert status(LORA | before, f"{LORA_CFG}.dropout") == "exact"


@pytest.mark.parametrize(
    ("modules", "adapted", "spared"),
    [
        ({"target_modules": ["q_proj"]}, "model.layers.0.self_attn.q_proj", "lm_head"),
        ({"target_modules": ["*.0.*.q_proj"]}, "model.layers.0.self_attn.q_proj", "a.1.b.q_proj"),
        ({}, "model.layers.3.mlp.up_proj", "model.embed_tokens"),
    ],
)
def test_which_layers_get_an_adapter(modules: dict[str, Any], adapted: str, spared: str) -> None:
    import re

    overrides = {f"{LORA_CFG}.{name}": value for name, value in modules.items()}
    given = translated(LORA | overrides | {f"{LORA_CFG}.match_all_linear": False}).lora
    assert re.fullmatch(given["target_modules"], adapted)
    assert not re.fullmatch(given["target_modules"], spared)


def test_layers_are_named_in_one_way() -> None:
    both = LORA | {f"{LORA_CFG}.target_modules": ["q_proj"]}
    refused = translated(both).refused
    assert {row.key for row in refused} == {
        f"{LORA_CFG}.target_modules",
        f"{LORA_CFG}.match_all_linear",
    }
    spared = {f"{LORA_CFG}.match_all_linear": False, f"{LORA_CFG}.exclude_modules": ["lm_head"]}
    translation = translated(LORA | spared)
    assert translation.refused == [] and translation.lora["target_modules"] == "all-linear"
    assert status(LORA | spared, f"{LORA_CFG}.exclude_modules") == "exact"


def test_dynamic_sampling() -> None:
    assert translated().prompts_per_batch == 0
    translation = translated(DYNAMIC | {"grpo.batch_multiplier": 1.5})
    assert (translation.prompts_per_batch, translation.most_batches) == (12, 11)
    assert status(DYNAMIC, "grpo.use_dynamic_sampling") == "exact"
    leave_one_out = DYNAMIC | {"grpo.use_leave_one_out_baseline": True}
    assert status(leave_one_out, "grpo.use_dynamic_sampling") == "approximated"
    none = translated(DYNAMIC | {"grpo.dynamic_sampling_max_gen_batches": 0})
    assert [row.key for row in none.refused] == ["grpo.dynamic_sampling_max_gen_batches"]


def test_a_reference_without_a_penalty_is_watched() -> None:
    key = "grpo.skip_reference_policy_logprobs_calculation"
    assert not translated().watch_kl and translated({key: False}).watch_kl
    penalised = {key: False, "loss_fn.reference_policy_kl_penalty": 0.1}
    assert not translated(penalised).watch_kl and translated(penalised).arguments["beta"] == 0.1
