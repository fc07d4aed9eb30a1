"""Checkpoints of a run: each there whole or not at all, the newest few kept.

A checkpoint is a Hugging Face folder `step_<N>` that vLLM serves as it is; under LoRA it holds the
merged model, and the adapter in a folder of its own. One from which training can go on has the
state of the optimizer and of the random numbers beside the weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.models.files import problem_of, sync

__all__ = ["CheckpointError", "Checkpoints"]

_STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class CheckpointError(WorkshopError):
    """A checkpoint is missing, not whole, or cannot be written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they lie; made when the first one is written.
        keep: How many of the newest are kept; None keeps all.

    Example:
        >>> Checkpoints(Path("build/grpo/checkpoints"), keep=2).steps()  # doctest: +SKIP
        [8, 12]
    """

    def __init__(self, folder: Path, *, keep: int | None = None) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, the newest last."""
        names = [path.name.removeprefix("step_") for path in self.folder.glob("step_*")]
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        """Where a step's checkpoint lies, or would lie."""
        return self.folder / f"step_{step}"

    def newest(self) -> Path:
        """The newest checkpoint.

        Raises:
            CheckpointError: There is none.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.folder.parent} has no checkpoint; one is saved when training ends, and"
                " every checkpointing.save_period steps"
            )
        return self.path(steps[-1])

    def newest_to_resume(self) -> Path:
        """The newest checkpoint that training can go on from.

        Raises:
            CheckpointError: There is none.
        """
        for step in reversed(self.steps()):
            place = self.path(step)
            if all((place / name).is_file() for name in _STATE_FILES):
                return place
        raise CheckpointError(
            f"{self.folder.parent} has no checkpoint to resume from: one is saved every"
            " checkpointing.save_period steps, unless checkpointing.save_optimizer is false;"
            " train from the start with --overwrite"
        )

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Write a checkpoint: into the folder that this gives, which then appears under its name.

        Args:
            step: The step that it is of.

        Raises:
            CheckpointError: It is not a whole model, or the disk refuses it; what was there before
                is still there.
        """
        place = self.path(step)
        partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
        try:
            partial.mkdir(parents=True)
            yield partial
            if problem := problem_of(partial):
                raise CheckpointError(f"checkpoint {place} is not whole: {problem}")
            for path in partial.rglob("*"):  # saved for the owner alone; a server may be another
                path.chmod(0o755 if path.is_dir() else 0o644)
            sync(partial)
            partial.rename(place)
            sync(place.parent, recursive=False)
        except OSError as error:
            raise CheckpointError(f"checkpoint {place} cannot be saved: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._forget_old()

    def clear(self) -> None:
        """Remove them all, and what a killed writer left half written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Remove those of later steps: they are of a run that is about to be repeated."""
        for later in self.steps():
            if later > step:
                self._remove(self.path(later))
        self._sweep()

    def _forget_old(self) -> None:
        if self.keep is not None:
            for old in self.steps()[: -self.keep]:
                self._remove(self.path(old))
        self._sweep()

    def _remove(self, place: Path) -> None:
        """Under another name first, so that no half removed one looks whole."""
        gone = place.with_name(f".{place.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        place.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self) -> None:
        for left in self.folder.glob(".step_*"):
            shutil.rmtree(left, ignore_errors=True)
