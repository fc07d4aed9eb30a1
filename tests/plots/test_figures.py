"""Every figure shows its numbers, and nothing in it is cut off, unlabelled or too small."""

from dataclasses import replace
from itertools import accumulate

import pandas as pd
import pytest
from figures import check_readable

from workshop_lib import plots
from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.serving import TextDelta
from workshop_lib.serving.benchmark import EngineObservation
from workshop_lib.serving.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord
from workshop_lib.serving.memory import (
    EngineKV,
    ModelShape,
    cpu_budget,
    gpu_budget,
    kv_cache_capacity,
    training_budget,
)
from workshop_lib.serving.simulators import Job, simulate_engine
from workshop_lib.training import training_models, trl_advantages
from workshop_lib.training.runs import read_run
from workshop_lib.widgets.explorers import explored_paging, explored_schedules

SMALL, LARGE = ModelShape.named("mistral-7b"), ModelShape.named("llama-3.1-70b")
WAYS = ("colocated", "dedicated")
PATHS = ["nemo-rl/honest", "nemo-rl/reward-hacking", "nemo-rl/honest/console.log", "trl/learning-1"]
RUNS = {path: read_run(data_path(f"recorded/{path}")) for path in PATHS}
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
GROUP = pd.DataFrame(
    {
        "prompt": "Question: What is 3 + 4?\nAnswer:",
        "completion": [f" {number}\n\nand so on" for number in range(8)],
        "reward": REWARDS,
        "advantage": trl_advantages(REWARDS),
    }
)


def sweep(loads=(1, 4, 8), *, errors=0, loop="closed"):
    levels = [LevelRecord(load, server_ms={"ttft": 60.0 * load}) for load in loads]
    for level in levels:
        for number in range(int(3 * level.load)):
            kind = ("closed", "timeout")[number % 2] if number < errors else ""
            gaps_s = [(25.0 + level.load + 7 * n % 5) / 1000 for n in range(20)]
            text_s = list(accumulate(gaps_s, initial=0.06 * level.load + number / 1000))
            end_s = 0.6 + level.load / 1000
            level.requests.append(RequestRecord(0.0, 0.0, text_s, end_s, 40, 21, kind))
    return BenchmarkResult("http://a", {"loop": loop}, levels)


def engine():
    jobs = [Job("long", 0, 130), Job("A", 8, 12), Job("B", 12, 24), Job("C", 16, 8)]
    predicted = simulate_engine(jobs, prompt_tokens=24, blocks=181, block_size=128)
    requests = pd.DataFrame({"request": [job.name for job in jobs]})
    requests["sent_s"] = [0.03 * job.arrival for job in jobs]
    requests["first_s"] = requests["sent_s"] + 0.1
    requests["end_s"] = requests["first_s"] + [0.03 * job.tokens for job in jobs]
    steps = predicted.gauges.iloc[::3]
    samples = steps.assign(time_s=steps["step"] * 0.03).drop(columns="step")
    return plots.plot_engine(predicted, EngineObservation(requests, samples, 181, 128))


def startup():
    stages = {"PodScheduled": "00:00:02Z", "Ready": "00:00:14Z"}
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": f"2026-11-21T{time}"}
        for kind, time in stages.items()
    ]
    metadata = {"name": "ray-cluster-0", "creationTimestamp": "2026-11-21T00:00:00Z"}
    pod = {"metadata": metadata, "status": {"conditions": conditions}}
    return plots.plot_startup({"Indexed Job": [pod, pod], "RayCluster": [pod | {"status": {}}]})


def allocation():
    names = {"one task": ["a"], "PACK 2": ["a", "a"], "SPREAD 2": ["a", "b"], "STRICT_PACK 6": []}
    requests = [{"request": n, "nodes": on, "created": bool(on)} for n, on in names.items()]
    return plots.plot_allocation({"gpus": {"a": 4, "b": 4}, "requests": requests})


def ray_cluster():
    node = {"role": "worker", "node": "b", "cpus": 2, "gpus": 4, "memory_gib": 1.5}
    nodes = pd.DataFrame([node | {"role": "head", "node": "a"}, node, node | {"node": "c"}])
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    return plots.plot_ray_cluster(nodes, ports)


def groups():
    rows = {"3 + 4": REWARDS, "2 + 2": [1.0] * 8, "9 + 8": [0.0] * 8}
    frames = [
        pd.DataFrame({"group": n, "problem": problem, "answer": "7", "reward": rewards})
        for n, (problem, rewards) in enumerate(rows.items())
    ]
    return plots.plot_groups(pd.concat(frames), 0)


def settings():
    rows = [
        {"run": run, "value": f"0.{run}", "step": step, **dict.fromkeys(column, 0.4 / step + run)}
        for column in [("reward", "zero_std_share", "entropy", "kl", "grad_norm", "mean_length")]
        for run in (0, 1) for step in (1, 2, 3)
    ]  # fmt: skip
    frame = pd.DataFrame(rows).assign(clip_share=0.0)
    return plots.plot_settings(frame, key="policy.generation.temperature")


def accuracy():
    row = {"problems": 64, "right": 13, "accuracy": 0.2, "low": 0.1, "high": 0.37}
    return plots.plot_accuracy(pd.DataFrame([row, row], index=["before", "after"]))


def serving():
    columns = ("time_s", "running", "waiting", "level", "latency_p50_s", "latency_p95_s")
    return plots.plot_serving(pd.DataFrame({name: [0.0, 0.5, 1.0] for name in columns}))


def step_memory(where=WAYS, **times):
    budgets = [training_budget(SMALL, "h100", gpus=8, where=each) for each in where]
    times = {"generate_s": 20.0, "update_s": 15.0, "switch_s": 4.0, **times}
    return plots.plot_step_memory(*budgets, **times)


def prediction(engine_tokens=23_168):
    shape = ModelShape.named("smollm2-135m").with_dtype("float32")
    capacity = kv_cache_capacity(2**30, shape, max_model_len=1024, block_size=128)
    return plots.plot_kv_prediction(capacity, EngineKV("CPU", engine_tokens, 1024, 22.63))


TRIPS = {"vLLM alone": [1.0, 1.2, 2.0], "Ray Serve": [6.0, 7.0, 9.0]}
STEPS = pd.DataFrame({"step": list("abc"), "done_after_s": [1.0, 9.0, 31.0], "took_s": [1, 8, 22]})
FIGURES = {
    "budget": lambda: plots.plot_memory_budget(gpu_budget(SMALL, "l4")),
    "too small": lambda: plots.plot_memory_budget(gpu_budget(LARGE, "h100")),
    "laptop": lambda: plots.plot_memory_budget(cpu_budget(SMALL, kv_gib=1, memory_gib=24)),
    "prediction": prediction,
    "sweep": lambda: plots.plot_load_sweep(sweep().levels),
    "failures": lambda: plots.plot_load_sweep(sweep(errors=2).levels),
    "open loop": lambda: plots.plot_load_sweep(sweep((2.5, 7.9), loop="open").levels),
    "tokens": lambda: plots.plot_token_timeline([TextDelta("a", 90.0 + 25 * n) for n in range(30)]),
    "one piece": lambda: plots.plot_token_timeline([TextDelta("a", 90.0)]),
    "engine": engine,
    "deployments": lambda: plots.plot_deployments(dict.fromkeys(TRIPS, sweep()), TRIPS),
    "paging": lambda: plots.plot_paging(explored_paging(16, 12, 1024)),
    "batching": lambda: plots.plot_batching(explored_schedules(3, 7, 14)),
    "one GPU": plots.plot_serve_paths,
    "two GPUs": lambda: plots.plot_serve_paths("two GPUs"),
    "ray": ray_cluster,
    "allocation": allocation,
    "startup": startup,
    "groups": groups,
    "advantages": lambda: plots.plot_advantages(GROUP),
    "training": lambda: plots.plot_training(RUNS["trl/learning-1"].frame, steps=60),
    "runs": lambda: plots.plot_runs({path: RUNS[path] for path in PATHS[:2]}),
    "settings": settings,
    "models": lambda: plots.plot_training_models(training_models(SMALL)),
    "accuracy": accuracy,
    "step memory": step_memory,
    "cold start": lambda: plots.plot_startup_timeline(STEPS),
    "serving": serving,
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_whole_labelled_and_readable(name):
    check_readable(FIGURES[name]())


@pytest.mark.parametrize(
    ("path", "steps"),
    [*((path, 60) for path in PATHS), (PATHS[0], 1), (PATHS[3], 2), (PATHS[3], 0)],
)
def test_a_run_is_readable_at_any_length(path, steps):
    check_readable(plots.plot_run(replace(RUNS[path], frame=RUNS[path].frame[:steps])))


def test_bars_show_what_the_budget_says():
    budget = gpu_budget(SMALL, "h100")
    axes = plots.plot_memory_budget(budget).axes[0]
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == pytest.approx([gib for gib in budget.parts().values() if gib > 0])
    assert f"{budget.kv.tokens:,}" in " ".join(text.get_text() for text in axes.texts)


def test_prediction_names_the_difference():
    assert "exactly equal" in prediction(23_296).axes[0].get_title(loc="left")
    assert "+466 tokens (+2%)" in prediction(22_830).axes[0].get_title(loc="left")


def test_recorded_levels_by_tag():
    file = data_path("recorded/h200/vllm-0.25.1-eager-vs-graphs.jsonl")
    recorded = plots.load_recorded_levels(file)
    assert list(recorded) == ["eager", "graphs"]
    assert set(recorded["graphs"].columns) <= set(sweep().levels.columns)
    assert recorded["graphs"]["output_tokens_per_s"].max() == 5085.1


def test_a_panel_for_what_a_run_tells():
    def titles(path):
        return [axes.get_title(loc="left") for axes in plots.plot_run(RUNS[path]).axes]

    whole = titles("nemo-rl/honest")
    assert len(whole) == 7 and whole[0] == "Reward" and whole[-1] == "Time of a step, by stage"
    assert titles("nemo-rl/honest/console.log") == [whole[0], whole[4], whole[6]]
    assert titles("trl/learning-1") == ["Reward, worst to best group", *whole[2:]]


def test_runs_side_by_side_have_one_scale():
    figure = FIGURES["runs"]()
    for column, path in enumerate(PATHS[:2]):
        reward, kl, length = figure.axes[column::2]
        shown = [line.get_ydata().tolist() for line in (*reward.lines, *length.lines)]
        columns = ("reward", "right_share", "mean_length")
        assert shown == [RUNS[path].frame[name].tolist() for name in columns]
        assert kl.get_ylim() == figure.axes[2].get_ylim()
        assert kl.get_ylim()[1] >= RUNS[path].frame.kl.max()  # nothing of either outside it
        assert {text.get_text() for text in reward.texts} == {"rewarded", "right"}


def test_advantages_by_hand_lie_on_the_trainers():
    def bars_and_dots(group):
        axes = plots.plot_advantages(group).axes[0]
        dots = next(line for line in axes.lines if line.get_marker() == "o").get_xdata()
        return [bar.get_width() for bar in axes.patches], list(dots)

    bars, dots = bars_and_dots(GROUP)
    assert bars == pytest.approx(dots, abs=1e-3)
    bars, dots = bars_and_dots(GROUP.assign(advantage=-GROUP["advantage"]))
    assert bars != pytest.approx(dots, abs=1e-3)  # a trainer that computes otherwise is seen
    assert set(bars_and_dots(GROUP.assign(reward=1.0, advantage=0.0))[0]) == {0.0}


def test_memory_over_time_of_both_ways():
    together, apart = (training_budget(SMALL, "h100", gpus=8, where=way) for way in WAYS)
    every, training, generation = step_memory().axes
    # Two steps of 39 s; taking turns, nothing waits, and all time is covered.
    assert sum(bar.get_width() for bar in every.patches) == pytest.approx(78)
    heights = [bar.get_height() for bar in every.patches[:4]]
    assert heights[1] == pytest.approx(sum(together.generate.values()))
    assert heights[3] == pytest.approx(sum(together.update.values()))
    assert len({round(bar.get_height(), 6) for bar in generation.patches}) == 1
    busy = max(bar.get_height() for bar in training.patches)
    assert busy == pytest.approx(sum(apart.update.values()))


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.plot_load_sweep(pd.DataFrame()), "no finished level"),
        (lambda: plots.plot_token_timeline([]), "no text"),
        (lambda: plots.plot_serve_paths("three GPUs"), "no recording 'three GPUs'"),
        (lambda: plots.plot_startup_timeline(STEPS[:0]), "nothing to draw"),
        (lambda: step_memory(("dedicated", "dedicated")), "one colocated and one dedicated"),
        (lambda: step_memory(generate_s=0), "must be positive"),
    ],
)
def test_nothing_to_draw_is_refused(draw, words):
    with pytest.raises(WorkshopError, match=words):
        draw()
