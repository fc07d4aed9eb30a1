"""GRPO for real: TRL on the CPU, on the laptop's model and task, and its variants."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from grpo_helpers import ARITHMETIC, SMALL, held_out, make_tiny_model, trained

from workshop_lib.data import data_path
from workshop_lib.serving.models import prepare
from workshop_lib.serving.models.files import problem_of
from workshop_lib.training import math_verify_reward, trainer
from workshop_lib.training.plan import plan_training
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
from workshop_lib.training.trainer import build_trainer, train

LORA_CFG = "policy.dtensor_cfg.lora_cfg"
LORA = {"policy.dtensor_cfg._v2": True, f"{LORA_CFG}.enabled": True, f"{LORA_CFG}.dim": 4}
REFERENCE = {"grpo.skip_reference_policy_logprobs_calculation": False}


@pytest.fixture(scope="module")
def model():
    return prepare(on_progress=lambda line: None)


@pytest.fixture(scope="module")
def tiny_model(model, tmp_path_factory):
    return make_tiny_model(model, tmp_path_factory.mktemp("tiny"))


def command(model, output, overrides):
    """The command line of a small training."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in (SMALL | overrides).items()]
    where = ["--output", str(output), "--model", str(model)]
    return [sys.executable, "-m", "workshop_lib.training.train", str(ARITHMETIC), *pairs, *where]


def test_three_small_steps_as_a_process(model, tmp_path):
    """The command line, read while it runs; the checkpoint is a model."""
    output, seen = tmp_path / "run", set()
    words = command(model, output, {"grpo.max_num_steps": 3})
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while process.poll() is None:
            seen.add(len(read_metrics(output)))
            time.sleep(0.2)
        printed = process.stdout.read()
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
    means = rows.groupby("step").reward.mean().tolist()
    assert len(rows) == 24 and means == pytest.approx(frame.reward.tolist())
    assert json.loads((output / "run.json").read_text())["steps"] == 3
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["checkpoints"]
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step_3"]
    accuracy = held_out(RunFolder(output).newest(), read_recipe(ARITHMETIC))
    assert len(accuracy.completions) == 30 and 0 <= accuracy.share <= 1
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "holds a run already" in refused.stderr


def test_a_seed_reproduces_a_run(tiny_model, tmp_path):
    said = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        wishes = {"grpo.max_num_steps": 2, "grpo.seed": seed}
        trained(tiny_model, tmp_path / name, LORA | wishes)
        said.append(read_completions(tmp_path / name).completion.tolist())
    assert said[0] == said[1] != said[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("updates", "variant"),
    [(1, {}), (2, {}), (1, LORA), (1, REFERENCE | {"loss_fn.reference_policy_kl_penalty": 0.1})],
    ids=["one update a step", "two updates a step", "LoRA", "KL"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(tiny_model, tmp_path, updates, variant):
    """Killed by SIGKILL in its sixth step, in the second epoch; resumed from the fifth."""
    import torch
    from safetensors.torch import load_file

    overrides = variant | {
        "policy.train_global_batch_size": 8 // updates,
        "policy.train_micro_batch_size": 8 // updates,
        "loss_fn.force_on_policy_ratio": updates == 1,
        "policy.optimizer.kwargs.lr": 1e-3,  # so that a wrong step shows
        "data.train.data_path": str(tmp_path / "problems.jsonl"),
        "checkpointing.save_period": 1,
        "checkpointing.save_optimizer": True,
        "checkpointing.keep_top_k": 2,
        "grpo.max_num_steps": 8,
    }
    problems = data_path("problems/sums-train.jsonl").read_text().splitlines()[:8]
    (tmp_path / "problems.jsonl").write_text("\n".join(problems) + "\n")  # 4 steps an epoch
    folders = whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert read_log(trained(tiny_model, whole, overrides, report=True)).done == 8
    with subprocess.Popen(
        command(tiny_model, killed, overrides), stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (killed / "checkpoints/step_5").exists():
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9, "it ended before it could be killed"
    said = trained(tiny_model, killed, overrides, resume=True, report=True)
    assert any(line.startswith("Going on from") for line in said)
    # What a reader of both pods' logs gets: the steps before are kept, those after are done anew.
    earlier = [marked_line("step", step=step, reward=0.0) for step in range(1, 8)]
    assert [r["step"] for r in read_log([*earlier, *said]).records] == list(range(1, 9))
    assert not list(killed.rglob(".*"))

    frames = [read_metrics(folder) for folder in folders]
    assert frames[1].step.tolist() == list(range(1, 9))
    assert frames[1].elapsed_s.is_monotonic_increasing
    wrote = [read_completions(folder).completion.tolist() for folder in folders]
    assert wrote[0] == wrote[1]
    numbers = ["reward", "kl", "entropy", "grad_norm", "mean_length"]
    values = [frame[numbers].values for frame in frames]
    assert values[1] == pytest.approx(values[0], abs=1e-4, nan_ok=True)
    states = [load_file(folder / "checkpoints/step_8/model.safetensors") for folder in folders]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-4, rtol=0)


def test_penalty_chat_and_two_updates_a_step(tiny_model, tmp_path):
    """What the laptop's own recipe leaves out: KL, a template, off-policy updates."""
    overrides = REFERENCE | {
        "policy.train_global_batch_size": 4,
        "policy.train_micro_batch_size": 2,
        "policy.max_total_sequence_length": 128,
        "policy.tokenizer.chat_template": "default",
        "loss_fn.force_on_policy_ratio": False,
        "loss_fn.reference_policy_kl_penalty": 0.05,
        "grpo.normalize_rewards": False,
        "loss_fn.token_level_loss": False,
        "checkpointing.enabled": False,
        "grpo.max_num_steps": 2,
    }
    said = trained(tiny_model, tmp_path, overrides)
    assert RunFolder(tmp_path).newest().name == "step_2", "the last step is always saved"
    frame = read_metrics(tmp_path)
    assert frame.step.tolist() == [1, 2] and frame.kl.iloc[0] >= 0
    assert len(read_completions(tmp_path)) == 16
    assert set(read_completions(tmp_path).answer) - {""}
    assert any(line.startswith("step 2/2  reward 0.000  std 0.000  kl 0.0") for line in said)


def test_how_long_answers_may_be(tiny_model, tmp_path):
    """A prompt that does not fit is refused; NeMo RL's own value fills the sequence."""
    with pytest.raises(Exception, match=r"do not fit in policy\.max_total_sequence_length 16"):
        trained(tiny_model, tmp_path / "run", {"policy.max_total_sequence_length": 16})
    assert not (tmp_path / "run").exists()
    full = {"policy.generation.max_new_tokens": 64, "grpo.max_num_steps": 1}
    trained(tiny_model, tmp_path / "full", full)
    # The longest prompt has 13 tokens.
    assert 40 < read_metrics(tmp_path / "full").mean_length.iloc[0] <= 51


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_reward_rises(model, tmp_path, seed):
    """Mean reward of three consecutive steps at least 0.9; `make bench` holds it to 2 minutes."""
    recipe = read_recipe(ARITHMETIC, {"grpo.seed": seed})
    checkpoint = train(plan_training(recipe, output=tmp_path, model=model))
    frame = read_metrics(tmp_path)
    assert steps_to_reward(frame, reward=0.9, consecutive=3) is not None, frame.reward.tolist()
    before, after = (held_out(folder, recipe) for folder in (model, checkpoint))
    print(f"held out: {before.right} of 30 before, {after.right} of 30 after")
    assert after.right >= before.right + 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verifier", "steps"), [("math", 6), ("math_verify", 3)], ids=["hacked", "cured"]
)
def test_the_reward_is_hacked_and_the_verifier_cures_it(model, tmp_path, verifier, steps):
    """Live what `data/recorded/trl/hacked` and `cured` recorded: echoes are all that is learned."""
    overrides = {
        "data.default.env_name": verifier,
        f"env.{verifier}.num_workers": 2,
        "grpo.max_num_steps": steps,
        "grpo.seed": 1,
    }
    recipe = read_recipe(data_path("recipes/hackable.yaml"), overrides)
    train(plan_training(recipe, output=tmp_path, model=model))
    run = with_judge(read_run(tmp_path), math_verify_reward)
    last = run.frame.tail(3)
    if verifier == "math":
        assert judge(run.frame).kind == "hacking"
        assert last["reward"].mean() > 0.8 and last["right_share"].mean() < 0.1
    else:
        assert judge(run.frame).kind != "hacking"
        assert run.frame["right_share"].tolist() == pytest.approx(run.frame["reward"].tolist())


# -- variants, with a reward that an untrained model earns every other time


def even(completion, answer):
    return float(len(completion) % 2 == 0)


def plan_for(model, output, overrides, steps=3):
    fast = {"policy.optimizer.kwargs.lr": 1e-2, "grpo.max_num_steps": steps}
    recipe = read_recipe(ARITHMETIC, SMALL | fast | overrides)
    plan = plan_training(recipe, output=output, model=model)
    return replace(plan, reward=even, reward_name="even")


def test_lora_trains_an_adapter_and_saves_a_whole_model(tiny_model, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    saved = train(plan_for(tiny_model, tmp_path, LORA))
    assert (read_metrics(tmp_path).grad_norm > 0).any()
    assert problem_of(saved) is None and (saved / "adapter/adapter_config.json").is_file()
    assert (saved / "adapter").stat().st_mode & 0o777 == 0o755
    ids = torch.arange(5, 25).view(1, -1)

    def logits(model):
        with torch.no_grad():
            return model.eval()(ids).logits

    before = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(str(saved), dtype=torch.float32)
    base = logits(before)
    assert not torch.allclose(logits(merged), base, atol=1e-4), "it learned nothing"
    apart = PeftModel.from_pretrained(before, str(saved / "adapter"))
    torch.testing.assert_close(logits(apart), logits(merged), atol=1e-5, rtol=1e-4)


def test_only_the_adapter_is_trained_and_prompts_are_shared(tiny_model, tmp_path, monkeypatch):
    import torch

    packed, pack = [], trainer.pack
    monkeypatch.setattr(trainer, "pack", lambda *a, **k: packed.append(pack(*a, **k)) or packed[-1])
    built = build_trainer(plan_for(tiny_model, tmp_path, LORA, steps=1), say=lambda line: None)
    parts = dict(built.model.named_parameters())
    learned = [name for name, part in parts.items() if part.requires_grad]
    assert learned and all("lora_" in name for name in learned)
    frozen = {name: part.clone() for name, part in parts.items() if not part.requires_grad}
    built.train()
    assert packed and None not in packed
    assert all(torch.equal(parts[name], part) for name, part in frozen.items())


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "LoRA"])
def test_kl_with_a_penalty_and_without(tiny_model, tmp_path, lora):
    """The first step's policy is the reference; then it moves, and a penalty holds it back."""
    lora = lora | {"policy.optimizer.kwargs.lr": 2e-3}
    penalty = REFERENCE | {"loss_fn.reference_policy_kl_penalty": 10.0}
    wishes = {"watched": REFERENCE, "plain": {}, "held": penalty}
    runs = {}
    for name, wish in wishes.items():
        train(plan_for(tiny_model, tmp_path / name, lora | wish, steps=6), say=lambda line: None)
        runs[name] = read_metrics(tmp_path / name)
    watched, plain, held = runs.values()
    assert plain.kl.isna().all()
    assert watched.kl.iloc[0] == pytest.approx(0, abs=1e-6) == held.kl.iloc[0]
    assert held.kl.tail(2).mean() < watched.kl.tail(2).mean() > 1e-5
    same = ["reward", "entropy", "grad_norm"]
    assert watched[same].values == pytest.approx(plain[same].values, abs=1e-5), "watching changes"
