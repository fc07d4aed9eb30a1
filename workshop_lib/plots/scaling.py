"""Figures of load, replicas and latency on one time axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import GREY, OKABE_ITO, PALE, label_ends, new_figure, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.production.autoscaling import Recovery, ScalingRun

_STEP = 0.15
"""Height of a line of text as a share of the low axes here."""

__all__ = ["plot_autoscaler", "plot_recovery", "plot_scaling", "plot_startup_timeline"]


def plot_scaling(run: ScalingRun, *, title: str = "") -> Figure:
    """Load, replicas and the latency of every request, one above the other.

    Args:
        run: What `run_load` returned.
        title: Drawn above.

    Raises:
        WorkshopError: Nothing was sampled or no request was answered.

    Example:
        >>> plot_scaling(run)  # doctest: +SKIP
    """
    samples, good = _drawable(run)
    figure = new_figure(8.4, 6.0)
    load, replicas, latency = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.4))
    end_s = _time_axis((load, replicas, latency), samples, good)
    _load(load, samples)
    _replicas(replicas, samples)
    _latency(latency, run.requests, end_s)
    for start_s in run.phases["start_s"].tolist()[1:]:
        for axes in (load, replicas, latency):
            axes.axvline(start_s, color=GREY, linewidth=0.8, linestyle=":")
    latency.set_xlabel("time since the load began, s")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def plot_recovery(recovery: Recovery) -> Figure:
    """Replicas and latency while a replica is killed and replaced; failed attempts marked.

    Args:
        recovery: What `run_recovery` returned.

    Raises:
        WorkshopError: Nothing was sampled or no request was answered.

    Example:
        >>> plot_recovery(recovery)  # doctest: +SKIP
    """
    run = recovery.run
    samples, good = _drawable(run)
    figure = new_figure(8.4, 4.6)
    replicas, latency = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
    end_s = _time_axis((replicas, latency), samples, good)
    _replicas(replicas, samples)
    _latency(latency, run.requests, end_s)
    for axes in (replicas, latency):
        axes.axvline(recovery.killed_s, color=OKABE_ITO["vermillion"], linewidth=1)
        if recovery.recovered_s is not None:
            axes.axvspan(recovery.killed_s, recovery.recovered_s, color=PALE, zorder=0)
    if recovery.recovered_s is None:
        replicas.set_title("Killed, and not back before the time was up", loc="left")
    else:
        took_s = recovery.recovered_s - recovery.killed_s
        replicas.set_title(
            f"A replica is killed; {took_s:.0f} s later there are as many as before", loc="left"
        )
    latency.set_xlabel("time since the load began, s")
    return figure


def plot_autoscaler(run: ScalingRun) -> Figure:
    """What the autoscaler counted and what it made of it, from its own metrics.

    Above, the requests that it counted (averaged over its look-back period) and those
    that users had in flight; below, that number divided by the target, and the replicas
    that Serve went for.

    Args:
        run: What `run_load` returned.

    Raises:
        WorkshopError: The autoscaler's metrics were never there, or there is no autoscaler.

    Example:
        >>> plot_autoscaler(run)  # doctest: +SKIP
    """
    samples = run.samples.dropna(subset=["counted_requests"])
    if samples.empty or run.target is None:
        raise WorkshopError(
            "Ray's metrics had none of the autoscaler's numbers during this run; "
            "is RAY_metrics_report_interval_ms set on the head?"
        )
    figure = new_figure(8.4, 4.4)
    counted, wanted = figure.subplots(2, 1, sharex=True)
    _time_axis((counted, wanted), run.samples, run.requests)
    counted.step(
        run.samples["time_s"], run.samples["users"], where="post", color=GREY, linewidth=1.2
    )
    counted.plot(samples["time_s"], samples["counted_requests"], color=OKABE_ITO["blue"])
    counted.set_ylim(0, max(run.samples["users"].max(), samples["counted_requests"].max()) * 1.15)
    counted.set_ylabel("requests")
    counted.set_title("What the autoscaler counts: an average, so it follows", loc="left")
    label_ends(counted, [
        (run.samples["users"].iloc[-1], "users", GREY),
        (samples["counted_requests"].iloc[-1], "counted", OKABE_ITO["blue"]),
    ], step=0.1)  # fmt: skip
    ratio = samples["counted_requests"] / run.target
    wanted.plot(samples["time_s"], ratio, color=OKABE_ITO["blue"])
    wanted.step(
        run.samples["time_s"], run.samples["target"], where="post", color=OKABE_ITO["vermillion"]
    )
    _whole_numbers(wanted, max(run.samples["target"].max(), ratio.max()))
    wanted.set_ylabel("replicas")
    wanted.set_title(
        f"Counted, divided by the target of {run.target:g}; rounded up, after the delay, "
        "it is Serve's",
        loc="left",
    )
    label_ends(wanted, [
        (ratio.iloc[-1], "counted / target", OKABE_ITO["blue"]),
        (run.samples["target"].iloc[-1], "Serve's target", OKABE_ITO["vermillion"]),
    ], step=0.1)  # fmt: skip
    wanted.set_xlabel("time since the load began, s")
    for axes in (counted, wanted):
        tidy(axes)
    return figure


def plot_startup_timeline(timeline: pd.DataFrame) -> Figure:
    """A cold start as bars, one step after the other.

    Args:
        timeline: What `startup_timeline` returned.

    Raises:
        WorkshopError: It has no step.

    Example:
        >>> import pandas as pd
        >>> steps = pd.DataFrame({"step": ["up"], "done_after_s": [2.0], "took_s": [2.0]})
        >>> figure = plot_startup_timeline(steps)
    """
    if timeline.empty:
        raise WorkshopError("the cluster told the time of no step; there is nothing to draw")
    figure = new_figure(8.4, 0.9 + 0.42 * len(timeline))
    axes = figure.subplots()
    total_s = float(timeline["done_after_s"].iloc[-1])
    for row, step in enumerate(timeline.to_dict("records")):
        axes.barh(
            row, step["took_s"], left=step["done_after_s"] - step["took_s"], height=0.6,
            color=OKABE_ITO["sky"],
        )  # fmt: skip
        axes.text(
            step["done_after_s"] + total_s * 0.01, row, f"{step['took_s']:.1f} s", va="center",
            fontsize=9,
        )  # fmt: skip
    axes.set_yticks(range(len(timeline)), list(timeline["step"]))
    axes.invert_yaxis()
    axes.set_xlim(0, total_s * 1.12)
    axes.set_xlabel("time since the manifests were applied, s")
    axes.set_title(f"Cold start: {total_s:.0f} s until the first answer", loc="left")
    tidy(axes)
    return figure


def _drawable(run: ScalingRun) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples and answered attempts, of which there must be some."""
    good = run.requests[run.requests["error"] == ""]
    if run.samples.empty or good.empty:
        raise WorkshopError("no request was answered or nothing was seen; there is nothing to draw")
    return run.samples, good


def _time_axis(axes: tuple[Axes, ...], samples: pd.DataFrame, requests: pd.DataFrame) -> float:
    ends_s = requests["start_s"] + requests["latency_ms"] / 1000
    end_s = max(float(samples["time_s"].max()), float(ends_s.max()) if len(requests) else 0.0)
    for each in axes:
        each.set_xlim(0, end_s)
    return end_s


def _whole_numbers(axes: Axes, largest: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(0, max(1.0, largest) * 1.2)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _load(axes: Axes, samples: pd.DataFrame) -> None:
    queued = samples.dropna(subset=["queued_requests"])
    axes.fill_between(samples["time_s"], samples["users"], step="post", color=PALE)
    axes.step(
        samples["time_s"], samples["in_flight"], where="post", color=OKABE_ITO["blue"],
        linewidth=1.2,
    )  # fmt: skip
    labels = [
        (float(samples["users"].iloc[-1]), "users", GREY),
        (float(samples["in_flight"].iloc[-1]), "in flight", OKABE_ITO["blue"]),
    ]
    if not queued.empty:
        axes.plot(
            queued["time_s"], queued["queued_requests"], color=OKABE_ITO["orange"], linewidth=1.2
        )
        labels.append((float(queued["queued_requests"].iloc[-1]), "queued", OKABE_ITO["orange"]))
    _whole_numbers(axes, float(samples["users"].max()))
    axes.set_ylabel("requests")
    axes.set_title("Load", loc="left")
    label_ends(axes, labels, step=_STEP)
    tidy(axes)


def _replicas(axes: Axes, samples: pd.DataFrame) -> None:
    axes.step(
        samples["time_s"], samples["target"], where="post", color=OKABE_ITO["vermillion"],
        linewidth=1.5, linestyle="--",
    )  # fmt: skip
    axes.step(
        samples["time_s"], samples["running"], where="post", color=OKABE_ITO["green"], linewidth=2
    )
    _whole_numbers(axes, float(samples[["target", "running"]].max().max()))
    axes.set_ylabel("replicas")
    axes.set_title("Replicas", loc="left")
    label_ends(
        axes,
        [
            (float(samples["target"].iloc[-1]), "target", OKABE_ITO["vermillion"]),
            (float(samples["running"].iloc[-1]), "running", OKABE_ITO["green"]),
        ],
        step=_STEP,
    )
    tidy(axes)


def _latency(axes: Axes, requests: pd.DataFrame, end_s: float) -> None:
    """Each attempt as a point where it ended; the median of each second as a line."""
    good = requests[requests["error"] == ""]
    bad = requests[requests["error"] != ""]
    ends_s = good["start_s"] + good["latency_ms"] / 1000
    axes.plot(ends_s, good["latency_ms"], ".", color=OKABE_ITO["sky"], markersize=4)
    p50 = good["latency_ms"].groupby(ends_s.astype(int)).median()
    axes.plot(p50.index + 0.5, p50, color=OKABE_ITO["blue"], linewidth=1.8)
    top = float(good["latency_ms"].max()) * 1.15
    if len(bad):
        at_s = bad["start_s"] + bad["latency_ms"] / 1000
        axes.plot(at_s, [top * 0.97] * len(bad), "x", color=OKABE_ITO["vermillion"], markersize=7)
        axes.annotate(
            f"{len(bad)} failed", (float(at_s.max()), top * 0.97), textcoords="offset points",
            xytext=(8, 0), va="center", fontsize=9, color=OKABE_ITO["vermillion"],
        )  # fmt: skip
    axes.set_ylim(0, top)
    axes.set_ylabel("ms")
    axes.set_title("Latency: each request, and the median of each second", loc="left")
    label_ends(axes, [(float(p50.iloc[-1]), "p50", OKABE_ITO["blue"])])
    tidy(axes)
