"""`workshop recipe check FILE [FILE ...]`, made for CI: a line an error, and an exit code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from workshop_lib.training.recipe.check import check_recipe
from workshop_lib.training.recipe.files import override


def main(argv: Sequence[str] | None = None) -> int:
    """Check recipes, and say what is wrong with them.

    Args:
        argv: Arguments; those of the command line by default.

    Returns:
        Exit code: 0 when all are right, 1 when one is not.

    Raises:
        WorkshopError: The GPU is not known, or a value is none.
    """
    parser = argparse.ArgumentParser(
        prog="workshop recipe", description="Recipes in NeMo RL's YAML."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="say all that is wrong with a recipe")
    check.add_argument("files", nargs="+", metavar="FILE", help="a recipe")
    check.add_argument("--gpu", help="also check that it fits this GPU: h100, h200, a100-40, …")
    check.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replaces a value"
    )
    options = parser.parse_args(argv)
    values = dict(map(override, options.set))
    checked = [check_recipe(path, values, gpu=options.gpu) for path in options.files]
    for each in checked:
        print(each)
    return int(any(each.problems for each in checked))
