"""How much memory serving or training a model takes, and how many tokens its KV cache holds."""

from __future__ import annotations

from workshop_lib.serving.memory.advise import advise, advise_table, suggest_changes
from workshop_lib.serving.memory.engine_log import EngineKV, parse_engine_line
from workshop_lib.serving.memory.model import GIB, ModelShape
from workshop_lib.serving.memory.predict import predict_budget, served_shape
from workshop_lib.serving.memory.training import (
    TrainingBudget,
    claimed_budget,
    claimed_cures,
    training_budget,
)
from workshop_lib.serving.memory.vllm import (
    DEVICES,
    Budget,
    Device,
    KVCapacity,
    claimed_kv,
    cpu_budget,
    find_device,
    gpu_budget,
    kv_cache_capacity,
)

__all__ = [
    "DEVICES",
    "GIB",
    "Budget",
    "Device",
    "EngineKV",
    "KVCapacity",
    "ModelShape",
    "TrainingBudget",
    "advise",
    "advise_table",
    "claimed_budget",
    "claimed_cures",
    "claimed_kv",
    "cpu_budget",
    "find_device",
    "gpu_budget",
    "kv_cache_capacity",
    "parse_engine_line",
    "predict_budget",
    "served_shape",
    "suggest_changes",
    "training_budget",
]
