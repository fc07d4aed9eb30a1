"""What is refused before a training starts, its folder and records, experiments, watching a Job."""

import json

import pytest

from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.records import LogLine, Observation
from workshop_lib.data import data_path
from workshop_lib.errors import ClusterError, WaitTimeoutError
from workshop_lib.training import compare_settings, experiments, translate, watch_training
from workshop_lib.training.plan import plan_training
from workshop_lib.training.recipe import RecipeError, override, read_recipe
from workshop_lib.training.record import Recorder, RunFolder, TrainingError
from workshop_lib.training.runs import (
    METRICS_FILE,
    marked_line,
    read_completions,
    read_metrics,
    read_run,
)
from workshop_lib.training.train import main

ARITHMETIC = data_path("recipes/arithmetic.yaml")
LORA = {"policy.dtensor_cfg._v2": True, "policy.dtensor_cfg.lora_cfg.enabled": True}


def save(folder, *, state=False):
    """What looks like a model, with the trainer's state if wanted; nothing here loads it."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    if state:
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
            (folder / name).write_text("")
    return folder


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model")


def test_the_plan(tmp_path, model):
    recipe = read_recipe(ARITHMETIC, {"grpo.max_num_steps": 3})
    plan = plan_training(recipe, output=tmp_path / "run", model=model)
    assert str(plan) == (
        "3 steps of 64 completions (8 prompts x 8), up to 6 tokens each, on 70 problems;"
        " reward first_integer"
    )
    assert plan.model == model and not (tmp_path / "run").exists()
    plan = plan_training(read_recipe(ARITHMETIC, LORA), output=tmp_path / "run", model=model)
    assert str(plan).endswith("; LoRA of rank 8")
    recipe = read_recipe(ARITHMETIC, {"policy.model_name": "nobody/nothing"})
    with pytest.raises(TrainingError, match=r"serving\.models prepare nobody/nothing"):
        plan_training(recipe, output=tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "/nowhere"], "--model /nowhere cannot be used: /nowhere is not a folder"),
        (["grpo.num_prompt_per_step=4"], "did you mean grpo.num_prompts_per_step?"),
        (["grpo.num_prompts_per_step"], "is no KEY=VALUE"),
        (["grpo.seed=x"], "grpo.seed is 'x'"),
        (["grpo.overlong_filtering=true"], "cannot be trained on this machine"),
        (["data.train.data_path=gone.jsonl"], "gone.jsonl is not a file"),
        (["data.default.env_name=code", "env.code={}"], "no reward for env.code"),
        (["grpo.num_prompts_per_step=80", "grpo.num_generations_per_prompt=2"], "70 problems"),
        (["env.first_integer.verifier_type=math", "--resume", "--overwrite"], "one of the two"),
        (["data.train.data_path={tmp}/two.jsonl"], "needs a whole number, not 'two'"),
        (["--output", "{tmp}/two.jsonl"], "is a file; give a folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, model, capsys, arguments, said):
    (tmp_path / "two.jsonl").write_text('{"problem": "1 + 1", "answer": "two"}\n' * 8)
    options = ["--output", str(tmp_path / "run"), "--model", str(model)]
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    status = main([str(ARITHMETIC), *options, *given])
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    assert len(printed.err.splitlines()) == 1 and said in printed.err
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(tmp_path, model):
    recipe = read_recipe(ARITHMETIC)
    (tmp_path / METRICS_FILE).write_text("")
    with pytest.raises(TrainingError, match="holds a run already"):
        plan_training(recipe, output=tmp_path, model=model)
    plan = plan_training(recipe, output=tmp_path, model=model, overwrite=True)
    save(tmp_path / "checkpoints/step_1")
    plan.folder.claim(plan.about())
    assert not (tmp_path / METRICS_FILE).exists() and plan.folder.steps() == []
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["settings"]["grpo"]["seed"] == about["arguments"]["seed"] == 42
    assert about["versions"]["trl"]


def test_a_checkpoint_is_there_whole_or_not_at_all_and_the_newest_stay(tmp_path):
    folder = RunFolder(tmp_path, keep=2)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match="is not whole"):
        folder.publish(tmp_path / "half", 12)
    with pytest.raises(TrainingError, match="has no checkpoint"):
        folder.newest()
    for step in (2, 4, 6, 10):
        folder.publish(save(tmp_path / f"written-{step}", state=step < 10), step)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step_10", "step_6"]
    assert folder.newest().name == "step_10"
    assert folder.newest(whole=True).name == "step_6", "step 10 has no optimizer"
    folder.claim({}, after=6)
    assert folder.steps() == [6]


def test_what_cannot_be_resumed_is_refused(tmp_path, model):
    output = tmp_path / "run"

    def plan(overrides=None, *, resume=True):
        recipe = read_recipe(ARITHMETIC, overrides)
        return plan_training(recipe, output=output, model=model, resume=resume)

    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        plan()
    first = plan(resume=False)
    first.folder.claim(first.about())
    rows = [{"step": 1, "elapsed_s": 5.0}, {"step": 2, "elapsed_s": 9.5}, {"step": 3}]
    (output / METRICS_FILE).write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"st')
    first.folder.publish(save(output / ".saving/checkpoint-2", state=True), 2)
    for overrides, said in (
        ({"grpo.seed": 5}, "started with another seed"),
        ({"policy.optimizer.kwargs.lr": 1e-4}, "started with another learning_rate"),
        (LORA, "started with another lora"),
        ({"grpo.max_num_steps": 2}, "is of step 2 and 2 steps are wanted; raise grpo.max_num"),
    ):
        with pytest.raises(TrainingError, match=said):
            plan(overrides)
    assert len((output / METRICS_FILE).read_text().splitlines()) == 4, "nothing was changed"

    longer = plan({"grpo.max_num_steps": 20})
    assert longer.resume_from == output / "checkpoints/step_2"
    assert longer.folder.claim(longer.about(), after=2) == 9.5
    assert read_metrics(output).step.tolist() == [1, 2]
    (output / "run.json").write_text("{")
    with pytest.raises(TrainingError, match="does not say what was run"):
        plan()


def test_the_recorder_writes_a_step(tmp_path):
    said = []
    recorder = Recorder(tmp_path, 2, 2, 10, {"p": "7", "q": "8"}, said.append)
    logged = {
        "prompt": ["p", "p", "q", "q"],
        "completion": [" 7", " 8", " 8", " 8"],
        "rewards": {"first_integer": [1.0, 0.0, 1.0, 1.0]},
        "advantages": [0.7, -0.7, 0.0, float("nan")],
    }
    recorder.begin()
    recorder.seconds |= {"generation": 1.5, "reward": 0.25}
    logs = {"reward": 0.75, "reward_std": 0.5, "loss": float("nan")}
    recorder.record(2, logs | {"grad_norm": 3.0, "frac_reward_zero_std": 0.5}, logged)
    frame = read_metrics(tmp_path)
    assert frame.step.tolist() == [1] and frame.group_means.tolist() == [[0.5, 1.0]]
    assert frame.generation_s.tolist() == [1.5]
    assert read_run(tmp_path).frame.not_finite.tolist() == ["loss"], "a NaN is not forgotten"
    assert said[0].startswith("step  1/10  reward 0.750  std 0.500  kl -  grad norm 3.00  ")
    rows = read_completions(tmp_path)
    assert rows.group.tolist() == [0, 0, 1, 1] and rows.answer.tolist() == ["7", "7", "8", "8"]
    recorder.record(4, logs | {"grad_norm": 0.0, "kl": 0.01}, logged)
    assert "kl 0.0100" in said[1] and read_metrics(tmp_path).step.tolist() == [1, 2]


# -- watching


class Scripted:
    """A cluster whose one Job goes through given states, a state a look."""

    profile = "local"

    def __init__(self, states):
        self.states = states
        self.looks = 0

    def observe(self, kind, name):
        self.looks = min(self.looks + 1, len(self.states))
        condition = self.states[self.looks - 1][1]
        conditions = [{"type": condition, "status": "True", "reason": "R", "message": "M"}]
        env = [{"name": "RUN", "value": "a"}, {"name": "OUTPUT_DIR", "value": "/shared/$(RUN)"}]
        spec = {"template": {"spec": {"containers": [{"name": "ray", "env": env}]}}}
        status = {"conditions": conditions if condition else []}
        body = {"kind": kind, "metadata": {"name": name}, "spec": spec, "status": status}
        return Observation(body)

    def logs(self, *_, **__):
        lines = self.states[self.looks - 1][0]
        return (LogLine("grpo-0-abcde", 0, "ray", line) for line in lines)


START = marked_line("start", steps=2)
STEPS = [marked_line("step", step=n, reward=n / 2, step_s=0.1) for n in (1, 2)]


def watched(states, **options):
    return watch_training(Workload(Scripted(states), "grpo", "Job", "grpo"), **options)


def test_watching_ends_with_the_job(monkeypatch, capsys):
    monkeypatch.setattr("workshop_lib.training.watch._POLL_S", 0.01)
    whole = [START, *STEPS, marked_line("saved", checkpoint="checkpoints/step_2")]
    run = watched([([], ""), (whole[:2], ""), (whole[:3], ""), (whole, "Complete")])
    assert (run.done, run.checkpoint) == (2, "/shared/a/checkpoints/step_2")
    lines = capsys.readouterr().out.splitlines()
    told = [["step 1/2", "reward 0.500"], ["step 2/2", "reward 1.000"]]
    assert [line.split("  ")[:2] for line in lines] == told


def test_watching_a_failure_or_for_too_long(monkeypatch):
    monkeypatch.setattr("workshop_lib.training.watch._POLL_S", 0.01)
    last = "the trainer failed with exit code 2: RecipeError: unknown key grpo.sed"
    with pytest.raises(ClusterError, match=r"unknown key grpo\.sed; next: read its logs"):
        watched([([START], ""), ([START, last], "Failed")])
    with pytest.raises(WaitTimeoutError, match=r"not complete after 0\.05 s: 1 of 2 steps, reward"):
        watched([([START, STEPS[0]], "")], timeout_s=0.05)


# -- experiments

LORA_DIM = "policy.dtensor_cfg.lora_cfg.dim"


@pytest.fixture
def jobs(monkeypatch):
    """The recipes that would be trained; every training is said to have one step."""
    asked = []

    def follow(arguments):
        pairs = [word for word in arguments if "=" in word]
        asked.append(read_recipe(arguments[0], dict(map(override, pairs))))
        yield {"step": 1, "reward": 0.25}

    monkeypatch.setattr(experiments, "follow", follow)
    return asked


@pytest.mark.parametrize(
    ("key", "values", "labels"),
    [
        ("grpo.num_generations_per_prompt", [2, 8], ["2", "8"]),
        ("policy.generation.temperature", [0.2, 1.0], ["0.2", "1"]),
        ("loss_fn.reference_policy_kl_penalty", [0.0, 1.0], ["0", "1"]),
        ("loss_fn.ratio_clip_max", [0.02, 0.2], ["0.02", "0.2"]),
        ("policy.optimizer.kwargs.lr", [1e-6, 2.5e-5], ["1e-6", "2.5e-5"]),
        (LORA_DIM, [None, 8], ["off", "8"]),
    ],
)
def test_every_setting_makes_a_recipe_that_can_be_trained(jobs, model, key, values, labels):
    comparison = compare_settings(
        read_recipe(ARITHMETIC, {"grpo.seed": 7}), key, values, model=model
    )
    for recipe, value in zip(jobs, values, strict=True):
        assert recipe.completions_per_step == experiments.ANSWERS and recipe.grpo.seed == 7
        translation = translate(recipe, problems=70)
        assert translation.refused == [] and translation.steps == 6
        assert translation.arguments["beta"] > 0, "KL is always recorded"
        assert bool(translation.lora) == (key == LORA_DIM and value is not None)
        assert translation.updates_per_step == (4 if "clip" in key else 1)
    assert comparison.frame.value.tolist() == labels
    summary = comparison.summary()
    assert summary.value.tolist() == labels and summary.reward_last.tolist() == [0.25, 0.25]
    assert {"zero_std_share", "kl_last", "grad_norm", "clip_share", "seconds"} <= set(summary)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("policy.generation.temperature", [1.0], "give two or more values"),
        ("policy.generation.temperatur", [0.5, 1.0], "did you mean policy.generation.temperature"),
        ("policy.generation.temperature", [1.0, -1.0], "temperature is -1.0"),
        ("grpo.num_generations_per_prompt", [8, 5], "5 does not divide the 32 answers"),
    ],
)
def test_what_is_refused(jobs, model, key, values, said):
    with pytest.raises((TrainingError, RecipeError), match=said):
        compare_settings(read_recipe(ARITHMETIC), key, values, model=model)
    assert jobs == []
