"""Problems in graded levels: arithmetic from sums of digits on, and sums of TechPulse's world.

Made from nothing but a seed, and split so that nothing held out was trained on *in any
words*: what is split are operations on numbers (`3 + 4` and `4 + 3` are one), and every
problem that asks for a held-out one is held out, whether it says "3 + 4" or "3 GPUs and
4 GPUs". `python -m workshop_lib.training.problems` writes the files.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["LEVELS", "GradedProblem", "graded_problems"]

LEVELS = {
    1: "sums of digits",
    2: "differences",
    3: "products of digits",
    4: "sums of tens",
    5: "two digits and one",
    6: "technical sums",
}
"""What each level asks for. No number is 0: to "What is 8 + 0?" the question repeated, `8 + 0`,
has the right first number, and the model that the workshop trains begins by repeating."""

HELD_OUT_SHARE = 0.33
"""Of the operations; the share of the problems differs a little."""

_MOST = 160
"""Problems of a level; a level with more is drawn from."""

_SYMBOLS = {"add": "+", "subtract": "-", "multiply": "*"}

# TechPulse's world: GPUs, tokens, memory. `{a}` and `{b}` in the order of the operation.
_STORIES = {
    "add": (
        "Two nodes have {a} and {b} GPUs. How many GPUs are there?",
        "A prompt has {a} tokens, its answer {b}. How many tokens are there?",
        "Weights take {a} GiB, the cache {b} GiB. How many GiB are taken?",
    ),
    "subtract": (
        "Of {a} GPUs {b} are busy. How many GPUs are free?",
        "A GPU has {a} GiB, {b} GiB are taken. How many GiB are free?",
        "Of {a} requests {b} are answered. How many requests wait?",
    ),
    "multiply": (
        "Each of {a} nodes has {b} GPUs. How many GPUs are there?",
        "A GPU writes {a} tokens a second. How many tokens in {b} seconds?",
        "Each of {a} models takes {b} GiB. How many GiB are taken?",
    ),
}


@dataclass(frozen=True, slots=True)
class GradedProblem:
    """A problem, and where it belongs.

    Attributes:
        problem: The question.
        answer: What is right.
        level: A key of `LEVELS`.
        asks: The operation and its numbers, in an order that does not matter to it.
    """

    problem: str
    answer: str
    level: int
    asks: tuple[str, int, int]


def graded_problems(seed: int) -> tuple[list[GradedProblem], list[GradedProblem]]:
    """The problems of all levels, to train on and held out.

    Args:
        seed: Decides which problems of a large level are taken, and what is held out.

    Returns:
        Problems to train on and problems held out, by level. No operation is in both.

    Example:
        >>> train, held_out = graded_problems(2026)
        >>> {p.asks for p in train} & {p.asks for p in held_out}
        set()
    """
    every: list[GradedProblem] = []
    for level in LEVELS:
        # A generator of its own: a level that is changed leaves the others as they are.
        found = list(_level(level))
        draw = random.Random(f"{seed} level {level}")
        chosen = sorted(draw.sample(range(len(found)), min(_MOST, len(found))))
        every += [found[index] for index in chosen]
    held = {
        asks
        for asks in {problem.asks for problem in every}
        if random.Random(f"{seed} {asks}").random() < HELD_OUT_SHARE
    }
    parts: dict[bool, list[GradedProblem]] = {False: [], True: []}
    for problem in every:
        parts[problem.asks in held].append(problem)
    return parts[False], parts[True]


def _level(level: int) -> Iterator[GradedProblem]:
    digits, tens = range(1, 10), range(10, 100)
    if level == 1:
        yield from (_plain(1, "add", a, b) for a in digits for b in digits)
    elif level == 2:
        yield from (_plain(2, "subtract", a, b) for a in range(2, 19) for b in digits if b < a)
    elif level == 3:
        yield from (_plain(3, "multiply", a, b) for a in digits for b in digits)
    elif level == 4:
        yield from (_plain(4, "add", 10 * a, 10 * b) for a in digits for b in digits)
    elif level == 5:
        yield from (_plain(5, "add", a, b) for a in tens for b in digits)
    else:
        yield from _technical(6)


def _plain(level: int, operation: str, a: int, b: int) -> GradedProblem:
    return _made(level, f"What is {a} {_SYMBOLS[operation]} {b}?", operation, a, b)


def _technical(level: int) -> Iterator[GradedProblem]:
    """Numbers that such a sum could have: no node without a GPU, nothing free of nothing."""
    pairs = [(a, b) for a in range(2, 10) for b in range(2, 7)]
    for operation, stories in _STORIES.items():
        for a, b in pairs:
            if operation == "subtract" and b >= a:
                continue
            for story in stories:
                yield _made(level, story.format(a=a, b=b), operation, a, b)


def _made(level: int, text: str, operation: str, a: int, b: int) -> GradedProblem:
    right = {"add": a + b, "subtract": a - b, "multiply": a * b}[operation]
    low, high = (a, b) if operation == "subtract" else (min(a, b), max(a, b))
    return GradedProblem(text, str(right), level, (operation, low, high))
