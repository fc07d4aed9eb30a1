"""The simulators, on cases worked out by hand and against the rules they model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import plot_batching, plot_paging
from workshop_lib.serving.simulators import (
    Job,
    PagedCache,
    sharded_layer,
    simulate_batching,
    simulate_paging,
)


def test_tables_by_hand() -> None:
    cache = PagedCache(blocks=6, block_size=4)
    assert cache.append("a", 5) and cache.append("b", 4)
    assert cache.tables == {"a": [1, 2], "b": [3]}
    assert cache.append("a", 3) and cache.tables["a"] == [1, 2]  # the second block had room
    assert cache.append("b") and cache.tables["b"] == [3, 4]
    assert cache.append("a") and cache.tables["a"] == [1, 2, 5]
    assert cache.fill() == {1: ("a", 4), 2: ("a", 4), 5: ("a", 1), 3: ("b", 4), 4: ("b", 1)}
    assert not cache.append("c", 5)  # two blocks, one is free
    assert "c" not in cache.tables and cache.free_blocks == 1
    cache.release("a")
    # Freed blocks are taken before block 6, the request's last one first.
    assert cache.append("c", 13) and cache.tables["c"] == [5, 2, 1, 6]


def test_waste_in_blocks_and_in_pieces() -> None:
    paging = simulate_paging({"a": 100, "b": 37}, blocks=64, block_size=16, max_model_len=512)
    assert {name: len(table) for name, table in paging.tables.items()} == {"a": 7, "b": 3}
    assert paging.wasted_slots == 12 + 11
    assert paging.pieces == ("a", "b") and paging.wasted_slots_in_pieces == 412 + 475
    assert [row["held"] for row in paging.summary()] == [160, 1024]


def test_blocks_store_more_requests_than_pieces() -> None:
    load = {f"r{i}": 100 for i in range(12)}
    paging = simulate_paging(load, blocks=64, block_size=16, max_model_len=512)
    assert len(paging.tables) == 9 and paging.waiting == ("r9", "r10", "r11")  # 64 / 7
    assert len(paging.pieces) == 2
    assert all(0 <= paging.wasted_slots / len(paging.tables) < 16 for _ in load)


def test_schedules_by_hand() -> None:
    jobs = [Job("A", 0, 12), Job("B", 0, 3), Job("C", 1, 2), Job("D", 2, 4)]
    static = simulate_batching(jobs, slots=2, policy="static")
    assert [(run.start, run.end) for run in static.runs] == [(0, 12), (0, 3), (12, 14), (12, 16)]
    assert (static.steps, static.mean_wait) == (16, (11 + 10) / 4)
    moving = simulate_batching(jobs, slots=2)
    assert [(run.start, run.end) for run in moving.runs] == [(0, 12), (0, 3), (3, 5), (5, 9)]
    assert (moving.steps, moving.mean_wait, moving.utilization) == (12, 5 / 4, 21 / 24)


def test_an_idle_engine_takes_what_comes() -> None:
    late = [Job("a", 5, 2), Job("b", 9, 1)]
    for policy in ("static", "continuous"):
        runs = simulate_batching(late, slots=3, policy=policy).runs  # type: ignore[arg-type]
        assert [(run.start, run.wait) for run in runs] == [(5, 0), (9, 0)]


def test_rules_of_scheduling_hold_for_any_load() -> None:
    rng = random.Random(5)
    for _ in range(200):
        slots = rng.randint(1, 5)
        jobs = [Job(str(i), rng.randint(0, 20), rng.randint(1, 15)) for i in range(12)]
        moving = simulate_batching(jobs, slots=slots)
        static = simulate_batching(jobs, slots=slots, policy="static")
        for schedule in (moving, static):
            busy = [set() for _ in range(schedule.steps)]
            for run in schedule.runs:
                assert run.start >= run.job.arrival and run.end - run.start == run.job.tokens
                for step in range(run.start, run.end):
                    assert run.slot not in busy[step]
                    busy[step].add(run.slot)
            by_arrival = sorted(schedule.runs, key=lambda run: run.job.arrival)
            starts = [run.start for run in by_arrival]
            assert starts == sorted(starts)  # first come, first served
            if schedule is moving:
                # No slot idles while somebody waits.
                for step in range(schedule.steps):
                    waits = any(run.job.arrival <= step < run.start for run in schedule.runs)
                    assert not waits or len(busy[step]) == slots
        assert moving.mean_wait <= static.mean_wait


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PagedCache(0, 16), "blocks must be at least 1"),
        (lambda: simulate_paging({"a": 0}, blocks=4), "tokens of a must be at least 1"),
        (lambda: simulate_paging({"a": 2000}, blocks=4), "more than max_model_len 1024"),
        (lambda: simulate_batching([], slots=1), "at least one job"),
        (lambda: simulate_batching([Job("a", 0, 1)], slots=0), "slots must be at least 1"),
    ],
)
def test_bad_input_is_one_line(call: object, words: str) -> None:
    with pytest.raises(WorkshopError, match=r"^[^\n]*$") as caught:
        call()  # type: ignore[operator]
    assert words in str(caught.value)


def test_figures_show_every_block_and_run() -> None:
    paging = simulate_paging({"a": 100, "b": 37, "c": 900}, blocks=64, max_model_len=1024)
    blocks, slots = plot_paging(paging).axes
    assert "64 blocks of 16" in blocks.get_title(loc="left")
    assert "2 wait" in "".join(text.get_text() for text in slots.texts)
    jobs = [Job("A", 0, 12), Job("B", 0, 3), Job("C", 1, 2)]
    schedules = [simulate_batching(jobs, slots=2, policy=p) for p in ("static", "continuous")]  # type: ignore[arg-type]
    panels = plot_batching(schedules).axes
    assert [text.get_text() for text in panels[1].texts] == ["A", "B", "C"]
    assert "12 steps" in panels[1].get_title(loc="left")


# -- tensor parallelism: the shards together are the whole -------------------------------------

SOURCE = np.random.default_rng(5)
X, UP, DOWN = (SOURCE.normal(size=shape) for shape in ((3, 24), (24, 48), (48, 24)))


@pytest.mark.parametrize("tp", [1, 2, 3, 4, 8, 48])
def test_the_sum_of_the_parts_is_the_whole(tp: int) -> None:
    layer = sharded_layer(X, UP, DOWN, tp=tp)
    by_hand = np.maximum(X @ UP, 0) @ DOWN
    assert np.allclose(np.sum(layer.partial, axis=0), by_hand) and np.allclose(layer.whole, by_hand)
    assert len(layer.partial) == tp and all(part.shape == (3, 24) for part in layer.partial)
    assert layer.weights_per_gpu == 2 * 24 * 48 // tp
    # No GPU has the answer before the all-reduce.
    assert all(np.allclose(part, by_hand) for part in layer.partial) is (tp == 1)
    row = layer.row()
    assert row["the sum is right"] and row["one GPU's part is right"] is (tp == 1)
    # 3 tokens of 24 numbers of 2 bytes, around a ring.
    assert row["bytes sent by each"] == int(2 * (tp - 1) / tp * 144)


@pytest.mark.parametrize(
    ("x", "up", "down", "tp", "words"),
    [
        (X, UP, DOWN, 5, "48 columns cannot be shared out over 5 GPUs"),
        (X, UP, DOWN, 0, "over 0 GPUs"),
        (X, DOWN, DOWN, 2, "do not make a product"),
        (X, UP, UP, 2, "do not make a product"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(x, up, down, tp, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WorkshopError, match=words):
        sharded_layer(x, up, down, tp=tp)
