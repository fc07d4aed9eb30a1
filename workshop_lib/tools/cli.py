"""The `workshop` command: what people do without a notebook.

```
workshop run 02 -p MOST_IN_FLIGHT 8
workshop diagnose SNAPSHOT.json --json
workshop --help
```

A subcommand is a room's own `main(arguments)`, loaded when it is asked for. `python -m
workshop_lib.tools.cli` is the same command where the console script is not installed.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["COMMANDS", "main"]

PRIVATE_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""No usage statistics leave the learner's machine, unless the learner's shell says so."""

SIGPIPE_STATUS = 141
"""What a shell reports for a program that a closed pipe ended: 128 + SIGPIPE."""


class Command(NamedTuple):
    """A subcommand: where its `main` is, what it does, what comes before the caller's arguments."""

    module: str
    help: str
    prefix: tuple[str, ...] = ()


COMMANDS = {
    "run": Command("workshop_lib.tools.run", "execute the notebooks; report in build/report.html"),
    "lab": Command("workshop_lib.tools.lab", "open JupyterLab on the start page"),
    "preflight": Command(
        "workshop_lib.production.checks.preflight",
        "what this machine or a cluster lacks for the lessons, each with its fix",
    ),
    "diagnose": Command(
        "workshop_lib.production.diagnosis.diagnose", "what is wrong in a saved cluster.snapshot()"
    ),
    "recipe": Command("workshop_lib.training.recipe.command", "check NeMo RL recipes"),
    "metrics": Command("workshop_lib.training.runs.command", "a GRPO run's metrics and verdict"),
    "memory": Command("workshop_lib.serving.memory.command", "what a model needs on a GPU"),
    "cost": Command("workshop_lib.production.budget", "what the workshop costs on EKS"),
    "room": Command(
        "workshop_lib.production.room.command", "prepare, watch and end a room of learners on EKS"
    ),
    "status": Command(
        "workshop_lib.cluster.local.command", "what the workshop runs on this machine", ("status",)
    ),
    "clean": Command(
        "workshop_lib.cluster.local.command", "stop what the workshop runs here", ("clean",)
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: The command line; default: the process's.

    Returns:
        The exit status: the subcommand's own, 1 after a `WorkshopError`, 2 for an unknown
        command, 141 when nobody reads the output any more.
    """
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
        lines = [f"  {name:10} {command.help}" for name, command in COMMANDS.items()]
        print("usage: workshop COMMAND ...", "", *lines, "", "workshop COMMAND --help", sep="\n")
        return 0
    if name not in COMMANDS:
        print(f"workshop: no command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    for setting, value in PRIVATE_SETTINGS.items():
        os.environ.setdefault(setting, value)
    command = COMMANDS[name]
    sys.argv[0] = f"workshop {name}"  # what argparse calls the program
    main: Callable[[Sequence[str]], int] = importlib.import_module(command.module).main
    return main([*command.prefix, *rest])


if __name__ == "__main__":
    sys.exit(main())
