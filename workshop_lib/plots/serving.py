"""Figures of lesson 02: memory, the KV cache, who runs when, latency and throughput."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    OKABE_ITO,
    ORANGE,
    PALE,
    PURPLE,
    SERIES,
    SKY,
    VERMILLION,
    finish,
    label_ends,
    new_figure,
    plain_log_ticks,
    request_colours,
    row_labels,
    stepped,
    write,
)

if TYPE_CHECKING:
    from workshop_lib.serving import TextDelta
    from workshop_lib.serving.benchmark import BenchmarkResult, EngineObservation
    from workshop_lib.serving.memory import Budget, EngineKV, KVCapacity
    from workshop_lib.serving.simulators import EngineRun, Paging, Schedule

_PARTS = {
    "weights": BLUE,
    "activations": ORANGE,
    "runtime": PURPLE,
    "buffers": SKY,
    "KV cache": GREEN,
    "CUDA graphs": OKABE_ITO["yellow"],
    "free": PALE,
}
_EMPTY: dict[str, Any] = {"color": "white", "edgecolor": GREY, "hatch": "////"}

# How the tables of `BenchmarkResult` name the load, and what figures call it.
_LOADS = {"concurrency": "requests in flight", "rate_per_s": "requests a second, offered"}
_LATENCIES = {"ttft": "Time to first token", "itl": "Between tokens"}


def plot_memory_budget(budget: Budget) -> Figure:
    """A stacked bar: what takes a device's memory, against what it has; estimates are hatched."""
    figure = new_figure(8, 2.65)
    axes = figure.subplots()
    widest, left = max(budget.capacity_gib, budget.capacity_gib - budget.free_gib), 0.0
    for part, gib in budget.parts().items():
        if gib <= 0:
            continue
        hatch, edge = ("////", "white") if part in budget.estimated else (None, None)
        style: dict[str, Any] = {"color": _PARTS[part], "hatch": hatch, "edgecolor": edge}
        axes.barh(0, gib, left=left, height=0.6, label=part, **style)
        if gib > 0.07 * widest:
            _inside(axes, left + gib / 2, 0, f"{gib:.1f}", _PARTS[part])
        left += gib
    axes.plot([budget.capacity_gib] * 2, [-0.38, 0.38], color="black", linewidth=2)
    words = f"{budget.kv.tokens:,}\ntokens" if budget.fits else "does\nnot fit"
    end, colour = max(left, budget.capacity_gib), "black" if budget.fits else VERMILLION
    write(axes, end + 0.015 * widest, 0, words, colour, fontsize=10)
    share = budget.gpu_memory_utilization
    use = f", util. {share}" if share is not None else ""
    row_labels(axes, [f"{budget.model.split('/')[-1]}\n{budget.device}, TP={budget.tp}{use}"])
    figure.legend(loc="outside upper left", ncols=4, frameon=False)
    note = "memory, GiB (hatched: estimate; black line: what the device has)"
    finish(axes, x=note, xlim=(0, widest * 1.22))
    return figure


def plot_kv_prediction(predicted: KVCapacity, engine: EngineKV) -> Figure:
    """The predicted size of the KV cache beside the engine's own start line.

    Args:
        predicted: What `kv_cache_capacity` or a budget says.
        engine: What `parse_engine_line` read.

    Example:
        >>> from workshop_lib.serving.memory import EngineKV, KVCapacity
        >>> capacity = KVCapacity(23296, 182, 128, 1024, 22.75, True)
        >>> figure = plot_kv_prediction(capacity, EngineKV("CPU", 23296, 1024, 22.75))
    """
    figure = new_figure(8, 2.4)
    axes = figure.subplots()
    values = [predicted.tokens, engine.tokens]
    axes.barh([0, 1], values, color=[GREEN, BLUE], height=0.6)
    for row, value in enumerate(values):
        write(axes, value, row, f"  {value:,} tokens", fontsize=10)
    row_labels(axes, ["predicted", f"{engine.device} engine's\nstart line"])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    difference = predicted.tokens - engine.tokens
    percent = 100 * difference / engine.tokens
    verdict = f"{difference:+,} tokens ({percent:+.2g}%)" if difference else "exactly equal"
    title = f"Prediction against the engine: {verdict}"
    finish(axes, title, x="KV cache, tokens", xlim=(0, max(values) * 1.28))
    return figure


def plot_paging(paging: Paging) -> Figure:
    """The blocks with their requests, and the slots that blocks and single pieces hold.

    A block is filled from the left as far as it holds tokens.
    """
    columns = 32 if paging.blocks > 128 else 16 if paging.blocks > 32 else 8
    rows = -(-paging.blocks // columns)
    figure = new_figure(9, 1.6 + 0.42 * rows)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    colours = request_colours(list(paging.tokens))
    for block in range(1, paging.blocks + 1):
        y, x = divmod(block - 1, columns)
        left.barh(y, 0.92, left=x, height=0.84, color="white", edgecolor=GREY, linewidth=0.6)
        if block in paging.fill:
            request, filled = paging.fill[block]
            share, colour = filled / paging.block_size, colours[request]
            left.barh(y, 0.92, left=x, height=0.84, **_EMPTY)
            left.barh(y, 0.92 * share, left=x, height=0.84, color=colour)
            # A name on a half-empty block lies half on white.
            _inside(left, x + 0.46, y, request, colour if share > 0.75 else "white")
    row_labels(left, [f"{row * columns + 1}" for row in range(rows)])
    left.set_xticks([])
    note = "hatched: slots held without a token; white: free blocks"
    title = f"{paging.blocks} blocks of {paging.block_size} tokens"
    finish(left, title, x=note, y="first block of the row", xlim=(-0.1, columns))
    left.spines[["left", "bottom"]].set_visible(False)
    _draw_slots(right, paging, colours)
    return figure


def plot_batching(schedules: Sequence[Schedule]) -> Figure:
    """What each slot does in each step, a panel a schedule; a triangle is a request's arrival."""
    heights = [schedule.slots for schedule in schedules]
    figure = new_figure(9, 0.6 + sum(0.9 + 0.38 * slots for slots in heights))
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, schedule in zip(grid[:, 0], schedules, strict=True):
        colours = request_colours([run.job.name for run in schedule.runs])
        slots = range(schedule.slots)
        axes.barh(slots, [schedule.steps] * schedule.slots, color=PALE, edgecolor="white")
        for run in schedule.runs:
            colour, length = colours[run.job.name], run.end - run.start
            axes.barh(run.slot, length, left=run.start, color=colour, edgecolor="white", lw=1)
            _inside(axes, run.start + length / 2, run.slot, run.job.name, colour)
            axes.plot(run.job.arrival, -0.62, "v", color=colour, markersize=6, clip_on=False)
        row_labels(axes, [f"slot {i + 1}" for i in slots])
        title = (
            f"{schedule.policy.capitalize()} batching: done after {schedule.steps} steps, mean "
            f"wait {schedule.mean_wait:.1f}, slots used {100 * schedule.utilization:.0f}% "
            "(triangles: arrivals)"
        )
        last = max(each.steps for each in schedules)
        finish(axes, title, whole="x", ylim=(schedule.slots - 0.4, -0.75), xlim=(0, last))
    grid[-1, 0].set_xlabel("step of the engine (each running request makes one token)")
    return figure


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
    names = [run.job.name for run in predicted.schedule.runs]
    if names != (served := observed.requests["request"].tolist()):
        raise WorkshopError(
            f"the simulator had the requests {names}, the server {served}; give both the same"
        )
    figure = new_figure(9, 3.4 + 0.24 * len(names))
    heights = [1 + 0.28 * len(names), 1.4, 1.4]
    grid = figure.subplots(3, 2, sharex="col", sharey="row", height_ratios=heights)
    simulated = [(run.job.arrival, run.start, run.end) for run in predicted.schedule.runs]
    _draw_spans(grid[0, 0], names, simulated)
    _draw_spans(grid[0, 1], names, observed.requests[["sent_s", "first_s", "end_s"]].to_numpy())
    # The last step ends where the gauges fall to nothing, as the last sample shows.
    steps = predicted.gauges
    last = steps.iloc[-1:].assign(step=steps["step"].iloc[-1] + 1, running=0, waiting=0, blocks=0)
    gauges = pd.concat([steps, last]), observed.samples
    for column, (table, times) in enumerate(zip(gauges, ("step", "time_s"), strict=True)):
        requests, blocks = grid[1:, column]
        stepped(requests, table[times], table["running"], BLUE, fill=True)
        stepped(requests, table[times], table["waiting"], VERMILLION, ls="--")
        stepped(blocks, table[times], table["blocks"], GREEN, fill=True)
        peak = f"at most {table['blocks'].max():.0f}, of {observed.block_size} tokens each"
        notes = (requests, 0.02, "running", BLUE), (requests, 0.3, "waiting (dashed)", VERMILLION)
        for axes, x, text, colour in (*notes, (blocks, 0.02, peak, "#4D4D4D")):
            write(axes, x, 0.97, text, colour, xycoords=axes.transAxes, va="top")
    for row, name, unit in ((1, "running", "requests"), (2, "blocks", "blocks in use")):
        most = float(max(table[name].max() for table in gauges))
        room = (-0.05 * most, 1.45 * most + 0.5)  # for the words above
        finish(grid[row, 0], y=unit, whole="y", ylim=room)
    finish(grid[0, 0], "Simulator")
    finish(grid[0, 1], "The running vLLM (pale: until the first token)")
    finish(grid[2, 0], x="step of the engine")
    finish(grid[2, 1], x="time since the first request, s")
    for axes in grid.flat:
        finish(axes, xlim=(0, None))
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
    if not deltas:
        raise WorkshopError("the stream has no text; iterate it before drawing it")
    times_ms = [delta.at_ms for delta in deltas]
    count, first_ms, last_ms = len(times_ms), times_ms[0], times_ms[-1]
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    axes.axvspan(0, first_ms, color=PALE)
    stepped(axes, [0, *times_ms], range(count + 1), GREY, linewidth=1)
    axes.plot(times_ms, range(1, count + 1), "o", color=BLUE, markersize=4)
    write(axes, last_ms * 0.01, count * 1.05 + 1, "no text yet", "#4D4D4D", va="top")
    title = f"{count} pieces of text: the first after {first_ms:.0f} ms"
    if count > 1:
        title += f", then one every {(last_ms - first_ms) / (count - 1):.0f} ms"
    axes.set(xlim=(0, last_ms * 1.05), ylim=(0, count * 1.15 + 1))
    x = "time since the request was sent, ms"
    finish(axes, title, x=x, y="pieces received", whole="y")
    return figure


def plot_load_sweep(levels: pd.DataFrame) -> Figure:
    """Throughput, time to first token and inter-token latency against the load.

    Args:
        levels: `BenchmarkResult.levels`.

    Raises:
        WorkshopError: No level to draw.

    Example:
        >>> plot_load_sweep(sweep.levels)  # doctest: +SKIP
    """
    if levels.empty:
        raise WorkshopError("the sweep has no finished level to draw")
    load = next(name for name in _LOADS if name in levels)
    figure = new_figure(9, 3.6)
    throughput, *latencies = panels = figure.subplots(1, 3)
    throughput.plot(levels[load], levels["output_tokens_per_s"], "o-", color=BLUE)
    for level in levels.to_dict("records"):  # what failed beside each level, timeouts apart
        counts = {"failed": level["errors"], "timed out": level["timeouts"]}
        words = "\n".join(f"{count} {word}" for word, count in counts.items() if count)
        if words:
            throughput.margins(x=0.15, y=0.1)  # room for words beside the outermost points
            place = level[load], level["output_tokens_per_s"]
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            write(throughput, *place, words, VERMILLION, (0, 14), ha="center", bbox=ground)
    throughput.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    finish(throughput, "Throughput", y="output tokens a second", ylim=(0, None))
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(levels[load], [f"{level:g}" for level in levels[load]])
        axes.minorticks_off()
        axes.set_xlabel(_LOADS[load])
    for axes, (latency, title) in zip(latencies, _LATENCIES.items(), strict=True):
        known = levels[[f"{latency}_p{percent}_ms" for percent in (50, 90, 99)]].astype(float)
        for column, style in zip(known, ("-", "--", ":"), strict=True):
            axes.plot(levels[load], known[column], f"o{style}", color=BLUE, markersize=4)
        if known.max().max() > 20 * known.min().min() > 0:
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis)
        else:
            axes.set_ylim(0, None)
        finish(axes, title, y="ms")
        last = known.ffill().iloc[-1].dropna()
        label_ends(axes, [(y, str(name).split("_")[1], BLUE) for name, y in last.items()])
    return figure


def load_recorded_levels(path: str | Path) -> dict[str, pd.DataFrame]:
    """Recorded load levels by their tag, with the columns of `BenchmarkResult.levels`.

    Args:
        path: One JSON object a line.

    Example:
        >>> file = data_path("recorded/h200/vllm-0.25.1-eager-vs-graphs.jsonl")
        >>> sorted(load_recorded_levels(file))
        ['eager', 'graphs']
    """
    columns = {"conc": "concurrency", "n": "requests", "req_s": "requests_per_s"}
    columns["out_tok_s"] = "output_tokens_per_s"
    frame = pd.read_json(path, lines=True).rename(columns=columns)
    return {str(tag): rows.drop(columns="tag") for tag, rows in frame.groupby("tag")}


# The file below recorded/h200, and of each path that is drawn: its name there, TP and replicas.
_PATHS = {
    "one GPU": (
        "serve-paths-vllm-0.29.0.jsonl",
        {
            "vLLM alone": ("vLLM alone", 1, 1),
            "Ray Serve, GPU manifest": ("ray.serve.llm, 1000, direct streaming", 1, 1),
            "limit 64": ("ray.serve.llm, max_ongoing_requests 64", 1, 1),
            "written by hand": ("hand-written deployment", 1, 1),
        },
    ),
    "two GPUs": (
        "serve-paths-two-gpus-vllm-0.29.0.jsonl",
        {
            "one GPU": ("ray.serve.llm", 1, 1),
            "TP 2": ("ray.serve.llm", 2, 1),
            "two replicas": ("ray.serve.llm, two replicas", 1, 2),
        },
    ),
}


def plot_serve_paths(which: str = "one GPU") -> Figure:
    """Recorded on H200s: requests a second and the first token by the path to the engine.

    Args:
        which: "one GPU" (vLLM alone, through Ray Serve, and what slows it down) or "two GPUs"
            (tensor parallelism against two replicas).

    Raises:
        WorkshopError: No such recording.

    Example:
        >>> figure = plot_serve_paths("two GPUs")
    """
    if which not in _PATHS:
        raise WorkshopError(f"no recording {which!r}; there are {', '.join(_PATHS)}")
    file, paths = _PATHS[which]
    lines = data_path(f"recorded/h200/{file}").read_text(encoding="utf-8").splitlines()
    rows = pd.DataFrame([{"tp": 1, "replicas": 1} | json.loads(line) for line in lines])
    figure = new_figure(9, 3.6, "Recorded: H200, vLLM 0.29.0, a 7B shape, 128 tokens out")
    panels = ("Throughput", "requests a second", False), ("Time to first token", "ms", True)
    for axes, (title, unit, streamed) in zip(figure.subplots(1, 2), panels, strict=True):
        column, ends = "ttft_p50_ms" if streamed else "req_s", []
        for (name, (path, tp, replicas)), colour in zip(paths.items(), SERIES, strict=False):
            mine = rows[(rows["path"] == path) & (rows["stream"] == streamed)]
            mine = mine[(mine["tp"] == tp) & (mine["replicas"] == replicas)]
            if len(mine):
                line = mine.groupby("conc")[column].median()
                axes.plot(line.index, line, "o-", color=colour, markersize=4)
                ends.append((float(line.iloc[-1]), name, colour))
        axes.set(xscale="log", yscale="log")
        axes.set_xticks([1, 16, 64, 256], ["1", "16", "64", "256"])
        axes.minorticks_off()
        plain_log_ticks(axes.yaxis)
        finish(axes, title, x="clients, each with one request in flight", y=unit)
        label_ends(axes, ends)
    return figure


def plot_deployments(
    results: Mapping[str, BenchmarkResult], trips_ms: Mapping[str, Sequence[float]]
) -> Figure:
    """Two deployments under one load: the round trip alone, and median latencies.

    Lines at the points are the medians' 95% intervals.

    Args:
        results: Benchmarks by the deployment's name. Only levels that all have are drawn.
        trips_ms: `round_trips_ms` of each, by the same names.

    Raises:
        WorkshopError: No benchmark, or other names.

    Example:
        >>> plot_deployments({"vLLM": sweep}, {"vLLM": trips})  # doctest: +SKIP
    """
    if not results or set(results) != set(trips_ms):
        raise WorkshopError(f"round trips of {list(trips_ms)} do not fit {list(results)}")
    tables = {name: result.percentiles() for name, result in results.items()}
    load = next(name for name in _LOADS if all(name in table for table in tables.values()))
    levels = sorted(set.intersection(*(set(table[load]) for table in tables.values())))
    figure = new_figure(9, 3.4)
    trips, *panels = figure.subplots(1, 3)
    for row, ((name, times), colour) in enumerate(zip(trips_ms.items(), SERIES, strict=False)):
        middle = statistics.median(times)
        trips.plot(times, [row] * len(times), "o", color=colour, alpha=0.25, markersize=5)
        trips.plot([middle, middle], [row - 0.18, row + 0.18], color=colour, linewidth=2)
        # In the axes' own coordinates sideways: a median near the edge is not cut off.
        place = {"xycoords": trips.get_yaxis_transform(), "va": "bottom"}
        write(trips, 0.03, row - 0.24, f"{name}: {middle:.1f} ms", colour, **place)
    trips.set_yticks([])
    trips.set_xscale("log")  # a stray slow one must not hide the others
    plain_log_ticks(trips.xaxis)
    title, x = "The round trip alone (no engine)", "round trip, ms (line: median)"
    finish(trips, title, x=x, ylim=(len(trips_ms) - 0.6, -0.7))
    trips.spines["left"].set_visible(False)
    for axes, (latency, title) in zip(panels, _LATENCIES.items(), strict=True):
        for number, (name, colour) in enumerate(zip(trips_ms, SERIES, strict=False)):
            rows = tables[name].query(f"latency == {latency!r} and percentile == 50")
            rows = rows[rows[load].isin(levels)].sort_values(load)
            low, high = (rows[name].fillna(rows["ms"]) for name in ("low_ms", "high_ms"))
            places = [at + 0.14 * (number - (len(tables) - 1) / 2) for at in range(len(rows))]
            bars = [rows["ms"] - low, high - rows["ms"]]
            axes.errorbar(places, rows["ms"], yerr=bars, fmt="o", color=colour, capsize=3)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.margins(y=0.12)  # no point lies on the edge
        axes.set(xlim=(-0.5, len(levels) - 0.5), ylim=(0, None))
        finish(axes, title, x=_LOADS[load], y="median, ms")
    return figure


def _inside(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Text on a bar of this colour; on white it brings its own ground over the hatching."""
    box = {"facecolor": "white", "pad": 0.6, "linewidth": 0} if colour == "white" else None
    readable = "white" if colour in (BLUE, GREEN, VERMILLION) else "black"
    write(axes, x, y, text, readable, ha="center", bbox=box)


def _draw_slots(axes: Axes, paging: Paging, colours: Mapping[str, str]) -> None:
    """One stacked bar for each way of keeping requests: their tokens, what they waste."""
    pieces = f"one piece of\n{paging.max_model_len:,} each"
    ways = [
        (f"blocks of {paging.block_size}", list(paging.tables), paging.wasted_slots),
        (pieces, list(paging.pieces), paging.wasted_slots_in_pieces),
    ]
    total = paging.blocks * paging.block_size
    for row, (_, stored, wasted) in enumerate(ways):
        start = 0
        for request in stored:
            axes.barh(row, paging.tokens[request], left=start, color=colours[request], height=0.55)
            start += paging.tokens[request]
        axes.barh(row, wasted, left=start, height=0.55, **_EMPTY)
        late = len(paging.tokens) - len(stored)
        words = f"{len(stored)} stored, {late} wait; {wasted:,} slots wasted"
        write(axes, 0.015 * total, row - 0.33, words, va="bottom")
    axes.axvline(total, color="black", linewidth=2)
    row_labels(axes, [name for name, _, _ in ways])
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlim=(0, total * 1.04), ylim=(1.6, -0.8))
    finish(axes, "Slots held", x="token slots (black line: all there are)")


def _draw_spans(axes: Axes, names: Sequence[str], spans: Iterable[Sequence[float]]) -> None:
    """A bar for each request: from when it came, over its first token, to its end."""
    colours = request_colours(names)
    for row, (name, (came, began, end)) in enumerate(zip(names, spans, strict=True)):
        axes.barh(row, end - came, left=came, height=0.7, color=colours[name], alpha=0.3)
        axes.barh(row, end - began, left=began, height=0.7, color=colours[name])
    row_labels(axes, names)
