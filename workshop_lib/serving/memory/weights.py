"""Parameters of a model, layer by layer, and the bytes of them that one GPU holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.errors import ModelError
from workshop_lib.serving.memory.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from workshop_lib.serving.memory.shape import ModelShape

MIB = 2**20

__all__ = ["count_parameters", "linear_sizes", "stage_bytes", "stage_layers"]


def count_parameters(shape: ModelShape, *, active: bool = False) -> int:
    """Parameters of the whole model, tied embeddings once.

    Args:
        shape: The model.
        active: Only those that one token passes through: of the routed experts the chosen ones.

    Example:
        >>> from workshop_lib.serving.memory.shape import ModelShape
        >>> count_parameters(ModelShape.named("mistral-7b"))
        7248023552
    """
    layers = sum(
        _linear(shape, layer, tp=1, active=active) + _beside(shape, layer, tp=1)
        for layer in range(shape.layers)
    )
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    return embeddings + layers + shape.hidden_size


def stage_layers(shape: ModelShape, pp: int, stage: int) -> range:
    """The layers of one pipeline stage.

    Layers that are left over go to the stages before the last, from behind, because the last
    has the output layer.

    Args:
        shape: The model.
        pp: Number of stages.
        stage: The stage, from 0.

    Raises:
        ModelError: More stages than layers.

    Source: `get_pp_indices` in vllm/distributed/utils.py.

    Example:
        >>> from workshop_lib.serving.memory.shape import ModelShape
        >>> [len(stage_layers(ModelShape.named("llama-3.1-405b"), 4, n)) for n in range(4)]
        [31, 32, 32, 31]
    """
    if not 1 <= pp <= shape.layers:
        raise ModelError(
            f"{shape.name}: {shape.layers} layers cannot be cut into {pp} pipeline stages; "
            f"use 1 to {shape.layers}"
        )
    sizes = [shape.layers // pp] * pp
    for extra in range(2, shape.layers % pp + 2):
        sizes[-extra] += 1
    return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))


def stage_bytes(shape: ModelShape, *, tp: int, pp: int, stage: int) -> int:
    """Bytes of weights on one GPU of a pipeline stage.

    Args:
        shape: The model.
        tp: Tensor-parallel size.
        pp: Pipeline-parallel size.
        stage: The stage, from 0.

    Raises:
        ModelError: More stages than layers.

    Example:
        >>> from workshop_lib.serving.memory.shape import ModelShape
        >>> round(stage_bytes(ModelShape.named("llama-2-7b"), tp=1, pp=1, stage=0) / 2**30, 2)
        12.55
    """
    from workshop_lib.serving.memory.shape import dtype_bytes

    size = dtype_bytes(shape.dtype)
    table = shape.padded_vocab // tp * shape.hidden_size
    first, last = stage == 0, stage == pp - 1
    tables = 1 if shape.tied_embeddings and (first or last) else first + last
    numbers = tables * table + (shape.hidden_size if last else 0)
    layers = stage_layers(shape, pp, stage)
    numbers += sum(_beside(shape, layer, tp) for layer in layers)
    linear = sum(_linear(shape, layer, tp) for layer in layers)
    each = shape.quantization.bytes_per_weight if shape.quantization else size
    rounding = tables * _rounding(table * size)
    if not shape.quantization:
        rounding += sum(
            _rounding(count * size) for layer in layers for count in _tensors(shape, layer, tp)
        )
    return int(numbers * size + linear * each) + _rotary_bytes(shape, size) + rounding


def linear_sizes(shape: ModelShape) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of a layer without experts, as LoRA adapts them.

    Args:
        shape: The model.

    Example:
        >>> from workshop_lib.serving.memory.shape import ModelShape
        >>> linear_sizes(ModelShape.named("mistral-7b"))[:2]
        [(4096, 4096), (4096, 1024)]
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries = shape.heads * shape.head_dim
    keys = shape.kv_heads * shape.head_dim
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def _rotary_bytes(shape: ModelShape, size: int) -> int:
    """The tables of the rotary embedding; latent attention keeps its own in float32.

    Source: `rotary_embedding/base.py` and `deepseek_scaling_rope.py` in vLLM.
    """
    if shape.latent:
        return shape.max_positions * shape.latent.rope_dim * 4
    tables = ARCHITECTURES[shape.architecture].rotary_tables
    return tables * shape.max_positions * shape.head_dim * size


def _rounding(size: int) -> int:
    """Bytes that PyTorch's allocator adds to a large tensor.

    It takes 10 MiB and more from CUDA in steps of 2 MiB, and gives the rest of a step to other
    tensors only when that is more than 1 MiB.

    Source: `should_split` and `get_allocation_size` in c10/cuda/CUDACachingAllocator.cpp.
    """
    rest = -size % (2 * MIB)
    return rest if size >= 10 * MIB and rest <= MIB else 0


def _tensors(shape: ModelShape, layer: int, tp: int) -> list[int]:
    """Numbers in each of a layer's matrices on one of `tp` GPUs, joined as vLLM joins them."""
    hidden, heads, latent = shape.hidden_size, shape.heads // tp, shape.latent
    if latent is None:
        queries = heads * shape.head_dim
        keys_values = 2 * max(1, shape.kv_heads // tp) * shape.head_dim
        tensors = [hidden * (queries + keys_values), queries * hidden]
    else:
        queries = heads * (latent.nope_dim + latent.rope_dim)
        tensors = [(latent.query_rank or hidden) * queries, heads * latent.value_dim * hidden]
        tensors.append(latent.kv_rank * heads * (latent.nope_dim + latent.value_dim))
        tensors.append(hidden * (latent.query_rank + latent.kv_rank + latent.rope_dim))
    experts = shape.experts
    if experts is None or layer < experts.dense_layers:
        inner = hidden * (shape.intermediate_size // tp)
    else:
        routed = experts.count * hidden * (experts.size // tp)
        tensors += [2 * routed, routed]
        inner = hidden * (experts.shared_size // tp)
    return [*tensors, 2 * inner, inner]


def _linear(shape: ModelShape, layer: int, tp: int, *, active: bool = False) -> int:
    """Weights of a layer's linear layers on one of `tp` GPUs: what quantization reaches."""
    hidden = shape.hidden_size
    experts = shape.experts
    if experts is None or layer < experts.dense_layers:
        mlp = 3 * hidden * (shape.intermediate_size // tp)
    else:
        used = experts.active if active else experts.count
        mlp = 3 * hidden * (used * (experts.size // tp) + experts.shared_size // tp)
    return _attention(shape, tp) + mlp


def _attention(shape: ModelShape, tp: int) -> int:
    hidden, heads = shape.hidden_size, shape.heads // tp
    latent = shape.latent
    if latent is None:
        queries = heads * shape.head_dim
        keys_values = 2 * max(1, shape.kv_heads // tp) * shape.head_dim
        return hidden * (queries + keys_values) + queries * hidden
    query_width = heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank:
        count = latent.query_rank * (hidden + query_width)
    else:
        count = hidden * query_width
    # The compressed vector belongs to all heads: every GPU has the whole of it.
    count += hidden * (latent.kv_rank + latent.rope_dim)
    count += latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
    return count + heads * latent.value_dim * hidden


def _beside(shape: ModelShape, layer: int, tp: int) -> int:
    """Norms, biases and the expert router of a layer on one GPU: never quantized."""
    hidden = shape.hidden_size
    queries = shape.heads // tp * shape.head_dim
    keys_values = 2 * max(1, shape.kv_heads // tp) * shape.head_dim
    inner = shape.intermediate_size // tp
    count = shape.norms * hidden + 2 * shape.head_dim * shape.qk_norm
    count += (queries + keys_values) * shape.qkv_bias + hidden * shape.output_bias
    count += (2 * inner + hidden) * shape.mlp_bias
    if shape.latent:
        count += shape.latent.kv_rank + shape.latent.query_rank
    if shape.experts and layer >= shape.experts.dense_layers:
        count += (hidden + shape.experts.router_bias) * shape.experts.count
    return count
