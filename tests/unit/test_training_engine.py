"""What the engine refuses before anything starts, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workshop_lib.data import data_path
from workshop_lib.training.checkpoints import CheckpointError, Checkpoints
from workshop_lib.training.engine import TrainingError, latest_checkpoint, plan_training
from workshop_lib.training.process import prepare_environment
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.recorder import Recorder
from workshop_lib.training.run_folder import claim
from workshop_lib.training.runs import METRICS_FILE, read_completions, read_metrics
from workshop_lib.training.sampling import Collected, PromptStream
from workshop_lib.training.train import main

ARITHMETIC = data_path("recipes/arithmetic.yaml")


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
    recipe = read_recipe(ARITHMETIC, lora | {"grpo.use_dynamic_sampling": True})
    described = plan_training(recipe, output=tmp_path / "run", model=model).describe()
    assert described.endswith("; LoRA of rank 8; groups without spread replaced")


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
            ["grpo.use_dynamic_sampling=true", "grpo.batch_multiplier=9"],
            "grpo.num_prompts_per_step x grpo.batch_multiplier is 72, data.train has 70 problems",
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
    claim(plan)
    assert not (tmp_path / METRICS_FILE).exists()
    assert not (tmp_path / "checkpoints").exists()
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["settings"]["grpo"]["seed"] == about["seed"] == 42
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
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with (
        pytest.raises(CheckpointError, match=r"step_12 cannot be saved: .*No space left"),
        checkpoints.writing(12) as folder,
    ):
        save(folder)
        raise OSError(28, "No space left on device")
    with pytest.raises(CheckpointError, match="is not whole"), checkpoints.writing(12) as folder:
        (folder / "config.json").write_text("{}")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        latest_checkpoint(tmp_path)
    for step in (9, 12):
        with checkpoints.writing(step) as folder:
            assert checkpoints.steps() == [9] * (step > 9)
            save(folder)
    assert latest_checkpoint(tmp_path).name == "step_12"


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / ".step_1.partial-99999").mkdir()  # of a writer that was killed
    for step in (2, 4, 6, 10):
        with checkpoints.writing(step) as folder:
            save(folder, state=step < 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_6"]
    assert checkpoints.newest().name == "step_10"
    assert checkpoints.newest_to_resume().name == "step_6", "step 10 has no optimizer"
    checkpoints.forget_after(6)
    assert checkpoints.steps() == [6]


def test_what_cannot_be_resumed_is_refused(tmp_path: Path, model: Path) -> None:
    recipe = read_recipe(ARITHMETIC)
    output = tmp_path / "run"
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        plan_training(recipe, output=output, model=model, resume=True)
    plan = plan_training(recipe, output=output, model=model)
    claim(plan)
    rows = [{"step": 1, "elapsed_s": 5.0}, {"step": 2, "elapsed_s": 9.5}, {"step": 3}]
    (output / METRICS_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"st')
    with plan.checkpoints.writing(2) as folder:
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
    dynamic = read_recipe(ARITHMETIC, {"grpo.use_dynamic_sampling": True})
    with pytest.raises(TrainingError, match="started with another dynamic_sampling"):
        plan_training(dynamic, output=output, model=model, resume=True)
    with pytest.raises(TrainingError, match="is of step 2 and 2 steps are wanted; raise --steps"):
        plan_training(recipe, output=output, model=model, resume=True, steps=2)
    assert len((output / METRICS_FILE).read_text().splitlines()) == 4, "nothing was changed"

    plan = plan_training(recipe, output=output, model=model, resume=True, steps=20)
    assert plan.resume_from == output / "checkpoints/step_2"
    assert claim(plan) == 9.5
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
    recorder.trainer = SimpleNamespace(
        seconds={},
        _logs={
            "prompt": ["p", "p", "q", "q"],
            "completion": [" 7", " 8", " 8", " 8"],
            "rewards": {"first_integer": [1.0, 0.0, 1.0, 1.0]},
            "advantages": [0.7, -0.7, 0.0, float("nan")],
        },
    )
    recorder.begin()
    recorder.trainer.seconds = {"generation": 1.5, "reward": 0.25}
    logs: dict[str, Any] = {"reward": 0.75, "reward_std": 0.5, "loss": float("nan")}
    recorder.record(2, logs | {"grad_norm": 3.0, "frac_reward_zero_std": 0.5})
    # Readable while the file is open.
    frame = read_metrics(tmp_path)
    assert frame.step.tolist() == [1] and frame.group_means.tolist() == [[0.5, 1.0]]
    assert frame.generation_s.tolist() == [1.5] and frame.loss.isna().all()
    assert said[0].startswith("step  1/10  reward 0.750  std 0.500  kl -  grad norm 3.00  ")
    rows = read_completions(tmp_path)
    assert rows.group.tolist() == [0, 0, 1, 1] and rows.answer.tolist() == ["7", "7", "8", "8"]
    recorder.record(4, logs | {"grad_norm": 0.0, "kl": 0.01})
    assert "kl 0.0100" in said[1]
    recorder.close()
    assert read_metrics(tmp_path).step.tolist() == [1, 2]


def test_the_recorder_counts_what_was_thrown_away(tmp_path: Path) -> None:
    """As in NeMo RL: the reward is of all answers that were sampled."""
    said: list[str] = []
    recorder = Recorder(
        tmp_path, group_size=2, updates_per_step=1, steps=1, answers={}, say=said.append
    )
    collected = Collected()
    rows = [{"prompt": "p"}, {"prompt": "p"}, {"prompt": "q"}, {"prompt": "q"}]
    words = [["a", "b", "c", "d"]]
    collected.add(rows, words, [[1.0], [1.0], [0.0], [1.0]], size=2, wanted=2)
    collected.add(rows, words, [[1.0], [0.0], [0.0], [1.0]], size=2, wanted=2)
    assert collected.generated == [["c", "d", "a", "b"]] and collected.discarded == 1
    recorder.trainer = SimpleNamespace(
        seconds={},
        collected=collected,
        _logs={
            "prompt": [row["prompt"] for row in collected.rows],
            "completion": collected.generated[0],
            "rewards": {"first_integer": [row[0] for row in collected.rewards]},
            "advantages": [-1.0, 1.0, 1.0, -1.0],
        },
    )
    recorder.begin()
    recorder.record(1, {"reward": 0.5, "reward_std": 0.6, "frac_reward_zero_std": 0.0})
    recorder.close()
    (record,) = read_metrics(tmp_path).to_dict("records")
    assert (record["reward"], record["filtered_reward"], record["batches"]) == (0.625, 0.5, 2)
    assert record["zero_std_share"] == 0.25
    assert "reward 0.625  kept 0.500 of 2 batches" in said[0]


def test_prompts_come_in_the_order_of_trls_sampler() -> None:
    from trl.trainer.utils import RepeatSampler

    theirs = RepeatSampler(range(7), mini_repeat_count=1, batch_size=3, seed=5)
    wanted = [*theirs, *theirs]  # two epochs, the seventh problem of each left out
    stream = PromptStream(7, 3, seed=5)
    assert [index for _ in range(4) for index in stream.take()] == wanted
    later = PromptStream(7, 3, seed=5)
    later.batches = 3
    assert later.take() == wanted[9:]
    with pytest.raises(ValueError, match="batches of 8 of 7 problems"):
        PromptStream(7, 8, seed=5)
