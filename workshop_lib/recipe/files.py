"""Reading a recipe's YAML as NeMo RL reads it: `defaults:`, interpolation, numbers.

NeMo RL reads its configuration with OmegaConf. What its published configurations
use of it is done here: a file inherits from the files named in `defaults:`, a
value may refer to another key (`${policy.model_name}`, `${.temperature}`) or
multiply two (`${mul:2,3}`) or stand in the environment (`${oc.env:HF_HOME}`), `1e-5` is a
number, and a key given twice is an error. Compared with OmegaConf 2.3 itself on all the
configurations that NeMo RL v0.7.0 publishes: the same values, every one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError

__all__ = ["RecipeError", "leaves", "load_settings", "set_key"]

# Innermost first: no `$`, brace or quote inside.
_INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")
# YAML 1.1 takes 1e-5 for text, YAML 1.2 and OmegaConf for a number.
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9_]+(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_MOST_VALUES = 100_000  # NeMo RL's largest has hundreds; anchors can make billions
_RESOLVERS: dict[str, Callable[[Any, Any], Any]] = {
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
    follow_defaults: bool = True,
    unset: set[str] | None = None,
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

    Raises:
        RecipeError: A file cannot be read, a key stands twice, or a reference leads nowhere.

    Example:
        >>> from workshop_lib.data import data_path
        >>> load_settings(data_path("recipes/arithmetic.yaml"))["grpo"]["num_prompts_per_step"]
        8
    """
    settings = _with_defaults(Path(path), (), follow_defaults)
    _size(settings, str(path), (), {})
    for key, value in (overrides or {}).items():
        set_key(settings, key, value)
    resolver = _Resolver(settings, str(path), strict=follow_defaults, environment=unset)
    resolved: dict[str, Any] = resolver.resolve(settings, ())
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
    settings = _parse(path, above)
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
        if known[id(value)] > _MOST_VALUES:
            raise RecipeError(f"{path} is no recipe: it holds more than {_MOST_VALUES:,} values")
    return known.get(id(value), 1) if inner else 1


def _parse(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    import yaml

    named_in = f" (named in the defaults of {above[-1].name})" if above else ""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RecipeError(f"the recipe {path}{named_in} cannot be read: {reason}") from error
    try:
        settings = yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{place}: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise RecipeError(f"{path} is no recipe: it is nested too deeply") from None
    if not isinstance(settings, dict):
        raise RecipeError(f"{path} is no recipe: it holds {type(settings).__name__}, not sections")
    return settings


def _loader() -> type[Any]:
    """PyYAML's safe loader with OmegaConf's idea of a number, and no key given twice."""
    import yaml

    class RecipeLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue  # `<<: *anchor`, whose keys are meant to be replaced
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key_node, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(
                        None, None, "a key must be a word", key_node.start_mark
                    )
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
            mapping: dict[Any, Any] = super().construct_mapping(node, deep)
            return mapping

    # The safe loader's tables are shared by all its subclasses: copy before changing.
    RecipeLoader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:float"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    RecipeLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    return RecipeLoader


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


class _Resolver:
    """Replaces references by the values that they name."""

    def __init__(
        self, root: dict[str, Any], path: str, *, strict: bool, environment: set[str] | None
    ) -> None:
        self.root = root
        self.environment = environment
        self.path = path
        self.strict = strict
        self.under_way: list[str] = []

    def resolve(self, value: Any, at: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            items = {key: self.resolve(item, (*at, str(key))) for key, item in value.items()}
            return {key: item for key, item in items.items() if item is not _UNRESOLVED}
        if isinstance(value, list):
            return [self.resolve(item, at) for item in value]
        if not isinstance(value, str):
            return value
        try:
            return self._text(value, at)
        except _UnresolvedError:
            return _UNRESOLVED

    def _text(self, text: str, at: tuple[str, ...]) -> Any:
        written = text
        while match := _INTERPOLATION.search(text):
            found = self._reference(match.group(1).strip(), at, written)
            if match.span() == (0, len(text)):
                return found
            text = text[: match.start()] + str(found) + text[match.end() :]
        return text

    def _reference(self, reference: str, at: tuple[str, ...], written: str) -> Any:
        name, colon, rest = reference.partition(":")
        if colon:
            return self._call(name, rest, at, written)
        parts = reference.split(".")
        if reference.startswith("."):
            levels = len(reference) - len(reference.lstrip("."))
            parts = [*at[: len(at) - levels], *reference.lstrip(".").split(".")]
        key = ".".join(parts)
        if key in self.under_way:
            raise RecipeError(f"{self.path}: {'.'.join(at)} refers to itself, through {key}")
        here: Any = self.root
        for depth, part in enumerate(parts):
            if not isinstance(here, dict) or part not in here:
                if not self.strict:
                    raise _UnresolvedError
                if not isinstance(here, dict):
                    raise RecipeError(
                        f"{self.path}: {'.'.join(parts[:depth])} is {here!r} and should be a"
                        f" section: {'.'.join(at)} refers to {key}"
                    )
                raise RecipeError(
                    f"{self.path}: {'.'.join(at)} refers to {key}, which is not there"
                )
            here = here[part]
        self.under_way.append(key)
        try:
            return self.resolve(here, tuple(parts))
        finally:
            self.under_way.pop()

    def _call(self, name: str, rest: str, at: tuple[str, ...], written: str) -> Any:
        import yaml

        if name == "oc.env":
            return self._from_environment(rest, at)
        if name not in _RESOLVERS:
            known = ", ".join((*_RESOLVERS, "oc.env"))
            raise RecipeError(
                f"{self.path}: {'.'.join(at)} uses ${{{name}:…}}, which this reader does not"
                f" know; it knows {known}"
            )
        try:
            numbers = [yaml.load(part, Loader=_loader()) for part in rest.split(",")]
            if len(numbers) != 2:
                raise TypeError(f"it takes 2 numbers, not {len(numbers)}")
            for number in numbers:
                # Python multiplies texts and lists too, into gigabytes.
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise TypeError(f"{number!r} is no number")
            return _RESOLVERS[name](*numbers)
        except (ArithmeticError, TypeError, ValueError, yaml.YAMLError) as error:
            place = f"{self.path}: {'.'.join(at)}"
            raise RecipeError(f"{place}: {written} cannot be computed: {error}") from error

    def _from_environment(self, rest: str, at: tuple[str, ...]) -> str | None:
        """A variable's value as text, or what stands after the comma; OmegaConf's `oc.env`."""
        name, comma, otherwise = (part.strip() for part in rest.partition(","))
        if name in os.environ:
            return os.environ[name]
        if comma:
            return None if otherwise == "null" else otherwise
        if self.environment is not None:
            self.environment.add(name)
            return f"<{name}>"
        raise RecipeError(
            f"{self.path}: {'.'.join(at)} needs the environment variable {name}, which is not set"
        )


class _UnresolvedError(Exception):
    """A reference to a file that was not read."""


_UNRESOLVED = object()
