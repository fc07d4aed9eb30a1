"""Reading a recipe's YAML as NeMo RL reads it: `defaults:`, interpolation, numbers.

NeMo RL reads its configuration with OmegaConf. What its published configurations
use of it is done here: a file inherits from the files named in `defaults:`, a
value may refer to another key (`${policy.model_name}`, `${.temperature}`, `${list[0]}`) or
multiply two (`${mul:2,3}`) or stand in the environment (`${oc.env:HF_HOME}`), `1e-5` is a
number, `???` is a value still to be given, and a key given twice is an error. Compared
with OmegaConf 2.3 itself on all the configurations that NeMo RL v0.7.0 publishes: the same
values, every one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.training.recipe.references import MOST_VALUES, Resolver
from workshop_lib.training.recipe.yaml_file import RecipeError, parse_file

__all__ = ["RecipeError", "leaves", "load_settings", "set_key"]


def load_settings(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    follow_defaults: bool = True,
    unset: set[str] | None = None,
    referred: set[str] | None = None,
) -> dict[str, Any]:
    """Read a recipe's file with all that it inherits, every reference resolved.

    Args:
        path: The YAML file.
        overrides: Values by dotted key that replace the file's, before references
            are resolved, as on NeMo RL's command line.
        follow_defaults: Read the files named in `defaults:` too. Without, only what
            the file itself says is returned, with references it cannot resolve left out.
        unset: Takes the names of environment variables that are asked for and not set,
            whose place `<NAME>` then takes. Without, such a variable is an error, as it is
            to NeMo RL.
        referred: Takes the top-level keys that references name.

    Raises:
        RecipeError: A file cannot be read, a key stands twice, or a reference leads nowhere.

    Example:
        >>> from workshop_lib.data import data_path
        >>> load_settings(data_path("recipes/arithmetic.yaml"))["grpo"]["num_prompts_per_step"]
        8
    """
    settings = _with_defaults(Path(path), (), follow_defaults)
    _size(settings, str(path), (), {})
    settings = _apart(settings)
    for key, value in (overrides or {}).items():
        set_key(settings, key, value)
    resolver = Resolver(settings, str(path), strict=follow_defaults, environment=unset)
    resolved: dict[str, Any] = resolver.resolve(settings, ())
    if referred is not None:
        referred |= resolver.referred
    return resolved


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested mapping by dotted key.

    Args:
        settings: The mapping.
        prefix: Put before every key.

    Example:
        >>> leaves({"grpo": {"seed": 42}, "env": {}})
        {'grpo.seed': 42, 'env': {}}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping) and value:
            found |= leaves(value, key)
        else:
            found[key] = value
    return found


def set_key(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested mapping; missing levels are made.

    Args:
        settings: The mapping, changed in place.
        key: For example `grpo.seed`.
        value: The new value.

    Raises:
        RecipeError: A part of the key is a value, not a section.

    Example:
        >>> recipe = {"grpo": {"seed": 42}}
        >>> set_key(recipe, "grpo.seed", 7)
        >>> recipe
        {'grpo': {'seed': 7}}
    """
    *sections, name = key.split(".")
    here: Any = settings
    for section in sections:
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise RecipeError(f"{key} cannot be set: {section} is a value, not a section")
    here[name] = value


def _with_defaults(path: Path, above: tuple[Path, ...], follow: bool) -> dict[str, Any]:
    """A file merged over the files that it inherits from, references not yet resolved."""
    resolved = path.resolve()
    if resolved in above:
        chain = " -> ".join(file.name for file in (*above, resolved))
        raise RecipeError(f"{path}: its defaults go in a circle ({chain})")
    settings = parse_file(path, above[-1].name if above else "")
    named = settings.pop("defaults", None)
    if named is None or not follow:
        return settings
    names = named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) for name in names):
        raise RecipeError(
            f"{path}: defaults is {named!r} and should name a file, or a list of them"
        )
    merged: dict[str, Any] = {}
    for name in names:
        merged = _merge(merged, _with_defaults(path.parent / name, (*above, resolved), follow))
    return _merge(merged, settings)


def _size(value: Any, path: str, above: tuple[int, ...], known: dict[int, int]) -> int:
    """How many values there are with every anchor (&) written out; anchors can hold themselves."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if id(value) in above:
        raise RecipeError(f"{path}: an anchor (&) holds itself")
    if inner and id(value) not in known:
        below = (*above, id(value))
        known[id(value)] = sum(_size(each, path, below, known) for each in inner)
        if known[id(value)] > MOST_VALUES:
            raise RecipeError(f"{path} is no recipe: it holds more than {MOST_VALUES:,} values")
    return known.get(id(value), 1) if inner else 1


def _apart(value: Any) -> Any:
    """A copy in which nothing is held twice: what an override changes has one place."""
    if isinstance(value, dict):
        return {key: _apart(item) for key, item in value.items()}
    return [_apart(item) for item in value] if isinstance(value, list) else value


def _merge(base: dict[str, Any], over: dict[str, Any], *, top: bool = True) -> dict[str, Any]:
    """Mappings are merged, anything else is replaced, as OmegaConf and NeMo RL do it.

    A section of the top level that says `_override_: true` replaces the inherited one;
    further down the marker is a key like any other, and NeMo RL merges all the same.
    """
    merged = dict(base)
    for key, value in over.items():
        inherited = merged.get(key)
        if not isinstance(value, dict):
            merged[key] = value
            continue
        if top and value.get("_override_"):
            value = {name: item for name, item in value.items() if name != "_override_"}
            inherited = {}
        merged[key] = _merge(inherited if isinstance(inherited, dict) else {}, value, top=False)
    return merged
