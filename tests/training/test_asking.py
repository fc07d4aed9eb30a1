"""Problems, a model that is asked them, the tables of its answers, and the checks of a lesson."""

import json
import re
import subprocess
import sys

import pytest
from streaming_server import StreamingServer

from workshop_lib.data import data_path
from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving import ModelServer
from workshop_lib.serving.memory import ModelShape
from workshop_lib.training import (
    Accuracy,
    Problem,
    accuracy_by_level,
    accuracy_table,
    answers_table,
    check_training,
    evaluate_server,
    load_problems,
    sample_groups,
    training_models,
    wilson_interval,
)
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.runs import TrainingLog

ARITHMETIC = data_path("recipes/arithmetic.yaml")
RECIPE = read_recipe(ARITHMETIC)


def test_the_committed_problems_are_what_the_script_makes(tmp_path):
    script = data_path("problems/make_problems.py")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(made) == 8
    assert all((script.parent / name).read_bytes() == text for name, text in made.items())


@pytest.mark.parametrize(("name", "held"), [("arithmetic", 30), ("hackable", 24), ("graded", 200)])
def test_nothing_held_out_was_trained_on(name, held):
    recipe = read_recipe(data_path(f"recipes/{name}.yaml"))
    train, held_out = load_problems(recipe), load_problems(recipe, "validation")
    assert not {p.text for p in train} & {p.text for p in held_out}
    assert len(held_out) >= held and all(p.answer.lstrip("-").isdigit() for p in train)
    if name == "graded":
        assert {p.level for p in train} == {p.level for p in held_out} == set(range(1, 7))
        return
    pairs = [{tuple(sorted(re.findall(r"\d+", p.text))) for p in ps} for ps in (train, held_out)]
    assert not pairs[0] & pairs[1], "the same sum, the other way round"
    for problem in (*train, *held_out):
        assert sum(map(int, re.findall(r"\d+", problem.text))) == int(problem.answer)


def test_prompts_and_where_files_are_looked_for(tmp_path, monkeypatch):
    assert load_problems(RECIPE)[0].prompt == "Question: What is 0 + 0?\nAnswer:"
    (tmp_path / "system.txt").write_text("Be short.")
    overrides = {"data.default.system_prompt_file": str(tmp_path / "system.txt")}
    problem = load_problems(read_recipe(ARITHMETIC, overrides))[0]
    assert [message["content"] for message in problem.messages] == ["Be short.", problem.prompt]
    # The working folder comes first, as with NeMo RL.
    (tmp_path / "data/problems").mkdir(parents=True)
    line = json.dumps({"problem": "1 + 1", "answer": "2"})
    (tmp_path / "data/problems/sums-train.jsonl").write_text(f"{line}\n\n")
    monkeypatch.chdir(tmp_path)
    assert [problem.text for problem in load_problems(RECIPE)] == ["1 + 1"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1 is not JSON"),
        ('{"problem": "1 + 1"}', "needs the texts 'problem' and 'answer'"),
        ("", "holds no problem"),
    ],
)
def test_a_file_without_problems(tmp_path, line, said):
    (tmp_path / "p.jsonl").write_text(line + "\n")
    overrides = {"data.train.data_path": str(tmp_path / "p.jsonl")}
    with pytest.raises(WorkshopError, match=said):
        load_problems(read_recipe(ARITHMETIC, overrides))


def test_what_is_not_there_or_not_local(tmp_path):
    (tmp_path / "prompt.txt").write_text("{} {problem}")
    for overrides, said in (
        ({"data.train.data_path": "gone.jsonl"}, r"data_path gone.jsonl is not a file"),
        ({"data.train": {"dataset_name": "gsm8k"}}, "gsm8k; here only local files"),
        ({"data.default.prompt_file": str(tmp_path / "prompt.txt")}, "it needs one"),
    ):
        with pytest.raises(WorkshopError, match=said):
            load_problems(read_recipe(ARITHMETIC, overrides))


# -- asking a model: the stub says "Hi there, 1, 2, …"-like tokens, none of them right

PROBLEMS = tuple(Problem(f"1 + {n}", str(n + 1), f"What is 1 + {n}?") for n in range(4))


def result(*completions):
    pairs = zip(PROBLEMS, completions, strict=True)
    rewards = tuple(float(text.strip() == problem.answer) for problem, text in pairs)
    return Accuracy(PROBLEMS, completions, rewards)


def test_a_server_is_asked_as_the_recipe_says():
    done = []
    with StreamingServer(ttft_ms=1, itl_ms=1) as stub, ModelServer(stub.url) as server:
        accuracy = evaluate_server(server, RECIPE, on_progress=lambda *at: done.append(at))
        plain = list(stub.bodies)
        stub.bodies.clear()
        chat = read_recipe(ARITHMETIC, {"policy.tokenizer.chat_template": "default"})
        evaluate_server(server, chat, split="train")
        talked = list(stub.bodies)
    assert len(accuracy.problems) == 30 and done[-1] == (30, 30)
    assert {(b["temperature"], b["max_tokens"]) for b in plain} == {(0, 6)}
    assert {body["prompt"] for body in plain} == {p.prompt for p in accuracy.problems}
    assert len(talked) == 70
    assert {m["role"] for body in talked for m in body["messages"]} == {"user"}
    with pytest.raises(ServerError, match="no server at"):
        evaluate_server(server, RECIPE)


def test_groups_are_sampled_as_the_recipe_says():
    done = []
    with StreamingServer(ttft_ms=1, itl_ms=1) as stub, ModelServer(stub.url) as server:
        asked = {"groups": 3, "size": 4, "seed": 5, "on_progress": lambda *at: done.append(at)}
        frame = sample_groups(server, RECIPE, **asked)
        bodies = stub.bodies
    assert frame.groupby("group").size().tolist() == [4, 4, 4] and done[-1] == (12, 12)
    assert frame.groupby("group").problem.nunique().tolist() == [1, 1, 1]
    assert frame.problem.nunique() == 3 and (frame.reward == 0).all()
    assert {(b["temperature"], b["max_tokens"]) for b in bodies} == {(1.0, 6)}
    assert len({b["seed"] for b in bodies}) == 12, "or a group would be one answer eight times"
    with pytest.raises(WorkshopError, match="71 groups of 8: the recipe has 70 problems"):
        sample_groups(server, RECIPE, groups=71)


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
def test_wilson(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_tables_before_and_after():
    both = {"before": result(" 1", "5", "?", ""), "after": result(*"1234")}
    table = accuracy_table(both)
    assert table.index.tolist() == ["before", "after"]
    assert table.right.tolist() == [1, 4] and table.accuracy.tolist() == [0.25, 1.0]
    assert table.low["before"] < 0.25 < table.high["before"]
    answers = answers_table(both)
    assert answers["before right"].tolist() == [True, False, False, False]
    assert answers["after"].tolist() == list("1234") == answers.answer.tolist()
    other = Accuracy(PROBLEMS[:1], ("1",), (1.0,))
    with pytest.raises(WorkshopError, match="evaluate the same"):
        answers_table({"before": result(*"1234"), "after": other})


def test_accuracy_by_level():
    problems = tuple(Problem(f"{n}", "2", f"{n}?", level=1 + n % 2) for n in range(6))
    graded = Accuracy(problems, (" x",) * 6, (1.0, 0.0, 1.0, 0.0, 0.0, 1.0))
    table = accuracy_by_level({"before": graded, "after": graded})
    assert table.loc[(1, "before"), "right"] == 2 and table.loc[(2, "after"), "right"] == 1
    assert table["problems"].tolist() == [3] * 4


def test_models_in_memory():
    shape = ModelShape.named("mistral-7b")
    table = training_models(shape)
    each = shape.parameters / 2**30
    totals = table.groupby("algorithm").gib.sum()
    assert totals["PPO"] == pytest.approx((16 + 16 + 2 + 2) * each)
    assert totals["GRPO"] == pytest.approx((16 + 2) * each)
    assert totals["GRPO, no KL penalty"] == pytest.approx(16 * each)
    assert table.loc[~table.trained, ["gradients", "optimizer"]].to_numpy().sum() == 0


def accuracy(right, of=30):
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
def test_checks(changes, failed):
    run = TrainingLog(2, ({"step": 1}, {"step": 2}), "/shared/grpo/checkpoints/step_2")
    given = {"steps": 2, "served": "grpo/checkpoints/step_2"}
    given |= {"before": accuracy(6), "after": accuracy(28)} | changes
    checks = check_training(run, **given)
    assert [check.name for check in checks if not check.passed] == failed
