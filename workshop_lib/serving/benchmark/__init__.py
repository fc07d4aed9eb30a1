"""Measuring a server under load.

`sweep` runs the levels, `plan` says what a level is, `load` sends the requests, `streaming`
is one request, `result` has the tables and files, `statistics` says how sure they are.
`observation` watches an engine at work, `deployments` compares two ways to one engine.
"""

from __future__ import annotations

from workshop_lib.serving.benchmark.deployments import compare_deployments, round_trips_ms
from workshop_lib.serving.benchmark.observation import EngineObservation, observe_engine
from workshop_lib.serving.benchmark.plan import ramp
from workshop_lib.serving.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord
from workshop_lib.serving.benchmark.sweep import SweepRun, run_sweep, start_sweep

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
