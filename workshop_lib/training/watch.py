"""Watching a training Job from a notebook: its log becomes a curve while it runs."""

from __future__ import annotations

import sys
import time
from typing import Any

from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.kube import failure, is_true, pod_state
from workshop_lib.cluster.records import Observation
from workshop_lib.errors import ClusterError, WaitTimeoutError
from workshop_lib.progress import Progress, format_duration
from workshop_lib.training.component import pod_environment
from workshop_lib.training.runs import TrainingLog, read_log

__all__ = ["read_training", "watch_training"]

_POLL_S = 1.0


def read_training(job: Workload) -> TrainingLog:
    """What a training Job has done so far, or did, as its log says.

    Args:
        job: The handle of `grpo`, also of one that has ended.

    Raises:
        WorkshopError: The log holds a broken record.

    Example:
        >>> read_training(cluster.get("grpo")).frame["reward"].iloc[-1]   # doctest: +SKIP
        0.98
    """
    return _read(job, job.observe())


def watch_training(job: Workload, *, timeout_s: float = 1800.0) -> TrainingLog:
    """Draw a training's curves while it runs, and return when it is complete.

    In a notebook one figure is updated in place and stays as it was last; elsewhere a
    line is printed for each step. Everything comes from the Job's log, so it does not
    matter where the Job runs or who started it.

    Args:
        job: The handle of `grpo`.
        timeout_s: The longest to wait; the Job itself goes on.

    Returns:
        The whole run: `frame`, `samples`, `checkpoint`.

    Raises:
        ClusterError: The training failed; the line says what its trainer said last.
        WaitTimeoutError: It was not complete in time.

    Example:
        >>> run = watch_training(cluster.apply("grpo"))   # doctest: +SKIP
    """
    began = time.monotonic()
    with Progress(label="training", unit="steps") as progress:
        view = _view()
        while True:
            # In this order: what was printed before the end is read when the end is seen.
            observation = job.observe()
            reading = time.monotonic()
            log = _read(job, observation)
            now = time.monotonic()
            view.show(log)
            progress.update(log.done, log.steps, _state(log, observation))
            if reason := failure(observation.body):
                raise ClusterError(
                    f"{job.kind}/{job.name} failed after {now - began:.0f} s:"
                    f" {_last_words(job) or reason}; next: read its logs(), then"
                    f" cluster.delete({job.component!r})"
                )
            if is_true(observation.body, "Complete"):
                return log
            if now - began > timeout_s:
                raise WaitTimeoutError(
                    f"{job.kind}/{job.name} is not complete after {timeout_s:g} s:"
                    f" {log.done} of {log.steps or '?'} steps, {_state(log, observation)};"
                    " it goes on; watch it again with watch_training, or read its logs()"
                )
            # A long log far away takes a while to read: do not spend all time reading.
            time.sleep(max(_POLL_S, 4 * (now - reading)))


def _read(job: Workload, observation: Observation) -> TrainingLog:
    folder = pod_environment(observation.body).get("OUTPUT_DIR", "")
    return read_log((line.text for line in job.logs()), output=folder)


def _state(log: TrainingLog, observation: Observation) -> str:
    """One line: what it is doing, or how far the reward is and how long it will take."""
    if not log.done:
        for pod in observation.pods:
            state, reason = pod_state(pod)
            if state == "Pending" and reason:
                return f"{pod['metadata']['name']} is Pending: {reason}"
        return "sampling the first step" if log.steps else "Ray and the trainer are starting"
    rewards = [float(record["reward"]) for record in log.records]
    if log.checkpoint:
        return f"reward {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last; saved"
    seconds = [float(record.get("step_s") or 0) for record in log.records[-3:]]
    left_s = ((log.steps or log.done) - log.done) * sum(seconds) / len(seconds)
    rest = f"about {format_duration(left_s)} left" if left_s else "saving the model"
    return f"reward {rewards[-1]:.2f}, {rest}"


def _last_words(job: Workload) -> str:
    """The last line of rank 0, which says why the trainer failed."""
    lines = [line for line in job.logs(tail=5) if line.text.strip()]
    said = [line.text.strip() for line in lines if line.rank in (0, None)]
    return said[-1][:300] if said else ""


class _Figure:
    """One figure of a notebook's cell, updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._drawn: tuple[int, int | None] | None = None

    def show(self, log: TrainingLog) -> None:
        from IPython.display import display

        from workshop_lib.plots import plot_training

        if self._drawn == (log.done, log.steps):
            return
        self._drawn = (log.done, log.steps)
        figure = plot_training(log.frame, steps=log.steps)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)


class _Lines:
    """A line for each step, where there is no notebook."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, log: TrainingLog) -> None:
        for record in log.records[self._shown :]:
            print(
                f"step {record['step']}/{log.steps or '?'}  reward {record['reward']:.3f}"
                f"  {record.get('step_s') or 0:.1f} s"
            )
        self._shown = log.done


def _view() -> _Figure | _Lines:
    if "IPython" in sys.modules:
        from IPython import get_ipython

        if getattr(get_ipython(), "kernel", None) is not None:
            return _Figure()
    return _Lines()
