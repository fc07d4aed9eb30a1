"""A training that is checked before anything is written."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workshop_lib.serving.models import is_ready, model_path
from workshop_lib.serving.models.files import problem_of
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.recipe import Recipe
from workshop_lib.training.record import RunFolder, TrainingError
from workshop_lib.training.rewards import Reward, reward_for
from workshop_lib.training.translate import Translation, translate

__all__ = ["Plan", "model_folder", "plan_training"]


@dataclass(frozen=True)
class Plan:
    """A training that was checked and can start, from a checkpoint if it is resumed."""

    recipe: Recipe
    translation: Translation
    model: Path
    folder: RunFolder
    problems: tuple[Problem, ...]
    reward_name: str
    reward: Reward
    resume_from: Path | None = None

    def __str__(self) -> str:
        """One line: what is trained on what, and how much of it."""
        grpo, lora = self.recipe.grpo, self.translation.lora
        return (
            f"{self.translation.steps} steps of {self.recipe.completions_per_step} completions"
            f" ({grpo.num_prompts_per_step} prompts x {grpo.num_generations_per_prompt}), up to"
            f" {self.translation.arguments['max_completion_length']} tokens each, on"
            f" {len(self.problems)} problems; reward {self.reward_name}"
            + (f"; LoRA of rank {lora['r']}" if lora else "")
        )

    def about(self) -> dict[str, Any]:
        """What is run, for `run.json`."""
        from importlib.metadata import version

        return {
            "recipe": str(self.recipe.path),
            "settings": self.recipe.settings,
            "model": str(self.model),
            "steps": self.translation.steps,
            "arguments": self.translation.arguments,
            "lora": self.translation.lora,
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
            "started": time.time(),
        }

    def prompts(self) -> list[Any]:
        """The prompts in the form that TRL takes them: texts, or conversations."""
        if self.recipe.plain_prompts:
            return [problem.system + problem.prompt for problem in self.problems]
        return [problem.messages for problem in self.problems]


def plan_training(
    recipe: Recipe,
    *,
    output: str | Path,
    model: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Plan:
    """Check everything that a training needs; write nothing.

    `output` may not hold a run yet, unless that run is removed (`overwrite`) or goes on from its
    newest checkpoint with the optimizer's state, as if it had not been stopped (`resume`). The
    model is by default where the workshop prepared the recipe's `policy.model_name`.
    """
    if resume and overwrite:
        raise TrainingError("--resume keeps the run that --overwrite removes; give one of the two")
    place = RunFolder(Path(output).absolute(), keep=recipe.checkpointing.keep_top_k)
    place.check_free(overwrite=overwrite or resume)
    folder = model_folder(recipe, model)
    problems = load_problems(recipe)
    name, reward = reward_for(recipe)
    for problem in problems:
        reward("", problem.answer)  # an answer that no completion could match is an error
    translation = translate(recipe, problems=len(problems))
    if refused := translation.refused:
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise TrainingError(
            f"{recipe.path}: {refused[0].key}: {refused[0].value} cannot be trained on this"
            f" machine: {refused[0].reason}{others}"
        )
    if len(problems) < (wanted := recipe.grpo.num_prompts_per_step):
        raise TrainingError(
            f"{recipe.path}: grpo.num_prompts_per_step is {wanted}, data.train has"
            f" {len(problems)} problems"
        )
    plan = Plan(recipe, translation, folder, place, tuple(problems), name, reward)
    return replace(plan, resume_from=place.resume_from(plan.about())) if resume else plan


def model_folder(recipe: Recipe, model: str | Path | None = None) -> Path:
    """The folder of the model to train: the one given, or the recipe's where it was prepared."""
    if model is not None:
        if problem := problem_of(Path(model)):
            raise TrainingError(f"--model {model} cannot be used: {problem}")
        return Path(model).absolute()
    name = recipe.policy.model_name
    if not is_ready(name):
        raise TrainingError(
            f"{name} is not here; run `python -m workshop_lib.serving.models prepare {name}`, or"
            " name a folder with --model"
        )
    return model_path(name)
