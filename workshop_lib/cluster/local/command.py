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


def _states() -> list[tuple[Path, str]]:
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
    return sorted(found)


def _clean(clusters: list[LocalCluster]) -> int:
    failed = 0
    for cluster in clusters:
        print(f"Stopping what runs in state {cluster.paths.state!r} (up to 30 s) ...", flush=True)
        try:
            cluster.clean()
        except WorkshopError as error:  # the others are stopped all the same
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            failed = 1
    if not failed:
        names = ", ".join(each.paths.state for each in clusters)
        print(f"Nothing of the workshop runs any more ({names or 'nothing did'}).")
    return failed


def _status(clusters: list[LocalCluster]) -> int:
    for cluster in clusters:
        components = cluster.components()
        print(f"state {cluster.paths.state}: {', '.join(components) or 'nothing applied'}")
        for component in components:
            try:
                for pod in cluster.get(component).observe().pods:
                    print(f"  {component:14} {pod['metadata']['name']:40} {pod_state(pod)[0]}")
            except ClusterError as error:
                print(f"  {component:14} {error}")
    if not clusters:
        print("Nothing of the workshop runs.")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 when it succeeded."""
    parser = argparse.ArgumentParser(
        prog="workshop", description="What the workshop runs on this machine."
    )
    parser.add_argument("command", choices=("clean", "status"))
    parser.add_argument("--state", help="one state; default: every state of this checkout")
    options = parser.parse_args(arguments)
    try:
        states = [(checkout(), options.state)] if options.state else _states()
        clusters = [LocalCluster(state=state, home=home) for home, state in states]
        return (_clean if options.command == "clean" else _status)(clusters)
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
