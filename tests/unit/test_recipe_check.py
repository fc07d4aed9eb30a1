"""`workshop recipe check`: every error a line, and an exit code for CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.training.component import override
from workshop_lib.training.recipe import RecipeError, read_recipe
from workshop_lib.training.recipe.check import check_recipe, memory_problem
from workshop_lib.training.recipe.command import main
from workshop_lib.training.recipe.names import MOVED, NAMED, known_keys
from workshop_lib.training.recipe.schema import RecipeConfig

ARITHMETIC = data_path("recipes/arithmetic.yaml")
GYM = "policy: {model_name: m}\nenv: {should_use_nemo_gym: true, nemo_gym: {x: 1}}\n"
GYM += "data: {train: {dataset_name: gsm8k, env_name: nemo_gym, split_validation_size: 0.1}}\n"
GYM += "grpo: {penalize_malformed_thinking: true}\n"


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_right_recipe_is_one_line_and_zero(capsys: pytest.CaptureFixture[str]) -> None:
    recipes = sorted(data_path("recipes").glob("*.yaml"))
    whole = [str(path) for path in recipes if path.name != "base.yaml"]
    assert main(["check", *whole, "--gpu", "h100"]) == 0
    said = lines(capsys)
    assert len(said) == len(whole) and all(": right: " in line for line in said)


def test_every_error_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        f"defaults: {ARITHMETIC}\n"
        "grpo: {num_generation_per_prompt: 16, num_prompts_per_step: 7}\n"
        "loss_fn: {beta: 0.1}\n"
        "data: {dataset_name: gsm8k}\n"
        "policy: {train_global_batch_size: 64, generation: {max_new_tokens: 65}}\n"
    )
    assert main(["check", str(path)]) == 1
    said = lines(capsys)
    # What does not exist and what does not fit together are told at once.
    for part in (
        "did you mean grpo.num_generations_per_prompt?",
        "did you mean loss_fn.reference_policy_kl_penalty?",
        "it is now data.train.dataset_name",
        "train_global_batch_size 64 does not divide",
        "max_new_tokens 65 is more than",
    ):
        assert sum(part in line for line in said) == 1, (part, said)
    assert all(line.startswith(f"{path}: ") for line in said)


def test_wrong_types_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--set", "grpo.seed=x", "--set", "loss_fn.ratio_clip_min=-1", "--set", "zzz=1"]
    assert main(["check", str(ARITHMETIC), *wrong]) == 1
    said = lines(capsys)
    assert len(said) == 3
    assert [next(w for w in ("seed", "ratio", "zzz") if w in line) for line in said]


def test_one_wrong_file_among_right_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.yaml").write_text("grpo: [1\n")
    gone = tmp_path / "gone.yaml"
    assert main(["check", str(ARITHMETIC), str(tmp_path / "broken.yaml"), str(gone)]) == 1
    right, broken, missing = lines(capsys)
    assert ": right: " in right and "broken.yaml line 2" in broken
    assert "gone.yaml cannot be read" in missing


@pytest.mark.parametrize("name", ["sft", "dpo", "rm", "ppo", "distillation", "eval"])
def test_other_algorithms_are_refused_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(f"{name}: {{x: 1}}\npolicy: {{y: 2}}\nlogger: {{z: 3}}\n")
    assert main(["check", str(path)]) == 1
    (line,) = lines(capsys)
    assert f"this is a recipe for {name}" in line


def test_what_nothing_reads_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gym.yaml"
    path.write_text(GYM + "logger: {log_dir: '${oc.env:WS_NOT_SET}'}\n")
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "grpo.penalize_malformed_thinking is read by nothing" in said.err
    assert "the environment variable WS_NOT_SET must be set" in said.err
    with pytest.raises(RecipeError, match="WS_NOT_SET, which is not set"):
        read_recipe(path)


def test_the_switches_of_nemo_gym_are_no_environments(tmp_path: Path) -> None:
    path = tmp_path / "gym.yaml"
    path.write_text(GYM)
    assert list(read_recipe(path).config.env) == ["nemo_gym"]
    path.write_text(GYM.replace("nemo_gym: {x: 1}", "nemo_gym: true"))
    with pytest.raises(RecipeError, match=r"env\.nemo_gym is True"):
        read_recipe(path)


def test_memory_on_a_gpu() -> None:
    big = {"policy.model_name": "mistralai/Mistral-7B-v0.3", "policy.precision": "bfloat16"}
    recipe = read_recipe(ARITHMETIC, big)
    problem, note = memory_problem(recipe, "h100")
    assert "optimizer" in problem and "more GPUs" in problem and not note
    assert check_recipe(ARITHMETIC, big, gpu="h100").problems == (problem,)
    eight = read_recipe(ARITHMETIC, big | {"cluster.gpus_per_node": 8})
    assert memory_problem(eight, "h100") == ("", "")
    lora = {"policy.dtensor_cfg._v2": True, "policy.dtensor_cfg.lora_cfg.enabled": True}
    assert memory_problem(read_recipe(ARITHMETIC, big | lora), "h100") == ("", "")
    # Generation with the GPU to itself does not have to share it with the trainer.
    share = {"policy.generation.vllm_cfg.gpu_memory_utilization": 0.99}
    assert "generation takes" in memory_problem(read_recipe(ARITHMETIC, share), "a10g")[0]
    with pytest.raises(WorkshopError, match="is not known"):
        check_recipe(ARITHMETIC, gpu="abacus")


def test_memory_that_cannot_be_told() -> None:
    unknown = {"policy.model_name": "nobody/knows"}
    assert (
        "shape of nobody/knows is not known"
        in check_recipe(ARITHMETIC, unknown, gpu="h100").notes[0]
    )
    megatron = {"policy.dtensor_cfg.enabled": False, "policy.megatron_cfg.enabled": True}
    assert "not Megatron" in check_recipe(ARITHMETIC, megatron, gpu="h100").notes[0]
    assert check_recipe(ARITHMETIC, unknown).notes == ()


def test_prompts_that_leave_no_room() -> None:
    # "Question: What is 3 + 4? Answer:" has seven words.
    tight = {"policy.max_total_sequence_length": 12, "policy.generation.max_new_tokens": 6}
    (problem,) = check_recipe(ARITHMETIC, tight).problems
    assert "a prompt of data.train has 7 words" in problem and "leaves 6" in problem
    assert check_recipe(ARITHMETIC, tight | {"policy.max_total_sequence_length": 13}).problems == ()


def test_the_names_that_are_given_exist() -> None:
    keys = set(known_keys(RecipeConfig))
    free = {"policy.optimizer.kwargs.lr", "policy.optimizer.kwargs.weight_decay"}
    inside = {key.replace("data.train.", "data.default.") for key in (*MOVED.values(),)}
    inside = {key.replace("data.validation.", "data.default.") for key in inside}
    given = {*inside, *NAMED.values()} - free
    assert {key for key in given if key not in keys and "environment variable" not in key} == set()
    assert set(MOVED) & keys == set()


def test_a_value_of_the_command_line_is_read_as_in_a_file() -> None:
    assert override("policy.optimizer.kwargs.lr=1e-5") == ("policy.optimizer.kwargs.lr", 1e-5)
    for wrong in ("a=[1", "a=!!int x", "a=" + "1" * 5000):
        with pytest.raises(RecipeError, match="the value is not YAML"):
            override(wrong)


def test_as_a_command() -> None:
    command = [sys.executable, "-m", "workshop_lib.tools.cli", "recipe", "check", str(ARITHMETIC)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and ": right: " in done.stdout
    bad = [*command, "--set", "grpo"]
    done = subprocess.run(bad, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "KEY=VALUE" in done.stderr and "Traceback" not in done.stderr
