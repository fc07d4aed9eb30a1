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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

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

_STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
# What a step does not depend on: how many follow, and when the model is saved.
_APART = ("max_steps", "save_strategy", "save_steps", "save_only_model")


class TrainingError(WorkshopError):
    """Training cannot start or go on, or failed."""


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


class RunFolder:
    """The output folder of one run; the newest `keep` checkpoints stay, all where it is None."""

    def __init__(self, place: str | Path, *, keep: int | None = None) -> None:
        self.place = Path(place)
        self.checkpoints = self.place / "checkpoints"
        self.saving = self.place / ".saving"
        self.about = self.place / "run.json"
        self.keep = keep

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
        """The newest checkpoint that training can go on from; an error if the run is another."""
        checkpoint = self.newest(whole=True)
        try:
            before = _decides(json.loads(self.about.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(
                f"--resume: {self.about} does not say what was run: {error}"
            ) from error
        now = _decides(json.loads(json.dumps(about)))
        if changed := sorted(key for key in before | now if before.get(key) != now.get(key)):
            raise TrainingError(
                f"--resume: the run in {self.place} was started with another {', '.join(changed)};"
                " give what it was started with, or another --output"
            )
        if step_of(checkpoint) >= about["steps"]:
            raise TrainingError(
                f"--resume: {checkpoint} is of step {step_of(checkpoint)} and {about['steps']}"
                " steps are wanted; raise grpo.max_num_steps"
            )
        return checkpoint

    def claim(self, about: Mapping[str, Any], *, after: int = 0) -> float:
        """Note what is run, and remove what an earlier run left beyond a step (0: all of it).

        Returns:
            Seconds of training that a resumed run has behind it.
        """
        shutil.rmtree(self.saving, ignore_errors=True)
        self.saving.mkdir(parents=True)
        for step in self.steps():
            if step > after:
                self._remove(step)
        _keep_records(self.place / COMPLETIONS_FILE, up_to=after)
        elapsed_s = _keep_records(self.place / METRICS_FILE, up_to=after)
        _replace(self.about, json.dumps(about, indent=1) + "\n")
        return elapsed_s

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, the newest last."""
        names = [path.name.removeprefix("step_") for path in self.checkpoints.glob("step_*")]
        return sorted(int(name) for name in names if name.isdigit())

    def checkpoint(self, step: int) -> Path:
        """Where a step's checkpoint lies, or would lie."""
        return self.checkpoints / f"step_{step}"

    def newest(self, *, whole: bool = False) -> Path:
        """The newest checkpoint; with `whole`, the newest that training can go on from."""
        for step in reversed(self.steps()):
            place = self.checkpoint(step)
            if not whole or all((place / name).is_file() for name in _STATE_FILES):
                return place
        what = " to resume from, unless checkpointing.save_optimizer is false" if whole else ""
        raise TrainingError(
            f"{self.place} has no checkpoint{' to resume from' if whole else ''}: one is saved"
            f" every checkpointing.save_period steps{what}; train from the start with --overwrite"
        )

    def publish(self, written: Path, step: int) -> None:
        """Make a model that was written whole a step's checkpoint, which appears under its name."""
        place = self.checkpoint(step)
        if problem := problem_of(written):
            raise TrainingError(f"checkpoint {place} is not whole: {problem}")
        for path in (written, *written.rglob("*")):  # a server may be another user
            path.chmod(0o755 if path.is_dir() else 0o644)
        sync(written)
        self.checkpoints.mkdir(exist_ok=True)
        written.rename(place)
        sync(self.checkpoints, recursive=False)
        for old in self.steps()[: -self.keep] if self.keep else []:
            self._remove(old)

    def _remove(self, step: int) -> None:
        """Under another name first, so that no half removed one looks whole."""
        self.saving.mkdir(exist_ok=True)
        gone = self.saving / f"removed-{step}"
        self.checkpoint(step).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _decides(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a step depends on."""
    arguments = {key: value for key, value in about["arguments"].items() if key not in _APART}
    sections = {key: about["settings"].get(key) for key in ("data", "env")}
    return {"model": about["model"], "lora": about["lora"], **sections, **arguments}


def _keep_records(file: Path, *, up_to: int) -> float:
    """Cut a file of records after a step, so that a repeated step stands in it once.

    Returns:
        Seconds of training up to there, if the records say so (`elapsed_s`); else 0.
    """
    if not up_to or not file.exists():
        file.unlink(missing_ok=True)
        return 0.0
    text = file.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= up_to]
    _replace(file, "".join(f"{line}\n" for line in kept))
    return float(json.loads(kept[-1]).get("elapsed_s", 0.0)) if kept else 0.0


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


@dataclass
class Recorder:
    """Writes one record a step, and says one line, while a trainer of TRL runs.

    `answers` has the right answer of each prompt, `elapsed_s` the seconds of training that a
    resumed run has behind it, `seconds` the time of the current step by stage.
    """

    folder: Path
    group_size: int
    updates_per_step: int
    steps: int
    answers: Mapping[str, str]
    say: Callable[[str], None]
    report: bool = False
    elapsed_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Start the clock."""
        self._last = time.perf_counter()
        self.seconds.clear()

    def record(self, updates: int, logs: Mapping[str, Any], logged: Mapping[str, Any]) -> None:
        """Write a step's record and its completions, of TRL's log and what it keeps beside it."""
        now, step = time.perf_counter(), updates // self.updates_per_step
        step_s, self._last = now - self._last, now
        self.elapsed_s += step_s
        rows = self._rows(step, logged)
        rewards, size = [row["reward"] for row in rows], self.group_size
        starts = range(0, len(rows), size)
        named = {TRL_NAMES.get(name, name): value for name, value in logs.items()}
        record = {name: named[name] for name in COLUMNS if name in named}
        record |= {
            "step": step,
            "group_means": [round(fmean(rewards[at : at + size]), 6) for at in starts],
            "step_s": step_s,
            "generation_s": self.seconds.get("generation", 0.0),
            "reward_s": self.seconds.get("reward", 0.0),
            "elapsed_s": self.elapsed_s,
            "time": time.time(),
        }
        self.seconds.clear()
        # Completions first: who sees the step in the metrics finds its completions.
        for name, each in ((COMPLETIONS_FILE, rows), (METRICS_FILE, [record])):
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in each))
        kl = "-" if record.get("kl") is None else f"{record['kl']:.4f}"
        self.say(
            f"step {step:>{len(str(self.steps))}}/{self.steps}  reward {record['reward']:.3f}"
            f"  std {record['reward_std']:.3f}  kl {kl}"
            f"  grad norm {record['grad_norm'] or 0.0:.2f}  {step_s:.1f} s"
        )
        if self.report:
            # One completion of each group, and all of the group with the largest spread: enough
            # to read and to compute with, short enough for a log.
            divided = max(starts, key=lambda at: pvariance(rewards[at : at + size]))
            group = rows[divided : divided + size]
            self.say(marked_line("step", **record, samples=rows[::size], group=group))

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
