"""The memory of a GPU that trains a policy with GRPO, and of its generation.

A step has two phases that do not overlap: vLLM generates, then the trainer updates. On
dedicated GPUs each phase has its own; colocated they take turns on the same ones, and
what the other phase leaves behind counts.

The trainer's parts follow from the model; only activations and runtime are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.budget import Budget, gpu_budget
from workshop_lib.serving.memory.devices import Device, find_device
from workshop_lib.serving.memory.shape import GIB, ModelShape
from workshop_lib.serving.memory.weights import linear_sizes

__all__ = ["TrainingBudget", "lora_parameters", "training_activation_gib", "training_budget"]

Where = Literal["colocated", "dedicated"]
Reference = Literal["gpu", "cpu", "none"]

# Weights and gradients in 16 bits, AdamW's two moments and the weights' own copy in float32
# (Rajbhandari et al., "ZeRO", 2020, section 3.1: 16 bytes a parameter in all).
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 2, 2, 12
# CUDA modules, NCCL, the allocator's fragments.
TRAINER_RUNTIME_GIB = 2.0
# What a sleeping vLLM keeps: its CUDA modules and graphs.
ASLEEP_GIB = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBudget:
    """What each phase of a GRPO step takes on its GPU.

    Attributes:
        device: GPU type.
        model: The policy.
        gpus: GPUs that share the trainer's state.
        lora_rank: Rank of the adapters; None when all parameters are trained.
        where: Whether generation shares the trainer's GPUs.
        capacity_gib: What the GPU has.
        update: Parts while the trainer updates, GiB.
        generate: Parts while vLLM generates, GiB.
        rollout: vLLM's own budget.

    Example:
        >>> shape = ModelShape.named("mistral-7b")
        >>> budget = training_budget(shape, "a100-40", lora_rank=16)
        >>> round(budget.update["weights"], 1), round(budget.update["optimizer"], 1), budget.fits
        (13.6, 0.5, True)
    """

    device: str
    model: str
    gpus: int
    lora_rank: int | None
    where: Where
    capacity_gib: float
    update: dict[str, float]
    generate: dict[str, float]
    rollout: Budget

    @property
    def peak_gib(self) -> float:
        """The larger phase."""
        return max(sum(self.update.values()), sum(self.generate.values()))

    @property
    def fits(self) -> bool:
        """Whether both phases fit, and vLLM can hold a request."""
        return self.peak_gib <= self.capacity_gib and self.rollout.kv.fits

    @property
    def reason(self) -> str:
        """Why it does not fit and what to change, in one line; empty when it fits."""
        if self.fits:
            return ""
        where = f"{self.model} on {self.gpus} x {self.device}"
        over = sum(self.update.values()) - self.capacity_gib
        if over > 0:
            largest = max(self.update, key=lambda part: self.update[part])
            cures = ["more GPUs"] if self.lora_rank else ["LoRA", "more GPUs"]
            return (
                f"{where}: the update takes {over:.1f} GiB more than the GPU has, most of it "
                f"{largest}; use {' or '.join(cures)}, a smaller micro-batch, or a larger GPU"
            )
        over = sum(self.generate.values()) - self.capacity_gib
        if over > 0:
            return (
                f"{where}: generation takes {over:.1f} GiB more than the GPU has; lower "
                "gpu_memory_utilization, offload the trainer, or give generation its own GPUs"
            )
        return self.rollout.reason

    def rows(self) -> list[dict[str, Any]]:
        """One row a phase and part, for a table: phase, part, gib."""
        return [
            {"phase": phase, "part": part, "gib": round(gib, 2)}
            for phase, parts in (("update", self.update), ("generate", self.generate))
            for part, gib in parts.items()
        ]


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Parameters of LoRA adapters on every linear layer: rank · (inputs + outputs) each.

    Args:
        shape: The model.
        rank: The adapters' rank.

    Raises:
        WorkshopError: A rank that is not positive, or a mixture of experts.

    Source: Hu et al., "LoRA", 2021, section 4.1.

    Example:
        >>> lora_parameters(ModelShape.named("mistral-7b"), 16)
        41943040
    """
    if rank < 1:
        raise WorkshopError(f"the LoRA rank must be at least 1, got {rank}")
    if shape.experts or shape.latent:
        raise WorkshopError(f"{shape.name}: LoRA on experts or latent attention is not modelled")
    return shape.layers * sum(rank * (inputs + outputs) for inputs, outputs in linear_sizes(shape))


def training_activation_gib(shape: ModelShape, *, tokens: int, checkpointing: bool = True) -> float:
    """Estimate of what the backward pass needs of one micro-batch.

    With checkpointing each layer keeps its input, and one layer at a time all it
    computes (34 bytes a token and hidden value, without attention scores, which
    FlashAttention does not store). The logits come in 16 bits, in float32 and as a gradient.

    Args:
        shape: The model.
        tokens: Tokens of the micro-batch: sequences · their length.
        checkpointing: Whether activations are computed again in the backward pass.

    Raises:
        WorkshopError: A count that is not positive.

    Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
    Models", 2022, sections 4.1 and 5.

    Example:
        >>> shape = ModelShape.named("mistral-7b")
        >>> round(training_activation_gib(shape, tokens=2048), 1)
        1.4
    """
    if tokens < 1:
        raise WorkshopError(f"tokens must be at least 1, got {tokens}")
    hidden = tokens * shape.hidden_size
    kept = shape.layers * 2 * hidden + 34 * hidden if checkpointing else shape.layers * 34 * hidden
    return (kept + tokens * shape.vocab_size * 10) / GIB


def training_budget(
    shape: ModelShape,
    device: str | Device,
    *,
    gpus: int = 1,
    lora_rank: int | None = None,
    tokens: int = 2048,
    checkpointing: bool = True,
    reference: Reference = "cpu",
    where: Where = "colocated",
    offload: bool = True,
    gpu_memory_utilization: float = 0.6,
    max_model_len: int = 2048,
    tp: int = 1,
) -> TrainingBudget:
    """The memory of one GPU in both phases of a GRPO step.

    The trainer's state is split over `gpus` (FSDP); generation runs on `tp` of them.
    Adapters need no copy of the reference policy: it is the model without them.

    Args:
        shape: The policy.
        device: A name in `DEVICES`, or a device of your own.
        gpus: GPUs that share the trainer's state.
        lora_rank: Rank of LoRA adapters; None trains all parameters.
        tokens: Tokens of a micro-batch.
        checkpointing: Whether activations are computed again in the backward pass.
        reference: Where the reference policy lies that the KL penalty needs. NeMo RL keeps
            it in the CPU's memory.
        where: `colocated` (generation on the trainer's GPUs) or `dedicated`.
        offload: Whether the trainer's state leaves the GPU while vLLM generates, colocated;
            vLLM sleeps during the update in any case.
        gpu_memory_utilization: vLLM's share.
        max_model_len: Longest prompt and answer, tokens.
        tp: Tensor-parallel size of generation.

    Raises:
        WorkshopError: A value out of range, or an unknown device.
        ModelError: The model cannot be split so.

    Example:
        >>> shape = ModelShape.named("mistral-7b")
        >>> training_budget(shape, "h100").fits, training_budget(shape, "h100", gpus=8).fits
        (False, True)
    """
    if gpus < 1:
        raise WorkshopError(f"gpus must be at least 1, got {gpus}")
    if where not in ("colocated", "dedicated") or reference not in ("gpu", "cpu", "none"):
        raise WorkshopError(
            f"where={where!r}, reference={reference!r}: use colocated or dedicated, and gpu, "
            "cpu or none"
        )
    gpu = find_device(device) if isinstance(device, str) else device
    rollout = gpu_budget(
        shape,
        gpu,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        tp=tp,
    )
    state = _state_gib(shape, gpus, lora_rank, reference)
    update = state | {
        "activations": training_activation_gib(shape, tokens=tokens, checkpointing=checkpointing),
        "runtime": TRAINER_RUNTIME_GIB,
    }
    generate = {
        "vLLM's weights": rollout.weights_gib,
        "vLLM's KV cache": max(0.0, rollout.kv_gib),
        "vLLM's rest": rollout.capacity_gib
        - rollout.free_gib
        - rollout.weights_gib
        - max(0.0, rollout.kv_gib),
    }
    if where == "colocated":
        update["vLLM asleep"] = ASLEEP_GIB
        generate["runtime"] = TRAINER_RUNTIME_GIB
        if not offload:
            generate |= {f"trainer's {part}": gib for part, gib in state.items() if gib}
    return TrainingBudget(
        device=gpu.name,
        model=shape.name,
        gpus=gpus,
        lora_rank=lora_rank,
        where=where,
        capacity_gib=gpu.cuda_gib,
        update=update,
        generate=generate,
        rollout=rollout,
    )


def _state_gib(
    shape: ModelShape, gpus: int, lora_rank: int | None, reference: Reference
) -> dict[str, float]:
    """Weights, gradients, optimizer and reference on one of `gpus` GPUs."""
    trained = lora_parameters(shape, lora_rank) if lora_rank is not None else shape.parameters
    weights = shape.parameters + (trained if lora_rank is not None else 0)
    copies = shape.parameters if reference == "gpu" and lora_rank is None else 0
    per_gpu = {
        "weights": weights * WEIGHT_BYTES,
        "gradients": trained * GRADIENT_BYTES,
        "optimizer": trained * OPTIMIZER_BYTES,
        "reference": copies * WEIGHT_BYTES,
    }
    return {part: size / gpus / GIB for part, size in per_gpu.items()}
