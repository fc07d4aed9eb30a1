"""The KV cache's rounding and block tables against vLLM's own code, on this machine's build."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from workshop_lib.serving.memory import GIB, ModelShape, kv_cache_capacity
from workshop_lib.serving.simulators import PagedCache

WINDOWS = {
    "full": [0] * 32,
    "window": [4096] * 32,
    "every second": [4096, 0] * 21,
    "five of six": ([512] * 5 + [0]) * 4 + [512] * 2,
    "padded": [512] * 12 + [0] * 13,
}


def vllm_capacity(
    windows: Sequence[int], length: int, memory: int, **sizes: Any
) -> tuple[int, int, Any]:
    """Blocks, tokens and concurrency as vLLM computes them for layers with these windows."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    specs = {
        f"layer.{i}": SlidingWindowSpec(block_size=16, sliding_window=window, **sizes)
        if window
        else FullAttentionSpec(block_size=16, **sizes)
        for i, window in enumerate(windows)
    }
    return capacity_of_specs(specs, length, memory)


def capacity_of_specs(specs: dict[str, Any], length: int, memory: int) -> tuple[int, int, Any]:
    from vllm.config import CacheConfig, VllmConfig
    from vllm.v1.core import kv_cache_utils

    config = VllmConfig(cache_config=CacheConfig(block_size=16))
    config.cache_config.kv_cache_layout = "LBNHC"
    config.model_config = SimpleNamespace(max_model_len=length, original_max_model_len=length)
    config.scheduler_config.max_num_batched_tokens = 8192
    config.scheduler_config.disable_hybrid_kv_cache_manager = False
    found = kv_cache_utils.get_kv_cache_configs(config, [specs], [memory])[0]
    tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(config, found)
    return found.num_blocks, tokens, pytest.approx(concurrency)


def ours(shape: ModelShape, length: int, memory: int, **settings: Any) -> tuple[int, int, Any]:
    found = kv_cache_capacity(memory, shape, max_model_len=length, **settings)
    return found.blocks, found.tokens, found.concurrency


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("length", [1000, 4096, 32_768])
def test_capacity_equals_vllms(name: str, length: int) -> None:
    import torch

    windows = WINDOWS[name]
    changes = {"layers": len(windows), "windows": tuple(windows) if any(windows) else ()}
    shape = ModelShape.named("mistral-7b").model_copy(update=changes)
    memory = 30 * GIB + 12_345
    sizes = {"num_kv_heads": 8, "head_size": 128, "dtype": torch.bfloat16}
    assert ours(shape, length, memory) == vllm_capacity(windows, length, memory, **sizes)


SPLITS = [
    ("mistral-7b", 2, "auto"),
    ("llama-3.1-70b", 8, "auto"),
    ("llama-3.1-70b", 16, "auto"),  # more GPUs than KV heads: copies
    ("llama-3.1-8b", 1, "fp8"),
    ("mixtral-8x7b", 4, "fp8"),
    ("qwen3-30b-a3b", 2, "auto"),
    ("gemma-2-9b", 2, "auto"),
    ("gemma-3-1b", 1, "auto"),
]


@pytest.mark.parametrize(("name", "tp", "kv_dtype"), SPLITS)
def test_known_models_take_as_many_bytes_as_vllms_specs(name: str, tp: int, kv_dtype: str) -> None:
    import torch

    shape = ModelShape.named(name)
    expected = vllm_capacity(
        shape.windows or [0] * shape.layers,
        8000,
        10 * GIB,
        num_kv_heads=max(1, shape.kv_heads // tp),
        head_size=shape.head_dim,
        dtype=torch.uint8 if kv_dtype == "fp8" else torch.bfloat16,
    )
    assert ours(shape, 8000, 10 * GIB, tp=tp, kv_dtype=kv_dtype) == expected


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_latent_attention_takes_as_many_bytes_as_vllms_spec(tp: int) -> None:
    """All heads share one vector, so tensor parallelism saves nothing of it."""
    import torch
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    shape = ModelShape.named("deepseek-v2-lite")
    assert shape.latent is not None
    spec = MLAAttentionSpec(
        block_size=16,
        num_kv_heads=1,
        head_size=shape.latent.kv_rank + shape.latent.rope_dim,
        dtype=torch.bfloat16,
    )
    specs = {f"layer.{i}": spec for i in range(shape.layers)}
    assert ours(shape, 4096, 10 * GIB, tp=tp) == capacity_of_specs(specs, 4096, 10 * GIB)


def test_block_tables_equal_vllms() -> None:
    """The same requests through vLLM's block pool: the same numbers in the same order."""
    from vllm.v1.core.block_pool import BlockPool

    pool = BlockPool(num_gpu_blocks=41, enable_caching=False, hash_block_size=16)
    cache = PagedCache(blocks=40, block_size=16)
    theirs: dict[str, list[Any]] = {}
    load = [("a", 20), ("b", 40), ("a", 30), ("c", 16), ("b", -1), ("d", 100), ("a", 1), ("e", 300)]
    lengths: dict[str, int] = {}
    for name, tokens in load:
        if tokens < 0:
            cache.release(name)
            pool.free_blocks(reversed(theirs.pop(name)))
            del lengths[name]
            continue
        lengths[name] = lengths.get(name, 0) + tokens
        missing = math.ceil(lengths[name] / 16) - len(theirs.get(name, []))
        theirs[name] = theirs.get(name, []) + pool.get_new_blocks(missing)
        assert cache.append(name, tokens)
        tables = {request: [block.block_id for block in held] for request, held in theirs.items()}
        assert cache.tables == tables
    assert cache.free_blocks == pool.get_num_free_blocks()
