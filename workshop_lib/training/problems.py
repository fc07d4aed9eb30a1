"""The problems a policy is trained on and tested with.

`python -m workshop_lib.training.problems` writes `data/problems` anew; the same
seed gives the same files.

Single-digit sums are few: 100 ordered pairs of digits, 55 sums if 3 + 4 and 4 + 3
are one. They are split by the unordered pair, so that no held-out problem has its
mirror image in training, and only pairs whose sum has another pair left to train
on are held out, so that no answer is new. 70 problems train, 30 are held out.
The space has no more: a held-out answer has still been seen, as another sum's.

`graded` makes the larger set: six levels, and over 200 problems held out. Sums of
three digits are for `recipes/hackable.yaml`: too hard for a small model to compute,
easy to repeat.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.data import data_dir
from workshop_lib.errors import WorkshopError
from workshop_lib.training.graded import graded_problems

if TYPE_CHECKING:
    from workshop_lib.training.recipe import Recipe
    from workshop_lib.training.recipe.schema import Dataset

__all__ = [
    "GRADED_PROMPT",
    "HELD_OUT",
    "PROMPT",
    "Problem",
    "large_sums",
    "load_problems",
    "single_digit_sums",
    "write_problems",
]

PROMPT = "Question: What is {}?\nAnswer:"
GRADED_PROMPT = "Question: {}\nAnswer:"
HELD_OUT = 30
_SEED = 2026


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem as the model gets it.

    Attributes:
        text: The problem alone: `3 + 4`.
        answer: What is right: `7`.
        prompt: The problem in the recipe's words.
        system: What the system message says, if the recipe has one.
        level: How hard it is, of problems in levels (`graded.LEVELS`); else 0.
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


def single_digit_sums(seed: int = _SEED) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """All sums of two digits, split into those to train on and those held out.

    Args:
        seed: Decides which pairs are held out.

    Returns:
        Problems to train on and problems held out, with `problem` and `answer`.

    Example:
        >>> train, held_out = single_digit_sums()
        >>> len(train), len(held_out)
        (70, 30)
    """
    pairs = [(a, b) for a in range(10) for b in range(a, 10)]
    left = {total: sum(a + b == total for a, b in pairs) for total in range(19)}
    held: set[tuple[int, int]] = set()
    problems = 0
    for a, b in random.Random(seed).sample(pairs, len(pairs)):
        size = 1 if a == b else 2
        if left[a + b] > 1 and problems + size <= HELD_OUT:
            held.add((a, b))
            left[a + b] -= 1
            problems += size
    parts: dict[bool, list[dict[str, str]]] = {False: [], True: []}
    for a in range(10):
        for b in range(10):
            problem = {"problem": f"{a} + {b}", "answer": str(a + b)}
            parts[(min(a, b), max(a, b)) in held].append(problem)
    return parts[False], parts[True]


def large_sums(seed: int = _SEED) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Sums of three digits: 120 to train on, 40 held out, no pair twice in any order.

    Args:
        seed: Draws them.

    Returns:
        Problems to train on and problems held out, with `problem` and `answer`.

    Example:
        >>> train, held_out = large_sums()
        >>> len(train), len(held_out)
        (120, 40)
    """
    draw = random.Random(f"{seed} large sums")
    pairs: dict[tuple[int, int], dict[str, str]] = {}
    while len(pairs) < 160:
        a, b = draw.randint(100, 999), draw.randint(100, 999)
        pairs.setdefault((min(a, b), max(a, b)), {"problem": f"{a} + {b}", "answer": str(a + b)})
    problems = list(pairs.values())
    return problems[:120], problems[120:]


def write_problems(folder: str | Path) -> list[Path]:
    """Write the problems and their prompt as NeMo RL's `ResponseDataset` reads them.

    Args:
        folder: Where to; files of the same name are replaced.

    Returns:
        The files.

    Example:
        >>> write_problems("build/problems")  # doctest: +SKIP
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    train, held_out = single_digit_sums()
    large = large_sums()
    graded = [
        [{"problem": p.problem, "answer": p.answer, "level": p.level} for p in part]
        for part in graded_problems(_SEED)
    ]
    texts = {
        "sums-train.jsonl": _json_lines(train),
        "sums-heldout.jsonl": _json_lines(held_out),
        "large-sums-train.jsonl": _json_lines(large[0]),
        "large-sums-heldout.jsonl": _json_lines(large[1]),
        "graded-train.jsonl": _json_lines(graded[0]),
        "graded-heldout.jsonl": _json_lines(graded[1]),
        # No newline at the end: NeMo RL takes the file as it is, and so would the model.
        "sums-prompt.txt": PROMPT,
        "graded-prompt.txt": GRADED_PROMPT,
    }
    for name, text in texts.items():
        (place / name).write_text(text, encoding="utf-8")
    return [place / name for name in texts]


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


def _read_dataset(dataset: Dataset, key: str) -> list[Problem]:
    if dataset.dataset_name != "ResponseDataset" or not dataset.data_path:
        raise WorkshopError(
            f"{key} is {dataset.dataset_name or 'without dataset_name'}; here only local files are"
            " read: dataset_name: ResponseDataset with a data_path of JSON lines"
        )
    path = _find(dataset.data_path, f"{key}.data_path")
    template = _text(dataset.prompt_file, f"{key}.prompt_file") or "{}"
    system = _text(dataset.system_prompt_file, f"{key}.system_prompt_file")
    problems = []
    for number, line in enumerate(_lines(path), start=1):
        place = f"{path} line {number}"
        text, answer, level = _values(line, dataset, place)
        try:
            prompt = template.format(text)
        except (IndexError, KeyError, ValueError) as error:
            raise WorkshopError(
                f"{dataset.prompt_file} is no prompt: it needs one {{}} for the problem, and other"
                f" braces doubled ({error})"
            ) from error
        problems.append(Problem(text, answer, prompt, system, level))
    return problems


def _values(line: str, dataset: Dataset, place: str) -> tuple[str, str, int]:
    """The problem, the answer and the level of a line."""
    names = dataset.input_key or "input", dataset.output_key or "output"
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise WorkshopError(f"{place} is not JSON: {error}") from error
    found = [row.get(name) if isinstance(row, dict) else None for name in names]
    if not all(isinstance(value, str) for value in found):
        raise WorkshopError(f"{place} needs the texts {names[0]!r} and {names[1]!r}: {line[:60]}")
    level = row.get("level", 0)
    if not isinstance(level, int):
        raise WorkshopError(f"{place}: level is a whole number, not {level!r}")
    return str(found[0]), str(found[1]), level


def _json_lines(rows: Sequence[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _find(name: str, key: str) -> Path:
    candidates = [Path(name), data_dir().parent / name]
    for path in candidates:
        if path.is_file():
            return path
    raise WorkshopError(
        f"{key} {name} is not a file, neither in {Path.cwd()} nor in {data_dir().parent}"
    )


def _text(name: str | None, key: str) -> str:
    return _find(name, key).read_text(encoding="utf-8") if name else ""


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkshopError(f"the problems {path} cannot be read: {error}") from error
    return [line for line in lines if line.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `data/problems` anew: `python -m workshop_lib.training.problems [FOLDER]`.

    Args:
        arguments: Those of the command line by default.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    for path in write_problems(given[0] if given else data_dir() / "problems"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
