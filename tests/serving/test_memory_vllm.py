"""The KV cache's rounding and block tables against vLLM's own code, on this machine's build."""

from __future__ import annotations

import math
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
    windows: list[int], length: int, memory: int, **sizes: Any
) -> tuple[int, float, int]:
    """Blocks, concurrency and tokens as vLLM computes them for layers with these windows."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    sizes = {
        "block_size": 16,
        "num_kv_heads": 8,
        "head_size": 128,
        "dtype": torch.bfloat16,
        **sizes,
    }
    return capacity_of_specs(
        {
            f"layer.{i}": SlidingWindowSpec(sliding_window=window, **sizes)
            if window
            else FullAttentionSpec(**sizes)
            for i, window in enumerate(windows)
        },
        length,
        memory,
    )


def capacity_of_specs(specs: dict[str, Any], length: int, memory: int) -> tuple[int, float, int]:
    from vllm.config import CacheConfig, VllmConfig
    from vllm.v1.core import kv_cache_utils

    config = VllmConfig(cache_config=CacheConfig(block_size=16))
    config.cache_config.kv_cache_layout = "LBNHC"
    config.model_config = SimpleNamespace(max_model_len=length, original_max_model_len=length)
    config.scheduler_config.max_num_batched_tokens = 8192
    config.scheduler_config.disable_hybrid_kv_cache_manager = False
    found = kv_cache_utils.get_kv_cache_configs(config, [specs], [memory])[0]
    tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(config, found)
    return found.num_blocks, concurrency, tokens


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("length", [1000, 4096, 32_768])
def test_capacity_equals_vllms(name: str, length: int) -> None:
    windows = WINDOWS[name]
    shape = ModelShape(
        name=name,
        architecture="LlamaForCausalLM",
        layers=len(windows),
        hidden_size=4096,
        intermediate_size=14336,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab_size=32_000,
        max_positions=32_768,
        tied_embeddings=False,
        windows=tuple(windows) if any(windows) else (),
    )
    memory = 30 * GIB + 12_345
    capacity = kv_cache_capacity(memory, shape, max_model_len=length)
    blocks, concurrency, tokens = vllm_capacity(windows, length, memory)
    assert (capacity.blocks, capacity.tokens) == (blocks, tokens)
    assert capacity.concurrency == pytest.approx(concurrency)


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
    windows = list(shape.windows) or [0] * shape.layers
    blocks, concurrency, tokens = vllm_capacity(
        windows,
        8000,
        10 * GIB,
        num_kv_heads=max(1, shape.kv_heads // tp),
        head_size=shape.head_dim,
        dtype=torch.uint8 if kv_dtype == "fp8" else torch.bfloat16,
    )
    capacity = kv_cache_capacity(10 * GIB, shape, max_model_len=8000, tp=tp, kv_dtype=kv_dtype)
    assert (capacity.blocks, capacity.tokens) == (blocks, tokens)
    assert capacity.concurrency == pytest.approx(concurrency)


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
    blocks, _, tokens = capacity_of_specs(specs, 4096, 10 * GIB)
    capacity = kv_cache_capacity(10 * GIB, shape, max_model_len=4096, tp=tp)
    assert (capacity.blocks, capacity.tokens) == (blocks, tokens)


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
