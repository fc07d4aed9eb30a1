"""Files of a model folder: are they all there, and are they what they were?"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "workshop-model.json"

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")


def problem_of(folder: Path) -> str | None:
    """Say why a folder is not a model that vLLM and transformers can read."""
    if not folder.is_dir():
        return f"{folder} is not a folder"
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return f"{folder} has no config.json"
    except (OSError, ValueError) as error:
        return f"{folder / 'config.json'} cannot be read: {error}"
    if not isinstance(config, dict) or "model_type" not in config:
        return f"{folder / 'config.json'} names no model_type"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return f"{folder} has no tokenizer ({', '.join(_TOKENIZERS[:3])} …)"
    weights = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            weights |= set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            return f"{index} cannot be read: {error}"
    if not weights:
        return f"{folder} has no weights (*.safetensors)"
    for name in sorted(weights):
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size < 200:  # a git-lfs pointer, or nothing
            return f"{path} holds no weights, only {path.stat().st_size} bytes (git lfs pull?)"
    return None


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Note every file's size and sha256; the last file to be written."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256}
    (folder / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1) + "\n")


def damage(folder: Path) -> str | None:
    """Say how a folder differs from its manifest, going by the files' sizes."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, noted in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != noted["bytes"]:
                return f"{name} has {path.stat().st_size} bytes and should have {noted['bytes']}"
    except (FileNotFoundError, NotADirectoryError):
        return "not prepared"
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"{MANIFEST} is damaged"
    return None


def sync(folder: Path, recursive: bool = True) -> None:
    """Have the kernel write a folder, and what is in it, to the disk now."""
    for path in [*(folder.rglob("*") if recursive else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
