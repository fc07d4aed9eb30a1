"""Measuring a server under load.

`sweep` runs the levels, `load` keeps requests in flight, `streaming` is one request,
`result` has the tables and files.
"""

from __future__ import annotations

from workshop_lib.benchmark.result import BenchmarkResult, LevelRecord, RequestRecord
from workshop_lib.benchmark.sweep import SweepRun, run_sweep, start_sweep

__all__ = [
    "BenchmarkResult",
    "LevelRecord",
    "RequestRecord",
    "SweepRun",
    "run_sweep",
    "start_sweep",
]
