"""`workshop metrics RUN`: what a run has done and what to think of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from workshop_lib.training.runs.report import run_report


def main(argv: Sequence[str] | None = None) -> int:
    """Print a run's metrics and its verdict. A bad verdict is an answer, not an error.

    Args:
        argv: Arguments; those of the command line by default.

    Returns:
        Exit code 0.

    Raises:
        WorkshopError: There is nothing there that is a run.
    """
    parser = argparse.ArgumentParser(
        prog="workshop metrics", description="A GRPO run's metrics, and a verdict with its reasons."
    )
    parser.add_argument(
        "path",
        type=Path,
        help="a run's folder (the laptop's, TRL's, NeMo RL's), an event file, trainer_state.json,"
        " or a log",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    print(run_report(options.path, as_json=options.json))
    return 0
