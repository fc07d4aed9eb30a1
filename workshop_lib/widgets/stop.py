"""A benchmark's progress with a button that stops it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workshop_lib.progress import Progress
from workshop_lib.results import in_notebook

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from workshop_lib.serving.benchmark import BenchmarkResult, SweepRun

__all__ = ["StopButton", "watch"]


class StopButton:
    """A button that is there while its block runs; outside notebooks there is none.

    The kernel hears a click only while its cell awaits something: a cell that blocks hears it
    when it has ended. The kernel's own interrupt works in both.

    Args:
        stop: What a click calls; it should return at once.

    Attributes:
        widget: The button; None outside notebooks.

    Example:
        >>> with StopButton(print) as button:
        ...     button.widget is None
        True
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._place: Any = None
        self.widget: Any = None
        self.says = ""

    def __enter__(self) -> Self:
        if in_notebook():
            import ipywidgets
            from IPython.display import display

            self.widget = ipywidgets.Button(
                description="Stop", icon="stop", tooltip="End it and keep what has finished"
            )
            self.widget.on_click(self._clicked)
            self._place = display(self.widget, display_id=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.widget is not None:
            # In its place stays what there is to say, which a page without a kernel shows too.
            self._place.update({"text/plain": self.says}, raw=True)
            self.widget.close()

    def _clicked(self, button: Any) -> None:
        button.disabled = True
        button.description = "Stopping"
        self._stop()


async def watch(run: SweepRun, label: str = "load") -> BenchmarkResult:
    """Wait for a sweep with a progress line and a button that stops it.

    To be awaited in a notebook's cell, so that the kernel hears the button meanwhile. Stopped
    by the button or by an interrupt, it returns what has finished. Elsewhere, and where
    nothing is to be clicked, `run.wait()` does the same without `await`.

    Args:
        run: What `start_sweep` returned.
        label: What is being done, in a few words.

    Raises:
        ServerError: Every warm-up request of the first level failed.

    Example:
        >>> result = await watch(start_sweep(url, prompts, levels=(1, 4)))  # doctest: +SKIP
        >>> result.stopped  # doctest: +SKIP
        False
    """
    with StopButton(run.stop) as button, Progress(label=label) as progress:
        waiting = asyncio.create_task(asyncio.to_thread(run.wait, progress.update))
        try:
            result = await asyncio.shield(waiting)
        except asyncio.CancelledError:  # the kernel's interrupt, in a cell that awaits
            run.stop()
            result = await waiting
        done = f"{len(result.request_records)} finished requests are kept"
        if result.stopped:
            button.says = f"stopped: {done}"
        elif result.ended:
            button.says = result.ended
    return result
