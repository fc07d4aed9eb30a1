"""What to think of a run: learning, stalled, unstable, hacking, no signal; and why.

Each rule is a pure function of the table of steps. It returns a `Finding` with its
evidence, or None where it does not hold or the table lacks what it needs: a rule never
guesses a column that the source did not write. Rules look at windows of steps, because
one step's reward is an average of few answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.training.runs.findings import FEWEST_STEPS, HIGH, NOISES, Finding, is_share, noise
from workshop_lib.training.runs.hacking import (
    hacking_by_echo,
    hacking_by_judge,
    hacking_by_signs,
    hacking_by_validation,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Finding",
    "Verdict",
    "hacking_by_echo",
    "hacking_by_judge",
    "hacking_by_signs",
    "hacking_by_validation",
    "judge",
    "learning",
    "no_signal",
    "stalled",
    "unstable",
]

STALLED_STEPS = 10
"""A run that has not risen in fewer steps may still: the recorded honest run took 7."""

RISE = 0.05
"""A rise of the reward under five points is not worth the name; a reward is in 0 to 1."""

KL_LIMIT = 0.5
"""Nats a token. Healthy runs stay at 0.01 to 0.1 with a usual penalty; the recorded honest
one, with a weak penalty (0.01), peaks at 0.46 in a single step and 0.40 over three."""

GRADIENT_LIMIT = 10.0
"""Before clipping. Healthy runs stay under 5; the laptop's own reach 9 in single steps, so
the median of five counts."""

COLLAPSE = 0.5
"""The reward has collapsed when half of the best it had been is lost; noise never took more
than a fifth of it in the recorded runs."""

SILENT = 0.95
"""Share of completions in groups without spread, over five steps. Nearly no group teaches."""

MASTERED = 0.95
"""A reward this high leaves no spread because nothing is left to learn: that is no fault."""

ENTROPY_LEFT = 0.05
"""Of the entropy at first. With less the answers to a prompt are the same."""

LEARNED = 0.6
"""A reward below this leaves most to learn. Recorded: the honest run's entropy falls to a
hundredth, with the reward at 0.7 and more: it is sure because it is right."""


@dataclass(frozen=True)
class Verdict:
    """What to think of a run.

    Attributes:
        kind: The finding that matters most.
        findings: All of them, the one that matters most first.
    """

    kind: str
    findings: tuple[Finding, ...]

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return self.findings[0].reason

    def __str__(self) -> str:
        """The verdict with its reasons and advice, a line each."""
        return "\n".join(f"{f.kind}: {f.reason}; {f.advice}" for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"kind": self.kind, "findings": [vars(finding) for finding in self.findings]}


def judge(frame: pd.DataFrame, validation: pd.DataFrame | None = None) -> Verdict:
    """A verdict on the steps so far, also of a run that goes on.

    A reward that is not earned outweighs all else; then what destroys the model; then
    what wastes the time.

    Args:
        frame: `Run.frame`, or `read_metrics`' table.
        validation: `Run.validation`, where there is one.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.runs import read_run
        >>> judge(read_run(data_path("recorded/nemo-rl/honest")).frame).kind
        'learning'
        >>> judge(read_run(data_path("recorded/nemo-rl/reward-hacking")).frame).kind
        'hacking'
    """
    rewarded = frame.dropna(subset=["reward"])
    found = [finding for rule in _RULES if (finding := rule(rewarded)) is not None]
    if validation is not None and (finding := hacking_by_validation(rewarded, validation)):
        found.insert(sum(finding.kind == "hacking" for finding in found), finding)
    if not found:
        one = len(frame) == 1
        done = f"{len(frame)} step{' is' if one else 's are'} done"
        trend = f"{done} and show{'s' if one else ''} no trend yet"
        reason = trend if len(rewarded) else "no step is done yet"
        if len(frame) and rewarded.empty:
            reason = f"{done}, and none says its reward"
        found = [Finding("too early", reason, "look again after a few more steps")]
    return Verdict(found[0].kind, tuple(found))


def unstable(frame: pd.DataFrame) -> Finding | None:
    """The model is leaving its language: KL, gradient, a collapsed reward or entropy, no numbers.

    Args:
        frame: The table of steps.

    Example:
        >>> import pandas as pd
        >>> nothing = float("nan")
        >>> frame = pd.DataFrame({"step": range(8), "reward": 0.5, "kl": 0.9, "loss": 0.0})
        >>> unstable(frame.assign(grad_norm=nothing)).reason
        'KL is 0.90 (last 3 steps; limit 0.5)'
    """
    reasons = []
    loss = frame["loss"]
    if len(loss) and loss.notna().any() and not math.isfinite(loss.iloc[-1]):
        reasons.append("the loss is no number any more")
    kl = frame["kl"].tail(3)
    if len(kl) == 3 and kl.notna().all() and kl.mean() > KL_LIMIT:
        reasons.append(f"KL is {kl.mean():.2f} (last 3 steps; limit {KL_LIMIT})")
    gradient = frame["grad_norm"].tail(5)
    if gradient.notna().sum() >= 3 and gradient.median() > GRADIENT_LIMIT:
        reasons.append(
            f"the gradient's norm is {gradient.median():.1f}"
            f" (median of 5 steps; limit {GRADIENT_LIMIT:.0f})"
        )
    means = frame["reward"].rolling(3).mean()
    if len(frame) >= FEWEST_STEPS and means.max() >= 0.2:
        last, best = means.iloc[-1], means.max()
        error = noise(frame["reward"]) * math.sqrt(2 / 3)
        if last < COLLAPSE * best and best - last > NOISES * error:
            reasons.append(f"the reward fell from {best:.2f} to {last:.2f} (means of 3 steps)")
    if "entropy" in frame and len(frame) >= 2 * FEWEST_STEPS:
        entropy, reward = frame["entropy"], frame["reward"].tail(3).mean()
        first, last = entropy.head(3).mean(), entropy.tail(3).mean()
        if last < ENTROPY_LEFT * first and is_share(frame) and reward < LEARNED:
            reasons.append(
                f"the entropy fell from {first:.2f} to {last:.2f} nats with the reward at"
                f" {reward:.2f}: the answers no longer differ"
            )
    if not reasons:
        return None
    advice = "lower the learning rate or raise the KL penalty, from a checkpoint before"
    return Finding("unstable", "; ".join(reasons), advice)


def no_signal(frame: pd.DataFrame) -> Finding | None:
    """Nearly every group has one reward for all its answers, so nothing can be learned.

    A run that has come to master its problems has no spread either: not meant. One that
    mastered them from its first step on is: nothing was left to learn.

    Args:
        frame: The table of steps. Without `zero_std_share`, a reward that is exactly the
            same at every step is taken for it.

    Example:
        >>> import pandas as pd
        >>> no_signal(pd.DataFrame({"step": range(5), "reward": 0.0, "zero_std_share": 1.0})).kind
        'no signal'
    """
    last = frame.tail(5)
    if len(last) < 3:
        return None
    if last["reward"].mean() >= MASTERED and is_share(frame):
        first = frame["reward"].head(5).mean()
        if len(frame) < FEWEST_STEPS or first < MASTERED:
            return None
        return Finding(
            "no signal",
            f"the reward was {first:.2f} from the first steps on: nothing was left to learn",
            "harder problems; a reward that is this easily given is worth reading answers for",
        )
    silent = last["zero_std_share"]
    if silent.notna().any():
        if silent.mean() < SILENT:
            return None
        why = f"{silent.mean():.0%} of the completions are in groups without spread"
    elif last["reward"].nunique() == 1:
        why = "the reward is the same at every step"
    else:
        return None
    return Finding(
        "no signal",
        f"{why} (last {len(last)} steps, reward {last['reward'].mean():.2f})",
        "check the reward on a right answer; easier problems, more answers a prompt",
    )


def learning(frame: pd.DataFrame) -> Finding | None:
    """The reward has risen, by more than its noise.

    Args:
        frame: The table of steps.

    Example:
        >>> import pandas as pd
        >>> rewards = [0.1, 0.2, 0.3, 0.5, 0.7, 0.8]
        >>> learning(pd.DataFrame({"step": range(6), "reward": rewards})).kind
        'learning'
    """
    if len(frame) < FEWEST_STEPS:
        return None
    first, last, error = _trend(frame)
    if last - first < max(RISE, NOISES * error):
        return None
    width = _window(frame)
    return Finding(
        "learning",
        f"the reward rose from {first:.2f} to {last:.2f}"
        f" (first and last {width} of {len(frame)} steps)",
        "measure on held-out problems; a reward is not the goal itself",
    )


def stalled(frame: pd.DataFrame) -> Finding | None:
    """After enough steps the reward has not risen by more than its noise.

    Args:
        frame: The table of steps.

    Example:
        >>> import pandas as pd
        >>> stalled(pd.DataFrame({"step": range(12), "reward": [0.2, 0.22] * 6})).kind
        'stalled'
    """
    if len(frame) < STALLED_STEPS or learning(frame) is not None:
        return None
    first, last, _ = _trend(frame)
    if min(first, last) >= MASTERED:
        return None
    problems = "harder" if is_share(frame) and last >= HIGH else "easier"
    return Finding(
        "stalled",
        f"the reward was {first:.2f} at first and is {last:.2f} after {len(frame)} steps",
        f"a higher learning rate, {problems} problems, or more answers a prompt",
    )


def _window(frame: pd.DataFrame) -> int:
    return 3 if len(frame) < 2 * STALLED_STEPS else 5


def _trend(frame: pd.DataFrame) -> tuple[float, float, float]:
    """Mean reward of the first and the last steps, and the standard error of their difference."""
    reward, width = frame["reward"], _window(frame)
    error = noise(reward) * math.sqrt(2 / width)
    return float(reward.head(width).mean()), float(reward.tail(width).mean()), error


# In the order in which they matter.
_RULES: tuple[Callable[[pd.DataFrame], Finding | None], ...] = (
    hacking_by_judge,
    hacking_by_echo,
    hacking_by_signs,
    unstable,
    no_signal,
    learning,
    stalled,
)
