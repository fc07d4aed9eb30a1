"""Sliders over the memory model and the simulators: one line that answers, and a figure."""

from __future__ import annotations

import html
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import OKABE_ITO, plot_batching, plot_memory_budget, plot_paging
from workshop_lib.serving.memory import DEVICES, ModelShape, gpu_budget
from workshop_lib.serving.simulators import (
    Job,
    Paging,
    Schedule,
    simulate_batching,
    simulate_paging,
)

MODELS = ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
MEMORY_TOKENS = 4096
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Explorer(ipywidgets.VBox):  # type: ignore[misc]
    """Controls, and a figure with a line above it that follow them.

    `look` gets the controls' values by name and returns the figure, the line, and whether that
    works; a `WorkshopError` is shown in place of the figure.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.Widget],
        look: Callable[..., tuple[Figure, str, bool]],
    ) -> None:
        self.controls, self._look, self.says = dict(controls), look, ""
        # As large as the figures beside it, not stretched to the notebook's width.
        size = ipywidgets.Layout(max_width="100%", align_self="flex-start")
        self.picture = ipywidgets.Image(format="png", layout=size)
        self.answer = ipywidgets.HTML()
        super().__init__([*self.controls.values(), self.answer, self.picture])
        for control in self.controls.values():
            control.observe(self._redraw, names="value")
        self._redraw()

    def _redraw(self, change: object = None) -> None:
        png, works = b"", False
        try:
            figure, self.says, works = self._look(**{n: c.value for n, c in self.controls.items()})
            drawn: Any = figure
            png = drawn._repr_png_()
        except WorkshopError as error:
            self.says = str(error)
        mark, colour = ("✓", OKABE_ITO["green"]) if works else ("✗", OKABE_ITO["vermillion"])
        self.answer.value = f'<b style="color:{colour}">{mark}</b> {html.escape(self.says)}'
        # Hidden, not removed: what is below does not jump while a slider is moved.
        self.picture.layout.visibility = "visible" if png else "hidden"
        self.picture.value = png or self.picture.value

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and for pages that have no kernel its picture and its words."""
        bundle: dict[str, Any] = dict(super()._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = self.says
        if self.picture.layout.visibility != "hidden":
            bundle["image/png"] = bytes(self.picture.value)
        return bundle


def memory_explorer(
    model: str = "mistral-7b",
    *,
    gpu: str = "a10g",
    gpu_memory_utilization: float = 0.9,
    max_model_len: int = 4096,
    tp: int = 1,
) -> Explorer:
    """Make a widget that shows the memory budget of a model on a GPU.

    Args:
        model: A name in `data/models`, chosen at first.
        gpu: A key of `DEVICES`, chosen at first.
        gpu_memory_utilization: Share of the GPU for the whole instance, 0.3 to 0.98.
        max_model_len: Longest request, tokens.
        tp: Tensor-parallel size, 1 to 8 (the GPUs of one node).

    Returns:
        The widget; its `controls` are `model`, `gpu`, `gpu_memory_utilization`,
        `max_model_len` and `tp`.

    Example:
        >>> memory_explorer("mistral-7b", gpu="h200", max_model_len=32768).says.split(": ")[-1]
        '27.8 requests of 32,768 tokens at once'
    """
    lengths = sorted({*(2**power for power in range(9, 18)), max_model_len})
    models = list(dict.fromkeys([*MODELS, model]))
    gpus = [(device.name, key) for key, device in DEVICES.items()]
    share = {"value": gpu_memory_utilization, "min": 0.3, "max": 0.98, "step": 0.01}
    controls = {
        "model": _control(ipywidgets.Dropdown, "model", options=models, value=model),
        "gpu": _control(ipywidgets.Dropdown, "GPU", options=gpus, value=gpu),
        "gpu_memory_utilization": _control(
            ipywidgets.FloatSlider, "gpu_memory_utilization", **share
        ),
        "max_model_len": _choice("max_model_len", max_model_len, lengths),
        "tp": _control(ipywidgets.IntSlider, "TP (GPUs)", value=tp, min=1, max=8),
    }
    return Explorer(controls, _look_at_memory)


def paging_explorer(
    *, block_size: int = 16, requests: int = 12, max_model_len: int = 1024
) -> Explorer:
    """Make a widget that stores requests in blocks and in one piece each.

    Args:
        block_size: Tokens in a block at first: 16, 32, 64, 128 or 256.
        requests: Requests at first, 1 to 26.
        max_model_len: What one piece reserves at first: 512, 1024, 2048 or 4096.

    Returns:
        The widget; its `controls` are `block_size`, `requests` and `max_model_len`.

    Example:
        >>> paging_explorer(requests=12).says.split(";")[1]
        ' one piece of 1,024: 4 stored, 79% of their slots empty'
    """
    sizes, lengths = (16, 32, 64, 128, 256), (512, 1024, 2048, 4096)
    most = len(NAMES)
    controls = {
        "block_size": _choice("block size (tokens)", block_size, sizes),
        "requests": _control(ipywidgets.IntSlider, "requests", value=requests, min=1, max=most),
        "max_model_len": _choice("max_model_len", max_model_len, lengths),
    }
    return Explorer(controls, _look_at_paging)


def batching_explorer(*, slots: int = 3, requests: int = 7, longest: int = 14) -> Explorer:
    """Make a widget that schedules requests with static and with continuous batching.

    Args:
        slots: Requests that run at once at first, 1 to 6.
        requests: Requests at first, 2 to 12.
        longest: Tokens of request A at first, 1 to 30.

    Returns:
        The widget; its `controls` are `slots`, `requests` and `longest`.

    Example:
        >>> batching_explorer(slots=2, requests=2, longest=5).says.split(";")[1]
        ' continuous: a request waits 0.0 steps on average, all are done after 5'
    """
    limits = {
        "slots": ("slots (max_num_seqs)", slots, 1, 6),
        "requests": ("requests", requests, 2, 12),
        "longest": ("tokens of request A", longest, 1, 30),
    }
    controls = {
        name: _control(ipywidgets.IntSlider, label, value=value, min=low, max=high)
        for name, (label, value, low, high) in limits.items()
    }
    return Explorer(controls, _look_at_batching)


def explored_paging(block_size: int, requests: int, max_model_len: int) -> Paging:
    """The paging that the explorer shows: the same requests whatever their number."""
    source = random.Random(7)
    tokens = {name: source.randint(20, 420) for name in NAMES}
    stored = dict(list(tokens.items())[:requests])
    settings = {"blocks": MEMORY_TOKENS // block_size, "block_size": block_size}
    return simulate_paging(stored, **settings, max_model_len=max_model_len)


def explored_schedules(slots: int, requests: int, longest: int) -> list[Schedule]:
    """Static and continuous batching of the explorer's requests."""
    source = random.Random(4)
    jobs = [Job(NAMES[0], 0, longest)]
    jobs += [Job(n, source.randint(0, 6), source.randint(2, 7)) for n in NAMES[1:requests]]
    static = simulate_batching(jobs, slots=slots, policy="static")
    return [static, simulate_batching(jobs, slots=slots, policy="continuous")]


def _look_at_memory(
    model: str, gpu: str, gpu_memory_utilization: float, **settings: Any
) -> tuple[Figure, str, bool]:
    """The budget's figure, and what it means for requests or why it does not work."""
    share = round(gpu_memory_utilization, 2)
    shape = ModelShape.named(model)
    budget = gpu_budget(shape, gpu, gpu_memory_utilization=share, **settings)
    each, kv = f" on each of {budget.tp} GPUs" if budget.tp > 1 else "", budget.kv
    says = (
        f"KV cache: {budget.kv_gib:.1f} GiB{each}, {kv.tokens:,} tokens: "
        f"{kv.concurrency:,.1f} requests of {kv.max_model_len:,} tokens at once"
    )
    return plot_memory_budget(budget), says if budget.fits else budget.reason, budget.fits


def _look_at_paging(**values: int) -> tuple[Figure, str, bool]:
    """The blocks, and how many requests and wasted slots each way has."""
    paging = explored_paging(**values)
    ways = [
        f"{row['kept in']}: {row['requests']} stored, "
        f"{100 * row['wasted'] / (row['held'] or 1):.0f}% of their slots empty"
        for row in paging.summary()
    ]
    return plot_paging(paging), "; ".join(ways), not paging.waiting


def _look_at_batching(**values: int) -> tuple[Figure, str, bool]:
    """Both schedules, and how long the requests wait in each."""
    schedules = explored_schedules(**values)
    ways = [
        f"{schedule.policy}: a request waits {schedule.mean_wait:.1f} steps on average, all "
        f"are done after {schedule.steps}"
        for schedule in schedules
    ]
    return plot_batching(schedules), "; ".join(ways), True


def _control(kind: type[ipywidgets.Widget], label: str, **settings: Any) -> ipywidgets.Widget:
    """A control of the common width; a slider draws where it stops, not on the way."""
    layout = ipywidgets.Layout(width="40em", max_width="99%")
    settings |= {} if kind is ipywidgets.Dropdown else {"continuous_update": False}
    style = {"description_width": "14em"}
    return kind(description=label, layout=layout, style=style, **settings)


def _choice(label: str, value: int, allowed: Sequence[int]) -> ipywidgets.Widget:
    options = [(f"{each:,}", each) for each in allowed]
    return _control(ipywidgets.SelectionSlider, label, options=options, value=value)
