"""Figures of a whole run, from whatever source, and of runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from workshop_lib.plots.style import GREY, OKABE_ITO, PALE, label_ends, new_figure, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.training.runs import Run

__all__ = ["plot_run", "plot_runs"]

_LINES = {
    "kl": ("KL from the reference", "nats a token"),
    "grad_norm": ("Gradient, before clipping", "norm"),
    "entropy": ("Entropy", "nats a token"),
    "mean_length": ("Length of a completion", "tokens, mean"),
    "zero_std_share": ("Silent groups", "share"),
}

# What a step's time is made of, in the order of a step, from the ground up.
_STAGES = {
    "prepare_s": ("engines", "purple"),
    "generation_s": ("sampling", "blue"),
    "reward_s": ("scoring", "sky"),
    "logprob_s": ("log-probs", "green"),
    "update_s": ("update", "vermillion"),
}


def plot_run(run: Run, *, title: str = "") -> Figure:
    """A panel for each thing that a run's source tells; none for what it does not.

    Reward with its spread (the grey band: from the worst to the best group where the
    groups are known), KL, gradient, entropy, length, silent groups, time by stage.
    Validations are dots beside the reward.

    Args:
        run: `read_run`'s result, also of a run that has not finished a step.
        title: Drawn above.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.runs import read_run
        >>> figure = plot_run(read_run(data_path("recorded/nemo-rl/honest")))
        >>> len(figure.axes)
        7
    """
    frame = run.frame
    panels: list[Callable[[Axes], None]] = [lambda axes: _plot_reward(axes, run)]
    for name in _LINES:
        if frame[name].notna().any():
            panels.append(partial(_plot_column, frame=frame, column=name))
    if frame["step_s"].notna().any():
        panels.append(lambda axes: _plot_stages(axes, frame))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(10, 2.5 * rows + (0.3 if title else 0))
    grid = figure.add_gridspec(rows, columns)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        # The last panel, time by stage, takes the rest of its row: it has labels beside it.
        last = index == len(panels) - 1
        axes = figure.add_subplot(grid[row, column:] if last else grid[row, column])
        panel(axes)
        _step_axis(axes, frame, run.planned)
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def plot_runs(runs: Mapping[str, Run]) -> Figure:
    """Runs side by side, a column a run: what was rewarded and what was right, KL, length.

    One scale a row, so that the runs can be compared by eye.

    Args:
        runs: By the name that is drawn above its column.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.runs import read_run
        >>> names = ("honest", "reward-hacking")
        >>> runs = {name: read_run(data_path(f"recorded/nemo-rl/{name}")) for name in names}
        >>> figure = plot_runs(runs)
    """
    figure = new_figure(9, 6.2)
    grid = figure.subplots(3, len(runs), sharey="row", squeeze=False, height_ratios=[1.5, 1, 1])
    for column, (name, run) in enumerate(runs.items()):
        reward, kl, length = grid[:, column]
        frame = run.frame
        reward.plot(frame["step"], frame["reward"], color=OKABE_ITO["blue"])
        reward.plot(frame["step"], frame["right_share"], color=OKABE_ITO["vermillion"])
        reward.set_title(name, loc="left")
        kl.plot(frame["step"], frame["kl"], color=OKABE_ITO["blue"])
        length.plot(frame["step"], frame["mean_length"], color=OKABE_ITO["blue"])
        for axes in (reward, kl, length):
            _step_axis(axes, frame, run.planned)
        for axes in (reward, kl):
            axes.set_xlabel("")
    grid[0][0].set_ylim(0, 1.05)
    for row in (1, 2):  # after all is drawn: a limit that is set is not moved any more
        grid[row][0].set_ylim(bottom=0)
    labels = ("share of answers", "KL, nats a token", "length, tokens")
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    for column, run in enumerate(runs.values()):
        ends = run.frame[["reward", "right_share"]].ffill()
        if len(ends):
            last = ends.iloc[-1]
            named = [
                (last["reward"], "rewarded", "blue"),
                (last["right_share"], "right", "vermillion"),
            ]
            known = [(float(y), text, OKABE_ITO[c]) for y, text, c in named if y == y]
            label_ends(grid[0][column], known)
    return figure


def _plot_reward(axes: Axes, run: Run) -> None:
    frame = run.frame
    axes.set_title("Reward", loc="left")
    axes.set_ylabel("mean reward")
    groups = frame.dropna(subset=["group_means"])
    if len(groups) == len(frame) > 0:
        low, high = groups["group_means"].map(min), groups["group_means"].map(max)
        axes.fill_between(groups["step"], low, high, color=PALE, linewidth=0)
        axes.set_title("Reward, worst to best group", loc="left")
    axes.plot(frame["step"], frame["reward"], color=OKABE_ITO["blue"])
    if len(run.validation):
        axes.plot(
            run.validation["step"], run.validation["accuracy"], "o",
            color=OKABE_ITO["orange"], markersize=5, label="validation",
        )  # fmt: skip
    if frame["right_share"].notna().any():
        axes.plot(frame["step"], frame["right_share"], color=OKABE_ITO["vermillion"], label="right")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set_ylim(min(-0.02, _least(frame)), max(1.05, 1.05 * _most(frame)))


def _least(frame: pd.DataFrame) -> float:
    return float(
        min([0.0, *frame["reward"], *(min(means) for means in frame["group_means"].dropna())])
    )


def _most(frame: pd.DataFrame) -> float:
    return float(
        max([0.0, *frame["reward"], *(max(means) for means in frame["group_means"].dropna())])
    )


def _plot_column(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    title, unit = _LINES[column]
    axes.plot(frame["step"], frame[column], color=OKABE_ITO["blue"])
    axes.set_title(title, loc="left")
    axes.set_ylabel(unit)
    top = 1.0 if column == "zero_std_share" else float(frame[column].max())
    axes.set_ylim(0, 1.08 * top if top > 0 else 1.0)


def _plot_stages(axes: Axes, frame: pd.DataFrame) -> None:
    total_s = float(frame["step_s"].median())
    # What takes less than a hundredth of a step has no colour of its own.
    stages = [name for name in _STAGES if frame[name].median() >= 0.01 * total_s]
    parts = [frame[name].fillna(0) for name in stages]
    # What no timer covers is the difference; it is drawn, not hidden. The laptop's trainer
    # has no timer for its update.
    rest = (frame["step_s"] - sum(parts)).clip(lower=0)
    rest_name = "other" if "update_s" in stages else "update, other"
    names = [_STAGES[name][0] for name in stages] + [rest_name]
    colours = [OKABE_ITO[_STAGES[name][1]] for name in stages] + [GREY]
    axes.stackplot(frame["step"], *parts, rest, colors=colours, linewidth=0)
    axes.set_title("Time of a step, by stage", loc="left")
    axes.set_ylabel("seconds")
    # One slow step (a validation, a pause of the machine) shall not flatten the others.
    top = min(float(frame["step_s"].max()), 2.5 * total_s)
    axes.set_ylim(0, 1.1 * top)
    medians = [float(part.median()) for part in [*parts, rest]]
    total, heights = 0.0, []
    for seconds in medians:
        heights.append(total + seconds / 2)
        total += seconds
    label_ends(
        axes,
        [
            (height, f"{name} {seconds:.2g} s", colour)
            for height, name, seconds, colour in zip(heights, names, medians, colours, strict=True)
        ],
        step=0.11,
    )


def _step_axis(axes: Axes, frame: pd.DataFrame, planned: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(planned or 0, int(frame["step"].max()) if len(frame) else 0, 2)
    axes.set_xlabel("step")
    axes.set_xlim(0, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    tidy(axes)
