"""GRPO on a laptop: problems, advantages, the translation to TRL, plans, asking, watching.

What trains for real is in tests/local.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from streaming_server import StreamingServer

from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.records import LogLine, Observation
from workshop_lib.data import data_path
from workshop_lib.errors import ClusterError, ServerError, WaitTimeoutError, WorkshopError
from workshop_lib.serving import ModelServer
from workshop_lib.serving.memory import ModelShape
from workshop_lib.training import (
    Accuracy,
    Problem,
    Translation,
    accuracy_by_level,
    accuracy_table,
    answers_table,
    check_training,
    compare_settings,
    evaluate_folder,
    evaluate_server,
    experiments,
    load_problems,
    nemo_rl_advantages,
    sample_groups,
    training_models,
    translate,
    trl_advantages,
    watch_training,
    wilson_interval,
)
from workshop_lib.training.experiments import ANSWERS, small_settings
from workshop_lib.training.recipe import RecipeError, leaves, override, read_recipe
from workshop_lib.training.record import Recorder, RunFolder, TrainingError
from workshop_lib.training.runs import (
    COLUMNS,
    METRICS_FILE,
    TrainingLog,
    marked_line,
    read_completions,
    read_metrics,
    read_run,
)
from workshop_lib.training.train import main
from workshop_lib.training.trainer import plan_training, prepare_environment

ARITHMETIC = data_path("recipes/arithmetic.yaml")
RECIPE = read_recipe(ARITHMETIC)

# -- problems


def test_the_committed_problems_are_what_the_script_makes(tmp_path: Path) -> None:
    script = data_path("problems/make_problems.py")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(made) == 8
    assert all((script.parent / name).read_bytes() == text for name, text in made.items())


def operation(problem: Problem) -> tuple[str, int, int]:
    """What a problem asks for, in whatever words: the operation that gives its answer."""
    a, b = map(int, re.findall(r"\d+", problem.text))
    low, high = sorted((a, b))
    ways = {"+": a + b, "-": a - b, "*": a * b}
    sign = next((s for s in ways if s in problem.text), "") or min(
        (s for s in ways if str(ways[s]) == problem.answer), key="+-*".index
    )
    return (sign, a, b) if sign == "-" else (sign, low, high)


@pytest.mark.parametrize("name", ["arithmetic", "hackable"])
def test_nothing_held_out_was_trained_on(name: str) -> None:
    recipe = read_recipe(data_path(f"recipes/{name}.yaml"))
    train, held_out = load_problems(recipe), load_problems(recipe, "validation")
    assert {operation(p) for p in train} & {operation(p) for p in held_out} == set()
    for problem in (*train, *held_out):
        assert sum(map(int, re.findall(r"\d+", problem.text))) == int(problem.answer)
    if name == "arithmetic":
        assert {p.answer for p in held_out} <= {p.answer for p in train}, "no answer is new"


def test_the_recipes_problems() -> None:
    recipe = read_recipe(ARITHMETIC)
    train, held_out = load_problems(recipe), load_problems(recipe, "validation")
    assert (len(train), len(held_out)) == (70, 30)
    assert train[0].prompt == "Question: What is 0 + 0?\nAnswer:"
    assert train[0].answer == "0" and train[0].system == ""


def test_paths_of_the_working_folder_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data_path("problems"), tmp_path / "data/problems")
    line = json.dumps({"problem": "1 + 1", "answer": "2"})
    (tmp_path / "data/problems/sums-train.jsonl").write_text(f"{line}\n\n")
    monkeypatch.chdir(tmp_path)
    assert [problem.text for problem in load_problems(read_recipe(ARITHMETIC))] == ["1 + 1"]


def test_a_system_prompt_and_a_conversation(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be short.")
    overrides = {"data.default.system_prompt_file": str(tmp_path / "system.txt")}
    problem = load_problems(read_recipe(ARITHMETIC, overrides))[0]
    assert problem.messages == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": problem.prompt},
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "needs the texts 'problem' and 'answer'"),
        ('{"problem": "1 + 1"}', "needs the texts"),
        ('{"problem": "1 + 1", "answer": 2}', "needs the texts"),
        ("", "holds no problem"),
    ],
)
def test_a_file_without_problems(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line + "\n")
    recipe = read_recipe(ARITHMETIC, {"data.train.data_path": str(path)})
    with pytest.raises(WorkshopError, match=said):
        load_problems(recipe)


def test_what_is_not_there_or_not_local(tmp_path: Path) -> None:
    with pytest.raises(WorkshopError, match=r"data_path gone.jsonl is not a file"):
        load_problems(read_recipe(ARITHMETIC, {"data.train.data_path": "gone.jsonl"}))
    with pytest.raises(WorkshopError, match="gsm8k; here only local files"):
        load_problems(read_recipe(ARITHMETIC, {"data.train": {"dataset_name": "gsm8k"}}))
    (tmp_path / "prompt.txt").write_text("{} {problem}")
    overrides = {"data.default.prompt_file": str(tmp_path / "prompt.txt")}
    with pytest.raises(WorkshopError, match="it needs one"):
        load_problems(read_recipe(ARITHMETIC, overrides))


def test_the_graded_recipes_problems() -> None:
    recipe = read_recipe(data_path("recipes/graded.yaml"))
    train, held_out = load_problems(recipe), load_problems(recipe, "validation")
    assert len(held_out) >= 200 and {p.level for p in train} == {p.level for p in held_out}
    assert all(p.prompt == f"Question: {p.text}\nAnswer:" for p in held_out)
    assert max(len(p.prompt.split()) for p in train) < 40
    # What is the same sum is no question of the words: arithmetic.yaml stays as it is.
    assert len(load_problems(read_recipe(ARITHMETIC), "validation")) == 30


def test_a_level_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1 + 1", "answer": "2", "level": "easy"}\n')
    with pytest.raises(WorkshopError, match="level is a whole number, not 'easy'"):
        load_problems(read_recipe(ARITHMETIC, {"data.train.data_path": str(path)}))


# -- advantages


def test_by_hand() -> None:
    # Rewards 1, 0, 0, 0: mean 1/4, spread 1/2. The others' mean: 0 for the first, 1/3 else,
    # with a spread of 0 and 1/sqrt(3).
    assert trl_advantages([1, 0, 0, 0]) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)
    assert trl_advantages([1, 0, 0, 0], normalize=False) == [0.75, -0.25, -0.25, -0.25]
    assert nemo_rl_advantages([1, 0, 0, 0]) == pytest.approx([1, *[-(3**-0.5)] * 3], rel=1e-5)
    alone = nemo_rl_advantages([1, 0, 0, 0], normalize=False)
    assert alone == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


@pytest.mark.parametrize("rewards", [[0.0] * 8, [1.0] * 8, [0.1] * 8])
def test_a_group_without_spread_teaches_nothing(rewards: list[float]) -> None:
    assert trl_advantages(rewards) == pytest.approx([0.0] * 8, abs=1e-9)
    assert nemo_rl_advantages(rewards) == pytest.approx([0.0] * 8, abs=1e-9)


def test_without_leave_one_out_both_agree() -> None:
    draw = random.Random(1)
    for _ in range(50):
        rewards = [float(draw.random() < 0.4) for _ in range(8)]
        ours = nemo_rl_advantages(rewards, leave_one_out=False)
        assert ours == pytest.approx(trl_advantages(rewards), rel=1e-3, abs=1e-9)


def test_leave_one_out_without_normalisation_is_a_factor() -> None:
    rewards = [1.0, 0.5, 0.0, 0.25]
    ours = nemo_rl_advantages(rewards, normalize=False)
    theirs = trl_advantages(rewards, normalize=False)
    assert ours == pytest.approx([4 / 3 * advantage for advantage in theirs])


def test_how_far_trl_is_from_leave_one_out_with_normalisation() -> None:
    """The table says "approximated": the same order and signs; an only right answer counts more."""
    for right in range(1, 8):
        rewards = [1.0] * right + [0.0] * (8 - right)
        trl, nemo = trl_advantages(rewards), nemo_rl_advantages(rewards)
        assert [a > 0 for a in trl] == [a > 0 for a in nemo]
        if 1 < right < 7:
            # Between them is a factor, the further from 1 the rarer the answer is.
            assert all(0.7 < ours / theirs < 0.95 for ours, theirs in zip(trl, nemo, strict=True))
    # The others of an only right answer have no spread: NeMo RL does not divide, TRL does.
    only_right = [1.0] + [0.0] * 7
    assert trl_advantages(only_right)[0] == pytest.approx(2.475, abs=1e-3)
    assert nemo_rl_advantages(only_right)[0] == pytest.approx(1.0)
    for normalize in (True, False):
        assert sum(trl_advantages(only_right, normalize=normalize)) == pytest.approx(0, abs=1e-6)


# -- the translation to TRL

LORA_CFG = "policy.dtensor_cfg.lora_cfg"
LORA = {f"{LORA_CFG}.enabled": True, "policy.dtensor_cfg._v2": True}
ENTRY = {"dataset_name": "ResponseDataset", "data_path": "data/problems/sums-train.jsonl"}
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


def test_several_updates_a_step() -> None:
    translation = translated(OFF_POLICY)
    assert translation.updates_per_step == 2 and translation.steps == 12
    assert translation.arguments["max_steps"] == 24
    assert translation.arguments["gradient_accumulation_steps"] == 2
    assert status(OFF_POLICY, "loss_fn.token_level_loss") == "approximated"
    assert status(OFF_POLICY, "loss_fn.force_on_policy_ratio") == "approximated"


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
        ({"grpo.use_dynamic_sampling": True}, "grpo.use_dynamic_sampling"),
        ({"policy.optimizer.kwargs.maximize": True}, "policy.optimizer.kwargs.maximize"),
        ({"policy.optimizer.kwargs.amsgrad": True}, "policy.optimizer.kwargs.amsgrad"),
        ({"data.train.repeat": 4}, "data.train.repeat"),
        ({"data.train": [ENTRY, ENTRY | {"repeat": 4}]}, "data.train[1].repeat"),
        ({"data.default.processor": "multichoice_qa_processor"}, "data.default.processor"),
        ({"data.add_bos": True}, "data.add_bos"),
        ({"policy.quant_cfg": "fp8"}, "policy.quant_cfg"),
        ({"loss_fn.positive_example_nll_weight": 0.1}, "loss_fn.positive_example_nll_weight"),
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


def test_a_reference_without_a_penalty_is_watched() -> None:
    key = "grpo.skip_reference_policy_logprobs_calculation"
    assert not translated().watch_kl and translated({key: False}).watch_kl
    (row,) = [row for row in translated({key: False}).rows if row.key == key]
    assert "NeMo RL logs a KL of 0" in row.reason
    penalised = {key: False, "loss_fn.reference_policy_kl_penalty": 0.1}
    assert not translated(penalised).watch_kl and translated(penalised).arguments["beta"] == 0.1


def test_as_many_new_tokens_as_the_sequence_holds() -> None:
    """NeMo RL's own grpo_math_1B.yaml: 512 of 512, which ends where the sequence is full."""
    full = {"policy.generation.max_new_tokens": 64}
    assert status(full, "policy.generation.max_new_tokens") == "approximated"
    assert translated(full).refused == [] and status({}, "policy.precision") == "exact"


# -- plans, records, checkpoints


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What looks like a model; nothing here loads it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    return folder


def test_the_plan(tmp_path: Path, model: Path) -> None:
    recipe = read_recipe(ARITHMETIC)
    plan = plan_training(recipe, output=tmp_path / "run", model=model, steps=3, seed=7)
    assert plan.describe() == (
        "3 steps of 64 completions (8 prompts x 8), up to 6 tokens each, on 70 problems;"
        " reward first_integer"
    )
    assert plan.translation.arguments["seed"] == 7 and plan.model == model
    assert not (tmp_path / "run").exists()
    lora = {"policy.dtensor_cfg._v2": True, "policy.dtensor_cfg.lora_cfg.enabled": True}
    plan = plan_training(read_recipe(ARITHMETIC, lora), output=tmp_path / "run", model=model)
    assert plan.describe().endswith("; LoRA of rank 8")


def test_what_is_set_in_the_environment_stays() -> None:
    environment = {"HF_HUB_OFFLINE": "0"}
    prepare_environment(environment)
    assert environment["HF_HUB_OFFLINE"] == "0" and environment["HF_DATASETS_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps is 0; train at least one step"),
        (["--seed", "-1"], "--seed is -1"),
        (["--model", "/nowhere"], "--model /nowhere cannot be used: /nowhere is not a folder"),
        (["grpo.num_prompt_per_step=4"], "did you mean grpo.num_prompts_per_step?"),
        (["grpo.num_prompts_per_step"], "is no KEY=VALUE"),
        (["grpo.seed=[1"], "the value is not YAML"),
        (["grpo.overlong_filtering=true"], "cannot be trained on this machine"),
        (["data.train.data_path=gone.jsonl"], "gone.jsonl is not a file"),
        (["data.default.env_name=code", "env.code={}"], "no reward for env.code"),
        (["grpo.num_prompts_per_step=80", "policy.train_global_batch_size=640"], "70 problems"),
        (
            ["env.first_integer.verifier_type=english_multichoice"],
            "english_multichoice is not here",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    overrides = [argument for argument in arguments if "=" in argument or "grpo" in argument]
    options = [argument for argument in arguments if argument not in overrides]
    if "policy.train_global_batch_size=640" in overrides:
        overrides.append("policy.train_micro_batch_size=64")
    if "--model" not in options:
        options += ["--model", str(model)]
    status = main([str(ARITHMETIC), *overrides, "--output", str(tmp_path / "run"), *options])
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and said in printed.err
    assert not (tmp_path / "run").exists()


def test_values_may_stand_after_the_options(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--output", str(tmp_path / "run"), "--model", str(model)]
    assert main([str(ARITHMETIC), *where, "grpo.seed=x", "--steps", "3"]) == 2
    assert "grpo.seed is 'x'" in capsys.readouterr().err


def test_an_answer_that_no_one_can_give(tmp_path: Path, model: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"problem": "1 + 1", "answer": "two"}\n' * 8)
    recipe = read_recipe(ARITHMETIC, {"data.train.data_path": str(tmp_path / "p.jsonl")})
    with pytest.raises(Exception, match="needs a whole number, not 'two'"):
        plan_training(recipe, output=tmp_path / "run", model=model)


def test_a_run_is_not_written_over(tmp_path: Path, model: Path) -> None:
    recipe = read_recipe(ARITHMETIC)
    (tmp_path / METRICS_FILE).write_text("")
    with pytest.raises(TrainingError, match="holds a run already"):
        plan_training(recipe, output=tmp_path, model=model)
    plan = plan_training(recipe, output=tmp_path, model=model, overwrite=True)
    (tmp_path / "checkpoints/step_1").mkdir(parents=True)
    plan.folder.claim(plan.about())
    assert not (tmp_path / METRICS_FILE).exists()
    assert not (tmp_path / "checkpoints").exists()
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["settings"]["grpo"]["seed"] == about["arguments"]["seed"] == 42
    assert about["versions"]["trl"]


def test_an_output_that_cannot_be(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="is a file; give a folder"):
        plan_training(read_recipe(ARITHMETIC), output=tmp_path / "file", model=model)


def test_a_model_that_was_not_prepared(tmp_path: Path) -> None:
    recipe = read_recipe(ARITHMETIC, {"policy.model_name": "nobody/nothing"})
    with pytest.raises(
        TrainingError, match=r"workshop_lib\.serving\.models prepare nobody/nothing"
    ):
        plan_training(recipe, output=tmp_path / "run")


def save(folder: Path, *, state: bool = False) -> None:
    """What looks like a model, with the trainer's state if wanted."""
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    if state:
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
            (folder / name).write_text("")


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    checkpoints = RunFolder(tmp_path)
    with (
        pytest.raises(TrainingError, match=r"step_12 cannot be saved: .*No space left"),
        checkpoints.writing(12) as folder,
    ):
        save(folder)
        raise OSError(28, "No space left on device")
    with pytest.raises(TrainingError, match="is not whole"), checkpoints.writing(12) as folder:
        (folder / "config.json").write_text("{}")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    with pytest.raises(TrainingError, match="has no checkpoint"):
        checkpoints.newest()
    for step in (9, 12):
        with checkpoints.writing(step) as folder:
            assert checkpoints.steps() == [9] * (step > 9)
            save(folder)
    assert checkpoints.newest().name == "step_12"


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = RunFolder(tmp_path, keep=2)
    for step in (2, 4, 6, 10):
        with checkpoints.writing(step) as folder:
            save(folder, state=step < 10)
    assert sorted(path.name for path in checkpoints.checkpoints.iterdir()) == ["step_10", "step_6"]
    assert checkpoints.newest().name == "step_10"
    assert checkpoints.newest(whole=True).name == "step_6", "step 10 has no optimizer"
    checkpoints.claim({}, after=6)
    assert checkpoints.steps() == [6]


def test_what_cannot_be_resumed_is_refused(tmp_path: Path, model: Path) -> None:
    recipe = read_recipe(ARITHMETIC)
    output = tmp_path / "run"
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        plan_training(recipe, output=output, model=model, resume=True)
    plan = plan_training(recipe, output=output, model=model)
    plan.folder.claim(plan.about())
    rows = [{"step": 1, "elapsed_s": 5.0}, {"step": 2, "elapsed_s": 9.5}, {"step": 3}]
    (output / METRICS_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"st')
    with plan.folder.writing(2) as folder:
        save(folder, state=True)
    with pytest.raises(TrainingError, match="--resume keeps the run that --overwrite removes"):
        plan_training(recipe, output=output, model=model, resume=True, overwrite=True)
    with pytest.raises(TrainingError, match="started with another seed"):
        plan_training(recipe, output=output, model=model, resume=True, seed=5)
    other = read_recipe(ARITHMETIC, {"policy.optimizer.kwargs.lr": 1e-4})
    with pytest.raises(TrainingError, match="started with another learning_rate"):
        plan_training(other, output=output, model=model, resume=True)
    lora = {"policy.dtensor_cfg._v2": True, "policy.dtensor_cfg.lora_cfg.enabled": True}
    with pytest.raises(TrainingError, match="started with another lora"):
        plan_training(read_recipe(ARITHMETIC, lora), output=output, model=model, resume=True)
    with pytest.raises(TrainingError, match="is of step 2 and 2 steps are wanted; raise --steps"):
        plan_training(recipe, output=output, model=model, resume=True, steps=2)
    assert len((output / METRICS_FILE).read_text().splitlines()) == 4, "nothing was changed"

    plan = plan_training(recipe, output=output, model=model, resume=True, steps=20)
    assert plan.resume_from == output / "checkpoints/step_2"
    assert plan.folder.claim(plan.about(), after=2) == 9.5
    assert read_metrics(output).step.tolist() == [1, 2]
    (output / "run.json").write_text("{")
    with pytest.raises(TrainingError, match="does not say what was run"):
        plan_training(recipe, output=output, model=model, resume=True)


def test_the_recorder_writes_a_step(tmp_path: Path) -> None:
    said: list[str] = []
    recorder = Recorder(
        tmp_path,
        group_size=2,
        updates_per_step=2,
        steps=10,
        answers={"p": "7", "q": "8"},
        say=said.append,
    )
    logged = {
        "prompt": ["p", "p", "q", "q"],
        "completion": [" 7", " 8", " 8", " 8"],
        "rewards": {"first_integer": [1.0, 0.0, 1.0, 1.0]},
        "advantages": [0.7, -0.7, 0.0, float("nan")],
    }
    recorder.begin()
    recorder.seconds |= {"generation": 1.5, "reward": 0.25}
    logs: dict[str, Any] = {"reward": 0.75, "reward_std": 0.5, "loss": float("nan")}
    recorder.record(2, logs | {"grad_norm": 3.0, "frac_reward_zero_std": 0.5}, logged)
    # Readable while the file is open.
    frame = read_metrics(tmp_path)
    assert frame.step.tolist() == [1] and frame.group_means.tolist() == [[0.5, 1.0]]
    assert frame.generation_s.tolist() == [1.5]
    assert read_run(tmp_path).frame.not_finite.tolist() == ["loss"], "a NaN is not forgotten"
    assert said[0].startswith("step  1/10  reward 0.750  std 0.500  kl -  grad norm 3.00  ")
    rows = read_completions(tmp_path)
    assert rows.group.tolist() == [0, 0, 1, 1] and rows.answer.tolist() == ["7", "7", "8", "8"]
    recorder.record(4, logs | {"grad_norm": 0.0, "kl": 0.01}, logged)
    assert "kl 0.0100" in said[1]
    assert read_metrics(tmp_path).step.tolist() == [1, 2]


# -- asking a model

PROBLEMS = tuple(Problem(f"1 + {n}", str(n + 1), f"What is 1 + {n}?") for n in range(4))


def result(*completions: str) -> Accuracy:
    rewards = tuple(
        float(text.strip() == problem.answer)
        for problem, text in zip(PROBLEMS, completions, strict=True)
    )
    return Accuracy(PROBLEMS, completions, rewards)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_equation() -> None:
    # Its ends are the shares from which the observed one is z standard deviations away.
    for end in wilson_interval(17, 40, confidence=0.9):
        z = abs(17 / 40 - end) / (end * (1 - end) / 40) ** 0.5
        assert z == pytest.approx(1.6449, abs=1e-4)
    with pytest.raises(ValueError):
        wilson_interval(3, 2)
    with pytest.raises(ValueError):
        wilson_interval(0, 0)


def test_the_table_before_and_after() -> None:
    table = accuracy_table({"before": result(" 1", "5", "?", ""), "after": result(*"1234")})
    assert table.index.tolist() == ["before", "after"]
    assert table.right.tolist() == [1, 4] and table.accuracy.tolist() == [0.25, 1.0]
    assert table.low["before"] < 0.25 < table.high["before"]


def test_answers_side_by_side() -> None:
    table = answers_table({"before": result(" 1", "5", "?", ""), "after": result(*"1234")})
    assert table["before right"].tolist() == [True, False, False, False]
    assert table["after"].tolist() == list("1234") and table.answer.tolist() == list("1234")
    other = Accuracy(PROBLEMS[:1], ("1",), (1.0,))
    with pytest.raises(WorkshopError, match="evaluate the same"):
        answers_table({"before": result(*"1234"), "after": other})


class Stub(BaseHTTPRequestHandler):
    """A server that can add, and forgets the sum when a digit is 9."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    broken = False

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "stub", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append((self.path, body))
        prompt = body.get("prompt") or body["messages"][-1]["content"]
        a, b = (int(part.strip(" ?\nAnswer:")) for part in prompt.split("is")[1].split("+"))
        text = " I forgot" if 9 in (a, b) else f" {a + b}\nQuestion"
        choice = {"index": 0, "finish_reason": "length", "logprobs": None}
        if self.path == "/v1/completions":
            choice["text"] = text
        else:
            choice["message"] = {"role": "assistant", "content": text}
        self._send(
            {
                "id": "1",
                "object": "completion",
                "created": 0,
                "model": "stub",
                "choices": [] if self.broken else [choice],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    def _send(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def stub() -> Iterator[ModelServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Stub.bodies.clear()
    Stub.broken = False
    try:
        with ModelServer(f"http://127.0.0.1:{server.server_port}", timeout_s=300) as client:
            yield client
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_is_asked_the_prompts_as_they_are() -> None:
    done: list[tuple[int, int]] = []
    with stub() as server:
        recipe = read_recipe(ARITHMETIC)
        accuracy = evaluate_server(server, recipe, on_progress=lambda *at: done.append(at))
    assert len(accuracy.problems) == 30 and done[-1] == (30, 30)
    wrong = [p.text for p, r in zip(accuracy.problems, accuracy.rewards, strict=True) if r == 0]
    assert wrong == [p.text for p in accuracy.problems if "9" in p.text] and wrong
    path, body = Stub.bodies[0]
    assert path == "/v1/completions" and body["temperature"] == 0 and body["max_tokens"] == 6
    assert body["model"] == "stub"
    assert {body["prompt"] for _, body in Stub.bodies} == {p.prompt for p in accuracy.problems}


def test_a_server_is_asked_in_chat_where_the_recipe_has_a_template() -> None:
    recipe = read_recipe(ARITHMETIC, {"policy.tokenizer.chat_template": "default"})
    with stub() as server:
        accuracy = evaluate_server(server, recipe, model="other", split="train")
    without_nine = sum("9" not in problem.text for problem in accuracy.problems)
    assert len(accuracy.problems) == 70 and accuracy.right == without_nine
    assert {path for path, _ in Stub.bodies} == {"/v1/chat/completions"}
    assert Stub.bodies[0][1]["model"] == "other"


def test_a_server_that_is_not_there_or_sends_nothing() -> None:
    recipe = read_recipe(ARITHMETIC)
    with stub() as server:
        Stub.broken = True
        with pytest.raises(ServerError, match="without text"):
            evaluate_server(server, recipe, problems=PROBLEMS[:1])
    with pytest.raises(ServerError, match="no server at"):
        evaluate_server(server, recipe)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    recipe = read_recipe(ARITHMETIC)
    with pytest.raises(WorkshopError, match=r"cannot evaluate: .* has no config.json"):
        evaluate_folder(tmp_path, recipe)
    with stub() as server, pytest.raises(WorkshopError, match="no problem to evaluate"):
        evaluate_server(server, recipe, problems=[])


def test_accuracy_by_level() -> None:
    problems = [Problem(f"{n}", "2", f"{n}?", level=1 + n % 2) for n in range(6)]
    rewards = (1.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    result = Accuracy(tuple(problems), tuple(" x" for _ in problems), rewards)
    table = accuracy_by_level({"before": result, "after": result})
    assert table.loc[(1, "before"), "right"] == 2 and table.loc[(2, "after"), "right"] == 1
    assert table["problems"].tolist() == [3] * 4
    low, high = wilson_interval(2, 3)
    assert table.loc[(1, "after"), ["low", "high"]].tolist() == [low, high]


def test_groups_are_sampled_as_the_recipe_says() -> None:
    done: list[tuple[int, int]] = []
    with StreamingServer(ttft_ms=1, itl_ms=1) as stub, ModelServer(stub.url) as server:
        frame = sample_groups(
            server, RECIPE, groups=3, size=4, seed=5, on_progress=lambda *at: done.append(at)
        )
        bodies = stub.bodies
    assert frame.groupby("group").size().tolist() == [4, 4, 4] and done[-1] == (12, 12)
    assert frame.groupby("group").problem.nunique().tolist() == [1, 1, 1]
    assert frame.problem.nunique() == 3 and (frame.reward == 0).all()
    assert {(b["temperature"], b["max_tokens"]) for b in bodies} == {(1.0, 6)}
    assert len({b["seed"] for b in bodies}) == 12, "or a group would be one answer eight times"
    assert all("messages" not in body for body in bodies)


def test_groups_that_cannot_be() -> None:
    server = ModelServer("http://127.0.0.1:9")
    with pytest.raises(WorkshopError, match="71 groups of 8: the recipe has 70 problems"):
        sample_groups(server, RECIPE, groups=71)
    chat = read_recipe(RECIPE.path, {"policy.tokenizer.chat_template": "default"})
    with pytest.raises(WorkshopError, match="plain prompts"):
        sample_groups(server, chat)
    with pytest.raises(ServerError, match="no server at"):
        sample_groups(server, RECIPE)


def test_models_in_memory() -> None:
    shape = ModelShape.named("mistral-7b")
    table = training_models(shape)
    each = shape.parameters / 2**30
    totals = table.groupby("algorithm").gib.sum()
    assert totals["PPO"] == pytest.approx((16 + 16 + 2 + 2) * each)
    assert totals["GRPO"] == pytest.approx((16 + 2) * each)
    assert totals["GRPO, no KL penalty"] == pytest.approx(16 * each)
    assert table.loc[~table.trained, ["gradients", "optimizer"]].to_numpy().sum() == 0


def accuracy(right: int, of: int = 30) -> Accuracy:
    problems = tuple(Problem(f"{n} + 0", str(n), f"{n}") for n in range(of))
    return Accuracy(problems, ("",) * of, tuple(float(n < right) for n in range(of)))


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"steps": 3}, ["every step was done"]),
        ({"served": "grpo/checkpoints/step_1"}, ["the checkpoint is served"]),
        ({"served": ""}, ["the checkpoint is served"]),
        ({"after": accuracy(10)}, ["it learned"]),
        ({"after": accuracy(29, of=29)}, ["both were asked the same"]),
    ],
)
def test_checks(changes: dict[str, Any], failed: list[str]) -> None:
    run = TrainingLog(2, ({"step": 1}, {"step": 2}), "/shared/grpo/checkpoints/step_2")
    given: dict[str, Any] = {"steps": 2, "served": "grpo/checkpoints/step_2"}
    given |= {"before": accuracy(6), "after": accuracy(28)} | changes
    checks = check_training(run, **given)
    assert [check.name for check in checks if not check.passed] == failed


# -- watching


class Scripted:
    """A cluster whose one Job goes through given states, a state a look."""

    profile = "local"

    def __init__(self, states: list[tuple[list[str], str]]) -> None:
        self.states = states
        self.looks = 0

    def observe(self, kind: str, name: str) -> Observation:
        self.looks = min(self.looks + 1, len(self.states))
        condition = self.states[self.looks - 1][1]
        conditions = [{"type": condition, "status": "True", "reason": "R", "message": "M"}]
        env = [{"name": "RUN", "value": "a"}, {"name": "OUTPUT_DIR", "value": "/shared/$(RUN)"}]
        spec = {"template": {"spec": {"containers": [{"name": "ray", "env": env}]}}}
        return Observation(
            {
                "kind": kind,
                "metadata": {"name": name},
                "spec": spec,
                "status": {"conditions": conditions if condition else []},
            }
        )

    def logs(self, kind: str, name: str, **_: Any) -> Any:
        lines = self.states[self.looks - 1][0]
        return (LogLine("grpo-0-abcde", 0, "ray", line) for line in lines)


START = marked_line("start", steps=2)
STEPS = [marked_line("step", step=n, reward=n / 2, step_s=0.1) for n in (1, 2)]


def watched(states: list[tuple[list[str], str]], **options: Any) -> TrainingLog:
    cluster: Any = Scripted(states)
    return watch_training(Workload(cluster, "grpo", "Job", "grpo"), **options)


def test_watching_ends_with_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("workshop_lib.training.watch._POLL_S", 0.01)
    saved = marked_line("saved", checkpoint="checkpoints/step_2")
    whole = [START, *STEPS, saved]
    run = watched([([], ""), (whole[:2], ""), (whole[:3], ""), (whole, "Complete")])
    assert (run.done, run.checkpoint) == (2, "/shared/a/checkpoints/step_2")
    lines = capsys.readouterr().out.splitlines()
    told = [["step 1/2", "reward 0.500"], ["step 2/2", "reward 1.000"]]
    assert [line.split("  ")[:2] for line in lines] == told


def test_watching_a_failure_or_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workshop_lib.training.watch._POLL_S", 0.01)
    last = "the trainer failed with exit code 2: RecipeError: unknown key grpo.sed"
    with pytest.raises(ClusterError, match=r"unknown key grpo\.sed; next: read its logs"):
        watched([([START], ""), ([START, last], "Failed")])
    with pytest.raises(ClusterError, match="R: M"):
        watched([([], "Failed")])
    with pytest.raises(WaitTimeoutError, match=r"not complete after 0\.05 s: 1 of 2 steps, reward"):
        watched([([START, STEPS[0]], "")], timeout_s=0.05)


# -- experiments

LORA_DIM = "policy.dtensor_cfg.lora_cfg.dim"
KEYS: list[tuple[str, list[Any]]] = [
    ("grpo.num_generations_per_prompt", [2, 8]),
    ("policy.generation.temperature", [0.2, 1.0]),
    ("loss_fn.reference_policy_kl_penalty", [0.0, 1.0]),
    ("loss_fn.ratio_clip_max", [0.02, 0.2]),
    ("policy.optimizer.kwargs.lr", [1e-6, 1e-4]),
    (LORA_DIM, [None, 8]),
]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The recipes that would be trained; every training is said to have one step."""
    asked: list[Any] = []

    def follow(arguments: Any, *, timeout_s: float) -> Any:
        pairs = [word for word in arguments if "=" in word]
        asked.append(read_recipe(arguments[0], dict(map(override, pairs))))
        yield dict.fromkeys(COLUMNS, 0.25) | {"step": 1, "group_means": [0.25]}

    monkeypatch.setattr(experiments, "follow", follow)
    return asked


@pytest.mark.parametrize(("key", "values"), KEYS)
def test_every_setting_makes_a_recipe_that_can_be_trained(
    jobs: list[Any], model: Path, key: str, values: list[Any]
) -> None:
    comparison = compare_settings(read_recipe(ARITHMETIC), key, values, model=model)
    for recipe, value in zip(jobs, values, strict=True):
        assert recipe.completions_per_step == ANSWERS
        translation = translate(recipe, problems=70, steps=6)
        assert translation.refused == [] and translation.steps == 6
        assert translation.watch_kl or translation.arguments["beta"] > 0, "KL is always recorded"
        assert bool(translation.lora) == (key == LORA_DIM and value is not None)
        assert translation.updates_per_step == (4 if "clip" in key else 1)
    assert comparison.frame.value.tolist() == [experiments._label(value) for value in values]
    assert comparison.summary().reward_last.tolist() == [0.25, 0.25]


def test_a_recipe_with_overrides_keeps_them(jobs: list[Any], model: Path) -> None:
    recipe = read_recipe(ARITHMETIC, {"grpo.seed": 7})
    compare_settings(
        recipe,
        KEYS[1][0],
        KEYS[1][1],
        model=model,
        also={
            "grpo.num_prompts_per_step": 2,
            "policy.train_global_batch_size": 16,
            "policy.train_micro_batch_size": 16,
        },
    )
    first = jobs[0]
    assert first.grpo.seed == 7 and first.completions_per_step == 16


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("policy.generation.temperature", [1.0], "give two or more values"),
        ("policy.generation.temperatur", [0.5, 1.0], "did you mean policy.generation.temperature"),
        ("policy.generation.temperature", [1.0, -1.0], "temperature is -1.0"),
        ("grpo.num_generations_per_prompt", [8, 5], "5 does not divide the 32 answers"),
    ],
)
def test_what_is_refused(
    jobs: list[Any], model: Path, key: str, values: list[Any], said: str
) -> None:
    with pytest.raises((TrainingError, RecipeError), match=said):
        compare_settings(read_recipe(ARITHMETIC), key, values, model=model)
    assert jobs == []


def test_what_is_changed_is_said() -> None:
    settings = small_settings("loss_fn.ratio_clip_max", steps=4)
    assert settings["policy.train_global_batch_size"] == ANSWERS // 4
    assert settings["grpo.max_num_steps"] == 4


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1e-6, "1e-6"),
        (2.5e-5, "2.5e-5"),
        (0.2, "0.2"),
        (0.0, "0"),
        (8, "8"),
        (None, "off"),
        (True, "true"),
        ("dapo", "dapo"),
    ],
)
def test_values_are_written_short(value: Any, label: str) -> None:
    assert experiments._label(value) == label
