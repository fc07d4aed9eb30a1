"""Rendering the workshop's manifests: kustomize, parameters, and where an object came from.

`manifests/overlays/<profile>/<component>` is rendered by `kubectl kustomize`. A
component may have a `parameters.yaml` beside its kustomization: what a learner may
set, of which type, and at which places of the rendered objects. Values are set as
data; nothing is ever pasted into YAML text.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.places import problem_of, problem_there
from workshop_lib.data import data_path
from workshop_lib.errors import ManifestError

__all__ = [
    "Object",
    "Parameter",
    "components",
    "manifests_dir",
    "parameters_of",
    "render",
]

APPLY_ORDER = (
    "Namespace", "StorageClass", "ResourceQuota", "LimitRange", "ServiceAccount", "ClusterRole",
    "ClusterRoleBinding", "Role", "RoleBinding", "NetworkPolicy", "Secret", "ConfigMap",
    "PersistentVolume", "PersistentVolumeClaim", "Service",
)  # fmt: skip
"""What others refer to comes first; workloads, not named here, come last."""

MODELS_MOUNT = "/models"
"""Where every pod has the volume with the models, each in a folder named after it."""

_ORIGIN = "config.kubernetes.io/origin"


@dataclass
class Object:
    """One Kubernetes object and the file it came from.

    Attributes:
        body: The object as data.
        origin: The manifest's path, relative to `manifests/` where it lies there.
    """

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


@dataclass(frozen=True)
class Parameter:
    """One thing that a learner may set.

    Attributes:
        name: Its name.
        type: `int`, `float`, `str` or `bool`.
        paths: Places it sets: `Kind/name:/json/pointer`; a `#` steps into a text that
            holds YAML (`…/serveConfigV2#/applications/0/…`).
        model_folders: Places that get the folder of the model named by the value.
        fields: Field of the value's entry in a catalogue to the places that get it: an EC2
            instance type brings its number of GPUs. A mapping becomes environment variables.
        entries: That catalogue.
        allowed: Its values, when they are few.
        minimum: Its least value.
        maximum: Its largest value.
        pattern: A regular expression that the whole of a text has to match.
        format: What the places get, the value in it at `{}`: a mount option `prefix {}/`.
        help: What it means, in a line.
    """

    name: str
    type: str
    paths: tuple[str, ...]
    model_folders: tuple[str, ...] = ()
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    allowed: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    format: str = ""
    help: str = ""


@dataclass
class Component:
    """The folder of one component in one profile."""

    profile: str
    name: str
    folder: Path = field(init=False)

    def __post_init__(self) -> None:
        overlays = manifests_dir() / "overlays" / self.profile
        self.folder = overlays / self.name
        known = sorted(path.parent.name for path in overlays.glob("*/kustomization.yaml"))
        if self.name not in known:
            elsewhere = sorted(
                path.parents[1].name
                for path in overlays.parent.glob("*/*/kustomization.yaml")
                if path.parent.name == self.name
            )
            only = f" (only in {', '.join(elsewhere)})" if known and elsewhere else ""
            raise ManifestError(
                f"there is no component {self.name!r} in profile {self.profile!r}{only}; "
                f"it has {', '.join(known) or 'none'}"
            )


def manifests_dir() -> Path:
    """The checkout's `manifests/` folder."""
    return Path(__file__).resolve().parents[2] / "manifests"


def _kubectl() -> str:
    """The environment's own kubectl, else one on the PATH."""
    own = Path(sys.executable).parent / "kubectl"
    found = str(own) if own.exists() else shutil.which("kubectl")
    if found is None:
        raise ManifestError("kubectl is not installed; run make to install the environment")
    return found


def components(profile: str) -> list[str]:
    """The names of a profile's components.

    Args:
        profile: `local`, `eks` or `kind`.

    Raises:
        ManifestError: There is no such profile.

    Example:
        >>> "vllm" in components("local")
        True
    """
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

    Returns:
        The objects, each with the file it came from.

    Raises:
        ManifestError: No such component, a kustomize error, an unknown parameter or
            a value of the wrong type.

    Example:
        >>> [item.kind for item in render("local", "vllm", {"max_model_len": 512})]
        ['ConfigMap', 'PersistentVolumeClaim', 'Service', 'Deployment']
    """
    return render_folder(Component(profile, component).folder, parameters)


def render_folder(folder: Path, parameters: Mapping[str, Any] | None = None) -> list[Object]:
    """Like `render`, for any folder with a `kustomization.yaml`."""
    try:
        bodies = [body for body in yaml.safe_load_all(_kustomized(folder)) if body]
    except yaml.YAMLError as error:
        raise ManifestError(f"{_shown(folder)}: {' '.join(str(error).split())}") from error
    objects = [Object(body, _take_origin(body, folder)) for body in bodies]
    _set_parameters(objects, folder, parameters or {})
    order = {kind: position for position, kind in enumerate(APPLY_ORDER)}
    return sorted(objects, key=lambda item: order.get(item.kind, len(order)))


def _kustomized(folder: Path) -> str:
    """What `kubectl kustomize` makes of a folder."""
    done = subprocess.run(
        [_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = " ".join(done.stderr.replace("error: ", "", 1).split())
        raise ManifestError(f"{_shown(folder)}: kustomize: {reason[:400]}")
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


def parameters_of(profile: str, component: str) -> dict[str, Parameter]:
    """What a learner may set on a component.

    Raises:
        ManifestError: No such component, or its `parameters.yaml` is malformed.
    """
    return _read_parameters(Component(profile, component).folder)


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)
}  # fmt: skip


def _read_parameters(folder: Path) -> dict[str, Parameter]:
    file = folder / "parameters.yaml"
    if not file.is_file():
        return {}
    try:
        entries = yaml.safe_load(file.read_text()) or {}
        more = entries.pop("extends", None)  # the parameters of another component, and then these
        known = _read_parameters(folder.parent / more) if more else {}
        dropped = [name for name in known if name in entries and entries[name] is None]
        own = {name: entry for name, entry in entries.items() if name not in dropped}
        known |= {name: _parameter(name, entry) for name, entry in own.items()}
        return {name: each for name, each in known.items() if name not in dropped}
    except yaml.YAMLError as error:
        raise ManifestError(f"{_shown(file)}: no YAML: {' '.join(str(error).split())}") from error
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise ManifestError(f"{_shown(file)}: {error} is missing or wrong") from error


def _parameter(name: str, entry: Mapping[str, Any]) -> Parameter:
    """One entry of a `parameters.yaml`."""
    if entry["type"] not in _TYPES:
        raise ValueError(f"{name}.type {entry['type']!r}")
    for field_name in ("paths", "model_folders", "allowed"):
        if not isinstance(entry.get(field_name, []), list):
            raise ValueError(f"{name}.{field_name} (a list)")
    fields = entry.get("fields", {})
    entries = yaml.safe_load(data_path(entry["catalogue"]).read_text()) if fields else {}
    for value in entry["allowed"] if fields else ():
        if missing := set(fields) - set(entries.get(value) or {}):
            raise ValueError(f"{name}: {sorted(missing)} of {value} in {entry['catalogue']}")
    return Parameter(
        name=name,
        type=entry["type"],
        paths=tuple(entry["paths"]),
        model_folders=tuple(entry.get("model_folders", ())),
        fields={key: tuple(places) for key, places in fields.items()},
        entries=entries,
        allowed=tuple(entry.get("allowed", ())),
        minimum=entry.get("minimum"),
        maximum=entry.get("maximum"),
        pattern=re.compile(entry.get("pattern", "")).pattern,
        format=entry.get("format", ""),
        help=entry.get("help", ""),
    )


def _set_parameters(objects: list[Object], folder: Path, values: Mapping[str, Any]) -> None:
    known = _read_parameters(folder)
    # In the file's order: what renames an object comes after what looks for it by its name.
    order = {name: position for position, name in enumerate(known)}
    for name, value in sorted(values.items(), key=lambda item: order.get(item[0], -1)):
        if value is None:
            continue  # "as the manifest has it"
        if name not in known:
            choices = ", ".join(known) or "none"
            raise ManifestError(f"{_shown(folder)}: no parameter {name!r}; it has {choices}")
        parameter = known[name]
        _check_value(parameter, value, folder)
        for place in parameter.paths:
            written = parameter.format.replace("{}", value) if parameter.format else value
            _set_at(objects, place, written, folder)
        for place in parameter.model_folders:
            _set_at(objects, place, f"{MODELS_MOUNT}/{str(value).replace('/', '--')}", folder)
        for key, places in parameter.fields.items():
            for place in places:
                _set_at(objects, place, parameter.entries[value][key], folder)


def _check_value(parameter: Parameter, value: Any, folder: Path) -> None:
    where = f"{_shown(folder)}: parameter {parameter.name}"
    is_bool = isinstance(value, bool) and parameter.type != "bool"
    if not isinstance(value, _TYPES[parameter.type]) or is_bool:
        raise ManifestError(f"{where}: {value!r} is not of type {parameter.type}")
    if parameter.allowed and value not in parameter.allowed:
        allowed = ", ".join(map(str, parameter.allowed))
        raise ManifestError(f"{where}: {value!r} is not one of {allowed}")
    if parameter.pattern and not re.fullmatch(parameter.pattern, str(value)):
        raise ManifestError(f"{where}: {value!r} does not fit the pattern {parameter.pattern}")
    least = parameter.minimum
    if least is not None and isinstance(value, int | float) and value < least:
        raise ManifestError(f"{where}: {value!r} is less than {parameter.minimum}")
    most = parameter.maximum
    if most is not None and isinstance(value, int | float) and value > most:
        raise ManifestError(f"{where}: {value!r} is more than {parameter.maximum}")
    wrong = [problem_of(value)]
    if not parameter.format:
        places = (*parameter.paths, *parameter.model_folders)
        wrong += [problem_there(place, value) for place in places]
    if found := next(filter(None, wrong), ""):
        raise ManifestError(f"{where}: {value!r} {found}")


def _set_at(objects: list[Object], place: str, value: Any, folder: Path) -> None:
    target, _, pointer = place.partition(":")
    matches = [item for item in objects if item.key == target]
    if not matches:
        raise ManifestError(f"{_shown(folder)}/parameters.yaml: {place}: there is no {target}")
    outer, _, inner = pointer.partition("#")
    body = matches[0].body
    try:
        if inner:
            embedded = yaml.safe_load(_get(body, outer))
            _put(embedded, inner, value)
            _put(body, outer, yaml.safe_dump(embedded, sort_keys=False, width=10_000))
        else:
            _put(body, outer, value)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ManifestError(
            f"{_shown(folder)}/parameters.yaml: {place}: no such place ({error})"
        ) from error


def _parts(pointer: str) -> list[str]:
    """RFC 6901: `~1` is a slash and `~0` a tilde. `[name=X]` finds a list entry by its name."""
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.lstrip("/").split("/")]


def _step(node: Any, part: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part)]
    return node[part]


def _index(node: list[Any], part: str) -> int:
    if part.startswith("[name=") and part.endswith("]"):
        names = [entry.get("name") for entry in node]
        return names.index(part[len("[name=") : -1])
    return int(part)


def _get(node: Any, pointer: str) -> Any:
    for part in _parts(pointer):
        node = _step(node, part)
    return node


def _put(node: Any, pointer: str, value: Any) -> None:
    """Set a place that exists, keeping its type (an environment variable stays a text)."""
    *way, last = _parts(pointer)
    for part in way:
        node = _step(node, part)
    key: Any = _index(node, last) if isinstance(node, list) else last
    if isinstance(value, Mapping):  # environment variables, in a list of others
        named = {entry["name"]: entry for entry in node[key]}
        named |= {name: {"name": name, "value": str(each)} for name, each in value.items()}
        node[key] = list(named.values())
        return
    if isinstance(node[key], str) and not isinstance(value, str):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    node[key] = value
