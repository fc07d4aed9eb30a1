"""The problems that a policy is trained on and tested with.

`data/problems/make_problems.py` makes those of the workshop's recipes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workshop_lib.data import data_dir
from workshop_lib.errors import WorkshopError
from workshop_lib.training.recipe.recipe import Recipe

__all__ = ["Problem", "load_problems"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem as the model gets it.

    Attributes:
        text: The problem alone: `3 + 4`.
        answer: What is right: `7`.
        prompt: The problem in the recipe's words.
        system: What the system message says, if the recipe has one.
        level: How hard it is, of problems in levels (1 to 6); else 0.
    """

    text: str
    answer: str
    prompt: str
    system: str = ""
    level: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a conversation, for models with a chat template."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]


def load_problems(recipe: Recipe, split: str = "train") -> list[Problem]:
    r"""The problems of a recipe, read as NeMo RL's `ResponseDataset` reads them.

    A path that is not absolute is looked for in the working folder, as NeMo RL
    does, and then in the workshop's checkout.

    Args:
        recipe: The recipe.
        split: `train` or `validation`.

    Raises:
        WorkshopError: A file cannot be read, a line has not the two keys, or the data
            set is one of the hub's, which is not fetched here.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.recipe import read_recipe
        >>> recipe = read_recipe(data_path("recipes/arithmetic.yaml"))
        >>> load_problems(recipe)[0].prompt
        'Question: What is 0 + 0?\nAnswer:'
    """
    problems: list[Problem] = []
    for dataset in recipe.datasets(split):
        problems += _read_dataset(dataset, f"data.{split}")
    if not problems:
        raise WorkshopError(f"{recipe.path}: data.{split} holds no problem")
    return problems


def _read_dataset(dataset: SimpleNamespace, key: str) -> list[Problem]:
    if dataset.dataset_name != "ResponseDataset" or not dataset.data_path:
        raise WorkshopError(
            f"{key} is {dataset.dataset_name or 'without dataset_name'}; here only local files are"
            " read: dataset_name: ResponseDataset with a data_path of JSON lines"
        )
    template = _read(dataset.prompt_file, f"{key}.prompt_file") or "{}"
    system = _read(dataset.system_prompt_file, f"{key}.system_prompt_file")
    names = dataset.input_key or "input", dataset.output_key or "output"
    problems = []
    lines = _read(dataset.data_path, f"{key}.data_path").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{dataset.data_path} line {number}"
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise WorkshopError(f"{place} is not JSON: {error}") from error
        found = [row.get(name) if isinstance(row, dict) else None for name in names]
        if not all(isinstance(value, str) for value in found):
            raise WorkshopError(f"{place} needs the texts {names[0]!r} and {names[1]!r}")
        text, answer = map(str, found)
        try:
            prompt = template.format(text)
        except (IndexError, KeyError, ValueError) as error:
            raise WorkshopError(
                f"{dataset.prompt_file} is no prompt: it needs one {{}} for the problem, and other"
                f" braces doubled ({error})"
            ) from error
        problems.append(Problem(text, answer, prompt, system, row.get("level", 0)))
    return problems


def _read(name: str | None, key: str) -> str:
    if not name:
        return ""
    path = next(filter(Path.is_file, (Path(name), data_dir().parent / name)), None)
    if path is None:
        raise WorkshopError(
            f"{key} {name} is not a file, neither in {Path.cwd()} nor in {data_dir().parent}"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkshopError(f"{key} {path} cannot be read: {error}") from error
