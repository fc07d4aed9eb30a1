"""One recipe, in NeMo RL's own YAML, read strictly.

NeMo RL takes a key that it does not know and says nothing: a misspelt setting
trains with the default. Here it is an error that names the right key. The same
file runs on a cluster under NeMo RL and, translated, on a laptop under TRL
(`translate`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workshop_lib.data import data_dir
from workshop_lib.training.recipe.files import RecipeError, load_settings
from workshop_lib.training.recipe.names import MOVED, UNREAD, advice, other_algorithm
from workshop_lib.training.recipe.rules import contradictions, oddities
from workshop_lib.training.recipe.schema import (
    REWARD_ENVIRONMENTS,
    Checkpointing,
    Cluster,
    Data,
    Dataset,
    Generation,
    Grpo,
    Logger,
    LossFn,
    MathEnvironment,
    Policy,
    RecipeConfig,
    Section,
)

__all__ = ["Recipe", "RecipeError", "read_recipe"]


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked.

    Attributes:
        path: Its file.
        settings: What the file and those it inherits from say, references resolved.
        config: The same with types, and NeMo RL's value for every key left out.
        notes: What is not wrong and yet worth a word, a line each.
    """

    path: Path
    settings: dict[str, Any]
    config: RecipeConfig
    notes: tuple[str, ...] = ()

    @property
    def grpo(self) -> Grpo:
        """`grpo`: prompts, answers and steps."""
        return self.config.grpo

    @property
    def loss_fn(self) -> LossFn:
        """`loss_fn`: the clipped policy gradient."""
        return self.config.loss_fn

    @property
    def policy(self) -> Policy:
        """`policy`: model, batches, optimizer."""
        return self.config.policy

    @property
    def generation(self) -> Generation:
        """`policy.generation`: how answers are sampled."""
        return self.config.policy.generation

    @property
    def data(self) -> Data:
        """`data`: the problems."""
        return self.config.data

    @property
    def checkpointing(self) -> Checkpointing:
        """`checkpointing`."""
        return self.config.checkpointing

    @property
    def logger(self) -> Logger:
        """`logger`."""
        return self.config.logger

    @property
    def cluster(self) -> Cluster:
        """`cluster`: GPUs and nodes."""
        return self.config.cluster

    @property
    def completions_per_step(self) -> int:
        """Answers that a step samples: prompts times answers a prompt."""
        return self.grpo.num_prompts_per_step * self.grpo.num_generations_per_prompt

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates that a step makes; 1 is on-policy."""
        return self.completions_per_step // self.policy.train_global_batch_size

    @property
    def normalize_rewards(self) -> bool:
        """Whether advantages are divided by their group's spread."""
        own = self.grpo.adv_estimator.normalize_rewards
        return self.grpo.normalize_rewards if own is None else own

    @property
    def leave_one_out(self) -> bool:
        """Whether an answer's baseline is the mean of the others in its group."""
        own = self.grpo.adv_estimator.use_leave_one_out_baseline
        return self.grpo.use_leave_one_out_baseline if own is None else own

    @property
    def plain_prompts(self) -> bool:
        """Whether prompts go to the model as they are, without a chat template."""
        return self.policy.tokenizer.chat_template is None

    def datasets(self, split: str) -> list[Dataset]:
        """The data sets of `data.train` or `data.validation`, `data.default` filled in.

        Args:
            split: `train` or `validation`.

        Example:
            >>> from workshop_lib.data import data_path
            >>> recipe = read_recipe(data_path("recipes/arithmetic.yaml"))
            >>> recipe.datasets("train")[0].env_name
            'first_integer'
        """
        entries: list[Dataset] = getattr(self.data, split) or []
        default = self.data.default.model_dump(exclude_unset=True) if self.data.default else {}
        return [
            Dataset.model_validate(default | entry.model_dump(exclude_unset=True))
            for entry in entries
        ]

    @property
    def environments(self) -> list[str]:
        """Names of the environments that score answers."""
        entries = [*self.datasets("train"), *self.datasets("validation")]
        return list(dict.fromkeys(entry.env_name for entry in entries if entry.env_name))


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
        unset: As for `load_settings`: takes the names of environment variables not set.

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
    variables: set[str] = set()
    settings = load_settings(path, overrides, unset=unset, referred=variables)
    if other := other_algorithm(settings):
        raise _refusal(path, [other])
    for name in variables & set(settings):
        # A value of the top level that others refer to is a variable, as NeMo RL's own recipes
        # have them; a section is none, and a misspelt one stays an error.
        if name not in RecipeConfig.model_fields and not isinstance(settings[name], dict | list):
            del settings[name]
    known, notes = _without_unread(settings)
    config, problems = _validated(known)
    if config is not None:
        recipe = Recipe(Path(path), known, config)
        problems += [*_environment_problems(config.env), *contradictions(recipe)]
    if config is None or problems:
        raise _refusal(path, problems)
    return replace(recipe, notes=(*notes, *oddities(recipe)))


def _validated(settings: dict[str, Any]) -> tuple[RecipeConfig | None, list[str]]:
    """A recipe's types, and what is wrong with them.

    Where no more is wrong than keys that do not exist, the rest is returned too, so that
    what must fit together can be told at once.
    """
    from pydantic import ValidationError

    try:
        return RecipeConfig.model_validate(settings), []
    except ValidationError as error:
        items: list[dict[str, Any]] = [dict(item) for item in error.errors()]
    found: dict[str, str] = {}
    for item in items:
        # A union is tried type by type: a wrong value gives an error for each.
        place = ".".join(str(part) for part in item["loc"] if not _is_type_tag(part))
        found.setdefault(place, _explain(item, settings, ""))
    if any(item["type"] != "extra_forbidden" for item in items):
        return None, list(found.values())
    rest = copy.deepcopy(settings)
    for item in items:
        _remove(rest, [part for part in item["loc"] if not _is_type_tag(part)])
    try:
        return RecipeConfig.model_validate(rest), list(found.values())
    except ValidationError:
        return None, list(found.values())


def _remove(settings: Any, location: Sequence[Any]) -> None:
    *above, name = location
    for part in above:
        if isinstance(part, int) and not isinstance(settings, list):
            continue  # a single data set is no list in the file
        settings = settings[part]
    del settings[name]


def _without_unread(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings without the keys that nothing in NeMo RL reads, and a note for each.

    A moved key is left out too where it says what its new place says: stale and harmless, as in
    a configuration that NeMo RL published with v0.7.0.
    """
    known, notes = copy.deepcopy(settings), []
    for key, meant in UNREAD.items():
        if _take(known, key) is not _NOTHING:
            instead = f"; {meant} may be meant" if meant else ""
            notes.append(f"{key} is read by nothing in NeMo RL v0.7.0{instead}")
    for key, now in MOVED.items():
        old, new = _take(copy.deepcopy(known), key), _take(copy.deepcopy(known), now)
        if old is not _NOTHING and type(old) is type(new) and old == new:
            _take(known, key)
            notes.append(f"{key} is read by nothing in NeMo RL v0.7.0; {now} says the same")
    return known, notes


_NOTHING = object()


def _take(settings: dict[str, Any], key: str) -> Any:
    """Remove a dotted key, and give its value; `_NOTHING` where it is not there."""
    *above, name = key.split(".")
    section: Any = settings
    for part in above:
        section = section.get(part) if isinstance(section, dict) else None
    return section.pop(name, _NOTHING) if isinstance(section, dict) else _NOTHING


def _refusal(path: str | Path, problems: Sequence[str]) -> RecipeError:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return RecipeError(f"{shown(path)}: {problems[0]}{more}", problems)


def shown(path: str | Path) -> str:
    """A path as messages have it: one in the working folder or this checkout begins there.

    Args:
        path: A recipe's file.

    Example:
        >>> from workshop_lib.data import data_path
        >>> shown(data_path("recipes/arithmetic.yaml"))
        'data/recipes/arithmetic.yaml'
    """
    for base in (Path.cwd(), data_dir().parent):
        if Path(path).is_relative_to(base):
            return str(Path(path).relative_to(base))
    return str(path)


def _environment_problems(env: Mapping[str, Any]) -> Iterator[str]:
    from pydantic import ValidationError

    for name in set(env) & set(REWARD_ENVIRONMENTS):
        try:
            MathEnvironment.model_validate(env[name] or {})
        except ValidationError as error:
            for item in error.errors():
                yield _explain(dict(item), {}, f"env.{name}.", MathEnvironment)


def _explain(
    error: dict[str, Any],
    settings: Mapping[str, Any],
    prefix: str,
    model: type[Section] = RecipeConfig,
) -> str:
    """One of pydantic's errors in the words of the recipe."""
    location = [part for part in error["loc"] if not _is_type_tag(part)]
    key = prefix + _written(location, settings)
    if key == "checkpointing.metric_name":
        return (
            f"{key} is {error['input']!r}; since NeMo RL v0.6 it says where the metric comes"
            ' from: "val:accuracy" in place of "val_reward"'
        )
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}; {advice(key, location, prefix, model)}"
    if error["type"] == "invalid_key":
        *above, wrong = location
        place = _written(above, settings) or "the top level"
        return (
            f"{place} has a key that is no word: {wrong!r} (on, off, yes and no are true and false)"
        )
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    message = _SECTION.sub("should be a section", message)
    value = repr(error["input"])
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return f"{key} is {value} and {message}"


# What pydantic calls a section: its class, or a dictionary.
_SECTION = re.compile(r"should be a valid dictionary( or instance of \w+)?$")


def _is_type_tag(part: Any) -> bool:
    # In a union pydantic names the type that was tried: list[dict[str,any]] and the like.
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool"))


def _written(location: Sequence[Any], settings: Any) -> str:
    """A location as the file has it: a single data set is no list there."""
    text = ""
    for part in location:
        if isinstance(part, int):
            if isinstance(settings, list):
                text += f"[{part}]"
                settings = settings[part]
            continue
        word = str(part).replace("\n", "\\n")
        text += f".{word}" if text else word
        settings = settings.get(part) if isinstance(settings, Mapping) else None
    return text
