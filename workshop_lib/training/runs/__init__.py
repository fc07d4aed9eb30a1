"""What a training run writes, in one table, and what to think of it.

`read_run` takes whatever the laptop's trainer, TRL or NeMo RL left; `judge` gives a verdict with
its reasons. `workshop metrics RUN` does both.
"""

from __future__ import annotations

from workshop_lib.training.runs.records import (
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
from workshop_lib.training.runs.report import run_report
from workshop_lib.training.runs.rollouts import echo_share, read_rollouts
from workshop_lib.training.runs.run import Run, read_run, run_of_log, with_judge
from workshop_lib.training.runs.table import COLUMNS, TRL_NAMES, steps_table
from workshop_lib.training.runs.verdict import HANG_FACTOR, Finding, Verdict, judge

__all__ = [
    "COLUMNS",
    "COMPLETIONS_FILE",
    "HANG_FACTOR",
    "MARK",
    "METRICS_FILE",
    "TRL_NAMES",
    "Finding",
    "Run",
    "TrainingLog",
    "Verdict",
    "echo_share",
    "judge",
    "marked_line",
    "read_completions",
    "read_log",
    "read_metrics",
    "read_rollouts",
    "read_run",
    "run_of_log",
    "run_report",
    "steps_table",
    "steps_to_reward",
    "with_judge",
]
