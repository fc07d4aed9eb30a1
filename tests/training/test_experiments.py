"""Experiments for real, with a model that is trained in a moment: what runs, and what is left."""

import json
import os
import signal
import subprocess
import sys

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
def tiny_model(tmp_path_factory):
    return make_tiny_model(prepare(on_progress=lambda line: None), tmp_path_factory.mktemp("tiny"))


def trainers(above=None):
    """The experiments' processes below one of ours."""
    below = descendants(above or os.getpid())
    return [pid for pid in below if "training.train" in str(command_line(pid))]


def job(model, output, *, steps=10_000, **overrides):
    long = {"checkpointing.enabled": False, "grpo.max_num_steps": steps}
    changed = SMALL | long | overrides
    pairs = [f"{key}={json.dumps(value)}" for key, value in changed.items()]
    where = ["--output", str(output), "--model", str(model)]
    return [str(ARITHMETIC), *pairs, *where]


def test_two_values_of_a_setting(tiny_model):
    recipe = read_recipe(ARITHMETIC)
    comparison = compare_settings(recipe, RATE, [1e-5, 1e-2], steps=3, model=tiny_model)
    frame = comparison.frame
    assert frame.value.tolist() == ["1e-5"] * 3 + ["0.01"] * 3
    assert frame.step.tolist() == [1, 2, 3] * 2
    assert frame[["reward", "kl", "entropy", "grad_norm", "zero_std_share"]].notna().all().all()
    first = frame[frame.step == 1]
    assert first.entropy.nunique() == 1 and first.reward.nunique() == 1, "the same start"
    assert min(comparison.seconds) > 0
    assert not trainers(), "nothing trains on"


def test_leaving_early_ends_the_process(tiny_model, tmp_path):
    steps = follow(job(tiny_model, tmp_path / "out"))
    assert next(steps)["step"] == 1
    assert trainers()
    steps.close()  # what an interrupt in a notebook comes to
    assert not trainers() and not (tmp_path / "out").exists()


def test_what_fails_is_one_line(tiny_model, tmp_path):
    short = {"policy.max_total_sequence_length": 16}
    with pytest.raises(TrainingError, match=r"do not fit in policy\.max_total_sequence_length 16"):
        list(follow(job(tiny_model, tmp_path / "out", **short)))
    assert not trainers()


def test_nothing_trains_on_behind_a_killed_kernel(tiny_model, tmp_path):
    code = (
        "import json, sys\n"
        "from workshop_lib.training.experiments import follow\n"
        "for record in follow(json.loads(sys.argv[1])):\n"
        "    print(record['step'], flush=True)\n"
    )
    arguments = [sys.executable, "-c", code, json.dumps(job(tiny_model, tmp_path / "out"))]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout is not None and kernel.stdout.readline() == "1\n"
        (trainer,) = trainers(kernel.pid)
        kernel.send_signal(signal.SIGKILL)
    until(lambda: not is_running(trainer) and not (tmp_path / "out").exists(), timeout_s=300)
