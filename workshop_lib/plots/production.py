"""Figures of lesson 04: load, replicas and latency on one time axis, a server, a cold start."""

from __future__ import annotations

from textwrap import fill
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
    SKY,
    VERMILLION,
    finish,
    label_ends,
    new_figure,
    row_labels,
    stepped,
    write,
)

if TYPE_CHECKING:
    from workshop_lib.production.autoscaling import Recovery, ScalingRun

_SINCE = "time since the load began, s"
_LOW = 0.15
"""Height of a line of text as a share of the low panels here."""


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
    _check_drawable(run)
    figure = new_figure(8.4, 6.0, title)
    panels = load, replicas, latency = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.4))
    samples = run.samples
    queued = samples["queued_requests"].dropna()
    load.fill_between(samples["time_s"], samples["users"], step="post", color=PALE)
    stepped(load, samples["time_s"], samples["in_flight"], BLUE, linewidth=1.2)
    load.plot(samples["time_s"][queued.index], queued, color=ORANGE)
    finish(load, "Load", y="requests", whole="y", ylim=(0, 1.2 * max(1, samples["users"].max())))
    ends = [(samples["users"].iloc[-1], "users", GREY)]
    ends += [(samples["in_flight"].iloc[-1], "in flight", BLUE)]
    ends += [(last, "queued", ORANGE) for last in queued.tail(1)]
    label_ends(load, ends, step=_LOW)
    _draw_replicas(replicas, samples, "Replicas")
    _draw_latency(latency, run)
    for start_s in run.phases["start_s"].tolist()[1:]:
        for axes in panels:
            axes.axvline(start_s, color=GREY, linewidth=0.8, linestyle=":")
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
    _check_drawable(recovery.run)
    figure = new_figure(8.4, 4.6)
    panels = replicas, latency = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
    title = "Killed, and not back before the time was up"
    if recovery.recovered_s is not None:
        took_s = recovery.recovered_s - recovery.killed_s
        title = f"A replica is killed; {took_s:.0f} s later there are as many as before"
    _draw_replicas(replicas, recovery.run.samples, title)
    _draw_latency(latency, recovery.run)
    for axes in panels:
        axes.axvline(recovery.killed_s, color=VERMILLION, linewidth=1)
        if recovery.recovered_s is not None:
            axes.axvspan(recovery.killed_s, recovery.recovered_s, color=PALE, zorder=0)
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
    samples, seen = run.samples, run.samples.dropna(subset=["counted_requests"])
    if seen.empty or run.target is None:
        raise WorkshopError(
            "Ray's metrics had none of the autoscaler's numbers during this run; "
            "is RAY_metrics_report_interval_ms set on the head?"
        )
    figure = new_figure(8.4, 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    count, users, target = seen["counted_requests"], samples["users"], samples["target"]
    stepped(above, samples["time_s"], users, GREY, linewidth=1.2)
    above.plot(seen["time_s"], count, color=BLUE)
    title = "What the autoscaler counts: an average, so it follows"
    finish(above, title, y="requests", ylim=(0, 1.15 * max(users.max(), count.max())))
    ends = [(users.iloc[-1], "users", GREY), (count.iloc[-1], "counted", BLUE)]
    label_ends(above, ends, step=0.1)
    ratio = count / run.target
    below.plot(seen["time_s"], ratio, color=BLUE)
    stepped(below, samples["time_s"], target, VERMILLION)
    title = f"Counted, divided by the target of {run.target:g}; Serve rounds up, after the delay"
    limits = {"ylim": (0, 1.2 * max(1.0, target.max(), ratio.max())), "xlim": (0, _end_s(run))}
    finish(below, title, x=_SINCE, y="replicas", whole="y", **limits)
    ends = [(ratio.iloc[-1], "counted / target", BLUE)]
    label_ends(below, [*ends, (target.iloc[-1], "Serve's target", VERMILLION)], step=0.1)
    return figure


def plot_startup_timeline(
    timeline: pd.DataFrame, *, done: str = "until the first answer", since: str = "apply"
) -> Figure:
    """A cold start as bars, one step after the other.

    Args:
        timeline: What `startup_timeline` or `recorded_start` returned.
        done: What the last step ends with.
        since: From when the seconds count.

    Raises:
        WorkshopError: It has no step.

    Example:
        >>> steps = pd.DataFrame({"step": ["up"], "done_after_s": [2.0], "took_s": [2.0]})
        >>> figure = plot_startup_timeline(steps)
    """
    if timeline.empty:
        raise WorkshopError("the cluster told the time of no step; there is nothing to draw")
    figure = new_figure(8.4, 0.9 + 0.42 * len(timeline))
    axes = figure.subplots()
    total_s = float(timeline["done_after_s"].iloc[-1])
    for row, step in enumerate(timeline.to_dict("records")):
        done_s, took_s = step["done_after_s"], step["took_s"]
        axes.barh(row, took_s, left=done_s - took_s, height=0.6, color=SKY)
        write(axes, done_s + 0.01 * total_s, row, f"{took_s:.1f} s")
    row_labels(axes, list(timeline["step"]))
    title = f"Cold start: {total_s:.0f} s {done}"
    finish(axes, title, x=f"time since {since}, s", xlim=(0, 1.12 * total_s))
    return figure


def plot_serving(history: pd.DataFrame) -> Figure:
    """Requests running and waiting, how full the server is, and its latency, over time.

    Args:
        history: What `watch_serving` returned.

    Example:
        >>> plot_serving(watch_serving(cluster.get("vllm"), seconds=20))   # doctest: +SKIP
    """
    from workshop_lib.production.monitoring.serving import SOURCES

    source = SOURCES[history.attrs.get("source", "vllm")]
    figure = new_figure(8, 5.6)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[1.2, 1, 1.2])
    requests, level, latency = panels
    times = history["time_s"]
    stepped(requests, times, history["running"], BLUE, fill=True, label="running")
    stepped(requests, times, history["waiting"], VERMILLION, ls="--", label="waiting")
    stepped(level, times, history["level"], GREEN, fill=True)
    for name, style, label in (("p50", "-", "half are faster"), ("p95", ":", "95% are faster")):
        line = {"ls": style, "marker": ".", "ms": 4, "color": PURPLE, "label": label}
        latency.plot(times, history[f"latency_{name}_s"], **line)
    for axes in (requests, latency):
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axes, least in zip(panels, (1.0, 1.0, 0.0), strict=True):
        finish(axes, ylim=(0, 1.1 * max(least, float(axes.dataLim.y1)) or None), xlim=(0, None))
    finish(requests, y="requests", whole="y")
    finish(level, y=fill(source.level_label, 16), whole="" if source.level_is_share else "y")
    finish(latency, x="time, s", y=fill(f"{source.latency_label}, s", 18))
    return figure


def _check_drawable(run: ScalingRun) -> None:
    if run.samples.empty or not (run.requests["error"] == "").any():
        raise WorkshopError("no request was answered or nothing was seen; there is nothing to draw")


def _end_s(run: ScalingRun) -> float:
    ends_s = run.requests["start_s"] + run.requests["latency_ms"] / 1000
    return float(max(run.samples["time_s"].max(), *ends_s))


def _draw_replicas(axes: Axes, samples: pd.DataFrame, title: str) -> None:
    stepped(axes, samples["time_s"], samples["target"], VERMILLION, linewidth=1.5, ls="--")
    stepped(axes, samples["time_s"], samples["running"], GREEN, linewidth=2)
    top = 1.2 * max(1.0, float(samples[["target", "running"]].max().max()))
    finish(axes, title, y="replicas", whole="y", ylim=(0, top))
    ends = {"target": VERMILLION, "running": GREEN}
    label_ends(axes, [(float(samples[n].iloc[-1]), n, c) for n, c in ends.items()], step=_LOW)


def _draw_latency(axes: Axes, run: ScalingRun) -> None:
    """Each attempt as a point where it ended; the median of each second as a line."""
    requests = run.requests.assign(end_s=run.requests["start_s"] + run.requests["latency_ms"] / 1e3)
    good, bad = requests[requests["error"] == ""], requests[requests["error"] != ""]
    axes.plot(good["end_s"], good["latency_ms"], ".", color=SKY, markersize=4)
    p50 = good["latency_ms"].groupby(good["end_s"].astype(int)).median()
    axes.plot(p50.index + 0.5, p50, color=BLUE, linewidth=1.8)
    top = float(good["latency_ms"].max()) * 1.15
    if len(bad):
        at = [top * 0.97] * len(bad)
        axes.plot(bad["end_s"], at, "x", color=VERMILLION, markersize=7)
        write(axes, float(bad["end_s"].max()), at[0], f"{len(bad)} failed", VERMILLION, (8, 0))
    title = "Latency: each request, and the median of each second"
    finish(axes, title, x=_SINCE, y="ms", ylim=(0, top), xlim=(0, _end_s(run)))
    label_ends(axes, [(float(p50.iloc[-1]), "p50", BLUE)])
