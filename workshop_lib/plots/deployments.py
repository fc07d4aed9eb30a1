"""Two deployments of one model under the same load."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import new_figure, plain_log_ticks, series_colours, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.serving.benchmark import BenchmarkResult

__all__ = ["plot_deployments"]

_TITLES = {"ttft": "Time to first token", "itl": "Between tokens"}


def plot_deployments(
    results: Mapping[str, BenchmarkResult], trips_ms: Mapping[str, Sequence[float]]
) -> Figure:
    """The way to the engine alone, and median latencies under load with their 95% intervals.

    Args:
        results: Benchmarks by the deployment's name. Only levels that all have are drawn.
        trips_ms: `round_trips_ms` of each, by the same names.

    Raises:
        WorkshopError: No benchmark, other names, or no level in common.

    Example:
        >>> plot_deployments({"vLLM": sweep}, {"vLLM": trips})  # doctest: +SKIP
    """
    if not results or set(results) != set(trips_ms):
        raise WorkshopError(f"round trips of {list(trips_ms)} do not fit {list(results)}")
    tables = {name: result.percentiles() for name, result in results.items()}
    columns = {result.load_column for result in results.values()}
    load = columns.pop()
    levels = set.intersection(*(set(table[load]) for table in tables.values()))
    if columns or not levels:
        raise WorkshopError(f"{' and '.join(results)} have no load level in common")
    colours = dict(zip(results, series_colours(len(results)), strict=True))
    figure = new_figure(9, 3.4)
    trips, *panels = figure.subplots(1, 3)
    _draw_trips(trips, trips_ms, colours)
    for axes, (latency, title) in zip(panels, _TITLES.items(), strict=True):
        for number, (name, table) in enumerate(tables.items()):
            rows = table[(table["latency"] == latency) & (table["percentile"] == 50)]
            rows = rows[rows[load].isin(levels)].sort_values(load)
            _draw_medians(axes, rows, colours[name], number - (len(tables) - 1) / 2)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in sorted(levels)])
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.margins(y=0.12)  # no point lies on the edge
        axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left")
        axes.set_xlabel("requests in flight" if load == "concurrency" else "requests a second")
        axes.set_ylabel("median, ms")
        tidy(axes)
    return figure


def _draw_trips(
    axes: Axes, trips_ms: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> None:
    """A dot for each round trip; the median as a line with its number."""
    for row, (name, times) in enumerate(trips_ms.items()):
        middle = statistics.median(times)
        axes.plot(times, [row] * len(times), "o", color=colours[name], alpha=0.25, markersize=5)
        axes.plot([middle, middle], [row - 0.18, row + 0.18], color=colours[name], linewidth=2)
        # In the axes' own coordinates sideways: a median near the edge is not cut off.
        axes.text(
            0.03, row - 0.24, f"{name}: {middle:.1f} ms",
            transform=axes.get_yaxis_transform(), color=colours[name], va="bottom",
        )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(len(trips_ms) - 0.6, -0.7)
    axes.set_xscale("log")  # a stray slow one must not hide the others
    plain_log_ticks(axes.xaxis)
    axes.set_title("The way alone (no engine)", loc="left")
    axes.set_xlabel("round trip, ms (line: median)")
    tidy(axes)
    axes.spines["left"].set_visible(False)


def _draw_medians(axes: Axes, rows: pd.DataFrame, colour: str, side: float) -> None:
    """Medians as points, their intervals as lines as far as they are known."""
    places = [index + 0.14 * side for index in range(len(rows))]
    middle = rows["ms"].astype(float)
    low = rows["low_ms"].astype(float).fillna(middle)
    high = rows["high_ms"].astype(float).fillna(middle)
    axes.errorbar(
        places, middle, yerr=[middle - low, high - middle], fmt="o", color=colour, capsize=3
    )
