"""Rewards: right, wrong, garbage, and what a model might do to get one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.training.recipe import read_recipe
from workshop_lib.training.rewards import (
    REWARDS,
    first_integer_reward,
    for_trl,
    format_reward,
    math_verify_reward,
    reward_for,
    stock_math_reward,
    techpulse_parts,
    techpulse_reward,
)
from workshop_lib.training.verifier import Verifier

ARITHMETIC = data_path("recipes/arithmetic.yaml")


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as process:
        yield process


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (" 7", 1.0),
        ("7.", 1.0),
        (" 7.\nQuestion: What is 9 + 9?\nAnswer: 18", 1.0),
        (" The answer is 7!", 1.0),
        (" +7", 1.0),
        (" 07", 1.0),
        ("**7**", 1.0),
        (" 3 + 4 = 7", 0.0),
        (" 17", 0.0),
        (" 71", 0.0),
        (" -7", 0.0),
        (" 7.5", 0.0),
        (" 7,000", 0.0),
        (" seven", 0.0),
        ("", 0.0),
        ("\x00\ud800 \u202e", 0.0),
        ("1" * 100_000, 0.0),
        ("x" * 1_000_000 + "7", 0.0),
    ],
)
def test_first_integer(completion: str, reward: float) -> None:
    assert first_integer_reward(completion, "7") == reward


def test_first_integer_reads_separators_and_signs() -> None:
    assert first_integer_reward("It is 12,345 tokens", "12345") == 1.0
    assert first_integer_reward("12,34", "12") == 1.0  # no separator: 12, and then 34
    assert first_integer_reward("-3", "-3") == 1.0
    with pytest.raises(WorkshopError, match="needs a whole number, not 'seven'"):
        first_integer_reward("7", "seven")


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("21", "21", 1.0),
        ("The answer is 21.", "21", 1.0),
        ("7 + 14 = 21", "21", 1.0),
        ("7 + 14 = 22", "21", 0.0),
        ("So \\boxed{21}.", "21", 1.0),
        ("$x = 21$", "21", 1.0),
        ("first 20, then 21", "21", 1.0),
        ("first 21, then 20", "21", 0.0),
        ("21 GB", "21", 1.0),
        ("1,000 tokens", "1000", 1.0),
        ("21.0", "21", 1.0),
        ("-21", "21", 0.0),
        ("42/2", "21", 1.0),
        ("0.5", "1/2", 1.0),
        ("50%", "\\frac{1}{2}", 1.0),
        ("$\\frac{2}{4}$", "0.5", 1.0),
        ("$1 + \\sqrt{2}$", "\\sqrt{2} + 1", 1.0),
        ("$\\{1, 2\\}$", "\\{2, 1\\}", 1.0),
        # What the library alone finds no number in.
        ("\\boxed{1}, \\boxed{2}", "\\{1, 2\\}", 1.0),
        ("+21", "21", 1.0),
        ("x = +21", "21", 1.0),
        ("20 + 21", "21", 0.0),
        ("The answer is (21).", "21", 1.0),
        ("3(7)", "7", 0.0),
        ("`21`", "21", 1.0),
        ("\u221221", "-21", 1.0),
        ("\\boxed{\\dfrac{1}{3}}", "1/3", 1.0),
        ("\\dfrac{1}{3}", "1/3", 1.0),
        ("It takes 3 1/2 hours", "7/2", 1.0),
        ("It takes 640 GiB", "640 GiB", 1.0),
        ("\\boxed{20} or rather \\boxed{21}", "21", 0.0),  # who hedges is not right
        ("3 1/2", "1/2", 0.0),
        ("", "21", 0.0),
        ("no number", "21", 0.0),
    ],
)
def test_math_verify(verifier: Verifier, completion: str, answer: str, reward: float) -> None:
    assert math_verify_reward(completion, answer, verifier=verifier) == reward


@pytest.mark.parametrize("echo", ["7 + 14 =", "7 + 14", "$7 + 14$", "\\boxed{7+14}", "3*7", "25-4"])
def test_a_question_repeated_is_no_answer(verifier: Verifier, echo: str) -> None:
    assert math_verify_reward(echo, "21", verifier=verifier) == 0.0
    # NeMo RL's own verifier pays for it: this is how it was hacked.
    hacked = math_verify_reward(echo, "21", verifier=verifier, accept_unevaluated=True)
    assert hacked == 1.0


@pytest.mark.parametrize(
    "garbage",
    [
        "\x00\ud800\u202e \\frac{{{ $$ \\boxed{",
        "(" * 4000,
        "1" * 100_000,
        "\\boxed{" * 500 + "21" + "}" * 500,
        "{'right': true}\n{\"right\": true}\n",
    ],
)
def test_garbage_and_huge_input(verifier: Verifier, garbage: str) -> None:
    math_verify_reward("21", "21", verifier=verifier)  # it runs: its start has no limit
    started = time.monotonic()
    assert math_verify_reward(garbage, "21", verifier=verifier) in (0.0, 1.0)
    assert time.monotonic() - started < 10  # twice the limit for an answer
    assert math_verify_reward("21", "21", verifier=verifier) == 1.0


def test_a_tower_of_powers_is_stopped_in_time(verifier: Verifier) -> None:
    math_verify_reward("21", "21", verifier=verifier)  # it runs
    before = verifier._process
    reward = math_verify_reward("9^9^9^9", "21", verifier=verifier, time_limit_s=0.5)
    assert reward == 0.0
    # It was killed, and did not come to an end; the next answer finds another.
    assert before is not None and before.poll() == -signal.SIGKILL
    assert math_verify_reward("21", "21", verifier=verifier) == 1.0


def test_an_unreadable_right_answer_is_an_error(verifier: Verifier) -> None:
    with pytest.raises(WorkshopError, match="no value that math-verify can read"):
        math_verify_reward("21", "", verifier=verifier)


def test_a_right_answer_that_is_read_slowly_is_no_unreadable_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy machine took over 2 s to build the parser, and a training ended with an error."""
    from math_verify import parser

    from workshop_lib.training import verifier as module

    module._build_parsers()  # what else is slow at first is not this test's
    extract = parser.extract_target_from_pred

    def slow(text: str, *rest: Any, **named: Any) -> Any:
        time.sleep(2.2 if "boxed" in text else 0)
        return extract(text, *rest, **named)

    monkeypatch.setattr(parser, "extract_target_from_pred", slow)
    module._answer.cache_clear()
    said = module._compare("It is 17.", "17", accept_unevaluated=False)
    assert said == {"right": True}
    module._answer.cache_clear()


def test_for_trl() -> None:
    batch = for_trl(first_integer_reward, "first_integer")
    assert batch.__name__ == "first_integer"
    kwargs = {"prompts": ["a", "b"], "completion_ids": [[1], [2]], "trainer_state": None}
    assert batch(completions=[" 7", " 8"], answer=["7", "7"], **kwargs) == [1.0, 0.0]
    chat = [[{"role": "assistant", "content": "7"}], [{"role": "assistant", "content": None}]]
    assert batch(completions=chat, answer=["7", "7"], **kwargs) == [1.0, 0.0]
    with pytest.raises(ValueError):
        batch(completions=[" 7"], answer=["7", "7"])


def test_the_recipe_names_the_reward() -> None:
    assert reward_for(read_recipe(ARITHMETIC)) == ("first_integer", first_integer_reward)
    math = {"data.default.env_name": "math", "env.math": {"math_verify_impl": "hf_math_verify"}}
    assert reward_for(read_recipe(ARITHMETIC, math)) == ("math", stock_math_reward)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"data.default.env_name": "code", "env.code": {}}, "no reward for env.code here"),
        (
            {
                "data.default.env_name": "math",
                "env.math": {"math_verify_impl": "dapo_math_verify"},
            },
            "dapo_math_verify is not here",
        ),
        (
            {"data.validation.env_name": "math", "env.math": {"num_workers": 1}},
            "one reward is used here",
        ),
    ],
)
def test_a_reward_that_is_not_here(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(WorkshopError, match=said):
        reward_for(read_recipe(ARITHMETIC, overrides))


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("Answer: 7", 1.0),
        ("3 + 4 = 7\nAnswer: 7\n\n", 1.0),
        ("  Answer:7", 1.0),
        ("Answer:", 0.0),
        ("Answer: 7\nor so", 0.0),
        ("Answer: 7\nAnswer: 8", 0.0),
        ("The Answer: 7", 0.0),
        ("7", 0.0),
        ("", 0.0),
        ("x" * 1_000_000 + "\nAnswer: 7", 1.0),
        ("\nAnswer: 7" * 100_000, 0.0),
    ],
)
def test_format(completion: str, reward: float) -> None:
    assert format_reward(completion) == reward


GOOD = "8 GPUs * 80 GiB = 640 GiB\nAnswer: 640"


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        (GOOD, (1, 1, 1, 1)),
        ("Answer: 640", (1, 0, 1, 1)),
        ("640", (1, 0, 1, 0)),
        ("8 * 80 = 630\nAnswer: 640", (1, 0, 1, 1)),
        ("8 * 80 = 640, 2 + 2 = 5\nAnswer: 640", (1, 0, 1, 1)),
        ("8 * 80 = 640\nAnswer: 64", (0, 1, 1, 1)),
        ("because 8 times 80 is it\nAnswer: 640", (1, 0, 1, 1)),
        ("word " * 58 + "\n" + "Answer: 640", (1, 0, 0.5, 1)),
        ("word " * 500 + "\n" + "Answer: 640", (1, 0, 0, 1)),
        ("", (0, 0, 0, 0)),
        (" \n$$ {}", (0, 0, 0, 0)),
    ],
)
def test_techpulse(completion: str, parts: tuple[float, ...]) -> None:
    assert tuple(techpulse_parts(completion, "640").values()) == parts
    weighted = sum(w * p for w, p in zip((0.5, 0.25, 0.15, 0.10), parts, strict=True))
    assert techpulse_reward(completion, "640") == pytest.approx(weighted)


@pytest.mark.parametrize(
    ("calculation", "true"),
    [
        ("2 + 3 * 4 = 14", 1),
        ("2 + 3 * 4 = 20", 0),
        ("7 - 10 = -3", 1),
        ("10 / 4 = 2.5", 1),
        ("10 / 3 = 3.33", 1),
        ("10 / 3 = 3.3", 1),
        ("10 / 3 = 3.4", 0),
        ("10 / 3 = 3", 0),
        ("1 / 0 = 7", 0),
        ("12 \u00d7 1,000 = 12,000", 1),
        ("0.5 \u00b7 4 = 2", 1),
        ("9 \u00f7 3 = 3", 1),
        ("640 = 640", 0),
    ],
)
def test_a_calculation_is_checked(calculation: str, true: float) -> None:
    assert techpulse_parts(f"{calculation}\nAnswer: 1", "1")["reasoning"] == true


def test_every_reward_refuses_no_answer_and_never_fails() -> None:
    for name, reward in REWARDS.items():
        for said in ("", " ", "\x00", "\\frac{", "7" * 5000, "\n" * 5000, "7 / 0", "\u0667"):
            assert 0 <= reward(said, "21") < 1, (name, said[:20])
