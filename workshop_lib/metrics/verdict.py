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

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Finding",
    "Verdict",
    "hacking_by_echo",
    "hacking_by_judge",
    "hacking_by_signs",
    "judge",
    "learning",
    "no_signal",
    "stalled",
    "unstable",
]

FEWEST_STEPS = 6
"""With fewer steps there are no two windows of three to compare."""

STALLED_STEPS = 10
"""A run that has not risen in fewer steps may still: the recorded honest run took 7."""

RISE = 0.05
"""A rise of the reward under five points is not worth the name; a reward is in 0 to 1."""

NOISES = 2.0
"""A rise is real when it is twice its own standard error (about 95%)."""

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

JUDGE_GAP = 0.25
"""How much more the reward has risen than the share of right answers, means of three steps.
Judges differ from the start, so it is the rises that are compared: over the whole
recorded honest run they differed by 0.04 at most, in the hacked one by 0.62 at its end."""

JUDGE_LEVEL = 0.5
"""Reward minus the share of right answers, over three steps, whatever they were at first: half
of what is paid for is wrong. A run that begins hacked has no rise to compare."""

ECHO = 0.5
"""Share of the rewarded answers that say nothing but what the prompt says. Recorded on an
H200: at most 0.10 in the honest run (7 + 0 is 7), 0.85 at the end of the hacked one."""

HIGH = 0.8
"""A hole is found on the way up or on top; signs can tell it apart only on top, where an
honest run comes to rest."""

KL_GROWTH = 1.5
"""On top, KL of three steps against the ten before. Recorded: honest at most 1.46, with an
unchanged length; hacked 2.2."""

LENGTH_CHANGE = 0.15
"""On top, change of the length, three steps against ten. Recorded: honest at most 0.05,
hacked 0.22."""

LENGTH_CHANGE_ALONE = 0.20
"""The same where the source has no KL, as NeMo RL's console: one sign must be stronger."""


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    Attributes:
        kind: `hacking`, `unstable`, `no signal`, `learning`, `stalled` or `too early`.
        reason: Why, with the values that say so.
        advice: What to do next.
    """

    kind: str
    reason: str
    advice: str


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


def judge(frame: pd.DataFrame) -> Verdict:
    """A verdict on the steps so far, also of a run that goes on.

    A reward that is not earned outweighs all else; then what destroys the model; then
    what wastes the time.

    Args:
        frame: `Run.frame`, or `read_metrics`' table.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.metrics import read_run
        >>> judge(read_run(data_path("recorded/nemo-rl/honest")).frame).kind
        'learning'
        >>> judge(read_run(data_path("recorded/nemo-rl/reward-hacking")).frame).kind
        'hacking'
    """
    found = [finding for rule in _RULES if (finding := rule(frame)) is not None]
    if not found:
        steps = len(frame)
        reason = f"{steps} steps are done and show no trend yet" if steps else "no step is done yet"
        found = [Finding("too early", reason, "look again after a few more steps")]
    return Verdict(found[0].kind, tuple(found))


def hacking_by_judge(frame: pd.DataFrame) -> Finding | None:
    """The reward rises away from the share of answers that another judge finds right.

    Args:
        frame: The table of steps; needs `right_share`.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"step": range(9), "reward": 0.9, "right_share": 0.3})
        >>> hacking_by_judge(frame).kind
        'hacking'
    """
    if "right_share" not in frame:
        return None
    judged = frame.dropna(subset=["right_share"])
    if len(judged) < 3:
        return None
    reward, right = judged["reward"].tail(3).mean(), judged["right_share"].tail(3).mean()
    first, right_first = judged["reward"].head(3).mean(), judged["right_share"].head(3).mean()
    risen = f"the reward went from {first:.2f} to {reward:.2f}, the share of right answers from"
    if (reward - first) - (right - right_first) >= JUDGE_GAP and reward > right:
        reason = f"{risen} {right_first:.2f} to {right:.2f} (first and last 3 steps)"
    elif reward - right >= JUDGE_LEVEL:
        reason = f"the reward is {reward:.2f}, but only {right:.2f} of the answers are right"
        reason += " (last 3 steps)"
    else:
        return None
    advice = "read what is rewarded, close the hole in the reward, and train again from before it"
    return Finding("hacking", reason, advice)


def hacking_by_echo(frame: pd.DataFrame) -> Finding | None:
    """Most of the rewarded answers say nothing that their prompt does not say.

    Direct evidence, from the answers themselves; it takes neither the right answers nor a
    second judge. It sees this one way of hacking only, the one that was met.

    Args:
        frame: The table of steps; needs `echo_share` of one of the last three steps.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"step": range(9), "reward": 0.9, "echo_share": 0.8})
        >>> hacking_by_echo(frame).kind
        'hacking'
    """
    if "echo_share" not in frame:
        return None
    last = frame.tail(3).dropna(subset=["echo_share"])
    # Of a reward that is hardly ever given there are too few answers to tell.
    if last.empty or last["reward"].mean() < 0.2 or last["echo_share"].mean() < ECHO:
        return None
    return Finding(
        "hacking",
        f"{last['echo_share'].mean():.0%} of the rewarded answers only repeat what the prompt says"
        f" (last {len(last)} steps with answers)",
        "read them, close the hole in the reward, and train again from before it",
    )


def hacking_by_signs(frame: pd.DataFrame) -> Finding | None:
    """The reward was high already, rises on, and the model changes its ways to get there.

    An honest run comes to rest on top: gradients vanish with the spread. One that finds
    a hole moves again, away from the reference (KL) and to answers of another length.
    It is a suspicion, for runs of which nobody has the answers. The limits lie between one
    honest and one hacked run of NeMo RL, so read the answers before you believe it; where
    they are there, `hacking_by_echo` has looked at them.

    Args:
        frame: The table of steps.

    Example:
        >>> import pandas as pd
        >>> length = [10.0] * 10 + [7.0] * 3
        >>> rising = [0.85] * 10 + [0.97] * 3
        >>> frame = pd.DataFrame({"step": range(13), "reward": rising, "mean_length": length})
        >>> hacking_by_signs(frame.assign(kl=float("nan"))).kind
        'hacking'
    """
    if len(frame) < 13:
        return None
    before, now = frame.iloc[-13:-3], frame.iloc[-3:]
    reward, was = now["reward"].mean(), before["reward"].mean()
    if not (was >= HIGH and reward > was):
        return None
    length = now["mean_length"].mean() / before["mean_length"].mean()
    growth = now["kl"].mean() / before["kl"].mean() if before["kl"].mean() > 0 else math.nan
    least = LENGTH_CHANGE_ALONE if math.isnan(growth) else LENGTH_CHANGE
    if not abs(length - 1) >= least or growth < KL_GROWTH:
        return None
    moved = "" if math.isnan(growth) else f"KL grew {growth:.1f} times and "
    return Finding(
        "hacking",
        f"suspected: with the reward already at {was:.2f}, {moved}the length changed by"
        f" {length - 1:+.0%} (3 steps against the 10 before)",
        "read the best-rewarded answers of the last steps, and have another judge score them",
    )


def unstable(frame: pd.DataFrame) -> Finding | None:
    """The model is leaving its language: KL, gradient, a collapsed reward, no numbers.

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
        if last < COLLAPSE * best:
            reasons.append(f"the reward fell from {best:.2f} to {last:.2f} (means of 3 steps)")
    if not reasons:
        return None
    advice = "lower the learning rate or raise the KL penalty, from a checkpoint before"
    return Finding("unstable", "; ".join(reasons), advice)


def no_signal(frame: pd.DataFrame) -> Finding | None:
    """Nearly every group has one reward for all its answers, so nothing can be learned.

    A run that has mastered its problems has no spread either: not meant.

    Args:
        frame: The table of steps. Without `zero_std_share`, a reward that is exactly the
            same at every step is taken for it.

    Example:
        >>> import pandas as pd
        >>> no_signal(pd.DataFrame({"step": range(5), "reward": 0.0, "zero_std_share": 1.0})).kind
        'no signal'
    """
    last = frame.tail(5)
    if len(last) < 3 or last["reward"].mean() >= MASTERED:
        return None
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
    return Finding(
        "stalled",
        f"the reward was {first:.2f} at first and is {last:.2f} after {len(frame)} steps",
        "a higher learning rate, easier problems, or more answers a prompt",
    )


def _window(frame: pd.DataFrame) -> int:
    return 3 if len(frame) < 2 * STALLED_STEPS else 5


def _trend(frame: pd.DataFrame) -> tuple[float, float, float]:
    """Mean reward of the first and the last steps, and the standard error of their difference.

    The noise of one step is taken from the differences of neighbours (von Neumann's
    estimate): a trend does not inflate it as it does a standard deviation.
    """
    reward, width = frame["reward"], _window(frame)
    noise = math.sqrt(float(reward.diff().dropna().pow(2).mean()) / 2)
    error = noise * math.sqrt(2 / width)
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
