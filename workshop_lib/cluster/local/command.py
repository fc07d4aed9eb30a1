"""`workshop clean` and `workshop status`: the local cluster from a terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from workshop_lib.cluster.kube import pod_state
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.cluster.local.paths import TEMPORARY, checkout, read_json
from workshop_lib.errors import ClusterError, WorkshopError


def _states() -> dict[tuple[Path, str], None]:
    """Every state of this checkout, and of checkouts that are no more, in order.

    Those with a folder here, and those that only have one under /tmp.
    """
    home = checkout()
    found = {(home, path.name) for path in (home / ".workshop").glob("*/") if path.is_dir()}
    for file in TEMPORARY.glob("ws-*/owner.json"):
        # Another user's, or damaged: nothing that we could say to be ours.
        with contextlib.suppress(OSError, ClusterError):
            owner = read_json(file) or {"home": "", "state": ""}
            there = Path(owner["home"])
            # A checkout that was moved or deleted cannot clean up after itself any more.
            if owner["state"] and (there == home or not there.exists()):
                found.add((there, owner["state"]))
    return dict.fromkeys(sorted(found))


def _clean(states: list[tuple[Path, str]]) -> int:
    failed = 0
    for home, state in states:
        print(f"Stopping what runs in state {state!r} (up to 30 s) ...", flush=True)
        try:
            LocalCluster(state=state, home=home).clean()
        except WorkshopError as error:  # the others are stopped all the same
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            failed = 1
    if not failed:
        names = ", ".join(state for _, state in states)
        print(f"Nothing of the workshop runs any more ({names or 'nothing did'}).")
    return failed


def _status(states: list[tuple[Path, str]]) -> int:
    for home, state in states:
        cluster = LocalCluster(state=state, home=home)
        print(f"state {state}: {', '.join(cluster.components()) or 'nothing applied'}")
        for component in cluster.components():
            try:
                pods = cluster.get(component).observe().pods
            except ClusterError as error:
                print(f"  {component:14} {error}")
                continue
            for pod in pods:
                print(f"  {component:14} {pod['metadata']['name']:40} {pod_state(pod)[0]}")
    if not states:
        print("Nothing of the workshop runs.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 when it succeeded.

    Args:
        arguments: Its arguments; default: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="workshop", description="What the workshop runs on this machine."
    )
    parser.add_argument("command", choices=("clean", "status"))
    parser.add_argument("--state", help="one state; default: every state of this checkout")
    parser.add_argument("--all", action="store_true", help="every state of this checkout")
    options = parser.parse_args(arguments)
    one = options.state and not options.all
    states = [(checkout(), options.state)] if one else list(_states())
    try:
        return (_clean if options.command == "clean" else _status)(states)
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
