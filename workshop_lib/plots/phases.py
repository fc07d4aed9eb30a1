"""Memory of the GPUs of a GRPO step over time: taking turns, or each with its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import GREY, OKABE_ITO, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.serving.memory import TrainingBudget

__all__ = ["plot_step_memory"]

_COLOURS = {"generate": "blue", "switch": "orange", "update": "vermillion"}
_STEPS = 2


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
    resting = sum(gib for part, gib in dedicated.update.items() if part != "activations")
    turn = [
        ("switch", switch_s / 2, _smaller(colocated)),
        ("generate", generate_s, sum(colocated.generate.values())),
        ("switch", switch_s / 2, _smaller(colocated)),
        ("update", update_s, sum(colocated.update.values())),
    ]
    rows = {
        "Colocated: every GPU": turn,
        "Dedicated: a training GPU": [
            ("wait", generate_s, resting),
            ("update", update_s, sum(dedicated.update.values())),
        ],
        "Dedicated: a generation GPU": [
            ("generate", generate_s, sum(dedicated.generate.values())),
            ("wait", update_s, sum(dedicated.generate.values())),
        ],
    }
    figure = new_figure(9, 5.6)
    grid = figure.subplots(3, 1, sharex=True, sharey=True)
    capacity = colocated.capacity_gib
    tallest = max(capacity, colocated.peak_gib, dedicated.peak_gib)
    end = _STEPS * (generate_s + update_s + switch_s)
    for axes, (title, phases) in zip(grid, rows.items(), strict=True):
        _plot_phases(axes, phases, end)
        axes.axhline(capacity, color="black", linewidth=1.5)
        axes.set_title(title, loc="left")
        axes.set_ylabel("GiB")
        tidy(axes)
    grid[0].annotate(
        f"{colocated.device} has {capacity:.0f} GiB", (1, capacity),
        xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        ha="right", fontsize=9,
    )  # fmt: skip
    grid[0].set_ylim(0, 1.22 * tallest)
    grid[0].set_xlim(0, end)
    grid[-1].set_xlabel("seconds")
    return figure


def _smaller(budget: TrainingBudget) -> float:
    """While the engines change places neither has all that it needs."""
    return min(sum(budget.generate.values()), sum(budget.update.values()))


def _plot_phases(axes: Axes, phases: list[tuple[str, float, float]], end_s: float) -> None:
    """The phases over and over, named the first time."""
    at, named = 0.0, set()
    while at < end_s:
        for name, seconds, gib in phases:
            if not seconds:
                continue
            waits = name == "wait"
            axes.bar(
                at, gib, width=seconds, align="edge", linewidth=0.8, edgecolor="white",
                color=GREY if waits else OKABE_ITO[_COLOURS[name]], alpha=0.35 if waits else 0.9,
            )  # fmt: skip
            if name == "switch":
                axes.text(
                    at + seconds / 2, 1, name, rotation=90, fontsize=8, ha="center", va="bottom"
                )
            elif name not in named:
                named.add(name)
                label = "waits" if waits else f"{name}, {gib:.0f} GiB"
                axes.annotate(
                    label, (at, gib), xytext=(2, -14 if waits else 2),
                    textcoords="offset points", va="bottom", fontsize=9,
                )  # fmt: skip
            at += seconds
