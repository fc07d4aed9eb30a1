"""What vLLM's profiling run takes at its peak: activations, sampler, compiler.

Before it sizes the KV cache, vLLM pushes `max_num_batched_tokens` tokens through the model,
samples once for `max_num_seqs` requests, and keeps the peak free for good. The sums below were
read off the code and agree with the peaks that vLLM 0.25.1 reported on H200
(data/recorded/h200) to 4 MiB for 16-bit models, dense and with experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.serving.memory.shape import GIB, dtype_bytes

if TYPE_CHECKING:
    from workshop_lib.serving.memory.shape import ModelShape

__all__ = ["activation_peaks", "uses_first_runner"]

MIB = 2**20
# cuBLAS' workspace on Hopper, which PyTorch allocates.
CUBLAS_BYTES = 32 * MIB
# Triton clears the L2 cache between the kernels that it times; an H200 has 60 MiB of it.
TIMING_BYTES = 60 * MIB
# Programs of the older sampler's top-k/top-p kernel, one for each multiprocessor of a Hopper GPU;
# each keeps a row of logits.
TOP_K_PROGRAMS = 132
# Context tokens that latent attention decompresses at once, at most.
_LATENT_TOKENS = 64 * 1024
_BLOCK_SIZE = 16


def uses_first_runner(shape: ModelShape) -> bool:
    """Whether vLLM 0.25 runs the model with its older runner (mixtures of experts, mostly).

    It counts CUDA graphs within `gpu_memory_utilization`, and its sampler takes more memory.

    Args:
        shape: The model.

    Source: `VllmConfig._is_default_v2_model_runner_model`.

    Example:
        >>> from workshop_lib.serving.memory.shape import ModelShape
        >>> uses_first_runner(ModelShape.named("mixtral-8x7b"))
        True
    """
    return shape.experts is not None and shape.architecture != "DeepseekV2ForCausalLM"


def activation_peaks(
    shape: ModelShape,
    *,
    batched_tokens: int,
    sequences: int,
    tp: int = 1,
    compiled: bool = True,
    first_stage: bool = True,
    last_stage: bool = True,
    max_model_len: int = 4096,
) -> dict[str, float]:
    """The candidates for the peak in GiB, by what causes it; the largest one counts.

    Args:
        shape: The model.
        batched_tokens: `--max-num-batched-tokens`.
        sequences: `--max-num-seqs`.
        tp: Tensor-parallel size.
        compiled: Whether vLLM compiles the model at this start: not with `--enforce-eager`, nor
            at a second start that finds the first one's files.
        first_stage: Whether the GPU holds the embedding (pipeline parallelism).
        last_stage: Whether the GPU samples (pipeline parallelism).
        max_model_len: Longest request, tokens; matters for latent attention only.

    Raises:
        ModelError: The model cannot be split over `tp` GPUs.

    Source: `profile_run` in vllm/v1/worker/gpu/model_runner.py; for experts `workspace_shapes`
    in fused_moe/experts/triton_moe.py and vllm/v1/worker/workspace.py, for latent attention
    `determine_chunked_prefill_workspace_size` in layers/attention/mla_attention.py.

    Example:
        >>> from workshop_lib.serving.memory.shape import ModelShape
        >>> shape = ModelShape.named("llama-3.1-70b")
        >>> peaks = activation_peaks(shape, batched_tokens=8192, sequences=1024, tp=2)
        >>> {name: round(gib, 2) for name, gib in peaks.items()}
        {'layers': 1.12, 'sampler': 0.91, 'compiler': 1.23}
    """
    shape.check_tp(tp)
    size = dtype_bytes(shape.dtype)
    hidden = batched_tokens * shape.hidden_size * size
    peaks = {"layers": _layers(shape, batched_tokens, tp) + TIMING_BYTES * compiled}
    # The experts' workspace is kept, so it is still there when the sampler runs.
    kept = _expert_workspace(shape, batched_tokens, tp) * size
    if last_stage:
        peaks["sampler"] = _sampler(shape, sequences) + hidden + kept
    if shape.latent:
        peaks["attention"] = kept + _latent_attention(
            shape, batched_tokens, sequences, tp, max_model_len, compiled=compiled
        )
    if compiled and first_stage:
        # The compiler times the kernel that reads the embedding on a copy of it.
        peaks["compiler"] = shape.padded_vocab // tp * shape.hidden_size * size + 2 * hidden
    return {name: peak / GIB for name, peak in peaks.items()}


def _layers(shape: ModelShape, tokens: int, tp: int) -> float:
    """Inside an MLP: gate and up, their product, the residual and two more hidden states."""
    size = dtype_bytes(shape.dtype)
    hidden = tokens * shape.hidden_size
    numbers = 3 * hidden
    if shape.experts is None:
        numbers += 3 * tokens * (shape.intermediate_size // tp)
    else:
        numbers += _expert_workspace(shape, tokens, tp) + hidden
        numbers += 3 * tokens * (shape.experts.shared_size // tp)
    quantized_inputs = hidden if shape.quantization and shape.quantization.bits == 8 else 0
    return numbers * size + quantized_inputs + CUBLAS_BYTES


def _expert_workspace(shape: ModelShape, tokens: int, tp: int) -> int:
    """Numbers in the two buffers of the experts; each holds a layer's inputs and outputs in turn.

    A token is there once for each expert that it uses. Tensor parallelism cuts the experts' inner
    size, not the hidden states.
    """
    if shape.experts is None:
        return 0
    inner, hidden = shape.experts.size // tp, shape.hidden_size
    return tokens * shape.experts.active * (max(2 * inner, hidden) + max(inner, hidden))


def _latent_attention(
    shape: ModelShape, tokens: int, sequences: int, tp: int, max_model_len: int, *, compiled: bool
) -> float:
    """Keys and values of a decompressed context, beside one layer's queries and states."""
    latent = shape.latent
    assert latent is not None
    pages = sequences * _BLOCK_SIZE
    context = max(min(max(8 * max_model_len, 4 * pages), _LATENT_TOKENS), pages)
    heads = shape.heads // tp
    numbers = context * heads * (latent.nope_dim + latent.value_dim)
    compressed = latent.kv_rank + latent.rope_dim
    queries = heads * (latent.nope_dim + latent.rope_dim)
    numbers += tokens * (shape.hidden_size + queries + compressed + heads * latent.value_dim)
    if not compiled:  # the layer's input and the joined projection are still alive
        numbers += tokens * (shape.hidden_size + compressed)
    return numbers * dtype_bytes(shape.dtype) + CUBLAS_BYTES


def _sampler(shape: ModelShape, sequences: int) -> float:
    """Logits as the model gives them and in float32, and the sampler's partial results."""
    size = dtype_bytes(shape.dtype)
    states = sequences * shape.hidden_size * size
    if uses_first_runner(shape):
        # Probabilities and their noise too, and a second set of states: random ones.
        logits = sequences * shape.vocab_size * (size + 12)
        return logits + TOP_K_PROGRAMS * shape.vocab_size * 4 + 2 * states + CUBLAS_BYTES
    logits = sequences * shape.vocab_size * (size + 4)
    partial = sequences * -(-shape.vocab_size // 1024) * 12
    return logits + partial + states + CUBLAS_BYTES
