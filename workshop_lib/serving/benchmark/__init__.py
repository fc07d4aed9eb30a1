"""Measuring a server under load: `load` sends it, `result` has the tables, `observe` watches."""

from __future__ import annotations

from workshop_lib.serving.benchmark.load import SweepRun, ramp, run_sweep, start_sweep
from workshop_lib.serving.benchmark.observe import (
    EngineObservation,
    compare_deployments,
    observe_engine,
    round_trips_ms,
)
from workshop_lib.serving.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord

__all__ = [
    "BenchmarkResult",
    "EngineObservation",
    "LevelRecord",
    "RequestRecord",
    "SweepRun",
    "compare_deployments",
    "observe_engine",
    "ramp",
    "round_trips_ms",
    "run_sweep",
    "start_sweep",
]
