"""Budgets against what vLLM 0.25.1 said on H200, one row of the recording a start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workshop_lib.serving.memory import GIB, Budget, ModelShape, activation_peaks, gpu_budget
from workshop_lib.serving.memory.cuda_graphs import counted_graphs_gib
from workshop_lib.serving.memory.weights import stage_layers

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = [
    ROOT / f"data/recorded/h200/vllm-0.25.1-memory{name}.jsonl" for name in ("", "-blind")
]
STARTS = [json.loads(line) for file in RECORDINGS for line in file.read_text().splitlines()]
MIB = 2**20
# Peaks that are not explained to 4 MiB: quantized layers, what lies beside a decompressed
# context of 128 heads, and 32 MiB in an eager step of 16,384 tokens.
LOOSE_MIB = {"deepseek-v3-4-layers.05": 50, "qwen3-0.6b.16k-step.eager": 34}


def shape_of(start: dict[str, Any]) -> ModelShape:
    shape = ModelShape.from_config(start["config"], name=start["model"])
    return shape.with_dtype(start.get("dtype", "auto"))


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
    shares = {start["gpu_memory_utilization"] for start in STARTS}
    assert shares == {0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95}
    assert any(s.latent for s in shapes) and any(s.experts and s.latent is None for s in shapes)
    assert any(start["tp"] == 2 and s.experts for start, s in zip(STARTS, shapes, strict=True))


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
        # The allocator splits small tensors' blocks in ways of its own; quantized layers are
        # laid out anew.
        assert computed == pytest.approx(said, rel=0.025, abs=5 * MIB)
        if not shape.quantization:
            assert computed == pytest.approx(said, abs=45 * MIB)
        peaks = activation_peaks(
            shape,
            batched_tokens=start["max_num_batched_tokens"],
            sequences=start["max_num_seqs"],
            tp=tp,
            compiled=start["first_start"] and not start["enforce_eager"],
            first_stage=stage == 0,
            last_stage=stage == pp - 1,
            max_model_len=start["max_model_len"],
        )
        bound = LOOSE_MIB.get(start["id"], 80 if shape.quantization else 4)
        assert max(peaks.values()) * GIB == pytest.approx(
            start["activation_bytes"][stage], abs=bound * MIB
        )


GRAPHS = [start for start in STARTS if start["counted_graphs_bytes"]]


@pytest.mark.parametrize("start", GRAPHS, ids=[start["id"] for start in GRAPHS])
def test_counted_graphs_are_within_a_few_mib(start: dict[str, Any]) -> None:
    counted = counted_graphs_gib(
        shape_of(start).layers,
        sequences=start["max_num_seqs"],
        tokens=start["max_num_batched_tokens"],
        tp=start["tp"],
    )
    # The modules that stay outside PyTorch after the trial are in the sum.
    said = start["counted_graphs_bytes"] + shape_of(start).layers / 3 * MIB
    assert counted * GIB == pytest.approx(said, abs=5 * MIB)


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
