"""`grpo-step`: a step of the laptop's GRPO trainer, against TRL's own.

The same model, seed, problems and settings in two processes that are alive at once, each
with all cores while the other one waits. That both do the same work is seen in what they
score: the first step's answers, which come from the same weights and the same seed, must be
the same but for a few that rounding tips over, and the number of tokens later on.

Then our side alone goes on until it has learned: how long training took until the mean reward of
three consecutive steps reached 0.9.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.cpu_times import process_cpu_s
from workshop_lib.tools.measures.frame import Bar, Comparison, Quantity, Sample, Side
from workshop_lib.tools.measures.trainers import Step, Training, trl_trainer, workshop_trainer
from workshop_lib.tools.measures.workers import Worker, peak_memory_bytes

__all__ = ["GrpoStep", "share_of_same"]

Target: TypeAlias = Callable[[Connection], None]

START_TIMEOUT_S = 180.0
"""A cold import of torch and TRL takes most of it."""

STEP_TIMEOUT_S = 300.0

LEAST_SAME = 0.9
"""Of the first step's answers; rounding may tip over a draw, and then the rest of an answer."""

LEARNED_REWARD, LEARNED_STEPS = 0.9, 3
"""The task is learned when the mean reward of so many steps is so high."""

_QUANTITIES = (
    Quantity("step_s", "time per step", "s", Bar("ratio", "at most", 0.75)),
    Quantity("cpu_s", "CPU time per step", "s"),
    Quantity("peak_gib", "memory of the process, peak", "GiB", Bar("median", "at most", 6.0)),
    Quantity(
        "tokens",
        "answers' tokens scored per step",
        "tokens",
        Bar("ratio", "1 ±", 0.05, proves=True),
    ),
    Quantity("reward", "mean reward", "0 to 1"),
)

_LEARNING = (
    Quantity(
        "learned_s",
        f"training until {LEARNED_STEPS} steps' mean reward is {LEARNED_REWARD}",
        "s",
        Bar("median", "at most", 180.0),
    ),
    Quantity("learned_step", "the last of them", "step"),
)


@dataclass(frozen=True)
class GrpoStep:
    """The entry.

    Attributes:
        logs: Where the processes' logs go.
        recipe: The recipe.
        overrides: Values by dotted key that replace the recipe's.
        model: The folder of the model; None: the workshop's own, made if it is not there.
        sides: The two sides, ours first: a name and what its process does.
        learning_steps: Steps after which ours has not learned; 0: it is not asked to.
        name, rounds: See `Entry`.
    """

    logs: Path
    recipe: Path = field(default_factory=lambda: data_path("recipes/arithmetic.yaml"))
    overrides: Mapping[str, Any] = field(default_factory=dict)
    model: Path | None = None
    sides: tuple[tuple[str, Target], tuple[str, Target]] = (
        ("workshop", workshop_trainer),
        ("TRL", trl_trainer),
    )
    learning_steps: int = 20
    name: str = "grpo-step"
    rounds: int = 5

    @contextlib.contextmanager
    def prepare(self, say: Callable[[str], None]) -> Iterator[Sequence[Comparison]]:
        """Build both trainers and let each take its first step uncounted; see `Entry`."""
        from workshop_lib.serving.models import prepare

        model = self.model or prepare(on_progress=say)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            workers = [
                stack.enter_context(Worker(f"{name} trainer", target, None, self.logs))
                for name, target in self.sides
            ]
            for number, worker in enumerate(workers):
                say(f"starting {worker.name}")
                worker.wait_ready(START_TIMEOUT_S)
                output = folder / str(number)
                output.mkdir()
                training = Training(str(self.recipe), str(model), str(output), self.overrides)
                worker.ask(training, timeout_s=START_TIMEOUT_S)
            firsts: list[Step] = []
            for worker in workers:
                say(f"{worker.name}: once uncounted")
                firsts.append(worker.ask("step", timeout_s=STEP_TIMEOUT_S))
            same = share_of_same(*(step.answers for step in firsts))
            if same < LEAST_SAME:
                raise WorkshopError(
                    f"of the first step's answers {same:.0%} are the same on both sides, not"
                    f" {LEAST_SAME:.0%}: they do not do the same work"
                )
            answers = len(firsts[0].answers)
            (ours, _), (theirs, _) = self.sides
            learning = _Learning(workers[0], firsts[0], self.learning_steps)
            comparisons = [
                Comparison(
                    f"{self.name}: {answers} answers a step; of the first step's {same:.0%} are the"
                    " same on both sides",
                    {
                        ours: _side(workers[0], same, learning.note),
                        theirs: _side(workers[1], same, lambda step: None),
                    },
                    _QUANTITIES,
                )
            ]
            if self.learning_steps:
                title = f"{self.name}: how long {ours} takes to learn the task, alone"
                sides: dict[str, Side] = {ours: learning.sample, theirs: dict}
                comparisons.append(Comparison(title, sides, _LEARNING))
            yield comparisons


class _Learning:
    """Follows a training from its first step on, until the task is learned.

    Args:
        worker: The trainer.
        first: Its first step.
        most_steps: Steps after which it is given up.
    """

    def __init__(self, worker: Worker, first: Step, most_steps: int) -> None:
        self._worker = worker
        self._most_steps = most_steps
        self._seconds: list[float] = []
        self._rewards: list[float] = []
        self.note(first)

    def note(self, step: Step) -> None:
        """Take a step that was made."""
        self._seconds.append(step.seconds)
        self._rewards.append(sum(step.rewards) / len(step.rewards))

    def _learned(self) -> int | None:
        for last in range(LEARNED_STEPS, len(self._rewards) + 1):
            if sum(self._rewards[last - LEARNED_STEPS : last]) >= LEARNED_STEPS * LEARNED_REWARD:
                return last
        return None

    def sample(self) -> Sample:
        """Train on until it is learned; nothing where it is not."""
        while (last := self._learned()) is None and len(self._rewards) < self._most_steps:
            self.note(self._worker.ask("step", timeout_s=STEP_TIMEOUT_S))
        if last is None:
            return {}
        return {"learned_s": sum(self._seconds[:last]), "learned_step": last}


def _side(worker: Worker, same: float, note: Callable[[Step], None]) -> Side:
    """A trainer's next step, as a side of a comparison."""

    def sample() -> Sample:
        cpu_before_s = process_cpu_s(worker.pid)
        step: Step = worker.ask("step", timeout_s=STEP_TIMEOUT_S)
        note(step)
        return {
            "step_s": step.seconds,
            "cpu_s": process_cpu_s(worker.pid) - cpu_before_s,
            "peak_gib": peak_memory_bytes(worker.pid) / 2**30,
            "tokens": sum(map(len, step.answers)),
            "answers": len(step.answers),
            "reward": sum(step.rewards) / len(step.rewards),
            "first_answers_same": same,
        }

    return sample


def share_of_same(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> float:
    """How many of two lists of answers are the same in the same place, 0 to 1.

    Args:
        ours: Tokens of each answer.
        theirs: The same of the other side.

    Raises:
        WorkshopError: There are none, or not as many.

    Example:
        >>> share_of_same([[1, 2], [3]], [[1, 2], [4]])
        0.5
    """
    if not ours or len(ours) != len(theirs):
        raise WorkshopError(f"one side scored {len(ours)} answers and the other {len(theirs)}")
    same = sum(list(one) == list(other) for one, other in zip(ours, theirs, strict=True))
    return same / len(ours)
