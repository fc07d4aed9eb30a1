"""Reading a recipe's YAML as NeMo RL reads it: with OmegaConf, its `defaults:` and its resolvers.

Source: NeMo RL v0.7.0, `nemo_rl/utils/config.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError

__all__ = ["RecipeError", "leaves", "load_settings", "override"]

_REFERENCE = re.compile(r"\$\{(\w+)")
_RESOLVERS: dict[str, Callable[[float, float], float]] = {
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
}


class RecipeError(WorkshopError):
    """A recipe cannot be read, or says something that cannot be meant.

    Attributes:
        problems: All that is wrong, a line each; the message names the first.

    Example:
        >>> RecipeError("grpo.yaml: two things are wrong", ["one", "two"]).problems
        ('one', 'two')
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


def load_settings(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    unset: set[str] | None = None,
) -> dict[str, Any]:
    """A recipe's file with all that it inherits, overridden, every reference resolved.

    `unset` takes the environment variables that are asked for and not set, whose place `<NAME>`
    then takes; without, such a variable is an error, as it is to NeMo RL.
    """
    from omegaconf import OmegaConf

    def environment(name: str, default: Any = None) -> Any:
        if name not in os.environ and default is None:
            if unset is None:
                raise ValueError(f"the environment variable {name} is not set")
            unset.add(name)
            return f"<{name}>"
        return os.environ.get(name, default)

    for name, compute in _RESOLVERS.items():
        OmegaConf.register_resolver(name, _of_numbers(compute), replace=True)
    OmegaConf.register_resolver("oc.env", environment, replace=True)
    with _explained(path):
        config = _with_defaults(Path(path), ())
        for key, value in (overrides or {}).items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        written = str(OmegaConf.to_container(config, resolve=False))
    # A value of the top level that others refer to is a variable, as NeMo RL's recipes have them.
    for name in _REFERENCE.findall(written):
        if not isinstance(settings.get(name, {}), dict | list):
            del settings[name]
    return dict(settings)


def leaves(settings: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested mapping by dotted key.

    Example:
        >>> leaves({"grpo": {"seed": 42}, "env": {}})
        {'grpo.seed': 42, 'env': {}}
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        found |= leaves(value, key) if isinstance(value, Mapping) and value else {key: value}
    return found


def override(text: str) -> tuple[str, Any]:
    """A key and its value, of a command line's `KEY=VALUE`, the value YAML.

    Example:
        >>> override("policy.optimizer.kwargs.lr=2.0e-5")
        ('policy.optimizer.kwargs.lr', 2e-05)
    """
    import yaml
    from omegaconf import OmegaConf

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{text!r} is no KEY=VALUE, for example grpo.num_prompts_per_step=4")
    try:
        config = OmegaConf.from_dotlist([f"value={value}"])
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{text[:80]!r}: the value is not YAML") from error
    values: Any = OmegaConf.to_container(config)
    return key.strip(), values["value"]


def _with_defaults(path: Path, above: tuple[Path, ...]) -> Any:
    """A file merged over the files that it inherits from, references not yet resolved."""
    from omegaconf import DictConfig, OmegaConf

    resolved = path.resolve()
    if resolved in above:
        chain = " -> ".join(file.name for file in (*above, resolved))
        raise RecipeError(f"{path}: its defaults go in a circle ({chain})")
    inherited = f" (named in the defaults of {above[-1].name})" if above else ""
    try:
        config = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RecipeError(f"the recipe {path}{inherited} cannot be read: {reason}") from error
    if not isinstance(config, DictConfig) or not config:
        raise RecipeError(f"{path}{inherited} is no recipe: it holds no sections")
    named = config.pop("defaults", None) or []
    merged: Any = OmegaConf.create({})
    names = [named] if isinstance(named, str) else [str(name) for name in named]
    for layer in (*(_with_defaults(path.parent / n, (*above, resolved)) for n in names), config):
        for key in list(layer):
            # At the top level only: `_override_: true` replaces what is inherited.
            section = layer._get_node(key)
            if isinstance(section, DictConfig) and section.pop("_override_", False):
                merged.pop(key, None)
        merged = OmegaConf.merge(merged, layer)
    return merged


def _of_numbers(compute: Callable[[float, float], float]) -> Callable[[Any, Any], Any]:
    """Python multiplies texts and lists too."""

    def resolver(a: Any, b: Any) -> Any:  # OmegaConf would hold a float to its type
        for number in (a, b):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise TypeError(f"{number!r} is no number")
        return compute(a, b)

    return resolver


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """OmegaConf's and PyYAML's errors in one line, with the key."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except OmegaConfBaseException as error:
        said = " ".join(str(error).split("full_key:")[0].split())
        raise RecipeError(f"{path}: {error.full_key}: {said}") from error
    except yaml.MarkedYAMLError as error:
        place = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{path}{place}: {error.problem or error}") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:150]
        raise RecipeError(f"{path} cannot be read: {said}") from error
