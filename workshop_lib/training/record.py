"""The output folder of a training: who may write into it, what is recorded, and checkpoints.

- `run.json`: the recipe, the model, the seed and the versions;
- `metrics.jsonl` and `completions.jsonl`: one record a step, see `runs`;
- `checkpoints/step_<N>`: the model after that step, a Hugging Face folder that vLLM serves as it
  is. Each is there whole or not at all. Training can go on from one that has the state of the
  optimizer and of the random numbers beside the weights.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, pvariance
from typing import IO, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.models.files import problem_of, sync
from workshop_lib.training.rewards import completion_text
from workshop_lib.training.runs import (
    COLUMNS,
    COMPLETIONS_FILE,
    METRICS_FILE,
    TRL_NAMES,
    marked_line,
)

__all__ = ["Recorder", "RunFolder", "TrainingError", "step_of"]

_RUN_FILE = "run.json"
_STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
# What a step does not depend on: how many follow, and when the model is saved.
_APART = ("max_steps", "save_strategy", "save_steps", "save_only_model")


class TrainingError(WorkshopError):
    """Training cannot start or go on, or failed."""


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


class RunFolder:
    """The output folder of one run.

    Args:
        place: The folder; made when the run begins.
        keep: How many of the newest checkpoints stay when another is written; None keeps all.

    Example:
        >>> RunFolder(Path("build/no-run-yet")).steps()
        []
    """

    def __init__(self, place: str | Path, *, keep: int | None = None) -> None:
        self.place = Path(place)
        self.checkpoints = self.place / "checkpoints"
        self.keep = keep

    # -- who may write into it

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a folder that cannot be written to, or whose run is to be kept."""
        place = self.place
        if place.exists() and not place.is_dir():
            raise TrainingError(f"--output {place} is a file; give a folder")
        if not overwrite and (place / METRICS_FILE).exists():
            raise TrainingError(
                f"--output {place} holds a run already; give another folder, --resume, or"
                " --overwrite"
            )
        above = next(folder for folder in (place, *place.parents) if folder.exists())
        if not os.access(above, os.W_OK):
            raise TrainingError(f"--output {place} cannot be written: no permission in {above}")

    def resume_from(self, about: Mapping[str, Any]) -> Path:
        """The newest checkpoint that training can go on from.

        Raises:
            TrainingError: There is none, or the run in the folder is another one.
        """
        file = self.place / _RUN_FILE
        checkpoint = self.newest(whole=True)
        try:
            before = _decides(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(f"--resume: {file} does not say what was run: {error}") from error
        now = _decides(json.loads(json.dumps(about, default=str)))
        if changed := sorted(key for key in before | now if before.get(key) != now.get(key)):
            raise TrainingError(
                f"--resume: the run in {self.place} was started with another {', '.join(changed)};"
                " give what it was started with, or another --output"
            )
        if step_of(checkpoint) >= about["steps"]:
            raise TrainingError(
                f"--resume: {checkpoint} is of step {step_of(checkpoint)} and {about['steps']}"
                " steps are wanted; raise --steps"
            )
        return checkpoint

    def claim(self, about: Mapping[str, Any], *, after: int = 0) -> float:
        """Note what is run, and remove what an earlier run left beyond a step.

        Args:
            about: What is run, for `run.json`.
            after: The step that a resumed run goes on from; 0 begins anew.

        Returns:
            Seconds of training that a resumed run has behind it.
        """
        if not after:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for name in (METRICS_FILE, COMPLETIONS_FILE):
                (self.place / name).unlink(missing_ok=True)
        self.place.mkdir(parents=True, exist_ok=True)
        _keep_records(self.place / COMPLETIONS_FILE, up_to=after)
        elapsed_s = _keep_records(self.place / METRICS_FILE, up_to=after)
        for step in self.steps():
            if step > after:
                self._remove(step)
        _replace(self.place / _RUN_FILE, json.dumps(about, indent=1, default=str) + "\n")
        return elapsed_s

    # -- checkpoints

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, the newest last."""
        names = [path.name.removeprefix("step_") for path in self.checkpoints.glob("step_*")]
        return sorted(int(name) for name in names if name.isdigit())

    def checkpoint(self, step: int) -> Path:
        """Where a step's checkpoint lies, or would lie."""
        return self.checkpoints / f"step_{step}"

    def newest(self, *, whole: bool = False) -> Path:
        """The newest checkpoint; with `whole`, the newest that training can go on from.

        Raises:
            TrainingError: There is none.
        """
        for step in reversed(self.steps()):
            place = self.checkpoint(step)
            if not whole or all((place / name).is_file() for name in _STATE_FILES):
                return place
        what = " to resume from, unless checkpointing.save_optimizer is false" if whole else ""
        raise TrainingError(
            f"{self.place} has no checkpoint{' to resume from' if whole else ''}: one is saved"
            f" every checkpointing.save_period steps{what}; train from the start with --overwrite"
        )

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Write a checkpoint: into the folder that this gives, which then appears under its name.

        Raises:
            TrainingError: It is not a whole model, or the disk refuses it; what was there before
                is still there.
        """
        place = self.checkpoint(step)
        partial = place.with_name(f".{place.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            if problem := problem_of(partial):
                raise TrainingError(f"checkpoint {place} is not whole: {problem}")
            for path in partial.rglob("*"):  # saved for the owner alone; a server may be another
                path.chmod(0o755 if path.is_dir() else 0o644)
            sync(partial)
            partial.rename(place)
            sync(place.parent, recursive=False)
        except OSError as error:
            raise TrainingError(f"checkpoint {place} cannot be saved: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if self.keep is not None:
            for old in self.steps()[: -self.keep]:
                self._remove(old)

    def _remove(self, step: int) -> None:
        """Under another name first, so that no half removed one looks whole."""
        place = self.checkpoint(step)
        gone = place.with_name(f".{place.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        place.rename(gone)
        for left in self.checkpoints.glob(".step_*.removed"):
            shutil.rmtree(left, ignore_errors=True)


def _decides(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a step depends on."""
    arguments = {key: value for key, value in about["arguments"].items() if key not in _APART}
    sections = {key: about["settings"].get(key) for key in ("data", "env")}
    return {"model": about["model"], "lora": about.get("lora") or {}, **sections, **arguments}


def _keep_records(file: Path, *, up_to: int) -> float:
    """Cut a file of records after a step, so that a repeated step stands in it once.

    Returns:
        Seconds of training up to there, if the records say so (`elapsed_s`); else 0.
    """
    if not file.exists():
        return 0.0
    text = file.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    kept = [(line, json.loads(line)) for line in lines]
    kept = [(line, record) for line, record in kept if record["step"] <= up_to]
    _replace(file, "".join(f"{line}\n" for line, _ in kept))
    return float(kept[-1][1].get("elapsed_s", 0.0)) if kept else 0.0


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


class Recorder:
    """Writes one record a step, and says one line, while a trainer of TRL runs.

    Args:
        folder: The run's output folder.
        group_size: Completions of one prompt.
        updates_per_step: Optimizer updates in a step.
        steps: Steps that are trained.
        answers: The right answer of each prompt.
        say: Called with the line of each step.
        report: Called with the marked line of each step, for who follows the log.
        elapsed_s: Seconds of training that a resumed run has behind it.

    Attributes:
        seconds: The time of the current step by stage; the trainer adds to it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        group_size: int,
        updates_per_step: int,
        steps: int,
        answers: Mapping[str, str],
        say: Callable[[str], None],
        report: Callable[[str], None] | None = None,
        elapsed_s: float = 0.0,
    ) -> None:
        self.folder = folder
        self.group_size = group_size
        self.updates_per_step = updates_per_step
        self.steps = steps
        self.answers = answers
        self.say = say
        self.report = report
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()
        self._began = self._last - elapsed_s

    def begin(self) -> None:
        """Start the clock."""
        now = time.perf_counter()
        self._began += now - self._last
        self._last = now
        self.seconds.clear()

    def record(self, updates: int, logs: Mapping[str, Any], logged: Mapping[str, Any]) -> None:
        """Write a step's record and its completions.

        Args:
            updates: Optimizer updates so far.
            logs: TRL's log of the step.
            logged: What TRL keeps of the step's completions.
        """
        now, step = time.perf_counter(), updates // self.updates_per_step
        rows = self._rows(step, logged)
        rewards, size = [row["reward"] for row in rows], self.group_size
        starts = range(0, len(rows), size)
        named = {TRL_NAMES.get(name, name): value for name, value in logs.items()}
        record = dict.fromkeys(COLUMNS) | {name: named.get(name) for name in COLUMNS}
        record |= {
            "step": step,
            "group_means": [round(fmean(rewards[at : at + size]), 6) for at in starts],
            "step_s": now - self._last,
            "generation_s": self.seconds.get("generation", 0.0),
            "reward_s": self.seconds.get("reward", 0.0),
            "elapsed_s": now - self._began,
            "time": time.time(),
        }
        self._last = now
        self.seconds.clear()
        # Completions first: who sees the step in the metrics finds its completions.
        self._append(COMPLETIONS_FILE, rows)
        self._append(METRICS_FILE, [record])
        self.say(self._line(record))
        if self.report is not None:
            # One completion of each group, and all of the group with the largest spread: enough
            # to read and to compute with, short enough for a log.
            divided = max(starts, key=lambda at: pvariance(rewards[at : at + size]))
            group = rows[divided : divided + size]
            self.report(marked_line("step", **record, samples=rows[::size], group=group))

    def _append(self, name: str, rows: list[dict[str, Any]]) -> None:
        file: IO[str]
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def _rows(self, step: int, logged: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The step's completions, group by group, as TRL keeps them for its own log."""
        (rewards,) = logged["rewards"].values()
        columns = zip(
            logged["prompt"], logged["completion"], rewards, logged["advantages"], strict=True
        )
        return [
            {
                "step": step,
                "group": number // self.group_size,
                "prompt": completion_text(prompt),
                "answer": self.answers.get(completion_text(prompt), ""),
                "completion": completion_text(text),
                "reward": float(reward),
                "advantage": float(advantage),
            }
            for number, (prompt, text, reward, advantage) in enumerate(columns)
        ]

    def _line(self, record: Mapping[str, Any]) -> str:
        kl = record["kl"]
        return (
            f"step {record['step']:>{len(str(self.steps))}}/{self.steps}"
            f"  reward {record['reward']:.3f}  std {record['reward_std']:.3f}"
            f"  kl {'-' if kl is None else f'{kl:.4f}'}"
            f"  grad norm {record['grad_norm'] or 0.0:.2f}  {record['step_s']:.1f} s"
        )
