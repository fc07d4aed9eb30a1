"""How much memory serving a model takes, and how many tokens its KV cache holds.

Everything about serving memory under one name, and the command line:
`python -m workshop_lib.memory --config config.json --gpu h200 --json`.
The parts: `shape` (config.json), `devices`, `kv_cache` (vLLM's rounding),
`budget` (where a device's memory goes), `engine_log` (what vLLM says itself),
`prediction` (all of it from a manifest).
"""

from __future__ import annotations

from workshop_lib.memory.activations import activation_gib, activation_peaks
from workshop_lib.memory.budget import Budget, buffers_gib, cpu_budget, gpu_budget
from workshop_lib.memory.devices import DEVICES, Device, find_device
from workshop_lib.memory.engine_log import EngineKV, EngineLog, parse_engine_line, parse_engine_log
from workshop_lib.memory.kv_cache import (
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
from workshop_lib.memory.prediction import predict_budget, served_shape
from workshop_lib.memory.shape import GIB, ModelShape

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
    "activation_gib",
    "activation_peaks",
    "block_waste",
    "blocks_per_request",
    "buffers_gib",
    "contiguous_waste",
    "cpu_budget",
    "find_device",
    "gpu_budget",
    "kv_bytes_per_token",
    "kv_cache_capacity",
    "kv_cache_tokens",
    "kv_table",
    "layer_groups",
    "parse_engine_line",
    "parse_engine_log",
    "predict_budget",
    "served_shape",
]
