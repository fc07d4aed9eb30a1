"""Reading a recipe strictly, and `workshop recipe check FILE`: all that is wrong, a line each.

NeMo RL takes a key that it does not know and says nothing: a misspelt setting trains with the
default. Here it is an error that names the right key.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.data import data_dir
from workshop_lib.errors import WorkshopError
from workshop_lib.training.recipe.files import RecipeError, load_settings, override
from workshop_lib.training.recipe.recipe import Recipe
from workshop_lib.training.recipe.rules import contradictions, not_checked, oddities
from workshop_lib.training.recipe.schema import check_keys, nemo_rl

__all__ = ["CheckedRecipe", "check_recipe", "main", "read_recipe"]


def read_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    unset: set[str] | None = None,
) -> Recipe:
    """Read a recipe and check it: every key, every type, and what must fit together.

    Args:
        path: A YAML file with NeMo RL's keys.
        overrides: Values by dotted key that replace the file's.
        unset: Takes the names of environment variables that the recipe asks for and that are not
            set here; without, such a variable is an error.

    Raises:
        RecipeError: The file cannot be read, a key is unknown or was moved (the right
            one is named), a value has the wrong type, or two settings contradict. Its
            `problems` has all of them.

    Example:
        >>> from workshop_lib.data import data_path
        >>> recipe = read_recipe(data_path("recipes/arithmetic.yaml"), {"grpo.seed": 7})
        >>> recipe.completions_per_step, recipe.grpo.seed
        (64, 7)
    """
    known, notes = _without_unread(load_settings(path, overrides, unset=unset))
    config, problems = check_keys(known)
    recipe = Recipe(Path(path), known, config)
    if config is not None:
        problems += contradictions(recipe)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecipeError(f"{_shown(path)}: {problems[0]}{more}", problems)
    return Recipe(Path(path), known, config, (*notes, *oddities(recipe)))


def _without_unread(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings without the keys that nothing in NeMo RL reads, and a note for each."""
    known, notes = copy.deepcopy(settings), []
    for key, meant in nemo_rl()["unread"].items():
        *above, name = key.split(".")
        section: Any = known
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and name in section:
            del section[name]
            instead = f"; {meant} may be meant" if meant else ""
            notes.append(f"{key} is read by nothing in NeMo RL {nemo_rl()['version']}{instead}")
    return known, notes


def _shown(path: str | Path) -> str:
    """A path as messages have it: one in the working folder or this checkout begins there."""
    for base in (Path.cwd(), data_dir().parent):
        if Path(path).is_relative_to(base):
            return str(Path(path).relative_to(base))
    return str(path)


@dataclass(frozen=True)
class CheckedRecipe:
    """What a check found; `str()` gives a line each. A recipe without problems can be run."""

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
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, gpu: str | None = None
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
        return CheckedRecipe(_shown(path), error.problems)
    problem, unknown = _memory(recipe, gpu) if gpu else ("", "memory (name a GPU)")
    unchecked = "; ".join(filter(None, [unknown, *not_checked(recipe)]))
    variables = [f"the environment variable {n} must be set to run it" for n in sorted(unset)]
    updates = recipe.updates_per_step
    summary = (
        f"{recipe.grpo.num_prompts_per_step} prompts x {recipe.grpo.num_generations_per_prompt}"
        f" answers a step, {updates} update{'s' if updates > 1 else ''} of"
        f" {recipe.policy.train_global_batch_size}, {recipe.policy.model_name}"
    )
    notes = (*recipe.notes, *variables, f"not checked: {unchecked}")
    return CheckedRecipe(_shown(path), (problem,) if problem else (), notes, summary)


def _memory(recipe: Recipe, gpu: str) -> tuple[str, str]:
    """What does not fit on the recipe's GPUs, and why that could not be told; one is empty."""
    from workshop_lib.serving.memory import find_device, training_budget
    from workshop_lib.serving.memory.predict import known_shape

    device = find_device(gpu)
    policy, vllm = recipe.policy, recipe.generation.vllm_cfg
    colocated, lora = recipe.generation.colocated, policy.dtensor_cfg.lora_cfg
    if not policy.dtensor_cfg.enabled:
        return "", "memory: only DTensor's (FSDP2) is predicted, not Megatron's"
    if (shape := known_shape(policy.model_name)) is None:
        return "", f"memory: the shape of {policy.model_name} is not known here"
    gpus = recipe.cluster.gpus_per_node * recipe.cluster.num_nodes
    if not colocated.enabled:
        resources = colocated.resources
        gpus -= resources.gpus_per_node * (resources.num_nodes or 1)
    tokens = policy.train_micro_batch_size * policy.max_total_sequence_length
    for batching in (policy.dynamic_batching, policy.sequence_packing):
        tokens = (batching.enabled and batching.train_mb_tokens) or tokens
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


def main(argv: Sequence[str] | None = None) -> int:
    """`workshop recipe check FILE [FILE ...]`: a line an error; 0 when all are right, else 1."""
    parser = argparse.ArgumentParser(
        prog="workshop recipe", description="Recipes in NeMo RL's YAML."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say all that is wrong with a recipe")
    check.add_argument("files", nargs="+", metavar="FILE", help="a recipe")
    check.add_argument("--gpu", help="also check that it fits this GPU: h100, h200, a100-40, …")
    check.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replaces a value"
    )
    options = parser.parse_args(argv)
    values = dict(map(override, options.set))
    checked = [check_recipe(path, values, gpu=options.gpu) for path in options.files]
    for each in checked:
        print(each)
    return int(any(each.problems for each in checked))
