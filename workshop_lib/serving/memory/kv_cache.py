"""The KV cache in tokens, blocks and requests, rounded exactly as vLLM rounds.

Pure arithmetic. vLLM's printed numbers follow from three facts: the cache is
cut into blocks of a fixed number of tokens, a request takes whole blocks, and
memory that does not make a whole block is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.shape import GIB, ModelShape, dtype_bytes

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CPU_BLOCK_SIZE",
    "GPU_BLOCK_SIZE",
    "KVCapacity",
    "block_waste",
    "blocks_per_request",
    "contiguous_waste",
    "kv_bytes_per_token",
    "kv_cache_capacity",
    "kv_cache_tokens",
    "kv_table",
    "layer_groups",
]

# Tokens in a block: vLLM's default on GPUs, and the one that its CPU platform sets when
# --block-size is not given (CpuPlatform.check_and_update_config in vllm/platforms/cpu.py).
GPU_BLOCK_SIZE = 16
CPU_BLOCK_SIZE = 128


def kv_bytes_per_token(shape: ModelShape, *, tp: int = 1, kv_dtype: str = "auto") -> int:
    """Bytes of KV cache that one token takes on one GPU.

    A key and a value vector for each layer and KV head:
    2 · layers · kv_heads · head_dim · bytes, with the KV heads split over `tp` GPUs.
    Layers with a window keep a token only while it is inside; latent attention keeps one
    compressed vector a layer.

    Args:
        shape: The model.
        tp: Tensor-parallel size; beyond `kv_heads` the heads are copied, not split.
        kv_dtype: Number format of the cache; `auto` is the weights' format.

    Raises:
        ModelError: The model cannot be split so, or the format is not known.

    Source: `AttentionSpec.page_size_bytes` in vllm/v1/kv_cache_interface.py.

    Example:
        >>> kv_bytes_per_token(ModelShape.named("llama-2-7b")) / 2**20
        0.5
    """
    return shape.layers * _layer_bytes(shape, tp, kv_dtype)


def _layer_bytes(shape: ModelShape, tp: int, kv_dtype: str) -> int:
    """Bytes that one token takes in one layer on one GPU."""
    size = dtype_bytes(shape.dtype if kv_dtype == "auto" else kv_dtype)
    shape.check_tp(tp)
    if shape.latent:
        # All heads share the compressed vector: tensor parallelism copies it.
        return (shape.latent.kv_rank + shape.latent.rope_dim) * size
    return 2 * shape.kv_heads_per_gpu(tp) * shape.head_dim * size


def layer_groups(windows: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """How vLLM's hybrid KV cache manager groups layers with and without a window.

    A block holds the tokens of one group: so many layers of one kind. A request takes
    blocks for each group; a group with a window gives back the blocks that fell out of it.

    Args:
        windows: For each layer its window in tokens; 0 for none.

    Returns:
        Layers in a group, and each group's window.

    Raises:
        WorkshopError: No layers.

    Source: `_get_kv_cache_groups_uniform_page_size` in vllm/v1/core/kv_cache_utils.py.

    Example:
        >>> layer_groups([512, 512, 0, 512, 512, 0])
        (2, (512, 512, 0))
    """
    if not windows:
        raise WorkshopError("layer_groups needs at least one layer")
    kinds = Counter(windows)
    smallest, largest = min(kinds.values()), max(kinds.values())
    # A little padding is cheaper than many groups: vLLM's rule.
    size = largest if largest < 1.5 * smallest else smallest
    groups = [window for window, count in kinds.items() for _ in range(-(-count // size))]
    return size, tuple(groups)


def blocks_per_request(
    tokens: int, windows: Sequence[int], *, block_size: int, batched_tokens: int
) -> int:
    """Blocks that a request of `tokens` tokens takes at most, over all groups of layers.

    Args:
        tokens: Tokens of the request.
        windows: Each group's window, 0 for none (`layer_groups`).
        block_size: Tokens in a block.
        batched_tokens: `--max-num-batched-tokens`: a window's blocks are given back between
            two steps only.

    Source: `max_memory_usage_bytes` of `FullAttentionSpec` and `SlidingWindowSpec` in
    vllm/v1/kv_cache_interface.py.

    Example:
        >>> blocks_per_request(8192, [0, 4096], block_size=16, batched_tokens=8192)
        1025
    """
    count = 0
    for window in windows:
        held = min(window - 1 + batched_tokens, tokens) if window else tokens
        # One more, because a window need not start where a block starts.
        count += -(-held // block_size) + (1 if window else 0)
    return count


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """What a KV cache holds, in the numbers of the engine's start line.

    Attributes:
        tokens: "KV cache size", tokens.
        blocks: Blocks of `block_size` tokens.
        block_size: Tokens in a block.
        max_model_len: Longest request, tokens.
        concurrency: Requests of `max_model_len` tokens that fit at once.
        fits: Whether vLLM starts: one block stays unused, the rest must hold one request.
        groups: Groups of layers with block tables of their own (`layer_groups`).
    """

    tokens: int
    blocks: int
    block_size: int
    max_model_len: int
    concurrency: float
    fits: bool
    groups: int = 1

    def line(self, device: str = "GPU") -> str:
        """The engine's start line for this cache, as vLLM 0.32 logs it.

        Args:
            device: `GPU` or `CPU`.

        Example:
            >>> KVCapacity(23296, 182, 128, 1024, 22.75, True).line("CPU")[:32]
            'CPU KV cache size: 23,296 tokens'
        """
        return (
            f"{device} KV cache size: {self.tokens:,} tokens, Maximum concurrency for "
            f"{self.max_model_len:,} tokens per request: {self.concurrency:.2f}x"
        )


def kv_cache_capacity(
    kv_bytes: int,
    shape: ModelShape,
    *,
    max_model_len: int,
    block_size: int = GPU_BLOCK_SIZE,
    tp: int = 1,
    kv_dtype: str = "auto",
    batched_tokens: int = 8192,
    layers: range | None = None,
) -> KVCapacity:
    """What `kv_bytes` of KV cache hold, rounded exactly as vLLM does.

    Whole blocks only; a request takes whole blocks too, so the token count
    that vLLM prints is (blocks / blocks per request) · `max_model_len`, cut to
    an integer. With a `max_model_len` that is no multiple of the block size
    this is less than blocks · block size.

    Args:
        kv_bytes: Memory for the cache on one GPU, bytes.
        shape: The model.
        max_model_len: Longest request, tokens.
        block_size: Tokens in a block: 16 on GPUs, 128 on vLLM's CPU build.
        tp: Tensor-parallel size.
        kv_dtype: Number format of the cache; `auto` is the weights' format.
        batched_tokens: `--max-num-batched-tokens`; matters for layers with a window only.
        layers: The layers of this pipeline stage; all by default.

    Raises:
        WorkshopError: A size that is not positive.
        ModelError: The model cannot be split over `tp` GPUs.

    Source: `get_kv_cache_config_from_groups`, `get_max_concurrency_for_kv_cache_config`,
    `get_kv_cache_capacity` and `check_enough_kv_cache_memory` in
    vllm/v1/core/kv_cache_utils.py (0.32.0).

    Example:
        >>> shape = ModelShape.named("smollm2-135m").with_dtype("float32")
        >>> kv_cache_capacity(GIB, shape, max_model_len=1024, block_size=128).line("CPU")
        'CPU KV cache size: 23,296 tokens, Maximum concurrency for 1,024 tokens per request: 22.75x'
    """
    _positive("max_model_len", max_model_len)
    _positive("block_size", block_size)
    here = layers if layers is not None else range(shape.layers)
    group_size, windows = layer_groups([shape.windows[i] if shape.windows else 0 for i in here])
    block_bytes = block_size * group_size * _layer_bytes(shape, tp, kv_dtype)
    blocks = max(0, kv_bytes) // block_bytes
    needed = blocks_per_request(
        max_model_len, windows, block_size=block_size, batched_tokens=batched_tokens
    )
    concurrency = blocks / needed
    return KVCapacity(
        tokens=int(concurrency * max_model_len),
        blocks=blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        concurrency=concurrency,
        fits=kv_bytes - block_bytes >= needed * block_bytes,
        groups=len(windows),
    )


def kv_cache_tokens(
    kv_bytes: int,
    shape: ModelShape,
    *,
    max_model_len: int,
    block_size: int = GPU_BLOCK_SIZE,
    tp: int = 1,
    kv_dtype: str = "auto",
) -> int:
    """Tokens that `kv_bytes` of KV cache hold: `kv_cache_capacity(...).tokens`.

    Args:
        kv_bytes: Memory for the cache on one GPU, bytes.
        shape: The model.
        max_model_len: Longest request, tokens.
        block_size: Tokens in a block.
        tp: Tensor-parallel size.
        kv_dtype: Number format of the cache.

    Raises:
        WorkshopError: A size that is not positive.
        ModelError: The model cannot be split over `tp` GPUs.

    Example:
        >>> shape = ModelShape.named("llama-2-7b")
        >>> kv_cache_tokens(56 * GIB, shape, max_model_len=4096)
        114688
    """
    return kv_cache_capacity(
        kv_bytes,
        shape,
        max_model_len=max_model_len,
        block_size=block_size,
        tp=tp,
        kv_dtype=kv_dtype,
    ).tokens


def kv_table(
    shapes: Iterable[ModelShape], *, kv_gib: float, max_model_len: int = 4096
) -> pd.DataFrame:
    """How many tokens the same memory holds for different models.

    Args:
        shapes: The models.
        kv_gib: Memory for the KV cache, GiB.
        max_model_len: Longest request, tokens.

    Returns:
        One row a model: `model`, `kv_mib_per_token`, `tokens`, `requests`.

    Raises:
        WorkshopError: A size that is not positive.

    Example:
        >>> shapes = [ModelShape.named("mistral-7b")]
        >>> int(kv_table(shapes, kv_gib=56).tokens[0])
        458752
    """
    import pandas as pd

    rows = []
    for shape in shapes:
        capacity = kv_cache_capacity(int(kv_gib * GIB), shape, max_model_len=max_model_len)
        rows.append(
            {
                "model": shape.name,
                "kv_mib_per_token": kv_bytes_per_token(shape) / 2**20,
                "tokens": capacity.tokens,
                "requests": round(capacity.concurrency, 2),
            }
        )
    return pd.DataFrame(rows)


def block_waste(tokens: int, block_size: int) -> int:
    """Token slots that a request of `tokens` tokens holds and does not use.

    Only its last block can be partly empty, so it is always below `block_size`.

    Args:
        tokens: Tokens of the request so far.
        block_size: Tokens in a block.

    Raises:
        WorkshopError: A size that is not positive.

    Example:
        >>> block_waste(100, 16), block_waste(100, 64)
        (12, 28)
    """
    _positive("tokens", tokens)
    _positive("block_size", block_size)
    return -tokens % block_size


def contiguous_waste(tokens: int, max_model_len: int) -> int:
    """Token slots wasted if the longest possible request is reserved in one piece.

    Args:
        tokens: Tokens of the request so far.
        max_model_len: Longest request, tokens.

    Raises:
        WorkshopError: A size that is not positive, or more tokens than `max_model_len`.

    Example:
        >>> contiguous_waste(100, 1024)
        924
    """
    _positive("tokens", tokens)
    if tokens > max_model_len:
        raise WorkshopError(f"{tokens} tokens do not fit max_model_len {max_model_len}")
    return max_model_len - tokens


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise WorkshopError(f"{name} must be at least 1, got {value}")
