"""Which kinds and fields this machine plays (`schema.yaml`); others are refused by name.

The controllers read no other field, and nothing is started before all of a component is checked.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
)

from workshop_lib.cluster.kube import key_of, parse_quantity, pod_specs
from workshop_lib.cluster.local.kuberay import derived_objects
from workshop_lib.cluster.local.podspec import FIELD
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ManifestError

__all__ = ["checked"]

Json = Mapping[str, Any]


class Model(BaseModel):
    """An object with named fields; no other field is played."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Note(NamedTuple):
    """Why a field that is accepted has no effect on this machine."""

    why: str


NOTES = {
    "cluster": "a cluster's API server or operator does this",
    "isolation": "a process runs as you, without a container",
    "modes": "files keep their own modes",
    "network": "every process shares this machine's network",
    "node": "one machine, one node",
    "replaced": "a changed template replaces the pods at once",
}


def _text(pattern: str, longest: int | None = None) -> Any:
    return Annotated[str, StringConstraints(pattern=pattern, max_length=longest)]


def _that(check: Callable[[Any], Any], kind: Any = str) -> Any:
    """Values that a function accepts; what it raises says what is wrong."""

    def run(value: Any) -> Any:
        try:
            check(value)
        except (ManifestError, yaml.YAMLError) as error:
            raise ValueError(" ".join(str(error).split())[:200]) from None
        return value

    return Annotated[kind, AfterValidator(run)]


def _inner_path(value: str) -> None:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError("it must be a relative path without '..'")


def _field_path(value: str) -> None:
    if not FIELD.fullmatch(value):
        raise ValueError(
            "it must be metadata.name, status.podIP, metadata.labels['…'] or "
            "metadata.annotations['…']"
        )


def _serve_config(value: str) -> None:
    config = yaml.safe_load(value)
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not all(isinstance(a, dict) for a in applications):
        raise ValueError("it needs a list `applications`")


TEXT = _text(r"^[^\x00]*$")
# DNS-1123, as the API server wants it: names become parts of file names here.
LABEL = _text(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
KEY = _text(r"^\.{0,2}[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", 200)
PORT = Annotated[int, Field(ge=1, le=65535)]
QUANTITY = _that(parse_quantity, str | int | float)
TYPES: dict[str, Any] = {
    "absolute path": _text(r"^/[^\x00:]*[^\x00:/]$"),
    "amounts": dict[str, QUANTITY],  # type: ignore[valid-type]
    "boolean": bool,
    "count": Annotated[int, Field(ge=0, le=200)],  # each pod gets an address of the state's 253
    "data": dict[KEY, TEXT],  # type: ignore[valid-type]
    "field path": _that(_field_path),
    "index": _text(r"^\d{1,3}$"),
    "inner path": _that(_inner_path),
    "key": KEY,
    "label": LABEL,
    "name": _text(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", 200),
    "natural": Annotated[int, Field(ge=0)],
    "port": PORT,
    "port or name": PORT | LABEL,
    "positive": Annotated[int, Field(ge=1)],
    "quantity": QUANTITY,
    "serve config": _that(_serve_config),
    "text": TEXT,
    "texts": dict[str, TEXT],  # type: ignore[valid-type]
    "url path": _text("^/"),
    "variable": _text(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"),
    "words": Annotated[list[TEXT], Field(min_length=1)],  # type: ignore[valid-type]
}


FIELDS: set[str] = set()
"""The name of every field that is known."""


def _type(name: str, node: Any) -> Any:
    """What a node of `schema.yaml` stands for."""
    if isinstance(node, dict):
        FIELDS.update(key.strip("()") for key in node)
        fields: dict[str, Any] = {
            key.strip("()"): (_type(f"{name}.{key}", kind), None if key.startswith("(") else ...)
            for key, kind in node.items()
        }
        return create_model(name, __base__=Model, **fields)
    if isinstance(node, list):
        items: Any = list[_type(name, node[0])]  # type: ignore[misc]
        return Annotated[items, Field(min_length=1, max_length=1)] if node[1:] else items
    if node is False:
        return Literal[False]
    if node.startswith("="):
        return Literal[tuple(node[1:].split("|"))]
    if node.startswith("note "):
        return Annotated[Any, Note(NOTES[node.removeprefix("note ")])]
    return TYPES[node]


def _kinds() -> Iterator[tuple[str, Any]]:
    fields = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    for key, node in fields.items():
        kind, _, version = key.partition(" ")
        if version:
            metadata = {"name": "name", **fields["_metadata"]}
            common = {"apiVersion": f"={version}", "kind": "text", "metadata": metadata}
            yield kind, _type(kind, {**common, **node})


KINDS = dict(_kinds())


def _problems(body: Json) -> Iterator[str]:
    """What does not fit together in an object whose fields are right, each by itself."""
    kind, spec = body["kind"], body.get("spec", {})
    for _, pod in pod_specs(body):
        volumes = pod.get("volumes", [])
        yield from (
            f"volume {volume['name']!r}: exactly one source is needed"
            for volume in volumes
            if len(volume) != 2
        )
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            for problem in _in_container(container, {volume["name"] for volume in volumes}):
                yield f"container {container['name']}: {problem}"
    if kind == "Deployment":
        labels = spec["template"]["metadata"].get("labels", {})
        for key, value in spec["selector"]["matchLabels"].items():
            if (found := labels.get(key)) != value:
                yield f"selector.matchLabels.{key}: {value!r} is not the template's {found!r}"
    if kind == "Job":
        indexed, completions = "completionMode" in spec, spec.get("completions")
        if completions is None and (indexed or spec.get("parallelism", 1) > 1):
            yield "completions is missing: a work queue is not played on this machine"
        if not indexed and ("successPolicy" in spec or "subdomain" in spec["template"]["spec"]):
            yield "successPolicy and subdomain need completionMode Indexed"
        for rule in spec.get("successPolicy", {}).get("rules", []):
            if int(rule["succeededIndexes"]) >= completions:
                yield f"successPolicy: there is no such index among {completions} completions"


def _in_container(container: Json, volumes: set[str]) -> Iterator[str]:
    for entry in container.get("env", []):
        if len(entry) != 2 or len(entry.get("valueFrom", [None])) != 1:
            yield f"env {entry['name']}: exactly one source is needed"
    ports = [port.get("name") for port in container.get("ports", [])]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container[probe]["httpGet"]["port"] if probe in container else 0
        if isinstance(port, str) and port not in ports:
            yield f"{probe}: there is no port named {port!r}"
    mounts = container.get("volumeMounts", [])
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"there is no volume {mount['name']!r}"
    folder = container.get("workingDir")
    if folder and not any(f"{folder}/".startswith(f"{each['mountPath']}/") for each in mounts):
        yield f"workingDir {folder} is in no mounted volume, and no image is here"


def checked(
    component: str, objects: Sequence[Object]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The bodies to apply, with what operators add, and the notes on fields without effect here.

    Raises:
        ManifestError: One of them is wrong; the line names file, object and field.
    """
    if not objects:
        raise ManifestError(f"component {component!r} has no objects")
    bodies: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    for item in objects:
        if item.kind not in KINDS:
            plays = ", ".join(KINDS)
            raise item.error(f"kind {item.kind} is not played on this machine; it plays {plays}")
        body = _without_nulls(item.body)
        try:
            model = KINDS[item.kind].model_validate(body)
        except ValidationError as error:
            raise item.error(_in_words(error, item.kind)) from None
        for problem in _problems(body):
            raise item.error(problem)
        notes |= {f"{item.key}.{field}": why for field, why in _notes(model)}
        bodies.append(body)
        if item.kind in ("RayCluster", "RayService"):
            bodies[:0] = derived_objects(body)
    for key, count in Counter(map(key_of, bodies)).items():
        if count > 1:
            raise ManifestError(f"component {component!r}: {key} is there {count} times")
    return bodies, notes


def _without_nulls(node: Any) -> Any:
    """The same data without fields that are null, which mean nothing in a manifest."""
    if isinstance(node, dict):
        return {key: _without_nulls(value) for key, value in node.items() if value is not None}
    return [_without_nulls(value) for value in node] if isinstance(node, list) else node


def _notes(model: BaseModel) -> Iterator[tuple[str, str]]:
    """The path of each field that is given and has no effect here, and why."""
    for name, field in type(model).model_fields.items():
        if name not in model.model_fields_set:
            continue
        value = getattr(model, name)
        yield from ((name, note.why) for note in field.metadata if isinstance(note, Note))
        parts = {f"{name}[{n}]": e for n, e in enumerate(value)} if isinstance(value, list) else {}
        for where, part in (parts or {name: value}).items():
            if isinstance(part, BaseModel):
                yield from ((f"{where}.{below}", why) for below, why in _notes(part))


def _in_words(error: ValidationError, kind: str) -> str:
    """One of a validation's errors in one line: field, what is wrong, what would be right."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    steps = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
    where = re.sub(r"\.(constrained-|function-|int$|str$|float$).*", "", "".join(steps).lstrip("."))
    message = first["msg"].removeprefix("Value error, ")
    name = str(first["loc"][-1])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, FIELDS - {name}, n=1, cutoff=0.8)
        hint = f"did you mean {close[0]}?" if close else "remove it from the local overlay"
        return f"{where} is not played on this machine; {hint}"
    if first["type"] == "missing":
        return f"{where} is missing"
    # A Secret's value is never shown, not even when it is of the wrong type.
    secret = kind == "Secret" and where.startswith("stringData")
    shown = "the value" if secret else repr(first["input"])[:80]
    return f"{where}: {shown}: {message[0].lower()}{message[1:]}"
