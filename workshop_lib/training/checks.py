"""Whether a training did what was asked, and whether the model is better for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workshop_lib.checklist import Check, CheckList

if TYPE_CHECKING:
    from workshop_lib.training.evaluate import Accuracy
    from workshop_lib.training.runs import TrainingLog

__all__ = ["check_training"]


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
    same = before.problems == after.problems
    low, high = after.interval()[0], before.interval()[1]
    return CheckList(
        [
            Check(
                "every step was done", run.done == steps, f"{run.done} of {steps}", "read logs()"
            ),
            Check(
                "the checkpoint is served", bool(served) and run.checkpoint.endswith(served),
                served or "nothing is", "apply vllm with the run's checkpoint as model",
            ),
            Check(
                "both were asked the same", same, f"{len(after.problems)} held-out problems",
                "evaluate both with one recipe",
            ),
            Check(
                "it learned", low > high,
                f"{before.right} right before, {after.right} after",
                "more steps, or more answers a prompt; look at the reward's curve",
            ),
        ]
    )  # fmt: skip
