"""Small exact models of what happens inside a serving engine.

`paging`: block tables of PagedAttention, against memory reserved in one piece.
`batching`: which request runs in which step, with static and with continuous batching.
`engine`: both together, as an engine's gauges would show them.
`sharding`: tensor parallelism, a layer's matrix products on several GPUs.
Plain data in, plain data out: widgets drive them, `workshop_lib.plots` draws them.
"""

from __future__ import annotations

from workshop_lib.serving.simulators.batching import Job, Schedule, simulate_batching
from workshop_lib.serving.simulators.engine import EngineRun, simulate_engine
from workshop_lib.serving.simulators.paging import PagedCache, Paging, simulate_paging
from workshop_lib.serving.simulators.sharding import ShardedLayer, all_reduce_bytes, sharded_layer

__all__ = [
    "EngineRun",
    "Job",
    "PagedCache",
    "Paging",
    "Schedule",
    "ShardedLayer",
    "all_reduce_bytes",
    "sharded_layer",
    "simulate_batching",
    "simulate_engine",
    "simulate_paging",
]
