"""Figures of lesson 03: groups and advantages, a run while it trains, runs side by side, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PURPLE,
    SERIES,
    SKY,
    VERMILLION,
    finish,
    label_ends,
    new_figure,
    row_labels,
    write,
)
from workshop_lib.training import nemo_rl_advantages

if TYPE_CHECKING:
    from workshop_lib.serving.memory import TrainingBudget
    from workshop_lib.training.runs import Run

# A panel's title and unit, by the column of a run's table.
_PANELS = {
    "reward": ("Reward", "mean reward"),
    "kl": ("KL from the reference", "nats a token"),
    "grad_norm": ("Gradient, before clipping", "norm"),
    "entropy": ("Entropy of a token", "nats, mean"),
    "mean_length": ("Length of a completion", "tokens, mean"),
    "zero_std_share": ("Silent groups", "share"),
    "clip_share": ("Clipped tokens", "share"),
}

# What a step's time is made of, in the order of a step, from the ground up.
_STAGES = {
    "prepare_s": ("engines", PURPLE),
    "generation_s": ("sampling", BLUE),
    "reward_s": ("scoring", SKY),
    "logprob_s": ("log-probs", GREEN),
    "update_s": ("update", VERMILLION),
}

_VARIANTS = {
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
        >>> rows = [(0, "1 + 1", "2", " 2", 1.0), (0, "1 + 1", "2", " 3", 0.0)] * 2
        >>> names = ["group", "problem", "answer", "completion", "reward"]
        >>> figure = plot_groups(pd.DataFrame(rows, columns=names), 0)
    """
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    labels, size = [], int(frame.groupby("group").size().max())
    for row, (number, answers) in enumerate(frame.groupby("group")):
        rewards = answers["reward"].tolist()
        silent = len(set(rewards)) == 1
        colour = GREY if silent else BLUE
        for column, reward in enumerate(rewards, start=1):
            face = colour if reward >= 1 else "none"
            left.plot(column, row, "o", markersize=9, color=colour, markerfacecolor=face)
        note = "silent" if silent else f"mean {sum(rewards) / len(rewards):.2f}"
        write(left, size + 0.6, row, note, GREY if silent else "black")
        labels.append(f"{answers['problem'].iloc[0]} {'◂' if number == group else ' '}")
    row_labels(left, labels)
    left.set_xticks(range(1, size + 1))
    left.set_xlim(0.4, size + 0.5)
    finish(left, "Rewards: one row per group", x="completion (filled: right)")

    chosen = frame[frame["group"] == group]
    rewards = chosen["reward"].tolist()
    series = [("best", max(rewards), BLUE), ("worst", min(rewards), VERMILLION)]
    for offset, (label, reward, colour) in zip((0.2, -0.2), series, strict=True):
        at = rewards.index(reward)
        values = [nemo_rl_advantages(rewards, **how)[at] for how in _VARIANTS.values()]
        places = [row - offset for row in range(len(values))]
        right.barh(places, values, height=0.36, color=colour, label=label)
        for place, value in zip(places, values, strict=True):
            side, where = (4, "left") if value >= 0 else (-4, "right")
            write(right, value, place, f"{value:+.2f}", shift=(side, 0), ha=where)
    right.axvline(0, color=GREY, linewidth=1)
    row_labels(right, list(_VARIANTS))
    right.margins(x=0.28)
    right.legend(loc="upper right", ncols=2, frameon=False, fontsize=9, borderaxespad=0)
    title = f"Two completions for {chosen['problem'].iloc[0]}"
    finish(right, title, x="advantage", ylim=(len(_VARIANTS) - 0.4, -0.9))
    return figure


def plot_advantages(group: pd.DataFrame) -> Figure:
    """One group of completions: rewards, advantages by hand, and the trainer's own.

    By hand: reward minus the group's mean, by the group's standard deviation. The
    trainer's are what it wrote into its record; dots on the bars' ends say that both agree.

    Args:
        group: Rows of `read_completions` of one step and group: `completion`, `reward`,
            `advantage`, and `prompt`.

    Example:
        >>> rows = {"completion": [" 7", " 8"], "reward": [1.0, 0.0], "advantage": [0.707, -0.707]}
        >>> figure = plot_advantages(pd.DataFrame(rows).assign(prompt="What is 3 + 4?"))
    """
    figure = new_figure(9, 1.4 + 0.34 * len(group))
    axes = figure.subplots()
    rewards = group["reward"]
    spread = float(rewards.std())
    by_hand = (rewards - rewards.mean()) / spread if spread > 0 else 0 * rewards
    colours = [BLUE if value > 0 else VERMILLION for value in by_hand]
    rows = range(len(group))
    axes.barh(rows, by_hand, height=0.6, color=colours, alpha=0.45, label="by hand")
    axes.plot(group["advantage"], rows, "o", color="black", markersize=5, label="the trainer's")
    axes.axvline(0, color=GREY, linewidth=1)
    texts = [text.strip().replace("\n", " ")[:26] for text in group["completion"]]
    row_labels(axes, [f"{t!r}   reward {r:g}" for t, r in zip(texts, rewards, strict=True)])
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    question = str(group["prompt"].iloc[0]).split("\n")[0].removeprefix("Question: ")
    finish(axes, question, x="advantage")
    return figure


def plot_training(frame: pd.DataFrame, *, steps: int | None = None) -> Figure:
    """Reward, length, gradient and time of each step, also while it runs.

    Args:
        frame: A run's table, also of a run that has not finished a step yet.
        steps: Steps that the run will have, so that the axes stand still while it runs.

    Example:
        >>> from workshop_lib.training.runs import read_metrics
        >>> figure = plot_training(read_metrics("build/no-run-yet"), steps=12)
    """
    figure = new_figure(9, 5)
    columns = "reward", "mean_length", "grad_norm", "step_s"
    for axes, column in zip(figure.subplots(2, 2).flat, columns, strict=True):
        _draw_panel(axes, frame, column, steps)
    return figure


def plot_run(run: Run) -> Figure:
    """A panel for each thing that a run's source tells; none for what it does not.

    Reward with its spread (the grey band: from the worst to the best group where the
    groups are known), KL, gradient, entropy, length, silent groups, time by stage.
    Validations are dots beside the reward.

    Args:
        run: `read_run`'s result, also of a run that has not finished a step.

    Example:
        >>> from workshop_lib.data import data_path
        >>> from workshop_lib.training.runs import read_run
        >>> len(plot_run(read_run(data_path("recorded/nemo-rl/honest"))).axes)
        7
    """
    wanted = ["kl", "grad_norm", "entropy", "mean_length", "zero_std_share", "step_s"]
    panels = ["reward", *(name for name in wanted if run.frame[name].notna().any())]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(10, 2.5 * rows)
    grid = figure.add_gridspec(rows, columns)
    for index, name in enumerate(panels):
        row, column = divmod(index, columns)
        # The last panel, time by stage, takes the rest of its row: it has labels beside it.
        place = grid[row, column:] if name == panels[-1] else grid[row, column]
        _draw_panel(figure.add_subplot(place), run.frame, name, run.planned, run.validation)
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
    grid = figure.subplots(
        3, len(runs), height_ratios=[1.5, 1, 1], sharex="col", sharey="row", squeeze=False
    )
    columns = {"reward": BLUE, "right_share": VERMILLION}, {"kl": BLUE}, {"mean_length": BLUE}
    for panels, (name, run) in zip(grid.T, runs.items(), strict=True):
        for axes, lines in zip(panels, columns, strict=True):
            for column, colour in lines.items():
                axes.plot(run.frame["step"], run.frame[column], color=colour)
            _step_axis(axes, run.frame, run.planned)
            axes.set_xlabel("step" if axes is panels[-1] else "")
        finish(panels[0], name)
    grid[0][0].set_ylim(0, 1.05)
    for row in (1, 2):  # after all is drawn: a limit that is set is not moved any more
        grid[row][0].set_ylim(bottom=0)
    labels = ("share of completions", "KL, nats a token", "length, tokens")
    for axes, label in zip(grid[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    for axes, run in zip(grid[0], runs.values(), strict=True):
        last = run.frame[list(columns[0])].ffill().iloc[-1].dropna()
        words = {"reward": "rewarded", "right_share": "right"}
        label_ends(axes, [(y, words[str(name)], columns[0][str(name)]) for name, y in last.items()])
    return figure


def plot_settings(frame: pd.DataFrame, *, key: str) -> Figure:
    """Short trainings that differ in one setting: six panels, a line for each value.

    Args:
        frame: `SettingsComparison.frame`.
        key: The setting, for the title.

    Example:
        >>> from workshop_lib.training.runs import COLUMNS
        >>> row = dict.fromkeys(COLUMNS, 0.5) | {"run": 0, "value": "0.2", "step": 1}
        >>> figure = plot_settings(pd.DataFrame([row]), key="policy.generation.temperature")
    """
    figure = new_figure(9, 4.8)
    grid = figure.subplots(2, 3, sharex=True)
    # The last panel has the one of its two that says something; KL is not known of every run.
    last = "clip_share" if (frame["clip_share"] > 0).any() else "mean_length"
    fourth = "kl" if frame["kl"].notna().any() else "clip_share"
    columns = ["reward", "zero_std_share", "entropy", fourth, "grad_norm", last]
    looks = list(zip(SERIES, "os^D", strict=True)) * 9
    for axes, column in zip(grid.flat, columns, strict=True):
        for (_, steps), (colour, marker) in zip(frame.groupby("run"), looks, strict=False):
            line = axes.plot(steps["step"], steps[column], f"{marker}-", color=colour, markersize=4)
            line[0].set_label(str(steps["value"].iloc[0]))
        title, unit = _PANELS[column]
        top = 1.05 if column in ("reward", "zero_std_share") else 1.12 * frame[column].max() or 1.0
        finish(axes, title, y=unit, whole="x", ylim=(-0.03 * top, top))
    for axes in grid[-1]:
        axes.set_xlabel("step")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    where = "outside upper center"
    figure.legend(handles, labels, title=key, loc=where, ncols=len(labels), frameon=False)
    return figure


def plot_training_models(table: pd.DataFrame) -> Figure:
    """One stacked bar an algorithm: the models that it keeps in memory.

    Args:
        table: `training_models`' table.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape
        >>> from workshop_lib.training import training_models
        >>> figure = plot_training_models(training_models(ModelShape.named("mistral-7b")))
    """
    figure = new_figure(8, 2.7)
    axes = figure.subplots()
    algorithms, models = (list(table[name].unique()) for name in ("algorithm", "model"))
    ends = dict.fromkeys(algorithms, 0.0)
    for model, colour in zip(models, SERIES, strict=False):
        for algorithm, gib in table.loc[table["model"] == model, ["algorithm", "gib"]].to_numpy():
            row, left = algorithms.index(algorithm), ends[algorithm]
            axes.barh(row, gib, left=left, color=colour, height=0.6, label="_"[: row > 0] + model)
            ends[algorithm] += gib
    for row, end in enumerate(ends.values()):
        write(axes, end, row, f"  {end:.0f} GiB", fontsize=10)
    row_labels(axes, algorithms)
    figure.legend(loc="outside upper left", ncols=len(models), frameon=False, fontsize=9)
    note = "GPU memory for weights, gradients and optimizer, GiB"
    finish(axes, x=note, xlim=(0, max(ends.values()) * 1.15))
    return figure


def plot_accuracy(table: pd.DataFrame) -> Figure:
    """Accuracy with its 95% interval, a row a model.

    Args:
        table: `accuracy_table`'s table.

    Example:
        >>> row = {"problems": 30, "right": 6, "accuracy": 0.2, "low": 0.095, "high": 0.373}
        >>> figure = plot_accuracy(pd.DataFrame([row], index=["before"]))
    """
    figure = new_figure(8, 1.3 + 0.55 * len(table))
    axes = figure.subplots()
    for row, result in enumerate(table.to_dict("records")):
        interval = result["low"], result["high"]
        axes.plot(interval, [row, row], color=BLUE, linewidth=6, alpha=0.35)
        axes.plot(result["accuracy"], row, "o", color=BLUE, markersize=8)
        write(axes, 1.03, row, f"{result['right']:.0f} of {result['problems']:.0f}")
    row_labels(axes, [str(name) for name in table.index])
    note = "share of held-out problems solved, with its 95% interval"
    finish(axes, x=note, xlim=(-0.02, 1.02))
    return figure


def plot_step_memory(
    colocated: TrainingBudget,
    dedicated: TrainingBudget,
    *,
    generate_s: float,
    update_s: float,
    switch_s: float = 0.0,
) -> Figure:
    """What each kind of GPU holds during two steps, and when it waits.

    Colocated, generation and update take turns on every GPU, and each turn costs a
    switch: one side's memory leaves, the other's comes. Dedicated, nothing is moved, and
    each GPU waits for the other kind (the new weights' transfer, part of a switch, is not
    drawn). The steps are synchronous, as NeMo RL's are by default.

    Args:
        colocated: `training_budget(..., where="colocated")`.
        dedicated: The same with `where="dedicated"`.
        generate_s: Seconds of sampling.
        update_s: Seconds of log-probabilities and update.
        switch_s: Seconds of both switches of a colocated step together.

    Raises:
        WorkshopError: A budget is of the other kind, or a time is not positive.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape, training_budget
        >>> shape = ModelShape.named("mistral-7b")
        >>> both = [training_budget(shape, "h100", gpus=4, where=where)
        ...     for where in ("colocated", "dedicated")]
        >>> len(plot_step_memory(*both, generate_s=3, update_s=2, switch_s=1).axes)
        3
    """
    if (colocated.where, dedicated.where) != ("colocated", "dedicated"):
        raise WorkshopError(
            f"budgets are {colocated.where} and {dedicated.where}; give one colocated and one"
            " dedicated"
        )
    if generate_s <= 0 or update_s <= 0 or switch_s < 0:
        raise WorkshopError("a step's times must be positive")
    making, learning = sum(colocated.generate.values()), sum(colocated.update.values())
    # While the engines change places neither has all that it needs.
    switch = ("switch", switch_s / 2, min(making, learning))
    own_making, own_learning = sum(dedicated.generate.values()), sum(dedicated.update.values())
    resting = own_learning - dedicated.update.get("activations", 0.0)
    generate, update = ("generate", generate_s, making), ("update", update_s, learning)
    rows = {
        "Colocated: every GPU": [switch, generate, switch, update],
        "Dedicated: a training GPU": [
            ("wait", generate_s, resting),
            ("update", update_s, own_learning),
        ],
        "Dedicated: a generation GPU": [
            ("generate", generate_s, own_making),
            ("wait", update_s, own_making),
        ],
    }
    figure = new_figure(9, 5.6)
    grid = figure.subplots(3, 1, sharex=True, sharey=True)
    capacity, end_s = colocated.capacity_gib, 2 * (generate_s + update_s + switch_s)
    for axes, (title, phases) in zip(grid, rows.items(), strict=True):
        _draw_phases(axes, [phase for phase in phases if phase[1]], end_s)
        axes.axhline(capacity, color="black", linewidth=1.5)
        finish(axes, title, y="GiB")
    words = f"{colocated.device} has {capacity:.0f} GiB"
    place = ("axes fraction", "data")
    write(grid[0], 1, capacity, words, shift=(0, 3), xycoords=place, ha="right", va="bottom")
    tallest = max(capacity, colocated.peak_gib, dedicated.peak_gib)
    finish(grid[-1], x="seconds", ylim=(0, 1.22 * tallest), xlim=(0, end_s))
    return figure


def _draw_phases(axes: Axes, phases: list[tuple[str, float, float]], end_s: float) -> None:
    """The phases (name, seconds, GiB) over and over, named the first time."""
    colours = {"generate": BLUE, "switch": ORANGE, "update": VERMILLION, "wait": GREY}
    at, named = 0.0, {"switch"}
    while at < end_s:
        for name, seconds, gib in phases:
            bar = axes.bar(at, gib, width=seconds, align="edge", color=colours[name])
            bar[0].set(edgecolor="white", alpha=0.35 if name == "wait" else 0.9)
            if name == "switch":
                middle = at + seconds / 2
                write(axes, middle, 1, name, rotation=90, ha="center", va="bottom")
            elif name not in named:
                named.add(name)
                words, down = ("waits", -14) if name == "wait" else (f"{name}, {gib:.0f} GiB", 2)
                write(axes, at, gib, words, shift=(2, down), va="bottom")
            at += seconds


def _draw_panel(
    axes: Axes,
    frame: pd.DataFrame,
    column: str,
    steps: int | None,
    validation: pd.DataFrame | None = None,
) -> None:
    """One column of a run's table, over its steps."""
    if column == "reward":
        _draw_reward(axes, frame, validation)
    elif column == "step_s":
        _draw_stages(axes, frame)
    else:
        title, unit = _PANELS[column]
        axes.plot(frame["step"], frame[column], color=BLUE)
        top = 1.0 if column == "zero_std_share" else float(frame[column].max() if len(frame) else 0)
        finish(axes, title, y=unit, ylim=(0, 1.08 * top if top > 0 else 1.0))
    _step_axis(axes, frame, steps)


def _draw_reward(axes: Axes, frame: pd.DataFrame, validation: pd.DataFrame | None) -> None:
    """The mean reward; the band of groups, validations and what was right where known."""
    title, groups = "Reward", frame["group_means"].dropna()
    seen = [0.0, *frame["reward"].dropna()]
    if len(groups) == len(frame) > 0:
        low, high = groups.map(min), groups.map(max)
        axes.fill_between(frame["step"], low, high, color=PALE, linewidth=0)
        title, seen = "Reward, worst to best group", [*seen, *low, *high]
    axes.plot(frame["step"], frame["reward"], color=BLUE)
    if validation is not None and len(validation):
        points = axes.plot(validation["step"], validation["accuracy"], "o", color=ORANGE)
        points[0].set_label("validation")
    if "right_share" in frame and frame["right_share"].notna().any():
        axes.plot(frame["step"], frame["right_share"], color=VERMILLION, label="right")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    limits = min(-0.02, *seen), max(1.05, 1.05 * max(seen))
    finish(axes, title, y="mean reward", ylim=limits)


def _draw_stages(axes: Axes, frame: pd.DataFrame) -> None:
    """A step's time, stacked by stage; what no timer covers is drawn too, not hidden."""
    finish(axes, "Time of a step, by stage", y="seconds")
    if frame.empty:
        return
    total_s = float(frame["step_s"].median())
    # What takes less than a hundredth of a step has no colour of its own.
    stages = [name for name in _STAGES if name in frame and frame[name].median() >= 0.01 * total_s]
    parts = [frame[name].fillna(0) for name in stages]
    parts.append((frame["step_s"] - sum(parts)).clip(lower=0))
    # The laptop's trainer has no timer for its update.
    rest = ("other" if "update_s" in stages else "update, other", GREY)
    names, colours = zip(*[_STAGES[name] for name in stages], rest, strict=True)
    axes.stackplot(frame["step"], *parts, colors=colours, linewidth=0)
    # One slow step (a validation, a pause of the machine) shall not flatten the others.
    axes.set_ylim(0, 1.1 * min(float(frame["step_s"].max()), 2.5 * total_s))
    base_s, labels = 0.0, []
    for name, part, colour in zip(names, parts, colours, strict=True):
        seconds = float(part.median())
        labels.append((base_s + seconds / 2, f"{name} {seconds:.2g} s", colour))
        base_s += seconds
    label_ends(axes, labels, step=0.11)


def _step_axis(axes: Axes, frame: pd.DataFrame, planned: int | None) -> None:
    last = max(planned or 0, int(frame["step"].max()) if len(frame) else 0, 2)
    finish(axes, x="step", whole="x", xlim=(0, last + 0.5))
