"""The command line: `workshop diagnose SNAPSHOT.json [--json]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis.diagnose import diagnose, load_snapshot

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is wrong in a snapshot: `workshop diagnose`.

    Args:
        argv: Arguments; those of the command line by default.

    Returns:
        Exit code: 0 when the diagnosis was printed, whatever it says; 2 for a file that is no
        snapshot.

    Example:
        >>> main(["snapshot.json", "--json"])  # doctest: +SKIP
    """
    parser = argparse.ArgumentParser(
        prog="workshop diagnose",
        description="What is wrong in a snapshot of a cluster: cause, evidence and fix.",
    )
    parser.add_argument("snapshot", help="a file that cluster.snapshot() was saved to")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        found = diagnose(load_snapshot(options.snapshot))
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 0
