"""The problems: made by a script, split without overlap, read as NeMo RL reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.training.graded import LEVELS, graded_problems
from workshop_lib.training.problems import (
    HELD_OUT,
    PROMPT,
    large_sums,
    load_problems,
    main,
    single_digit_sums,
    write_problems,
)
from workshop_lib.training.recipe import read_recipe

ARITHMETIC = data_path("recipes/arithmetic.yaml")


def pair(problem: dict[str, str]) -> frozenset[str]:
    return frozenset(problem["problem"].split(" + "))


def test_the_committed_files_are_what_the_script_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    for path in tmp_path.iterdir():
        assert path.read_bytes() == data_path(f"problems/{path.name}").read_bytes(), path.name


def test_all_pairs_are_there_once_and_right() -> None:
    train, held_out = single_digit_sums()
    assert (len(train), len(held_out)) == (70, HELD_OUT)
    texts = [problem["problem"] for problem in train + held_out]
    assert sorted(texts) == sorted(f"{a} + {b}" for a in range(10) for b in range(10))
    for problem in train + held_out:
        a, b = problem["problem"].split(" + ")
        assert int(problem["answer"]) == int(a) + int(b)


def test_no_overlap_and_no_answer_never_seen() -> None:
    for seed in range(20):
        train, held_out = single_digit_sums(seed)
        assert len(held_out) == HELD_OUT
        assert not {pair(p) for p in train} & {pair(p) for p in held_out}
        assert {p["answer"] for p in held_out} <= {p["answer"] for p in train}
    assert single_digit_sums(1) != single_digit_sums(2)


def test_the_recipes_problems() -> None:
    recipe = read_recipe(ARITHMETIC)
    train, held_out = load_problems(recipe), load_problems(recipe, "validation")
    assert (len(train), len(held_out)) == (70, 30)
    assert train[0].prompt == "Question: What is 0 + 0?\nAnswer:" == PROMPT.format(train[0].text)
    assert train[0].answer == "0" and train[0].system == ""


def test_paths_of_the_working_folder_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_problems(tmp_path / "data" / "problems")
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


def test_graded_problems_are_right_and_split_in_any_words() -> None:
    operations = {
        "add": lambda a, b: {a + b},
        "subtract": lambda a, b: {a - b},
        "multiply": lambda a, b: {a * b},
    }
    for seed in (1, 2026):
        train, held_out = graded_problems(seed)
        assert len(held_out) >= 200 and len(train) >= 400
        assert not {p.asks for p in train} & {p.asks for p in held_out}
        texts = [p.problem for p in train + held_out]
        assert len(texts) == len(set(texts))
        for problem in train + held_out:
            operation, a, b = problem.asks
            assert int(problem.answer) in operations[operation](a, b)
            # The numbers stand in the text, read apart from how it was made.
            numbers = sorted(int(number) for number in re.findall(r"\d+", problem.problem))
            assert numbers == sorted((a, b)), problem
            assert int(problem.answer) > 0 and min(a, b) > 0
        for level in LEVELS:
            for part, least in ((train, 25), (held_out, 8)):
                assert sum(p.level == level for p in part) >= least, (seed, level)
    assert graded_problems(1) != graded_problems(2) and graded_problems(1) == graded_problems(1)


def test_a_sum_that_is_held_out_is_so_as_a_story_too() -> None:
    train, held_out = graded_problems(2026)
    plain = {p.asks for p in held_out if p.level in (1, 2, 3)}
    stories = {p.asks for p in held_out if p.level == 6}
    assert plain & stories
    assert not plain & {p.asks for p in train if p.level == 6}


def test_the_graded_recipes_problems() -> None:
    recipe = read_recipe(data_path("recipes/graded.yaml"))
    train, held_out = load_problems(recipe), load_problems(recipe, "validation")
    assert len(held_out) >= 200 and {p.level for p in train} == {p.level for p in held_out}
    assert all(p.prompt == f"Question: {p.text}\nAnswer:" for p in held_out)
    assert max(len(p.prompt.split()) for p in train) < 40
    # What is the same sum is no question of the words: arithmetic.yaml stays as it is.
    assert len(load_problems(read_recipe(ARITHMETIC), "validation")) == HELD_OUT


def test_a_level_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"problem": "1 + 1", "answer": "2", "level": "easy"}\n')
    with pytest.raises(WorkshopError, match="level is a whole number, not 'easy'"):
        load_problems(read_recipe(ARITHMETIC, {"data.train.data_path": str(path)}))


def test_large_sums_are_many_and_in_one_part_only() -> None:
    train, held_out = large_sums()
    pairs = [frozenset(row["problem"].split(" + ")) for row in train + held_out]
    assert (len(train), len(held_out), len(set(pairs))) == (120, 40, 160)
    assert all(str(sum(map(int, row["problem"].split(" + ")))) == row["answer"] for row in train)
