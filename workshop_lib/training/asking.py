"""A model asked the recipe's problems: groups to learn from, and how many it solves.

A model is a folder, which transformers runs here, or a server with the OpenAI API. Both are
asked alike: the recipe's prompts and answer length, with the recipe's reward as the judge; for an
accuracy the likeliest token each time, for groups as the recipe samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.models.files import problem_of
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.recipe import Recipe
from workshop_lib.training.rewards import reward_for

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving import ModelServer

__all__ = [
    "Accuracy",
    "accuracy_by_level",
    "accuracy_table",
    "answers_table",
    "evaluate_folder",
    "evaluate_server",
    "sample_groups",
    "wilson_interval",
]

_BATCH = 32
_IN_FLIGHT = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Accuracy:
    """What a model answered, and how much of it is right.

    Attributes:
        problems: The problems, in their order.
        completions: What the model wrote to each.
        rewards: The reward of each; right is a reward of 1.
    """

    problems: tuple[Problem, ...]
    completions: tuple[str, ...]
    rewards: tuple[float, ...]

    @property
    def right(self) -> int:
        """How many problems were solved."""
        return sum(reward >= 1 for reward in self.rewards)

    @property
    def share(self) -> float:
        """Share of the problems that were solved."""
        return self.right / len(self.problems)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the share."""
        return wilson_interval(self.right, len(self.problems), confidence)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    Unlike the textbook's normal interval it is right for few trials and at the ends:
    30 of 30 gives 0.886 to 1, not 1 to 1.

    Args:
        successes: How often it went well.
        trials: Of how many.
        confidence: Confidence level.

    Raises:
        ValueError: No trial, or more successes than trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"; Brown, Cai and DasGupta 2001.

    Example:
        >>> [round(end, 3) for end in wilson_interval(6, 30)]
        [0.095, 0.373]
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # At the ends the formula gives exactly 0 and 1; floating point does not.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == trials else centre + half


def evaluate_server(
    server: ModelServer,
    recipe: Recipe,
    *,
    model: str | None = None,
    split: str = "validation",
    problems: Sequence[Problem] | None = None,
    on_progress: Progress | None = None,
) -> Accuracy:
    """Ask a model server the recipe's problems, several at a time.

    Args:
        server: The server.
        recipe: Whose prompts, reward and answer length to use.
        model: Name of the model; by default the first that the server lists.
        split: `validation` (held out) or `train`.
        problems: The problems themselves, instead of a split.
        on_progress: Called as (done, total) after each answer.

    Raises:
        ServerError: The server does not answer.
        WorkshopError: There is no problem.

    Example:
        >>> evaluate_server(ModelServer(url), recipe).share  # doctest: +SKIP
        0.2
    """
    asked = _problems(recipe, split, problems)
    name = model or server.first_model()
    requests = [(problem, {"model": name}) for problem in asked]
    completions = _ask(server, recipe, requests, on_progress)
    return _judged(asked, completions, recipe)


def evaluate_folder(
    folder: str | Path,
    recipe: Recipe,
    *,
    split: str = "validation",
    problems: Sequence[Problem] | None = None,
    on_progress: Progress | None = None,
) -> Accuracy:
    """Ask a model folder the recipe's problems, with transformers, in this process.

    Args:
        folder: A Hugging Face model folder, for example a checkpoint.
        recipe: Whose prompts, reward and answer length to use.
        split: `validation` (held out) or `train`.
        problems: The problems themselves, instead of a split.
        on_progress: Called as (done, total) after each batch.

    Raises:
        WorkshopError: The folder is no model, or there is no problem.

    Example:
        >>> evaluate_folder("build/grpo/checkpoints/step_12", recipe).share  # doctest: +SKIP
        1.0
    """
    if problem := problem_of(Path(folder)):
        raise WorkshopError(f"cannot evaluate: {problem}")
    asked = _problems(recipe, split, problems)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # Its own bar runs for a second and stays in a notebook's output.
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    finally:
        if shown:
            logging.enable_progress_bar()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    completions: list[str] = []
    for start in range(0, len(asked), _BATCH):
        texts = [
            problem.system + problem.prompt
            if recipe.plain_prompts
            else tokenizer.apply_chat_template(
                problem.messages, tokenize=False, add_generation_prompt=True
            )
            for problem in asked[start : start + _BATCH]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            written = model.generate(
                **inputs,
                max_new_tokens=_new_tokens(recipe),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = written[:, inputs["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(new, skip_special_tokens=True)
        if on_progress is not None:
            on_progress(len(completions), len(asked))
    return _judged(asked, completions, recipe)


def sample_groups(
    server: ModelServer,
    recipe: Recipe,
    *,
    groups: int = 8,
    size: int = 8,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Sample several answers to each of a few problems, and score them.

    What a trainer does at the start of a step, asked of a model server: the recipe's
    prompts, temperature and answer length, and its reward.

    Args:
        server: The server.
        recipe: Whose problems, sampling and reward to use.
        groups: Problems, drawn from those to train on.
        size: Answers to each.
        seed: Decides which problems, and with the server what is sampled.
        on_progress: Called as (done, total) after each answer.

    Returns:
        One row an answer: `group`, `problem`, `answer` (the right one), `completion`,
        `reward`.

    Raises:
        ServerError: The server does not answer.
        WorkshopError: The recipe has fewer problems, or its prompts need a template.

    Example:
        >>> frame = sample_groups(ModelServer(url), recipe)   # doctest: +SKIP
        >>> frame.groupby("group")["reward"].mean()   # doctest: +SKIP
    """
    import pandas as pd

    problems = load_problems(recipe)
    if not 1 <= groups <= len(problems) or size < 1:
        raise WorkshopError(
            f"{groups} groups of {size}: the recipe has {len(problems)} problems to draw from"
        )
    if not recipe.plain_prompts:
        raise WorkshopError(f"{recipe.path}: groups are sampled from plain prompts, without chat")
    drawn = [p for p in random.Random(seed).sample(problems, groups) for _ in range(size)]
    sampling = {"model": server.first_model(), "temperature": recipe.generation.temperature}
    requests = [
        (problem, sampling | {"seed": seed * len(drawn) + number})
        for number, problem in enumerate(drawn)
    ]
    completions = _ask(server, recipe, requests, on_progress)
    scored = _judged(drawn, completions, recipe)
    return pd.DataFrame(
        {
            "group": [number // size for number in range(len(drawn))],
            "problem": [problem.text for problem in drawn],
            "answer": [problem.answer for problem in drawn],
            "completion": completions,
            "reward": scored.rewards,
        }
    )


def accuracy_table(results: Mapping[str, Accuracy], confidence: float = 0.95) -> pd.DataFrame:
    """Accuracy before and after, side by side.

    Args:
        results: By name, for example `{"before": …, "after": …}`.
        confidence: Of the interval.

    Returns:
        One row a result: `problems`, `right`, `accuracy`, `low`, `high`.

    Example:
        >>> problem = Problem("1 + 1", "2", "What is 1 + 1?")
        >>> accuracy_table({"before": Accuracy((problem,), (" 3",), (0.0,))}).accuracy.tolist()
        [0.0]
    """
    import pandas as pd

    rows = {
        name: [len(result.problems), result.right, result.share, *result.interval(confidence)]
        for name, result in results.items()
    }
    columns = ["problems", "right", "accuracy", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def accuracy_by_level(results: Mapping[str, Accuracy], confidence: float = 0.95) -> pd.DataFrame:
    """Accuracy of each level of graded problems, before and after.

    Args:
        results: By name, all of the same problems.
        confidence: Of the interval.

    Returns:
        The columns of `accuracy_table`, a row a level and result.

    Example:
        >>> problem = Problem("1 + 1", "2", "What is 1 + 1?", level=1)
        >>> table = accuracy_by_level({"before": Accuracy((problem,), (" 3",), (0.0,))})
        >>> table.index.tolist()
        [(1, 'before')]
    """
    import pandas as pd

    tables = {}
    for level in sorted({problem.level for each in results.values() for problem in each.problems}):
        parts = {}
        for name, each in results.items():
            rows = zip(each.problems, each.completions, each.rewards, strict=True)
            if of_level := [row for row in rows if row[0].level == level]:
                parts[name] = Accuracy(*zip(*of_level, strict=True))
        tables[level] = accuracy_table(parts, confidence)
    return pd.concat(tables, names=["level"])


def answers_table(results: Mapping[str, Accuracy]) -> pd.DataFrame:
    """What each model wrote to each problem, side by side.

    Args:
        results: By name; all of the same problems.

    Returns:
        One row a problem: `problem`, `answer`, and for each name what it wrote and,
        in a column `<name> right`, whether that is right.

    Raises:
        WorkshopError: The results are of different problems.

    Example:
        >>> problem = Problem("1 + 1", "2", "What is 1 + 1?")
        >>> list(answers_table({"after": Accuracy((problem,), (" 2",), (1.0,))}).columns)
        ['problem', 'answer', 'after', 'after right']
    """
    import pandas as pd

    asked = {result.problems for result in results.values()}
    if len(asked) != 1:
        raise WorkshopError("answers are compared problem by problem: evaluate the same ones")
    problems = asked.pop()
    columns: dict[str, list[Any]] = {
        "problem": [problem.text for problem in problems],
        "answer": [problem.answer for problem in problems],
    }
    for name, result in results.items():
        columns[name] = list(result.completions)
        columns[f"{name} right"] = [reward >= 1 for reward in result.rewards]
    return pd.DataFrame(columns)


def _problems(recipe: Recipe, split: str, given: Sequence[Problem] | None) -> list[Problem]:
    asked = load_problems(recipe, split) if given is None else list(given)
    if not asked:
        raise WorkshopError("there is no problem to evaluate with")
    return asked


def _ask(
    server: ModelServer,
    recipe: Recipe,
    requests: Sequence[tuple[Problem, dict[str, Any]]],
    on_progress: Progress | None,
) -> list[str]:
    """What a server answers, in the order of the requests, several of them at a time."""

    def ask(request: tuple[Problem, dict[str, Any]]) -> str:
        problem, settings = request
        settings = {**settings, "max_tokens": _new_tokens(recipe)}
        if recipe.plain_prompts:
            return server.complete(problem.system + problem.prompt, **settings).text
        return server.chat(problem.messages, **settings).text

    completions: list[str] = []
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        for text in pool.map(ask, requests):
            completions.append(text)
            if on_progress is not None:
                on_progress(len(completions), len(requests))
    return completions


def _judged(problems: Sequence[Problem], completions: Sequence[str], recipe: Recipe) -> Accuracy:
    _, reward = reward_for(recipe)
    pairs = zip(problems, completions, strict=True)
    rewards = tuple(reward(text, problem.answer) for problem, text in pairs)
    return Accuracy(tuple(problems), tuple(completions), rewards)


def _new_tokens(recipe: Recipe) -> int:
    return int(recipe.generation.max_new_tokens or recipe.policy.max_total_sequence_length)
