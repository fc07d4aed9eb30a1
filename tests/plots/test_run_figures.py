"""Figures of whole runs: what a source tells is drawn, as it is, and can be read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from figures import check_readable

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.plots import plot_advantages, plot_run, plot_runs, plot_step_memory
from workshop_lib.serving.memory import ModelShape, training_budget
from workshop_lib.training import trl_advantages
from workshop_lib.training.runs import Run, read_run

PATHS = ["nemo-rl/honest", "nemo-rl/reward-hacking", "nemo-rl/honest/console.log", "trl/learning-1"]


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    return {path: read_run(data_path(f"recorded/{path}")) for path in PATHS}


def titles(figure: Any) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [0, 1, 2, 12, 60])
def test_a_run_is_readable_at_any_length(runs: dict[str, Run], path: str, steps: int) -> None:
    run = runs[path]
    check_readable(plot_run(replace(run, frame=run.frame[:steps]), title="A run"))


def test_a_panel_for_what_is_known(runs: dict[str, Run]) -> None:
    whole = [
        "Reward", "KL from the reference", "Gradient, before clipping", "Entropy of a token",
        "Length of a completion", "Silent groups", "Time of a step, by stage",
    ]  # fmt: skip
    assert titles(plot_run(runs["nemo-rl/honest"])) == whole
    console = plot_run(runs["nemo-rl/honest/console.log"])
    assert titles(console) == [whole[0], whole[4], whole[6]]
    laptop = titles(plot_run(runs["trl/learning-1"]))
    assert laptop == ["Reward, worst to best group", *whole[2:]]


def test_the_runs_beside_each_other(runs: dict[str, Run]) -> None:
    pair = {name: runs[f"nemo-rl/{name}"] for name in ("honest", "reward-hacking")}
    figure = plot_runs(pair)
    check_readable(figure)
    for column, run in enumerate(pair.values()):
        reward, kl, length = figure.axes[column::2]
        assert list(reward.lines[0].get_ydata()) == run.frame.reward.tolist()
        assert list(reward.lines[1].get_ydata()) == run.frame.right_share.tolist()
        assert list(length.lines[0].get_ydata()) == run.frame.mean_length.tolist()
        # One scale for both, and nothing of either outside it.
        assert kl.get_ylim() == figure.axes[2].get_ylim()
        assert kl.get_ylim()[1] >= run.frame.kl.max()
        assert [text.get_text() for text in reward.texts] in (
            ["rewarded", "right"],
            ["right", "rewarded"],
        )


def test_advantages_by_hand_lie_on_the_trainers() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    group = pd.DataFrame(
        {
            "prompt": "Question: What is 3 + 4?\nAnswer:",
            "completion": [f" {number}\n\nand so on" for number in range(8)],
            "reward": rewards,
            "advantage": trl_advantages(rewards),
        }
    )
    axes = plot_advantages(group).axes[0]
    bars = [bar.get_width() for bar in axes.patches]
    dots = next(line for line in axes.lines if line.get_marker() == "o").get_xdata()
    assert bars == pytest.approx(list(dots), abs=1e-3)
    assert axes.get_title(loc="left") == "What is 3 + 4?"
    # A trainer that computes something else is seen: the dots leave the bars.
    other = plot_advantages(group.assign(advantage=-group["advantage"])).axes[0]
    moved = next(line for line in other.lines if line.get_marker() == "o").get_xdata()
    assert bars != pytest.approx(list(moved), abs=1e-3)
    silent = plot_advantages(group.assign(reward=1.0, advantage=0.0)).axes[0]
    assert {bar.get_width() for bar in silent.patches} == {0.0}


def test_memory_over_time_of_both_ways() -> None:
    shape = ModelShape.named("mistral-7b")
    together, apart = (
        training_budget(shape, "h100", gpus=8, where=where)  # type: ignore[arg-type]
        for where in ("colocated", "dedicated")
    )
    times = {"generate_s": 20.0, "update_s": 15.0, "switch_s": 4.0}
    figure = plot_step_memory(together, apart, **times)
    every, training, generation = figure.axes
    # Two steps of 39 s; taking turns, nothing waits, and all time is covered.
    assert every.get_xlim() == (0, 78)
    assert sum(bar.get_width() for bar in every.patches) == pytest.approx(78)
    heights = [round(bar.get_height(), 3) for bar in every.patches[:4]]
    assert heights[1] == round(sum(together.generate.values()), 3)
    assert heights[3] == round(sum(together.update.values()), 3)
    assert len({round(bar.get_height(), 6) for bar in generation.patches}) == 1
    busy = max(bar.get_height() for bar in training.patches)
    assert busy == pytest.approx(sum(apart.update.values()))
    with pytest.raises(WorkshopError, match="one colocated and one dedicated"):
        plot_step_memory(apart, apart, **times)
    with pytest.raises(WorkshopError, match="must be positive"):
        plot_step_memory(together, apart, generate_s=0, update_s=1)
