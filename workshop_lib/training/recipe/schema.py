"""NeMo RL's keys: whether a recipe has others, and whether its values are of their types.

`data/nemo-rl-keys.yaml` is the table of keys, types and NeMo RL's own values.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from workshop_lib.data import data_path

__all__ = ["check_keys", "closest", "dataset_entry", "known_keys", "nemo_rl", "own_values"]

# Environments whose keys are checked; others (nemo_gym, code, a reward model) have their own.
REWARD_ENVIRONMENTS = ("first_integer", "math_verify", "format", "techpulse", "math")
_GYM_SWITCHES = ("should_use_nemo_gym", "should_log_nemo_gym_responses")
_OTHER_ALGORITHMS = ("sft", "dpo", "rm", "ppo", "distillation", "eval")

_TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "count": Annotated[int, Field(ge=1)],
    "float": float,
    "share": Annotated[float, Field(gt=0, le=1)],
    "text": str,
    "free": dict[str, Any],
    "schedule": dict[str, Any] | list[dict[str, Any]],
    # Their entries are checked one by one.
    "datasets": dict[str, Any] | Annotated[list[dict[str, Any]], Field(min_length=1)],
    "dataset": dict[str, Any],
    "environments": dict[str, Any],
}
_LIMITS = {">=": "ge", ">": "gt", "<": "lt"}


@cache
def nemo_rl() -> dict[str, Any]:
    """The keys and names of the NeMo RL that recipes are checked against."""
    import yaml

    return dict(yaml.safe_load(data_path("nemo-rl-keys.yaml").read_text(encoding="utf-8")))


def check_keys(settings: Mapping[Any, Any]) -> tuple[Any, list[str]]:
    """A recipe's values with NeMo RL's own for what it leaves out, and what is wrong with them.

    The values are None where one is not of its type.
    """
    other = next((name for name in _OTHER_ALGORITHMS if name in settings), "")
    if other and "grpo" not in settings:
        return None, [f"this is a recipe for {other}: it has a section {other} and none named grpo"]
    config, problems = _validated("keys", settings, "")
    if config is None:
        return None, problems
    for split in ("train", "validation", "default"):
        entries = getattr(config.data, split)
        for at, entry in enumerate(entries if isinstance(entries, list) else [entries or {}]):
            place = f"data.{split}[{at}]" if isinstance(entries, list) else f"data.{split}"
            if "." not in str(entry.get("dataset_name")):  # a class of your own has its own keys
                problems += _validated("dataset", entry, place)[1]
    config.env = {n: v for n, v in config.env.items() if n not in _GYM_SWITCHES}
    for name, values in config.env.items():
        if not isinstance(values, dict | None):
            problems.append(f"env.{name} is {values!r} and should be a section")
        elif name in (*REWARD_ENVIRONMENTS, "math_default"):
            problems += _validated("environment", values or {}, f"env.{name}")[1]
    return config, problems


def dataset_entry(entry: Mapping[str, Any]) -> SimpleNamespace:
    """An entry of `data.train` with null for each key that it leaves out."""
    return SimpleNamespace(**(dict.fromkeys(nemo_rl()["dataset"]) | dict(entry)))


def _validated(table: str, values: Any, key: str) -> tuple[Any, list[str]]:
    """A section's values, and its problems; of unknown keys alone, the values without them."""
    try:
        return _model(table).model_validate(values), []
    except ValidationError as error:
        errors = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    problems = [_problem(each, key) for each in errors]
    if any(each["type"] != "extra_forbidden" for each in errors):
        return None, problems
    known = copy.deepcopy(values)
    for each in errors:
        *sections, name = each["loc"]
        section = known
        for part in sections:
            section = section[part]
        del section[name]
    return _validated(table, known, key)[0], problems


def _problem(error: Any, key: str) -> str:
    parts = [str(part) for part in error["loc"] if "[" not in str(part)]
    place = ".".join(filter(None, (key, *parts)))
    if error["type"] == "extra_forbidden":
        return _unknown(place)
    if error["type"] == "invalid_key":
        section = ".".join(filter(None, (key, *parts[:-1]))) or "the top level"
        return f"{section} has a key that is no word: {error['input']!r} (YAML's on, off, yes, no)"
    if error["type"] == "missing":
        return f"{place} is missing"
    value = repr(error["input"])
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{place} is {shown}: {error['msg']}"


# -- the table as types


@cache
def _model(table: str) -> type[BaseModel]:
    return _section(table, nemo_rl()[table])


def _section(title: str, spec: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for written, kind in spec.items():
        name = written.rstrip("?")
        if isinstance(kind, Mapping):
            inner: Any = _section(name, kind)
            inner = inner | None if written.endswith("?") else inner
            field = Field(default={}, validate_default=True, alias=name)
        else:
            kind, given, default = kind.partition(" = ")
            inner = _type(kind)
            field = Field(default=_yaml(default) if given else ..., alias=name)
        fields[name.lstrip("_")] = (inner, field)
    strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(title, __config__=strict, **fields)


def _type(kind: str) -> Any:
    """The type that the table names: `count`, `float >=0?`, `k1 | k2`, `list of text`."""
    if kind.endswith("?"):
        return _type(kind[:-1]) | None
    if " | " in kind:
        return Literal[tuple(kind.split(" | "))]
    if kind.startswith("list of "):
        return list[_type(kind.removeprefix("list of "))]  # type: ignore[misc]
    name, *limits = kind.split()
    bounds: dict[str, Any] = {}
    for limit in limits:
        sign = limit.rstrip("0123456789")
        bounds[_LIMITS[sign]] = int(limit.removeprefix(sign))
    return Annotated[_TYPES[name], Field(**bounds)]


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


# -- what was meant


def _unknown(key: str) -> str:
    bare = re.sub(r"\[\d+\]", "", key)
    now = nemo_rl()["moved"].get(bare)
    return f"unknown key {key}; {f'it is now {now}' if now else _meant(bare)}".replace("\n", "\\n")


def _meant(key: str) -> str:
    """Which key was probably meant by one that does not exist."""
    section, _, name = key.rpartition(".")
    every = list(known_keys())
    ends = {each.rpartition(".")[2]: each for each in reversed(every)}
    beside = {
        end: key for key in every for above, _, end in [key.rpartition(".")] if above == section
    }
    if name in every or key in every:  # one word with dots in it
        *sections, last = key.split(".")
        return f"write it in sections: {': {'.join(sections)}: {{{last}: …{'}' * len(sections)}"
    meant = (
        ends.get(name)
        or nemo_rl()["elsewhere"].get(name)
        or beside.get(closest(name, beside))
        or ends.get(closest(name, ends, cutoff=0.75))
    )
    if meant:
        return f"did you mean {meant}?"
    return f"{section or 'a recipe'} has {', '.join(sorted(beside))}"


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The known name that is most like another, if one is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), "")


def known_keys(spec: Mapping[str, Any] | None = None, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a recipe may have."""
    for name, kind in (nemo_rl()["keys"] if spec is None else spec).items():
        key = prefix + name.rstrip("?")
        yield key
        if isinstance(kind, Mapping):
            yield from known_keys(kind, f"{key}.")
        elif kind.startswith("dataset"):
            yield from known_keys(nemo_rl()["dataset"], f"{key}.")
        elif kind == "environments":
            for environment in REWARD_ENVIRONMENTS:
                yield from known_keys(nemo_rl()["environment"], f"{key}.{environment}.")


@cache
def own_values() -> dict[str, Any]:
    """NeMo RL's own value of each key, and null for a key that must be given."""

    def walk(spec: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, kind in spec.items():
            key = prefix + name.rstrip("?")
            if isinstance(kind, Mapping):
                yield from walk(kind, f"{key}.")
            else:
                yield key, _yaml(kind.partition(" = ")[2] or "null")

    return dict(walk(nemo_rl()["keys"], ""))
