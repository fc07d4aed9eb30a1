"""TRL's GRPO trainer on the CPU, for a plan of `plan`.

What TRL's trainer does on a GPU is changed in three places only: a group's prompt is computed once
(`shared_prompts`), checkpoints are whole or not there (`record`), and a resumed run asks the
prompts in the order that they would have had.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from workshop_lib.training.plan import Plan
from workshop_lib.training.record import Recorder, RunFolder, TrainingError, step_of
from workshop_lib.training.rewards import for_trl
from workshop_lib.training.runs import marked_line
from workshop_lib.training.shared_prompts import (
    can_share_prompts,
    inner_model,
    pack,
    per_token_logps,
    share_prompts_in_generate,
)

__all__ = ["build_trainer", "train"]

# LoRA: a checkpoint has the merged model at its top, which any server reads, and the adapter in
# this folder, from which training goes on exactly: merging rounds.
_ADAPTER_FOLDER = "adapter"


def train(plan: Plan, *, say: Callable[[str], None] = print, report: bool = False) -> Path:
    """Train, save the model, and give its folder; `report` says a marked line for each step."""
    trainer = build_trainer(plan, say=say, report=report)
    folder, steps, resume = plan.folder, plan.translation.steps, plan.resume_from
    after = {} if resume is None else {"after": step_of(resume)}
    say(f"Going on from {resume}, training: {plan}" if resume else f"Training: {plan}")
    if report:
        say(marked_line("start", steps=steps, **after))
    started = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=resume and str(resume))
        seconds = time.perf_counter() - started
        if steps not in folder.steps():  # the last step is saved even if it is not its turn
            trainer.save_model(str(folder.saving / "last"))
            folder.publish(folder.saving / "last", steps)
    except OSError as error:
        raise TrainingError(f"{folder.place} cannot be written: {error}") from error
    finally:
        shutil.rmtree(folder.saving, ignore_errors=True)
    checkpoint = folder.checkpoint(steps)
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"Trained {steps} steps in {seconds:.0f} s, {peak_gib:.1f} GiB at most; saved {checkpoint}")
    if report:
        say(marked_line("saved", checkpoint=str(checkpoint.relative_to(folder.place))))
    return checkpoint


def build_trainer(plan: Plan, *, say: Callable[[str], None] = print, report: bool = False) -> Any:
    """Load the model, claim the output folder and make a `trl.GRPOTrainer`."""
    _quiet()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig

    say(f"Loading {plan.model.name}")
    translation = plan.translation
    tokenizer = AutoTokenizer.from_pretrained(str(plan.model), padding_side="left")
    _set_chat_template(tokenizer, plan.recipe.policy.tokenizer.chat_template)
    new_tokens = _new_tokens(plan, tokenizer)
    after = 0 if plan.resume_from is None else step_of(plan.resume_from)
    elapsed_s = plan.folder.claim(plan.about(), after=after)
    # Ray starts its jobs with OMP_NUM_THREADS=1.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    _keep_memory()
    trainer = _trainer_class()(
        model=AutoModelForCausalLM.from_pretrained(str(plan.model), dtype=torch.float32),
        reward_funcs=for_trl(plan.reward, plan.reward_name),
        args=GRPOConfig(
            output_dir=str(plan.folder.saving),
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
        peft_config=LoraConfig(**translation.lora) if translation.lora else None,
    )
    trainer.folder, trainer.updates_per_step = plan.folder, translation.updates_per_step
    trainer.recorder = Recorder(
        plan.folder.place,
        group_size=plan.recipe.grpo.num_generations_per_prompt,
        updates_per_step=translation.updates_per_step,
        steps=translation.steps,
        answers={problem.system + problem.prompt: problem.answer for problem in plan.problems},
        say=say,
        report=report,
        elapsed_s=elapsed_s,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _set_chat_template(tokenizer: Any, template: str | None) -> None:
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

    def ids(prompt: Any) -> Any:
        if isinstance(prompt, str):
            return tokenizer(prompt)["input_ids"]
        return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)

    room: int = plan.recipe.policy.max_total_sequence_length
    new: int = plan.translation.arguments["max_completion_length"]
    longest = max(len(ids(prompt)) for prompt in plan.prompts())
    fits = max(room - longest, 1) if new == room else new
    if longest + fits > room:
        raise TrainingError(
            f"{plan.recipe.path}: a prompt of {longest} tokens and {fits} new ones do not fit in"
            f" policy.max_total_sequence_length {room}"
        )
    return fits


@cache
def _trainer_class() -> type[Any]:
    """`GRPOTrainer` for a laptop; made when asked for, because importing TRL takes seconds."""
    import torch
    from transformers import TrainerCallback
    from trl import GRPOTrainer
    from trl.trainer.utils import RepeatSampler

    class EpochSampler(RepeatSampler):  # type: ignore[misc]
        """TRL's sampler; it can begin with a later epoch, in the order that it would have had."""

        def set_epoch(self, epoch: int) -> None:
            if self.shuffle:
                self.generator.manual_seed(self.seed)
                for _ in range(epoch):
                    torch.randperm(self.num_samples, generator=self.generator)

    class Recording(TrainerCallback):  # type: ignore[misc]
        """Hands each step's log to the recorder, and each checkpoint to the run's folder."""

        def __init__(self, trainer: Any) -> None:
            self.trainer = trainer

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.trainer.recorder.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
            if "reward" in logs:  # the last log of a run has totals only
                self.trainer.recorder.record(state.global_step, logs, self.trainer._logs)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder, step = self.trainer.folder, state.global_step // self.trainer.updates_per_step
            folder.publish(folder.saving / f"checkpoint-{state.global_step}", step)

    class LaptopGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
        folder: RunFolder
        recorder: Recorder
        updates_per_step: int

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Recording(self))
            if can_share_prompts(self.model):
                share_prompts_in_generate(self.model)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            """No card for the hub with each checkpoint."""

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
                return theirs
            targets = input_ids[:, -logits_to_keep:]
            logps, entropies = per_token_logps(
                model, packing, targets, temperature=self.temperature
            )
            shown = attention_mask[:, -logits_to_keep:]  # TRL's are zero at the padding
            return logps * shown, entropies * shown, None

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            theirs = super()._get_train_sampler(dataset)
            names = ("data_source", "mini_repeat_count", "batch_size", "repeat_count")
            return EpochSampler(**{n: getattr(theirs, n) for n in (*names, "shuffle", "seed")})

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            with self._timed("reward"):
                return super()._calculate_rewards(*args, **kwargs)

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with self._timed("generation"):
                return super()._generate_single_turn(*args, **kwargs)

        @contextmanager
        def _timed(self, stage: str) -> Iterator[None]:
            started, seconds = time.perf_counter(), self.recorder.seconds
            yield
            seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            policy = self.accelerator.unwrap_model(self.model)
            inner = inner_model(policy)
            if inner is not policy:
                # Not asked: whether the vocabulary was resized, which peft looks up at the hub.
                policy.save_pretrained(str(folder / _ADAPTER_FOLDER), save_embedding_layers=False)
                state_dict = _merged_weights(inner)
            # In float32: a step of 1e-5 is smaller than what bfloat16 can tell apart.
            inner.save_pretrained(str(folder), state_dict=state_dict)
            self.processing_class.save_pretrained(str(folder))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            policy = self.accelerator.unwrap_model(self.model)
            if inner_model(policy) is policy:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                adapter = str(Path(resume_from_checkpoint) / _ADAPTER_FOLDER)
                policy.load_adapter(adapter, "default", is_trainable=True)

    tuned: type[Any] = LaptopGRPOTrainer
    return tuned


def _merged_weights(model: Any) -> dict[str, Any]:
    """The weights with the adapter added in, under the names that a model has without one."""
    import torch
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        layer, base, rest = name.partition(".base_layer.")
        if base and rest == "weight":
            with torch.no_grad():
                tensor = tensor + layers[layer].get_delta_weight("default")
        weights[f"{layer}.{rest}" if base else name] = tensor
    return weights


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
