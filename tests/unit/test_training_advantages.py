"""Advantages by hand, and what the two libraries make of the same rewards."""

from __future__ import annotations

import random
from statistics import fmean, stdev

import pytest

from workshop_lib.training.advantages import nemo_rl_advantages, trl_advantages


def test_by_hand() -> None:
    # Rewards 1, 0, 0, 0: mean 1/4, spread 1/2. The others' mean: 0 for the first, 1/3 else,
    # with a spread of 0 and 1/sqrt(3).
    assert trl_advantages([1, 0, 0, 0]) == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)
    assert trl_advantages([1, 0, 0, 0], normalize=False) == [0.75, -0.25, -0.25, -0.25]
    assert nemo_rl_advantages([1, 0, 0, 0]) == pytest.approx([1, *[-(3**-0.5)] * 3], rel=1e-5)
    alone = nemo_rl_advantages([1, 0, 0, 0], normalize=False)
    assert alone == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


@pytest.mark.parametrize("rewards", [[0.0] * 8, [1.0] * 8, [0.1] * 8])
def test_a_group_without_spread_teaches_nothing(rewards: list[float]) -> None:
    assert trl_advantages(rewards) == pytest.approx([0.0] * 8, abs=1e-9)
    assert nemo_rl_advantages(rewards) == pytest.approx([0.0] * 8, abs=1e-9)


def test_without_leave_one_out_both_agree() -> None:
    draw = random.Random(1)
    for _ in range(50):
        rewards = [float(draw.random() < 0.4) for _ in range(8)]
        ours = nemo_rl_advantages(rewards, leave_one_out=False)
        assert ours == pytest.approx(trl_advantages(rewards), rel=1e-3, abs=1e-9)


def test_leave_one_out_without_normalisation_is_a_factor() -> None:
    rewards = [1.0, 0.5, 0.0, 0.25]
    ours = nemo_rl_advantages(rewards, normalize=False)
    theirs = trl_advantages(rewards, normalize=False)
    assert ours == pytest.approx([4 / 3 * advantage for advantage in theirs])


def test_against_a_direct_formula() -> None:
    draw = random.Random(2)
    rewards = [draw.random() for _ in range(6)]
    for index, advantage in enumerate(nemo_rl_advantages(rewards)):
        others = rewards[:index] + rewards[index + 1 :]
        assert advantage == pytest.approx((rewards[index] - fmean(others)) / stdev(others), 1e-4)


def test_how_far_trl_is_from_leave_one_out_with_normalisation() -> None:
    """The table says "approximated": the same order and signs; an only right answer counts more."""
    for right in range(1, 8):
        rewards = [1.0] * right + [0.0] * (8 - right)
        trl, nemo = trl_advantages(rewards), nemo_rl_advantages(rewards)
        assert [a > 0 for a in trl] == [a > 0 for a in nemo]
        if 1 < right < 7:
            # Between them is a factor, the further from 1 the rarer the answer is.
            assert all(0.7 < ours / theirs < 0.95 for ours, theirs in zip(trl, nemo, strict=True))
    # The others of an only right answer have no spread: NeMo RL does not divide, TRL does.
    only_right = [1.0] + [0.0] * 7
    assert trl_advantages(only_right)[0] == pytest.approx(2.475, abs=1e-3)
    assert nemo_rl_advantages(only_right)[0] == pytest.approx(1.0)
    for normalize in (True, False):
        assert sum(trl_advantages(only_right, normalize=normalize)) == pytest.approx(0, abs=1e-6)
