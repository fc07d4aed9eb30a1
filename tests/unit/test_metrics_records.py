"""Metrics, read while they are written, and drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from figures import check_readable

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import plot_training
from workshop_lib.training import first_integer_reward
from workshop_lib.training.runs import (
    COLUMNS,
    COMPLETIONS_FILE,
    METRICS_FILE,
    marked_line,
    read_completions,
    read_log,
    read_metrics,
    read_run,
    run_of_log,
    steps_to_reward,
    with_judge,
)


def record(step: int, **changes: Any) -> dict[str, Any]:
    draw = random.Random(step)
    reward = min(1.0, 0.1 + 0.09 * step)
    groups = [min(1.0, max(0.0, draw.gauss(reward, 0.2))) for _ in range(8)]
    values = dict.fromkeys(COLUMNS, 0.5) | {
        "step": step,
        "reward": reward,
        "group_means": groups,
        "kl": None,
        "grad_norm": 4.0 + draw.random(),
        "mean_length": 5.0 - 0.2 * step,
        "step_s": 15 + draw.random(),
        "generation_s": 3 + draw.random(),
    }
    return values | changes


def write(folder: Path, count: int, tail: str = "") -> Path:
    lines = "".join(json.dumps(record(step)) + "\n" for step in range(1, count + 1))
    (folder / METRICS_FILE).write_text(lines + tail)
    return folder


def test_before_the_first_step(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not-there-yet"):
        frame = read_metrics(folder)
        assert frame.empty and list(frame.columns) == list(COLUMNS)
        assert read_completions(folder).empty
    (tmp_path / METRICS_FILE).write_text("")
    assert read_metrics(tmp_path).empty


def test_it_grows_and_half_a_line_waits(tmp_path: Path) -> None:
    frame = read_metrics(write(tmp_path, 2, tail='{"step": 3, "rew'))
    assert frame.step.tolist() == [1, 2] and frame.step.dtype == int
    assert len(read_metrics(write(tmp_path, 5))) == 5


def test_types_do_not_depend_on_the_rows(tmp_path: Path) -> None:
    empty, full = read_metrics(tmp_path), read_metrics(write(tmp_path, 3))
    assert empty.dtypes.to_dict() == full.dtypes.to_dict()
    assert full.kl.isna().all() and full.kl.dtype == float
    assert len(full.group_means[0]) == 8


def test_older_and_newer_records(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "reward": 0.5, "of_tomorrow": 1}\n')
    frame = read_metrics(tmp_path)
    assert frame.reward.tolist() == [0.5] and frame.loss.isna().all()
    assert "of_tomorrow" not in frame


@pytest.mark.parametrize("line", ["{", "[]", "3", "null"])
def test_another_file_is_refused(tmp_path: Path, line: str) -> None:
    write(tmp_path, 1, tail=line + "\n")
    with pytest.raises(WorkshopError, match="line 2 is no record"):
        read_metrics(tmp_path)


def test_completions(tmp_path: Path) -> None:
    row = {"step": 1, "group": 0, "prompt": "p", "answer": "7", "completion": " 7"}
    row |= {"reward": 1.0, "advantage": 0.9}
    (tmp_path / COMPLETIONS_FILE).write_text(json.dumps(row) + "\n")
    assert read_completions(tmp_path).to_dict("records") == [row]


def test_steps_to_reward() -> None:
    frame = pd.DataFrame({"step": range(1, 7), "reward": [0.2, 0.95, 0.7, 0.95, 0.97, 0.99]})
    assert steps_to_reward(frame) == 6
    assert steps_to_reward(frame, reward=0.85) == 4
    assert steps_to_reward(frame, reward=0.95, consecutive=1) == 2
    assert steps_to_reward(frame[:4]) is None
    assert steps_to_reward(frame[:0]) is None


@pytest.mark.parametrize("count", [0, 1, 2, 12])
def test_the_figure_is_whole_and_readable(tmp_path: Path, count: int) -> None:
    figure: Any = plot_training(read_metrics(write(tmp_path, count)), steps=12, title="A run")
    check_readable(figure)
    assert {axes.get_xlim() for axes in figure.axes} == {(0, 12.5)}


def test_the_figure_shows_the_records(tmp_path: Path) -> None:
    frame = read_metrics(write(tmp_path, 6))
    reward, length, gradient, _ = plot_training(frame).axes
    assert list(reward.lines[0].get_ydata()) == frame.reward.tolist()
    band = reward.collections[0].get_paths()[0].vertices[:, 1]
    assert max(band) == pytest.approx(frame.group_means.map(max).max())
    assert min(band) == pytest.approx(frame.group_means.map(min).min())
    assert list(length.lines[0].get_ydata()) == frame.mean_length.tolist()
    assert list(gradient.lines[0].get_ydata()) == frame.grad_norm.tolist()


def test_negative_and_large_rewards_are_in_the_picture(tmp_path: Path) -> None:
    rows = [record(1, group_means=[-1.0, 3.0], reward=1.0), record(2, group_means=[0.0, 1.0])]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / METRICS_FILE).write_text(text)
    low, high = plot_training(read_metrics(tmp_path)).axes[0].get_ylim()
    assert low <= -1 and high >= 3


def test_another_judge_of_a_runs_answers(tmp_path: Path) -> None:
    rows = [
        {"step": step, "group": 0, "prompt": "What is 3 + 4?", "answer": "7", "reward": 1.0,
         "completion": said, "advantage": 0.0}
        for step, answers in ((1, [" 7", " 3 + 4 ="]), (2, [" 3 + 4 =", " 4 + 3"]))
        for said in answers
    ]  # fmt: skip
    (tmp_path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [{"step": step, "reward": 1.0} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    run = read_run(tmp_path)
    # What was written of a step that is not there is not known.
    assert run.frame["echo_share"].tolist()[:2] == [0.5, 1.0]
    assert run.frame["echo_share"].isna().tolist() == [False, False, True]
    assert run.frame["right_share"].isna().all()
    for path in (tmp_path, tmp_path / "metrics.jsonl"):
        judged = with_judge(read_run(path), first_integer_reward)
        assert judged.frame["right_share"].tolist()[:2] == [0.5, 0.0]
        assert "first_integer_reward" in judged.notes[-1]
    (tmp_path / "completions.jsonl").unlink()
    with pytest.raises(WorkshopError, match="holds no answers to judge"):
        with_judge(read_run(tmp_path), first_integer_reward)


def test_a_trainers_log_as_a_run() -> None:
    sample = {"group": 0, "prompt": "What is 3 + 4?", "answer": "7", "completion": " 3 + 4 ="}
    step = {"step": 1, "reward": 1.0, "samples": [sample | {"reward": 1.0}]}
    run = run_of_log(read_log([marked_line("start", steps=9), marked_line("step", **step)]))
    assert (run.planned, len(run.frame), run.source) == (9, 1, "marked log")
    assert run.frame["echo_share"].tolist() == [1.0]
