"""What vLLM's profiling run takes at its peak: activations, sampler, compiler.

Before it sizes the KV cache, vLLM pushes `max_num_batched_tokens` tokens through the model,
samples once for `max_num_seqs` requests, and keeps the peak free for good. The sums below were
read off the code and agree with the peaks that vLLM 0.25.1 reported on H200
(data/recorded/h200/vllm-0.25.1-memory.jsonl) to 4 MiB for dense 16-bit models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.memory.shape import GIB, dtype_bytes

if TYPE_CHECKING:
    from workshop_lib.memory.shape import ModelShape

__all__ = ["activation_peaks", "uses_first_runner"]

MIB = 2**20
# cuBLAS' workspace on Hopper, which PyTorch allocates.
CUBLAS_BYTES = 32 * MIB
# Triton clears the L2 cache between the kernels that it times; an H200 has 60 MiB of it.
TIMING_BYTES = 60 * MIB


def uses_first_runner(shape: ModelShape) -> bool:
    """Whether vLLM 0.25 runs the model with its older runner (mixtures of experts, mostly).

    It counts CUDA graphs within `gpu_memory_utilization`, and its sampler takes more memory.

    Args:
        shape: The model.

    Source: `VllmConfig._is_default_v2_model_runner_model`.

    Example:
        >>> from workshop_lib.memory.shape import ModelShape
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

    Raises:
        ModelError: The model cannot be split over `tp` GPUs.

    Source: `profile_run` in vllm/v1/worker/gpu/model_runner.py.

    Example:
        >>> from workshop_lib.memory.shape import ModelShape
        >>> shape = ModelShape.named("llama-3.1-70b")
        >>> peaks = activation_peaks(shape, batched_tokens=8192, sequences=1024, tp=2)
        >>> {name: round(gib, 2) for name, gib in peaks.items()}
        {'layers': 1.12, 'sampler': 0.91, 'compiler': 1.23}
    """
    shape.check_tp(tp)
    size = dtype_bytes(shape.dtype)
    hidden = batched_tokens * shape.hidden_size * size
    peaks = {"layers": _layers(shape, batched_tokens, tp) + TIMING_BYTES * compiled}
    if last_stage:
        peaks["sampler"] = _sampler(shape, sequences) + hidden
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
        # Each token is there once for each expert that it uses.
        rows = tokens * shape.experts.active
        numbers += rows * (3 * (shape.experts.size // tp) + shape.hidden_size) + 2 * hidden
        numbers += 3 * tokens * (shape.experts.shared_size // tp)
    quantized_inputs = hidden if shape.quantization and shape.quantization.bits == 8 else 0
    return numbers * size + quantized_inputs + CUBLAS_BYTES


def _sampler(shape: ModelShape, sequences: int) -> float:
    """Logits as the model gives them and in float32, and the sampler's partial results."""
    size = dtype_bytes(shape.dtype)
    copies = 4 if uses_first_runner(shape) else 1
    logits = sequences * shape.vocab_size * (size + 4 * copies)
    partial = sequences * -(-shape.vocab_size // 1024) * 12
    return logits + partial + sequences * shape.hidden_size * size + CUBLAS_BYTES
