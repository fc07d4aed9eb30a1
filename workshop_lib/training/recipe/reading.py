"""One recipe, in NeMo RL's own YAML, read strictly.

NeMo RL takes a key that it does not know and says nothing: a misspelt setting
trains with the default. Here it is an error that names the right key. The same
file runs on a cluster under NeMo RL and, translated, on a laptop under TRL
(`translate`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workshop_lib.data import data_dir
from workshop_lib.training.recipe.files import RecipeError, load_settings
from workshop_lib.training.recipe.recipe import Recipe
from workshop_lib.training.recipe.rules import contradictions, oddities
from workshop_lib.training.recipe.schema import check_keys, nemo_rl

__all__ = ["read_recipe", "shown"]


def read_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    unset: set[str] | None = None,
) -> Recipe:
    """Read a recipe and check it: every key, every type, and what must fit together.

    Args:
        path: A YAML file with NeMo RL's keys.
        overrides: Values by dotted key that replace the file's.
        unset: Takes the names of environment variables that the recipe asks for and that are not
            set here; without, such a variable is an error.

    Raises:
        RecipeError: The file cannot be read, a key is unknown or was moved (the right
            one is named), a value has the wrong type, or two settings contradict. Its
            `problems` has all of them.

    Example:
        >>> from workshop_lib.data import data_path
        >>> recipe = read_recipe(data_path("recipes/arithmetic.yaml"), {"grpo.seed": 7})
        >>> recipe.completions_per_step, recipe.grpo.seed
        (64, 7)
    """
    known, notes = _without_unread(load_settings(path, overrides, unset=unset))
    config, problems, whole = check_keys(known)
    recipe = Recipe(Path(path), known, config)
    if whole:
        problems += contradictions(recipe)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecipeError(f"{shown(path)}: {problems[0]}{more}", problems)
    return replace(recipe, notes=(*notes, *oddities(recipe)))


def _without_unread(settings: dict[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    """Settings without the keys that nothing in NeMo RL reads, and a note for each.

    A moved key is left out too where it says what its new place says: stale and harmless, as in
    a configuration that NeMo RL published with v0.7.0.
    """
    known, notes = copy.deepcopy(settings), []
    for key, meant in nemo_rl()["unread"].items():
        if _take(known, key) is not _NOTHING:
            instead = f"; {meant} may be meant" if meant else ""
            notes.append(f"{key} is read by nothing in NeMo RL {nemo_rl()['version']}{instead}")
    for key, now in nemo_rl()["moved"].items():
        old, new = _take(copy.deepcopy(known), key), _take(copy.deepcopy(known), now)
        if old is not _NOTHING and type(old) is type(new) and old == new:
            _take(known, key)
            notes.append(f"{key} is read by nothing any more; {now} says the same")
    return known, notes


_NOTHING = object()


def _take(settings: dict[str, Any], key: str) -> Any:
    """Remove a dotted key, and give its value; `_NOTHING` where it is not there."""
    *above, name = key.split(".")
    section: Any = settings
    for part in above:
        section = section.get(part) if isinstance(section, dict) else None
    return section.pop(name, _NOTHING) if isinstance(section, dict) else _NOTHING


def shown(path: str | Path) -> str:
    """A path as messages have it: one in the working folder or this checkout begins there."""
    for base in (Path.cwd(), data_dir().parent):
        if Path(path).is_relative_to(base):
            return str(Path(path).relative_to(base))
    return str(path)
