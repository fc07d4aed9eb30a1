"""A training Job, from a notebook: which recipe it reads, how it goes, and whether it worked."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster import manifests
from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.kube import failure, is_true, pod_state
from workshop_lib.cluster.records import Observation
from workshop_lib.data import data_dir
from workshop_lib.errors import ClusterError, ManifestError, WaitTimeoutError
from workshop_lib.progress import Progress, format_duration, in_notebook
from workshop_lib.training.asking import Accuracy
from workshop_lib.training.recipe import Recipe, override, read_recipe
from workshop_lib.training.runs import HANG_FACTOR, TrainingLog, read_log

__all__ = ["check_training", "read_training", "training_recipe", "watch_training"]

_POLL_S = 1.0


def training_recipe(
    profile: str, parameters: Mapping[str, Any] | None = None, *, component: str = "grpo"
) -> Recipe:
    """The recipe that a training's pods will read, checked before anything is started.

    Args:
        profile: The profile, as for `connect`.
        parameters: As for `cluster.apply`.
        component: A component whose Job trains.

    Raises:
        ManifestError: There is no such component or parameter, or its Job names no recipe.
        RecipeError: The recipe with these parameters is wrong; nothing was started.

    Example:
        >>> training_recipe("local", {"steps": 3, "seed": 7}).grpo.max_num_steps
        3
    """
    objects = manifests.render(profile, component, parameters)
    job = next((item.body for item in objects if item.kind == "Job"), None)
    environment = _environment(job) if job else {}
    if job is None or "RECIPE" not in environment:
        raise ManifestError(f"{component}: there is no Job with a RECIPE in its environment")
    container = job["spec"]["template"]["spec"]["containers"][0]
    # The ConfigMap holds this checkout's own files, under their paths in the checkout.
    path = Path(environment["RECIPE"]).relative_to(container["workingDir"])
    words = [_expand(word, environment) for word in container.get("args", [])]
    words += environment.get("OVERRIDES", "").split()
    pairs = [word for word in words if "=" in word and not word.startswith("-")]
    return read_recipe(data_dir().parent / path, dict(map(override, pairs)))


def read_training(job: Workload, observation: Observation | None = None) -> TrainingLog:
    """What a training Job has done so far, or did, as its log says."""
    seen = job.observe() if observation is None else observation
    folder = _environment(seen.body).get("OUTPUT_DIR", "")
    return read_log((line.text for line in job.logs()), output=folder)


def watch_training(
    job: Workload, *, timeout_s: float = 1800.0, plot: Callable[..., Any] | None = None
) -> TrainingLog:
    """Follow a training, drawn while it runs, and return when it is complete.

    Everything comes from the Job's log, so it does not matter where the Job runs or who started
    it. Without a figure, or outside a notebook, a line is printed for each step.

    Args:
        job: The handle of `grpo`.
        timeout_s: The longest to wait; the Job itself goes on.
        plot: Draws a figure of `run.frame` and `steps=`, as `plots.plot_training` does; in a
            notebook it is updated in place and stays as it was last.

    Returns:
        The whole run: `frame`, `samples`, `checkpoint`.

    Raises:
        ClusterError: The training failed; the line says what its trainer said last.
        WaitTimeoutError: It was not complete in time.

    Example:
        >>> run = watch_training(cluster.apply("grpo"), plot=plot_training)   # doctest: +SKIP
    """
    began = last_step = time.monotonic()
    show = _in_place(plot) if plot is not None and in_notebook() else _print_steps
    before = TrainingLog()
    with Progress(label="training", unit="steps") as progress:
        while True:
            # In this order: what was printed before the end is read when the end is seen.
            observation = job.observe()
            reading = time.monotonic()
            log = read_training(job, observation)
            now = time.monotonic()
            if (log.done, log.steps) != (before.done, before.steps):
                show(log, before.done)
                before, last_step = log, now
            state = _state(log, observation, now - last_step)
            progress.update(log.done, log.steps, state)
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
                    f" {log.done} of {log.steps or '?'} steps, {state};"
                    " it goes on; watch it again with watch_training, or read its logs()"
                )
            # A long log far away takes a while to read: do not spend all time reading.
            time.sleep(max(_POLL_S, 4 * (now - reading)))


def check_training(
    run: TrainingLog, *, steps: int, served: str, before: Accuracy, after: Accuracy
) -> CheckList:
    """Whether a run is whole, its checkpoint is what is served, and it learned.

    Learned means: the intervals of the accuracies before and after do not overlap,
    which chance alone would hardly do.

    Args:
        run: What `watch_training` returned.
        steps: Steps that were asked for.
        served: The name under which the server serves the trained model.
        before: Accuracy of the model that training began with.
        after: Accuracy of the trained one.

    Example:
        >>> checks = check_training(run, steps=12, served=name, before=a, after=b)  # doctest: +SKIP
        >>> checks.passed   # doctest: +SKIP
        True
    """
    whole = f"{run.done} of {steps}"
    is_served = bool(served) and run.checkpoint.endswith(served)
    same, asked = before.problems == after.problems, f"{len(after.problems)} held-out problems"
    learned = after.interval()[0] > before.interval()[1]
    solved = f"{before.right} right before, {after.right} after; 95% intervals: before up to"
    solved += f" {before.interval()[1]:.0%}, after from {after.interval()[0]:.0%}"
    served_with = "apply vllm with the run's checkpoint as model"
    more = "more steps, or more answers a prompt; look at the reward's curve"
    return CheckList(
        [
            Check("every step was done", run.done == steps, whole, "read logs()"),
            Check("the checkpoint is served", is_served, served or "nothing is", served_with),
            Check("both were asked the same", same, asked, "evaluate both with one recipe"),
            Check("it learned", learned, solved, more),
        ]
    )


def _environment(job: Mapping[str, Any]) -> dict[str, str]:
    """What a Job's manifest says to its first container, `$(NAME)` filled in."""
    entries = job["spec"]["template"]["spec"]["containers"][0].get("env", [])
    found: dict[str, str] = {}
    for entry in entries:
        if "value" in entry:
            found[entry["name"]] = _expand(str(entry["value"]), found)
    return found


def _expand(text: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), text)


def _state(log: TrainingLog, observation: Observation, idle_s: float) -> str:
    """One line: what it is doing, how far the reward is, how long it will take, or a silence."""
    if not log.done:
        for pod in observation.pods:
            state, reason = pod_state(pod)
            if state == "Pending" and reason:
                return f"{pod['metadata']['name']} is Pending: {reason}"
        return "sampling the first step" if log.steps else "Ray and the trainer are starting"
    reward, seconds = log.frame["reward"], log.frame["step_s"].fillna(0.0)
    left = (log.steps or log.done) - log.done
    if log.checkpoint:
        return f"reward {reward.iloc[0]:.2f} at first, {reward.iloc[-1]:.2f} at last; saved"
    if left and idle_s > max(HANG_FACTOR * seconds.median(), 10.0):
        rest = f"no step for {format_duration(idle_s)}: does it hang?"
    else:
        left_s = left * seconds.mean()
        rest = f"about {format_duration(left_s)} left" if left else "saving the model"
    return f"reward {reward.iloc[-1]:.2f}, {rest}"


def _last_words(job: Workload) -> str:
    """The last line of rank 0, which says why the trainer failed."""
    lines = [line for line in job.logs(tail=5) if line.text.strip()]
    said = [line.text.strip() for line in lines if line.rank in (0, None)]
    return said[-1][:300] if said else ""


def _print_steps(log: TrainingLog, shown: int) -> None:
    for record in log.records:
        if record["step"] > shown:
            print(
                f"step {record['step']}/{log.steps or '?'}  reward {record['reward']:.3f}"
                f"  {record.get('step_s') or 0:.1f} s"
            )


def _in_place(plot: Callable[..., Any]) -> Callable[[TrainingLog, int], None]:
    """One figure of a notebook's cell, updated in place."""
    from IPython.display import DisplayHandle

    handle = DisplayHandle()
    draw = handle.display

    def show(log: TrainingLog, shown: int) -> None:
        nonlocal draw
        draw(plot(log.frame, steps=log.steps))
        draw = handle.update

    return show
