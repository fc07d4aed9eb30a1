"""Figures of latency and throughput, measured and recorded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import (
    GREY,
    OKABE_ITO,
    PALE,
    label_ends,
    new_figure,
    plain_log_ticks,
    series_colours,
    tidy,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.serving import TextDelta

__all__ = [
    "load_recorded_levels",
    "plot_latencies",
    "plot_load_sweep",
    "plot_recorded",
    "plot_token_timeline",
]


# How the tables of `BenchmarkResult` name the load, and what figures call it.
_LOADS = {"concurrency": "requests in flight", "rate_per_s": "requests a second, offered"}
_LOAD_SHORT = {"concurrency": "in flight", "rate_per_s": "a second"}


def plot_load_sweep(levels: pd.DataFrame | dict[str, pd.DataFrame], *, title: str = "") -> Figure:
    """Throughput, time to first token and inter-token latency against the load.

    Args:
        levels: `BenchmarkResult.levels`, or several by name to compare. Percentiles
            that a table lacks are left out.
        title: Drawn above.

    Raises:
        WorkshopError: No level to draw.

    Example:
        >>> figure = plot_load_sweep(load_recorded_levels()["TP=1"])
    """
    series = levels if isinstance(levels, dict) else {"": levels}
    if not series or any(frame.empty for frame in series.values()):
        raise WorkshopError("the sweep has no finished level to draw")
    figure = new_figure(9, 3.6)
    throughput, ttft, itl = figure.subplots(1, 3)
    _plot_throughput(throughput, series)
    _plot_percentiles(ttft, series, "ttft")
    _plot_percentiles(itl, series, "itl")
    throughput.set_title("Throughput", loc="left")
    ttft.set_title("Time to first token", loc="left")
    itl.set_title("Between tokens", loc="left")
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    return figure


def plot_latencies(requests: pd.DataFrame) -> Figure:
    """How the latencies of a benchmark are spread, one line a load level.

    A point (x, y) says: y percent of the requests (or gaps) took at most x ms.

    Args:
        requests: `BenchmarkResult.requests`.

    Raises:
        WorkshopError: No request was answered.

    Example:
        >>> plot_latencies(result.requests)  # doctest: +SKIP
    """
    good = requests[requests.error == ""]
    if good.empty:
        raise WorkshopError("no request was answered, so there are no latencies to draw")
    figure = new_figure(8, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    load = _load_column([good])
    levels = sorted(good[load].unique())
    for colour, level in zip(series_colours(len(levels)), levels, strict=True):
        rows = good[good[load] == level]
        _ecdf(left, rows.ttft_ms.tolist(), colour, f"{level:g}")
        _ecdf(right, [gap for gaps in rows.itl_ms for gap in gaps], colour, f"{level:g}")
    left.set_title("Time to first token", loc="left")
    right.set_title("Between tokens", loc="left")
    left.set_ylabel("requests or gaps, %")
    for axes in (left, right):
        axes.set_xlabel("ms")
        axes.set_ylim(0, 101)
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis)
        tidy(axes)
    right.legend(title=_LOAD_SHORT[load], frameon=False, loc="lower right")
    return figure


def plot_token_timeline(deltas: Sequence[TextDelta]) -> Figure:
    """When each piece of one streamed answer arrived.

    Args:
        deltas: The pieces of a `ChatStream`.

    Raises:
        WorkshopError: There are none.

    Example:
        >>> from workshop_lib.serving import TextDelta
        >>> figure = plot_token_timeline([TextDelta("a", 90.0), TextDelta(" b", 120.0)])
    """
    from matplotlib.ticker import MaxNLocator

    if not deltas:
        raise WorkshopError("the stream has no text; iterate it before drawing it")
    times_ms = [delta.at_ms for delta in deltas]
    counts = range(1, len(times_ms) + 1)
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    axes.axvspan(0, times_ms[0], color=PALE)
    axes.step([0, *times_ms], [0, *counts], where="post", color=GREY, linewidth=1)
    axes.plot(times_ms, list(counts), "o", color=OKABE_ITO["blue"], markersize=4)
    axes.set_xlim(0, times_ms[-1] * 1.05)
    axes.set_ylim(0, len(times_ms) * 1.15 + 1)
    height = len(times_ms) * 1.05 + 1
    axes.text(times_ms[-1] * 0.01, height, "no text yet", va="top", color="#4D4D4D")
    if len(times_ms) > 1:
        gap_ms = (times_ms[-1] - times_ms[0]) / (len(times_ms) - 1)
        axes.set_title(
            f"{len(times_ms)} pieces of text: the first after {times_ms[0]:.0f} ms, "
            f"then one every {gap_ms:.0f} ms",
            loc="left",
        )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("time since the request was sent, ms")
    axes.set_ylabel("pieces received")
    tidy(axes)
    return figure


def load_recorded_levels(
    path: str | Path | None = None,
) -> dict[str, pd.DataFrame]:
    """Recorded load levels by configuration, with the columns of `BenchmarkResult.levels`.

    Args:
        path: One JSON object a line; by default tensor parallelism over one and two
            GPUs (data/recorded/h200). Beside it lies the run with and without CUDA graphs.

    Raises:
        WorkshopError: The file cannot be read or holds something else.

    Example:
        >>> sorted(load_recorded_levels())
        ['TP=1', 'TP=2']
    """
    import pandas as pd

    columns = {"conc": "concurrency", "n": "requests", "req_s": "requests_per_s"}
    columns["out_tok_s"] = "output_tokens_per_s"
    path = path or data_path("recorded/h200/vllm-0.25.1-mistral7b-dummy.jsonl")
    names = {"tp1": "TP=1", "tp2": "TP=2", "graphs": "graphs", "eager": "eager"}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        frame = pd.DataFrame([json.loads(line) for line in lines if line.strip()])
        groups = frame.rename(columns=columns).groupby("tag", sort=False)
    except OSError as exc:
        raise WorkshopError(f"the recording {path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError) as exc:
        raise WorkshopError(f"{path} is not a recording of load levels: {exc}") from exc
    return {
        names.get(str(tag), str(tag)): rows.drop(columns="tag").reset_index(drop=True)
        for tag, rows in groups
    }


def plot_recorded(
    path: str | Path | None = None,
) -> Figure:
    """The recorded H200 measurements, by default TP=1 against TP=2.

    Args:
        path: As for `load_recorded_levels`.

    Raises:
        WorkshopError: The file cannot be read.

    Example:
        >>> figure = plot_recorded()
    """
    title = "Recorded: H200, vLLM 0.25.1, a 7B shape, 512 tokens in, 128 out"
    return plot_load_sweep(load_recorded_levels(path), title=title)


def _plot_throughput(axes: Axes, series: dict[str, pd.DataFrame]) -> None:
    labels = []
    for colour, (name, frame) in zip(series_colours(len(series)), series.items(), strict=True):
        load = frame[_load_column(series.values())]
        axes.plot(load, frame.output_tokens_per_s, "o-", color=colour)
        labels.append((float(frame.output_tokens_per_s.iloc[-1]), name, colour))
        if "errors" in frame:
            _name_failures(axes, load, frame)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("output tokens a second")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _load_axis(axes, series)
    label_ends(axes, labels)


def _name_failures(axes: Axes, load: pd.Series, frame: pd.DataFrame) -> None:
    """Write what failed beside each level, timeouts apart."""
    timeouts = frame["timeouts"] if "timeouts" in frame else 0 * frame.errors
    if (frame.errors + timeouts).any():
        axes.margins(x=0.15, y=0.1)  # room for the words beside the outermost points
    for level, tokens, errors, late in zip(
        load, frame.output_tokens_per_s, frame.errors, timeouts, strict=True
    ):
        words = [f"{errors} failed"] * bool(errors) + [f"{late} timed out"] * bool(late)
        if not words:
            continue
        axes.annotate(
            "\n".join(words),
            (level, tokens),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            color=OKABE_ITO["vermillion"],
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _plot_percentiles(axes: Axes, series: dict[str, pd.DataFrame], latency: str) -> None:
    styles = {50: "-", 90: "--", 99: ":"}
    labels = []
    seen: list[float] = []
    for colour, (name, frame) in zip(series_colours(len(series)), series.items(), strict=True):
        for percent, style in styles.items():
            column = f"{latency}_p{percent}_ms"
            if column not in frame or frame[column].isna().all():
                continue
            values = frame[column].astype(float)
            load = frame[_load_column(series.values())]
            axes.plot(load, values, "o" + style, color=colour, markersize=4)
            labels.append((float(values.dropna().iloc[-1]), f"{name} p{percent}".strip(), colour))
            seen.extend(values.dropna())
    if seen and 0 < 20 * min(seen) < max(seen):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("ms")
    _load_axis(axes, series)
    label_ends(axes, labels)


def _load_column(frames: Iterable[pd.DataFrame]) -> str:
    """The one way in which these tables name their load."""
    names = {name for frame in frames for name in _LOADS if name in frame}
    if len(names) != 1:
        raise WorkshopError(
            "levels of a closed and of an open loop do not share an axis; draw them apart"
        )
    return names.pop()


def _load_axis(axes: Axes, series: dict[str, pd.DataFrame]) -> None:
    column = _load_column(series.values())
    levels = sorted({float(level) for frame in series.values() for level in frame[column]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()
    if axes.get_yscale() == "log":
        plain_log_ticks(axes.yaxis)
    axes.set_xlabel(_LOADS[column])
    tidy(axes)


def _ecdf(axes: Axes, values: list[float], colour: str, label: str) -> None:
    ordered = sorted(values)
    shares = [100 * (rank + 1) / len(ordered) for rank in range(len(ordered))]
    axes.step([ordered[0], *ordered], [0, *shares], where="post", color=colour, label=label)
