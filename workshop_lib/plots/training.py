"""Figures of a training run, also while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.plots.style import GREY, OKABE_ITO, PALE, label_ends, new_figure, tidy
from workshop_lib.training.advantages import nemo_rl_advantages

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_accuracy",
    "plot_advantages",
    "plot_groups",
    "plot_training",
    "plot_training_models",
]


def plot_training(frame: pd.DataFrame, *, steps: int | None = None, title: str = "") -> Figure:
    """Reward, length, gradient and time of each step.

    The reward's band runs from the worst to the best group of the step; a group is
    the completions of one prompt.

    Args:
        frame: `read_metrics`' table, also of a run that has not finished a step yet.
        steps: Steps that the run will have, so that the axes stand still while it runs.
        title: Drawn above.

    Example:
        >>> from workshop_lib.training.runs import read_metrics
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


_GROUP_VARIANTS = {
    "reward - mean": {"normalize": False, "leave_one_out": False},
    "… / spread": {"normalize": True, "leave_one_out": False},
    "reward - mean of others": {"normalize": False, "leave_one_out": True},
    "… / their spread": {"normalize": True, "leave_one_out": True},
}


def plot_groups(frame: pd.DataFrame, group: int) -> Figure:
    """Rewards of a few groups, and one group's advantages computed in four ways.

    Left, a dot an answer: a group whose answers all got the same reward is grey,
    because every advantage in it is 0. Right, for the answers of one group that got
    the highest and the lowest reward: what each way of computing gives them.

    Args:
        frame: `sample_groups`' table.
        group: The group to compute for.

    Example:
        >>> import pandas as pd
        >>> rows = [(0, "1 + 1", "2", " 2", 1.0), (0, "1 + 1", "2", " 3", 0.0)] * 2
        >>> names = ["group", "problem", "answer", "completion", "reward"]
        >>> figure = plot_groups(pd.DataFrame(rows, columns=names), 0)
    """
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _plot_group_rewards(left, frame, group)
    rewards = frame.loc[frame["group"] == group, "reward"].tolist()
    names = list(_GROUP_VARIANTS)
    series = [("best answer", max(rewards), "blue"), ("worst answer", min(rewards), "vermillion")]
    for offset, (label, reward, colour) in zip((0.2, -0.2), series, strict=True):
        at = rewards.index(reward)
        values = [nemo_rl_advantages(rewards, **how)[at] for how in _GROUP_VARIANTS.values()]
        rows = [row - offset for row in range(len(names))]
        right.barh(rows, values, height=0.36, color=OKABE_ITO[colour], label=label)
        for row, value in zip(rows, values, strict=True):
            right.annotate(
                f"{value:+.2f}", (value, row), xytext=(4 if value >= 0 else -4, 0),
                textcoords="offset points", va="center", fontsize=9,
                ha="left" if value >= 0 else "right",
            )  # fmt: skip
    right.axvline(0, color=GREY, linewidth=1)
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.4, -0.9)
    right.margins(x=0.28)
    right.set_xlabel("advantage")
    problem = frame.loc[frame["group"] == group, "problem"].iloc[0]
    right.set_title(f"Advantages: {problem}", loc="left")
    right.legend(loc="upper right", ncols=2, frameon=False, fontsize=9, borderaxespad=0)
    tidy(right)
    return figure


def plot_advantages(group: pd.DataFrame) -> Figure:
    """One group of completions: rewards, advantages by hand, and the trainer's own.

    By hand: reward minus the group's mean, by the group's standard deviation. The
    trainer's are what it wrote into its record; dots on the bars' ends say that both agree.

    Args:
        group: Rows of `read_completions` of one step and group: `completion`, `reward`,
            `advantage`, and `prompt`.

    Example:
        >>> import pandas as pd
        >>> rows = {"completion": [" 7", " 8"], "reward": [1.0, 0.0], "advantage": [0.707, -0.707]}
        >>> figure = plot_advantages(pd.DataFrame(rows).assign(prompt="What is 3 + 4?"))
    """
    figure = new_figure(9, 1.4 + 0.34 * len(group))
    axes = figure.subplots()
    rewards = group["reward"]
    spread = float(rewards.std())
    by_hand = (rewards - rewards.mean()) / spread if spread > 0 else 0 * rewards
    rows = range(len(group))
    colours = [OKABE_ITO["blue"] if value > 0 else OKABE_ITO["vermillion"] for value in by_hand]
    axes.barh(rows, by_hand, height=0.6, color=colours, alpha=0.45, label="by hand")
    axes.plot(group["advantage"], rows, "o", color="black", markersize=5, label="the trainer's")
    axes.axvline(0, color=GREY, linewidth=1)
    labels = [
        f"{text.strip().replace(chr(10), ' ')[:26]!r}   reward {reward:g}"
        for text, reward in zip(group["completion"], rewards, strict=True)
    ]
    axes.set_yticks(rows, labels)
    axes.set_ylim(len(group) - 0.4, -0.6)
    axes.set_xlabel("advantage")
    question = str(group["prompt"].iloc[0]).split("\n")[0].removeprefix("Question: ")
    axes.set_title(question, loc="left")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    tidy(axes)
    return figure


def _plot_group_rewards(axes: Axes, frame: pd.DataFrame, chosen: int) -> None:
    labels = []
    for row, (group, answers) in enumerate(frame.groupby("group")):
        rewards = answers["reward"].tolist()
        silent = len(set(rewards)) == 1
        for column, reward in enumerate(rewards):
            colour = GREY if silent else OKABE_ITO["blue"]
            face = colour if reward >= 1 else "none"
            axes.plot(column + 1, row, "o", markersize=9, color=colour, markerfacecolor=face)
        mean = sum(rewards) / len(rewards)
        note = "teaches nothing" if silent else f"mean {mean:.2f}"
        axes.annotate(
            note, (len(rewards) + 0.6, row), va="center", fontsize=9,
            color=GREY if silent else "black", annotation_clip=False,
        )  # fmt: skip
        labels.append(f"{answers['problem'].iloc[0]} {'◂' if group == chosen else ' '}")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    size = int(frame.groupby("group").size().max())
    axes.set_xlim(0.4, size + 0.5)
    axes.set_xticks(range(1, size + 1))
    axes.set_xlabel("answer (filled: right)")
    axes.set_title("Rewards, a row a group", loc="left")
    tidy(axes)


def plot_training_models(table: pd.DataFrame) -> Figure:
    """One stacked bar an algorithm: the models that it keeps in memory.

    Args:
        table: `training_models`' table.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape
        >>> from workshop_lib.training.memory import training_models
        >>> figure = plot_training_models(training_models(ModelShape.named("mistral-7b")))
    """
    figure = new_figure(8, 2.7)
    axes = figure.subplots()
    algorithms = list(dict.fromkeys(table["algorithm"]))
    widest = float(table.groupby("algorithm")["gib"].sum().max())
    models = list(dict.fromkeys(table["model"]))
    colours = dict(zip(models, ("blue", "vermillion", "green", "purple"), strict=False))
    for row, algorithm in enumerate(algorithms):
        left = 0.0
        for _, model in table[table["algorithm"] == algorithm].iterrows():
            colour = OKABE_ITO[colours[model["model"]]]
            label = model["model"] if row == 0 else None
            axes.barh(row, model["gib"], left=left, color=colour, height=0.6, label=label)
            left += float(model["gib"])
        axes.text(left, row, f"  {left:.0f} GiB", va="center", ha="left")
    axes.set_yticks(range(len(algorithms)), algorithms)
    axes.invert_yaxis()
    axes.set_xlim(0, widest * 1.15)
    axes.set_xlabel("GPU memory for weights, gradients and optimizer, GiB")
    figure.legend(loc="outside upper left", ncols=len(models), frameon=False, fontsize=9)
    tidy(axes)
    return figure


def plot_accuracy(table: pd.DataFrame) -> Figure:
    """Accuracy with its interval, a row a model.

    Args:
        table: `accuracy_table`'s table.

    Example:
        >>> import pandas as pd
        >>> row = {"problems": 30, "right": 6, "accuracy": 0.2, "low": 0.095, "high": 0.373}
        >>> figure = plot_accuracy(pd.DataFrame([row], index=["before"]))
    """
    figure = new_figure(8, 1.3 + 0.55 * len(table))
    axes = figure.subplots()
    for row, (_, result) in enumerate(table.iterrows()):
        share, low, high = (float(result[name]) for name in ("accuracy", "low", "high"))
        axes.plot([low, high], [row, row], color=OKABE_ITO["blue"], linewidth=6, alpha=0.35)
        axes.plot(share, row, "o", color=OKABE_ITO["blue"], markersize=8)
        axes.annotate(
            f"{result['right']:.0f} of {result['problems']:.0f}", (1.03, row),
            va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of held-out problems solved, with its 95% interval")
    tidy(axes)
    return figure
