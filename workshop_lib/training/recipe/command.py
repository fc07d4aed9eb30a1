"""The command line: `workshop recipe check FILE [FILE ...]`, made for CI."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from workshop_lib.errors import WorkshopError
from workshop_lib.training.recipe.check import CheckedRecipe, check_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Check recipes, and say what is wrong with them.

    Args:
        argv: Arguments; those of the command line by default.

    Returns:
        Exit code: 0 when all are right, 1 when one is not, 2 for a wrong command.

    Example:
        >>> from workshop_lib.data import data_path
        >>> main(["check", str(data_path("recipes/arithmetic.yaml"))])
        data/recipes/arithmetic.yaml: right: 8 prompts x 8 answers a step, 1 update of 64, \
HuggingFaceTB/SmolLM2-135M-Instruct
        0
    """
    options = _parser().parse_args(argv)
    try:
        checked = [
            check_recipe(path, dict(map(_override, options.set)), gpu=options.gpu)
            for path in options.files
        ]
    except WorkshopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for each in checked:
        _print(each)
    return int(any(each.problems for each in checked))


def _print(checked: CheckedRecipe) -> None:
    if not checked.problems:
        print(f"{checked.path}: right: {checked.summary}")
    for problem in checked.problems:
        # A file that cannot be read names itself.
        print(problem if checked.path in problem else f"{checked.path}: {problem}")
    for note in checked.notes:
        print(f"{checked.path}: note: {note}", file=sys.stderr)


def _override(text: str) -> tuple[str, object]:
    from workshop_lib.training.component import override

    return override(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workshop recipe", description="Recipes in NeMo RL's YAML."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="say all that is wrong with a recipe",
        description="Exit code 0 and a line when a recipe is right, 1 and a line an error when"
        " it is not. Notes go to standard error.",
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="a recipe")
    check.add_argument("--gpu", help="also check that it fits this GPU: h100, h200, a100-40, …")
    check.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replaces a value"
    )
    return parser
