"""Two GRPO trainers for the same recipe: the laptop's, and TRL's own.

Each runs in a process of its own (see `workers`) and takes one step each time that it is
told to, so that the steps of both can be measured in turn. The first message is a
`Training`, which is answered when the trainer is built; each one after it is answered with
a `Step`.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.training.process import prepare_environment

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from workshop_lib.training.engine import Plan

__all__ = ["Step", "Training", "take_steps", "trl_trainer", "workshop_trainer"]

STEPS = 10_000
"""More than are ever asked for: the training ends when no more are."""


@dataclass(frozen=True)
class Training:
    """What both train.

    Attributes:
        recipe: The recipe's file.
        model: The folder of the model to start from.
        output: An empty folder for what a trainer writes.
        overrides: Values by dotted key that replace the recipe's.
    """

    recipe: str
    model: str
    output: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step: answers sampled, scored and learned from, and the step's log written.

    Attributes:
        seconds: Wall time.
        answers: The tokens of each answer that was scored.
        rewards: The reward of each.
    """

    seconds: float
    answers: list[list[int]]
    rewards: list[float]


def workshop_trainer(connection: Connection) -> None:
    """Be the laptop's engine, as `python -m workshop_lib.training.train` builds it."""
    _import()
    take_steps(connection, _workshop)


def trl_trainer(connection: Connection) -> None:
    """Be `trl.GRPOTrainer`, as a user of TRL would make it with the recipe's arguments."""
    _import()
    take_steps(connection, _trl)


def _import() -> None:
    """What takes long, before it is said that the process is ready: in both at once."""
    # Both sides alike, so that what differs is the trainer. Here alone: other processes of this
    # run may need a hub.
    prepare_environment()
    import trl.trainer.grpo_trainer  # noqa: F401


def _plan(training: Training) -> Plan:
    from workshop_lib.training.engine import plan_training
    from workshop_lib.training.recipe import read_recipe

    # Saving is no part of a step.
    overrides = {"checkpointing.enabled": False, **training.overrides}
    recipe = read_recipe(training.recipe, overrides)
    return plan_training(recipe, output=training.output, model=training.model, steps=STEPS)


def _workshop(training: Training) -> Any:
    from workshop_lib.training.engine import build_trainer

    return build_trainer(_plan(training))


def _trl(training: Training) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from workshop_lib.training.rewards import for_trl

    plan = _plan(training)
    if not plan.recipe.plain_prompts:
        raise WorkshopError(f"{training.recipe}: both sides are given plain prompts only")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # all cores, as on our side
    arguments = dict(plan.translation.arguments)
    del arguments["optim"]  # TRL's own choice
    rows = [
        {"prompt": problem.system + problem.prompt, "answer": problem.answer}
        for problem in plan.problems
    ]
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(training.model, dtype=torch.float32),
        reward_funcs=for_trl(plan.reward, plan.reward_name),
        args=GRPOConfig(
            output_dir=training.output,
            logging_steps=plan.translation.updates_per_step,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **arguments,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(training.model, padding_side="left"),
    )


def _before_each_step(trainer: Any, action: Callable[[], None]) -> None:
    """Have a trainer of transformers call something before each step."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            action()

    trainer.add_callback(Callback())


def take_steps(
    connection: Connection,
    build: Callable[[Training], Any],
    before_each_step: Callable[[Any, Callable[[], None]], None] = _before_each_step,
) -> None:
    """Build a trainer, then let it go one step at a time, until the other end is closed.

    Args:
        connection: Where `Training` and then the word for each step come from.
        build: Makes a trainer that has `reward_funcs`.
        before_each_step: Has the trainer call a function before each step.
    """
    connection.send(None)  # ready
    try:
        trainer = build(connection.recv())
        gate = _Gate(connection)
        trainer.reward_funcs = [gate.noting(reward) for reward in trainer.reward_funcs]
        before_each_step(trainer, gate.wait)
        if (pieces := trainer.args.gradient_accumulation_steps) != 1:
            raise WorkshopError(
                f"a step of {pieces} pieces cannot be compared;"
                " let policy.train_micro_batch_size be policy.train_global_batch_size"
            )
        connection.send(None)
        trainer.train()
    except EOFError:
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the asker raises it
        traceback.print_exc()  # into this process's log
        text = " ".join(f"{type(error).__name__}: {error}".split())
        connection.send(WorkshopError(text))


class _Gate:
    """Lets a trainer through one step at a time, and notes what it scored.

    A step is timed from being let go until the trainer asks for the next: writing its log
    is part of it, on either side.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._began: float | None = None
        self._answers: list[list[int]] = []
        self._rewards: list[float] = []

    def noting(self, reward: Callable[..., list[float]]) -> Callable[..., list[float]]:
        """A reward function that notes the answers that it scores."""

        def noted(*, completion_ids: Sequence[Sequence[int]], **given: Any) -> list[float]:
            values = reward(completion_ids=completion_ids, **given)
            self._answers += [list(tokens) for tokens in completion_ids]
            self._rewards += values
            return values

        return noted

    def wait(self) -> None:
        """Answer for the step that is done, and wait for the next to be asked for.

        Raises:
            EOFError: No more are.
        """
        if self._began is not None:
            seconds = time.perf_counter() - self._began
            self._connection.send(Step(seconds, self._answers, self._rewards))
        self._answers, self._rewards = [], []
        self._connection.recv()
        self._began = time.perf_counter()
