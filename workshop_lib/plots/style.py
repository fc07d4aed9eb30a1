"""How every figure of the workshop looks: size, colours, labels; without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

# Colour-blind readers can tell these apart ("Color Universal Design", Okabe and Ito, 2008).
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
BLUE, VERMILLION, GREEN = (OKABE_ITO[name] for name in ("blue", "vermillion", "green"))
ORANGE, PURPLE, SKY = (OKABE_ITO[name] for name in ("orange", "purple", "sky"))
GREY, PALE = "#8C8C8C", "#E6E6E6"
SERIES = [BLUE, VERMILLION, GREEN, PURPLE]
"""Colours of lines and of parts, in this order."""

_REQUESTS = [BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, OKABE_ITO["yellow"]]


class WorkshopFigure(Figure):
    """A figure that notebooks show by itself."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def new_figure(width_in: float = 8.0, height_in: float = 4.0, title: str = "") -> Figure:
    """An empty figure at a notebook's width, its title above, on the left."""
    figure = WorkshopFigure(figsize=(width_in, height_in), layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def request_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each request; they repeat after seven."""
    return {name: _REQUESTS[i % len(_REQUESTS)] for i, name in enumerate(names)}


def finish(
    axes: Axes, title: str = "", *, x: str = "", y: str = "", whole: str = "", **limits: Any
) -> None:
    """Set a drawn panel's title, labels with units and limits; `whole` axes count whole things."""
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    labels = {"xlabel": x, "ylabel": y}
    axes.set(**{name: text for name, text in labels.items() if text}, **limits)
    for name in whole:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_locator(MaxNLocator(integer=True, nbins=7 if name == "x" else 5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def row_labels(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows of a figure of horizontal bars, the first one above."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.6)


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    colour: str = "black",
    shift: tuple[float, float] = (0, 0),
    **style: Any,
) -> None:
    """Write text at a point, moved by `shift` points; it may lie outside the panel."""
    style = {"va": "center", "fontsize": 9, "xytext": shift, "annotation_clip": False, **style}
    axes.annotate(text, (x, y), textcoords="offset points", color=colour, **style)


def stepped(axes: Axes, x: Any, y: Any, colour: str, *, fill: bool = False, **style: Any) -> None:
    """A line that keeps its value until the next point, pale below if wanted."""
    if fill:
        axes.fill_between(x, y, step="post", color=PALE)
    axes.step(x, y, where="post", color=colour, **style)


def label_ends(
    axes: Axes, labels: Sequence[tuple[float, str, str]], *, step: float = 0.075
) -> None:
    """Write names (last y, text, colour) at the right ends of lines, moved apart by `step`.

    `step` is the height of a line of text as a share of the axes, whose limits and scale are set.
    """
    transform = axes.transScale + axes.transLimits
    ends = sorted((float(transform.transform((1.0, y))[1]), text, c) for y, text, c in labels)
    heights: list[float] = []
    for height, _, _ in ends:
        heights.append(max(height, heights[-1] + step) if heights else height)
    limit = 1.0  # labels that were pushed over the upper edge go down again, from the top
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - step
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        write(axes, 1.02, height, text, colour, xycoords="axes fraction")


def plain_log_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, 20, ..., written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
