"""A model server asked the recipe's problems: groups to learn from, and how many it solves.

The recipe's prompts and answer length are used, and its reward as the judge; for an accuracy the
likeliest token each time, for groups as the recipe samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
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
    "evaluate_server",
    "sample_groups",
    "wilson_interval",
]

_IN_FLIGHT = 16
_Z = 1.959964  # of 95%

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

    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the share."""
        return wilson_interval(self.right, len(self.problems))


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share, 95%.

    Unlike the textbook's normal interval it is right for few trials and at the ends:
    30 of 30 gives 0.886 to 1, not 1 to 1.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"; Brown, Cai and DasGupta 2001.

    Example:
        >>> [round(end, 3) for end in wilson_interval(6, 30)]
        [0.095, 0.373]
    """
    share, spread = successes / trials, _Z * _Z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate_server(
    server: ModelServer,
    recipe: Recipe,
    *,
    split: str = "validation",
    on_progress: Progress | None = None,
) -> Accuracy:
    """Ask a model server the recipe's problems, several at a time.

    Args:
        server: The server; the first model that it lists is asked.
        recipe: Whose problems, prompts, reward and answer length to use.
        split: `validation` (held out) or `train`.
        on_progress: Called as (done, total) after each answer.

    Raises:
        ServerError: The server does not answer.
        WorkshopError: There is no problem.

    Example:
        >>> evaluate_server(ModelServer(url), recipe).share  # doctest: +SKIP
        0.2
    """
    asked = load_problems(recipe, split)
    model = server.first_model()
    return _ask(server, recipe, [(each, {"model": model}) for each in asked], on_progress)


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
        WorkshopError: The recipe has fewer problems.

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
    drawn = [p for p in random.Random(seed).sample(problems, groups) for _ in range(size)]
    sampling = {"model": server.first_model(), "temperature": recipe.generation.temperature}
    requests = [
        (problem, sampling | {"seed": seed * len(drawn) + number})
        for number, problem in enumerate(drawn)
    ]
    scored = _ask(server, recipe, requests, on_progress)
    return pd.DataFrame(
        {
            "group": [number // size for number in range(len(drawn))],
            "problem": [problem.text for problem in drawn],
            "answer": [problem.answer for problem in drawn],
            "completion": scored.completions,
            "reward": scored.rewards,
        }
    )


def accuracy_table(results: Mapping[str, Accuracy]) -> pd.DataFrame:
    """Accuracy before and after, side by side.

    Args:
        results: By name, for example `{"before": …, "after": …}`.

    Returns:
        One row a result: `problems`, `right`, `accuracy`, and `low` and `high` of its 95% interval.

    Example:
        >>> problem = Problem("1 + 1", "2", "What is 1 + 1?")
        >>> accuracy_table({"before": Accuracy((problem,), (" 3",), (0.0,))}).accuracy.tolist()
        [0.0]
    """
    import pandas as pd

    rows = {
        name: [len(result.problems), result.right, result.share, *result.interval()]
        for name, result in results.items()
    }
    columns = ["problems", "right", "accuracy", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def accuracy_by_level(results: Mapping[str, Accuracy]) -> pd.DataFrame:
    """Accuracy of each level of graded problems, before and after.

    Args:
        results: By name, all of the same problems.

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
            of_level = [row for row in rows if row[0].level == level]
            parts[name] = Accuracy(*zip(*of_level, strict=True))
        tables[level] = accuracy_table(parts)
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


def _ask(
    server: ModelServer,
    recipe: Recipe,
    requests: Sequence[tuple[Problem, dict[str, Any]]],
    on_progress: Progress | None,
) -> Accuracy:
    """What a server answers, in the order of the requests, several of them at a time; judged."""
    longest = int(recipe.generation.max_new_tokens or recipe.policy.max_total_sequence_length)
    _, reward = reward_for(recipe)

    def ask(request: tuple[Problem, dict[str, Any]]) -> str:
        problem, settings = request
        settings = {**settings, "max_tokens": longest}
        if recipe.plain_prompts:
            return server.complete(problem.system + problem.prompt, **settings).text
        return server.chat(problem.messages, **settings).text

    completions: list[str] = []
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        for text in pool.map(ask, requests):
            completions.append(text)
            if on_progress is not None:
                on_progress(len(completions), len(requests))
    problems = tuple(problem for problem, _ in requests)
    pairs = zip(problems, completions, strict=True)
    rewards = tuple(reward(text, problem.answer) for problem, text in pairs)
    return Accuracy(problems, tuple(completions), rewards)
