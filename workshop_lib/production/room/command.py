"""`workshop room`: a room of learners from a terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from workshop_lib.cluster.connect import connect
from workshop_lib.cluster.kubernetes.cluster import KubernetesCluster
from workshop_lib.errors import WorkshopError
from workshop_lib.production.room.kubeconfigs import write_kubeconfigs
from workshop_lib.production.room.room import Room, room_objects, room_price
from workshop_lib.production.room.roster import Learner, read_roster

COMMANDS = {
    "plan": "what would be made, and what it costs; changes nothing",
    "apply": "make namespaces, quotas, rights and accounts",
    "kubeconfig": "write a kubeconfig for each learner",
    "table": "how far everyone is",
    "clean": "remove what learners made; with --data their volumes and namespaces too",
}


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:11} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="workshop room",
        description=f"A room of learners on one cluster.\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", choices=tuple(COMMANDS))
    add("learners", nargs="?", help="the list: .csv, .yaml or .txt (plan, apply, kubeconfig)")
    add("--room", default="workshop", help="the room's name (default workshop)")
    add("--profile", default="eks", choices=("eks", "kind", "local"))
    add("--context", help="the kubeconfig's context; default: its current one")
    add("--folder", default="kubeconfigs", help="where kubeconfigs go (default kubeconfigs)")
    add("--hours", type=float, default=8, help="how long a kubeconfig counts (default 8)")
    add("--spot", action="store_true", help="price with spot instances")
    add("--data", action="store_true", help="clean: volumes and namespaces too")
    add("--yes", action="store_true", help="do it; without it nothing is changed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0 when it succeeded.

    Args:
        arguments: Its arguments; default: those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command in ("plan", "apply", "kubeconfig") and not options.learners:
            raise WorkshopError(f"{options.command} needs the list of learners: .csv, .yaml, .txt")
        learners = read_roster(options.learners) if options.learners else []
        if options.profile == "local":
            _on_a_laptop(learners, options.room)
            return 0
        with contextlib.closing(connect(options.profile, context=options.context)) as cluster:  # type: ignore[type-var]
            assert isinstance(cluster, KubernetesCluster)
            _run(options, Room(cluster, options.room), learners)
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace, room: Room, learners: Sequence[Learner]) -> None:
    if options.command == "table":
        table = room.table()
        print(f"room {room.name}: no namespaces" if table.empty else table.to_string(index=False))
    elif options.command == "kubeconfig":
        folder = Path(options.folder)
        files = write_kubeconfigs(room.cluster, learners, folder, hours=options.hours)
        print(*(f"{name}: {file}" for name, file in files.items()), sep="\n")
        print("Each file lets its owner in: hand each to its learner only, not by chat.")
    elif options.command == "clean":
        found = room.namespaces()
        what = "what runs in them; volumes with data stay (--data removes them and the namespaces)"
        if options.data:
            what = "everything in them, data too, and the namespaces"
        print(f"room {room.name}: {', '.join(found) or 'no namespaces'}: {what}")
        if found and _confirmed(options):
            room.clean(data=options.data)
    else:
        print(room.plan(learners).to_string(index=False))
        if options.profile == "eks":
            print(room_price(len(learners), spot=options.spot))
        if options.command == "apply" and _confirmed(options):
            print(room.apply(learners).to_string(index=False))


def _confirmed(options: argparse.Namespace) -> bool:
    if not options.yes:
        print("Nothing was changed; the same with --yes does it.")
    return bool(options.yes)


def _on_a_laptop(learners: Sequence[Learner], room: str) -> None:
    """A room needs a cluster; what one would get can be shown."""
    print("A room needs a cluster (--profile eks or kind). On eks each learner would get:")
    for learner in learners:
        for component, objects in room_objects(learner, "eks", room).items():
            names = ", ".join(item.key for item in objects)
            print(f"{learner.name}, component {component}: {names}")
