"""Where the workshop's own data and the user's models lie, whatever folder a notebook runs in."""

from __future__ import annotations

import os
from pathlib import Path

from workshop_lib.errors import WorkshopError

__all__ = ["data_dir", "data_path", "machine_needs", "models_dir"]


def data_dir() -> Path:
    """The folder `data` of this checkout."""
    return Path(__file__).resolve().parents[1] / "data"


def data_path(name: str) -> Path:
    """A file of the folder `data`.

    Args:
        name: Its path below `data`.

    Raises:
        WorkshopError: There is no such file.

    Example:
        >>> data_path("prompts.txt").name
        'prompts.txt'
    """
    path = data_dir() / name
    if not path.exists():
        raise WorkshopError(f"the workshop's data has no {name!r}; see data/README.md")
    return path


def machine_needs() -> dict[str, str]:
    """What a machine needs for the local stack, by name: `data/machine.env`."""
    lines = data_path("machine.env").read_text().splitlines()
    pairs = (line.partition("#")[0].strip().partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name}


def models_dir() -> Path:
    """Where models are kept: `$WORKSHOP_MODELS_DIR`, else a folder of the user's cache."""
    if chosen := os.environ.get("WORKSHOP_MODELS_DIR"):
        return Path(chosen).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache.absolute() / "ray-vllm-grpo-workshop" / "models"
