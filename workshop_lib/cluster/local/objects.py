"""The objects that were applied, one file each, and what applying one again does."""

from __future__ import annotations

import copy
import secrets
import uuid
from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.kube import CLAIM, COMPONENT, component_of, key_of
from workshop_lib.cluster.local.paths import StatePaths, json_files, read_json, write_json
from workshop_lib.errors import ClusterError

__all__ = ["GENERATE", "action", "all_objects", "data_of", "find_object", "store_object"]

Json = Mapping[str, Any]

GENERATE = "workshop.techpulse/generate"
"""Annotation of a Secret: the key that apply fills with a random value, once."""

FIXED = {"Job": "a Job's pods", "RayCluster": "a Ray cluster's pods",
         "RayService": "a Ray cluster's pods", CLAIM: "a volume"}  # fmt: skip
"""What cannot change while an object of a kind exists."""


def all_objects(paths: StatePaths) -> list[dict[str, Any]]:
    """Every applied object of a state, sorted by kind and name."""
    return [body for f in json_files(paths.objects) if (body := read_json(f)) is not None]


def find_object(paths: StatePaths, key: str) -> dict[str, Any] | None:
    """One applied object by its `Kind/name`, or None."""
    found: dict[str, Any] | None = read_json(paths.object_file(key))
    return found


def data_of(body: Json) -> dict[str, bytes]:
    """A ConfigMap's or Secret's entries."""
    entries = {**body.get("data", {}), **body.get("stringData", {})}
    return {key: text.encode() for key, text in entries.items()}


def store_object(paths: StatePaths, component: str, body: Json, old: Json | None) -> None:
    """Keep an object, with what a cluster adds to it: uid, generation, a generated value."""
    before = old["metadata"] if old else {}
    metadata = {
        **body["metadata"],
        "labels": {**body["metadata"].get("labels", {}), COMPONENT: component},
        "generation": before.get("generation", 0) + 1,
        "uid": before.get("uid") or str(uuid.uuid4()),
    }
    stored = {**body, "metadata": metadata}
    if old is None and (key := _generated_key(body)):
        stored["stringData"] = {**body.get("stringData", {}), key: secrets.token_hex(32)}
    write_json(paths.object_file(key_of(body)), stored)


def _generated_key(body: Json) -> str | None:
    return (body["metadata"].get("annotations") or {}).get(GENERATE)


def action(old: Json | None, body: Json, component: str) -> str:
    """What applying an object will do: `created`, `configured` or `unchanged`.

    Another component's object is not taken, and nothing changes that cannot while it exists.
    """
    if old is None:
        return "created"
    kind, owner = body["kind"], component_of(old)
    same = _content(old) == _content(body)
    # Several components may use one volume; it stays with the one that made it.
    if owner != component and not (kind == CLAIM and same):
        raise ClusterError(
            f"{key_of(body)} belongs to component {owner!r} already; "
            f"first cluster.delete({owner!r})"
        )
    if same or (kind == "Secret" and _generated_key(body)):
        return "unchanged"
    if kind in FIXED and _fixed(old) != _fixed(body):
        raise ClusterError(
            f"{key_of(body)}: {FIXED[kind]} cannot change while it exists; "
            f"first cluster.delete({owner!r})"
        )
    return "configured"


def _content(body: Json) -> dict[str, Any]:
    """What an object says, without what a cluster adds to it."""
    return {key: value for key, value in body.items() if key not in ("metadata", "status")}


def _fixed(body: Json) -> Any:
    """The part of a spec that cannot change while the object exists."""
    spec = copy.deepcopy(dict(body["spec"]))
    for field in ("serveConfigV2", "backoffLimit", "activeDeadlineSeconds"):
        spec.pop(field, None)
    for group in spec.get("workerGroupSpecs", []):
        for field in ("replicas", "minReplicas", "maxReplicas"):
            group.pop(field, None)
    return spec
