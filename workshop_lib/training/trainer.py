"""TRL's `GRPOTrainer`, tuned for a CPU and watched: prompts shared, groups chosen, time measured.

Built inside functions, because importing TRL takes seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from workshop_lib.training.checkpoints import Checkpoints
from workshop_lib.training.lora import inner_model, load_adapter, save_weights
from workshop_lib.training.run_folder import TrainingError
from workshop_lib.training.sampling import Collected, PromptStream
from workshop_lib.training.shared_prompts import (
    can_share_prompts,
    pack,
    per_token_logps,
    share_prompts_in_generate,
)

__all__ = ["trainer_class"]

_STREAM_FILE = "prompts.json"


@cache
def trainer_class() -> type[Any]:
    """`GRPOTrainer` for a laptop.

    It computes a group's prompt once, resumes in the order that the prompts would have had,
    saves checkpoints whole or not at all, and has a stopwatch on its stages. With a stream of
    prompts it samples dynamically; with `watch_reference` it records the KL divergence from a
    reference that it does not penalise.

    Returns:
        A subclass whose instances have `seconds`, the time of the current step by stage, and
        `collected`, what dynamic sampling has gathered for it.
    """
    import torch
    from trl import GRPOTrainer
    from trl.trainer.utils import RepeatSampler, add_fused_lm_head

    class EpochSampler(RepeatSampler):  # type: ignore[misc]
        """TRL's sampler; it can begin with a later epoch, in the order that it would have had."""

        def set_epoch(self, epoch: int) -> None:
            if self.shuffle:
                self.generator.manual_seed(self.seed)
                for _ in range(epoch):
                    torch.randperm(self.num_samples, generator=self.generator)

    class LaptopGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
        seconds: dict[str, float]
        checkpoints: Checkpoints
        updates_per_step: int
        prompts: PromptStream | None = None
        most_batches: int = 0
        collected: Collected | None = None
        _replaying = False
        _watching = False
        _reference: Any = None  # a model of its own; under LoRA the policy without its adapter
        _logps: Any = None  # the policy's, of the latest pass
        _staging: Path | None = None  # where a checkpoint is being written

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.seconds = {}
            if can_share_prompts(self.model):
                share_prompts_in_generate(self.model)

        def watch_reference(self, reference: Any) -> None:
            """Record the KL divergence from a reference without penalising it.

            Args:
                reference: A frozen model; None under LoRA, where the adapter is switched off.
            """
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
                self._logps = theirs[0]
                return theirs
            targets = input_ids[:, -logits_to_keep:]
            logps, entropies = per_token_logps(
                model, packing, targets, temperature=self.temperature
            )
            # TRL's are zero at the padding.
            shown = attention_mask[:, -logits_to_keep:]
            self._logps = logps * shown
            return self._logps, entropies * shown, None

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
                apart = (inputs["ref_per_token_logps"] - self._logps.detach()) * mask
                # The estimator k3 of Schulman 2020, "Approximating KL divergence", as TRL's.
                kl = ((apart.exp() - apart - 1) * mask).sum() / mask.sum()
                self._metrics["train"]["kl"].append(kl.item())
            self._logps = None
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
            if self.prompts is not None:
                self.collected = self._collect(len(inputs) // self.num_generations)
                inputs = self.collected.rows
            self._replaying = self.prompts is not None
            try:
                batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
            finally:
                self._replaying = False
            if self._watching:
                batch["ref_per_token_logps"] = self._reference_logps(batch)
            return batch

        def _collect(self, wanted: int) -> Collected:
            """Sample until a step has its groups; TRL does the rest with what was kept."""
            assert self.prompts is not None
            size, collected = self.num_generations, Collected()
            while len(collected.rows) < wanted * size:
                if collected.batches >= self.most_batches:
                    raise TrainingError(
                        f"dynamic sampling: after {collected.batches} batches of"
                        f" {self.prompts.size} prompts only {len(collected.rows) // size} of"
                        f" {wanted} groups have answers with different rewards; give it problems"
                        " that are neither too easy nor too hard, or more answers a prompt, or"
                        " raise grpo.dynamic_sampling_max_gen_batches"
                    )
                drawn = [self.train_dataset[index] for index in self.prompts.take()]
                rows = [row for row in drawn for _ in range(size)]
                texts = [row["prompt"] for row in rows]
                ids, answers, _, said, *_ = super()._generate(texts)
                rewards = self._calculate_rewards(rows, texts, said, answers).tolist()
                collected.add(rows, [ids, answers, said], rewards, size=size, wanted=wanted)
            return collected

        def _generate(self, prompts: list[Any]) -> Any:
            if not self._replaying or self.collected is None:
                return super()._generate(prompts)
            ids, answers, said = self.collected.generated
            return ids, answers, None, said, None, {}, None, []

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            if self._replaying and self.collected is not None:
                return torch.tensor(self.collected.rewards, device=self.accelerator.device)
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

        # -- checkpoints

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            folder = Path(output_dir or self.args.output_dir)
            save_weights(self.accelerator.unwrap_model(self.model), folder)
            self.processing_class.save_pretrained(str(folder))

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """As `Trainer` does, and whole or not at all; TRL adds a card for the hub."""
            step = self.state.global_step // self.updates_per_step
            with self.checkpoints.writing(step) as folder:
                self._staging = folder
                super(GRPOTrainer, self)._save_checkpoint(model, trial)
                # Its own name for it, below the folder that it is given.
                (inner,) = folder.iterdir()
                for file in inner.iterdir():
                    file.rename(folder / file.name)
                inner.rmdir()
                if self.prompts is not None:
                    drawn = json.dumps({"batches": self.prompts.batches})
                    (folder / _STREAM_FILE).write_text(drawn + "\n", encoding="utf-8")
            self._staging = None

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            folder = Path(resume_from_checkpoint)
            if self.prompts is not None:
                drawn = json.loads((folder / _STREAM_FILE).read_text(encoding="utf-8"))
                self.prompts.batches = int(drawn["batches"])
            policy = self.accelerator.unwrap_model(self.model)
            if inner_model(policy) is policy:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                load_adapter(policy, folder)

        def _get_output_dir(self, trial: Any) -> str:
            # `Trainer` asks at the end too, whether or not anything was saved before.
            return str(self._staging or super()._get_output_dir(trial))

        @contextmanager
        def _timed(self, stage: str) -> Iterator[None]:
            started = time.perf_counter()
            try:
                yield
            finally:
                took_s = time.perf_counter() - started
                self.seconds[stage] = self.seconds.get(stage, 0.0) + took_s

    tuned: type[Any] = LaptopGRPOTrainer
    return tuned
