"""Memory figures that are often repeated, computed again.

The claims come from an earlier edition of this workshop and are marked as such wherever they
are shown; beside each stands what follows from the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workshop_lib.serving.memory.kv_cache import kv_cache_capacity
from workshop_lib.serving.memory.shape import GIB, ModelShape
from workshop_lib.serving.memory.training import training_budget

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLAIMED_BUDGET_GB", "CLAIMED_TOKENS", "claimed_budget", "claimed_cures", "claimed_kv"]

# "KV cache of a 7B model on an H100 80 GB": GB of cache, tokens.
CLAIMED_TOKENS = {56: 45_000, 32: 25_000}
# "Memory budget for a 7B model on A100 40GB", GB.
CLAIMED_BUDGET_GB: dict[str, float | None] = {
    "weights": 14.0,
    "gradients": None,
    "optimizer": 2.0,
    "activations": 4.0,
    "vLLM's weights": None,
    "vLLM's KV cache": 20.0,
    "runtime and the rest": 2.0,
}
_GB = GIB / 1e9


def claimed_kv(shapes: Sequence[ModelShape], *, max_model_len: int = 4096) -> pd.DataFrame:
    """The claimed tokens of a KV cache beside the computed ones.

    Args:
        shapes: Models of 7 billion parameters.
        max_model_len: Longest request, tokens.

    Returns:
        One row a claim and model: `cache_gb`, `claimed`, `model`, `computed`, `factor`.

    Raises:
        WorkshopError: A length that is not positive.

    Example:
        >>> table = claimed_kv([ModelShape.named("llama-2-7b"), ModelShape.named("mistral-7b")])
        >>> table.factor.tolist()
        [2.4, 9.5, 2.4, 9.8]
    """
    import pandas as pd

    rows = []
    for gigabytes, claimed in CLAIMED_TOKENS.items():
        for shape in shapes:
            computed = kv_cache_capacity(
                gigabytes * 10**9, shape, max_model_len=max_model_len
            ).tokens
            rows.append((gigabytes, claimed, shape.name, computed, round(computed / claimed, 1)))
    return pd.DataFrame(rows, columns=["cache_gb", "claimed", "model", "computed", "factor"])


def claimed_budget(shape: ModelShape, *, lora_rank: int = 16) -> pd.DataFrame:
    """The claimed training budget on an A100-40GB beside the computed ones, in GB.

    The claim adds up things that are not on the GPU at once, and leaves out the trainer's own
    copy of the weights and its gradients.

    Args:
        shape: A model of 7 billion parameters.
        lora_rank: Rank of the adapters.

    Returns:
        One row a part: `claimed`, `full` and `lora` with everything on the GPU at once, and
        `lora_update`, `lora_generate` with the two phases taking turns; the last row adds up.

    Raises:
        WorkshopError: A rank that is not positive.

    Example:
        >>> float(claimed_budget(ModelShape.named("mistral-7b")).loc["sum", "claimed"])
        42.0
    """
    import pandas as pd

    full = _at_once(shape, None)
    lora = _at_once(shape, lora_rank)
    turns = training_budget(
        shape, "a100-40", lora_rank=lora_rank, gpu_memory_utilization=0.85, offload=True
    )
    columns: dict[str, dict[str, float | None]] = {
        "claimed": CLAIMED_BUDGET_GB,
        "full": _parts(full),
        "lora": _parts(lora),
        "lora_update": _parts(turns.update),
        "lora_generate": _parts(turns.generate),
    }
    table = pd.DataFrame(
        {name: [parts.get(part) for part in CLAIMED_BUDGET_GB] for name, parts in columns.items()},
        index=list(CLAIMED_BUDGET_GB),
        dtype=float,
    )
    table.loc["sum"] = table.sum()
    return table.round(1)


def claimed_cures(shape: ModelShape, *, lora_rank: int = 16) -> pd.DataFrame:
    """The four cures that are claimed for that budget, computed for full training and LoRA.

    Args:
        shape: A model of 7 billion parameters.
        lora_rank: Rank of the adapters.

    Returns:
        One row a cure and way of training: `cure`, `training`, `update_gib`, `generate_gib`,
        `capacity_gib`, `fits`. Without a trainer that makes room, both share the GPU.

    Raises:
        WorkshopError: A rank that is not positive.

    Example:
        >>> table = claimed_cures(ModelShape.named("mistral-7b"))
        >>> table[table.fits].cure.tolist()[0]
        'TP=2, two GPUs'
    """
    import pandas as pd

    cures = {
        "none (share 0.85)": {"device": "a100-40", "gpu_memory_utilization": 0.85},
        "share 0.65": {"device": "a100-40", "gpu_memory_utilization": 0.65},
        "TP=2, two GPUs": {"device": "a100-40", "gpu_memory_utilization": 0.65, "gpus": 2, "tp": 2},
        "H100-80GB": {"device": "h100", "gpu_memory_utilization": 0.65},
        "taking turns (offload)": {
            "device": "a100-40",
            "gpu_memory_utilization": 0.85,
            "offload": True,
        },
    }
    rows = []
    for cure, settings in cures.items():
        for training, rank in (("full", None), ("LoRA", lora_rank)):
            options = {"offload": False, "lora_rank": rank} | settings
            found = training_budget(shape, **options)  # type: ignore[arg-type]
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


def _at_once(shape: ModelShape, lora_rank: int | None) -> dict[str, float]:
    """The parts of both phases together; vLLM is awake."""
    budget = training_budget(
        shape, "a100-40", lora_rank=lora_rank, gpu_memory_utilization=0.85, offload=False
    )
    both = budget.update | budget.generate
    return {part: gib for part, gib in both.items() if part != "vLLM asleep"}


def _parts(parts: dict[str, float]) -> dict[str, float | None]:
    """The parts under the claim's names, in GB."""
    known: dict[str, float | None] = {
        part: parts[part] * _GB for part in CLAIMED_BUDGET_GB if part in parts
    }
    rest = [
        gib
        for part, gib in parts.items()
        # The trainer's state is listed once, under its own names.
        if part not in CLAIMED_BUDGET_GB and not part.startswith("trainer's")
    ]
    return known | {"runtime and the rest": sum(rest) * _GB}
