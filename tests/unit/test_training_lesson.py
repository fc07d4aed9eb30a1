"""What notebook 03 computes and draws: groups from a server, models in memory, checks, figures."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pandas as pd
import pytest
from matplotlib.text import Text
from streaming_server import StreamingServer

from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.records import LogLine, Observation
from workshop_lib.data import data_path
from workshop_lib.errors import ClusterError, ServerError, WaitTimeoutError, WorkshopError
from workshop_lib.plots import plot_accuracy, plot_groups, plot_training_models
from workshop_lib.serving import ModelServer
from workshop_lib.serving.memory import ModelShape
from workshop_lib.training.checks import check_training
from workshop_lib.training.evaluate import Accuracy, accuracy_table
from workshop_lib.training.groups import sample_groups
from workshop_lib.training.memory import training_models
from workshop_lib.training.problems import Problem
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.runs import TrainingLog, marked_line
from workshop_lib.training.watch import watch_training

RECIPE = read_recipe(data_path("recipes/arithmetic.yaml"))


def test_groups_are_sampled_as_the_recipe_says() -> None:
    done: list[tuple[int, int]] = []
    with StreamingServer(ttft_ms=1, itl_ms=1) as stub, ModelServer(stub.url) as server:
        frame = sample_groups(
            server, RECIPE, groups=3, size=4, seed=5, on_progress=lambda *at: done.append(at)
        )
        bodies = stub.bodies
    assert frame.groupby("group").size().tolist() == [4, 4, 4] and done[-1] == (12, 12)
    assert frame.groupby("group").problem.nunique().tolist() == [1, 1, 1]
    assert frame.problem.nunique() == 3 and (frame.reward == 0).all()
    assert {(b["temperature"], b["max_tokens"]) for b in bodies} == {(1.0, 6)}
    assert len({b["seed"] for b in bodies}) == 12, "or a group would be one answer eight times"
    assert all("messages" not in body for body in bodies)


def test_groups_that_cannot_be() -> None:
    server = ModelServer("http://127.0.0.1:9")
    with pytest.raises(WorkshopError, match="71 groups of 8: the recipe has 70 problems"):
        sample_groups(server, RECIPE, groups=71)
    chat = read_recipe(RECIPE.path, {"policy.tokenizer.chat_template": "default"})
    with pytest.raises(WorkshopError, match="plain prompts"):
        sample_groups(server, chat)
    with pytest.raises(ServerError, match="no server at"):
        sample_groups(server, RECIPE)


def test_models_in_memory() -> None:
    shape = ModelShape.named("mistral-7b")
    table = training_models(shape)
    each = shape.parameters / 2**30
    totals = table.groupby("algorithm").gib.sum()
    assert totals["PPO"] == pytest.approx((16 + 16 + 2 + 2) * each)
    assert totals["GRPO"] == pytest.approx((16 + 2) * each)
    assert totals["GRPO, no KL penalty"] == pytest.approx(16 * each)
    assert table.loc[~table.trained, ["gradients", "optimizer"]].to_numpy().sum() == 0


def accuracy(right: int, of: int = 30) -> Accuracy:
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
def test_checks(changes: dict[str, Any], failed: list[str]) -> None:
    run = TrainingLog(2, ({"step": 1}, {"step": 2}), "/shared/grpo/checkpoints/step_2")
    given: dict[str, Any] = {"steps": 2, "served": "grpo/checkpoints/step_2"}
    given |= {"before": accuracy(6), "after": accuracy(28)} | changes
    checks = check_training(run, **given)
    assert [check.name for check in checks if not check.passed] == failed


def groups(size: int = 8) -> pd.DataFrame:
    right = {0: 0, 1: size, 2: 1, 3: size // 2}
    rows = [(g, f"{g} + 9", str(g + 9), " x", float(n < k)) for g, k in right.items()
            for n in range(size)]  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "problem", "answer", "completion", "reward"])


FIGURES = {
    "groups": lambda: plot_groups(groups(), 2),
    "small groups": lambda: plot_groups(groups(4), 3),
    "models": lambda: plot_training_models(training_models(ModelShape.named("llama-3.1-70b"))),
    "accuracy": lambda: plot_accuracy(
        accuracy_table({"before": accuracy(6), "after": accuracy(30)})
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_whole_and_readable(name: str) -> None:
    figure: Any = FIGURES[name]()
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.canvas.draw()
    edges = figure.bbox.padded(2)
    texts: list[Any] = []
    for axes in figure.axes:
        assert axes.get_xlabel()
        texts += [axes.xaxis.label, axes._left_title, *axes.texts]
        # matplotlib makes ticks outside the view too, and does not draw them.
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(ends)
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            texts += [tick.label1 for tick in ticks]
    texts = [text for text in texts if isinstance(text, Text) and text.get_text()]
    for text in texts:
        box = text.get_window_extent()
        assert text.get_fontsize() >= 9, text
        assert edges.x0 <= box.x0 and box.x1 <= edges.x1, f"cut off: {text}"
        assert edges.y0 <= box.y0 and box.y1 <= edges.y1, f"cut off: {text}"
    for one, other in combinations(texts, 2):
        a, b = one.get_window_extent().padded(-1.5), other.get_window_extent().padded(-1.5)
        assert not a.overlaps(b), f"{one} covers {other}"


def test_the_groups_figure_shows_the_rewards() -> None:
    left, right = plot_groups(groups(), 2).axes
    said = [text.get_text() for text in left.texts]
    assert said == ["teaches nothing", "teaches nothing", "mean 0.12", "mean 0.50"]
    filled = [line for line in left.lines if line.get_markerfacecolor() != "none"]
    assert len(left.lines) == 32 and len(filled) == 8 + 1 + 4
    best = [bar.get_width() for bar in right.containers[0]]
    # A single right answer of eight: 7/8; by the spread; 1; undivided, the others have no spread.
    assert best == pytest.approx([0.875, 0.875 / 0.35355, 1.0, 1.0], rel=1e-4)


class Scripted:
    """A cluster whose one Job goes through given states, a state a look."""

    profile = "local"

    def __init__(self, states: list[tuple[list[str], str]]) -> None:
        self.states = states
        self.looks = 0

    def observe(self, kind: str, name: str) -> Observation:
        self.looks = min(self.looks + 1, len(self.states))
        condition = self.states[self.looks - 1][1]
        conditions = [{"type": condition, "status": "True", "reason": "R", "message": "M"}]
        env = [{"name": "RUN", "value": "a"}, {"name": "OUTPUT_DIR", "value": "/shared/$(RUN)"}]
        spec = {"template": {"spec": {"containers": [{"name": "ray", "env": env}]}}}
        return Observation(
            {
                "kind": kind, "metadata": {"name": name}, "spec": spec,
                "status": {"conditions": conditions if condition else []},
            }
        )  # fmt: skip

    def logs(self, kind: str, name: str, **_: Any) -> Any:
        lines = self.states[self.looks - 1][0]
        return (LogLine("grpo-0-abcde", 0, "ray", line) for line in lines)


START = marked_line("start", steps=2)
STEPS = [marked_line("step", step=n, reward=n / 2, step_s=0.1) for n in (1, 2)]


def watched(states: list[tuple[list[str], str]], **options: Any) -> TrainingLog:
    cluster: Any = Scripted(states)
    return watch_training(Workload(cluster, "grpo", "Job", "grpo"), **options)


def test_watching_ends_with_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("workshop_lib.training.watch._POLL_S", 0.01)
    saved = marked_line("saved", checkpoint="checkpoints/step_2")
    whole = [START, *STEPS, saved]
    run = watched([([], ""), (whole[:2], ""), (whole[:3], ""), (whole, "Complete")])
    assert (run.done, run.checkpoint) == (2, "/shared/a/checkpoints/step_2")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["step 1/2", "reward 0.500"], ["step 2/2", "reward 1.000"],
    ]  # fmt: skip


def test_watching_a_failure_or_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workshop_lib.training.watch._POLL_S", 0.01)
    last = "the trainer failed with exit code 2: RecipeError: unknown key grpo.sed"
    with pytest.raises(ClusterError, match=r"unknown key grpo\.sed; next: read its logs"):
        watched([([START], ""), ([START, last], "Failed")])
    with pytest.raises(ClusterError, match="R: M"):
        watched([([], "Failed")])
    with pytest.raises(WaitTimeoutError, match=r"not complete after 0\.05 s: 1 of 2 steps, reward"):
        watched([([START, STEPS[0]], "")], timeout_s=0.05)
