"""What to change when a model does not fit, and how to serve it on how many GPUs.

Every proposal is computed before it is made: a proposed setting fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.memory.model import ModelShape
from workshop_lib.serving.memory.vllm import Device, gpu_budget

if TYPE_CHECKING:
    import pandas as pd


NODE_GPUS, SHARE = 8, 0.90


def advise(
    shape: ModelShape, device: str | Device, *, requests: int = 64, max_model_len: int = 4096
) -> list[dict[str, Any]]:
    """Ways to serve a model, as rows of `advise_table`, the one with the fewest GPUs first.

    Tensor parallelism stays within a node, whose GPUs are linked fast; a model that needs more
    nodes is cut into pipeline stages. Among ways with as many GPUs the smaller TP comes first:
    it spends less on communication.
    """
    splits = [(tp, 1) for tp in shape.tp_sizes(NODE_GPUS) if NODE_GPUS % tp == 0]
    if splits[-1][0] == NODE_GPUS:
        splits += [(NODE_GPUS, pp) for pp in (2, 3, 4)]
    plans = []
    for tp, pp in splits:
        sizes: dict[str, Any] = {"max_model_len": max_model_len, "tp": tp, "pp": pp}
        budget = gpu_budget(shape, device, gpu_memory_utilization=SHARE, **sizes)
        held = int(budget.kv.concurrency)
        if not budget.fits or not held:
            continue
        replicas = math.ceil(requests / held)
        plans.append(
            {
                "model": budget.model.split("/")[-1],
                "device": budget.device,
                **sizes,
                "gpu_memory_utilization": SHARE,
                "replicas": replicas,
                "gpus": replicas * tp * pp,
                "weights_gib": round(budget.weights_gib, 1),
                "kv_tokens": budget.kv.tokens,
                "requests": replicas * held,
            }
        )
    if not plans:
        most = max(tp * pp for tp, pp in splits)
        raise WorkshopError(f"{shape.name} does not fit {most} x {budget.device}: {budget.reason}")
    return sorted(plans, key=lambda plan: (plan["gpus"], plan["pp"], plan["tp"]))


def advise_table(shapes: Sequence[ModelShape], device: str | Device, **load: Any) -> pd.DataFrame:
    """The best way to serve each model, one row each.

    Args:
        shapes: The models.
        device: A name for `find_device`, or a device of your own.
        **load: `requests` of `max_model_len` tokens to hold at once (64 of 4096).

    Returns:
        One row a model: `model`, `device`, `max_model_len`, `tp`, `pp`,
        `gpu_memory_utilization`, `replicas`, `gpus`, `weights_gib`, `kv_tokens`, `requests`.

    Raises:
        WorkshopError: A model that fits nowhere.

    Example:
        >>> shapes = [ModelShape.named(name) for name in ("mistral-7b", "llama-3.1-70b")]
        >>> advise_table(shapes, "h200", requests=8).gpus.tolist()
        [1, 2]
    """
    import pandas as pd

    return pd.DataFrame([advise(shape, device, **load)[0] for shape in shapes])


def suggest_changes(shape: ModelShape, device: str | Device, **settings: Any) -> list[str]:
    """Single changes to `gpu_budget`'s settings that make a model fit; empty when it fits."""
    budget = gpu_budget(shape, device, **settings)
    if budget.fits:
        return []
    lengths = (budget.kv.max_model_len >> halvings for halvings in range(1, 20))
    changes: dict[str, tuple[str, list[Any]]] = {
        "tp": ("TP", [tp for tp in shape.tp_sizes(8) if tp > budget.tp]),
        "gpu_memory_utilization": ("gpu_memory_utilization", [0.95, 0.9, 0.8]),
        "kv_dtype": ("kv_cache_dtype", ["fp8"] if "kv_dtype" not in settings else []),
        "max_model_len": ("max_model_len", [length for length in lengths if length >= 256]),
    }
    found = []
    for setting, (label, values) in changes.items():
        for value in values:
            changed = gpu_budget(shape, device, **settings | {setting: value})
            if changed.fits:
                found.append(f"{label}={value}: {changed.kv.tokens:,} tokens")
                break
    return found
