"""The simulated engine beside the running one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import OKABE_ITO, PALE, new_figure, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.serving.benchmark import EngineObservation
    from workshop_lib.serving.simulators import EngineRun

__all__ = ["plot_engine"]

_ORDER = ("blue", "orange", "green", "purple", "sky", "vermillion", "yellow")


def plot_engine(predicted: EngineRun, observed: EngineObservation) -> Figure:
    """Requests, running and waiting, and blocks in use: simulated left, observed right.

    The left column counts steps and the right one seconds: how long a step takes the
    simulator does not know.

    Args:
        predicted: What `simulate_engine` found.
        observed: What `observe_engine` saw of the same requests.

    Raises:
        WorkshopError: They are of different requests.

    Example:
        >>> plot_engine(simulate_engine(jobs, ...), observe_engine(url, jobs))  # doctest: +SKIP
    """
    import pandas as pd
    from matplotlib.ticker import MaxNLocator

    names = [run.job.name for run in predicted.schedule.runs]
    if names != observed.requests["request"].tolist():
        raise WorkshopError(
            f"the simulator had the requests {names}, the server "
            f"{observed.requests['request'].tolist()}; give both the same"
        )
    figure = new_figure(9, 3.4 + 0.24 * len(names))
    axes = figure.subplots(
        3, 2, sharex="col", sharey="row", height_ratios=[1 + 0.28 * len(names), 1.4, 1.4]
    )
    runs = [(run.job.arrival, run.start, run.end) for run in predicted.schedule.runs]
    seen = observed.requests.to_dict("records")
    _draw_requests(axes[0, 0], names, runs)
    _draw_requests(
        axes[0, 1], names, [(row["sent_s"], row["first_s"], row["end_s"]) for row in seen]
    )
    # The last step ends where the gauges fall to nothing, as the last sample shows.
    steps = predicted.gauges
    last = steps.iloc[-1:].assign(step=steps["step"].iloc[-1] + 1, running=0, waiting=0, blocks=0)
    most = {
        name: float(max(steps[name].max(), observed.samples[name].max()))
        for name in ("running", "blocks")
    }
    for column, times, gauges in (
        (0, "step", pd.concat([steps, last])),
        (1, "time_s", observed.samples),
    ):
        _draw_numbers(axes[1, column], gauges, times)
        _draw_blocks(axes[2, column], gauges, times, observed.block_size)
    for row, name in ((1, "running"), (2, "blocks")):
        axes[row, 0].set_ylim(-0.05 * most[name], 1.45 * most[name] + 0.5)  # room for words
        axes[row, 0].yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
    axes[0, 0].set_title("Simulator", loc="left")
    axes[0, 1].set_title("The running vLLM (pale: until the first token)", loc="left")
    axes[1, 0].set_ylabel("requests")
    axes[2, 0].set_ylabel("blocks in use")
    axes[2, 0].set_xlabel("step of the engine")
    axes[2, 1].set_xlabel("time since the first request, s")
    for each in axes.flat:
        each.set_xlim(left=0)
        tidy(each)
    return figure


def _draw_requests(
    axes: Axes, names: Sequence[str], spans: Sequence[tuple[float, float, float]]
) -> None:
    """A bar for each request: from when it came, over its first token, to its end."""
    for row, (came, began, end) in enumerate(spans):
        colour = OKABE_ITO[_ORDER[row % len(_ORDER)]]
        axes.barh(row, end - came, left=came, height=0.7, color=colour, alpha=0.3)
        axes.barh(row, end - began, left=began, height=0.7, color=colour)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def _draw_numbers(axes: Axes, gauges: pd.DataFrame, times: str) -> None:
    """How many requests run, and how many wait."""
    axes.fill_between(gauges[times], gauges["running"], step="post", color=PALE)
    axes.step(gauges[times], gauges["running"], where="post", color=OKABE_ITO["blue"])
    axes.step(
        gauges[times], gauges["waiting"], where="post", color=OKABE_ITO["vermillion"], ls="--"
    )
    for x, name, colour in ((0.02, "running", "blue"), (0.3, "waiting (dashed)", "vermillion")):
        axes.text(
            x, 0.97, name, transform=axes.transAxes, va="top", color=OKABE_ITO[colour], fontsize=9
        )


def _draw_blocks(axes: Axes, gauges: pd.DataFrame, times: str, block_size: int) -> None:
    axes.fill_between(gauges[times], gauges["blocks"], step="post", color=PALE)
    axes.step(gauges[times], gauges["blocks"], where="post", color=OKABE_ITO["green"])
    most = gauges["blocks"].max()
    axes.text(
        0.02, 0.97, f"at most {most:.0f}, of {block_size} tokens each",
        transform=axes.transAxes, va="top", color="#4D4D4D", fontsize=9,
    )  # fmt: skip
