"""Sliders over the memory budget of a model on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ipywidgets

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import plot_memory_budgets
from workshop_lib.serving.memory import DEVICES, Budget, ModelShape, find_device, gpu_budget
from workshop_lib.widgets.explorer import Explorer, slider_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MemoryExplorer", "memory_explorer"]

MODELS = ("mistral-7b", "llama-2-7b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b")
MAX_MODEL_LENGTHS = tuple(2**power for power in range(9, 18))  # 512 to 131,072 tokens
MAX_TP = 8
"""GPUs of one node: tensor parallelism across nodes is too slow to be chosen by a slider."""


class MemoryExplorer(Explorer):
    """Where a GPU's memory goes, redrawn whenever a slider or a list is changed.

    Made by `memory_explorer`. A setting that cannot work (a tensor-parallel size that does
    not divide the model, a model that does not fit) is answered by one line that says why.

    Attributes:
        model: The list of models.
        gpu: The list of GPUs.
        utilization: The slider of `gpu_memory_utilization`.
        max_model_len: The slider of the longest request, tokens.
        tp: The slider of the tensor-parallel size.
    """

    def __init__(
        self,
        model: str,
        gpu: str,
        gpu_memory_utilization: float,
        max_model_len: int,
        tp: int,
    ) -> None:
        common, slider = slider_options(moving=False), slider_options()
        models = list(dict.fromkeys([*MODELS, model]))
        lengths = sorted({*MAX_MODEL_LENGTHS, max_model_len})
        self.model = ipywidgets.Dropdown(options=models, value=model, description="model", **common)
        self.gpu = ipywidgets.Dropdown(
            options=[(device.name, key) for key, device in DEVICES.items()],
            value=gpu, description="GPU", **common,
        )  # fmt: skip
        self.utilization = ipywidgets.FloatSlider(
            value=gpu_memory_utilization, min=0.3, max=0.98, step=0.01,
            description="gpu_memory_utilization", **slider,
        )  # fmt: skip
        self.max_model_len = ipywidgets.SelectionSlider(
            options=[(f"{length:,}", length) for length in lengths], value=max_model_len,
            description="max_model_len", **slider,
        )  # fmt: skip
        self.tp = ipywidgets.IntSlider(
            value=tp, min=1, max=MAX_TP, description="TP (GPUs)", **slider
        )
        super().__init__([self.model, self.gpu, self.utilization, self.max_model_len, self.tp])

    def budget(self) -> Budget:
        """The budget of what is chosen now.

        Raises:
            WorkshopError: The combination cannot work.

        Example:
            >>> memory_explorer("mistral-7b", gpu="h100").budget().fits
            True
        """
        return gpu_budget(
            ModelShape.named(self.model.value),
            self.gpu.value,
            gpu_memory_utilization=round(self.utilization.value, 2),
            max_model_len=self.max_model_len.value,
            tp=self.tp.value,
        )

    def look(self) -> tuple[Figure, str, bool]:
        """The budget's figure, what it means for requests, and whether it fits."""
        budget = self.budget()
        return plot_memory_budgets([budget]), _answer(budget), budget.fits


def _answer(budget: Budget) -> str:
    """One line: what the budget means for requests, or why it does not work."""
    if not budget.fits:
        return budget.reason
    each = f" on each of {budget.tp} GPUs" if budget.tp > 1 else ""
    kv = budget.kv
    return (
        f"KV cache: {budget.kv_gib:.1f} GiB{each}, {kv.tokens:,} tokens: "
        f"{kv.concurrency:,.1f} requests of {kv.max_model_len:,} tokens at once"
    )


def memory_explorer(
    model: str = "mistral-7b",
    *,
    gpu: str = "a10g",
    gpu_memory_utilization: float = 0.9,
    max_model_len: int = 4096,
    tp: int = 1,
) -> MemoryExplorer:
    """Make a widget that shows the memory budget of a model on a GPU.

    Args:
        model: A name in `data/models`, chosen at first.
        gpu: A key of `DEVICES`, chosen at first.
        gpu_memory_utilization: Share of the GPU for the whole instance, 0.3 to 0.98.
        max_model_len: Longest request, tokens.
        tp: Tensor-parallel size, 1 to 8.

    Returns:
        The widget; a notebook shows it when it is a cell's last value.

    Raises:
        WorkshopError: The model or the GPU is not known, or a value is out of range.

    Example:
        >>> memory_explorer("mistral-7b", gpu="h200", max_model_len=32768).says
        'KV cache: 111.2 GiB, 911,040 tokens: 27.8 requests of 32,768 tokens at once'
    """
    ModelShape.named(model)
    key = _key_of(gpu)
    for name, value, low, high in (
        ("gpu_memory_utilization", gpu_memory_utilization, 0.3, 0.98),
        ("max_model_len", max_model_len, 1, float("inf")),
        ("tp", tp, 1, MAX_TP),
    ):
        if not low <= value <= high:
            raise WorkshopError(f"{name} {value} is not on its slider; use {low:g} to {high:g}")
    return MemoryExplorer(model, key, gpu_memory_utilization, max_model_len, tp)


def _key_of(gpu: str) -> str:
    device = find_device(gpu)
    return next(key for key, known in DEVICES.items() if known is device)
