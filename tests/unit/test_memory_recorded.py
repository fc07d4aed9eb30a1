"""Budgets against what vLLM 0.25.1 said on H200, one row of the recording a start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workshop_lib.memory import GIB, Budget, ModelShape, activation_peaks, gpu_budget
from workshop_lib.memory.weights import stage_layers

ROOT = Path(__file__).resolve().parents[2]
RECORDING = ROOT / "data/recorded/h200/vllm-0.25.1-memory.jsonl"
STARTS = [json.loads(line) for line in RECORDING.read_text().splitlines()]


def shape_of(start: dict[str, Any]) -> ModelShape:
    return ModelShape.from_config(start["config"], name=start["model"])


def budget_of(start: dict[str, Any]) -> Budget:
    return gpu_budget(
        shape_of(start),
        "h200",
        gpu_memory_utilization=start["gpu_memory_utilization"],
        max_model_len=start["max_model_len"],
        tp=start["tp"],
        pp=start["pp"],
        kv_dtype=start["kv_cache_dtype"],
        enforce_eager=start["enforce_eager"],
        max_num_batched_tokens=start["max_num_batched_tokens"],
        max_num_seqs=start["max_num_seqs"],
        first_start=start["first_start"],
    )


def test_the_recording_has_all_kinds_of_models() -> None:
    shapes = [shape_of(start) for start in STARTS]
    assert len(STARTS) >= 15
    assert {start["tp"] for start in STARTS} == {1, 2} == {start["pp"] for start in STARTS}
    assert any(s.experts for s in shapes) and any(s.windows for s in shapes)
    assert {s.quantization.bits for s in shapes if s.quantization} == {4, 8}
    assert {start["gpu_memory_utilization"] for start in STARTS} == {0.5, 0.8, 0.9}


@pytest.mark.parametrize("start", STARTS, ids=[start["id"] for start in STARTS])
def test_tokens_are_within_one_percent(start: dict[str, Any]) -> None:
    kv = budget_of(start).kv
    assert kv.tokens == pytest.approx(start["kv_cache_tokens"], rel=0.002)  # 1% is the promise
    assert kv.concurrency == pytest.approx(start["max_concurrency"], rel=0.002)


@pytest.mark.parametrize("start", STARTS, ids=[start["id"] for start in STARTS])
def test_weights_and_activations_of_each_gpu(start: dict[str, Any]) -> None:
    shape = shape_of(start)
    tp, pp = start["tp"], start["pp"]
    for stage in range(pp):
        said = start["weights_bytes"][stage]
        computed = shape.weights_bytes(tp, pp, stage=stage)
        # The allocator rounds tensors up; quantized layers are laid out anew.
        assert computed == pytest.approx(said, rel=0.025, abs=5 * 2**20)
        peaks = activation_peaks(
            shape,
            batched_tokens=start["max_num_batched_tokens"],
            sequences=start["max_num_seqs"],
            tp=tp,
            compiled=start["first_start"] and not start["enforce_eager"],
            first_stage=stage == 0,
            last_stage=stage == pp - 1,
        )
        exact = shape.experts is None and shape.quantization is None
        assert max(peaks.values()) * GIB == pytest.approx(
            start["activation_bytes"][stage], abs=(4 if exact else 80) * 2**20
        )


def test_stages_hold_each_layer_once() -> None:
    shape = ModelShape.named("llama-3.1-405b")
    for pp in (1, 2, 3, 4, 8, 126):
        held = [layer for stage in range(pp) for layer in stage_layers(shape, pp, stage)]
        assert held == list(range(126))


def test_a_first_start_leaves_less_for_the_cache_than_a_second() -> None:
    shape = ModelShape.named("llama-3.1-8b")
    first, second, eager = (
        gpu_budget(shape, "h200", first_start=first_start, enforce_eager=eager)
        for first_start, eager in ((True, False), (False, False), (True, True))
    )
    assert first.kv.tokens < second.kv.tokens == eager.kv.tokens
    assert eager.cuda_graphs_gib == 0 < second.cuda_graphs_gib
