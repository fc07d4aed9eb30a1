"""The memory budget of one device that serves a model with vLLM.

Weights and KV cache are exact; what lies beside them on a GPU (activations,
buffers, CUDA modules, graphs) is an estimate, and a `Budget` names its
estimated parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.activations import activation_peaks, uses_first_runner
from workshop_lib.serving.memory.cuda_graphs import counted_graphs_gib
from workshop_lib.serving.memory.devices import Device, find_device
from workshop_lib.serving.memory.kv_cache import (
    CPU_BLOCK_SIZE,
    GPU_BLOCK_SIZE,
    KVCapacity,
    kv_cache_capacity,
)
from workshop_lib.serving.memory.shape import GIB, ModelShape
from workshop_lib.serving.memory.weights import stage_layers

__all__ = ["Budget", "buffers_gib", "cpu_budget", "gpu_budget"]

# Memory that vLLM's process takes outside PyTorch while it profiles (CUDA modules, cuBLAS,
# NCCL): 230 MiB on one H200, 553 MiB with TP=2, 67 MiB with PP=2, where NCCL had loaded the
# modules before the first reading (vLLM 0.25.1, data/recorded/h200).
RUNTIME_GIB = 230 / 1024
RUNTIME_TP_GIB = 553 / 1024
RUNTIME_PP_GIB = 67 / 1024
# CUDA graphs took 0.44 to 0.98 GiB on seven models there ("Graph capturing finished"): the most.
CUDA_GRAPHS_GIB = 0.98
# Resident memory of vLLM's CPU server beside weights and KV cache, seen with the laptop's
# model (vLLM 0.32): API server 0.6, engine 0.5, worker 0.8; Python and torch, mostly.
CPU_RUNTIME_GIB = 1.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Where the memory of one device goes when vLLM serves a model on it.

    The parts add up to `capacity_gib`. `buffers_gib` and `cuda_graphs_gib` lie beyond
    the share that `gpu_memory_utilization` bounds (see `gpu_budget`). `estimated` names
    the parts that are not exact.

    Example:
        >>> shape = ModelShape.named("mistral-7b-shape-h200")
        >>> budget = gpu_budget(shape, "h200", gpu_memory_utilization=0.9, max_model_len=4096)
        >>> round(budget.weights_gib, 2), round(budget.kv_gib, 1), budget.fits
        (13.76, 110.9, True)
    """

    device: str
    model: str
    tp: int
    capacity_gib: float
    weights_gib: float
    activations_gib: float
    runtime_gib: float
    kv_gib: float
    cuda_graphs_gib: float
    kv: KVCapacity
    gpu_memory_utilization: float | None = None
    estimated: tuple[str, ...] = ()
    pp: int = 1
    buffers_gib: float = 0.0

    @property
    def free_gib(self) -> float:
        """What is left on the device; negative when it is too small."""
        used = self.weights_gib + self.activations_gib + self.runtime_gib
        used += self.buffers_gib + self.cuda_graphs_gib
        return self.capacity_gib - used - max(0.0, self.kv_gib)

    @property
    def fits(self) -> bool:
        """Whether vLLM starts and can hold one request of `max_model_len` tokens."""
        return self.kv.fits and self.free_gib >= 0

    @property
    def reason(self) -> str:
        """Why it does not fit and what to change, in one line; empty when it fits."""
        if self.fits:
            return ""
        split = f"TP={self.tp}" + (f", PP={self.pp}" if self.pp > 1 else "")
        where = f"{self.model} on {self.device} ({split})"
        if self.free_gib < 0:
            return (
                f"{where}: {-self.free_gib:.1f} GiB more than the device has; "
                "lower gpu_memory_utilization or raise the tensor-parallel size"
            )
        if self.kv_gib <= 0:
            return (
                f"{where}: weights and buffers leave no memory for the KV cache "
                f"({self.kv_gib:.1f} GiB); raise gpu_memory_utilization or the tensor-parallel size"
            )
        longest = max(0, self.kv.blocks - 1) * self.kv.block_size // max(1, self.kv.groups)
        return (
            f"{where}: the KV cache holds {self.kv.tokens:,} tokens, too few for one request of "
            f"{self.kv.max_model_len:,}; set max_model_len to at most {longest:,}"
        )

    def parts(self) -> dict[str, float]:
        """The parts in GiB, in the order in which they are drawn; they add up to the capacity.

        Example:
            >>> shape = ModelShape.named("mistral-7b")
            >>> budget = gpu_budget(shape, "h100")
            >>> abs(sum(budget.parts().values()) - budget.capacity_gib) < 1e-9
            True
        """
        return {
            "weights": self.weights_gib,
            "activations": self.activations_gib,
            "runtime": self.runtime_gib,
            "buffers": self.buffers_gib,
            "KV cache": max(0.0, self.kv_gib),
            "CUDA graphs": self.cuda_graphs_gib,
            "free": self.free_gib,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; `kv_cache_tokens` is an integer.

        Example:
            >>> shape = ModelShape.named("smollm2-135m")
            >>> cpu_budget(shape, kv_gib=1, memory_gib=24).to_dict()["kv_cache_tokens"]
            46592
        """
        return {
            "model": self.model,
            "device": self.device,
            "tp": self.tp,
            "pp": self.pp,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.kv.max_model_len,
            "kv_cache_tokens": self.kv.tokens,
            "max_concurrency": round(self.kv.concurrency, 2),
            "kv_blocks": self.kv.blocks,
            "block_size": self.kv.block_size,
            "fits": self.fits,
            "reason": self.reason,
            "capacity_gib": round(self.capacity_gib, 3),
            "gib": {name: round(gib, 3) for name, gib in self.parts().items()},
            "estimated": list(self.estimated),
        }


def buffers_gib(shape: ModelShape, *, sequences: int) -> float:
    """Memory of the sampler's penalty counters, which vLLM allocates at start.

    A 4-byte count and one bit for each sequence and vocabulary entry.

    Args:
        shape: The model.
        sequences: `--max-num-seqs`.

    Source: `PenaltiesState` in vllm/v1/worker/gpu/sample/penalties.py.

    Example:
        >>> shape = ModelShape.named("mistral-7b")
        >>> round(buffers_gib(shape, sequences=1024), 2)
        0.13
    """
    return sequences * 4 * (shape.vocab_size + -(-shape.vocab_size // 32)) / GIB


def gpu_budget(
    shape: ModelShape,
    device: str | Device,
    *,
    gpu_memory_utilization: float = 0.92,
    max_model_len: int = 4096,
    tp: int = 1,
    block_size: int = GPU_BLOCK_SIZE,
    kv_dtype: str = "auto",
    enforce_eager: bool = False,
    pp: int = 1,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    first_start: bool = True,
) -> Budget:
    """The memory of one GPU when vLLM serves `shape` on `tp` · `pp` of them.

    vLLM takes `gpu_memory_utilization` of the memory that CUDA sees, for
    everything: weights, temporary tensors, runtime and KV cache. The KV cache
    gets what the others leave. CUDA graphs and the sampler's buffers come on
    top of that share, except with vLLM's older runner (mixtures of experts),
    which counts its graphs within.

    Exact: weights, KV bytes a token, rounding. Estimated: activations, runtime,
    buffers, CUDA graphs. On H200 the tokens of 44 starts came out within 0.15% of
    what vLLM 0.25.1 said (data/recorded/h200); no other GPU type was measured.

    Args:
        shape: The model.
        device: A name in `DEVICES`, or a device of your own.
        gpu_memory_utilization: Share of the GPU for the whole instance (vLLM's default: 0.92).
        max_model_len: Longest request, tokens.
        tp: Tensor-parallel size.
        block_size: Tokens in a block.
        kv_dtype: Number format of the KV cache.
        enforce_eager: Whether vLLM runs without CUDA graphs and without compiling.
        pp: Pipeline-parallel size; the budget is that of the stage with the least room.
        max_num_batched_tokens: Tokens of one step; by default vLLM's choice for the device.
        max_num_seqs: Requests of one step; by default vLLM's choice for the device, but no
            more than the tokens.
        first_start: Whether vLLM compiles the model at this start; a later start that finds
            the compiled files has up to 0.3 GiB more for its KV cache.

    Raises:
        WorkshopError: A value out of range, or an unknown device.
        ModelError: The model cannot be split so.

    Source: `request_memory` in vllm/v1/worker/utils.py,
    `Worker.determine_available_memory` in vllm/v1/worker/gpu_worker.py, and for the limits of a
    step `EngineArgs._set_default_max_num_seqs_and_batched_tokens_args`.

    Example:
        >>> shape = ModelShape.named("llama-3.1-70b")
        >>> gpu_budget(shape, "h100", tp=1).fits, gpu_budget(shape, "h100", tp=4).fits
        (False, True)
    """
    if not 0 < gpu_memory_utilization <= 1:
        raise WorkshopError(
            f"gpu_memory_utilization {gpu_memory_utilization} is out of range; use 0.1 to 1.0"
        )
    gpu = find_device(device) if isinstance(device, str) else device
    sequences, tokens = _step_limits(gpu, max_num_seqs, max_num_batched_tokens, max_model_len)
    _positive("pp", pp)
    _check_request(shape, max_model_len, block_size)
    first_runner = uses_first_runner(shape)
    graphs = 0.0 if enforce_eager else CUDA_GRAPHS_GIB
    runtime = RUNTIME_TP_GIB if tp > 1 else RUNTIME_PP_GIB if pp > 1 else RUNTIME_GIB
    stages = []
    for stage in range(pp):
        weights = shape.weights_bytes(tp, pp, stage=stage) / GIB
        peaks = activation_peaks(
            shape,
            batched_tokens=tokens,
            sequences=sequences,
            tp=tp,
            compiled=first_start and not enforce_eager,
            first_stage=stage == 0,
            last_stage=stage == pp - 1,
            max_model_len=max_model_len,
        )
        activations = max(peaks.values())
        kv = gpu_memory_utilization * gpu.cuda_gib - weights - activations - runtime
        if first_runner and not enforce_eager:
            layers = len(stage_layers(shape, pp, stage))
            graphs = counted_graphs_gib(layers, sequences=sequences, tokens=tokens, tp=tp)
            kv -= graphs
        capacity = kv_cache_capacity(
            int(kv * GIB),
            shape,
            max_model_len=max_model_len,
            block_size=block_size,
            tp=tp,
            kv_dtype=kv_dtype,
            batched_tokens=tokens,
            layers=stage_layers(shape, pp, stage),
        )
        stages.append((capacity.concurrency, kv, weights, activations, graphs, capacity))
    # All stages use as many blocks as the one with the fewest.
    _, kv, weights, activations, graphs, capacity = min(stages, key=lambda found: found[:2])
    return Budget(
        device=gpu.name,
        model=shape.name,
        tp=tp,
        pp=pp,
        capacity_gib=gpu.cuda_gib,
        weights_gib=weights,
        activations_gib=activations,
        runtime_gib=runtime,
        buffers_gib=buffers_gib(shape, sequences=sequences),
        kv_gib=kv,
        cuda_graphs_gib=graphs,
        kv=capacity,
        gpu_memory_utilization=gpu_memory_utilization,
        estimated=("activations", "runtime", "buffers", "CUDA graphs"),
    )


def cpu_budget(
    shape: ModelShape,
    *,
    kv_gib: int,
    memory_gib: float,
    max_model_len: int = 1024,
    tp: int = 1,
    block_size: int = CPU_BLOCK_SIZE,
    kv_dtype: str = "auto",
) -> Budget:
    """The memory of this machine when vLLM's CPU build serves `shape` on it.

    On a CPU the KV cache is given, not what is left over: `VLLM_CPU_KVCACHE_SPACE`.
    Exact: weights and KV cache. Estimated: the server's own memory.

    Args:
        shape: The model, in the number format that it is served in.
        kv_gib: `VLLM_CPU_KVCACHE_SPACE`, whole GiB.
        memory_gib: The machine's memory, GiB.
        max_model_len: Longest request, tokens.
        tp: Tensor-parallel size; each of the `tp` processes has weights and a cache of its own.
        block_size: Tokens in a block.
        kv_dtype: Number format of the KV cache.

    Raises:
        WorkshopError: A value out of range.
        ModelError: The model cannot be split over `tp` processes.

    Source: `CpuPlatform.check_and_update_config` in vllm/platforms/cpu.py.

    Example:
        >>> shape = ModelShape.named("smollm2-135m").with_dtype("float32")
        >>> cpu_budget(shape, kv_gib=1, memory_gib=24).kv.tokens
        23296
    """
    _positive("VLLM_CPU_KVCACHE_SPACE", kv_gib)
    _positive("memory_gib", memory_gib)
    shape.check_length(max_model_len)
    capacity = kv_cache_capacity(
        kv_gib * GIB,
        shape,
        max_model_len=max_model_len,
        block_size=block_size,
        tp=tp,
        kv_dtype=kv_dtype,
    )
    return Budget(
        device="CPU",
        model=shape.name,
        tp=tp,
        capacity_gib=memory_gib,
        weights_gib=tp * shape.weights_bytes(tp) / GIB,
        activations_gib=0.0,
        runtime_gib=CPU_RUNTIME_GIB,
        kv_gib=tp * kv_gib,
        cuda_graphs_gib=0.0,
        kv=capacity,
        estimated=("runtime",),
    )


def _step_limits(
    gpu: Device, sequences: int | None, tokens: int | None, max_model_len: int
) -> tuple[int, int]:
    """Requests and tokens of one step, as vLLM settles them."""
    for name, value in (("max_num_seqs", sequences), ("max_num_batched_tokens", tokens)):
        if value is not None:
            _positive(name, value)
    _positive("max_model_len", max_model_len)
    settled = gpu.max_sequences if sequences is None else sequences
    if tokens is None:
        tokens = min(gpu.max_batched_tokens, settled * max_model_len)
    if sequences is None:
        return min(settled, tokens), tokens
    if tokens < sequences:
        raise WorkshopError(
            f"max_num_batched_tokens {tokens:,} is less than max_num_seqs {sequences:,}, which "
            "vLLM refuses: each running request needs a token of a step"
        )
    return sequences, tokens


def _check_request(shape: ModelShape, max_model_len: int, block_size: int) -> None:
    shape.check_length(max_model_len)
    if block_size < 1 or block_size % GPU_BLOCK_SIZE:
        raise WorkshopError(
            f"block_size must be a multiple of {GPU_BLOCK_SIZE} on a GPU, got {block_size}"
        )


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:  # NaN is not positive either
        raise WorkshopError(f"{name} must be a number above 0, got {value}")
