"""Every figure is drawn, and nothing in it is cut off, unlabelled or too small."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from figures import check_readable

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.plots import (
    load_recorded_levels,
    new_figure,
    plot_batching,
    plot_deployments,
    plot_engine,
    plot_kv_prediction,
    plot_load_sweep,
    plot_memory_budgets,
    plot_paging,
    plot_recorded,
    plot_serve_paths,
    plot_token_timeline,
)
from workshop_lib.serving import TextDelta
from workshop_lib.serving.benchmark import EngineObservation
from workshop_lib.serving.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord
from workshop_lib.serving.memory import (
    EngineKV,
    ModelShape,
    cpu_budget,
    gpu_budget,
    kv_cache_capacity,
)
from workshop_lib.serving.simulators import Job, simulate_engine
from workshop_lib.widgets.explorers import explored_paging, explored_schedules


def sweep(*, errors: int = 0) -> BenchmarkResult:
    records = []
    for level in (1, 4, 8):
        for number in range(3 * level):
            bad = number < errors
            records.append(
                RequestRecord(
                    load=level,
                    scheduled_s=0.0,
                    start_s=0.0,
                    ttft_ms=None if bad else 60.0 * level + number,
                    itl_ms=() if bad else tuple(25.0 + level + (7 * n) % 5 for n in range(20)),
                    e2e_ms=None if bad else 600.0 + level,
                    prompt_tokens=40,
                    completion_tokens=None if bad else 21,
                    finish_reason="length",
                    error=("closed", "timeout")[number % 2] if bad else "",
                    detail="",
                )
            )
    levels = [
        LevelRecord(load=n, duration_s=0.6 * 3, server_ms={"ttft": 60.0 * n}) for n in (1, 4, 8)
    ]
    return BenchmarkResult("http://a", "m", "now", {}, levels, records)


def budgets() -> Any:
    small, large = ModelShape.named("mistral-7b"), ModelShape.named("llama-3.1-70b")
    figure = plot_memory_budgets(
        [
            gpu_budget(small, "l4"),
            gpu_budget(small, "h100", gpu_memory_utilization=0.6),
            gpu_budget(large, "h100", tp=1),
            gpu_budget(large, "h100", tp=4),
        ]
    )
    return figure


def laptop_budget() -> Any:
    shape = ModelShape.named("smollm2-135m").with_dtype("float32")
    return plot_memory_budgets([cpu_budget(shape, kv_gib=1, memory_gib=24)], ["this machine"])


def prediction() -> Any:
    shape = ModelShape.named("smollm2-135m").with_dtype("float32")
    capacity = kv_cache_capacity(2**30, shape, max_model_len=1024, block_size=128)
    return plot_kv_prediction(capacity, EngineKV("CPU", 23_168, 1024, 22.63))


def open_loop() -> Any:
    records = [
        RequestRecord(
            load=rate, scheduled_s=n / rate, start_s=n / rate, ttft_ms=50.0 * rate + n,
            itl_ms=(20.0, 30.0), e2e_ms=200.0 * rate, prompt_tokens=9, completion_tokens=3,
            finish_reason="length", error="", detail="",
        )
        for rate in (2.5, 7.9) for n in range(20)
    ]  # fmt: skip
    levels = [LevelRecord(load=rate, duration_s=20 / rate, server_ms={}) for rate in (2.5, 7.9)]
    result = BenchmarkResult("http://a", "m", "now", {"loop": "open"}, levels, records)
    return plot_load_sweep(result.levels)


def engine() -> Any:
    jobs = [Job("long", 0, 130), Job("A", 8, 12), Job("B", 12, 24), Job("C", 16, 8)]
    predicted = simulate_engine(jobs, prompt_tokens=24, blocks=181, block_size=128)
    rows = [
        {"request": job.name, "tokens": job.tokens, "prompt_tokens": 24,
         "sent_s": 0.03 * job.arrival, "first_s": 0.03 * job.arrival + 0.1,
         "end_s": 0.03 * (job.arrival + job.tokens) + 0.1}
        for job in jobs
    ]  # fmt: skip
    steps = predicted.gauges.iloc[::3]
    samples = steps.assign(time_s=steps.step * 0.03).drop(columns="step")
    seen = EngineObservation(pd.DataFrame(rows), samples, 181, 128)
    return plot_engine(predicted, seen)


def deployments() -> Any:
    results = {"vLLM alone": sweep(), "Ray Serve": sweep()}
    return plot_deployments(results, {"vLLM alone": [1.0, 1.2, 2.0], "Ray Serve": [6.0, 7.0, 9.0]})


FIGURES: dict[str, Callable[[], Any]] = {
    "budgets": budgets,
    "laptop budget": laptop_budget,
    "prediction": prediction,
    "sweep": lambda: plot_load_sweep(sweep().levels),
    "sweep with failures": lambda: plot_load_sweep(sweep(errors=2).levels, title="Laptop"),
    "timeline": lambda: plot_token_timeline([TextDelta("a", 90.0 + 25 * n) for n in range(30)]),
    "open loop": open_loop,
    "engine": engine,
    "deployments": deployments,
    "paging": lambda: plot_paging(explored_paging(16, 12, 1024), columns=32),
    "batching": lambda: plot_batching(explored_schedules(3, 7, 14)),
    "one piece": lambda: plot_token_timeline([TextDelta("a", 90.0)]),
    "recorded TP": plot_recorded,
    "paths": plot_serve_paths,
    "paths on two GPUs": lambda: plot_serve_paths("two GPUs"),
    "recorded graphs": lambda: plot_recorded(
        data_path("recorded/h200/vllm-0.25.1-eager-vs-graphs.jsonl")
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_whole_labelled_and_readable(name: str) -> None:
    check_readable(FIGURES[name]())


def test_bars_show_what_the_budget_says() -> None:
    shape = ModelShape.named("mistral-7b")
    budget = gpu_budget(shape, "h100")
    figure = plot_memory_budgets([budget])
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths == pytest.approx([gib for gib in budget.parts().values() if gib > 0])
    words = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert f"{budget.kv.tokens:,}" in words


def test_prediction_names_the_difference() -> None:
    capacity = kv_cache_capacity(2**30, ModelShape.named("smollm2-135m"), max_model_len=1024)
    same = plot_kv_prediction(capacity, EngineKV("CPU", capacity.tokens))
    assert "exactly equal" in same.axes[0].get_title(loc="left")
    off = plot_kv_prediction(capacity, EngineKV("CPU", capacity.tokens - 466))
    assert "+466 tokens (+1%)" in off.axes[0].get_title(loc="left")


def test_failures_are_named_in_the_sweep() -> None:
    figure = plot_load_sweep(sweep(errors=2).levels)
    words = [t.get_text() for t in figure.axes[0].texts if "failed" in t.get_text()]
    assert words == ["1 failed\n1 timed out"] * 3


def test_recorded_levels_have_the_sweeps_columns() -> None:
    recorded = load_recorded_levels()
    assert list(recorded) == ["TP=1", "TP=2"]
    for frame in recorded.values():
        assert set(frame.columns) <= set(sweep().levels.columns)
        assert frame.concurrency.tolist() == [1, 4, 16, 64, 256]
    assert recorded["TP=2"].output_tokens_per_s[4] == 10761.0


def test_nothing_to_draw_is_refused(tmp_path: Any) -> None:
    with pytest.raises(WorkshopError, match="no finished level"):
        plot_load_sweep(pd.DataFrame())
    with pytest.raises(WorkshopError, match="no text"):
        plot_token_timeline([])
    with pytest.raises(WorkshopError, match="0 budgets"):
        plot_memory_budgets([])
    with pytest.raises(WorkshopError, match="one for each"):
        plot_memory_budgets([gpu_budget(ModelShape.named("mistral-7b"), "h100")], ["a", "b"])
    with pytest.raises(WorkshopError, match="cannot be read"):
        plot_recorded(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(WorkshopError, match="not a recording"):
        plot_recorded(tmp_path / "bad.jsonl")


def test_no_global_state_of_matplotlib_is_used() -> None:
    code = (
        "import sys; from workshop_lib.plots import plot_recorded; plot_recorded()._repr_png_(); "
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert new_figure().get_figwidth() == 8
