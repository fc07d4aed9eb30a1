"""Rendering the workshop's manifests: kustomize, parameters, and where an object came from.

A component's `parameters.yaml` (beside its kustomization, and in `manifests/base/<component>` for
all profiles) says what a learner may set, and where; `manifests/base/parameters.yaml` what a value
must be like at a place. Values are set as data; nothing is ever pasted into YAML text.
"""

from __future__ import annotations

import functools
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from workshop_lib.data import data_path
from workshop_lib.errors import ManifestError

__all__ = ["Object", "Parameter", "components", "manifests_dir", "parameters_of",
           "problem_there", "render", "render_folder"]  # fmt: skip

APPLY_ORDER = (
    "Namespace", "StorageClass", "ResourceQuota", "LimitRange", "ServiceAccount", "ClusterRole",
    "ClusterRoleBinding", "Role", "RoleBinding", "NetworkPolicy", "Secret", "ConfigMap",
    "PersistentVolume", "PersistentVolumeClaim", "Service",
)  # fmt: skip
"""What others refer to comes first; workloads, not named here, come last."""

MODELS_MOUNT = "/models"
"""Where every pod has the volume with the models, each in a folder named after it."""

LARGEST = 2**31 - 1
"""Of most of Kubernetes' numbers."""

_ORIGIN = "config.kubernetes.io/origin"


@dataclass
class Object:
    """One Kubernetes object, and the path of the file it came from."""

    body: dict[str, Any]
    origin: str = ""

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.body.get("kind", "?"))

    @property
    def name(self) -> str:
        """The object's name."""
        return str((self.body.get("metadata") or {}).get("name", "?"))

    @property
    def key(self) -> str:
        """`Kind/name`, as messages name it."""
        return f"{self.kind}/{self.name}"

    def error(self, problem: str) -> ManifestError:
        """A `ManifestError` that names the file, the object and the problem."""
        return ManifestError(f"{self.origin}: {self.key}: {problem}".replace("\n", " "))


class Parameter(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One thing that a learner may set.

    Attributes:
        paths: Places it sets: `Kind/name:/json/pointer`; a `#` steps into a text that
            holds YAML (`…/serveConfigV2#/applications/0/…`).
        model_folders: Places that get the folder of the model named by the value.
        fields: Field of the value's entry in a catalogue to the places that get it: an EC2
            instance type brings its number of GPUs. A mapping becomes environment variables.
        catalogue: That catalogue, a file of `data`.
        format: What the places get, the value in it at `{}`: a mount option `prefix {}/`.
        values: What the places get for a value: a switch becomes a program's own word.
    """

    type: Literal["int", "float", "str", "bool"]
    paths: tuple[str, ...]
    model_folders: tuple[str, ...] = ()
    fields_: dict[str, tuple[str, ...]] = pydantic.Field({}, alias="fields")
    catalogue: str = ""
    allowed: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    format: str = ""
    values: Mapping[Any, str] = {}
    help: str = ""

    @pydantic.field_validator("pattern")
    @classmethod
    def _is_an_expression(cls, pattern: str) -> str:
        return re.compile(pattern).pattern

    def problem_with(self, value: Any) -> str:
        """Why a value cannot be this parameter's; empty when it can."""
        kinds = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}[self.type]
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.type != "bool"):
            return f"is not of type {self.type}"
        if self.allowed and value not in self.allowed:
            return f"is not one of {', '.join(map(str, self.allowed))}"
        if self.pattern and not re.fullmatch(self.pattern, str(value)):
            return f"does not fit the pattern {self.pattern}"
        if isinstance(value, int | float):
            least = -LARGEST if self.minimum is None else self.minimum
            most = LARGEST if self.maximum is None else self.maximum
            if not math.isfinite(value):
                return "is not a number"
            if value < least:
                return f"is less than {least:.10g}"
            if value > most:
                return f"is more than {most:.10g}"
        places = () if self.format else (*self.paths, *self.model_folders)
        return next(filter(None, (problem_there(place, value) for place in places)), "")

    def settings(self, value: Any) -> Iterator[tuple[str, Any]]:
        """Each place that a value sets, and what it gets."""
        written = self.format.replace("{}", value) if self.format else value
        for place in self.paths:
            yield place, self.values.get(value, written)
        for place in self.model_folders:
            yield place, f"{MODELS_MOUNT}/{str(value).replace('/', '--')}"
        entry = _catalogue(self.catalogue)[value] if self.fields_ else {}
        for field, places in self.fields_.items():
            for place in places:
                yield place, entry[field]


@functools.cache
def _catalogue(name: str) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(data_path(name).read_text())
    return found


@functools.cache
def _rules() -> list[tuple[re.Pattern[str], re.Pattern[str], str]]:
    rules = yaml.safe_load((manifests_dir() / "base" / "parameters.yaml").read_text())
    return [
        (re.compile(each["where"]), re.compile(each["like"], re.ASCII), each["what"])
        for each in rules
    ]


def problem_there(place: str, value: Any) -> str:
    """Why a value cannot stand at a place (`Kind/name:/json/pointer`), or nothing."""
    for where, like, what in _rules():
        if isinstance(value, str) and where.search(place) and not like.fullmatch(value):
            return f"is not {what}"
    return ""


def manifests_dir() -> Path:
    """The checkout's `manifests/` folder."""
    return Path(__file__).resolve().parents[2] / "manifests"


def _folder(profile: str, component: str) -> Path:
    """The folder of a component in a profile."""
    overlays = manifests_dir() / "overlays"
    found = {(path.parts[-3], path.parts[-2]) for path in overlays.glob("*/*/kustomization.yaml")}
    if (profile, component) not in found:
        there = sorted(name for each, name in found if each == profile)
        elsewhere = sorted(each for each, name in found if name == component)
        only = f" (only in {', '.join(elsewhere)})" if there and elsewhere else ""
        raise ManifestError(
            f"there is no component {component!r} in profile {profile!r}{only}; "
            f"it has {', '.join(there) or 'none'}"
        )
    return overlays / profile / component


def _kubectl() -> str:
    """The environment's own kubectl, else one on the PATH."""
    own = Path(sys.executable).parent / "kubectl"
    found = str(own) if own.exists() else shutil.which("kubectl")
    if found is None:
        raise ManifestError("kubectl is not installed; run make to install the environment")
    return found


def components(profile: str) -> list[str]:
    """The names of a profile's components."""
    overlays = manifests_dir() / "overlays"
    found = sorted(path.parent.name for path in overlays.glob(f"{profile}/*/kustomization.yaml"))
    if not found:
        known = ", ".join(sorted(path.name for path in overlays.iterdir()))
        raise ManifestError(f"there is no profile {profile!r}; there are: {known}")
    return found


def render(
    profile: str, component: str, parameters: Mapping[str, Any] | None = None
) -> list[Object]:
    """The objects of a component, in the order in which they are applied.

    Args:
        profile: `local`, `eks` or `kind`.
        component: A folder's name under `manifests/overlays/<profile>`.
        parameters: Values for what the component's `parameters.yaml` names.

    Raises:
        ManifestError: No such component, a kustomize error, an unknown parameter or
            a value of the wrong type.

    Example:
        >>> [item.kind for item in render("local", "vllm", {"max_model_len": 512})]
        ['ConfigMap', 'PersistentVolumeClaim', 'Service', 'Deployment']
    """
    return render_folder(_folder(profile, component), parameters)


def render_folder(folder: Path, parameters: Mapping[str, Any] | None = None) -> list[Object]:
    """Like `render`, for any folder with a `kustomization.yaml`."""
    bodies = [body for body in yaml.safe_load_all(_kustomized(folder)) if body]
    objects = [Object(body, _take_origin(body, folder)) for body in bodies]
    _set_parameters(objects, folder, parameters or {})
    order = {kind: position for position, kind in enumerate(APPLY_ORDER)}
    return sorted(objects, key=lambda item: order.get(item.kind, len(order)))


def _kustomized(folder: Path) -> str:
    done = subprocess.run(
        [_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = " ".join(done.stderr.replace("error: ", "", 1).split())
        raise ManifestError(f"{_shown(folder)}: kustomize: {reason[-400:]}")  # the cause is last
    return done.stdout


def _shown(path: Path) -> str:
    """A path as messages show it: relative to `manifests/` when it lies there."""
    base = manifests_dir().parent
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def _take_origin(body: dict[str, Any], folder: Path) -> str:
    """Remove kustomize's origin note from an object and return the path in it."""
    metadata = body.get("metadata") or {}
    note = (metadata.get("annotations") or {}).pop(_ORIGIN, None)
    if not metadata.get("annotations"):
        metadata.pop("annotations", None)
    origin = yaml.safe_load(note) if note else {}
    path = origin.get("path") or origin.get("configuredIn")
    return _shown((folder / path).resolve() if path else folder)


# -- parameters -----------------------------------------------------------------------------------


def parameters_of(profile: str, component: str) -> dict[str, Parameter]:
    """What a learner may set on a component."""
    return _parameters(_folder(profile, component))


def _parameters(folder: Path) -> dict[str, Parameter]:
    """A component's parameters: all profiles', those that it extends, and its own.

    One that is null in a later file is dropped.
    """
    shared = manifests_dir() / "base" / folder.name
    is_overlay = folder.is_relative_to(manifests_dir() / "overlays")
    known = _entries(shared / "parameters.yaml") if is_overlay else {}
    own = _entries(folder / "parameters.yaml")
    if more := own.pop("extends", None):
        known |= _parameters(folder.parent / str(more))
    return {name: entry for name, entry in (own | known | own).items() if entry is not None}


@functools.cache
def _read(file: Path, changed_at_ns: int) -> dict[str, Any]:
    shown, found, name = _shown(file), {}, ""
    try:
        for name, entry in (yaml.safe_load(file.read_text()) or {}).items():
            plain = entry is None or name == "extends"
            found[name] = entry if plain else Parameter.model_validate(entry)
    except yaml.YAMLError as error:
        raise ManifestError(f"{shown}: no YAML: {' '.join(str(error).split())}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise ManifestError(f"{shown}: {where} is missing or wrong: {first['msg']}") from None
    except (AttributeError, re.error) as error:
        raise ManifestError(f"{shown}: {name}: {error} is missing or wrong") from error
    return found


def _entries(file: Path) -> dict[str, Any]:
    return dict(_read(file, file.stat().st_mtime_ns)) if file.is_file() else {}


def _set_parameters(objects: list[Object], folder: Path, values: Mapping[str, Any]) -> None:
    known = _parameters(folder)
    if unknown := [name for name in values if name not in known and values[name] is not None]:
        choices = ", ".join(known) or "none"
        raise ManifestError(f"{_shown(folder)}: no parameter {unknown[0]!r}; it has {choices}")
    for name, parameter in known.items():  # what renames an object comes after what looks for it
        if (value := values.get(name)) is None:
            continue  # "as the manifest has it"
        if problem := parameter.problem_with(value):
            raise ManifestError(f"{_shown(folder)}: parameter {name}: {value!r} {problem}")
        for place, written in parameter.settings(value):
            _set_at(objects, place, written, folder)


def _set_at(objects: list[Object], place: str, value: Any, folder: Path) -> None:
    target, _, pointer = place.partition(":")
    where = f"{_shown(folder)}/parameters.yaml: {place}"
    matches = [item for item in objects if item.key == target]
    if not matches:
        raise ManifestError(f"{where}: there is no {target}")
    outer, _, inner = pointer.partition("#")
    body = matches[0].body
    try:
        if inner:
            holder, key = _find(body, outer)
            embedded = yaml.safe_load(holder[key])
            _put(embedded, inner, value)
            _put(body, outer, yaml.safe_dump(embedded, sort_keys=False, width=10_000))
        else:
            _put(body, outer, value)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ManifestError(f"{where}: no such place ({error})") from error


def _find(node: Any, pointer: str) -> tuple[Any, Any]:
    """What holds a place, and its key there.

    RFC 6901: `~1` is a slash and `~0` a tilde. `[name=X]` finds a list entry by its name.
    """
    outer: Any = node
    key: Any = ""
    for part in pointer.lstrip("/").split("/"):
        outer, key = node, part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.startswith("[name="):
            key = [entry.get("name") for entry in node].index(key[len("[name=") : -1])
        elif isinstance(node, list):
            key = int(key)
        node = node[key]
    return outer, key


def _put(node: Any, pointer: str, value: Any) -> None:
    """Set a place that exists, keeping its type (an environment variable stays a text)."""
    node, key = _find(node, pointer)
    if isinstance(value, Mapping):  # environment variables, in a list of others
        named = {entry["name"]: entry for entry in node[key]}
        named |= {name: {"name": name, "value": str(each)} for name, each in value.items()}
        value = list(named.values())
    elif isinstance(node[key], str) and not isinstance(value, str):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    node[key] = value
