"""CUDA graphs that vLLM's older runner counts within `gpu_memory_utilization`.

It captures two graphs of each kind, takes the second as the price of every other one, and keeps
the sum free. Read off `profile_cudagraph_memory` in vllm/v1/worker/gpu_model_runner.py; what a
graph costs is the driver's matter and was measured (vLLM 0.25.1, data/recorded/h200).
"""

from __future__ import annotations

__all__ = ["capture_sizes", "counted_graphs_gib"]

# The first graph of a kind, MiB, and what every other one costs: in pieces the least that the
# driver hands out; whole (attention too) more with each layer, in such steps.
_FIRST_MIB = 58
_STEP_MIB = 2
_LAYERS_A_STEP = 12
# Modules and pools that stay outside PyTorch after the trial, MiB a layer.
_LEFT_MIB = 1 / 3
# With TP=2 a whole graph took one step less, the first one half (two models).
_TP_FIRST_MIB = 28


def capture_sizes(largest: int) -> list[int]:
    """Batch sizes that vLLM captures graphs for.

    Args:
        largest: The largest one, tokens.

    Source: `_set_cudagraph_sizes` in vllm/config/vllm.py.

    Example:
        >>> len(capture_sizes(512)), len(capture_sizes(256))
        (51, 35)
    """
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]
    return [size for size in sizes if size <= largest]


def counted_graphs_gib(layers: int, *, sequences: int, tokens: int, tp: int = 1) -> float:
    """What the older runner takes out of its share for CUDA graphs, GiB on one GPU.

    Args:
        layers: Layers on the GPU.
        sequences: `--max-num-seqs`.
        tokens: `--max-num-batched-tokens`.
        tp: Tensor-parallel size.

    Example:
        >>> round(counted_graphs_gib(48, sequences=1024, tokens=8192), 2)
        0.66
    """
    largest = min(2 * sequences, 512, tokens)
    pieces, whole = capture_sizes(largest), capture_sizes(min(largest, sequences))
    steps = max(1, 1 + round(layers / _LAYERS_A_STEP) - (tp > 1))
    mib = _FIRST_MIB if tp == 1 else _TP_FIRST_MIB
    mib += (len(pieces) - 1) * _STEP_MIB + (len(whole) - 1) * steps * _STEP_MIB
    return (mib + layers * _LEFT_MIB) / 1024
