"""A step of the laptop's GRPO trainer, against TRL's own; then how long ours takes to learn.

The same model, seed, problems and settings in two processes that are alive at once, each with all
cores while the other one waits. That both do the same work is seen in what they score: the first
step's answers, which come from the same weights and the same seed, must be the same but for a few
that rounding tips over. Then our side alone goes on until the mean reward of three consecutive
steps has reached 0.9.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from frame import Bench, Row, Sample, Worker, cpu_s, peak_memory_bytes, run

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError

START_TIMEOUT_S, STEP_TIMEOUT_S = 180.0, 300.0
STEPS = 10_000  # more than are ever asked for: the training ends when no more are
LEAST_SAME = 0.9  # of the first step's answers; rounding may tip over a draw
MOST_STEPS = 20  # after which the task is not learned
ROWS: list[Row] = [
    ("step_s", "time per step, s", "ratio <= 0.40"),
    ("cpu_s", "CPU time per step, s", ""),
    ("peak_gib", "memory of the process, peak, GiB", "median <= 3.5"),
    ("tokens", "answers' tokens scored per step", ""),
    ("reward", "mean reward", ""),
]


@dataclass(frozen=True)
class Training:
    """What both train."""

    model: str
    output: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One step: answers sampled, scored and learned from, and the step's log written."""

    seconds: float
    answers: list[list[int]]
    rewards: list[float]


def plan_of(training: Training) -> Any:
    from workshop_lib.training.plan import plan_training
    from workshop_lib.training.recipe import read_recipe

    # Saving is no part of a step. As many epochs as are needed.
    overrides = {"checkpointing.enabled": False, "grpo.max_num_steps": STEPS}
    overrides |= {"grpo.max_num_epochs": STEPS, **training.overrides}
    recipe = read_recipe(data_path("recipes/arithmetic.yaml"), overrides)
    return plan_training(recipe, output=training.output, model=training.model)


def workshop_trainer(link: Connection) -> None:
    """Be the laptop's trainer, as `python -m workshop_lib.training.train` builds it."""

    def build(training: Training) -> Any:
        from workshop_lib.training.trainer import build_trainer

        return build_trainer(plan_of(training))

    take_steps(link, build)


def trl_trainer(link: Connection) -> None:
    """Be `trl.GRPOTrainer`, as a user of TRL would make it with the recipe's arguments."""

    def build(training: Training) -> Any:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        from workshop_lib.training.rewards import for_trl

        plan = plan_of(training)
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # all cores, as on our side
        arguments = dict(plan.translation.arguments)
        del arguments["optim"]  # TRL's own choice
        pairs = zip(plan.prompts(), plan.problems, strict=True)
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
            train_dataset=Dataset.from_list(
                [{"prompt": prompt, "answer": problem.answer} for prompt, problem in pairs]
            ),
            processing_class=AutoTokenizer.from_pretrained(training.model, padding_side="left"),
        )

    take_steps(link, build)


def take_steps(link: Connection, build: Callable[[Training], Any]) -> None:
    """Build a trainer, then let it go one step at a time, until the other end is closed.

    A step is timed from being let go until the trainer asks for the next: writing its log
    is part of it, on either side.
    """
    from workshop_lib.training.train import prepare_environment

    prepare_environment()
    from transformers import TrainerCallback

    link.send(None)  # ready
    trainer = build(link.recv())
    link.send(None)
    answers: list[list[int]] = []
    rewards: list[float] = []
    began = 0.0

    def noting(reward: Callable[..., list[float]]) -> Callable[..., list[float]]:
        def noted(*, completion_ids: Sequence[Sequence[int]], **given: Any) -> list[float]:
            values = reward(completion_ids=completion_ids, **given)
            answers.extend(list(tokens) for tokens in completion_ids)
            rewards.extend(values)
            return values

        return noted

    class Gate(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            nonlocal began
            if began:
                link.send(Step(time.perf_counter() - began, answers[:], rewards[:]))
            answers.clear()
            rewards.clear()
            link.recv()
            began = time.perf_counter()

    trainer.reward_funcs = [noting(reward) for reward in trainer.reward_funcs]
    trainer.add_callback(Gate())
    try:
        trainer.train()
    except EOFError:
        return


def side(worker: Worker, rewards: list[float], seconds: list[float]) -> Callable[[], Sample]:
    """A trainer's next step, as a side of a comparison."""

    def sample() -> Sample:
        before_s = cpu_s(worker.pid)
        step: Step = worker.ask("step", timeout_s=STEP_TIMEOUT_S)
        rewards.append(sum(step.rewards) / len(step.rewards))
        seconds.append(step.seconds)
        return {
            "step_s": step.seconds,
            "cpu_s": cpu_s(worker.pid) - before_s,
            "peak_gib": peak_memory_bytes(worker.pid) / 2**30,
            "tokens": sum(map(len, step.answers)),
            "reward": rewards[-1],
        }

    return sample


def main() -> int:
    from workshop_lib.serving.models import prepare

    bench = Bench("grpo", rounds=5)
    model = str(prepare(on_progress=print))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        targets = {"workshop": workshop_trainer, "TRL": trl_trainer}
        workers = {
            name: stack.enter_context(Worker(f"{name} trainer", target))
            for name, target in targets.items()
        }
        rewards: dict[str, list[float]] = {name: [] for name in workers}
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        firsts: list[Step] = []
        for name, worker in workers.items():
            (folder / name).mkdir()
            worker.ask(Training(model, str(folder / name)), timeout_s=START_TIMEOUT_S)
            print(f"{name}: the first step, once uncounted", flush=True)
            firsts.append(worker.ask("step", timeout_s=STEP_TIMEOUT_S))
            rewards[name].append(sum(firsts[-1].rewards) / len(firsts[-1].rewards))
            seconds[name].append(firsts[-1].seconds)
        pairs = list(zip(*(step.answers for step in firsts), strict=True))
        same = sum(one == other for one, other in pairs) / len(pairs)
        if same < LEAST_SAME:
            raise WorkshopError(
                f"of the first step's answers {same:.0%} are the same on both sides, not"
                f" {LEAST_SAME:.0%}: they do not do the same work"
            )
        sides = {name: side(w, rewards[name], seconds[name]) for name, w in workers.items()}
        title = f"{len(pairs)} answers a step; of the first step's {same:.0%} are the same"
        bench.compare(title, sides, ROWS)
        ours = rewards["workshop"]
        while len(ours) < MOST_STEPS and sum(ours[-3:]) / 3 < 0.9:
            sides["workshop"]()
        learned = sum(ours[-3:]) / 3 >= 0.9
        bench.compare(
            f"training until three steps' mean reward is 0.9: {len(ours)} steps",
            {"workshop": lambda: {"learned_s": sum(seconds["workshop"])} if learned else {}},
            [("learned_s", "training until then, s", "median <= 120")],
            rounds=1,
        )
    return bench.finish()


if __name__ == "__main__":
    run(main)
