"""Experiments for real, with a model that is trained in a moment: what runs, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grpo_helpers import ARITHMETIC, SMALL, make_tiny_model
from local_helpers import until

from workshop_lib.cluster.local.processes import command_line, descendants, is_running
from workshop_lib.serving.models import prepare
from workshop_lib.training.experiments import compare_settings, follow
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.record import TrainingError

RATE = "policy.optimizer.kwargs.lr"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(prepare(on_progress=lambda line: None), tmp_path_factory.mktemp("tiny"))


def trainers(above: int | None = None) -> list[int]:
    """The experiments' processes below one of ours."""
    below = descendants(above or os.getpid())
    return [pid for pid in below if "training.train" in str(command_line(pid))]


def job(model: Path, output: Path, *, steps: int = 10_000, **overrides: Any) -> list[str]:
    changed = SMALL | {"checkpointing.enabled": False} | overrides
    pairs = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    where = ["--output", str(output), "--model", str(model), "--steps", str(steps)]
    return [str(ARITHMETIC), *pairs, *where]


def test_two_values_of_a_setting(tiny_model: Path) -> None:
    recipe = read_recipe(ARITHMETIC)
    comparison = compare_settings(recipe, RATE, [1e-5, 1e-2], steps=3, also=SMALL, model=tiny_model)
    frame = comparison.frame
    assert frame.value.tolist() == ["1e-5"] * 3 + ["0.01"] * 3
    assert frame.step.tolist() == [1, 2, 3] * 2
    assert frame[["reward", "kl", "entropy", "grad_norm", "zero_std_share"]].notna().all().all()
    first = frame[frame.step == 1]
    assert first.entropy.nunique() == 1 and first.reward.nunique() == 1, "the same start"
    assert min(comparison.seconds) > 0
    assert not trainers(), "nothing trains on"


def test_leaving_early_ends_the_process(tiny_model: Path, tmp_path: Path) -> None:
    steps = follow(job(tiny_model, tmp_path / "out"), timeout_s=300)
    assert next(steps)["step"] == 1
    assert trainers()
    steps.close()  # what an interrupt in a notebook comes to
    assert not trainers() and not (tmp_path / "out").exists()


def test_what_fails_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    short = {"policy.max_total_sequence_length": 16}
    with pytest.raises(TrainingError, match=r"do not fit in policy\.max_total_sequence_length 16"):
        list(follow(job(tiny_model, tmp_path / "out", **short), timeout_s=300))
    with pytest.raises(TrainingError, match=r"was not done after 0\.1 s"):
        list(follow(job(tiny_model, tmp_path / "out"), timeout_s=0.1))
    assert not trainers()


def test_nothing_trains_on_behind_a_killed_kernel(tiny_model: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from workshop_lib.training.experiments import follow\n"
        "for record in follow(json.loads(sys.argv[1]), timeout_s=600):\n"
        "    print(record['step'], flush=True)\n"
    )
    arguments = [sys.executable, "-c", code, json.dumps(job(tiny_model, tmp_path / "out"))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout is not None and kernel.stdout.readline() == "1\n"
        (trainer,) = trainers(kernel.pid)
        kernel.send_signal(signal.SIGKILL)
    until(lambda: not is_running(trainer) and not (tmp_path / "out").exists(), timeout_s=300)
