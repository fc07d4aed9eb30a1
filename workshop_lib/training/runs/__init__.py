"""What a training run writes, in one table, and what to think of it.

`records` reads the laptop's own records and marked logs; `event_file` and `console`
read what NeMo RL writes; `read_run` takes any of them, `judge` gives a verdict with
its reasons. `workshop metrics PATH --json` does both.
"""

from __future__ import annotations

from workshop_lib.training.runs.columns import RUN_COLUMNS
from workshop_lib.training.runs.records import (
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
from workshop_lib.training.runs.rollouts import echo_share, read_rollouts, right_share
from workshop_lib.training.runs.run import Run, read_run, run_of_log, with_judge
from workshop_lib.training.runs.verdict import Finding, Verdict, judge

__all__ = [
    "COLUMNS",
    "COMPLETIONS_FILE",
    "MARK",
    "METRICS_FILE",
    "RUN_COLUMNS",
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
    "right_share",
    "run_of_log",
    "steps_to_reward",
    "with_judge",
]
