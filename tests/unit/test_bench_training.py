"""How `make bench` lets two trainers go in turn, with toy trainers; the real ones: tests/local."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.frame import measure
from workshop_lib.tools.measures.grpo_step import GrpoStep, share_of_same
from workshop_lib.tools.measures.trainers import Training, take_steps

ANSWERS = [[number, 1, 2] for number in range(20)]


class ToyTrainer:
    """Scores the same answers each step; says nothing of them by itself."""

    def __init__(self, answers: list[list[int]], pieces: int = 1) -> None:
        self.answers = answers
        self.args = SimpleNamespace(gradient_accumulation_steps=pieces)
        self.reward_funcs: list[Callable[..., list[float]]] = [self.reward]
        self.steps = 0
        self.before_each_step: Callable[[], None]

    def reward(self, *, completion_ids: Any, trainer_state: Any) -> list[float]:
        return [0.0, 1.0] * (len(completion_ids) // 2)

    def train(self) -> None:
        while True:
            self.before_each_step()
            self.steps += 1
            if self.steps == 4:
                raise ValueError("the fourth step\nis too much")
            for reward in self.reward_funcs:
                reward(completion_ids=self.answers, trainer_state=None)


def take_toy_steps(connection: Connection, build: Callable[[Training], ToyTrainer]) -> None:
    """Without transformers, whose import takes seconds."""
    take_steps(connection, build, lambda trainer, wait: vars(trainer).update(before_each_step=wait))


def toy(connection: Connection) -> None:
    def build(training: Training) -> ToyTrainer:
        assert Path(training.output).is_dir() and training.overrides == {"grpo.seed": 1}
        return ToyTrainer(ANSWERS)

    take_toy_steps(connection, build)


def shorter(connection: Connection) -> None:
    """One answer of twenty differs: rounding, or so."""
    take_toy_steps(connection, lambda training: ToyTrainer([[0], *ANSWERS[1:]]))


def other(connection: Connection) -> None:
    take_toy_steps(connection, lambda training: ToyTrainer([[7], [7], [7], *ANSWERS[3:]]))


def in_pieces(connection: Connection) -> None:
    take_toy_steps(connection, lambda training: ToyTrainer(ANSWERS, pieces=2))


def entry(tmp_path: Path, second: Callable[[Connection], None]) -> GrpoStep:
    overrides = {"grpo.seed": 1}
    sides = (("ours", toy), ("theirs", second))
    return GrpoStep(
        logs=tmp_path, model=tmp_path, overrides=overrides, sides=sides, learning_steps=0
    )


def test_steps_in_turn_and_what_they_scored(tmp_path: Path) -> None:
    (report,) = measure(entry(tmp_path, shorter), rounds=2)
    assert report.sides == ("ours", "theirs")
    assert "20 answers a step; of the first step's 95% are the same" in report.title
    ours, theirs = (report.samples[side] for side in report.sides)
    assert ours["tokens"] == [60, 60] and theirs["tokens"] == [58, 58]
    assert ours["answers"] == [20, 20] and ours["reward"] == [0.5, 0.5]
    assert ours["first_answers_same"] == [0.95, 0.95]
    assert all(seconds > 0 for seconds in ours["step_s"] + theirs["step_s"])
    assert all(0.01 < gib < 4 for gib in ours["peak_gib"])
    step, _, memory, tokens, _ = report.rows
    assert step.bar == "ratio at most 0.75" and memory.bar == "median at most 6 GiB"
    assert tokens.proves and tokens.met and tokens.bar == "ratio 1 ± 0.05"


class Learner(ToyTrainer):
    """Is right more often from step to step."""

    def reward(self, *, completion_ids: Any, trainer_state: Any) -> list[float]:
        return [min(self.steps / 5, 1.0)] * len(completion_ids)

    def train(self) -> None:
        while True:
            self.before_each_step()
            self.steps += 1
            self.reward_funcs[0](completion_ids=self.answers, trainer_state=None)


def learner(connection: Connection) -> None:
    take_toy_steps(connection, lambda training: Learner(ANSWERS))


@pytest.mark.parametrize(("most_steps", "learned"), [(20, [6.0, 6.0]), (5, [])])
def test_ours_goes_on_until_it_has_learned(
    tmp_path: Path, most_steps: int, learned: list[float]
) -> None:
    """Rewards 0.2, 0.4, 0.6, 0.8, 1, 1: the mean of three is 0.9 at the sixth step."""
    sides = (("ours", learner), ("theirs", learner))
    asked = GrpoStep(logs=tmp_path, model=tmp_path, sides=sides, learning_steps=most_steps)
    steps, learning = measure(asked, rounds=2)
    assert steps.samples["ours"]["reward"] == pytest.approx([0.4, 0.6])
    assert learning.samples["ours"].get("learned_step", []) == learned
    assert learning.samples["theirs"] == {}
    assert learning.rows[0].met == bool(learned) and learning.rows[0].bar == "median at most 180 s"


def test_trainers_that_score_other_answers_are_not_compared(tmp_path: Path) -> None:
    said = r"first step's answers 85% are the same .* not 90%: they do not do the same work"
    with pytest.raises(WorkshopError, match=said):
        measure(entry(tmp_path, other), rounds=1)


def test_a_step_that_fails_is_one_line(tmp_path: Path) -> None:
    said = (
        r"^ours, round 3 of 3: ours trainer failed: ValueError: the fourth step is too much;"
        r" see .*ours-trainer\.log$"
    )
    with pytest.raises(WorkshopError, match=said):
        measure(entry(tmp_path, toy), rounds=3)
    assert "Traceback" in (tmp_path / "ours-trainer.log").read_text()


def test_a_step_in_pieces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkshopError, match=r"theirs trainer failed: .* a step of 2 pieces"):
        measure(entry(tmp_path, in_pieces), rounds=1)


def test_answers_are_compared_in_their_places() -> None:
    assert share_of_same([[1], [2]], [[2], [1]]) == 0
    assert share_of_same([[1], [2, 3]], [[1], [2, 3]]) == 1
    for theirs in ([[1]], []):
        with pytest.raises(WorkshopError, match=f"2 answers and the other {len(theirs)}"):
            share_of_same([[1], [2]], theirs)
