"""`python -m workshop_lib.production.cost`: what machines, components and the workshop cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workshop_lib.cluster.catalogue import catalogue_table
from workshop_lib.cluster.manifests import components
from workshop_lib.cluster.prices import component_cost
from workshop_lib.errors import WorkshopError
from workshop_lib.production.cost import budget
from workshop_lib.tools.piped import piped

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables.

    Args:
        arguments: The command line; default: the process's.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.production.cost", description=__doc__
    )
    parser.add_argument("--learners", type=int, default=1, help="people in the room (1)")
    parser.add_argument("--spot", action="store_true", help="machines as spot instances")
    parser.add_argument("--json", action="store_true", help="the budget alone, as JSON")
    options = parser.parse_args(arguments)
    try:
        found = budget(options.learners, spot=options.spot)
        if options.json:
            print(found.table().assign(total_usd=found.usd).to_json(orient="records"))
            return 0
        print("EC2 instance types, US dollars an hour\n")
        print(_shown(catalogue_table()))
        print("\nComponents as rendered for EKS\n")
        for component in components("eks"):
            cost = component_cost(component)
            print(f"{component:<16}{cost.line() if cost.machines or cost.claims else 'nothing'}")
        print(f"\nThe workshop, of one learner{' on spot instances' if options.spot else ''}\n")
        print(found)
    except WorkshopError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _shown(table: pd.DataFrame) -> str:
    """The catalogue as text: what is not verified says so, what does not apply is empty."""
    table = table.round(2).astype(object).where(table.notna(), "not verified")
    table.loc[table["gpus"] == 0, "usd_per_gpu_hour"] = ""
    return table.to_string(index=False)


if __name__ == "__main__":
    raise SystemExit(piped(main))
