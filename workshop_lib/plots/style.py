"""How every figure of the workshop looks: size, colours, labels.

No global state of matplotlib is touched. Colours are the Okabe-Ito palette, which
colour-blind readers can tell apart ("Color Universal Design", 2008).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

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
GREY = "#8C8C8C"
PALE = "#E6E6E6"

_SERIES = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "purple")]
_ORDER = ("blue", "orange", "green", "purple", "sky", "vermillion", "yellow")
_MANY = [OKABE_ITO[name] for name in _ORDER]


@cache
def _figure_class() -> type[Figure]:
    """A figure that notebooks show by itself, without pyplot's global state."""
    from matplotlib.figure import Figure

    class WorkshopFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100)
            return buffer.getvalue()

    return WorkshopFigure


def new_figure(width_in: float = 8.0, height_in: float = 4.0, title: str = "") -> Figure:
    """An empty figure at a notebook's width.

    Args:
        width_in: Width, inches.
        height_in: Height, inches.
        title: Drawn above, on the left.

    Example:
        >>> axes = new_figure(8, 3).subplots()
    """
    figure = _figure_class()(figsize=(width_in, height_in), layout="constrained")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def series_colours(count: int) -> list[str]:
    """Colours for that many lines; they repeat after four."""
    return [_SERIES[i % len(_SERIES)] for i in range(count)]


def request_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each request; they repeat after seven."""
    return {name: _MANY[i % len(_MANY)] for i, name in enumerate(names)}


def text_on(colour: str) -> str:
    """The colour of text that is readable on this colour."""
    return "white" if colour in (BLUE, GREEN, VERMILLION) else "black"


def finish(
    axes: Axes, title: str = "", *, x: str = "", y: str = "", whole: str = "", **limits: Any
) -> None:
    """Set what each panel has: title and labels, no upper and right side, text sizes.

    Args:
        axes: The panel, drawn.
        title: Above it, on the left.
        x: Label of the horizontal axis, with its unit.
        y: Label of the vertical axis, with its unit.
        whole: The axes that count whole things: "x", "y" or "xy".
        limits: `xlim`, `ylim` and what else `Axes.set` takes.
    """
    from matplotlib.ticker import MaxNLocator

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
    common: dict[str, Any] = {
        "va": "center",
        "fontsize": 9,
        "annotation_clip": False,
        "color": colour,
    }
    axes.annotate(text, (x, y), xytext=shift, textcoords="offset points", **common | style)


def stepped(axes: Axes, x: Any, y: Any, colour: str, *, fill: bool = False, **style: Any) -> None:
    """A line that keeps its value until the next point, pale below if wanted."""
    if fill:
        axes.fill_between(x, y, step="post", color=PALE)
    axes.step(x, y, where="post", color=colour, **style)


def label_ends(
    axes: Axes, labels: Sequence[tuple[float, str, str]], *, step: float = 0.075
) -> None:
    """Write the names of lines at their right ends, moved apart where they would overlap.

    Args:
        axes: The axes, with their limits and scale already set.
        labels: For each line the last y value, the name, and the colour.
        step: Height of a line of text as a share of the axes; more where these are low.
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
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
