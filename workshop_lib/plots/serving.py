"""Figures of lesson 02: memory, the KV cache, who runs when, latency and throughput."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import (
    BLUE,
    GREEN,
    GREY,
    OKABE_ITO,
    PALE,
    VERMILLION,
    finish,
    label_ends,
    new_figure,
    plain_log_ticks,
    request_colours,
    row_labels,
    series_colours,
    stepped,
    text_on,
    write,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.serving import TextDelta
    from workshop_lib.serving.benchmark import BenchmarkResult, EngineObservation
    from workshop_lib.serving.memory import Budget, EngineKV, KVCapacity
    from workshop_lib.serving.simulators import EngineRun, Paging, Schedule

_PARTS = {
    "weights": BLUE,
    "activations": OKABE_ITO["orange"],
    "runtime": OKABE_ITO["purple"],
    "buffers": OKABE_ITO["sky"],
    "KV cache": GREEN,
    "CUDA graphs": OKABE_ITO["yellow"],
    "free": PALE,
}
_EMPTY: dict[str, Any] = {"color": "white", "edgecolor": GREY, "hatch": "////"}

# How the tables of `BenchmarkResult` name the load, and what figures call it.
_LOADS = {"concurrency": "requests in flight", "rate_per_s": "requests a second, offered"}


def plot_memory_budgets(budgets: Sequence[Budget], labels: Sequence[str] | None = None) -> Figure:
    """One stacked bar a device: what takes its memory, against what it has.

    Estimated parts are hatched.

    Args:
        budgets: One or more budgets.
        labels: Their names; by default model and device.

    Raises:
        WorkshopError: No budget, or not one label for each.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape, gpu_budget
        >>> shape = ModelShape.named("mistral-7b")
        >>> figure = plot_memory_budgets([gpu_budget(shape, "h100")])
    """
    names = list(labels or [_budget_name(budget) for budget in budgets])
    if not budgets or len(names) != len(budgets):
        raise WorkshopError(f"{len(budgets)} budgets and {len(names)} labels; give one for each")
    figure = new_figure(8, 1.9 + 0.75 * len(budgets))
    axes = figure.subplots()
    widest = max(max(b.capacity_gib, b.capacity_gib - b.free_gib) for b in budgets)
    for row, budget in enumerate(budgets):
        left = 0.0
        for part, gib in budget.parts().items():
            if gib <= 0:
                continue
            estimate = part in budget.estimated
            style: dict[str, Any] = {"hatch": "////", "edgecolor": "white"} if estimate else {}
            bar = axes.barh(row, gib, left=left, height=0.6, color=_PARTS[part], **style)
            if part not in axes.get_legend_handles_labels()[1]:
                bar.set_label(part)
            if gib > 0.07 * widest:
                _inside(axes, left + gib / 2, row, f"{gib:.1f}", _PARTS[part])
            left += gib
        axes.plot([budget.capacity_gib] * 2, [row - 0.38, row + 0.38], color="black", linewidth=2)
        words = f"{budget.kv.tokens:,}\ntokens" if budget.fits else "does\nnot fit"
        end, colour = max(left, budget.capacity_gib), "black" if budget.fits else VERMILLION
        write(axes, end + 0.015 * widest, row, words, colour, fontsize=10)
    row_labels(axes, names)
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


def plot_paging(paging: Paging, *, columns: int = 16) -> Figure:
    """The blocks with their requests, and the slots that both ways of keeping them hold.

    A block is filled from the left as far as it holds tokens.

    Args:
        paging: What `simulate_paging` found.
        columns: Blocks in a row.

    Raises:
        WorkshopError: Fewer than one column.

    Example:
        >>> from workshop_lib.serving.simulators import simulate_paging
        >>> figure = plot_paging(simulate_paging({"a": 20, "b": 5}, blocks=64))
    """
    if columns < 1:
        raise WorkshopError(f"columns must be at least 1, got {columns}")
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
            if paging.blocks <= 8 * columns:  # a name on a half-empty block lies half on white
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
    """What each slot does in each step, one panel a schedule on the same axis.

    A triangle at the top shows when each request arrives.

    Args:
        schedules: One or more, for example static and continuous batching of the same jobs.

    Raises:
        WorkshopError: No schedule.

    Example:
        >>> from workshop_lib.serving.simulators import Job, simulate_batching
        >>> figure = plot_batching([simulate_batching([Job("a", 0, 3)], slots=1)])
    """
    if not schedules:
        raise WorkshopError("plot_batching needs at least one schedule")
    figure = new_figure(9, 0.6 + sum(0.9 + 0.38 * schedule.slots for schedule in schedules))
    heights = [schedule.slots for schedule in schedules]
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
    import pandas as pd

    names = [run.job.name for run in predicted.schedule.runs]
    if names != (served := observed.requests["request"].tolist()):
        raise WorkshopError(
            f"the simulator had the requests {names}, the server {served}; give both the same"
        )
    figure = new_figure(9, 3.4 + 0.24 * len(names))
    heights = [1 + 0.28 * len(names), 1.4, 1.4]
    grid = figure.subplots(3, 2, sharex="col", sharey="row", height_ratios=heights)
    seen = observed.requests[["sent_s", "first_s", "end_s"]].itertuples(index=False)
    _draw_spans(
        grid[0, 0], names, [(r.job.arrival, r.start, r.end) for r in predicted.schedule.runs]
    )
    _draw_spans(grid[0, 1], names, seen)
    # The last step ends where the gauges fall to nothing, as the last sample shows.
    steps = predicted.gauges
    last = steps.iloc[-1:].assign(step=steps["step"].iloc[-1] + 1, running=0, waiting=0, blocks=0)
    gauges = pd.concat([steps, last]), observed.samples
    for column, (table, times) in enumerate(zip(gauges, ("step", "time_s"), strict=True)):
        requests, blocks = grid[1:, column]
        stepped(requests, table[times], table["running"], BLUE, fill=True)
        stepped(requests, table[times], table["waiting"], VERMILLION, ls="--")
        _note(requests, 0.02, "running", BLUE)
        _note(requests, 0.3, "waiting (dashed)", VERMILLION)
        stepped(blocks, table[times], table["blocks"], GREEN, fill=True)
        peak = f"at most {table['blocks'].max():.0f}, of {observed.block_size} tokens each"
        _note(blocks, 0.02, peak, "#4D4D4D")
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


def plot_load_sweep(levels: pd.DataFrame | dict[str, pd.DataFrame], *, title: str = "") -> Figure:
    """Throughput, time to first token and inter-token latency against the load.

    Args:
        levels: `BenchmarkResult.levels`, or several by name to compare. Percentiles
            that a table lacks are left out.
        title: Drawn above.

    Raises:
        WorkshopError: No level to draw, or a closed and an open loop together.

    Example:
        >>> figure = plot_load_sweep(load_recorded_levels()["TP=1"])
    """
    series = levels if isinstance(levels, dict) else {"": levels}
    if not series or any(frame.empty for frame in series.values()):
        raise WorkshopError("the sweep has no finished level to draw")
    column = _load_column(series.values())
    colours = dict(zip(series, series_colours(len(series)), strict=True))
    figure = new_figure(9, 3.6, title)
    throughput, *latencies = figure.subplots(1, 3)
    for name, frame in series.items():
        throughput.plot(frame[column], frame.output_tokens_per_s, "o-", color=colours[name])
        if "errors" in frame:
            _name_failures(throughput, frame[column], frame)
    throughput.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    finish(throughput, "Throughput", y="output tokens a second", ylim=(0, None))
    _load_axis(throughput, column, series.values())
    ends = [
        (float(f.output_tokens_per_s.iloc[-1]), name, colours[name]) for name, f in series.items()
    ]
    label_ends(throughput, ends)
    for axes, latency, panel in zip(
        latencies, ("ttft", "itl"), ("Time to first token", "Between tokens"), strict=True
    ):
        ends = []
        for name, frame in series.items():
            for percent, style in {50: "-", 90: "--", 99: ":"}.items():
                values = frame.get(f"{latency}_p{percent}_ms")
                if values is None or values.isna().all():
                    continue
                axes.plot(frame[column], values, f"o{style}", color=colours[name], markersize=4)
                last = float(values.dropna().iloc[-1])
                ends.append((last, f"{name} p{percent}".strip(), colours[name]))
        drawn = [y for line in axes.lines for y in line.get_ydata() if y == y]
        wide = bool(drawn) and 0 < 20 * min(drawn) < max(drawn)
        axes.set_yscale("log" if wide else "linear")
        axes.set_ylim(None if wide else 0, None)
        finish(axes, panel, y="ms")
        _load_axis(axes, column, series.values())
        label_ends(axes, ends)
    return figure


def load_recorded_levels(path: str | Path | None = None) -> dict[str, pd.DataFrame]:
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
    except OSError as error:
        raise WorkshopError(f"the recording {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise WorkshopError(f"{path} is not a recording of load levels: {error}") from error
    return {
        names.get(str(tag), str(tag)): rows.drop(columns="tag").reset_index(drop=True)
        for tag, rows in groups
    }


def plot_recorded(path: str | Path | None = None) -> Figure:
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


# The file below recorded/h200, and of each path that is drawn: its name there, TP and replicas.
_PATHS = {
    "one GPU": (
        "serve-paths-vllm-0.29.0.jsonl",
        {
            "vLLM alone": ("vLLM alone", 1, 1),
            "Ray Serve, as here": ("ray.serve.llm, 1000, direct streaming", 1, 1),
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
    import pandas as pd

    if which not in _PATHS:
        raise WorkshopError(f"no recording {which!r}; there are {', '.join(_PATHS)}")
    file, paths = _PATHS[which]
    lines = data_path(f"recorded/h200/{file}").read_text(encoding="utf-8").splitlines()
    rows = pd.DataFrame([{"tp": 1, "replicas": 1} | json.loads(line) for line in lines])
    figure = new_figure(9, 3.6, "Recorded: H200, vLLM 0.29.0, a 7B shape, 128 tokens out")
    panels = figure.subplots(1, 2)
    titles = ("Throughput", "requests a second", False), ("Time to first token", "ms", True)
    for axes, (title, unit, streamed) in zip(panels, titles, strict=True):
        column, ends = "ttft_p50_ms" if streamed else "req_s", []
        for (name, (path, tp, replicas)), colour in zip(
            paths.items(), series_colours(len(paths)), strict=True
        ):
            mine = rows[(rows["path"] == path) & (rows["stream"] == streamed)]
            mine = mine[(mine["tp"] == tp) & (mine["replicas"] == replicas)]
            if len(mine):
                line = mine.groupby("conc")[column].median()
                axes.plot(line.index, line, "o-", color=colour, markersize=4)
                ends.append((float(line.iloc[-1]), name, colour))
        axes.set(xscale="log", yscale="log", xticks=[1, 16, 64, 256])
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
        WorkshopError: No benchmark, other names, or no level in common.

    Example:
        >>> plot_deployments({"vLLM": sweep}, {"vLLM": trips})  # doctest: +SKIP
    """
    if not results or set(results) != set(trips_ms):
        raise WorkshopError(f"round trips of {list(trips_ms)} do not fit {list(results)}")
    tables = {name: result.percentiles() for name, result in results.items()}
    load = _load_column(tables.values())
    levels = sorted(set.intersection(*(set(table[load]) for table in tables.values())))
    if not levels:
        raise WorkshopError(f"{' and '.join(results)} have no load level in common")
    colours = dict(zip(results, series_colours(len(results)), strict=True))
    figure = new_figure(9, 3.4)
    trips, *panels = figure.subplots(1, 3)
    for row, (name, times) in enumerate(trips_ms.items()):
        middle, colour = statistics.median(times), colours[name]
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
    titles = {"ttft": "Time to first token", "itl": "Between tokens"}
    for axes, (latency, title) in zip(panels, titles.items(), strict=True):
        for number, (name, table) in enumerate(tables.items()):
            rows = table[(table["latency"] == latency) & (table["percentile"] == 50)]
            rows = rows[rows[load].isin(levels)].sort_values(load)
            middle_ms = rows["ms"].astype(float)
            low, high = (
                rows[each].astype(float).fillna(middle_ms) for each in ("low_ms", "high_ms")
            )
            places = [at + 0.14 * (number - (len(tables) - 1) / 2) for at in range(len(rows))]
            bars = [middle_ms - low, high - middle_ms]
            axes.errorbar(places, middle_ms, yerr=bars, fmt="o", color=colours[name], capsize=3)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.margins(y=0.12)  # no point lies on the edge
        axes.set(xlim=(-0.5, len(levels) - 0.5), ylim=(0, None))
        finish(axes, title, x=_LOADS[load], y="median, ms")
    return figure


def _inside(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    """Text on a bar of this colour; on white it brings its own ground over the hatching."""
    box = {"facecolor": "white", "pad": 0.6, "linewidth": 0} if colour == "white" else None
    write(axes, x, y, text, text_on(colour), ha="center", bbox=box)


def _note(axes: Axes, x: float, text: str, colour: str) -> None:
    """Words in the upper part of a panel, at a share of its width."""
    write(axes, x, 0.97, text, colour, xycoords=axes.transAxes, va="top")


def _budget_name(budget: Budget) -> str:
    share = budget.gpu_memory_utilization
    use = f", util. {share}" if share is not None else ""
    return f"{budget.model.split('/')[-1]}\n{budget.device}, TP={budget.tp}{use}"


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


def _name_failures(axes: Axes, load: pd.Series, frame: pd.DataFrame) -> None:
    """Write what failed beside each level, timeouts apart."""
    timeouts = frame["timeouts"] if "timeouts" in frame else 0 * frame.errors
    rows = zip(load, frame.output_tokens_per_s, frame.errors, timeouts, strict=True)
    for level, tokens, errors, late in rows:
        words = [f"{errors} failed"] * bool(errors) + [f"{late} timed out"] * bool(late)
        if words:
            axes.margins(x=0.15, y=0.1)  # room for the words beside the outermost points
            style = {"ha": "center", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
            write(axes, level, tokens, "\n".join(words), VERMILLION, (0, 14), **style)


def _load_column(frames: Iterable[pd.DataFrame]) -> str:
    """The one way in which these tables name their load."""
    names = {name for frame in frames for name in _LOADS if name in frame}
    if len(names) != 1:
        raise WorkshopError(
            "levels of a closed and of an open loop do not share an axis; draw them apart"
        )
    return names.pop()


def _load_axis(axes: Axes, column: str, frames: Iterable[pd.DataFrame]) -> None:
    levels = sorted({float(level) for frame in frames for level in frame[column]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()
    if axes.get_yscale() == "log":
        plain_log_ticks(axes.yaxis)
    axes.set_xlabel(_LOADS[column])
