"""A recipe checked before it costs GPU time: all that is wrong, for people and for CI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.training.recipe.files import RecipeError
from workshop_lib.training.recipe.reading import read_recipe, shown
from workshop_lib.training.recipe.recipe import Recipe
from workshop_lib.training.recipe.rules import not_checked
from workshop_lib.training.recipe.schema import nemo_rl

__all__ = ["CheckedRecipe", "check_recipe"]


@dataclass(frozen=True)
class CheckedRecipe:
    """What a check found; `str()` gives a line each.

    Attributes:
        path: The file, as it is shown.
        problems: What is wrong, a line each; none for a recipe that can be run.
        notes: What was not checked, and what is odd but harmless.
        summary: What a step does, of a recipe that is right.
    """

    path: str
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    summary: str = ""

    def __str__(self) -> str:
        """The problems, or that it is right and against which NeMo RL; then the notes."""
        # A file that cannot be read names itself.
        lines = [p if self.path in p else f"{self.path}: {p}" for p in self.problems]
        if not self.problems:
            lines = [f"{self.path}: right for NeMo RL {nemo_rl()['version']}: {self.summary}"]
        return "\n".join([*lines, *(f"{self.path}: note: {note}" for note in self.notes)])


def check_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    gpu: str | None = None,
) -> CheckedRecipe:
    """Check a recipe's keys, types and values, what must fit together, and its memory.

    An environment variable that the recipe asks for and that is not set here is noted: it
    may be set where it runs.

    Args:
        path: The recipe's file.
        overrides: Values by dotted key that replace the file's.
        gpu: The GPU that it shall run on, for example `h100`; without, memory is not checked.

    Raises:
        WorkshopError: The GPU is not known.

    Example:
        >>> from workshop_lib.data import data_path
        >>> print(str(check_recipe(data_path("recipes/arithmetic.yaml"))).splitlines()[0])
        data/recipes/arithmetic.yaml: right for NeMo RL v0.7.0: 8 prompts x 8 answers a step, \
1 update of 64, HuggingFaceTB/SmolLM2-135M-Instruct
    """
    unset: set[str] = set()
    try:
        recipe = read_recipe(path, overrides, unset=unset)
    except RecipeError as error:
        return CheckedRecipe(shown(path), error.problems)
    problems = _prompts_that_do_not_fit(recipe)
    unchecked, notes = not_checked(recipe), list(recipe.notes)
    if gpu is None:
        unchecked.insert(0, "memory (name a GPU)")
    else:
        problem, reason = _memory(recipe, gpu)
        problems += filter(None, [problem])
        unchecked = [*filter(None, [reason]), *unchecked]
    notes += [f"the environment variable {name} must be set to run it" for name in sorted(unset)]
    notes.append(f"not checked: {'; '.join(unchecked)}")
    updates = recipe.updates_per_step
    summary = (
        f"{recipe.grpo.num_prompts_per_step} prompts x {recipe.grpo.num_generations_per_prompt}"
        f" answers a step, {updates} update{'s' if updates > 1 else ''} of"
        f" {recipe.policy.train_global_batch_size}, {recipe.policy.model_name}"
    )
    return CheckedRecipe(shown(path), tuple(problems), tuple(notes), summary)


def _memory(recipe: Recipe, gpu: str) -> tuple[str, str]:
    """What does not fit on the recipe's GPUs, and why that could not be told; one or both empty."""
    from workshop_lib.serving.memory import find_device, training_budget

    device = find_device(gpu)
    policy, generation = recipe.policy, recipe.generation
    if not policy.dtensor_cfg.enabled:
        return "", "memory: only DTensor's (FSDP2) is predicted, not Megatron's"
    shape = _shape(policy.model_name)
    if shape is None:
        return "", f"memory: the shape of {policy.model_name} is not known here"
    colocated, lora = generation.colocated, policy.dtensor_cfg.lora_cfg
    gpus = recipe.cluster.gpus_per_node * recipe.cluster.num_nodes
    if not colocated.enabled:
        nodes = colocated.resources.num_nodes or 1
        gpus = max(1, gpus - (colocated.resources.gpus_per_node or 0) * nodes)
    tokens = policy.train_micro_batch_size * policy.max_total_sequence_length
    for batching in (policy.dynamic_batching, policy.sequence_packing):
        if batching.enabled and batching.train_mb_tokens:
            tokens = batching.train_mb_tokens
    vllm = generation.vllm_cfg
    try:
        budget = training_budget(
            shape,
            device,
            gpus=gpus,
            lora_rank=lora.dim if lora.enabled else None,
            tokens=tokens,
            checkpointing=policy.dtensor_cfg.activation_checkpointing,
            where="colocated" if colocated.enabled else "dedicated",
            gpu_memory_utilization=vllm.gpu_memory_utilization,
            max_model_len=vllm.max_model_len or policy.max_total_sequence_length,
            tp=vllm.tensor_parallel_size,
        )
    except WorkshopError as error:
        return "", f"memory: {error}"
    return budget.reason, ""


def _shape(model: str) -> Any:
    """A model's shape: of its folder, or of the facts that come with the workshop."""
    import json

    from workshop_lib.data import data_dir
    from workshop_lib.serving.memory import ModelShape
    from workshop_lib.serving.models import model_path

    folders = [Path(model)]
    if "/" in model and not model.startswith(("/", ".")):
        folders.append(model_path(model))
    for folder in folders:
        if (folder / "config.json").is_file():
            return ModelShape.from_config(folder / "config.json", name=model)
    for file in sorted((data_dir() / "models").glob("*.json")):
        if json.loads(file.read_text(encoding="utf-8")).get("_name_or_path") == model:
            return ModelShape.named(file.stem)
    return None


def _prompts_that_do_not_fit(recipe: Recipe) -> list[str]:
    """Problems that are here and whose prompt leaves no room for the answer.

    A prompt has at least as many tokens as words, so what is said is certain; what only a
    tokenizer could tell is left to the trainer.
    """
    from workshop_lib.training.problems import load_problems

    total, new = recipe.policy.max_total_sequence_length, recipe.generation.max_new_tokens
    # NeMo RL's own value, new = total, means: until the sequence is full.
    room = total - (new if new is not None and new < total else 1)
    for split in ("train", "validation"):
        local = [entry.dataset_name == "ResponseDataset" for entry in recipe.datasets(split)]
        if not local or not all(local):
            continue
        try:
            longest = max(len(p.prompt.split()) for p in load_problems(recipe, split))
        except WorkshopError:
            continue  # the files may be where it runs
        if longest > room:
            return [
                f"a prompt of data.{split} has {longest} words, a token each or more, and"
                f" policy.max_total_sequence_length {total} leaves {room} beside"
                f" policy.generation.max_new_tokens"
            ]
    return []
