"""Rewards: plain functions of one answer, for TRL, NeMo RL and evaluation alike.

A reward is `reward(completion, answer) -> float`. `for_trl` makes TRL's batch
function of one; a NeMo RL environment calls it for each answer of its batch.
`reward_for` finds the reward that a recipe's `env` names.

The file is also mounted into NeMo RL's pods, with `verifier` and `errors` and nothing else
of the workshop (`manifests/base/grpo`): what it imports at its top must be those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

from workshop_lib.errors import WorkshopError
from workshop_lib.training.verifier import Verifier, shared_verifier

if TYPE_CHECKING:
    from workshop_lib.training.recipe.recipe import Recipe

__all__ = [
    "REWARDS",
    "TECHPULSE_WEIGHTS",
    "Reward",
    "first_integer_reward",
    "for_trl",
    "format_reward",
    "math_verify_reward",
    "reward_for",
    "stock_math_reward",
    "techpulse_parts",
    "techpulse_reward",
]

Reward: TypeAlias = Callable[[str, str], float]

# The first number: digits with thousands separators or none, and perhaps decimals.
_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+))(\.\d+)?")
_READ_CHARACTERS = 4000
# `640 GiB` would be read as a product of 640 and three variables. A constant is no unit.
_UNIT_OF_ANSWER = re.compile(r"^(\s*[-+]?[\d.,/]+) +(?!pi$)[A-Za-z]{2,12}\s*$")
# What math-verify finds no number in, and people do: +21, (21), 3 1/2.
_UNARY_PLUS = re.compile(r"(^|[=(:,;{$]|\bis)(\s*)\+(?=\.?\d)")
_IN_BRACKETS = re.compile(r"(^|[=:]|\bis)(\s*)\(([-+]?\d[\d,]*(?:\.\d+)?)\)")
_MIXED = re.compile(r"(?<![\w./,^}])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\w/^])")
_WRITTEN = {"\u2212": "-", "`": " ", "\\dfrac": "\\frac", "\\tfrac": "\\frac"}


def first_integer_reward(completion: str, answer: str) -> float:
    r"""1 if the first number in an answer is the right whole number, else 0.

    It reads the beginning of the answer alone, so a model that is right and then
    goes on talking is right. A sum is not worked out: `3 + 4 =` says 3.

    Args:
        completion: What the model wrote after the prompt.
        answer: The right whole number, as text.

    Raises:
        WorkshopError: `answer` is not a whole number; no model could be right.

    Example:
        >>> first_integer_reward(" 7.\nQuestion: What is 9", "7")
        1.0
        >>> first_integer_reward(" 3 + 4 = 7", "7")
        0.0
    """
    try:
        right = int(answer)
    except ValueError:
        raise WorkshopError(f"first_integer needs a whole number, not {answer[:40]!r}") from None
    match = _NUMBER.search(completion[:_READ_CHARACTERS])
    if match is None or match.group(2):
        return 0.0
    digits = match.group(1).replace(",", "")
    # A number of thousands of digits is not worth converting, and Python refuses to.
    return float(len(digits) < 300 and int(digits) == right)


def math_verify_reward(
    completion: str,
    answer: str,
    *,
    accept_unevaluated: bool = False,
    time_limit_s: float = 5.0,
    verifier: Verifier | None = None,
) -> float:
    r"""1 if an answer ends in what is mathematically the right value, else 0.

    Numbers, fractions, percentages and LaTeX are understood (`math-verify`): `0.5`,
    `1/2`, `50%` and `\boxed{\frac{1}{2}}` are one value. Only the last 4,000
    characters are read: the answer stands at the end. The work is done by another
    process, which is stopped when it takes too long (`9^9^9^9`) or too much memory.

    Args:
        completion: What the model wrote.
        answer: The right value, plain or LaTeX. A unit after it ("640 GiB") is not compared.
        accept_unevaluated: Whether `7 + 14` is a right answer where 21 is. The library
            itself says yes, which rewards a model that repeats the question.
        time_limit_s: Longest time for one answer, seconds; then the reward is 0.
        verifier: The process to use; by default one that all calls share.

    Raises:
        WorkshopError: `answer` cannot be read as a value; no model could be right.

    Example:
        >>> math_verify_reward("So it is \\boxed{\\frac{1}{2}}.", "0.5")
        1.0
        >>> math_verify_reward("7 + 14 =", "21")
        0.0
    """
    text = completion[-_READ_CHARACTERS:]
    verdict = (verifier or shared_verifier()).check(
        text if accept_unevaluated else _as_meant(text),
        _UNIT_OF_ANSWER.sub(r"\1", answer),
        accept_unevaluated=accept_unevaluated,
        time_limit_s=time_limit_s,
    )
    return float(verdict)


def _as_meant(text: str) -> str:
    """A text in the words that math-verify reads; as the library takes it, it misses some."""
    for written, meant in _WRITTEN.items():
        text = text.replace(written, meant)
    text = _IN_BRACKETS.sub(r"\1\2\3", _UNARY_PLUS.sub(r"\1\2", text))
    return _MIXED.sub(_improper, text)


def _improper(match: re.Match[str]) -> str:
    whole, part, parts = map(int, match.groups())
    # "It has 3 10/5": no mixed number.
    return f"{whole * parts + part}/{parts}" if part < parts else match.group()


def stock_math_reward(completion: str, answer: str) -> float:
    """What NeMo RL's own math environment gives (`math_verify_impl: hf_math_verify`).

    It can be hacked: "7 + 14 =" counts as 21, so a model learns to repeat the
    question. A recorded run reached reward 0.996 with a quarter of its answers right.

    Args:
        completion: What the model wrote.
        answer: The right value.

    Example:
        >>> stock_math_reward("7 + 14 =", "21")
        1.0
    """
    return math_verify_reward(completion, answer, accept_unevaluated=True)


_ANSWER_LINE = re.compile(r"^[ \t]*Answer:[ \t]*(\S[^\n]*)$", re.MULTILINE)


def format_reward(completion: str, answer: str = "") -> float:
    r"""1 if an answer ends in the one line `Answer: <value>`, else 0, whatever the value.

    Paid alone, it teaches form and nothing else.

    Example:
        >>> format_reward("3 + 4 = 7\nAnswer: 7")
        1.0
        >>> format_reward("Answer: 7\nor is it?")
        0.0
    """
    tail = completion[-_READ_CHARACTERS:].rstrip()
    lines = list(_ANSWER_LINE.finditer(tail))
    return float(len(lines) == 1 and lines[0].end() == len(tail))


TECHPULSE_WEIGHTS = {"facts": 0.5, "reasoning": 0.25, "brevity": 0.15, "formatting": 0.10}
"""What TechPulse's editors want of an answer, and how much."""

_WORDS_FULL, _WORDS_NONE = 40, 80
_DECIMAL = r"[-+]?\d{1,15}(?:\.\d{1,9})?"
_UNIT = r"(?: ?[A-Za-z]{1,12})?"
_OPERATOR = r"[-+*/\u00d7\u00b7\u00f7]"  # also the signs for times, a raised dot, and divided by
# At most twenty terms: what a model writes may be a sum of thousands.
_EQUATION = re.compile(
    rf"(?<![\d.])({_DECIMAL}){_UNIT}((?:\s*{_OPERATOR}\s*{_DECIMAL}{_UNIT}){{1,20}})"
    rf"\s*=\s*({_DECIMAL})"
)
_TERM = re.compile(rf"({_OPERATOR})\s*({_DECIMAL})")
_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def techpulse_parts(completion: str, answer: str) -> dict[str, float]:
    r"""The four scores of TechPulse's reward, each from 0 to 1.

    - `facts`: the value after `Answer:`, or else the text's last one, is right;
    - `reasoning`: a calculation is written out, and every one that is written out is
      true (numbers may carry units; "because" earns nothing);
    - `brevity`: full to 40 words, none from 80 on, linear between;
    - `formatting`: `format_reward`.

    An answer without any word or number gets nothing, however short.

    Args:
        completion: What the model wrote.
        answer: The right value.

    Raises:
        WorkshopError: `answer` cannot be read as a value.

    Example:
        >>> techpulse_parts("8 * 80 = 640\nAnswer: 640", "640")
        {'facts': 1.0, 'reasoning': 1.0, 'brevity': 1.0, 'formatting': 1.0}
    """
    text = completion[-_READ_CHARACTERS:]
    given = _ANSWER_LINE.findall(text)
    facts = math_verify_reward(given[-1] if given else text, answer)
    true = [_is_true(match) for match in _EQUATION.finditer(_SEPARATOR.sub("", text))]
    # Counted in the whole answer: length is what this part is about.
    words = len(completion.split())
    short = max(0.0, min(1.0, (_WORDS_NONE - words) / (_WORDS_NONE - _WORDS_FULL)))
    says = any(character.isalnum() for character in text)
    return {
        "facts": facts,
        "reasoning": float(bool(true) and all(true)),
        "brevity": short if says else 0.0,
        "formatting": format_reward(completion),
    }


def techpulse_reward(completion: str, answer: str) -> float:
    r"""TechPulse's composite: facts 0.5, reasoning 0.25, brevity 0.15, formatting 0.10.

    A sum of parts can be raised by the easy parts alone: a short, tidy and wrong answer
    gets 0.25, and with a true calculation of something else 0.5. Watch the parts
    (`techpulse_parts`), not only the sum.

    Args:
        completion: What the model wrote.
        answer: The right value.

    Raises:
        WorkshopError: `answer` cannot be read as a value.

    Example:
        >>> techpulse_reward("8 * 80 = 640\nAnswer: 640", "640")
        1.0
        >>> techpulse_reward("Answer: 1", "640")
        0.25
    """
    parts = techpulse_parts(completion, answer)
    return round(sum(TECHPULSE_WEIGHTS[name] * score for name, score in parts.items()), 6)


def _is_true(equation: re.Match[str]) -> bool:
    """Whether `a op b op c = d` holds, products before sums, exactly; rounding is allowed.

    A result is right when it is the value rounded to the result's own decimals.
    """
    first, rest, said = equation.groups()
    terms = [Fraction(first)]
    for operator, number in _TERM.findall(rest):
        value = Fraction(number)
        if operator in "*\u00d7\u00b7":
            terms[-1] *= value
        elif operator in "/\u00f7":
            if value == 0:
                return False
            terms[-1] /= value
        else:
            terms.append(value if operator == "+" else -value)
    decimals = len(said.partition(".")[2])
    return abs(sum(terms) - Fraction(said)) <= Fraction(1, 2 * 10**decimals) * (decimals > 0)


REWARDS: dict[str, Reward] = {
    "first_integer": first_integer_reward,
    "math_verify": math_verify_reward,
    "format": format_reward,
    "techpulse": techpulse_reward,
    "math": stock_math_reward,
    "math_default": stock_math_reward,
}
"""By the name of the recipe's environment. `math` is NeMo RL's own, taken as it is."""


_OWN_SETTINGS = {"math_verify_impl": ("hf_math_verify",), "verifier_type": ("math",)}


def reward_for(recipe: Recipe) -> tuple[str, Reward]:
    """The name and the reward of the environment that a recipe's data names with `env_name`.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.recipe import read_recipe
        >>> reward_for(read_recipe(data_path("recipes/arithmetic.yaml")))[0]
        'first_integer'
    """
    names = recipe.environments
    if len(names) != 1:
        raise WorkshopError(f"{recipe.path}: one reward is used here, the recipe names {names}")
    name = names[0]
    if name not in REWARDS:
        known = ", ".join(REWARDS)
        raise WorkshopError(f"{recipe.path}: there is no reward for env.{name} here, only {known}")
    for key, value in (recipe.env[name] or {}).items():
        if key != "num_workers" and value not in (None, *_OWN_SETTINGS.get(key, ())):
            raise WorkshopError(f"{recipe.path}: env.{name}.{key} {value} is not here")
    return name, REWARDS[name]


def for_trl(reward: Reward, name: str) -> Callable[..., list[float]]:
    """TRL's batch function of a reward: of `completions` (texts, or conversations) and `answer`."""

    def batch(*, completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
        return [
            reward(completion_text(completion), right)
            for completion, right in zip(completions, answer, strict=True)
        ]

    batch.__name__ = name
    return batch


def completion_text(completion: Any) -> str:
    """What the model wrote, of a text or of a conversation's messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
