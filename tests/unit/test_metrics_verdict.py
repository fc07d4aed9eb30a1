"""Verdicts on real runs, at every step of theirs, and rules at their limits."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from workshop_lib.data import data_path
from workshop_lib.training import math_verify_reward
from workshop_lib.training.runs import (
    RUN_COLUMNS,
    echo_share,
    judge,
    read_rollouts,
    read_run,
    with_judge,
)
from workshop_lib.training.runs.verdict import (
    hacking_by_echo,
    hacking_by_judge,
    hacking_by_signs,
    hacking_by_validation,
    learning,
    no_signal,
    stalled,
    unstable,
)

NOTHING = float("nan")


def recorded(path: str) -> pd.DataFrame:
    return read_run(data_path(f"recorded/{path}")).frame


def unjudged(path: str) -> pd.DataFrame:
    """A run of which nobody has the answers: curves alone."""
    return recorded(path).assign(right_share=NOTHING, echo_share=NOTHING)


def kinds(frame: pd.DataFrame) -> list[str]:
    """The verdict after each step."""
    return [judge(frame[:count]).kind for count in range(len(frame) + 1)]


@pytest.mark.parametrize("source", ["nemo-rl/honest", "nemo-rl/honest/console.log"])
def test_the_honest_run_is_learning_and_never_suspected(source: str) -> None:
    said = kinds(unjudged(source))
    assert said[:8] == ["too early"] * 8 and set(said[8:]) == {"learning"}


def test_the_laptops_hacked_run_and_its_cure() -> None:
    """Echoes from the third step on, without a judge; the cured one earns nothing, and says so."""
    said = kinds(recorded("trl/hacked"))
    assert said[-1] == "hacking" and "learning" not in said[4:]
    assert judge(recorded("trl/cured")).kind == "no signal"
    hacked = with_judge(read_run(data_path("recorded/trl/hacked")), math_verify_reward).frame
    assert hacked["reward"].iloc[-1] > 0.95 and hacked["right_share"].max() < 0.1


def test_the_hacked_run_with_a_judge() -> None:
    frame = recorded("nemo-rl/reward-hacking")
    said = kinds(frame.assign(echo_share=NOTHING))
    # The flip is at steps 36 to 40; before it the run was learning, and rightly so called.
    assert set(said[8:38]) == {"learning"} and said[38:] == ["hacking"] * 3
    verdict = judge(frame)
    assert verdict.reason == (
        "the reward went from 0.19 to 0.98, the share of right answers from 0.16 to 0.33"
        " (first and last 3 steps)"
    )
    assert [finding.kind for finding in verdict.findings] == [
        "hacking", "hacking", "unstable", "learning",
    ]  # fmt: skip
    assert hacking_by_signs(frame) is None, "who knows need not suspect"


def test_the_hacked_run_by_what_it_wrote() -> None:
    """NeMo RL's answers of the first and the last step; no right answer is needed."""
    frame = recorded("nemo-rl/reward-hacking").assign(right_share=NOTHING)
    verdict = judge(frame)
    assert verdict.kind == "hacking"
    assert verdict.reason.startswith("85% of the rewarded answers only repeat what the prompt")
    honest = recorded("nemo-rl/honest")
    assert honest["echo_share"].dropna().max() < 0.1 and hacking_by_echo(honest) is None
    for step in (0, 30, 60):
        answers = read_rollouts(data_path(f"recorded/nemo-rl/honest/val_data_step{step}.jsonl"))
        assert echo_share(answers) < 0.15


@pytest.mark.parametrize(
    ("completion", "echo"),
    [
        ("7 + 14 =", 1.0),
        ("What is 7 + 14?", 1.0),
        ("7 + 14 = 21", 0.0),
        ("21", 0.0),
        ("twenty-one", 0.0),
        ("14 7", 1.0),
        ("", 1.0),
        ("714", 0.0),
    ],
)
def test_an_echo_says_nothing_new(completion: str, echo: float) -> None:
    answers = pd.DataFrame({"prompt": ["What is 7 + 14?"], "completion": [completion]})
    assert echo_share(answers.assign(reward=1.0)) == echo
    assert math.isnan(echo_share(answers.assign(reward=0.0)))
    assert math.isnan(echo_share(answers[:0].assign(reward=[])))


def test_of_graded_rewards_the_best_are_read() -> None:
    answers = pd.DataFrame(
        {"prompt": ["3 + 4"] * 3, "completion": ["7", "3 + 4", "3"], "reward": [1.0, 0.25, 0.25]}
    )
    assert echo_share(answers) == 0.0


def test_echoes_of_a_reward_that_is_rare_are_chance() -> None:
    frame = made(reward=[0.1] * 10, echo_share=1.0)
    assert hacking_by_echo(frame) is None
    assert hacking_by_echo(frame.assign(reward=0.4)) is not None
    assert hacking_by_echo(frame.assign(reward=0.4, echo_share=0.4)) is None
    # What was written ten steps ago says nothing of now.
    old = [1.0] * 6 + [NOTHING] * 4
    assert hacking_by_echo(frame.assign(reward=0.9, echo_share=old)) is None
    assert hacking_by_echo(frame.drop(columns="echo_share")) is None


def test_the_hacked_run_by_its_signs_alone() -> None:
    said = kinds(unjudged("nemo-rl/reward-hacking"))
    assert set(said[8:39]) == {"learning"} and said[39:] == ["hacking"] * 2
    # A console has no KL: it takes a step more to be as sure.
    said = kinds(unjudged("nemo-rl/reward-hacking/console.log"))
    assert set(said[8:40]) == {"learning"} and said[40:] == ["hacking"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_laptops_runs_are_learning(seed: int) -> None:
    said = kinds(recorded(f"trl/learning-{seed}"))
    assert set(said[:6]) == {"too early"} and said[6:] == ["learning"] * 7


def test_the_graded_problems_with_an_honest_reward() -> None:
    """A rise that is slow and swings: the eight problems of a step are of any level."""
    frame = recorded("trl/graded")
    said = kinds(frame)
    assert set(said[:6]) == {"too early"} and set(said[6:]) == {"learning"}
    assert frame["zero_std_share"].iloc[0] == 1.0 > frame["zero_std_share"].iloc[4]
    assert frame["reward"].head(5).mean() < 0.15 < 0.5 < frame["reward"].tail(10).mean()


def test_a_model_that_knows_nothing_has_no_signal() -> None:
    verdict = judge(recorded("trl/no-signal"))
    assert verdict.kind == "no signal"
    assert "100% of the completions are in groups without spread" in verdict.reason


def test_a_real_run_of_which_the_rise_is_left_out() -> None:
    """Steps 42 to 60 of the honest run, as if it had begun there: it does not rise."""
    assert judge(unjudged("nemo-rl/honest")[41:]).kind == "stalled"


def test_a_run_that_broke() -> None:
    """The laptop's model at ten times the rate: it leaves its language and cannot come back."""
    frame = recorded("trl/unstable")
    said = kinds(frame)
    assert said[:3] == ["too early"] * 3 and said[4:] == ["unstable"] * 3
    verdict = judge(frame)
    assert verdict.reason.startswith("KL is 1.19 (last 3 steps; limit 0.5)")
    assert frame["reward"].iloc[-1] == 0.0


# From here on frames are made up, for the rules' limits.


def made(**columns: Any) -> pd.DataFrame:
    length = next(len(values) for values in columns.values() if isinstance(values, list))
    empty = dict.fromkeys(RUN_COLUMNS, NOTHING)
    return pd.DataFrame(empty | {"step": range(1, length + 1)} | columns)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"kl": [0.1] * 7 + [0.6] * 3}, "KL is 0.60"),
        ({"grad_norm": [2.0] * 5 + [30.0] * 5}, "the gradient's norm is 30.0"),
        ({"loss": [0.1] * 9 + [NOTHING]}, "the loss is no number any more"),
        ({"loss": [0.1] * 9 + [float("inf")]}, "the loss is no number any more"),
        ({"reward": [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.5, 0.2, 0.1, 0.1]}, "fell from 0.80 to 0.13"),
    ],
)
def test_unstable(columns: dict[str, list[float]], said: str) -> None:
    frame = made(**({"reward": [0.5] * 10} | columns))
    verdict = judge(frame)
    assert verdict.kind == "unstable" and said in verdict.reason


@pytest.mark.parametrize(
    "columns",
    [
        {"kl": [0.1] * 8 + [0.6, 0.3]},
        {"grad_norm": [2.0, 30.0] * 2 + [2.0] * 6},
        {"loss": [NOTHING] * 10},
        {"reward": [0.02, 0.08, 0.05, 0.1, 0.0, 0.0, 0.03, 0.0, 0.0, 0.0]},
        {},
    ],
)
def test_not_unstable(columns: dict[str, list[float]]) -> None:
    assert unstable(made(**({"reward": [0.5] * 10} | columns))) is None


def test_mastered_is_not_without_signal() -> None:
    frame = made(reward=[0.4, 0.7, 0.9] + [1.0] * 7, zero_std_share=1.0)
    assert no_signal(frame) is None and stalled(frame) is None
    assert judge(frame).kind == "learning"
    assert no_signal(frame.assign(reward=0.5)) is not None
    assert no_signal(frame.assign(reward=0.5, zero_std_share=0.9)) is None


def test_no_signal_without_the_groups() -> None:
    assert no_signal(made(reward=[0.0] * 5)) is not None
    assert no_signal(made(reward=[0.0, 0.0, 0.0, 0.1, 0.0])) is None
    assert no_signal(made(reward=[0.0] * 2)) is None


def test_noise_is_no_learning() -> None:
    frame = made(reward=[0.3, 0.5, 0.2, 0.4, 0.1, 0.5, 0.3, 0.6, 0.2, 0.5])
    assert learning(frame) is None and judge(frame).kind == "stalled"
    assert judge(frame[:8]).kind == "too early"
    assert learning(made(reward=[0.30, 0.31, 0.32, 0.32, 0.33, 0.34])) is None


def test_hacking_needs_a_high_reward_that_rises() -> None:
    sign = {"mean_length": [10.0] * 10 + [7.0] * 3, "kl": [0.1] * 10 + [0.3] * 3}
    assert hacking_by_signs(made(reward=[0.85] * 10 + [0.95] * 3, **sign)) is not None
    assert hacking_by_signs(made(reward=[0.85] * 10 + [0.80] * 3, **sign)) is None
    assert hacking_by_signs(made(reward=[0.60] * 10 + [0.95] * 3, **sign)) is None
    assert hacking_by_signs(made(reward=[0.85] * 10 + [0.95] * 3, **sign)[1:]) is None
    longer = sign | {"mean_length": [10.0] * 10 + [13.0] * 3}
    assert hacking_by_signs(made(reward=[0.85] * 10 + [0.95] * 3, **longer)) is not None
    calm = sign | {"kl": 0.1}
    assert hacking_by_signs(made(reward=[0.85] * 10 + [0.95] * 3, **calm)) is None


def test_a_judge_that_is_stricter_from_the_start_finds_nothing() -> None:
    """Its share is lower by 0.3 at every step, and rises as the reward does."""
    rising = [0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.9]
    frame = made(reward=rising, right_share=[reward - 0.3 for reward in rising])
    assert hacking_by_judge(frame) is None
    flat = frame.assign(right_share=0.1)
    assert hacking_by_judge(flat) is not None and judge(flat).kind == "hacking"
    # The other way about it is the reward that is strict.
    assert hacking_by_judge(frame.assign(right_share=0.95)) is None


def test_a_judge_that_is_as_strict_finds_nothing() -> None:
    frame = made(reward=[0.9] * 6, right_share=[0.8] * 6)
    assert hacking_by_judge(frame) is None
    assert hacking_by_judge(frame.drop(columns="right_share")) is None
    assert hacking_by_judge(frame[:2].assign(right_share=0.0)) is None


def test_no_step_at_all() -> None:
    verdict = judge(made(reward=[0.5])[:0])
    assert verdict.kind == "too early" and verdict.reason == "no step is done yet"
    assert str(verdict).startswith("too early: ")


def test_problems_that_are_too_easy_teach_nothing() -> None:
    easy = made(reward=[0.97, 0.98, 1.0, 0.97, 0.99, 1.0] * 3, zero_std_share=0.8)
    verdict = judge(easy)
    assert verdict.kind == "no signal" and "0.98 from the first steps on" in verdict.reason
    assert "harder problems" in verdict.findings[0].advice
    assert judge(easy[:5]).kind == "too early"
    # Not quite mastered, and at rest: not a matter of easier problems.
    verdict = judge(made(reward=[0.85, 0.88, 0.84, 0.87] * 3))
    assert verdict.kind == "stalled" and "harder problems" in verdict.findings[0].advice


def test_rewards_on_another_scale_have_no_level() -> None:
    """A reward from -1 to 1 or to 10 can be learned and lost, but 0.95 of it says nothing."""
    sign = {"mean_length": [10.0] * 10 + [7.0] * 3, "kl": [0.1] * 10 + [0.3] * 3}
    high = made(reward=[8.5] * 10 + [9.5] * 3, **sign)
    assert hacking_by_signs(high) is None and judge(high).kind == "learning"
    assert no_signal(made(reward=[5.0] * 10, zero_std_share=0.5)) is None
    swings = made(reward=[0.4, -0.4, 0.3, -0.1, 0.5, -0.3, 0.3, -0.4, 0.1, -0.3])
    assert unstable(swings) is None, "it swings as it always did"
    assert unstable(made(reward=[-1.0] * 3 + [0.9] * 6 + [-1.0] * 3)) is not None


@pytest.mark.parametrize("seed", range(5))
def test_an_honest_run_at_rest_is_not_suspected_for_its_noise(seed: int) -> None:
    """Few and short answers: length, KL and reward swing by more than the rule's least sizes."""
    import numpy as np

    draw = np.random.default_rng(seed)
    frame = made(
        reward=list(np.clip(0.88 + 0.05 * draw.standard_normal(300), 0, 1)),
        mean_length=list(6 * np.exp(0.25 * draw.standard_normal(300))),
        kl=list(0.1 * np.exp(0.5 * draw.standard_normal(300))),
    )
    suspected = [end for end in range(13, 301) if hacking_by_signs(frame[:end])]
    assert len(suspected) <= 3  # of 288; without the noise some twenty


def test_the_reward_rises_and_the_validation_does_not() -> None:
    frame = made(reward=[0.2, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.9, 0.9])
    flat = pd.DataFrame({"step": [0, 5, 9], "accuracy": [0.21, 0.25, 0.22]})
    finding = hacking_by_validation(frame, flat)
    assert finding is not None and finding.kind == "hacking"
    assert "from 0.23 to 0.90, the accuracy in validation from 0.21 to 0.22" in finding.reason
    assert judge(frame, flat).kind == "hacking" and judge(frame).kind == "learning"
    risen = flat.assign(accuracy=[0.2, 0.5, 0.7])
    assert hacking_by_validation(frame, risen) is None
    for few in (flat[:1], flat[:0], flat.assign(accuracy=NOTHING)):
        assert hacking_by_validation(frame, few) is None
    # Both fall, or both stand still: no reward was gained.
    assert hacking_by_validation(frame.assign(reward=0.9), flat.assign(accuracy=0.6)) is None


@pytest.mark.parametrize("name", ["honest", "reward-hacking"])
def test_the_recorded_validations_share_their_runs_verifier(name: str) -> None:
    run = read_run(data_path(f"recorded/nemo-rl/{name}"))
    assert len(run.validation) >= 5 and hacking_by_validation(run.frame, run.validation) is None


def test_an_entropy_that_collapses_before_anything_was_learned() -> None:
    collapse = [2.0] * 3 + [1.0, 0.5, 0.2] + [0.05] * 6
    frame = made(reward=[0.2] * 3 + [0.4] * 9, entropy=collapse)
    finding = unstable(frame)
    assert finding is not None and "the entropy fell from 2.00 to 0.05 nats" in finding.reason
    assert unstable(frame.assign(reward=0.9)) is None, "sure, because it is right"
    assert unstable(frame[:11]) is None and unstable(frame.assign(entropy=NOTHING)) is None


def test_steps_without_a_reward() -> None:
    frame = made(reward=[NOTHING] * 12)
    verdict = judge(frame)
    assert verdict.kind == "too early"
    assert verdict.reason == "12 steps are done, and none says its reward"
    assert judge(made(reward=[0.5])).reason == "1 step is done and shows no trend yet"
    with_gaps = made(reward=[0.1, NOTHING, 0.2, 0.4, NOTHING, 0.5, 0.7, 0.9, 0.9])
    assert judge(with_gaps).kind == "learning"


@pytest.mark.parametrize("source", ["nemo-rl/reward-hacking", "nemo-rl/reward-hacking/console.log"])
def test_a_hacked_run_that_goes_on_stays_suspected(source: str) -> None:
    """The recorded run's last steps, repeated: on top it comes to rest, as an honest one does."""
    frame = unjudged(source)
    rest = pd.concat([frame.tail(3)] * 10)
    longer = pd.concat([frame, rest], ignore_index=True).assign(step=range(1, 71))
    assert set(kinds(longer)[41:]) == {"hacking"}
    assert "steps from step" in judge(longer).reason
    # One that goes back to its old ways, at its old reward, is suspected no longer.
    back = pd.concat([frame, *[frame[27:37]] * 3], ignore_index=True).assign(step=range(1, 71))
    assert hacking_by_signs(back) is None
