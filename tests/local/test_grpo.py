"""GRPO for real: TRL on the CPU, on the laptop's model and task."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from grpo_helpers import ARITHMETIC, SMALL, make_tiny_model

from workshop_lib.data import data_path
from workshop_lib.serving.models import prepare
from workshop_lib.training import math_verify_reward
from workshop_lib.training.asking import evaluate_folder
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.record import RunFolder
from workshop_lib.training.runs import (
    judge,
    marked_line,
    read_completions,
    read_log,
    read_metrics,
    read_run,
    steps_to_reward,
    with_judge,
)
from workshop_lib.training.trainer import plan_training, train


@pytest.fixture(scope="module")
def model() -> Path:
    return prepare(on_progress=lambda line: None)


@pytest.fixture(scope="module")
def tiny_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(model, tmp_path_factory.mktemp("tiny"))


def test_three_small_steps_as_a_process(model: Path, tmp_path: Path) -> None:
    """The command line, read while it runs; the checkpoint is a model."""
    output = tmp_path / "run"
    command = [sys.executable, "-m", "workshop_lib.training.train", str(ARITHMETIC)]
    command += [f"{key}={value}" for key, value in SMALL.items()]
    command += ["--output", str(output), "--model", str(model), "--steps", "3"]
    seen: set[int] = set()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while process.poll() is None:
            seen.add(len(read_metrics(output)))
            time.sleep(0.2)
        printed = process.stdout.read() if process.stdout else ""
    assert process.returncode == 0, printed
    assert len(seen & {1, 2}) >= 1, "no step was seen before the end"
    steps = [line for line in printed.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in steps] == ["step 1/3", "step 2/3", "step 3/3"]

    frame = read_metrics(output)
    assert frame.step.tolist() == [1, 2, 3]
    assert frame.reward.between(0, 1).all() and frame.group_means.map(len).eq(2).all()
    numbers = ["reward_std", "entropy", "grad_norm", "mean_length", "step_s", "generation_s"]
    assert frame[numbers].notna().all().all() and (frame.step_s > frame.generation_s).all()
    rows = read_completions(output)
    assert len(rows) == 24 and rows.groupby("step").reward.mean().tolist() == pytest.approx(
        frame.reward.tolist()
    )
    assert json.loads((output / "run.json").read_text())["steps"] == 3

    checkpoint = RunFolder(output).newest()
    assert checkpoint.name == "step_3"
    assert [path.name for path in checkpoint.parent.iterdir()] == ["step_3"]
    recipe = read_recipe(ARITHMETIC)
    accuracy = evaluate_folder(checkpoint, recipe)
    assert len(accuracy.completions) == 30 and 0 <= accuracy.share <= 1
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "holds a run already" in refused.stderr


def test_a_seed_reproduces_a_run(tiny_model: Path, tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = read_recipe(ARITHMETIC, SMALL)
        output = tmp_path / name
        plan = plan_training(recipe, output=output, model=tiny_model, steps=2, seed=seed)
        train(plan, say=lambda line: None)
        runs.append(read_completions(output).completion.tolist())
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2], ids=["one update a step", "two updates a step"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tiny_model: Path, tmp_path: Path, updates: int
) -> None:
    """Killed by SIGKILL in its sixth step, in the second epoch; resumed from the fifth."""
    import torch
    from safetensors.torch import load_file

    overrides = {
        **SMALL,
        "policy.train_global_batch_size": 8 // updates,
        "policy.train_micro_batch_size": 8 // updates,
        "loss_fn.force_on_policy_ratio": updates == 1,
        "policy.optimizer.kwargs.lr": 1e-3,  # so that a wrong step shows
        "data.train.data_path": str(tmp_path / "problems.jsonl"),
        "checkpointing.save_period": 1,
        "checkpointing.save_optimizer": True,
        "checkpointing.keep_top_k": 2,
    }
    problems = data_path("problems/sums-train.jsonl").read_text().splitlines()[:8]
    (tmp_path / "problems.jsonl").write_text("\n".join(problems) + "\n")  # 4 steps an epoch

    def run(name: str, **options: bool) -> list[str]:
        said: list[str] = []
        recipe = read_recipe(ARITHMETIC, overrides)
        output = tmp_path / name
        plan = plan_training(recipe, output=output, model=tiny_model, steps=8, **options)
        train(plan, say=said.append, report=said.append)
        return said

    assert read_log(run("whole")).done == 8
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "workshop_lib.training.train", str(ARITHMETIC)]
    command += [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    command += ["--output", str(killed), "--model", str(tiny_model), "--steps", "8"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (killed / "checkpoints/step_5").exists():
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9, "it ended before it could be killed"
    said = run("killed", resume=True)
    assert any(line.startswith("Going on from") for line in said)
    # What a reader of both pods' logs gets: the steps before are kept, those after are done anew.
    earlier = [marked_line("step", step=step, reward=0.0) for step in range(1, 8)]
    assert [r["step"] for r in read_log([*earlier, *said]).records] == list(range(1, 9))
    assert read_log([*earlier, *said]).frame.reward.iloc[-1] == read_metrics(killed).reward.iloc[-1]

    assert [path.name for path in (killed / "checkpoints").iterdir() if path.name[0] == "."] == []
    whole, again = (read_metrics(tmp_path / name) for name in ("whole", "killed"))
    assert again.step.tolist() == list(range(1, 9))
    assert again.elapsed_s.is_monotonic_increasing
    wrote = [read_completions(tmp_path / name).completion.tolist() for name in ("whole", "killed")]
    assert wrote[0] == wrote[1]
    numbers = ["reward", "entropy", "grad_norm", "mean_length"]
    assert again[numbers].values == pytest.approx(whole[numbers].values, abs=1e-4)
    states = [
        load_file(tmp_path / name / "checkpoints/step_8/model.safetensors")
        for name in ("whole", "killed")
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-4, rtol=0)


def test_penalty_chat_and_two_updates_a_step(tiny_model: Path, tmp_path: Path) -> None:
    """What the laptop's own recipe leaves out: KL, a template, off-policy updates."""
    overrides = SMALL | {
        "policy.train_global_batch_size": 4,
        "policy.train_micro_batch_size": 2,
        "policy.max_total_sequence_length": 128,
        "policy.tokenizer.chat_template": "default",
        "loss_fn.force_on_policy_ratio": False,
        "loss_fn.reference_policy_kl_penalty": 0.05,
        "grpo.skip_reference_policy_logprobs_calculation": False,
        "grpo.normalize_rewards": False,
        "loss_fn.token_level_loss": False,
        "checkpointing.enabled": False,
    }
    plan = plan_training(
        read_recipe(ARITHMETIC, overrides), output=tmp_path, model=tiny_model, steps=2
    )
    said: list[str] = []
    train(plan, say=said.append)
    assert RunFolder(tmp_path).newest().name == "step_2", "the last step is always saved"
    frame = read_metrics(tmp_path)
    assert frame.step.tolist() == [1, 2]
    assert frame.kl.notna().all() and frame.kl.iloc[0] >= 0
    assert len(read_completions(tmp_path)) == 16
    assert set(read_completions(tmp_path).answer) - {""}
    assert any(line.startswith("step 2/2  reward 0.000  std 0.000  kl 0.0") for line in said)


def test_a_prompt_that_does_not_fit_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    overrides = SMALL | {"policy.max_total_sequence_length": 16}
    plan = plan_training(
        read_recipe(ARITHMETIC, overrides), output=tmp_path / "run", model=tiny_model
    )
    with pytest.raises(Exception, match=r"do not fit in policy\.max_total_sequence_length 16"):
        train(plan, say=lambda line: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_reward_rises(model: Path, tmp_path: Path, seed: int) -> None:
    """Mean reward of three consecutive steps at least 0.9, within 2 minutes of training.

    Both are promised to learners. A quiet machine with 2 cores takes half of that time.
    """
    recipe = read_recipe(ARITHMETIC)
    plan = plan_training(recipe, output=tmp_path, model=model, seed=seed)
    result = train(plan, say=lambda line: print(line, flush=True))
    frame = read_metrics(tmp_path)
    reached = steps_to_reward(frame, reward=0.9, consecutive=3)
    assert reached is not None, frame.reward.tolist()
    elapsed_s = float(frame.set_index("step").elapsed_s[reached])
    print(
        f"seed {seed}: step {reached} after {elapsed_s:.0f} s; {frame.step_s.median():.1f} s a step"
    )
    assert elapsed_s <= 120
    before, after = (evaluate_folder(folder, recipe) for folder in (model, result.checkpoint))
    print(f"held out: {before.right} of 30 before, {after.right} of 30 after")
    assert after.right >= before.right + 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verifier", "steps"), [("math", 6), ("math_verify", 3)], ids=["hacked", "cured"]
)
def test_the_reward_is_hacked_and_the_verifier_cures_it(
    model: Path, tmp_path: Path, verifier: str, steps: int
) -> None:
    """Live what `data/recorded/trl/hacked` and `cured` recorded: echoes are all that is learned."""
    overrides = {
        "data.default.env_name": verifier,
        f"env.{verifier}.num_workers": 2,
        "grpo.max_num_steps": steps,
    }
    recipe = read_recipe(data_path("recipes/hackable.yaml"), overrides)
    train(plan_training(recipe, output=tmp_path, model=model, seed=1), say=print)
    run = with_judge(read_run(tmp_path), math_verify_reward)
    last = run.frame.tail(3)
    if verifier == "math":
        assert judge(run.frame).kind == "hacking"
        assert last["reward"].mean() > 0.8 and last["right_share"].mean() < 0.1
    else:
        assert judge(run.frame).kind != "hacking"
        assert run.frame["right_share"].tolist() == pytest.approx(run.frame["reward"].tolist())


def test_an_answer_may_fill_the_sequence(tiny_model: Path, tmp_path: Path) -> None:
    """As NeMo RL's own grpo_math_1B.yaml has it: as many new tokens as the whole sequence."""
    recipe = read_recipe(ARITHMETIC, SMALL | {"policy.generation.max_new_tokens": 64})
    train(plan_training(recipe, output=tmp_path, model=tiny_model, steps=1), say=print)
    # The longest prompt has 13 tokens.
    assert 40 < read_metrics(tmp_path).mean_length.iloc[0] <= 51
