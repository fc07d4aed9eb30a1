"""The component `grpo` read as data: which recipe its pods will train, and where they write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster import manifests
from workshop_lib.data import data_dir
from workshop_lib.errors import ManifestError
from workshop_lib.training.recipe import Recipe, RecipeError, read_recipe
from workshop_lib.training.recipe.yaml_file import parse_value

__all__ = ["override", "pod_environment", "training_recipe"]


def training_recipe(
    profile: str, parameters: Mapping[str, Any] | None = None, *, component: str = "grpo"
) -> Recipe:
    """The recipe that a training's pods will read, checked before anything is started.

    Args:
        profile: The profile, as for `connect`.
        parameters: As for `cluster.apply`.
        component: A component whose Job trains.

    Raises:
        ManifestError: There is no such component or parameter, or its Job names no recipe.
        RecipeError: The recipe with these parameters is wrong; nothing was started.

    Example:
        >>> training_recipe("local", {"steps": 3, "seed": 7}).grpo.max_num_steps
        3
    """
    objects = manifests.render(profile, component, parameters)
    job = next((item.body for item in objects if item.kind == "Job"), None)
    environment = pod_environment(job) if job else {}
    if job is None or "RECIPE" not in environment:
        raise ManifestError(f"{component}: there is no Job with a RECIPE in its environment")
    container = job["spec"]["template"]["spec"]["containers"][0]
    # The ConfigMap holds this checkout's own files, under their paths in the checkout.
    path = Path(environment["RECIPE"]).relative_to(container["workingDir"])
    words = [_expand(word, environment) for word in container.get("args", [])]
    words += environment.get("OVERRIDES", "").split()
    pairs = [word for word in words if "=" in word and not word.startswith("-")]
    return read_recipe(data_dir().parent / path, dict(map(override, pairs)))


def override(text: str) -> tuple[str, Any]:
    """A key and its value, of a text as command lines have it.

    Args:
        text: `KEY=VALUE`; the value is YAML.

    Raises:
        RecipeError: It is not that.

    Example:
        >>> override("policy.optimizer.kwargs.lr=2.0e-5")
        ('policy.optimizer.kwargs.lr', 2e-05)
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"{text!r} is no KEY=VALUE, for example grpo.num_prompts_per_step=4")
    try:
        return key.strip(), parse_value(value)
    except ValueError as error:
        raise RecipeError(f"{text!r}: the value is not YAML") from error


def pod_environment(job: Mapping[str, Any]) -> dict[str, str]:
    """What a Job's manifest says to its first container, `$(NAME)` filled in.

    Args:
        job: A Job object.

    Example:
        >>> from workshop_lib.cluster.manifests import render
        >>> pod_environment(render("local", "grpo")[-1].body)["OUTPUT_DIR"]
        '/shared/grpo'
    """
    entries = job["spec"]["template"]["spec"]["containers"][0].get("env", [])
    found: dict[str, str] = {}
    for entry in entries:
        if "value" in entry:
            found[entry["name"]] = _expand(str(entry["value"]), found)
    return found


def _expand(text: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), text)
