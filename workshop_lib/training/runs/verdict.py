"""What to think of a run, and why.

Each rule is a pure function of the table of steps. It returns a `Finding` with its evidence, or
None where it does not hold or the table lacks what it needs. Rules look at windows of steps,
because one step's reward is an average of few completions.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.progress import format_duration
from workshop_lib.training.runs.run import Run
from workshop_lib.training.runs.table import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HANG_FACTOR", "Finding", "Verdict", "judge"]

FEWEST_STEPS = 6  # two windows of three to compare
STALLED_STEPS = 10  # a run that has not risen in fewer may still: the recorded honest one took 7

# A rise of the reward is real at five points and twice its own standard error (about 95%).
RISE, NOISES = 0.05, 2.0

# Nats a token. Healthy runs stay at 0.01 to 0.1 with a usual penalty; the recorded honest one,
# with a weak penalty (0.01), peaks at 0.46 in a single step and 0.40 over three.
KL_LIMIT = 0.5

# Before clipping. Healthy runs stay under 5; the laptop's own reach 9 in single steps, so the
# median of five counts.
GRADIENT_LIMIT = 10.0

# The reward has collapsed when half of the best it had been is lost; noise never took more than
# a fifth of it in the recorded runs.
COLLAPSE = 0.5

# Share of completions in groups without spread, and share of those cut, over five steps.
SILENT, CUT = 0.95, 0.95

# A reward that leaves no spread because nothing is left to learn, and one at which an honest run
# comes to rest, so that a hole can be suspected.
MASTERED, HIGH = 0.95, 0.8

# What is left of the first entropy, with a reward that leaves most to learn. Recorded: the honest
# run's falls to a hundredth, with the reward at 0.7 and more: it is sure because it is right.
ENTROPY_LEFT, LEARNED = 0.05, 0.6

# How much more the reward has risen than another measure (recorded: honest 0.04 at most, hacked
# 0.62 at its end), and how much higher than a judge's it may be whatever it was at first.
GAP, LEVEL = 0.25, 0.5

# Share of the rewarded completions that are echoes. Recorded: honest at most 0.1, hacked 0.85.
ECHO = 0.5

# Signs on top: the last three steps against the first ten there. Recorded: honest at most 1.46
# with an unchanged length, hacked 2.2 and 0.22.
KL_GROWTH, LENGTH_CHANGE = 1.5, 0.15

HANG_FACTOR = 10  # no step for so many times the median step: it hangs, or was stopped

_CLOSE = "read what is rewarded, close the hole in the reward, train again from before it"
_LONGER = (
    "read the answers: where they stop half-way, allow more new tokens"
    " (policy.generation.max_new_tokens, TRL's max_completion_length), or ask for less"
)


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    Attributes:
        kind: `crashed`, `hung`, `hacking`, `unstable`, `no signal`, `learning`, `stalled` or
            `too early`.
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


def judge(run: Run | pd.DataFrame) -> Verdict:
    """A verdict on the steps so far, also of a run that goes on.

    First what ended the run or its numbers; then a reward that is not earned; then what
    destroys the model or leaves nothing to learn from; the reward's trend last.

    Args:
        run: A run, or its table of steps alone.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.runs import read_run
        >>> judge(read_run(data_path("recorded/nemo-rl/honest"))).kind
        'learning'
        >>> judge(read_run(data_path("recorded/nemo-rl/reward-hacking"))).kind
        'hacking'
    """
    frame = (run.frame if isinstance(run, Run) else run).reindex(columns=list(COLUMNS))
    steps = frame.dropna(subset=["reward"])
    found = [_crashed(run), _hung(run)] if isinstance(run, Run) else []
    found += [_not_finite(frame), _judged(steps), _echoes(steps), _signs(steps), _unstable(steps)]
    found += [_no_signal(steps), _trend(steps)]
    findings = tuple(filter(None, found)) or (_too_early(len(frame), len(steps)),)
    return Verdict(findings[0].kind, findings)


def _too_early(done: int, rewarded: int) -> Finding:
    steps = "1 step is done" if done == 1 else f"{done} steps are done"
    reason = f"{steps} and {'shows' if done == 1 else 'show'} no trend yet"
    if not rewarded:
        reason = f"{steps}, and none says its reward" if done else "no step is done yet"
    return Finding("too early", reason, "look again after a few more steps")


# -- did it end, do its numbers stand


def _crashed(run: Run) -> Finding | None:
    """The log ends in an error."""
    if not run.error or _has_all_steps(run):
        return None
    of = f" of {run.planned}" if run.planned else ""
    return Finding(
        "crashed",
        f"the run ended after {len(run.frame)}{of} steps: {run.error}",
        "read the first error above it in the log, mend that, and go on from the last checkpoint",
    )


def _hung(run: Run) -> Finding | None:
    """No step for far longer than a step takes, of a run that says when its steps ended."""
    frame = run.frame
    step_s, idle_s = frame["step_s"].median(), time.time() - frame["time"].max()
    if run.error or not run.planned or _has_all_steps(run) or not idle_s > HANG_FACTOR * step_s:
        return None
    reason = (
        f"no step for {format_duration(idle_s)}, {idle_s / step_s:.0f} times the median step of"
        f" {format_duration(step_s)}; the last was step {frame['step'].iloc[-1]} of {run.planned}"
    )
    advice = (
        "unless it was stopped, see whether its processes live, and which rank's log ended first:"
        " what NCCL, Ray or the sampling engine last said stands there"
    )
    return Finding("hung", reason, advice)


def _has_all_steps(run: Run) -> bool:
    return run.planned is not None and len(run.frame) > 0 and run.frame["step"].max() >= run.planned


def _not_finite(frame: pd.DataFrame) -> Finding | None:
    """The loss, the gradient or the reward is no number, or the KL has ceased to be one.

    A KL that never was a number, beside a loss that is one, is no part of the loss: its
    penalty is 0.
    """
    said = frame["not_finite"].fillna("").str.split()
    last = said.iloc[-1] if len(said) else []
    broken = [name for name in ("grad_norm", "loss", "reward", "kl") if name in last]
    if not broken or (broken == ["kl"] and "kl" in said.iloc[0]):
        return None
    since = frame.loc[said.map(lambda names: not set(broken).isdisjoint(names)), "step"].iloc[0]
    return Finding(
        "unstable",
        f"{' and '.join(broken)}: no number (NaN or infinite) from step {since} on; what the model"
        " computes since then is worthless",
        "go back to a checkpoint before that step and look for an overflow: 16-bit numbers, the"
        " ratio of an extreme token, an empty answer; then lower the rate or clip harder",
    )


# -- is the reward earned


def _judged(steps: pd.DataFrame) -> Finding | None:
    """The reward rises away from the share of completions that another judge finds right."""
    known = steps.dropna(subset=["right_share"])
    if len(known) < 3:
        return None
    first, last = known[["reward", "right_share"]].head(3).mean(), known.tail(3)
    reward, right = last["reward"].mean(), last["right_share"].mean()
    risen = reward - first["reward"] - (right - first["right_share"])
    if risen >= GAP and reward > right:
        reason = (
            f"the reward went from {first['reward']:.2f} to {reward:.2f}, the share of right"
            f" answers from {first['right_share']:.2f} to {right:.2f} (first and last 3 steps)"
        )
    elif reward - right >= LEVEL:
        reason = f"the reward is {reward:.2f}, and {right:.2f} of the answers are right (3 steps)"
    else:
        return None
    return Finding("hacking", reason, _CLOSE)


def _echoes(steps: pd.DataFrame) -> Finding | None:
    """Most of the rewarded completions only repeat their prompt: direct evidence."""
    last = steps.tail(3).dropna(subset=["echo_share"])
    # Of a reward that is hardly ever given there are too few completions to tell.
    if last.empty or last["reward"].mean() < 0.2 or last["echo_share"].mean() < ECHO:
        return None
    reason = (
        f"{last['echo_share'].mean():.0%} of the rewarded answers only repeat what the prompt says"
        f" (last {len(last)} steps with answers)"
    )
    return Finding("hacking", reason, _CLOSE)


def _signs(steps: pd.DataFrame) -> Finding | None:
    """On top the reward rises again, the length changes, and the KL leaves the healthy range.

    An honest run comes to rest on top. The signs together are a suspicion, for runs of which
    nobody has the answers; a length alone is none: honest answers become shorter too.
    """
    top = steps[steps["reward"].rolling(3).mean().ge(HIGH).cummax()]
    before, after = top.iloc[:-3].head(10), top.tail(3)
    judged = steps["right_share"].tail(3).notna().all()
    if len(before) < FEWEST_STEPS or not _is_share(steps) or judged:
        return None
    change, length = _change(before, after, "mean_length"), before["mean_length"].mean()
    kl_was, kl = before["kl"].mean(), after["kl"].mean()
    if (
        _change(before, after, "reward") > 0
        and abs(change) >= max(LENGTH_CHANGE * length, 1.0)
        and _change(before, after, "kl") > 0
        and kl >= max(KL_GROWTH * kl_was, KL_LIMIT)
    ):
        return Finding(
            "hacking",
            f"suspected since, with the reward already at {before['reward'].mean():.2f}, KL grew"
            f" {kl / kl_was:.1f} times and the length changed by {change / length:+.0%} (the last 3"
            f" steps against the first {len(before)} there)",
            "read the best-rewarded answers of the last steps, and have another judge score them",
        )
    return None


def _change(before: pd.DataFrame, after: pd.DataFrame, column: str) -> float:
    """How much a column's mean has changed; 0 where its noise explains that."""
    error = _noise(before[column]) * math.sqrt(1 / len(before) + 1 / len(after))
    change = float(after[column].mean() - before[column].mean())
    return change if abs(change) > NOISES * error else 0.0


# -- does it learn


def _unstable(steps: pd.DataFrame) -> Finding | None:
    """The model is leaving its language: KL, gradient, a collapsed reward or entropy."""
    reasons = []
    kl, gradient = steps["kl"].tail(3), steps["grad_norm"].tail(5)
    if kl.notna().sum() == 3 and kl.mean() > KL_LIMIT:
        reasons.append(f"KL is {kl.mean():.2f} (last 3 steps; limit {KL_LIMIT})")
    if gradient.notna().sum() >= 3 and gradient.median() > GRADIENT_LIMIT:
        reasons.append(
            f"the gradient's norm is {gradient.median():.1f}"
            f" (median of 5 steps; limit {GRADIENT_LIMIT:.0f})"
        )
    means = steps["reward"].rolling(3).mean()
    if len(steps) >= FEWEST_STEPS and (best := means.max()) >= 0.2:
        last, error = means.iloc[-1], _noise(steps["reward"]) * math.sqrt(2 / 3)
        if last < COLLAPSE * best and best - last > NOISES * error:
            reasons.append(f"the reward fell from {best:.2f} to {last:.2f} (means of 3 steps)")
    if len(steps) >= 2 * FEWEST_STEPS and _is_share(steps) and means.iloc[-1] < LEARNED:
        first, last = steps["entropy"].head(3).mean(), steps["entropy"].tail(3).mean()
        if last < ENTROPY_LEFT * first:
            reasons.append(
                f"the entropy fell from {first:.2f} to {last:.2f} nats with the reward at"
                f" {means.iloc[-1]:.2f}: the answers no longer differ"
            )
    advice = "lower the learning rate or raise the KL penalty, from a checkpoint before"
    return Finding("unstable", "; ".join(reasons), advice) if reasons else None


def _no_signal(steps: pd.DataFrame) -> Finding | None:
    """Nothing can be learned: groups without spread, a gradient or a rate of 0.

    A run that has come to master its problems has no spread either: not meant. One that
    mastered them from its first step on is: nothing was left to learn.
    """
    last = steps.tail(5)
    if len(last) < 3:
        return None
    if last["reward"].mean() >= MASTERED and _is_share(steps):
        first = steps["reward"].head(5).mean()
        if len(steps) < FEWEST_STEPS or first < MASTERED:
            return None
        return Finding(
            "no signal",
            f"the reward was {first:.2f} from the first steps on: nothing was left to learn",
            "harder problems; a reward that is this easily given is worth reading answers for",
        )
    silent = last["zero_std_share"]
    why = {
        f"{silent.mean():.0%} of the completions are in groups without spread": silent.mean()
        >= SILENT,
        "the reward is the same at every step": silent.isna().all()
        and last["reward"].nunique() == 1,
        "the gradient is exactly 0": (last["grad_norm"] == 0).all(),
        "the learning rate is 0": (last["learning_rate"] == 0).all(),
    }
    reasons = [reason for reason, holds in why.items() if holds]
    if not reasons:
        return None
    advice = "check the reward on a right answer; easier problems, more answers a prompt"
    if reasons == ["the learning rate is 0"]:
        advice = "look at the schedule: it has ended, or never begins"
    if cut := _cut(steps):
        reasons, advice = [cut, *reasons], _LONGER
    reason = f"{', '.join(reasons)} (last {len(last)} steps, reward {last['reward'].mean():.2f})"
    return Finding("no signal", reason, advice)


def _cut(steps: pd.DataFrame) -> str:
    """Whether every answer is cut, as the source says, or as a length that never varies does."""
    share, length = steps["cut_share"].tail(5), steps["mean_length"].tail(5)
    constant = len(length) >= 3 and length.nunique() == 1 and length.iloc[0] % 1 == 0
    if not (share.mean() >= CUT or (share.isna().all() and constant and length.iloc[0] > 1)):
        return ""
    return f"every answer is cut at {length.max():.0f} tokens, before it ends"


def _trend(steps: pd.DataFrame) -> Finding | None:
    """Whether the reward has risen by more than its noise; after enough steps, that it has not."""
    count, share = len(steps), _is_share(steps)
    width = 3 if count < 2 * STALLED_STEPS else 5
    first, last = steps["reward"].head(width).mean(), steps["reward"].tail(width).mean()
    error = _noise(steps["reward"]) * math.sqrt(2 / width)
    cut = f"; {text}" if count and (text := _cut(steps)) else ""
    if count >= FEWEST_STEPS and last - first >= max(RISE, NOISES * error):
        return Finding(
            "learning",
            f"the reward rose from {first:.2f} to {last:.2f}"
            f" (first and last {width} of {count} steps){cut}",
            "read the answers that earn it, and measure on held-out problems: a reward is not the"
            " goal itself",
        )
    if count >= STALLED_STEPS and min(first, last) < MASTERED:
        problems = "harder" if share and last >= HIGH else "easier"
        advice = f"a higher learning rate, {problems} problems, or more answers a prompt"
        reason = f"the reward was {first:.2f} at first and is {last:.2f} after {count} steps{cut}"
        return Finding("stalled", reason, _LONGER if cut else advice)
    return None


def _noise(values: pd.Series[float]) -> float:
    """Standard deviation of one step, from the differences of neighbours (von Neumann's).

    A trend does not inflate it as it does a standard deviation.
    """
    return math.sqrt(float(values.diff().dropna().pow(2).mean()) / 2)


def _is_share(steps: pd.DataFrame) -> bool:
    """Whether all rewards lie in 0 to 1, so that levels such as "high" mean something."""
    return bool(steps["reward"].between(0, 1).all())
