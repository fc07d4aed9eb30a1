"""Makes the problems in this folder: `python data/problems/make_problems.py [FOLDER]`.

The same seed gives the same files. Nothing held out was trained on:

- Single-digit sums are few: 55 if 3 + 4 and 4 + 3 are one. They are split by the unordered pair,
  and only pairs whose sum has another pair left to train on are held out, so that no answer is
  new. 70 problems train, 30 are held out. A held-out answer has been seen, as another sum's.
- Sums of three digits, for `recipes/hackable.yaml`: too hard for a small model to compute, easy to
  repeat. 120 train, 40 are held out.
- Graded problems: arithmetic in six levels, the last of them sums of TechPulse's world. What is
  split are operations on numbers, and every problem that asks for a held-out one is held out,
  whether it says "3 + 4" or "3 GPUs and 4 GPUs". No number is 0: to "What is 8 + 0?" the question
  repeated has the right first number, and the model that is trained begins by repeating.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

SEED = 2026
HELD_OUT_SUMS = 30
HELD_OUT_SHARE = 0.33  # of the graded operations; the share of the problems differs a little
MOST_OF_A_LEVEL = 160  # a level with more problems is drawn from
LEVELS = {
    1: "sums of digits",
    2: "differences",
    3: "products of digits",
    4: "sums of tens",
    5: "two digits and one",
    6: "technical sums",
}
SYMBOLS = {"add": "+", "subtract": "-", "multiply": "*"}
STORIES = {  # `{a}` and `{b}` in the order of the operation
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
PROMPTS = {  # no newline at the end: NeMo RL takes the file as it is, and so would the model
    "sums-prompt.txt": "Question: What is {}?\nAnswer:",
    "graded-prompt.txt": "Question: {}\nAnswer:",
}

Rows = list[dict[str, object]]


def single_digit_sums() -> tuple[Rows, Rows]:
    """All sums of two digits: to train on, and held out."""
    pairs = [(a, b) for a in range(10) for b in range(a, 10)]
    left = {total: sum(a + b == total for a, b in pairs) for total in range(19)}
    held: set[tuple[int, int]] = set()
    problems = 0
    for a, b in random.Random(SEED).sample(pairs, len(pairs)):
        size = 1 if a == b else 2
        if left[a + b] > 1 and problems + size <= HELD_OUT_SUMS:
            held.add((a, b))
            left[a + b] -= 1
            problems += size
    parts: dict[bool, Rows] = {False: [], True: []}
    for a in range(10):
        for b in range(10):
            problem: dict[str, object] = {"problem": f"{a} + {b}", "answer": str(a + b)}
            parts[(min(a, b), max(a, b)) in held].append(problem)
    return parts[False], parts[True]


def large_sums() -> tuple[Rows, Rows]:
    """Sums of three digits, no pair twice in any order."""
    draw = random.Random(f"{SEED} large sums")
    pairs: dict[tuple[int, int], dict[str, object]] = {}
    while len(pairs) < 160:
        a, b = draw.randint(100, 999), draw.randint(100, 999)
        pairs.setdefault((min(a, b), max(a, b)), {"problem": f"{a} + {b}", "answer": str(a + b)})
    problems = list(pairs.values())
    return problems[:120], problems[120:]


def graded_problems() -> tuple[Rows, Rows]:
    """Problems of all levels: to train on, and held out."""
    every: list[tuple[dict[str, object], tuple[str, int, int]]] = []
    for level in LEVELS:
        # A generator of its own: a level that is changed leaves the others as they are.
        found = list(_level(level))
        draw = random.Random(f"{SEED} level {level}")
        chosen = sorted(draw.sample(range(len(found)), min(MOST_OF_A_LEVEL, len(found))))
        every += [found[index] for index in chosen]
    held = {
        asks
        for asks in {asks for _, asks in every}
        if random.Random(f"{SEED} {asks}").random() < HELD_OUT_SHARE
    }
    train = [problem for problem, asks in every if asks not in held]
    return train, [problem for problem, asks in every if asks in held]


def _level(level: int) -> Iterator[tuple[dict[str, object], tuple[str, int, int]]]:
    digits, tens = range(1, 10), range(10, 100)
    if level == 6:
        yield from _technical()
        return
    pairs = {
        1: [("add", a, b) for a in digits for b in digits],
        2: [("subtract", a, b) for a in range(2, 19) for b in digits if b < a],
        3: [("multiply", a, b) for a in digits for b in digits],
        4: [("add", 10 * a, 10 * b) for a in digits for b in digits],
        5: [("add", a, b) for a in tens for b in digits],
    }
    for operation, a, b in pairs[level]:
        yield _made(level, f"What is {a} {SYMBOLS[operation]} {b}?", operation, a, b)


def _technical() -> Iterator[tuple[dict[str, object], tuple[str, int, int]]]:
    """Numbers that such a sum could have: no node without a GPU, nothing free of nothing."""
    for operation, stories in STORIES.items():
        for a, b in [(a, b) for a in range(2, 10) for b in range(2, 7)]:
            if operation == "subtract" and b >= a:
                continue
            for story in stories:
                yield _made(6, story.format(a=a, b=b), operation, a, b)


def _made(
    level: int, text: str, operation: str, a: int, b: int
) -> tuple[dict[str, object], tuple[str, int, int]]:
    right = {"add": a + b, "subtract": a - b, "multiply": a * b}[operation]
    low, high = (a, b) if operation == "subtract" else (min(a, b), max(a, b))
    return {"problem": text, "answer": str(right), "level": level}, (operation, low, high)


def main() -> None:
    """Write all files, as NeMo RL's `ResponseDataset` reads them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    texts = dict(PROMPTS)
    made = {"sums": single_digit_sums(), "large-sums": large_sums(), "graded": graded_problems()}
    for name, parts in made.items():
        for part, rows in zip(("train", "heldout"), parts, strict=True):
            texts[f"{name}-{part}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
