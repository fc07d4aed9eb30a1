"""The translation to TRL: every key has a verdict, and advantages are what it says of them."""

import random

import pytest

from workshop_lib.data import data_path
from workshop_lib.training import nemo_rl_advantages, translate, trl_advantages
from workshop_lib.training.recipe import leaves, read_recipe
from workshop_lib.training.translate import WATCHED_BETA

ARITHMETIC = data_path("recipes/arithmetic.yaml")
LORA_CFG = "policy.dtensor_cfg.lora_cfg"
LORA = {f"{LORA_CFG}.enabled": True, "policy.dtensor_cfg._v2": True}
ENTRY = {"dataset_name": "ResponseDataset", "data_path": "data/problems/sums-train.jsonl"}
WEIGHT_DECAY = "policy.optimizer.kwargs.weight_decay"
SKIP = "grpo.skip_reference_policy_logprobs_calculation"
PENALTY = {"loss_fn.reference_policy_kl_penalty": 0.05, SKIP: False}
OFF_POLICY = {
    "loss_fn.force_on_policy_ratio": False,
    "policy.train_global_batch_size": 32,
    "policy.train_micro_batch_size": 16,
}


def translated(overrides=None):
    return translate(read_recipe(ARITHMETIC, overrides), problems=70)


def test_the_laptops_task():
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
        "shuffle_dataset": True,
        "seed": 42,
    }
    assert translated().refused == []


def test_every_key_has_one_row():
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


@pytest.mark.parametrize("overrides", [{}, OFF_POLICY])
def test_trl_takes_the_arguments(overrides):
    trl = pytest.importorskip("trl")
    translation = translated(overrides)
    config = trl.GRPOConfig(output_dir="x", use_cpu=True, **translation.arguments)
    assert config.generation_batch_size == 64
    assert config.steps_per_generation * config.per_device_train_batch_size == 64
    updates = config.steps_per_generation // config.gradient_accumulation_steps
    assert updates == translation.updates_per_step
    assert translation.arguments["max_steps"] == 12 * updates


def test_epochs_end_a_run_too():
    assert translated({"grpo.max_num_epochs": 1}).steps == 8  # 70 problems, 8 a step
    assert translated({"grpo.max_num_epochs": 2}).steps == 12


WARM_UP = [
    {"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"end_factor": 1.0, "total_iters": 5}},
    {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {"factor": 1.0}},
    {"milestones": [5]},
]
LOO, NORMALIZED = "grpo.use_leave_one_out_baseline", "grpo.normalize_rewards"
ESTIMATOR = LOO.replace("grpo.", "grpo.adv_estimator.")


@pytest.mark.parametrize(
    ("overrides", "statuses", "arguments"),
    [
        ({NORMALIZED: False}, {NORMALIZED: "exact", LOO: "exact"}, {"scale_rewards": "none"}),
        (
            {LOO: True},
            {NORMALIZED: "approximated", LOO: "approximated", ESTIMATOR: "approximated"},
            {"scale_rewards": "group"},
        ),
        ({LOO: True, NORMALIZED: False}, {NORMALIZED: "exact", LOO: "approximated"}, {}),
        (
            OFF_POLICY,
            {
                "loss_fn.token_level_loss": "approximated",
                "loss_fn.force_on_policy_ratio": "approximated",
            },
            {"gradient_accumulation_steps": 2},
        ),
        (
            {
                "loss_fn.token_level_loss": False,
                "loss_fn.sequence_level_importance_ratios": True,
                "loss_fn.ratio_clip_max": 0.28,
                "loss_fn.ratio_clip_c": 3.0,
            },
            {"loss_fn.token_level_loss": "exact"},
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "epsilon_high": 0.28,
                "delta": 3.0,
            },
        ),
        (
            PENALTY,
            {"loss_fn.reference_policy_kl_type": "exact", SKIP: "exact"},
            {"beta": 0.05},
        ),
        (
            PENALTY | {"loss_fn.reference_policy_kl_type": "k1"},
            {"loss_fn.reference_policy_kl_type": "approximated"},
            {},
        ),
        ({SKIP: False}, {SKIP: "exact"}, {"beta": WATCHED_BETA}),
        ({WEIGHT_DECAY: 0.01}, {WEIGHT_DECAY: "approximated"}, {"weight_decay": 0.01}),
        ({"policy.max_grad_norm": None}, {}, {"max_grad_norm": 0.0}),
        (
            {"policy.scheduler": WARM_UP},
            {"policy.scheduler": "approximated"},
            {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5},
        ),
        # NeMo RL's own grpo_math_1B.yaml: 512 of 512, which ends where the sequence is full.
        (
            {"policy.generation.max_new_tokens": 64},
            {"policy.generation.max_new_tokens": "approximated"},
            {"max_completion_length": 64},
        ),
        ({"policy.precision": "bfloat16"}, {"policy.precision": "approximated"}, {"bf16": False}),
    ],
)
def test_what_depends_on_several_values(overrides, statuses, arguments):
    translation = translated(overrides)
    rows = {row.key: row.status for row in translation.rows}
    assert {key: rows[key] for key in statuses} == statuses
    assert translation.arguments == translation.arguments | arguments
    assert translation.refused == []


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"grpo.use_dynamic_sampling": True}, "grpo.use_dynamic_sampling"),
        ({"policy.optimizer.kwargs.maximize": True}, "policy.optimizer.kwargs.maximize"),
        ({"data.train.repeat": 4}, "data.train.repeat"),
        ({"data.train": [ENTRY, ENTRY | {"repeat": 4}]}, "data.train[1].repeat"),
        ({"data.default.processor": "multichoice_qa_processor"}, "data.default.processor"),
        ({"data.add_bos": True}, "data.add_bos"),
        ({"policy.quant_cfg": "fp8"}, "policy.quant_cfg"),
        ({"loss_fn.positive_example_nll_weight": 0.1}, "loss_fn.positive_example_nll_weight"),
        ({"grpo.adv_estimator.name": "reinforce_plus_plus"}, "grpo.adv_estimator.name"),
        ({"grpo.reward_shaping.enabled": True}, "grpo.reward_shaping.enabled"),
        ({"policy.generation.stop_strings": ["\n"]}, "policy.generation.stop_strings"),
        ({"policy.hf_config_overrides": {"a": 1}}, "policy.hf_config_overrides"),
        ({"policy.tokenizer.name": "other"}, "policy.tokenizer.name"),
        ({"policy.optimizer.name": "torch.optim.SGD"}, "policy.optimizer.name"),
        (
            {"policy.scheduler": {"name": "torch.optim.lr_scheduler.CosineAnnealingLR"}},
            "policy.scheduler",
        ),
        (
            LORA | {f"{LORA_CFG}.match_all_linear": False, f"{LORA_CFG}.target_modules": ["*head"]},
            f"{LORA_CFG}.target_modules",
        ),
        (LORA | {f"{LORA_CFG}.exclude_modules": ["lm_head"]}, f"{LORA_CFG}.exclude_modules"),
    ],
)
def test_what_cannot_be_left_out_is_refused(overrides, key):
    assert [row.key for row in translated(overrides).refused] == [key]


def test_lora_in_peft_s_words():
    assert translated().lora == {}
    settings = translated(LORA | {f"{LORA_CFG}.dim": 4, f"{LORA_CFG}.alpha": 16}).lora
    assert settings == {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": "all-linear",
    }
    rows = {row.key: row for row in translated(LORA | {f"{LORA_CFG}.dim": 4}).rows}
    assert rows[f"{LORA_CFG}.dim"].trl == "r=4" and rows[f"{LORA_CFG}.dim"].status == "exact"
    assert rows[f"{LORA_CFG}.match_all_linear"].status == "approximated"
    assert rows[f"{LORA_CFG}.lora_A_init"].status == "approximated"


@pytest.mark.parametrize(
    ("modules", "adapted", "spared"),
    [
        ({"target_modules": ["q_proj"]}, "model.layers.0.self_attn.q_proj", "lm_head"),
        ({"target_modules": ["*.0.*.q_proj"]}, "model.layers.0.self_attn.q_proj", "a.1.b.q_proj"),
        ({}, "model.layers.3.mlp.up_proj", "model.embed_tokens"),
    ],
)
def test_which_layers_get_an_adapter(modules, adapted, spared):
    import re

    overrides = {f"{LORA_CFG}.{name}": value for name, value in modules.items()}
    given = translated(LORA | overrides | {f"{LORA_CFG}.match_all_linear": False}).lora
    assert re.fullmatch(given["target_modules"], adapted)
    assert not re.fullmatch(given["target_modules"], spared)


def test_advantages_by_hand():
    # Rewards 1, 0, 0, 0: mean 1/4, spread 1/2. The others' mean: 0 for the first, 1/3 else,
    # with a spread of 0 and 1/sqrt(3).
    assert trl_advantages([1, 0, 0, 0]) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)
    assert trl_advantages([1, 0, 0, 0], normalize=False) == [0.75, -0.25, -0.25, -0.25]
    assert nemo_rl_advantages([1, 0, 0, 0]) == pytest.approx([1, *[-(3**-0.5)] * 3], rel=1e-5)
    alone = nemo_rl_advantages([1, 0, 0, 0], normalize=False)
    assert alone == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    for same in ([0.0] * 8, [1.0] * 8, [0.1] * 8):  # a group without spread teaches nothing
        assert trl_advantages(same) == pytest.approx([0.0] * 8, abs=1e-9)
        assert nemo_rl_advantages(same) == pytest.approx([0.0] * 8, abs=1e-9)


def test_how_far_trl_is_from_nemo_rl():
    """What the table says: the same, a factor, or the same order and signs."""
    draw = random.Random(1)
    for _ in range(50):
        rewards = [float(draw.random() < 0.4) for _ in range(8)]
        ours = nemo_rl_advantages(rewards, leave_one_out=False)
        assert ours == pytest.approx(trl_advantages(rewards), rel=1e-3, abs=1e-9)
    rewards = [1.0, 0.5, 0.0, 0.25]
    theirs = trl_advantages(rewards, normalize=False)
    smaller = [4 / 3 * advantage for advantage in theirs]
    assert nemo_rl_advantages(rewards, normalize=False) == pytest.approx(smaller)
    for right in range(2, 7):
        rewards = [1.0] * right + [0.0] * (8 - right)
        pairs = zip(trl_advantages(rewards), nemo_rl_advantages(rewards), strict=True)
        assert all(0.7 < theirs / ours < 0.95 for theirs, ours in pairs)
    # The others of an only right answer have no spread: NeMo RL does not divide, TRL does.
    only_right = [1.0] + [0.0] * 7
    assert trl_advantages(only_right)[0] == pytest.approx(2.475, abs=1e-3)
    assert nemo_rl_advantages(only_right)[0] == pytest.approx(1.0)
