"""The keys of NeMo RL: whether a recipe has others, and whether its values are of their types.

`data/nemo-rl-keys.yaml` has the keys, their types and NeMo RL's own values.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from workshop_lib.data import data_path

__all__ = ["check_keys", "closest", "dataset_entry", "known_keys", "nemo_rl", "own_values"]

# Environments whose keys are checked; others (nemo_gym, code, a reward model) have their own.
REWARD_ENVIRONMENTS = ("first_integer", "math_verify", "format", "techpulse", "math")
_GYM_SWITCHES = ("should_use_nemo_gym", "should_log_nemo_gym_responses")
_OTHER_ALGORITHMS = ("sft", "dpo", "rm", "ppo", "distillation", "eval")

_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number", lambda value: type(value) is int),
    "count": ("a whole number of at least 1", lambda value: type(value) is int and value >= 1),
    "float": ("a number", lambda value: type(value) in (int, float) and math.isfinite(value)),
    "share": (
        "a number above 0 and at most 1",
        lambda value: type(value) in (int, float) and 0 < value <= 1,
    ),
    "text": ("a text", lambda value: isinstance(value, str)),
    "free": ("a section", lambda value: isinstance(value, dict)),
    "schedule": ("a section, or a list of sections", lambda value: isinstance(value, dict | list)),
}
_LIMITS = {">=": operator.ge, ">": operator.gt, "<": operator.lt}


@cache
def nemo_rl() -> dict[str, Any]:
    """The keys and names of the NeMo RL that recipes are checked against."""
    import yaml

    text = data_path("nemo-rl-keys.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def check_keys(settings: Mapping[Any, Any]) -> tuple[SimpleNamespace, list[str], bool]:
    """A recipe's values with NeMo RL's own for what it leaves out, and what is wrong with them.

    Args:
        settings: The recipe.

    Returns:
        The values; the problems, a line each; whether all values are of their types, so that what
        must fit together can be told although keys are unknown.
    """
    other = next((name for name in _OTHER_ALGORITHMS if name in settings), "")
    if other and "grpo" not in settings:
        problem = f"this is a recipe for {other}: it has a section {other} and none named grpo"
        return SimpleNamespace(), [problem], False
    checker = _Checker()
    config = checker.section(settings, nemo_rl()["keys"], "")
    return config, [*checker.unknown, *checker.wrong], not checker.wrong


def dataset_entry(entry: Mapping[str, Any]) -> SimpleNamespace:
    """An entry of `data.train` with null for each key that it leaves out."""
    return SimpleNamespace(**(dict.fromkeys(nemo_rl()["dataset"]) | dict(entry)))


class _Checker:
    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.wrong: list[str] = []

    def section(self, values: Any, spec: Mapping[str, Any], key: str) -> SimpleNamespace:
        if not isinstance(values, Mapping):
            self.wrong.append(f"{key} is {_shown(values)} and should be a section")
            values = {}
        found: dict[str, Any] = {}
        known = {name.rstrip("?"): (name, kind) for name, kind in spec.items()}
        for name in values:
            if not isinstance(name, str):
                self.wrong.append(
                    f"{key or 'the top level'} has a key that is no word: {name!r} (on, off, yes"
                    " and no are true and false)"
                )
            elif name not in known:
                self.unknown.append(_unknown(f"{key}.{name}".lstrip(".")))
        for name, (written, kind) in known.items():
            place = f"{key}.{name}".lstrip(".")
            if not isinstance(kind, Mapping):
                found[name.lstrip("_")] = self.value(values, name, kind, place)
            elif written.endswith("?") and name in values and values[name] is None:
                found[name.lstrip("_")] = None
            else:
                found[name.lstrip("_")] = self.section(values.get(name, {}), kind, place)
        return SimpleNamespace(**found)

    def value(self, values: Mapping[str, Any], name: str, kind: str, key: str) -> Any:
        import yaml

        kind, given, default = kind.partition(" = ")
        if name not in values:
            if not given:
                self.wrong.append(f"{key} is missing")
            return yaml.safe_load(default) if given else None
        value = values[name]
        if value is None and kind.endswith("?"):
            return None
        kind = kind.rstrip("?")
        if kind in ("datasets", "dataset"):
            return self.datasets(value, key, several=kind == "datasets")
        if kind == "environments":
            return self.environments(value, key)
        wanted, right = _type(kind)
        if not right(value):
            self.wrong.append(f"{key} is {_shown(value)} and should be {wanted}")
        return value

    def datasets(self, value: Any, key: str, *, several: bool) -> Any:
        entries = value if several and isinstance(value, list) else [value]
        if not entries:
            self.wrong.append(f"{key} is empty and should name at least one data set")
        for at, entry in enumerate(entries):
            place = f"{key}[{at}]" if entries is value else key
            own = isinstance(entry, dict) and "." in str(entry.get("dataset_name"))
            if not own:  # a class of your own takes arguments of its own
                self.section(entry, nemo_rl()["dataset"], place)
        return entries if several else value

    def environments(self, value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.wrong.append(f"{key} is {_shown(value)} and should be a section")
            return {}
        found = {}
        for name, settings in value.items():
            if name in _GYM_SWITCHES and isinstance(settings, bool):
                continue  # NeMo Gym's switches stand among the environments
            if name in (*REWARD_ENVIRONMENTS, "math_default"):
                self.section(settings or {}, nemo_rl()["environment"], f"{key}.{name}")
            elif not isinstance(settings, dict | None):
                self.wrong.append(f"{key}.{name} is {_shown(settings)} and should be a section")
            found[name] = settings
        return found


def _type(kind: str) -> tuple[str, Callable[[Any], bool]]:
    """What a type is called, and whether a value is of it: `count`, `float >=0`, `k1 | k2`."""
    if " | " in kind:
        choices = kind.split(" | ")
        text = " or ".join([", ".join(map(repr, choices[:-1])), repr(choices[-1])])
        return text, lambda value: value in choices
    if kind.startswith("list of "):
        what, each = _type(kind.removeprefix("list of "))
        return (
            f"a list, each {what}",
            lambda value: isinstance(value, list) and all(map(each, value)),
        )
    name, *limits = kind.split()
    what, right = _TYPES[name]
    bounds = [re.fullmatch(r"(>=|>|<)(.+)", limit) for limit in limits]
    pairs = [(bound[1], float(bound[2])) for bound in bounds if bound]
    text = " and ".join(f"{sign} {number:.12g}" for sign, number in pairs)
    return (
        f"{what} {text}".rstrip(),
        lambda value: right(value) and all(_LIMITS[sign](value, n) for sign, n in pairs),
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# -- what was meant


def _unknown(key: str) -> str:
    moved: dict[str, str] = nemo_rl()["moved"]
    bare = re.sub(r"\[\d+\]", "", key)
    meant = f"it is now {moved[bare]}" if bare in moved else _meant(bare)
    return f"unknown key {key}; {meant}".replace("\n", "\\n")


def _meant(key: str) -> str:
    """Which key was probably meant by one that does not exist."""
    section, _, name = key.rpartition(".")
    every = list(known_keys())
    beside = [each.rpartition(".")[2] for each in every if each.rpartition(".")[0] == section]
    if name in every or key in every:  # one word with dots in it
        *sections, last = key.split(".")
        return f"write it in sections: {': {'.join(sections)}: {{{last}: …{'}' * len(sections)}"
    elsewhere = [each for each in every if each.rpartition(".")[2] == name]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}?"
    if name in (known := nemo_rl()["elsewhere"]):
        return f"did you mean {known[name]}?"
    if close := closest(name, beside):
        return f"did you mean {section}.{close}?".replace(" .", " ")
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    ends = {each.rpartition(".")[2]: each for each in reversed(every)}
    if close := closest(name, ends, cutoff=0.75):
        return f"did you mean {ends[close]}?"
    return f"{section or 'a recipe'} has {', '.join(sorted(beside))}"


def closest(name: str, known: Any, *, cutoff: float = 0.6) -> str:
    """The known name that is most like another, if one is."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else ""


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
    import yaml

    def walk(spec: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, kind in spec.items():
            key = prefix + name.rstrip("?")
            if isinstance(kind, Mapping):
                yield from walk(kind, f"{key}.")
            else:
                yield key, yaml.safe_load(kind.partition(" = ")[2] or "null")

    return dict(walk(nemo_rl()["keys"], ""))
