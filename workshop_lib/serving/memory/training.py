"""The memory of a GPU that trains a policy with GRPO, and of its generation.

The two phases of a step do not overlap: vLLM generates, then the trainer updates. The trainer's
parts follow from the model; only activations and runtime are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.model import GIB, ModelShape
from workshop_lib.serving.memory.vllm import Budget, Device, gpu_budget

if TYPE_CHECKING:
    import pandas as pd

# NeMo RL v0.7.0 loads every model in float32, as master weights ("Always load in float32" in
# nemo_rl/models/automodel/setup.py and dtensor_policy_worker.py), LoRA's frozen one and its
# adapters too: FSDP wants one number format. Gradients and AdamW's two moments are float32.
# The sum, 16 bytes a trained parameter, is that of mixed precision (Rajbhandari et al., "ZeRO",
# 2020, section 3.1).
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMIZER_BYTES = 4, 4, 8
# CUDA modules, NCCL, the allocator's fragments.
TRAINER_RUNTIME_GIB = 2.0
# What a sleeping vLLM keeps: its CUDA modules and graphs.
ASLEEP_GIB = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBudget:
    """What each phase of a GRPO step takes on its GPU, part by part, GiB.

    `gpus` share the trainer's state; `where` is `colocated` or `dedicated`; `lora_rank` is None
    when all parameters are trained; `rollout` is vLLM's own budget.
    """

    device: str
    model: str
    gpus: int
    lora_rank: int | None
    where: str
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
        return not self.reason

    @property
    def reason(self) -> str:
        """Why it does not fit and what to change, in one line; empty when it fits."""
        where = f"{self.model} on {self.gpus} x {self.device}"
        if (over := sum(self.update.values()) - self.capacity_gib) > 0:
            largest = max(self.update, key=lambda part: self.update[part])
            cures = "more GPUs" if self.lora_rank else "LoRA or more GPUs"
            return (
                f"{where}: the update takes {over:.1f} GiB more than the GPU has, most of it "
                f"{largest}; use {cures}, a smaller micro-batch, or a larger GPU"
            )
        if (over := sum(self.generate.values()) - self.capacity_gib) > 0:
            return (
                f"{where}: generation takes {over:.1f} GiB more than the GPU has; lower "
                "gpu_memory_utilization, offload the trainer, or give generation its own GPUs"
            )
        return self.rollout.reason


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Parameters of LoRA adapters on every linear layer: rank · (inputs + outputs) each.

    Source: Hu et al., "LoRA", 2021, section 4.1.
    """
    if rank < 1:
        raise WorkshopError(f"the LoRA rank must be at least 1, got {rank}")
    if shape.experts or shape.latent:
        raise WorkshopError(f"{shape.name}: LoRA on experts or latent attention is not modelled")
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + inner)
    return shape.layers * rank * projections


def training_budget(
    shape: ModelShape,
    device: str | Device,
    *,
    gpus: int = 1,
    lora_rank: int | None = None,
    tokens: int = 2048,
    checkpointing: bool = True,
    where: Literal["colocated", "dedicated"] = "colocated",
    offload: bool = True,
    gpu_memory_utilization: float = 0.6,
    max_model_len: int = 2048,
    tp: int = 1,
) -> TrainingBudget:
    """The memory of one GPU in both phases of a GRPO step, as NeMo RL v0.7.0 trains.

    The trainer's state is split over `gpus` (FSDP); generation runs on `tp` of them. The
    reference policy that the KL penalty needs lies in the CPU's memory.

    Args:
        shape: The policy.
        device: A name for `find_device`, or a device of your own.
        gpus: GPUs that share the trainer's state.
        lora_rank: Rank of LoRA adapters; None trains all parameters.
        tokens: Tokens of a micro-batch.
        checkpointing: Whether activations are computed again in the backward pass.
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
    if gpus < 1 or tokens < 1:
        raise WorkshopError(f"gpus and tokens must be at least 1, got {gpus} and {tokens}")
    rollout = gpu_budget(
        shape,
        device,
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        tp=tp,
    )
    adapters = lora_parameters(shape, lora_rank) if lora_rank is not None else 0
    trained = adapters or shape.parameters
    held = {
        "weights": (shape.parameters + adapters) * WEIGHT_BYTES,
        "gradients": trained * GRADIENT_BYTES,
        "optimizer": trained * OPTIMIZER_BYTES,
    }
    state = {part: size / gpus / GIB for part, size in held.items()}
    # With checkpointing each layer keeps its input, and one layer at a time all it computes: 34
    # bytes a token and hidden value, without attention scores. The logits come in 16 bits, in
    # float32 and as a gradient. Source: Korthikanti et al., "Reducing Activation Recomputation
    # in Large Transformer Models", 2022, sections 4.1 and 5.
    layers = shape.layers * 2 + 34 if checkpointing else shape.layers * 34
    activations = tokens * (layers * shape.hidden_size + shape.vocab_size * 10) / GIB
    update = state | {"activations": activations, "runtime": TRAINER_RUNTIME_GIB}
    cache_gib = max(0.0, rollout.kv_gib)
    rest = rollout.capacity_gib - rollout.free_gib - rollout.weights_gib - cache_gib
    generate = {
        "vLLM's weights": rollout.weights_gib,
        "vLLM's KV cache": cache_gib,
        "vLLM's rest": rest,
    }
    if where == "colocated":
        update["vLLM asleep"] = ASLEEP_GIB
        generate["runtime"] = TRAINER_RUNTIME_GIB
        if not offload:
            generate |= {f"trainer's {part}": gib for part, gib in state.items() if gib}
    return TrainingBudget(
        device=rollout.device,
        model=shape.name,
        gpus=gpus,
        lora_rank=lora_rank,
        where=where,
        capacity_gib=rollout.capacity_gib,
        update=update,
        generate=generate,
        rollout=rollout,
    )


LORA_RANK = 16  # of the claims below
# "Memory budget for a 7B model on A100 40GB", GB: a claim of an earlier edition of this workshop.
CLAIMED_BUDGET_GB: dict[str, float | None] = {
    "weights": 14.0,
    "gradients": None,
    "optimizer": 2.0,
    "activations": 4.0,
    "vLLM's weights": None,
    "vLLM's KV cache": 20.0,
    "runtime and the rest": 2.0,
}


def claimed_budget(shape: ModelShape) -> pd.DataFrame:
    """A claimed training budget on an A100-40GB beside the computed ones, in GB.

    The claim adds up things that are not on the GPU at once, and leaves out the trainer's own
    copy of the weights and its gradients.

    Args:
        shape: A model of 7 billion parameters.

    Returns:
        One row a part: `claimed`, `full` and `lora` with everything on the GPU at once, and
        `lora_update`, `lora_generate` with the two phases taking turns; the last row adds up.

    Example:
        >>> float(claimed_budget(ModelShape.named("mistral-7b")).loc["sum", "claimed"])
        42.0
    """
    import pandas as pd

    def budget(rank: int | None, *, offload: bool = False) -> TrainingBudget:
        return training_budget(
            shape, "a100-40", lora_rank=rank, gpu_memory_utilization=0.85, offload=offload
        )

    def in_gb(parts: dict[str, float]) -> dict[str, float]:
        found = dict.fromkeys(CLAIMED_BUDGET_GB, 0.0)
        for part, gib in parts.items():
            found[part if part in found else "runtime and the rest"] += gib * GIB / 1e9
        return {name: found[name] for name in found if name in parts or "rest" in name}

    def at_once(rank: int | None) -> dict[str, float]:
        """The trainer's state is listed once, under its own names, and vLLM is awake."""
        parts = budget(rank).update | budget(rank).generate
        twice = [part for part in parts if part == "vLLM asleep" or part.startswith("trainer's")]
        return in_gb({part: gib for part, gib in parts.items() if part not in twice})

    turns = budget(LORA_RANK, offload=True)
    columns: dict[str, dict[str, Any]] = {
        "claimed": CLAIMED_BUDGET_GB,
        "full": at_once(None),
        "lora": at_once(LORA_RANK),
        "lora_update": in_gb(turns.update),
        "lora_generate": in_gb(turns.generate),
    }
    table = pd.DataFrame(columns, index=list(CLAIMED_BUDGET_GB), dtype=float)
    table.loc["sum"] = table.sum()
    return table.round(1)


def claimed_cures(shape: ModelShape) -> pd.DataFrame:
    """The cures that are claimed for that budget, computed for full training and LoRA.

    Args:
        shape: A model of 7 billion parameters.

    Returns:
        One row a cure and way of training: `cure`, `training`, `update_gib`, `generate_gib`,
        `capacity_gib`, `fits`. Without a trainer that makes room, both share the GPU.

    Example:
        >>> table = claimed_cures(ModelShape.named("mistral-7b"))
        >>> table[table.fits].cure.tolist()[-1]
        'taking turns (offload)'
    """
    import pandas as pd

    small = {"device": "a100-40", "offload": False, "gpu_memory_utilization": 0.65}
    cures: dict[str, dict[str, Any]] = {
        "none (share 0.85)": small | {"gpu_memory_utilization": 0.85},
        "share 0.65": small,
        "TP=2, two GPUs": small | {"gpus": 2, "tp": 2},
        "H100-80GB": small | {"device": "h100"},
        "taking turns (offload)": small | {"gpu_memory_utilization": 0.85, "offload": True},
    }
    rows = []
    for cure, settings in cures.items():
        for training, rank in (("full", None), ("LoRA", LORA_RANK)):
            found = training_budget(shape, lora_rank=rank, **settings)
            rows.append(
                {
                    "cure": cure,
                    "training": training,
                    "update_gib": round(sum(found.update.values()), 1),
                    "generate_gib": round(sum(found.generate.values()), 1),
                    "capacity_gib": round(found.capacity_gib, 1),
                    "fits": found.fits,
                }
            )
    return pd.DataFrame(rows)
