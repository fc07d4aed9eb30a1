"""Groups of answers from a served model: the first two stages of a GRPO step, by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.training.problems import Problem, load_problems
from workshop_lib.training.rewards import reward_for

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving import ModelServer
    from workshop_lib.training.recipe import Recipe

__all__ = ["sample_groups"]

_IN_FLIGHT = 16


def sample_groups(
    server: ModelServer,
    recipe: Recipe,
    *,
    groups: int = 8,
    size: int = 8,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
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
    from concurrent.futures import ThreadPoolExecutor

    import pandas as pd

    problems = load_problems(recipe)
    if not 1 <= groups <= len(problems) or size < 1:
        raise WorkshopError(
            f"{groups} groups of {size}: the recipe has {len(problems)} problems to draw from"
        )
    if not recipe.plain_prompts:
        raise WorkshopError(f"{recipe.path}: groups are sampled from plain prompts, without chat")
    _, reward = reward_for(recipe)
    model = server.first_model()
    limit = recipe.generation.max_new_tokens or recipe.policy.max_total_sequence_length
    drawn = random.Random(seed).sample(problems, groups)
    asked = [(number, problem) for number, problem in enumerate(drawn) for _ in range(size)]

    def ask(number: int, problem: Problem) -> str:
        return server.complete(
            problem.system + problem.prompt,
            model=model,
            max_tokens=limit,
            temperature=recipe.generation.temperature,
            seed=seed * len(asked) + number,
        ).text

    rows = []
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        texts = pool.map(lambda item: ask(item[0], item[1][1]), enumerate(asked))
        for (group, problem), text in zip(asked, texts, strict=True):
            score = reward(text, problem.answer)
            rows.append((group, problem.text, problem.answer, text, score))
            if on_progress is not None:
                on_progress(len(rows), len(asked))
    return pd.DataFrame(rows, columns=["group", "problem", "answer", "completion", "reward"])
