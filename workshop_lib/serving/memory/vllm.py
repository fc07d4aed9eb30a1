"""The memory of a device that serves a model with vLLM, and the tokens of its KV cache.

Weights, bytes a token and the rounding of the KV cache follow from the model. What lies beside
them on a GPU was read off vLLM's code and measured at 43 starts of vLLM 0.25.1 and ten of 0.29.0
on H200 (data/recorded/h200): the predicted tokens are within 1% there, most within 0.5%.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.model import (
    DTYPE_BYTES,
    GIB,
    ModelShape,
    dtype_name,
    stage_layers,
)

if TYPE_CHECKING:
    import pandas as pd

# The two ways of counting that were measured: 0.29 runs every model with the newer runner, counts
# CUDA graphs within the share, and takes what PyTorch's allocator keeps as used.
OLDER, NEWER = "0.25.1", "0.29.0"
# Tokens in a block: vLLM's default on GPUs, and the one that its CPU platform sets when
# --block-size is not given (CpuPlatform.check_and_update_config in vllm/platforms/cpu.py).
GPU_BLOCK_SIZE, CPU_BLOCK_SIZE = 16, 128
# CUDA modules, NCCL and cuBLAS with its workspace while vLLM profiles: on one H200, with TP=2.
RUNTIME_GIB, RUNTIME_TP_GIB = 262 / 1024, 585 / 1024
# A CUDA context, which exists before vLLM counts: its start line says 78.66 of 79.19 GiB free
# on an H100 and 21.84 of 22.03 on an L4 (public logs).
CONTEXT_SHARE = 0.008
# CUDA graphs took 0.35 to 0.98 GiB on H200: about this, and for each layer this, less with experts.
GRAPHS_MIB, GRAPHS_LAYER_MIB, GRAPHS_EXPERTS_MIB = 350, 16, 9
# Resident memory of vLLM's CPU server beside weights and KV cache, seen with the laptop's model
# (vLLM 0.32): API server 0.6, engine 0.5, worker 0.8; Python and torch, mostly.
CPU_RUNTIME_GIB = 1.9
# What the allocator kept beside that with 0.29.0 on one GPU, models without experts: 0.2 to 0.9.
KEPT_GIB = 0.5
# Context tokens that latent attention decompresses at once, at most.
LATENT_TOKENS = 64 * 1024


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU type and the memory that CUDA can hand out; `nvidia-smi` shows a little more."""

    name: str
    cuda_gib: float

    @property
    def step_limits(self) -> tuple[int, int]:
        """Default `--max-num-batched-tokens` and `--max-num-seqs` of vLLM's API server.

        Source: `EngineArgs.get_batch_defaults`.
        """
        if self.cuda_gib >= 70 and "A100" not in self.name:
            return (16_384 if self.cuda_gib >= 160 else 8192), 1024
        return 2048, 256


# H200: torch.cuda.mem_get_info, driver 580.159. The others: "total capacity" in PyTorch's
# out-of-memory messages in public issues; between driver versions they vary by up to 0.2 GiB.
DEVICES = {
    "a10g": Device("A10G", 22.06),
    "l4": Device("L4", 22.03),
    "l40s": Device("L40S", 44.39),
    "a100-40": Device("A100-40GB", 39.49),
    "a100-80": Device("A100-80GB", 79.25),
    "h100": Device("H100-80GB", 79.19),
    "h200": Device("H200", 150_109_880_320 / GIB),
    "b200": Device("B200", 178.35),
    "b300": Device("B300", 267.69),
}


def find_device(name: str) -> Device:
    """The device of that name: a key of `DEVICES`, what `nvidia-smi` calls it, or `name:GiB`."""
    label, _, size = name.partition(":")
    if re.fullmatch(r"\d+(\.\d+)?", size) and float(size):
        return Device(label, float(size))
    words = re.split(r"[-\s]+", label.lower().removeprefix("nvidia ").strip())
    kept = [w.removesuffix("gb") for w in words if not re.fullmatch(r"sxm\d*|pcie|hbm\w+|ac", w)]
    key = "-".join(kept).replace("h100-80", "h100")
    if size or key not in DEVICES:
        raise WorkshopError(
            f"the memory of the GPU {name!r} is not known; give it in GiB, as "
            f"torch.cuda.mem_get_info()[1] says it, for example {label}:44.4, or use one of "
            f"{', '.join(DEVICES)}"
        )
    return DEVICES[key]


def kv_bytes_per_token(shape: ModelShape, *, tp: int = 1, kv_dtype: str = "auto") -> int:
    """Bytes of KV cache of one token on one GPU: 2 · layers · kv_heads · head_dim · bytes / TP.

    Beyond `kv_heads` GPUs the heads are copied, not split. Latent attention keeps one vector a
    layer, which all heads share: tensor parallelism copies it.

    Source: `AttentionSpec.page_size_bytes` in vllm/v1/kv_cache_interface.py.
    """
    size = DTYPE_BYTES[shape.dtype if kv_dtype == "auto" else dtype_name(kv_dtype)]
    shape.check_tp(tp)
    if shape.latent:
        return shape.layers * (shape.latent.kv_rank + shape.latent.rope_dim) * size
    return 2 * shape.layers * max(1, shape.kv_heads // tp) * shape.head_dim * size


def layer_groups(windows: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Layers in a group and each group's window, for the layers' windows (0 for none).

    A block holds the tokens of one group of layers of one kind; a request takes blocks for
    each group. Source: `_get_kv_cache_groups_uniform_page_size` in vllm/v1/core/kv_cache_utils.py.
    """
    kinds = Counter(windows)
    smallest, largest = min(kinds.values()), max(kinds.values())
    # A little padding is cheaper than many groups: vLLM's rule.
    size = largest if largest < 1.5 * smallest else smallest
    return size, tuple(w for w, count in kinds.items() for _ in range(-(-count // size)))


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """What a KV cache holds, in the numbers of the engine's start line.

    `fits` says whether vLLM starts: one block stays unused, the rest must hold one request.
    `groups` counts the groups of layers with block tables of their own.
    """

    tokens: int
    blocks: int
    block_size: int
    max_model_len: int
    concurrency: float
    fits: bool
    groups: int = 1

    def line(self, device: str = "GPU") -> str:
        """The engine's start line for this cache on a `GPU` or `CPU`, as vLLM 0.32 logs it."""
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
    """What `kv_bytes` of KV cache on one GPU hold, rounded exactly as vLLM does.

    Whole blocks only, and a request takes whole blocks, so the token count that vLLM prints is
    (blocks / blocks per request) · `max_model_len`, cut to an integer. `layers` are those of a
    pipeline stage; `batched_tokens` matters for layers with a window only.

    Source: `get_max_concurrency_for_kv_cache_config`, `get_kv_cache_capacity` and
    `check_enough_kv_cache_memory` in vllm/v1/core/kv_cache_utils.py (0.32.0).
    """
    here = layers if layers is not None else range(shape.layers)
    group_size, windows = layer_groups([shape.windows[i] if shape.windows else 0 for i in here])
    layer_bytes = kv_bytes_per_token(shape, tp=tp, kv_dtype=kv_dtype) // shape.layers
    blocks = max(0, kv_bytes) // (block_size * group_size * layer_bytes)
    needed = 0
    for window in windows:
        # A window's blocks are given back between two steps only; it takes one more, because it
        # need not start where a block starts (`max_memory_usage_bytes` in kv_cache_interface.py).
        held = min(window - 1 + batched_tokens, max_model_len) if window else max_model_len
        needed += -(-held // block_size) + (1 if window else 0)
    return KVCapacity(
        tokens=int(blocks / needed * max_model_len),
        blocks=blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        concurrency=blocks / needed,
        fits=blocks - 1 >= needed,
        groups=len(windows),
    )


# "KV cache of a 7B model on an H100 80 GB", often repeated: GB of cache, tokens.
CLAIMED_TOKENS = {56: 45_000, 32: 25_000}


def claimed_kv(shapes: Sequence[ModelShape]) -> pd.DataFrame:
    """The tokens that are often claimed for a KV cache, beside the computed ones.

    The claims come from an earlier edition of this workshop.

    Args:
        shapes: Models of 7 billion parameters.

    Returns:
        One row a claim and model: `cache_gb`, `claimed`, `model`, `computed`, `factor`.

    Example:
        >>> table = claimed_kv([ModelShape.named("llama-2-7b"), ModelShape.named("mistral-7b")])
        >>> table.factor.tolist()
        [2.4, 9.5, 2.4, 9.8]
    """
    import pandas as pd

    rows = []
    for gigabytes, claimed in CLAIMED_TOKENS.items():
        for shape in shapes:
            capacity = kv_cache_capacity(gigabytes * 10**9, shape, max_model_len=4096)
            factor = round(capacity.tokens / claimed, 1)
            rows.append((gigabytes, claimed, shape.name, capacity.tokens, factor))
    return pd.DataFrame(rows, columns=["cache_gb", "claimed", "model", "computed", "factor"])


def _first_runner(shape: ModelShape, version: str) -> bool:
    """Whether vLLM runs the model with its older runner (0.25: mixtures of experts, mostly).

    That runner counts CUDA graphs within `gpu_memory_utilization`, and its sampler takes more.
    """
    return (
        version == OLDER
        and shape.experts is not None
        and shape.architecture != "DeepseekV2ForCausalLM"
    )


def activations_gib(
    shape: ModelShape,
    *,
    tokens: int,
    sequences: int,
    tp: int = 1,
    max_model_len: int = 4096,
    last_stage: bool = True,
    compiled: bool = True,
    version: str = OLDER,
) -> float:
    """The peak of vLLM's profiling run on one GPU, which it keeps free for good, GiB.

    vLLM pushes `tokens` tokens (`--max-num-batched-tokens`) through the model and samples once
    for `sequences` requests (`--max-num-seqs`). The largest moment counts: inside a layer, in
    the sampler, in latent attention, in the compiler at a first start, or in a multimodal
    model's image encoder.

    Source: `profile_run` in vllm/v1/worker/gpu/model_runner.py; for experts `workspace_shapes`
    in fused_moe/experts/triton_moe.py, for latent attention
    `determine_chunked_prefill_workspace_size` in layers/attention/mla_attention.py.
    """
    size, latent, experts = shape.number_bytes, shape.latent, shape.experts
    hidden = tokens * shape.hidden_size
    workspace = 0
    if experts is None:  # gate and up, their product, the residual and two more hidden states
        numbers = 3 * hidden + 3 * tokens * (shape.intermediate_size // tp)
    else:
        # Two buffers hold each layer's inputs and outputs in turn, a token once for each of its
        # experts. They are kept, so they are still there when the sampler runs.
        inner = experts.size // tp
        workspace = max(2 * inner, shape.hidden_size) + max(inner, shape.hidden_size)
        workspace *= tokens * experts.active
        numbers = 4 * hidden + 3 * tokens * (experts.shared * experts.size // tp) + workspace
    peaks = [numbers * size]
    if last_stage:  # logits as the model gives them and in float32; the older sampler's noise too
        logit = size + (12 if _first_runner(shape, version) else 4)
        peaks.append(sequences * shape.vocab_size * logit + (hidden + workspace) * size)
    if latent:
        heads = shape.heads // tp
        pages = sequences * GPU_BLOCK_SIZE
        context = max(min(max(8 * max_model_len, 4 * pages), LATENT_TOKENS), pages)
        each = shape.hidden_size + heads * (latent.nope_dim + latent.rope_dim + latent.value_dim)
        numbers = context * heads * (latent.nope_dim + latent.value_dim) + workspace
        peaks.append((numbers + tokens * (each + latent.kv_rank + latent.rope_dim)) * size)
    if compiled:  # the compiler times the kernel that reads the embedding on a copy of it
        peaks.append((shape.padded_vocab // tp * shape.hidden_size + 2 * hidden) * size)
    if vision := shape.vision:
        images = min(max(tokens, vision.tokens) // vision.tokens, sequences)
        width = 2 * (vision.hidden_size + vision.intermediate_size)
        peaks[0] += images * vision.tokens * shape.hidden_size * size
        peaks.append(images * vision.patches * width * size)
    return max(peaks) / GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Where the memory of one device goes when vLLM serves a model on it, GiB.

    The parts add up to `capacity_gib`; `estimated` names those that are not exact, `measured`
    the vLLM and GPU that the estimates come from. `buffers_gib` and, but for experts,
    `cuda_graphs_gib` lie beyond the share that `gpu_memory_utilization` bounds.

    Example:
        >>> shape = ModelShape.named("mistral-7b-shape-h200")
        >>> budget = gpu_budget(shape, "h200", gpu_memory_utilization=0.9, max_model_len=4096)
        >>> round(budget.weights_gib, 2), round(budget.kv_gib), budget.fits
        (13.76, 111, True)
    """

    device: str
    model: str
    tp: int
    pp: int = 1
    capacity_gib: float
    weights_gib: float
    activations_gib: float = 0.0
    runtime_gib: float
    buffers_gib: float = 0.0
    kv_gib: float
    cuda_graphs_gib: float = 0.0
    kv: KVCapacity
    gpu_memory_utilization: float | None = None
    estimated: tuple[str, ...]
    measured: str

    def parts(self) -> dict[str, float]:
        """The parts in GiB, in the order in which they are drawn; they add up to the capacity."""
        parts = {
            "weights": self.weights_gib,
            "activations": self.activations_gib,
            "runtime": self.runtime_gib,
            "buffers": self.buffers_gib,
            "KV cache": max(0.0, self.kv_gib),
            "CUDA graphs": self.cuda_graphs_gib,
        }
        return parts | {"free": self.capacity_gib - sum(parts.values())}

    @property
    def free_gib(self) -> float:
        """What is left on the device; negative when it is too small."""
        return self.parts()["free"]

    @property
    def fits(self) -> bool:
        """Whether vLLM starts and can hold one request of `max_model_len` tokens."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why it does not fit and what to change, in one line; empty when it fits."""
        split = f"TP={self.tp}" + (f", PP={self.pp}" if self.pp > 1 else "")
        where = f"{self.model} on {self.device} ({split})"
        share = self.gpu_memory_utilization or 0.0
        if share > 1 - CONTEXT_SHARE:
            return (
                f"{where}: gpu_memory_utilization {share} asks for more than a GPU has free once "
                f"CUDA runs, and vLLM refuses; use at most {1 - CONTEXT_SHARE:.2f}"
            )
        if self.kv_gib <= 0:
            needed = self.weights_gib + self.activations_gib
            cure = "raise the tensor-parallel size, or take a larger GPU"
            if needed < (1 - CONTEXT_SHARE) * self.capacity_gib:
                cure = "raise gpu_memory_utilization or the tensor-parallel size"
            return (
                f"{where}: weights and activations take {needed:.1f} GiB of the device's "
                f"{self.capacity_gib:.1f} and leave no memory for the KV cache; {cure}"
            )
        if not self.kv.fits:
            longest = max(0, self.kv.blocks - 1) * self.kv.block_size // self.kv.groups
            return (
                f"{where}: the KV cache holds {self.kv.tokens:,} tokens, too few for one request "
                f"of {self.kv.max_model_len:,}; set max_model_len to at most {longest:,}"
            )
        if self.device == "CPU" and self.free_gib < 0:
            return (
                f"{where}: {-self.free_gib:.1f} GiB more than the machine has; lower "
                "VLLM_CPU_KVCACHE_SPACE or close other programs"
            )
        return ""

    @property
    def warning(self) -> str:
        """What may still go wrong although it fits, in one line; mostly empty."""
        if not self.fits or self.free_gib >= 0:
            return ""
        return (
            f"what comes on top of the share (buffers, CUDA graphs) is estimated to take "
            f"{-self.free_gib:.1f} GiB more than it leaves; lower gpu_memory_utilization if vLLM "
            "runs out of memory while it captures graphs"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; `kv_cache_tokens` is an integer."""
        own = ("model", "device", "tp", "pp", "gpu_memory_utilization", "fits", "reason", "warning")
        return {name: getattr(self, name) for name in (*own, "measured", "capacity_gib")} | {
            "max_model_len": self.kv.max_model_len,
            "kv_cache_tokens": self.kv.tokens,
            "max_concurrency": round(self.kv.concurrency, 2),
            "kv_blocks": self.kv.blocks,
            "block_size": self.kv.block_size,
            "gib": {name: round(gib, 3) for name, gib in self.parts().items()},
            "estimated": list(self.estimated),
        }


def gpu_budget(
    shape: ModelShape,
    device: str | Device,
    *,
    gpu_memory_utilization: float = 0.92,
    max_model_len: int = 4096,
    tp: int = 1,
    pp: int = 1,
    block_size: int = GPU_BLOCK_SIZE,
    kv_dtype: str = "auto",
    enforce_eager: bool = False,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    vllm: str = OLDER,
) -> Budget:
    """The memory of one GPU when vLLM serves `shape` on `tp` · `pp` of them.

    vLLM takes `gpu_memory_utilization` of the memory that CUDA sees, for everything: weights,
    temporary tensors, runtime and KV cache. The KV cache gets what the others leave. The sampler's
    buffers come on top of that share, and so do CUDA graphs before vLLM 0.29 (but for experts).

    Args:
        shape: The model.
        device: A name for `find_device`, or a device of your own.
        gpu_memory_utilization: Share of the GPU for the whole instance (vLLM's default: 0.92).
        max_model_len: Longest request, tokens.
        tp: Tensor-parallel size.
        pp: Pipeline-parallel size; the budget is that of the stage with the least room.
        block_size: Tokens in a block.
        kv_dtype: Number format of the KV cache; `auto` is the weights' format.
        enforce_eager: Whether vLLM runs without CUDA graphs and without compiling.
        max_num_batched_tokens: Tokens of one step; by default vLLM's choice for the device.
        max_num_seqs: Requests of one step; likewise.
        vllm: vLLM's version; what is measured is 0.25.1 and, for 0.29 and later, 0.29.0.

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
    _positive(pp=pp, max_model_len=max_model_len)
    shape.check_length(max_model_len)
    if block_size < 1 or block_size % GPU_BLOCK_SIZE:
        raise WorkshopError(
            f"block_size must be a multiple of {GPU_BLOCK_SIZE} on a GPU, got {block_size}"
        )
    tokens, sequences = _step_limits(gpu, max_num_batched_tokens, max_num_seqs, max_model_len)
    if shape.quantization and shape.quantization.experts_only and gpu.name.startswith("H"):
        form = shape.quantization.model_copy(update={"padding": (64, 1)})
        shape = shape.model_copy(update={"quantization": form})
    version = _counted_as(vllm)
    runtime = RUNTIME_TP_GIB if tp > 1 else RUNTIME_GIB
    if version == NEWER and tp * pp == 1 and shape.experts is None:
        runtime += KEPT_GIB
    layer_mib = GRAPHS_EXPERTS_MIB if shape.experts else GRAPHS_LAYER_MIB
    stages = []
    for stage in range(pp):
        layers = stage_layers(shape, pp, stage)
        weights = shape.weights_bytes(tp, pp, stage=stage) / GIB
        activations = activations_gib(
            shape,
            tokens=tokens,
            sequences=sequences,
            tp=tp,
            max_model_len=max_model_len,
            last_stage=stage == pp - 1,
            compiled=stage == 0 and not enforce_eager,
            version=version,
        )
        graphs = 0.0 if enforce_eager else (GRAPHS_MIB + layer_mib * len(layers)) / 1024
        kv_gib = gpu_memory_utilization * gpu.cuda_gib - weights - activations - runtime
        if version == NEWER or _first_runner(shape, version):
            kv_gib -= graphs
        kv = kv_cache_capacity(
            int(kv_gib * GIB),
            shape,
            max_model_len=max_model_len,
            block_size=block_size,
            tp=tp,
            kv_dtype=kv_dtype,
            batched_tokens=tokens,
            layers=layers,
        )
        stages.append((kv.concurrency, kv_gib, weights, activations, graphs, kv))
    # All stages use as many blocks as the one with the fewest.
    _, kv_gib, weights, activations, graphs, kv = min(stages, key=lambda found: found[:2])
    return Budget(
        device=gpu.name,
        model=shape.name,
        tp=tp,
        pp=pp,
        capacity_gib=gpu.cuda_gib,
        weights_gib=weights,
        activations_gib=activations,
        runtime_gib=runtime + CONTEXT_SHARE * gpu.cuda_gib,
        # The sampler's penalty counters: 4 bytes and a bit for each sequence and vocabulary entry
        # (`PenaltiesState` in vllm/v1/worker/gpu/sample/penalties.py).
        buffers_gib=sequences * 4 * (shape.vocab_size + -(-shape.vocab_size // 32)) / GIB,
        kv_gib=kv_gib,
        cuda_graphs_gib=graphs,
        kv=kv,
        gpu_memory_utilization=gpu_memory_utilization,
        estimated=("activations", "runtime", "buffers", "CUDA graphs"),
        measured=f"vLLM {version} on H200" + ("" if gpu.name == "H200" else f"; not on {gpu.name}"),
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

    On a CPU the KV cache is given, not what is left over: `kv_gib` is `VLLM_CPU_KVCACHE_SPACE`,
    for each of the `tp` processes.
    """
    _positive(
        VLLM_CPU_KVCACHE_SPACE=kv_gib,
        memory_gib=memory_gib,
        max_model_len=max_model_len,
        block_size=block_size,
    )
    shape.check_length(max_model_len)
    sizes: dict[str, Any] = {"max_model_len": max_model_len, "block_size": block_size}
    return Budget(
        device="CPU",
        model=shape.name,
        tp=tp,
        capacity_gib=memory_gib,
        weights_gib=tp * shape.weights_bytes(tp) / GIB,
        runtime_gib=CPU_RUNTIME_GIB,
        kv_gib=tp * kv_gib,
        kv=kv_cache_capacity(kv_gib * GIB, shape, tp=tp, kv_dtype=kv_dtype, **sizes),
        estimated=("runtime",),
        measured="vLLM 0.32.0 (CPU build)",
    )


def _counted_as(version: str) -> str:
    numbers = re.fullmatch(r"v?(\d+)\.(\d+)(\..*)?", version)
    if numbers is None:
        raise WorkshopError(f"vLLM's version {version!r} is none; give one like {NEWER}")
    return NEWER if (int(numbers[1]), int(numbers[2])) >= (0, 29) else OLDER


def _step_limits(
    gpu: Device, tokens: int | None, sequences: int | None, max_model_len: int
) -> tuple[int, int]:
    """Tokens and requests of one step, as vLLM settles them."""
    most_tokens, most_sequences = gpu.step_limits
    if tokens is None:
        tokens = min(most_tokens, (sequences or most_sequences) * max_model_len)
    if sequences is None:
        sequences = min(most_sequences, tokens)
    _positive(max_num_batched_tokens=tokens, max_num_seqs=sequences)
    if tokens < sequences:
        raise WorkshopError(
            f"max_num_batched_tokens {tokens:,} is less than max_num_seqs {sequences:,}, which "
            "vLLM refuses: each running request needs a token of a step"
        )
    return tokens, sequences


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:  # NaN is not positive either
            raise WorkshopError(f"{name} must be a number above 0, got {value}")
