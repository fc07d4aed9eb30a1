"""The laptop's training: `python -m workshop_lib.training.train RECIPE --output DIR`.

A plain process, the entry point of a Ray job, or a training of an experiment (`experiments`). One
line a step on standard output, one record a step in `DIR/metrics.jsonl`; the exit status is 0, 1
after a failure, 2 for what was refused before anything was written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence

from workshop_lib.errors import WorkshopError
from workshop_lib.training.plan import plan_training
from workshop_lib.training.recipe import override, read_recipe
from workshop_lib.training.trainer import train

__all__ = ["main", "prepare_environment"]


def prepare_environment() -> None:
    """Set what must be set before torch is imported; what is set already stays.

    Everything is on disk by now, and a hub that is out of reach costs minutes.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRL_EXPERIMENTAL_SILENCE"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait sleep: threads that spin make a busy machine's step five times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and give its exit status."""
    # Values may stand before the options or after them.
    wishes = _parser().parse_intermixed_args(arguments)
    if wishes.temporary:
        threading.Thread(target=_end_with_input, args=(wishes.output,), daemon=True).start()
    try:
        plan = plan_training(
            read_recipe(wishes.recipe, dict(map(override, wishes.overrides))),
            output=wishes.output,
            model=wishes.model,
            overwrite=wishes.overwrite,
            resume=wishes.resume,
        )
    except WorkshopError as error:
        return _failed(error, 2)
    # So that what is half written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        train(plan, say=lambda line: print(line, flush=True), report=wishes.report)
    except WorkshopError as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return 130
    finally:
        if wishes.temporary:
            shutil.rmtree(wishes.output, ignore_errors=True)
    return 0


def _end_with_input(output: str) -> None:
    """The asker closed it, or is gone: nothing trains on behind a dead kernel."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    shutil.rmtree(output, ignore_errors=True)
    os._exit(0)  # from a thread, and in the middle of a step


def _failed(error: WorkshopError, status: int) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.training.train",
        description="Train a model with GRPO on this machine, from a NeMo RL recipe.",
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="YAML file with NeMo RL's keys")
    add("overrides", metavar="KEY=VALUE", nargs="*", help="replaces a value of the recipe")
    add("--output", required=True, metavar="DIR", help="folder for metrics and checkpoints")
    add("--model", metavar="FOLDER", help="model to start from (default: the recipe's, prepared)")
    add("--overwrite", action="store_true", help="remove the run that DIR holds")
    add("--resume", action="store_true", help="go on with the run that DIR holds")
    add("--report", action="store_true", help="also print each step as a line of JSON, marked")
    add("--temporary", action="store_true", help="end with standard input, and remove DIR")
    return parser


if __name__ == "__main__":
    prepare_environment()
    sys.exit(main())
