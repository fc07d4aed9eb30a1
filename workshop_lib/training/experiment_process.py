"""The process that an experiment's trainings run in, and how it is followed.

It is told its job on standard input and says each step on standard output. When its input ends,
because the asker closed it or is gone, it ends at once: nothing trains on behind a dead kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.training.process import prepare_environment
from workshop_lib.training.run_folder import TrainingError
from workshop_lib.training.runs import COLUMNS, MARK, marked_line

__all__ = ["Job", "follow", "main"]

_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Job:
    """Trainings to run one after the other.

    Attributes:
        recipe: The recipe's file.
        model: The folder of the model that each begins with.
        output: A folder that the process makes and removes.
        steps: Steps of each.
        runs: For each, values by dotted key that replace the recipe's.
    """

    recipe: str
    model: str
    output: str
    steps: int
    runs: tuple[Mapping[str, Any], ...]


def follow(job: Job, *, timeout_s: float) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Run a job, and give each step when it is done.

    The process is ended when the iteration is left, whatever the reason.

    Args:
        job: What to train.
        timeout_s: The longest that all of it may take.

    Yields:
        Which run, and the record of a step; at the end of each run one with `event` "end" and
        `seconds`.

    Raises:
        TrainingError: A training failed, or it took too long.
    """
    began, errors = time.monotonic(), Path(job.output).with_suffix(".log")
    with errors.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "workshop_lib.training.experiment_process"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,  # a notebook's interrupt is for the asker, who ends this
        )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    try:
        process.stdin.write(json.dumps(asdict(job)) + "\n")
        process.stdin.flush()
        ended = 0
        while ended < len(job.runs):
            left_s = timeout_s - (time.monotonic() - began)
            try:
                line = lines.get(timeout=max(left_s, 0.01))
            except queue.Empty:
                raise TrainingError(
                    f"training {ended + 1} of {len(job.runs)} was not done after {timeout_s:g} s"
                    " and was stopped; give fewer steps or values, or a longer timeout_s"
                ) from None
            if line is None:
                raise TrainingError(
                    f"training {ended + 1} of {len(job.runs)} ended: {_last_words(errors)}"
                )
            if (record := _record(line)) is None:
                continue
            if record["event"] == "failed":
                raise TrainingError(str(record["reason"]))
            ended += record["event"] == "end"
            yield int(record["run"]), record
    finally:
        _stop(process)
        reader.join()
        process.stdout.close()


def _stop(process: subprocess.Popen[str]) -> None:
    """Close its input, on which it ends by itself; else kill it."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it is gone already, with what we had written
        process.stdin.close()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _record(line: str) -> dict[str, Any] | None:
    _, mark, text = line.partition(MARK)
    return json.loads(text) if mark else None


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
    said = [line for line in lines if line]
    return said[-1][:300] if said else "it said nothing"


def main() -> int:
    """Be the process: read a job from standard input, train, say each step.

    Returns:
        The exit status.
    """
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_input, args=(job.output,), daemon=True).start()
    try:
        for number, overrides in enumerate(job.runs):
            _train(job, number, overrides)
    except WorkshopError as error:
        _say("failed", reason=str(error))
        return 1
    finally:
        shutil.rmtree(job.output, ignore_errors=True)
    return 0


def _end_with_input(output: str) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    shutil.rmtree(output, ignore_errors=True)
    os._exit(0)  # from a thread, and in the middle of a step


def _say(event: str, **values: Any) -> None:
    print(marked_line(event, **values), flush=True)


def _train(job: Job, number: int, overrides: Mapping[str, Any]) -> None:
    import gc

    from workshop_lib.training.engine import build_trainer, plan_training
    from workshop_lib.training.recipe import read_recipe

    began = time.perf_counter()
    recipe = read_recipe(job.recipe, overrides)
    output = Path(job.output) / str(number)
    plan = plan_training(recipe, output=output, model=job.model, steps=job.steps)

    def report(line: str) -> None:
        record = _record(line)
        if record is not None and record["event"] == "step":
            _say("step", run=number, **{name: record[name] for name in COLUMNS})

    trainer = build_trainer(plan, say=lambda line: None, report=report)
    trainer.train()
    del trainer
    gc.collect()
    _say("end", run=number, seconds=time.perf_counter() - began)


if __name__ == "__main__":
    prepare_environment()
    sys.exit(main())
