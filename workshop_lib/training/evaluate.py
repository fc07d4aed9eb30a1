"""How many problems a model solves: before and after, with the interval that a count has.

A model is a folder, which transformers runs here, or a server with the OpenAI API.
Both are asked alike: the recipe's prompts, the likeliest token each time, the
recipe's reward as the judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.models.files import problem_of
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.rewards import Reward, reward_for

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving import ModelServer
    from workshop_lib.training.recipe import Recipe

__all__ = [
    "Accuracy",
    "accuracy_by_level",
    "accuracy_table",
    "answers_table",
    "evaluate_folder",
    "evaluate_server",
    "wilson_interval",
]

_BATCH = 32
_IN_FLIGHT = 8


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
        """Wilson's interval of the share.

        Args:
            confidence: Confidence level.
        """
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


def evaluate_folder(
    folder: str | Path,
    recipe: Recipe,
    *,
    split: str = "validation",
    problems: Sequence[Problem] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
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
    _, reward = reward_for(recipe)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    with _without_progress_bar():
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    completions: list[str] = []
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        texts = [_text(problem, recipe, tokenizer) for problem in batch]
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
    return _judge(asked, completions, reward)


def evaluate_server(
    server: ModelServer,
    recipe: Recipe,
    *,
    model: str | None = None,
    split: str = "validation",
    problems: Sequence[Problem] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
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
    from concurrent.futures import ThreadPoolExecutor

    asked = _problems(recipe, split, problems)
    _, reward = reward_for(recipe)
    name = model or server.first_model()

    def ask(problem: Problem) -> str:
        limit = _new_tokens(recipe)
        if recipe.plain_prompts:
            text = problem.system + problem.prompt
            return server.complete(text, model=name, max_tokens=limit).text
        return server.chat(problem.messages, model=name, max_tokens=limit).text

    completions: list[str] = []
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        for text in pool.map(ask, asked):
            completions.append(text)
            if on_progress is not None:
                on_progress(len(completions), len(asked))
    return _judge(asked, completions, reward)


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

    rows = {}
    for name, result in results.items():
        low, high = result.interval(confidence)
        rows[name] = [len(result.problems), result.right, result.share, low, high]
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
        for name, result in results.items():
            at = [i for i, problem in enumerate(result.problems) if problem.level == level]
            parts[name] = Accuracy(
                tuple(result.problems[i] for i in at),
                tuple(result.completions[i] for i in at),
                tuple(result.rewards[i] for i in at),
            )
        tables[level] = accuracy_table(
            {name: part for name, part in parts.items() if part.problems}, confidence
        )
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


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Transformers' own bar runs for a second and stays in a notebook's output."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _problems(recipe: Recipe, split: str, given: Sequence[Problem] | None) -> list[Problem]:
    asked = load_problems(recipe, split) if given is None else list(given)
    if not asked:
        raise WorkshopError("there is no problem to evaluate with")
    return asked


def _judge(problems: Sequence[Problem], completions: Sequence[str], reward: Reward) -> Accuracy:
    rewards = [
        reward(text, problem.answer) for problem, text in zip(problems, completions, strict=True)
    ]
    return Accuracy(tuple(problems), tuple(completions), tuple(rewards))


def _new_tokens(recipe: Recipe) -> int:
    return recipe.generation.max_new_tokens or recipe.policy.max_total_sequence_length


def _text(problem: Problem, recipe: Recipe, tokenizer: Any) -> str:
    if recipe.plain_prompts:
        return problem.system + problem.prompt
    return str(
        tokenizer.apply_chat_template(problem.messages, tokenize=False, add_generation_prompt=True)
    )
