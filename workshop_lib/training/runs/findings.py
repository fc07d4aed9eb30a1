"""What the rules of a verdict share: what a rule finds, and what is noise in a run's curves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEWEST_STEPS", "HIGH", "NOISES", "Finding", "is_share", "moved", "noise"]

FEWEST_STEPS = 6
"""With fewer steps there are no two windows of three to compare."""

NOISES = 2.0
"""A rise is real when it is twice its own standard error (about 95%)."""

HIGH = 0.8
"""A hole is found on the way up or on top; signs can tell it apart only on top, where an
honest run comes to rest."""


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


def noise(values: pd.Series[float]) -> float:
    """Standard deviation of one step, from the differences of neighbours.

    Von Neumann's estimate: a trend does not inflate it as it does a standard deviation.

    Args:
        values: One value a step.

    Example:
        >>> import pandas as pd
        >>> round(noise(pd.Series([1.0, 3.0, 1.0, 3.0])) ** 2, 6)
        2.0
    """
    return math.sqrt(float(values.diff().dropna().pow(2).mean()) / 2)


def moved(values: pd.Series[float], now: int = 3) -> int:
    """Whether the last steps lie above (1) or below (-1) the ten before by more than noise; else 0.

    Args:
        values: One value a step, ten more than `now` at least.
        now: How many the last steps are.

    Example:
        >>> import pandas as pd
        >>> moved(pd.Series([1.0, 2.0] * 5 + [5.0] * 3)), moved(pd.Series([1.0, 2.0] * 7))
        (1, 0)
    """
    before, after = values.iloc[-now - 10 : -now], values.iloc[-now:]
    error = noise(before) * math.sqrt(1 / now + 1 / 10)
    change = after.mean() - before.mean()
    return 0 if not abs(change) > NOISES * error else 1 if change > 0 else -1


def is_share(frame: pd.DataFrame) -> bool:
    """Whether all rewards lie in 0 to 1, so that levels such as "high" mean something.

    Args:
        frame: The table of steps.

    Example:
        >>> import pandas as pd
        >>> is_share(pd.DataFrame({"reward": [-1.0, 1.0]}))
        False
    """
    return bool(frame["reward"].between(0, 1).all())
