"""`workshop room`: a room of learners from a terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.errors import WorkshopError
from workshop_lib.production.budget import budget
from workshop_lib.production.room.kubeconfigs import write_kubeconfigs
from workshop_lib.production.room.room import Room
from workshop_lib.production.room.roster import read_roster

COMMANDS = {
    "plan": "what would be made, and what it costs; changes nothing",
    "apply": "make namespaces, quotas, rights and accounts",
    "kubeconfig": "write a kubeconfig for each learner",
    "table": "how far everyone is",
    "clean": "remove what learners made; with --data their volumes and namespaces too",
}
FROM_A_LIST = ("plan", "apply", "kubeconfig")


def parser() -> argparse.ArgumentParser:
    """The command line's."""
    found = argparse.ArgumentParser(
        prog="workshop room", description="A room of learners on one cluster."
    )
    commands = found.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        add = commands.add_parser(name, help=text, description=text).add_argument
        if name in FROM_A_LIST:
            add("learners", help="the list: a CSV with the column name (gpus, group if wanted)")
        add("--room", default="workshop", help="the room's name (default workshop)")
        add("--profile", default="eks", choices=("eks", "kind"))
        add("--context", help="the kubeconfig's context; default: its current one")
        if name == "kubeconfig":
            add("--folder", default="kubeconfigs", help="where they go (default kubeconfigs)")
            add("--hours", type=float, default=8, help="how long one counts (default 8)")
        if name in ("plan", "apply"):
            add("--spot", action="store_true", help="price with spot instances")
        if name == "clean":
            add("--data", action="store_true", help="volumes and namespaces too")
        if name in ("apply", "clean"):
            add("--yes", action="store_true", help="do it; without it nothing is changed")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 when it succeeded.

    Args:
        arguments: Its arguments; default: those of this process.
    """
    options = parser().parse_args(arguments)
    try:
        cluster = KubernetesCluster(options.profile, context=options.context)
        with contextlib.closing(cluster):
            _run(options, Room(cluster, options.room))
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace, room: Room) -> None:
    learners = read_roster(options.learners) if options.command in FROM_A_LIST else []
    if options.command == "table":
        table = room.table()
        print(f"room {room.name}: no namespaces" if table.empty else table.to_string(index=False))
    elif options.command == "kubeconfig":
        files = write_kubeconfigs(room.cluster, learners, Path(options.folder), hours=options.hours)
        print(*files, sep="\n")
        print("Each file lets its owner in: hand each to its learner only, not by chat.")
    elif options.command == "clean":
        what = "what runs in them; volumes with data stay (--data removes them and the namespaces)"
        if options.data:
            what = "everything in them, data too, and the namespaces"
        print(f"room {room.name}: {', '.join(room.namespaces()) or 'no namespaces'}: {what}")
        if _confirmed(options):
            room.clean(data=options.data)
    else:
        print(room.plan(learners).to_string(index=False))
        if options.profile == "eks":
            print(budget(len(learners), spot=options.spot))
        if options.command == "apply" and _confirmed(options):
            print(room.apply(learners).to_string(index=False))


def _confirmed(options: argparse.Namespace) -> bool:
    if not options.yes:
        print("Nothing was changed; the same with --yes does it.")
    return bool(options.yes)
