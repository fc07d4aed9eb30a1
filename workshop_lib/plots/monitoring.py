"""A server over time, from its own metrics."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from workshop_lib.plots.style import OKABE_ITO, PALE, new_figure, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["plot_serving"]


def plot_serving(history: pd.DataFrame, *, title: str = "") -> Figure:
    """Requests running and waiting, how full the server is, and its latency, over time.

    Args:
        history: What `watch_serving` returned.
        title: What the figure is of.

    Example:
        >>> plot_serving(watch_serving(cluster.get("vllm"), seconds=20))   # doctest: +SKIP
    """
    from matplotlib.ticker import MaxNLocator

    from workshop_lib.production.monitoring.serving import SOURCES

    source = SOURCES[history.attrs.get("source", "vllm")]
    figure = new_figure(8, 5.6)
    requests, level, latency = figure.subplots(3, 1, sharex=True, height_ratios=[1.2, 1, 1.2])
    times = history["time_s"]
    requests.fill_between(times, history["running"], step="post", color=PALE)
    requests.step(times, history["running"], where="post", color=OKABE_ITO["blue"],
        label="running",
    )  # fmt: skip
    requests.step(
        times, history["waiting"], where="post", ls="--", color=OKABE_ITO["vermillion"],
        label="waiting",
    )  # fmt: skip
    requests.set_ylabel("requests")
    requests.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    level.fill_between(times, history["level"], step="post", color=PALE)
    level.step(times, history["level"], where="post", color=OKABE_ITO["green"])
    level.set_ylabel(fill(source.level_label, 16))
    if not source.level_is_share:
        level.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    for name, style, label in (("p50", "-", "half are faster"), ("p95", ":", "95% are faster")):
        latency.plot(
            times, history[f"latency_{name}_s"], ls=style, marker=".", ms=4,
            color=OKABE_ITO["purple"], label=label,
        )  # fmt: skip
    latency.set_ylabel(fill(f"{source.latency_label}, s", 18))
    latency.set_xlabel("time, s")
    if title:
        requests.set_title(title, loc="left")
    for axes in (requests, latency):
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axes in (requests, level, latency):
        least = 0.0 if axes is latency else 1.0
        axes.set_ylim(0, 1.1 * max(least, float(axes.dataLim.y1)) or None)
        axes.set_xlim(left=0)
        tidy(axes)
    return figure
