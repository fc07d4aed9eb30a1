"""The laptop's GRPO trainer: TRL on the CPU, from a NeMo RL recipe.

`plan_training` refuses what cannot work before anything is written; `train` runs. What TRL's
trainer does on a GPU is changed in four places only: a group's prompt is computed once
(`shared_prompts`), checkpoints are whole or not there (`record`), a resumed run asks the prompts in
the order that they would have had, and a reference can be watched without being penalised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from workshop_lib.serving.models import is_ready, model_path
from workshop_lib.serving.models.files import problem_of
from workshop_lib.training.lora import (
    inner_model,
    load_adapter,
    lora_config,
    save_weights,
    start_adapter,
)
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.recipe import Recipe
from workshop_lib.training.record import Recorder, RunFolder, TrainingError, step_of
from workshop_lib.training.rewards import Reward, for_trl, reward_for
from workshop_lib.training.runs import marked_line
from workshop_lib.training.shared_prompts import (
    can_share_prompts,
    pack,
    per_token_logps,
    share_prompts_in_generate,
)
from workshop_lib.training.translate import Translation, translate

__all__ = [
    "Plan",
    "Result",
    "TrainingError",
    "build_trainer",
    "model_folder",
    "plan_training",
    "prepare_environment",
    "train",
]


@dataclass(frozen=True)
class Plan:
    """A training that was checked and can start.

    Attributes:
        recipe: The recipe.
        translation: The same for TRL.
        model: Folder of the model to start from.
        folder: Where it writes.
        problems: Problems to train on.
        reward_name: The reward's name in the recipe.
        reward: The reward.
        resume_from: The checkpoint to go on from, if any.
    """

    recipe: Recipe
    translation: Translation
    model: Path
    folder: RunFolder
    problems: tuple[Problem, ...]
    reward_name: str
    reward: Reward
    resume_from: Path | None = None

    def describe(self) -> str:
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

        names = ("torch", "transformers", "trl", "peft")
        return {
            "recipe": str(self.recipe.path),
            "settings": self.recipe.settings,
            "model": str(self.model),
            "steps": self.translation.steps,
            "arguments": self.translation.arguments,
            "lora": self.translation.lora,
            "versions": {name: version(name) for name in names},
            "started": time.time(),
        }

    def prompts(self) -> list[Any]:
        """The prompts in the form that TRL takes them: texts, or conversations."""
        if self.recipe.plain_prompts:
            return [problem.system + problem.prompt for problem in self.problems]
        return [problem.messages for problem in self.problems]


@dataclass(frozen=True)
class Result:
    """A training that ended: its checkpoint, its steps, how long and how large it was.

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
    if resume and overwrite:
        raise TrainingError("--resume keeps the run that --overwrite removes; give one of the two")
    place = RunFolder(Path(output).absolute(), keep=recipe.checkpointing.keep_top_k)
    place.check_free(overwrite=overwrite or resume)
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
    if len(problems) < (wanted := recipe.grpo.num_prompts_per_step):
        raise TrainingError(
            f"{recipe.path}: grpo.num_prompts_per_step is {wanted}, data.train has"
            f" {len(problems)} problems"
        )
    plan = Plan(recipe, translation, folder, place, tuple(problems), name, reward)
    return replace(plan, resume_from=place.resume_from(plan.about())) if resume else plan


def model_folder(recipe: Recipe, model: str | Path | None, *, option: str = "--model") -> Path:
    """The folder of the model to train.

    Args:
        recipe: Its `policy.model_name` is trained when no folder is named.
        model: A folder.
        option: What the caller calls that folder, for errors.

    Raises:
        TrainingError: The folder holds no model, or the recipe's model is not on this machine.
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
        report: Called with each marked line (`runs.read_log` reads them).

    Raises:
        WorkshopError: A prompt is too long for the recipe, or training failed.

    Example:
        >>> train(plan).checkpoint.name  # doctest: +SKIP
        'step_12'
    """
    import resource

    trainer = build_trainer(plan, say=say, report=report)
    steps, resume = plan.translation.steps, plan.resume_from
    if resume is not None:
        say(f"Going on from {resume}")
    say(f"Training: {plan.describe()}")
    if report is not None:
        after = {} if resume is None else {"after": step_of(resume)}
        report(marked_line("start", steps=steps, **after))
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume and str(resume))
    seconds = time.perf_counter() - started
    checkpoint = plan.folder.checkpoint(steps)
    if not checkpoint.exists():  # the last step is saved even if it is not its turn
        with plan.folder.writing(steps) as folder:
            trainer.save_model(str(folder))
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"Trained {steps} steps in {seconds:.0f} s, {peak_gib:.1f} GiB at most; saved {checkpoint}")
    if report is not None:
        report(marked_line("saved", checkpoint=str(checkpoint.relative_to(plan.folder.place))))
    return Result(checkpoint, steps, seconds, peak_gib)


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
        report: Called with each marked line.

    Returns:
        A `trl.GRPOTrainer`, see `trainer_class`.

    Raises:
        WorkshopError: A prompt is too long for the recipe.
    """
    _quiet()
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig

    say(f"Loading {plan.model.name}")
    tokenizer = AutoTokenizer.from_pretrained(str(plan.model), padding_side="left")
    _set_chat_template(tokenizer, plan.recipe)
    new_tokens = _new_tokens(plan, tokenizer)
    after = 0 if plan.resume_from is None else step_of(plan.resume_from)
    elapsed_s = plan.folder.claim(plan.about(), after=after)
    # Ray starts its jobs with OMP_NUM_THREADS=1.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _keep_memory()
    translation = plan.translation

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(str(plan.model), dtype=torch.float32)

    recorder = Recorder(
        plan.folder.place,
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
    reference = load().requires_grad_(False).eval() if keeps else None
    trainer = trainer_class()(
        model=load(),
        reward_funcs=for_trl(plan.reward, plan.reward_name),
        args=GRPOConfig(
            output_dir=str(plan.folder.place),
            logging_steps=translation.updates_per_step,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **translation.arguments | {"max_completion_length": new_tokens},
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": prompt, "answer": problem.answer}
                for prompt, problem in zip(plan.prompts(), plan.problems, strict=True)
            ]
        ),
        processing_class=tokenizer,
        peft_config=lora_config(translation.lora) if translation.lora else None,
    )
    if translation.lora:
        seed = translation.arguments["seed"]
        start_adapter(trainer.model, init=translation.lora["init"], seed=seed)
    if translation.watch_kl:
        trainer.watch_reference(reference)
    trainer.folder, trainer.recorder = plan.folder, recorder
    trainer.updates_per_step = translation.updates_per_step
    trainer.remove_callback(PrinterCallback)
    return trainer


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


def _new_tokens(plan: Plan, tokenizer: Any) -> int:
    """How many tokens an answer may have: TRL has one limit for all, and none for prompts.

    NeMo RL's own value, as many as the whole sequence, means: until it is full.
    """
    room: int = plan.recipe.policy.max_total_sequence_length
    new: int = plan.translation.arguments["max_completion_length"]
    longest = 0
    for prompt in plan.prompts():
        ids = (
            tokenizer(prompt)["input_ids"]
            if isinstance(prompt, str)
            else tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=False
            )
        )
        longest = max(longest, len(ids))
    fits = min(new, room - longest) if new == room else new
    if longest + max(fits, 1) > room:
        raise TrainingError(
            f"{plan.recipe.path}: a prompt of {longest} tokens and {max(fits, 1)} new ones do not"
            f" fit in policy.max_total_sequence_length {room}"
        )
    return fits


# -- TRL's trainer


@cache
def trainer_class() -> type[Any]:
    """`GRPOTrainer` for a laptop; made when asked for, because importing TRL takes seconds."""
    import torch
    from transformers import TrainerCallback
    from trl import GRPOTrainer
    from trl.trainer.utils import RepeatSampler, add_fused_lm_head

    class EpochSampler(RepeatSampler):  # type: ignore[misc]
        """TRL's sampler; it can begin with a later epoch, in the order that it would have had."""

        def set_epoch(self, epoch: int) -> None:
            if self.shuffle:
                self.generator.manual_seed(self.seed)
                for _ in range(epoch):
                    torch.randperm(self.num_samples, generator=self.generator)

    class Recording(TrainerCallback):  # type: ignore[misc]
        """Hands each step's log to the trainer's recorder."""

        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.trainer.recorder.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if "reward" in logs:  # the last log of a run has totals only
                self.trainer.recorder.record(state.global_step, logs, self.trainer._logs)

    class LaptopGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
        folder: RunFolder
        recorder: Recorder
        updates_per_step: int
        _watching = False
        _reference: Any = None  # a model of its own; under LoRA the policy without its adapter
        _policy_logps: Any = None  # of the latest pass
        _staging: Path | None = None  # where a checkpoint is being written

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Recording(self))
            if can_share_prompts(self.model):
                share_prompts_in_generate(self.model)

        def watch_reference(self, reference: Any) -> None:
            """Record the KL divergence from a frozen model (None under LoRA) without a penalty."""
            self._watching, self._reference = True, reference
            if reference is not None:
                add_fused_lm_head(reference, temperature=self.temperature)

        # -- log-probabilities

        def _get_per_token_logps_and_entropies(
            self,
            model: Any,
            input_ids: Any,
            attention_mask: Any,
            logits_to_keep: int,
            **settings: Any,
        ) -> tuple[Any, Any, Any]:
            packing = None
            if can_share_prompts(model) and not settings.get("compute_aux_loss"):
                dtype = inner_model(model).dtype
                packing = pack(input_ids, attention_mask, logits_to_keep, dtype=dtype)
            if packing is None:
                theirs: tuple[Any, Any, Any] = super()._get_per_token_logps_and_entropies(
                    model, input_ids, attention_mask, logits_to_keep, **settings
                )
                self._policy_logps = theirs[0]
                return theirs
            targets = input_ids[:, -logits_to_keep:]
            logps, entropies = per_token_logps(
                model, packing, targets, temperature=self.temperature
            )
            # TRL's are zero at the padding.
            shown = attention_mask[:, -logits_to_keep:]
            self._policy_logps = logps * shown
            return self._policy_logps, entropies * shown, None

        def _reference_logps(self, batch: dict[str, Any]) -> Any:
            """Log-probabilities that the reference gives a step's answers."""
            ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            length = batch["completion_ids"].size(1)
            if self._reference is not None:
                model, off = self._reference, nullcontext()
            else:
                model = self.accelerator.unwrap_model(self.model)
                off = model.disable_adapter()
            size = self.args.per_device_train_batch_size
            with torch.no_grad(), off:
                return self._get_per_token_logps_and_entropies(
                    model, ids, mask, length, batch_size=size
                )[0]

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            if self._watching:
                mask = inputs["completion_mask"]
                apart = (inputs["ref_per_token_logps"] - self._policy_logps.detach()) * mask
                # The estimator k3 of Schulman 2020, "Approximating KL divergence", as TRL's.
                kl = ((apart.exp() - apart - 1) * mask).sum() / mask.sum()
                self._metrics["train"]["kl"].append(kl.item())
            self._policy_logps = None
            return loss

        # -- prompts and answers

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            theirs = super()._get_train_sampler(dataset)
            return EpochSampler(
                data_source=theirs.data_source,
                mini_repeat_count=theirs.mini_repeat_count,
                batch_size=theirs.batch_size,
                repeat_count=theirs.repeat_count,
                shuffle=theirs.shuffle,
                seed=theirs.seed,
            )

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
            if self._watching:
                batch["ref_per_token_logps"] = self._reference_logps(batch)
            return batch

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            with self._timed("reward"):
                return super()._calculate_rewards(*args, **kwargs)

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            # Answers are the model's own: without the dropout that an adapter may train with.
            self.model.eval()
            try:
                with self._timed("generation"):
                    return super()._generate_single_turn(*args, **kwargs)
            finally:
                self.model.train()

        @contextmanager
        def _timed(self, stage: str) -> Iterator[None]:
            started, seconds = time.perf_counter(), self.recorder.seconds
            try:
                yield
            finally:
                seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started

        # -- checkpoints

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            save_weights(self.accelerator.unwrap_model(self.model), folder)
            self.processing_class.save_pretrained(str(folder))

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """As `Trainer` does, and whole or not at all; TRL adds a card for the hub."""
            step = self.state.global_step // self.updates_per_step
            with self.folder.writing(step) as folder:
                self._staging = folder
                super(GRPOTrainer, self)._save_checkpoint(model, trial)
                # Its own name for it, below the folder that it is given.
                (inner,) = folder.iterdir()
                for file in inner.iterdir():
                    file.rename(folder / file.name)
                inner.rmdir()
            self._staging = None

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            policy = self.accelerator.unwrap_model(self.model)
            if inner_model(policy) is policy:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                load_adapter(policy, Path(resume_from_checkpoint))

        def _get_output_dir(self, trial: Any) -> str:
            # `Trainer` asks at the end too, whether or not anything was saved before.
            return str(self._staging or super()._get_output_dir(trial))

    tuned: type[Any] = LaptopGRPOTrainer
    return tuned


# -- the process that trains

# Everything is on disk by now, and a hub that is out of reach costs minutes. For a process of
# our own only: a notebook's kernel that trains may want the hub afterwards.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what must be set before torch is imported; what is set already stays."""
    for name, value in _ENVIRONMENT.items():
        environment.setdefault(name, value)


def _quiet() -> None:
    """No progress bars of others, no warnings that a learner can do nothing about."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", module="trl|transformers|torch")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _keep_memory() -> None:
    """Have glibc keep freed memory for the next step instead of giving it back.

    A step allocates and frees gigabytes in large blocks. By default each block is
    fetched from the kernel page by page every time: 1.3 million page faults and a
    fifth of the step's CPU time were seen.
    """
    import ctypes

    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc: slower, nothing else
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
