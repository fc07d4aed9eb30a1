"""How every figure of the workshop looks: size, colours, labels.

No global state of matplotlib is touched. Colours are the Okabe-Ito palette,
which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "GREY",
    "OKABE_ITO",
    "PALE",
    "label_ends",
    "new_figure",
    "plain_log_ticks",
    "series_colours",
    "tidy",
]

# Okabe and Ito, "Color Universal Design" (2008).
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
GREY = "#8C8C8C"
PALE = "#E6E6E6"

# Height of a line of text as a share of the axes.
_LABEL_STEP = 0.075

_SERIES = [OKABE_ITO[name] for name in ("blue", "vermillion", "green", "purple")]


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


def new_figure(width_in: float = 8.0, height_in: float = 4.0) -> Figure:
    """An empty figure at a notebook's width, with the workshop's settings.

    Args:
        width_in: Width, inches.
        height_in: Height, inches.

    Example:
        >>> figure = new_figure(8, 3)
        >>> axes = figure.subplots()
    """
    return _figure_class()(figsize=(width_in, height_in), layout="constrained")


def series_colours(count: int) -> list[str]:
    """Colours for that many lines; they repeat after four.

    Args:
        count: Number of lines.

    Example:
        >>> series_colours(2)
        ['#0072B2', '#D55E00']
    """
    return [_SERIES[i % len(_SERIES)] for i in range(count)]


def tidy(axes: Axes) -> None:
    """Take away the frame's upper and right side and set the text sizes.

    Args:
        axes: What to tidy.

    Example:
        >>> tidy(new_figure().subplots())
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)
    axes.tick_params(labelsize=9)


def label_ends(
    axes: Axes, labels: list[tuple[float, str, str]], *, step: float = _LABEL_STEP
) -> None:
    """Write the names of lines at their right ends, moved apart where they would overlap.

    Args:
        axes: The axes, with their limits and scale already set.
        labels: For each line the last y value, the name, and the colour.
        step: Height of a line of text as a share of the axes; more where these are low.

    Example:
        >>> axes = new_figure().subplots()
        >>> label_ends(axes, [(0.5, "p50", "#000000"), (0.51, "p90", "#000000")])
    """
    transform = axes.transScale + axes.transLimits
    ends = sorted((float(transform.transform((1.0, y))[1]), text, c) for y, text, c in labels)
    heights: list[float] = []
    for height, _, _ in ends:
        heights.append(max(height, heights[-1] + step) if heights else height)
    # Labels that were pushed over the upper edge go down again, from the top.
    limit = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], limit)
        limit = heights[i] - step
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        axes.annotate(
            text, (1.02, height), xycoords="axes fraction", color=colour, va="center", fontsize=9
        )


def plain_log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10, 20, ..., written out.

    Args:
        axis: One with a logarithmic scale.

    Example:
        >>> plain_log_ticks(new_figure().subplots().xaxis)
    """
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
