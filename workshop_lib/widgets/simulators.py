"""Sliders over the simulators of paging and of batching."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import ipywidgets

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import plot_batching, plot_paging
from workshop_lib.serving.simulators import (
    Job,
    Paging,
    Schedule,
    simulate_batching,
    simulate_paging,
)
from workshop_lib.widgets.explorer import Explorer, slider_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BatchingExplorer", "PagingExplorer", "batching_explorer", "paging_explorer"]

BLOCK_SIZES = (16, 32, 64, 128, 256)
LENGTHS = (512, 1024, 2048, 4096)
MEMORY_TOKENS = 4096
MAX_REQUESTS = 26
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class PagingExplorer(Explorer):
    """Requests in a cache of 4,096 token slots: in blocks, and in one piece each.

    Made by `paging_explorer`.

    Attributes:
        block_size: The slider of a block's tokens.
        requests: The slider of the number of requests.
        max_model_len: The slider of what one piece reserves, tokens.
    """

    def __init__(self, block_size: int, requests: int, max_model_len: int) -> None:
        slider = slider_options()
        self.block_size = ipywidgets.SelectionSlider(
            options=BLOCK_SIZES, value=block_size, description="block size (tokens)", **slider
        )
        self.requests = ipywidgets.IntSlider(
            value=requests, min=1, max=MAX_REQUESTS, description="requests", **slider
        )
        self.max_model_len = ipywidgets.SelectionSlider(
            options=[(f"{length:,}", length) for length in LENGTHS], value=max_model_len,
            description="max_model_len", **slider,
        )  # fmt: skip
        super().__init__([self.block_size, self.requests, self.max_model_len])

    def paging(self) -> Paging:
        """What the simulator says to what is chosen now.

        Example:
            >>> paging_explorer(block_size=64).paging().blocks
            64
        """
        source = random.Random(7)
        # Drawn for all requests, so that one more request changes none of the others.
        tokens = [source.randint(20, 420) for _ in range(MAX_REQUESTS)]
        return simulate_paging(
            dict(zip(NAMES, tokens[: self.requests.value], strict=False)),
            blocks=MEMORY_TOKENS // self.block_size.value,
            block_size=self.block_size.value,
            max_model_len=self.max_model_len.value,
        )

    def look(self) -> tuple[Figure, str, bool]:
        """The blocks, and how many requests and wasted slots each way has."""
        paging = self.paging()
        ways = [
            f"{row['kept in']}: {row['requests']} stored, "
            f"{100 * row['wasted'] / (row['held'] or 1):.0f}% of their slots empty"
            for row in paging.summary()
        ]
        columns = 32 if paging.blocks > 128 else 16 if paging.blocks > 32 else 8
        return plot_paging(paging, columns=columns), "; ".join(ways), not paging.waiting


class BatchingExplorer(Explorer):
    """The same requests with static and with continuous batching.

    Made by `batching_explorer`.

    Attributes:
        slots: The slider of requests that run at once.
        requests: The slider of the number of requests.
        longest: The slider of the tokens that the first request wants.
    """

    def __init__(self, slots: int, requests: int, longest: int) -> None:
        slider = slider_options()
        self.slots = ipywidgets.IntSlider(
            value=slots, min=1, max=6, description="slots (max_num_seqs)", **slider
        )
        self.requests = ipywidgets.IntSlider(
            value=requests, min=2, max=12, description="requests", **slider
        )
        self.longest = ipywidgets.IntSlider(
            value=longest, min=1, max=30, description="tokens of request A", **slider
        )
        super().__init__([self.slots, self.requests, self.longest])

    def schedules(self) -> list[Schedule]:
        """Static and continuous batching of what is chosen now.

        Example:
            >>> static, continuous = batching_explorer().schedules()
            >>> static.steps > continuous.steps
            True
        """
        source = random.Random(4)
        jobs = [Job(NAMES[0], 0, self.longest.value)]
        for name in NAMES[1 : self.requests.value]:
            jobs.append(Job(name, source.randint(0, 6), source.randint(2, 7)))
        slots = self.slots.value
        static = simulate_batching(jobs, slots=slots, policy="static")
        return [static, simulate_batching(jobs, slots=slots, policy="continuous")]

    def look(self) -> tuple[Figure, str, bool]:
        """Both schedules, and how long the requests wait in each."""
        schedules = self.schedules()
        ways = [
            f"{schedule.policy}: a request waits {schedule.mean_wait:.1f} steps on average, all "
            f"are done after {schedule.steps}"
            for schedule in schedules
        ]
        return plot_batching(schedules), "; ".join(ways), True


def paging_explorer(
    *, block_size: int = 16, requests: int = 12, max_model_len: int = 1024
) -> PagingExplorer:
    """Make a widget that stores requests in blocks and in one piece each.

    Args:
        block_size: Tokens in a block at first: 16, 32, 64, 128 or 256.
        requests: Requests at first, 1 to 26.
        max_model_len: What one piece reserves at first: 512, 1024, 2048 or 4096.

    Returns:
        The widget; a notebook shows it when it is a cell's last value.

    Raises:
        WorkshopError: A value that is not on its slider.

    Example:
        >>> paging_explorer(requests=12).says.split(";")[1]
        ' one piece of 1,024: 4 stored, 79% of their slots empty'
    """
    _on_slider("block_size", block_size, BLOCK_SIZES)
    _on_slider("requests", requests, range(1, MAX_REQUESTS + 1))
    _on_slider("max_model_len", max_model_len, LENGTHS)
    return PagingExplorer(block_size, requests, max_model_len)


def batching_explorer(*, slots: int = 3, requests: int = 7, longest: int = 14) -> BatchingExplorer:
    """Make a widget that schedules requests with static and with continuous batching.

    Args:
        slots: Requests that run at once at first, 1 to 6.
        requests: Requests at first, 2 to 12.
        longest: Tokens of the first request at first, 1 to 30.

    Returns:
        The widget; a notebook shows it when it is a cell's last value.

    Raises:
        WorkshopError: A value that is not on its slider.

    Example:
        >>> batching_explorer(slots=2, requests=2, longest=5).says.split(";")[1]
        ' continuous: a request waits 0.0 steps on average, all are done after 5'
    """
    _on_slider("slots", slots, range(1, 7))
    _on_slider("requests", requests, range(2, 13))
    _on_slider("longest", longest, range(1, 31))
    return BatchingExplorer(slots, requests, longest)


def _on_slider(name: str, value: int, allowed: range | tuple[int, ...]) -> None:
    if value in allowed:
        return
    values = (
        f"{allowed[0]} to {allowed[-1]}"
        if isinstance(allowed, range)
        else ", ".join(map(str, allowed))
    )
    raise WorkshopError(f"{name} {value} is not on its slider; use {values}")
