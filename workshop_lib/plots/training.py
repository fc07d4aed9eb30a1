"""Figures of a training run, also while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.plots.style import GREY, OKABE_ITO, PALE, label_ends, new_figure, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_training"]


def plot_training(frame: pd.DataFrame, *, steps: int | None = None, title: str = "") -> Figure:
    """Reward, length, gradient and time of each step.

    The reward's band runs from the worst to the best group of the step; a group is
    the completions of one prompt.

    Args:
        frame: `read_metrics`' table, also of a run that has not finished a step yet.
        steps: Steps that the run will have, so that the axes stand still while it runs.
        title: Drawn above.

    Example:
        >>> from workshop_lib.training.metrics import read_metrics
        >>> figure = plot_training(read_metrics("build/no-run-yet"), steps=12)
    """
    figure = new_figure(9, 5)
    (reward, length), (gradient, seconds) = figure.subplots(2, 2)
    _plot_reward(reward, frame)
    _plot_line(length, frame, "mean_length")
    length.set_title("Length of a completion", loc="left")
    length.set_ylabel("tokens, mean")
    _plot_line(gradient, frame, "grad_norm")
    gradient.set_title("Gradient, before clipping", loc="left")
    gradient.set_ylabel("norm")
    _plot_seconds(seconds, frame)
    last = max(steps or 0, int(frame["step"].max()) if len(frame) else 0, 2)
    for axes in (reward, length, gradient, seconds):
        _step_axis(axes, last)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def _plot_reward(axes: Axes, frame: pd.DataFrame) -> None:
    axes.set_title("Reward, with worst and best group", loc="left")
    axes.set_ylabel("mean reward")
    axes.set_ylim(-0.02, 1.05)
    if frame.empty:
        return
    groups = frame["group_means"]
    axes.fill_between(frame["step"], groups.map(min), groups.map(max), color=PALE, linewidth=0)
    axes.plot(frame["step"], frame["reward"], "o-", color=OKABE_ITO["blue"], markersize=4)
    top = max(1.05, 1.05 * float(groups.map(max).max()))
    axes.set_ylim(min(-0.02, float(groups.map(min).min())), top)


def _plot_line(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    axes.plot(frame["step"], frame[column], "o-", color=OKABE_ITO["blue"], markersize=4)
    axes.set_ylim(0, _top(frame, column))


def _plot_seconds(axes: Axes, frame: pd.DataFrame) -> None:
    axes.set_title("Time of a step", loc="left")
    axes.set_ylabel("seconds")
    axes.plot(frame["step"], frame["step_s"], "o-", color=OKABE_ITO["blue"], markersize=4)
    axes.plot(frame["step"], frame["generation_s"], "o-", color=GREY, markersize=4)
    axes.set_ylim(0, _top(frame, "step_s"))
    if len(frame):
        last = frame.iloc[-1]
        label_ends(
            axes,
            [
                (float(last["step_s"]), "all", OKABE_ITO["blue"]),
                (float(last["generation_s"]), "sampling", GREY),
            ],
        )


def _top(frame: pd.DataFrame, column: str) -> float:
    """The upper end of an axis that starts at 0."""
    highest = float(frame[column].max()) if len(frame) else 0.0
    return 1.15 * highest if highest > 0 else 1.0


def _step_axis(axes: Axes, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    tidy(axes)
