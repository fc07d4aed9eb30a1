"""What to change when a model does not fit, and how to serve it on how many GPUs.

Every proposal is computed before it is made: what is offered fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.budget import Budget, gpu_budget
from workshop_lib.serving.memory.devices import Device, find_device
from workshop_lib.serving.memory.shape import ModelShape

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Plan", "Purpose", "advise", "advise_table", "suggest_changes"]

Purpose = Literal["inference", "colocated", "development"]

# The shares that the workshop teaches: a server has the GPU to itself; a colocated vLLM leaves
# room for the trainer; a shared development GPU for others.
UTILIZATION: dict[str, float] = {"inference": 0.90, "colocated": 0.60, "development": 0.45}


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to serve a model for a number of requests at once.

    Attributes:
        budget: The memory of one GPU.
        replicas: Servers that share the load.
        requests: Requests of the longest length that all servers hold at once.
        max_model_len: Longest request, tokens.
    """

    budget: Budget
    replicas: int
    requests: int
    max_model_len: int

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.budget.tp * self.budget.pp

    def row(self) -> dict[str, Any]:
        """The plan as a row of a table."""
        return {
            "model": self.budget.model.split("/")[-1],
            "device": self.budget.device,
            "tp": self.budget.tp,
            "pp": self.budget.pp,
            "gpu_memory_utilization": self.budget.gpu_memory_utilization,
            "max_model_len": self.max_model_len,
            "replicas": self.replicas,
            "gpus": self.gpus,
            "weights_gib": round(self.budget.weights_gib, 1),
            "kv_tokens": self.budget.kv.tokens,
            "requests": self.requests,
        }


def advise(
    shape: ModelShape,
    device: str | Device,
    *,
    requests: int = 64,
    max_model_len: int = 4096,
    purpose: Purpose = "inference",
    gpus_per_node: int = 8,
    kv_dtype: str = "auto",
) -> list[Plan]:
    """Ways to serve a model, the one with the fewest GPUs first.

    Tensor parallelism stays within a node, whose GPUs are linked fast; a model that needs
    more nodes is cut into pipeline stages. Among ways with as many GPUs the smaller TP
    comes first: it spends less on communication.

    Args:
        shape: The model.
        device: A name in `DEVICES`, or a device of your own.
        requests: Requests of `max_model_len` tokens to hold at once.
        max_model_len: Longest request, tokens.
        purpose: Sets `gpu_memory_utilization`: `inference`, `colocated` with a trainer, or
            `development`.
        gpus_per_node: GPUs of a node.
        kv_dtype: Number format of the KV cache.

    Raises:
        WorkshopError: A value out of range, or nothing fits, with what comes closest.

    Example:
        >>> plans = advise(ModelShape.named("llama-3.1-70b"), "h100", requests=32)
        >>> plans[0].budget.tp, plans[0].replicas, plans[0].gpus
        (4, 1, 4)
    """
    if purpose not in UTILIZATION:
        raise WorkshopError(f"purpose {purpose!r} is not known; use one of {list(UTILIZATION)}")
    if requests < 1 or gpus_per_node < 1:
        raise WorkshopError(
            f"requests and gpus_per_node must be at least 1, got {requests} and {gpus_per_node}"
        )
    shape.check_length(max_model_len)
    gpu = find_device(device) if isinstance(device, str) else device
    sizes = [tp for tp in shape.tp_sizes(gpus_per_node) if gpus_per_node % tp == 0]
    splits = [(tp, 1) for tp in sizes]
    splits += [(sizes[-1], pp) for pp in (2, 3, 4) if sizes[-1] == gpus_per_node]
    plans = []
    for tp, pp in splits:
        budget = gpu_budget(
            shape,
            gpu,
            gpu_memory_utilization=UTILIZATION[purpose],
            max_model_len=max_model_len,
            tp=tp,
            pp=pp,
            kv_dtype=kv_dtype,
        )
        if budget.fits and (held := int(budget.kv.concurrency)):
            replicas = math.ceil(requests / held)
            plans.append(Plan(budget, replicas, replicas * held, max_model_len))
    if not plans:
        raise WorkshopError(
            f"{shape.name} does not fit {max(tp * pp for tp, pp in splits)} x {gpu.name}: "
            f"{budget.reason}"
        )
    return sorted(plans, key=lambda plan: (plan.gpus, plan.budget.pp, plan.budget.tp))


def advise_table(
    shapes: list[ModelShape], device: str | Device, *, requests: int = 64, max_model_len: int = 4096
) -> pd.DataFrame:
    """The best way to serve each model, one row each.

    Args:
        shapes: The models.
        device: A name in `DEVICES`, or a device of your own.
        requests: Requests of `max_model_len` tokens to hold at once.
        max_model_len: Longest request, tokens.

    Raises:
        WorkshopError: A model that fits nowhere.

    Example:
        >>> shapes = [ModelShape.named(name) for name in ("mistral-7b", "llama-3.1-70b")]
        >>> advise_table(shapes, "h200", requests=8).gpus.tolist()
        [1, 2]
    """
    import pandas as pd

    best = [
        advise(shape, device, requests=requests, max_model_len=max_model_len)[0] for shape in shapes
    ]
    return pd.DataFrame([plan.row() for plan in best])


def suggest_changes(
    shape: ModelShape,
    device: str | Device,
    *,
    gpu_memory_utilization: float = 0.92,
    max_model_len: int = 4096,
    tp: int = 1,
    kv_dtype: str = "auto",
    gpus_per_node: int = 8,
) -> list[str]:
    """Single changes that make a model fit; empty when it fits as it is.

    Args:
        shape: The model.
        device: A name in `DEVICES`, or a device of your own.
        gpu_memory_utilization: Share of the GPU for the whole instance.
        max_model_len: Longest request, tokens.
        tp: Tensor-parallel size.
        kv_dtype: Number format of the KV cache.
        gpus_per_node: GPUs of a node.

    Raises:
        WorkshopError: A value out of range.
        ModelError: The model cannot be split over `tp` GPUs.

    Example:
        >>> suggest_changes(ModelShape.named("llama-3.1-70b"), "h200", max_model_len=8192)
        ['TP=2: 400,464 tokens']
    """
    now: dict[str, Any] = {
        "gpu_memory_utilization": gpu_memory_utilization,
        "max_model_len": max_model_len,
        "tp": tp,
        "kv_dtype": kv_dtype,
    }
    budget = gpu_budget(shape, device, **now)
    if budget.fits:
        return []
    larger = [n for n in shape.tp_sizes(gpus_per_node) if n > tp]
    changes: list[tuple[str, dict[str, Any]]] = [(f"TP={n}", {"tp": n}) for n in larger]
    for share in (0.95, 0.9, 0.8):
        changes.append((f"gpu_memory_utilization={share}", {"gpu_memory_utilization": share}))
    if kv_dtype == "auto":
        changes.append(("kv_cache_dtype=fp8", {"kv_dtype": "fp8"}))
    length = max_model_len // 2
    while length >= 256:
        changes.append((f"max_model_len={length}", {"max_model_len": length}))
        length //= 2
    found: dict[str, str] = {}
    for text, change in changes:
        kind = next(iter(change))
        other = gpu_budget(shape, device, **(now | change))
        if kind not in found and other.fits:
            found[kind] = f"{text}: {other.kv.tokens:,} tokens"
    return list(found.values())
