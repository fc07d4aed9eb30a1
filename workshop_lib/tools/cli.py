"""The `workshop` command: each subcommand is a room's own `main(arguments)`, loaded when asked for.

`python -m workshop_lib.tools.cli` is the same command where the console script is not installed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from workshop_lib.errors import WorkshopError

# No usage statistics leave the learner's machine, unless the learner's shell says so.
PRIVATE_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

SIGPIPE_STATUS = 141
"""What a shell reports for a program that a closed pipe ended: 128 + SIGPIPE."""

# Where a subcommand's `main` is, and what it does.
COMMANDS = {
    "run": ("tools.run", "execute the notebooks; report in build/report.html"),
    "lab": ("tools.lab", "open JupyterLab on the start page"),
    "preflight": (
        "production.checks.preflight",
        "what this machine or a cluster lacks for the lessons, each with its fix",
    ),
    "diagnose": ("production.diagnosis.diagnose", "what is wrong in a saved cluster.snapshot()"),
    "recipe": ("training.recipe.check", "check NeMo RL recipes"),
    "metrics": ("training.runs.report", "a GRPO run's metrics and verdict"),
    "memory": ("serving.memory.command", "what a model needs on a GPU"),
    "cost": ("production.budget", "what the workshop costs on EKS"),
    "room": ("production.room.command", "prepare, watch and end a room of learners on EKS"),
    "status": ("cluster.local.command", "what the workshop runs on this machine"),
    "clean": ("cluster.local.command", "stop what the workshop runs here"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; its status, 1 after a `WorkshopError`, 2 for one that is not there."""
    try:
        try:
            return _dispatch(list(sys.argv[1:] if arguments is None else arguments) or ["--help"])
        finally:
            sys.stdout.flush()
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupted:
        return int(getattr(interrupted, "exit_status", 130))
    except BrokenPipeError:  # as the manual of Python's `signal` advises
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGPIPE_STATUS


def _dispatch(arguments: Sequence[str]) -> int:
    name, *rest = arguments
    if name in ("-h", "--help"):
        lines = [f"  {name:10} {about}" for name, (_, about) in COMMANDS.items()]
        print("usage: workshop COMMAND ...", "", *lines, "", "workshop COMMAND --help", sep="\n")
        return 0
    if name not in COMMANDS:
        print(f"workshop: no command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    for setting, value in PRIVATE_SETTINGS.items():
        os.environ.setdefault(setting, value)
    sys.argv[0] = f"workshop {name}"  # what argparse calls the program
    module = importlib.import_module(f"workshop_lib.{COMMANDS[name][0]}")
    prefix = [name] if name in ("status", "clean") else []  # two commands of one module
    return int(module.main([*prefix, *rest]))


if __name__ == "__main__":
    sys.exit(main())
