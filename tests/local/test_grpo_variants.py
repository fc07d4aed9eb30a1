"""GRPO's variants, trained for real on a tiny model: LoRA and KL."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from grpo_helpers import ARITHMETIC, SMALL, make_tiny_model

from workshop_lib.serving.models import prepare
from workshop_lib.serving.models.files import problem_of
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.runs import read_completions, read_metrics
from workshop_lib.training.trainer import build_trainer, plan_training, train

LORA_CFG = "policy.dtensor_cfg.lora_cfg"
LORA = {"policy.dtensor_cfg._v2": True, f"{LORA_CFG}.enabled": True, f"{LORA_CFG}.dim": 4}
FAST = {"policy.optimizer.kwargs.lr": 1e-2}  # so that a few steps show
REFERENCE = {"grpo.skip_reference_policy_logprobs_calculation": False}


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(prepare(on_progress=lambda line: None), tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Any:
    """Train a tiny model with a reward that it can earn: by the length of its answers."""

    def run(name: str, overrides: dict[str, Any], **options: Any) -> Path:
        plan = plan_for(tiny_model, tmp_path / name, overrides, **options)
        train(plan, say=lambda line: None)
        return tmp_path / name

    return run


def even(completion: str, answer: str) -> float:
    """A reward that an untrained model earns every other time."""
    return float(len(completion) % 2 == 0)


def plan_for(model: Path, output: Path, overrides: dict[str, Any], **options: Any) -> Any:
    from dataclasses import replace

    recipe = read_recipe(ARITHMETIC, SMALL | FAST | overrides)
    plan = plan_training(recipe, output=output, model=model, **{"steps": 3} | options)
    return replace(plan, reward=even, reward_name="even")


def test_lora_trains_an_adapter_and_saves_a_whole_model(trained: Any, tiny_model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output = trained("lora", LORA)
    frame = read_metrics(output)
    assert frame.step.tolist() == [1, 2, 3] and (frame.grad_norm > 0).any()
    saved = output / "checkpoints/step_3"
    assert problem_of(saved) is None and (saved / "adapter/adapter_config.json").is_file()
    assert (saved / "adapter").stat().st_mode & 0o777 == 0o755
    ids = torch.arange(5, 25).view(1, -1)

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model.eval()(ids).logits

    before = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(str(saved), dtype=torch.float32)
    base = logits(before)
    assert not torch.allclose(logits(merged), base, atol=1e-4), "it learned nothing"
    apart = PeftModel.from_pretrained(before, str(saved / "adapter"))
    torch.testing.assert_close(logits(apart), logits(merged), atol=1e-5, rtol=1e-4)


def test_only_the_adapter_is_trained_and_prompts_are_shared(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from workshop_lib.training import trainer as trainers

    packed: list[Any] = []
    pack = trainers.pack
    monkeypatch.setattr(
        trainers, "pack", lambda *a, **k: packed.append(pack(*a, **k)) or packed[-1]
    )
    trainer = build_trainer(plan_for(tiny_model, tmp_path, LORA, steps=1), say=lambda line: None)
    learned = [name for name, part in trainer.model.named_parameters() if part.requires_grad]
    assert learned and all("lora_" in name for name in learned)
    frozen = {
        name: part.clone()
        for name, part in trainer.model.named_parameters()
        if not part.requires_grad
    }
    trainer.train()
    assert packed and None not in packed
    for name, part in trainer.model.named_parameters():
        if name in frozen:
            assert torch.equal(part, frozen[name]), name


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "LoRA"])
def test_kl_with_a_penalty_and_without(trained: Any, lora: dict[str, Any]) -> None:
    """The first step's policy is the reference; then it moves, and a penalty holds it back."""
    lora = lora | {"policy.optimizer.kwargs.lr": 2e-3}
    penalty = {"loss_fn.reference_policy_kl_penalty": 10.0}
    watched = read_metrics(trained("watched", lora | REFERENCE, steps=6))
    plain = read_metrics(trained("plain", lora, steps=6))
    held = read_metrics(trained("held", lora | REFERENCE | penalty, steps=6))
    assert plain.kl.isna().all()
    assert watched.kl.iloc[0] == pytest.approx(0, abs=1e-6) == held.kl.iloc[0]
    assert held.kl.tail(2).mean() < watched.kl.tail(2).mean() > 1e-5
    same = ["reward", "entropy", "grad_norm"]
    assert watched[same].values == pytest.approx(plain[same].values, abs=1e-5), "watching changes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [LORA, REFERENCE | {"loss_fn.reference_policy_kl_penalty": 0.1}],
    ids=["LoRA", "KL"],
)
def test_a_killed_run_goes_on(tiny_model: Path, tmp_path: Path, variant: dict[str, Any]) -> None:
    """Killed by SIGKILL after its third step; the rest is as if nothing had been."""
    import torch
    from safetensors.torch import load_file

    overrides = variant | {
        "checkpointing.save_period": 1,
        "checkpointing.save_optimizer": True,
        "checkpointing.keep_top_k": 2,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(plan_for(tiny_model, whole, overrides, steps=6), say=lambda line: None)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import json\n"
        "from test_grpo_variants import plan_for, train\n"
        "train(plan_for(Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]), steps=6))\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    command += [str(tiny_model), str(killed), json.dumps(overrides)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (killed / "checkpoints/step_3").exists():
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9, "it ended before it could be killed"
    train(plan_for(tiny_model, killed, overrides, steps=6, resume=True), say=lambda line: None)

    frames = [read_metrics(folder) for folder in (whole, killed)]
    numbers = ["reward", "kl", "entropy", "grad_norm", "mean_length"]
    assert frames[1].step.tolist() == [1, 2, 3, 4, 5, 6]
    assert frames[1][numbers].values == pytest.approx(
        frames[0][numbers].values, abs=1e-4, nan_ok=True
    )
    said = [read_completions(folder).completion.tolist() for folder in (whole, killed)]
    assert said[0] == said[1]
    states = [
        load_file(folder / "checkpoints/step_6/model.safetensors") for folder in (whole, killed)
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-4, rtol=0)
