"""Figures of the simulators: blocks and their requests, steps and who runs in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import GREY, OKABE_ITO, PALE, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.serving.simulators.batching import Schedule
    from workshop_lib.serving.simulators.paging import Paging

__all__ = ["plot_batching", "plot_paging"]

_ORDER = ("blue", "orange", "green", "purple", "sky", "vermillion", "yellow")
_COLOURS = [OKABE_ITO[name] for name in _ORDER]
_DARK = {OKABE_ITO[name] for name in ("blue", "green", "vermillion")}


def plot_paging(paging: Paging, *, columns: int = 16) -> Figure:
    """The blocks with their requests, and the slots that both ways of keeping them hold.

    A block is filled from the left as far as it holds tokens.

    Args:
        paging: What `simulate_paging` found.
        columns: Blocks in a row.

    Raises:
        WorkshopError: Fewer than one column.

    Example:
        >>> from workshop_lib.serving.simulators import simulate_paging
        >>> figure = plot_paging(simulate_paging({"a": 20, "b": 5}, blocks=64))
    """
    if columns < 1:
        raise WorkshopError(f"columns must be at least 1, got {columns}")
    rows = -(-paging.blocks // columns)
    figure = new_figure(9, 1.6 + 0.42 * rows)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    colours = _colours(list(paging.tokens))
    _draw_blocks(left, paging, colours, columns)
    left.set_title(f"{paging.blocks} blocks of {paging.block_size} tokens", loc="left")
    _draw_slots(right, paging, colours)
    right.set_title("Slots held", loc="left")
    tidy(left)
    left.spines[["left", "bottom"]].set_visible(False)
    tidy(right)
    return figure


def plot_batching(schedules: Sequence[Schedule]) -> Figure:
    """What each slot does in each step, one panel a schedule on the same axis.

    A mark at the top shows when each request arrives.

    Args:
        schedules: One or more, for example static and continuous batching of the same jobs.

    Raises:
        WorkshopError: No schedule.

    Example:
        >>> from workshop_lib.serving.simulators import Job, simulate_batching
        >>> figure = plot_batching([simulate_batching([Job("a", 0, 3)], slots=1)])
    """
    if not schedules:
        raise WorkshopError("plot_batching needs at least one schedule")
    height = sum(0.9 + 0.38 * schedule.slots for schedule in schedules)
    figure = new_figure(9, 0.6 + height)
    panels = figure.subplots(
        len(schedules), 1, sharex=True, squeeze=False, height_ratios=[s.slots for s in schedules]
    )[:, 0]
    last = max(schedule.steps for schedule in schedules)
    for axes, schedule in zip(panels, schedules, strict=True):
        _draw_schedule(axes, schedule, last)
        tidy(axes)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("step of the engine (each running request makes one token)")
    return figure


def _colours(names: Sequence[str]) -> dict[str, str]:
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def _text_colour(colour: str) -> str:
    return "white" if colour in _DARK else "black"


def _draw_blocks(axes: Axes, paging: Paging, colours: dict[str, str], columns: int) -> None:
    for block in range(1, paging.blocks + 1):
        x, y = (block - 1) % columns, (block - 1) // columns
        axes.barh(y, 0.92, left=x, height=0.84, color="white", edgecolor=GREY, linewidth=0.6)
        if block not in paging.fill:
            continue
        request, filled = paging.fill[block]
        share = filled / paging.block_size
        colour = colours[request]
        axes.barh(y, 0.92, left=x, height=0.84, color="white", edgecolor=GREY, hatch="////")
        axes.barh(y, 0.92 * share, left=x, height=0.84, color=colour)
        if paging.blocks <= 8 * columns:
            # The name on a half-empty block would lie half on white.
            text = _text_colour(colour) if share > 0.75 else "black"
            box = None if share > 0.75 else {"facecolor": "white", "pad": 0.6, "linewidth": 0}
            axes.text(
                x + 0.46, y, request, ha="center", va="center", color=text, fontsize=9, bbox=box
            )
    rows = -(-paging.blocks // columns)
    axes.set_xlim(-0.1, columns)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xticks([])
    axes.set_yticks(range(rows), [f"{row * columns + 1}" for row in range(rows)])
    axes.set_ylabel("first block of the row")
    axes.set_xlabel("hatched: slots held without a token; white: free blocks")


def _draw_slots(axes: Axes, paging: Paging, colours: dict[str, str]) -> None:
    """One stacked bar for each way: its requests' tokens, what they waste."""
    ways = [
        (f"blocks of {paging.block_size}", list(paging.tables), paging.wasted_slots),
        (
            f"one piece of\n{paging.max_model_len:,} each",
            list(paging.pieces),
            paging.wasted_slots_in_pieces,
        ),
    ]
    total = paging.blocks * paging.block_size
    for row, (_, stored, wasted) in enumerate(ways):
        start = 0
        for request in stored:
            axes.barh(row, paging.tokens[request], left=start, color=colours[request], height=0.55)
            start += paging.tokens[request]
        axes.barh(row, wasted, left=start, color="white", edgecolor=GREY, hatch="////", height=0.55)
        late = len(paging.tokens) - len(stored)
        text = f"{len(stored)} stored, {late} wait; {wasted:,} slots wasted"
        axes.text(0.015 * total, row - 0.33, text, va="bottom", fontsize=9)
    axes.axvline(total, color="black", linewidth=2)
    axes.set_yticks(range(len(ways)), [name for name, _, _ in ways])
    axes.set_ylim(1.6, -0.8)
    axes.set_xlim(0, total * 1.04)
    axes.set_xlabel("token slots (black line: all there are)")
    axes.locator_params(axis="x", nbins=5)


def _draw_schedule(axes: Axes, schedule: Schedule, last: int) -> None:
    colours = _colours([run.job.name for run in schedule.runs])
    axes.barh(
        range(schedule.slots),
        [schedule.steps] * schedule.slots,
        color=PALE,
        height=0.8,
        edgecolor="white",
    )
    for run in schedule.runs:
        colour = colours[run.job.name]
        length = run.end - run.start
        axes.barh(
            run.slot, length, left=run.start, color=colour, height=0.8, edgecolor="white", lw=1
        )
        axes.text(
            run.start + length / 2,
            run.slot,
            run.job.name,
            ha="center",
            va="center",
            color=_text_colour(colour),
            fontsize=9,
        )
        axes.plot(run.job.arrival, -0.62, marker="v", color=colour, markersize=6, clip_on=False)
    axes.set_yticks(range(schedule.slots), [f"slot {i + 1}" for i in range(schedule.slots)])
    axes.set_ylim(schedule.slots - 0.4, -0.75)
    axes.set_xlim(0, last)
    axes.set_title(
        f"{schedule.policy.capitalize()} batching: done after {schedule.steps} steps, "
        f"mean wait {schedule.mean_wait:.1f}, slots used {100 * schedule.utilization:.0f}% "
        "(triangles: arrivals)",
        loc="left",
    )
