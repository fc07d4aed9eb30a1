"""The laptop's GRPO engine: TRL on the CPU, from a NeMo RL recipe.

`plan_training` refuses what cannot work before anything is written; `train` runs.
The output folder holds:

- `run.json`: the recipe, the model, the seed and the versions;
- `metrics.jsonl` and `completions.jsonl`: one record a step, see `metrics`;
- `checkpoints/step_<N>`: the model after that step, see `checkpoints`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workshop_lib.serving.models import is_ready, model_path
from workshop_lib.serving.models.files import problem_of
from workshop_lib.training.checkpoints import Checkpoints
from workshop_lib.training.lora import lora_config, start_adapter
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.process import keep_memory, peak_memory_gib, quiet, use_all_cores
from workshop_lib.training.recipe import Recipe
from workshop_lib.training.rewards import Reward, for_trl, reward_for
from workshop_lib.training.run_folder import (
    TrainingError,
    check_free,
    check_resume,
    checkpoints_of,
    claim,
    latest_checkpoint,
)
from workshop_lib.training.runs import marked_line
from workshop_lib.training.sampling import PromptStream
from workshop_lib.training.translate import Translation, translate

__all__ = [
    "Plan",
    "Result",
    "TrainingError",
    "build_trainer",
    "latest_checkpoint",
    "model_folder",
    "plan_training",
    "train",
]


@dataclass(frozen=True)
class Plan:
    """A training that was checked and can start.

    Attributes:
        recipe: The recipe.
        translation: The same for TRL.
        model: Folder of the model to start from.
        output: Folder to write to.
        problems: Problems to train on.
        reward_name: The reward's name in the recipe.
        reward: The reward.
        resume_from: The checkpoint to go on from, if any.
    """

    recipe: Recipe
    translation: Translation
    model: Path
    output: Path
    problems: tuple[Problem, ...]
    reward_name: str
    reward: Reward
    resume_from: Path | None = None

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the run's checkpoints go."""
        return checkpoints_of(self.output, keep=self.recipe.checkpointing.keep_top_k)

    def describe(self) -> str:
        """One line: what is trained on what, and how much of it.

        Example:
            >>> plan.describe()  # doctest: +SKIP
            '12 steps of 64 completions (8 prompts x 8), up to 6 tokens each, on 70 problems …'
        """
        grpo, lora = self.recipe.grpo, self.translation.lora
        how = f"; LoRA of rank {lora['r']}" if lora else ""
        how += "; groups without spread replaced" if grpo.use_dynamic_sampling else ""
        return (
            f"{self.translation.steps} steps of {self.recipe.completions_per_step} completions"
            f" ({grpo.num_prompts_per_step} prompts x {grpo.num_generations_per_prompt}), up to"
            f" {self.translation.arguments['max_completion_length']} tokens each, on"
            f" {len(self.problems)} problems; reward {self.reward_name}{how}"
        )


@dataclass(frozen=True)
class Result:
    """A training that ended.

    Attributes:
        checkpoint: Folder of the trained model.
        steps: Steps done.
        seconds: Seconds of training, without loading and saving.
        peak_gib: The most memory that the process held, GiB.
    """

    checkpoint: Path
    steps: int
    seconds: float
    peak_gib: float = 0.0


def plan_training(
    recipe: Recipe,
    *,
    output: str | Path,
    model: str | Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Plan:
    """Check everything that a training needs; write nothing.

    Args:
        recipe: The recipe.
        output: Folder for metrics and checkpoints; it may not hold a run yet.
        model: Folder of the model to start from; by default where the workshop
            prepared the recipe's `policy.model_name`.
        steps: Steps to train; by default the recipe's.
        seed: Seed; by default the recipe's.
        overwrite: Remove the run that `output` holds.
        resume: Go on with the run that `output` holds, from its newest checkpoint with the
            optimizer's state, as if it had not been stopped.

    Raises:
        WorkshopError: Something is missing or does not fit, in one line.

    Example:
        >>> plan = plan_training(recipe, output="build/grpo", steps=3)  # doctest: +SKIP
    """
    if steps is not None and steps < 1:
        raise TrainingError(f"--steps is {steps}; train at least one step")
    if seed is not None and not 0 <= seed < 2**32:
        raise TrainingError(f"--seed is {seed}; give a number from 0 to {2**32 - 1}")
    place = Path(output).absolute()
    if resume and overwrite:
        raise TrainingError("--resume keeps the run that --overwrite removes; give one of the two")
    check_free(place, overwrite=overwrite or resume)
    folder = model_folder(recipe, model)
    problems = load_problems(recipe)
    name, reward = reward_for(recipe)
    for problem in problems:
        reward("", problem.answer)  # an answer that no completion could match is an error
    translation = translate(recipe, problems=len(problems), steps=steps, seed=seed)
    if refused := translation.refused:
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise TrainingError(
            f"{recipe.path}: {refused[0].key}: {refused[0].value} cannot be trained on this"
            f" machine: {refused[0].reason}{others}"
        )
    _check_problems(recipe, translation, len(problems))
    plan = Plan(recipe, translation, folder, place, tuple(problems), name, reward)
    return replace(plan, resume_from=check_resume(plan)) if resume else plan


def train(
    plan: Plan,
    *,
    say: Callable[[str], None] = print,
    report: Callable[[str], None] | None = None,
) -> Result:
    """Train, and save the model.

    Args:
        plan: What to train.
        say: Called with each line of progress.
        report: Called with each marked line (`metrics.read_log` reads them).

    Raises:
        WorkshopError: A prompt is too long for the recipe, or training failed.

    Example:
        >>> train(plan).checkpoint.name  # doctest: +SKIP
        'step_12'
    """
    trainer = build_trainer(plan, say=say, report=report)
    if plan.resume_from is not None:
        say(f"Going on from {plan.resume_from}")
    say(f"Training: {plan.describe()}")
    if report is not None:
        done = plan.resume_from and int(plan.resume_from.name.removeprefix("step_"))
        report(
            marked_line("start", steps=plan.translation.steps, **({"after": done} if done else {}))
        )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=plan.resume_from and str(plan.resume_from))
    seconds = time.perf_counter() - started
    checkpoint = plan.checkpoints.path(plan.translation.steps)
    if not checkpoint.exists():  # the last step is saved even if it is not its turn
        with plan.checkpoints.writing(plan.translation.steps) as folder:
            trainer.save_model(str(folder))
    peak_gib = peak_memory_gib()
    say(
        f"Trained {plan.translation.steps} steps in {seconds:.0f} s, {peak_gib:.1f} GiB at most;"
        f" saved {checkpoint}"
    )
    if report is not None:
        report(marked_line("saved", checkpoint=str(checkpoint.relative_to(plan.output))))
    return Result(checkpoint, plan.translation.steps, seconds, peak_gib)


def build_trainer(
    plan: Plan,
    *,
    say: Callable[[str], None] = print,
    report: Callable[[str], None] | None = None,
) -> Any:
    """Load the model, claim the output folder and make the trainer; its `train()` runs the steps.

    Args:
        plan: What to train.
        say: Called with each line of progress.
        report: Called with each marked line (`metrics.read_log` reads them).

    Returns:
        A `trl.GRPOTrainer`, see `trainer.trainer_class`.

    Raises:
        WorkshopError: A prompt is too long for the recipe.

    Example:
        >>> build_trainer(plan).train()  # doctest: +SKIP
    """
    quiet()
    from transformers import AutoTokenizer

    say(f"Loading {plan.model.name}")
    tokenizer = AutoTokenizer.from_pretrained(str(plan.model), padding_side="left")
    _set_chat_template(tokenizer, plan.recipe)
    _check_lengths(plan, tokenizer)
    elapsed_s = claim(plan)
    return _trainer(plan, tokenizer, say, report, elapsed_s)


def _check_problems(recipe: Recipe, translation: Translation, problems: int) -> None:
    """Refuse a batch of more prompts than there are problems."""
    grpo = recipe.grpo
    wanted, made = grpo.num_prompts_per_step, "grpo.num_prompts_per_step is"
    if translation.prompts_per_batch > wanted:
        wanted = translation.prompts_per_batch
        made = "grpo.num_prompts_per_step x grpo.batch_multiplier is"
    if problems < wanted:
        raise TrainingError(f"{recipe.path}: {made} {wanted}, data.train has {problems} problems")


def model_folder(recipe: Recipe, model: str | Path | None, *, option: str = "--model") -> Path:
    """The folder of the model to train.

    Args:
        recipe: Its `policy.model_name` is trained when no folder is named.
        model: A folder.
        option: What the caller calls that folder, for errors.

    Raises:
        TrainingError: The folder holds no model, or the recipe's model is not on this machine.

    Example:
        >>> model_folder(recipe, None).name   # doctest: +SKIP
        'SmolLM2-135M-Instruct'
    """
    if model is not None:
        if problem := problem_of(Path(model)):
            raise TrainingError(f"{option} {model} cannot be used: {problem}")
        return Path(model).absolute()
    name = recipe.policy.model_name
    if not is_ready(name):
        raise TrainingError(
            f"{name} is not here; run `python -m workshop_lib.serving.models prepare {name}`, or"
            f" name a folder with {option}"
        )
    return model_path(name)


def _set_chat_template(tokenizer: Any, recipe: Recipe) -> None:
    template = recipe.policy.tokenizer.chat_template
    if template is None or template.lower() == "default":
        return
    if template.endswith(".jinja"):
        try:
            template = Path(template).read_text(encoding="utf-8")
        except OSError as error:
            raise TrainingError(
                f"policy.tokenizer.chat_template {template} cannot be read: {error.strerror}"
            ) from error
    tokenizer.chat_template = template


def _prompts(plan: Plan) -> list[Any]:
    """The prompts in the form that TRL takes them: texts, or conversations."""
    if plan.recipe.plain_prompts:
        return [problem.system + problem.prompt for problem in plan.problems]
    return [problem.messages for problem in plan.problems]


def _check_lengths(plan: Plan, tokenizer: Any) -> None:
    """Refuse prompts that leave no room for an answer: TRL has no limit of its own."""
    room = plan.recipe.policy.max_total_sequence_length
    new = plan.translation.arguments["max_completion_length"]
    if plan.recipe.generation.max_new_tokens is None:
        new = 1
    for prompt in _prompts(plan):
        tokens = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else None
        if tokens is None:
            tokens = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=False
            )
        if len(tokens) + new > room:
            raise TrainingError(
                f"{plan.recipe.path}: a prompt of {len(tokens)} tokens and {new} new ones do not"
                f" fit in policy.max_total_sequence_length {room}"
            )


def _trainer(
    plan: Plan,
    tokenizer: Any,
    say: Callable[[str], None],
    report: Callable[[str], None] | None,
    elapsed_s: float = 0.0,
) -> Any:
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig

    from workshop_lib.training.recorder import Recorder
    from workshop_lib.training.trainer import trainer_class

    use_all_cores()
    keep_memory()
    translation = plan.translation
    arguments = GRPOConfig(
        output_dir=str(plan.output),
        logging_steps=translation.updates_per_step,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **translation.arguments,
    )
    prompts = _prompts(plan)
    rows = [
        {"prompt": prompt, "answer": problem.answer}
        for prompt, problem in zip(prompts, plan.problems, strict=True)
    ]
    recorder = Recorder(
        plan.output,
        group_size=plan.recipe.grpo.num_generations_per_prompt,
        updates_per_step=translation.updates_per_step,
        steps=translation.steps,
        answers={problem.system + problem.prompt: problem.answer for problem in plan.problems},
        say=say,
        report=report,
        elapsed_s=elapsed_s,
    )
    # Before the trainer, which sets the seed: a watched run draws what an unwatched one would.
    keeps = translation.watch_kl and not translation.lora
    reference = _model(plan).requires_grad_(False).eval() if keeps else None
    trainer = trainer_class()(
        model=_model(plan),
        reward_funcs=for_trl(plan.reward, plan.reward_name),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(translation.lora) if translation.lora else None,
        callbacks=[recorder.callback()],
    )
    seed = translation.arguments["seed"]
    if translation.lora:
        start_adapter(trainer.model, init=translation.lora["init"], seed=seed)
    if translation.watch_kl:
        trainer.watch_reference(reference)
    if translation.prompts_per_batch:
        shuffle = translation.arguments["shuffle_dataset"]
        size = translation.prompts_per_batch
        trainer.prompts = PromptStream(len(rows), size, seed=seed, shuffle=shuffle)
        trainer.most_batches = translation.most_batches
    recorder.trainer = trainer
    trainer.checkpoints = plan.checkpoints
    trainer.updates_per_step = translation.updates_per_step
    trainer.remove_callback(PrinterCallback)
    return trainer


def _model(plan: Plan) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(plan.model), dtype=torch.float32)
