"""The grammar of `schema`: kinds of fields, and the walk that checks a value against them."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ManifestError

__all__ = ["Fields", "Leaf", "ListOf", "MapOf", "Note", "Quantity", "walk"]


@dataclass(frozen=True)
class Leaf:
    """A single value: of some types, one of some values, in a range, of a pattern."""

    types: tuple[type, ...]
    describe: str = ""
    allowed: tuple[Any, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    pattern: str = ""


@dataclass(frozen=True)
class Note:
    """A field that is accepted and has no effect on this machine."""

    why: str


@dataclass(frozen=True)
class ListOf:
    """A list of something."""

    item: Any
    minimum: int = 0


@dataclass(frozen=True)
class MapOf:
    """A mapping from strings to something."""

    value: Any
    keys: Leaf = field(default_factory=lambda: Leaf((str,), "text"))


@dataclass(frozen=True)
class Quantity:
    """A Kubernetes quantity."""


@dataclass(frozen=True)
class Fields:
    """An object with named fields; `required` must be there."""

    fields: dict[str, Any]
    required: tuple[str, ...] = ()


def walk(rule: Any, value: Any, path: str, item: Object, notes: dict[str, str]) -> None:
    """Check a value; refuse what is wrong by its path.

    Args:
        rule: What is expected.
        value: What is there.
        path: The way to it, such as `.spec.replicas`; empty for the whole object.
        item: The object, for the message.
        notes: Takes the path and reason of every field without effect.

    Raises:
        ManifestError: It is not as expected.
    """
    where = path.lstrip(".")
    if isinstance(rule, Note):
        notes[where] = rule.why
    elif isinstance(rule, Quantity):
        try:
            parse_quantity(value)
        except ManifestError as error:
            raise item.error(f"{where}: {error}") from None
    elif isinstance(rule, Leaf):
        _check_leaf(rule, value, where, item)
    elif isinstance(rule, ListOf):
        _require(isinstance(value, list), where, "a list", value, item)
        if len(value) < rule.minimum:
            raise item.error(f"{where} is empty; it needs at least {rule.minimum}")
        for index, element in enumerate(value):
            walk(rule.item, element, f"{path}[{index}]", item, notes)
    else:
        _require(isinstance(value, dict), where, "a mapping", value, item)
        if isinstance(rule, MapOf):
            for key, element in value.items():
                _check_leaf(rule.keys, key, where, item)
                walk(rule.value, element, f"{path}.{key}", item, notes)
        else:
            _check_fields(rule, value, path, item, notes)


def _check_fields(
    rule: Fields, value: dict[str, Any], path: str, item: Object, notes: dict[str, str]
) -> None:
    for key, element in value.items():
        where = f"{path}.{key}"
        if key not in rule.fields:
            close = difflib.get_close_matches(str(key), rule.fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(rule.fields)}"
            raise item.error(f"{where.lstrip('.')} is not played on this machine; {hint}")
        walk(rule.fields[key], element, where, item, notes)
    for key in rule.required:
        if key not in value:
            raise item.error(f"{path}.{key}".lstrip(".") + " is missing")


def _check_leaf(rule: Leaf, value: Any, where: str, item: Object) -> None:
    # In Python True is an int; in a manifest it is not.
    wrong = isinstance(value, bool) and bool not in rule.types
    _require(isinstance(value, rule.types) and not wrong, where, rule.describe, value, item)
    if rule.allowed and value not in rule.allowed:
        allowed = " or ".join(repr(choice) for choice in rule.allowed)
        raise item.error(f"{where}: {value!r} is not played on this machine; it must be {allowed}")
    if isinstance(value, int) and not isinstance(value, bool):
        low, high = rule.minimum, rule.maximum
        inside = (low is None or value >= low) and (high is None or value <= high)
        _require(inside, where, rule.describe, value, item)
    if isinstance(value, str):
        _require("\0" not in value, where, "text without NUL", value, item)
        if rule.pattern:
            matches = re.fullmatch(rule.pattern, value) is not None
            _require(matches, where, rule.describe, value, item)


def _require(ok: bool, where: str, expected: str, value: Any, item: Object) -> None:
    if ok:
        return
    # A Secret's value is never shown, not even when it is of the wrong type.
    secret = item.kind == "Secret" and where.startswith(("data", "stringData"))
    shown = "the value" if secret else repr(value)[:80]
    raise item.error(f"{where}: {shown} is not {expected or 'of the right type'}")
