"""Figures of short trainings that differ in one setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.plots.style import new_figure, series_colours, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_settings"]

# Column: title, unit. The last panel has the one of its two that says something.
_PANELS = {
    "reward": ("Reward", "mean, 0 to 1"),
    "zero_std_share": ("Groups without spread", "share of answers"),
    "entropy": ("Entropy of a token", "nats, mean"),
    "kl": ("KL from the first model", "nats a token"),
    "grad_norm": ("Gradient, before clipping", "norm"),
}
_CLIPPED = ("clip_share", ("Clipped tokens", "share"))
_LENGTH = ("mean_length", ("Length of an answer", "tokens, mean"))
_MARKERS = "os^D"


def plot_settings(frame: pd.DataFrame, *, key: str) -> Figure:
    """Six panels over the steps, a line for each value of a setting.

    Args:
        frame: `SettingsComparison.frame`.
        key: The setting, for the title.

    Example:
        >>> import pandas as pd
        >>> from workshop_lib.training.runs import COLUMNS
        >>> row = dict.fromkeys(COLUMNS, 0.5) | {"run": 0, "value": "0.2", "step": 1}
        >>> figure = plot_settings(pd.DataFrame([row]), key="policy.generation.temperature")
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9, 4.8)
    clipped = bool((frame["clip_share"] > 0).any())
    panels = _PANELS | dict([_CLIPPED if clipped else _LENGTH])
    grid = figure.subplots(2, 3, sharex=True)
    runs = frame.groupby("run", sort=True)
    colours = series_colours(runs.ngroups)
    for axes, (column, (title, unit)) in zip(grid.flat, panels.items(), strict=True):
        for (number, steps), colour in zip(runs, colours, strict=True):
            axes.plot(
                steps["step"], steps[column], marker=_MARKERS[int(str(number)) % 4], markersize=4,
                color=colour, label=str(steps["value"].iloc[0]),
            )  # fmt: skip
        axes.set_title(title, loc="left")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        highest = frame[column].max()
        share = column in ("reward", "zero_std_share")
        top = 1.05 if share else 1.12 * highest if highest > 0 else 1.0
        axes.set_ylim(-0.03 * top, top)
        tidy(axes)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title=key, loc="outside upper center", ncols=len(labels), frameon=False
    )
    return figure
