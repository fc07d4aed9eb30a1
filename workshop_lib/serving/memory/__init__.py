"""How much memory serving a model takes, and how many tokens its KV cache holds.

Everything about serving memory under one name, and the command line:
`python -m workshop_lib.serving.memory --config config.json --gpu h200 --json`.
The parts: `shape` (config.json) with `architectures`, `quantization` and `weights`;
`devices`; `kv_cache` (vLLM's rounding); `activations`; `budget` (where a device's memory
goes); `adviser` (what to change, how many GPUs); `training` (a GRPO step); `claims`
(repeated figures, corrected); `engine_log` (what vLLM says itself); `prediction` (all of it
from a manifest).
"""

from __future__ import annotations

from workshop_lib.serving.memory.activations import activation_peaks
from workshop_lib.serving.memory.adviser import Plan, advise, advise_table, suggest_changes
from workshop_lib.serving.memory.budget import Budget, buffers_gib, cpu_budget, gpu_budget
from workshop_lib.serving.memory.claims import claimed_budget, claimed_cures, claimed_kv
from workshop_lib.serving.memory.devices import DEVICES, Device, find_device
from workshop_lib.serving.memory.engine_log import (
    EngineKV,
    EngineLog,
    parse_engine_line,
    parse_engine_log,
)
from workshop_lib.serving.memory.kv_cache import (
    CPU_BLOCK_SIZE,
    GPU_BLOCK_SIZE,
    KVCapacity,
    block_waste,
    blocks_per_request,
    contiguous_waste,
    kv_bytes_per_token,
    kv_cache_capacity,
    kv_cache_tokens,
    kv_table,
    layer_groups,
)
from workshop_lib.serving.memory.prediction import predict_budget, served_shape
from workshop_lib.serving.memory.shape import GIB, ModelShape
from workshop_lib.serving.memory.training import TrainingBudget, lora_parameters, training_budget

__all__ = [
    "CPU_BLOCK_SIZE",
    "DEVICES",
    "GIB",
    "GPU_BLOCK_SIZE",
    "Budget",
    "Device",
    "EngineKV",
    "EngineLog",
    "KVCapacity",
    "ModelShape",
    "Plan",
    "TrainingBudget",
    "activation_peaks",
    "advise",
    "advise_table",
    "block_waste",
    "blocks_per_request",
    "buffers_gib",
    "claimed_budget",
    "claimed_cures",
    "claimed_kv",
    "contiguous_waste",
    "cpu_budget",
    "find_device",
    "gpu_budget",
    "kv_bytes_per_token",
    "kv_cache_capacity",
    "kv_cache_tokens",
    "kv_table",
    "layer_groups",
    "lora_parameters",
    "parse_engine_line",
    "parse_engine_log",
    "predict_budget",
    "served_shape",
    "suggest_changes",
    "training_budget",
]
