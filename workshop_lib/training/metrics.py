"""The trainer's names for `workshop_lib.metrics.records`, where the code is."""

from __future__ import annotations

from workshop_lib.metrics.records import (
    COLUMNS,
    COMPLETIONS_FILE,
    MARK,
    METRICS_FILE,
    TrainingLog,
    marked_line,
    read_completions,
    read_log,
    read_metrics,
    steps_to_reward,
)

__all__ = [
    "COLUMNS",
    "COMPLETIONS_FILE",
    "MARK",
    "METRICS_FILE",
    "TrainingLog",
    "marked_line",
    "read_completions",
    "read_log",
    "read_metrics",
    "steps_to_reward",
]
