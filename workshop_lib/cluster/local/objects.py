"""The objects that were applied: one file each, as the API server of a cluster keeps them."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster.local.changes import COMPONENT, generated_key
from workshop_lib.cluster.local.paths import StatePaths, json_files, read_json, write_json

__all__ = ["all_objects", "find_object", "object_file", "store_object"]

Json = dict[str, Any]


def object_file(paths: StatePaths, kind: str, name: str) -> Path:
    """Where an object is kept.

    Args:
        paths: The state's files.
        kind: Its kind.
        name: Its name.
    """
    return paths.objects / f"{kind}.{name}.json"


def all_objects(paths: StatePaths, kind: str = "") -> list[Json]:
    """Every applied object of a state, sorted by kind and name.

    Args:
        paths: The state's files.
        kind: Only those of this kind.
    """
    files = [file for file in json_files(paths.objects) if file.name.startswith(f"{kind}.")
             or not kind]  # fmt: skip
    return [body for file in files if (body := read_json(file)) is not None]


def find_object(paths: StatePaths, kind: str, name: str) -> Json | None:
    """One applied object, or None.

    Args:
        paths: The state's files.
        kind: Its kind.
        name: Its name.
    """
    found: Json | None = read_json(object_file(paths, kind, name))
    return found


def store_object(
    paths: StatePaths, component: str, body: Mapping[str, Any], old: Mapping[str, Any] | None
) -> None:
    """Keep an object, with what a cluster adds to it: uid, generation, generated values.

    Args:
        paths: The state's files.
        component: The component that brings it.
        body: The object.
        old: What is kept of it so far; None when it is new.
    """
    metadata = dict(body["metadata"])
    metadata["labels"] = {**metadata.get("labels", {}), COMPONENT: component}
    before = old["metadata"] if old else {}
    metadata["generation"] = before.get("generation", 0) + 1
    metadata["uid"] = before.get("uid") or str(uuid.uuid4())
    stored = {**body, "metadata": metadata}
    if old is None and (key := generated_key(body)):
        stored["stringData"] = {**body.get("stringData", {}), key: secrets.token_hex(32)}
    write_json(object_file(paths, body["kind"], metadata["name"]), stored)
