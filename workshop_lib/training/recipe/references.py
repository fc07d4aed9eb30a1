"""References in a recipe, `${policy.model_name}`, replaced by the values that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from workshop_lib.training.recipe.yaml_file import RecipeError, parse_value

__all__ = ["MOST_VALUES", "Resolver"]

# Innermost first: no `$`, brace or quote inside.
_INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")
_INDEX = re.compile(r"\[(\d+)\]")
MOST_VALUES = 100_000  # NeMo RL's largest has hundreds; anchors and references can make billions
_RESOLVERS: dict[str, Callable[[Any, Any], Any]] = {
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": max,
}


class Resolver:
    """Replaces references by the values that they name.

    Args:
        root: The settings, with references.
        path: Their file, for errors.
        strict: Whether a reference that leads nowhere is an error; else its key is left out.
        environment: As `load_settings`' `unset`.

    Attributes:
        referred: The top-level keys that references named.

    Example:
        >>> settings = {"a": 2, "b": "${mul:${a},3}"}
        >>> Resolver(settings, "x.yaml", strict=True, environment=None).resolve(settings, ())
        {'a': 2, 'b': 6}
    """

    def __init__(
        self, root: dict[str, Any], path: str, *, strict: bool, environment: set[str] | None
    ) -> None:
        self.root = root
        self.environment = environment
        self.path = path
        self.strict = strict
        self.under_way: list[str] = []
        self.values = 0
        self.referred: set[str] = set()

    def resolve(self, value: Any, at: tuple[str, ...]) -> Any:
        """A value without references.

        Args:
            value: A value of the settings.
            at: Where it stands, key by key.

        Raises:
            RecipeError: A reference leads nowhere, in a circle, or cannot be computed.
        """
        self._count(1)
        if isinstance(value, dict):
            items = {key: self.resolve(item, (*at, str(key))) for key, item in value.items()}
            return {key: item for key, item in items.items() if item is not _UNRESOLVED}
        if isinstance(value, list):
            return [self.resolve(item, at) for item in value]
        if not isinstance(value, str):
            return value
        if value == "???":  # OmegaConf's word for what the next file or the command line must say
            if not self.strict:
                return _UNRESOLVED
            raise RecipeError(f"{self.path}: {'.'.join(at)} is ???: it must be given a value")
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
            self._count(1 + len(text) // 1000)
        if "${" in text:
            raise RecipeError(
                f"{self.path}: {'.'.join(at)} is {written[:60]!r}, no whole reference"
            )
        return text

    def _count(self, values: int) -> None:
        """Stop where references to references make more than any recipe has."""
        self.values += values
        if self.values > MOST_VALUES or len(self.under_way) > 100:
            raise RecipeError(
                f"{self.path} is no recipe: its references make more than {MOST_VALUES:,} values,"
                " or lead through more than 100 others"
            )

    def _reference(self, reference: str, at: tuple[str, ...], written: str) -> Any:
        name, colon, rest = reference.partition(":")
        if colon:
            return self._call(name, rest, at, written)
        reference = _INDEX.sub(r".\1", reference)  # list[0] is list.0
        parts = reference.split(".")
        if reference.startswith("."):
            levels = len(reference) - len(reference.lstrip("."))
            parts = [*at[: len(at) - levels], *reference.lstrip(".").split(".")]
        key = ".".join(parts)
        if key in self.under_way:
            raise RecipeError(f"{self.path}: {'.'.join(at)} refers to itself, through {key}")
        here: Any = self.root
        for depth, part in enumerate(parts):
            if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
                here = here[int(part)]
                continue
            if not isinstance(here, dict) or part not in here:
                if not self.strict:
                    raise _UnresolvedError
                if not isinstance(here, dict | list):
                    raise RecipeError(
                        f"{self.path}: {'.'.join(parts[:depth])} is {here!r} and should be a"
                        f" section: {'.'.join(at)} refers to {key}"
                    )
                raise RecipeError(
                    f"{self.path}: {'.'.join(at)} refers to {key}, which is not there"
                )
            here = here[part]
        self.referred.add(parts[0])
        self.under_way.append(key)
        try:
            return self.resolve(here, tuple(parts))
        finally:
            self.under_way.pop()

    def _call(self, name: str, rest: str, at: tuple[str, ...], written: str) -> Any:
        if name == "oc.env":
            return self._from_environment(rest, at)
        if name not in (*_RESOLVERS, "oc.decode", "oc.select"):
            known = ", ".join((*_RESOLVERS, "oc.env", "oc.decode", "oc.select"))
            raise RecipeError(
                f"{self.path}: {'.'.join(at)} uses ${{{name}:…}}, which this reader does not"
                f" know; it knows {known}"
            )
        try:
            if name == "oc.decode":  # a number, of a variable's text
                return parse_value(rest)
            key, _, otherwise = (part.strip() for part in rest.partition(","))
            if name == "oc.select" and not self._is_there(key):
                return parse_value(otherwise)
            if name == "oc.select":
                return self._reference(key, at, written)
            numbers = [parse_value(part) for part in rest.split(",")]
            if len(numbers) != 2:
                raise TypeError(f"it takes 2 numbers, not {len(numbers)}")
            for number in numbers:
                # Python multiplies texts and lists too, into gigabytes.
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise TypeError(f"{number!r} is no number")
            return _RESOLVERS[name](*numbers)
        except (ArithmeticError, TypeError, ValueError) as error:
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

    def _is_there(self, key: str) -> bool:
        here: Any = self.root
        for part in key.split("."):
            here = here.get(part) if isinstance(here, dict) else None
        return here is not None


class _UnresolvedError(Exception):
    """A reference to a file that was not read."""


_UNRESOLVED = object()
