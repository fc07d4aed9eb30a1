"""Figures of memory: budgets and the KV cache's size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.plots.style import GREY, OKABE_ITO, PALE, new_figure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from workshop_lib.serving.memory import Budget, EngineKV, KVCapacity, TrainingBudget

__all__ = [
    "plot_kv_prediction",
    "plot_memory_budgets",
    "plot_training_budgets",
]

_PART_COLOURS = {
    "weights": OKABE_ITO["blue"],
    "activations": OKABE_ITO["orange"],
    "runtime": OKABE_ITO["purple"],
    "buffers": OKABE_ITO["sky"],
    "KV cache": OKABE_ITO["green"],
    "CUDA graphs": OKABE_ITO["yellow"],
    "free": PALE,
}


def plot_memory_budgets(budgets: Sequence[Budget], labels: Sequence[str] | None = None) -> Figure:
    """One stacked bar a device: what takes its memory, against what it has.

    Estimated parts are hatched.

    Args:
        budgets: One or more budgets.
        labels: Their names; by default device and model.

    Raises:
        WorkshopError: No budget, or not one label for each.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape, gpu_budget
        >>> shape = ModelShape.named("mistral-7b")
        >>> figure = plot_memory_budgets([gpu_budget(shape, "h100")])
    """
    if not budgets:
        raise WorkshopError("plot_memory_budgets needs at least one budget")
    names = list(labels or [_budget_name(budget) for budget in budgets])
    if len(names) != len(budgets):
        raise WorkshopError(f"{len(budgets)} budgets need as many labels, got {len(names)}")
    figure = new_figure(8, 1.9 + 0.75 * len(budgets))
    axes = figure.subplots()
    widest = max(max(b.capacity_gib, b.capacity_gib - b.free_gib) for b in budgets)
    for row, budget in enumerate(budgets):
        _stacked_bar(axes, row, budget, widest)
    axes.set_yticks(range(len(budgets)), names)
    axes.set_ylim(len(budgets) - 0.4, -0.6)
    axes.set_xlim(0, widest * 1.22)  # room for the tokens
    axes.set_xlabel("memory, GiB (hatched: estimate; black line: what the device has)")
    tidy(axes)
    _part_legend(figure, budgets)
    return figure


def plot_kv_prediction(predicted: KVCapacity, engine: EngineKV) -> Figure:
    """The predicted size of the KV cache beside the engine's own start line.

    Args:
        predicted: What `kv_cache_capacity` or a budget says.
        engine: What `parse_engine_line` read.

    Example:
        >>> from workshop_lib.serving.memory import EngineKV, KVCapacity
        >>> capacity = KVCapacity(23296, 182, 128, 1024, 22.75, True)
        >>> figure = plot_kv_prediction(capacity, EngineKV("CPU", 23296, 1024, 22.75))
    """
    figure = new_figure(8, 2.4)
    axes = figure.subplots()
    values = [predicted.tokens, engine.tokens]
    names = ["predicted", f"{engine.device} engine's\nstart line"]
    colours = [OKABE_ITO["green"], OKABE_ITO["blue"]]
    axes.barh(names, values, color=colours, height=0.6)
    for row, value in enumerate(values):
        axes.text(value, row, f"  {value:,} tokens", va="center", ha="left")
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.28)
    axes.set_xlabel("KV cache, tokens")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    difference = predicted.tokens - engine.tokens
    percent = 100 * difference / engine.tokens
    verdict = "exactly equal" if difference == 0 else f"{difference:+,} tokens ({percent:+.2g}%)"
    axes.set_title(f"Prediction against the engine: {verdict}", loc="left")
    tidy(axes)
    return figure


_PHASE_COLOURS = {
    "weights": OKABE_ITO["blue"],
    "gradients": OKABE_ITO["vermillion"],
    "optimizer": OKABE_ITO["purple"],
    "reference": OKABE_ITO["sky"],
    "activations": OKABE_ITO["orange"],
    "KV cache": OKABE_ITO["green"],
    "other": GREY,
}


def plot_training_budgets(
    budgets: Sequence[TrainingBudget], labels: Sequence[str] | None = None
) -> Figure:
    """Two bars a budget, one for each phase of a GRPO step, against what the GPU has.

    Args:
        budgets: One or more budgets.
        labels: Their names; by default model, GPUs and way of training.

    Raises:
        WorkshopError: No budget, or not one label for each.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape, training_budget
        >>> shape = ModelShape.named("mistral-7b")
        >>> figure = plot_training_budgets([training_budget(shape, "a100-40", lora_rank=16)])
    """
    if not budgets:
        raise WorkshopError("plot_training_budgets needs at least one budget")
    names = list(labels or [_training_name(budget) for budget in budgets])
    if len(names) != len(budgets):
        raise WorkshopError(f"{len(budgets)} budgets need as many labels, got {len(names)}")
    figure = new_figure(9, 1.7 + 1.0 * len(budgets))
    axes = figure.subplots()
    widest = max(max(budget.peak_gib, budget.capacity_gib) for budget in budgets)
    ticks, ticklabels = [], []
    for number, (budget, name) in enumerate(zip(budgets, names, strict=True)):
        for phase, parts in enumerate((budget.update, budget.generate)):
            row = 2.5 * number + phase
            _phase_bar(axes, row, parts, widest)
            ticks.append(row)
            ticklabels.append(f"{name}: update" if phase == 0 else "generate")
            over = sum(parts.values()) - budget.capacity_gib
            if over > 0:
                end = sum(parts.values()) + 0.01 * widest
                text = f"{over:.0f} GiB too much"
                axes.text(end, row, text, va="center", color=OKABE_ITO["vermillion"], fontsize=9)
        low, high = 2.5 * number - 0.48, 2.5 * number + 1.48
        axes.plot([budget.capacity_gib] * 2, [low, high], color="black", linewidth=2)
    axes.set_yticks(ticks, ticklabels)
    axes.set_ylim(2.5 * len(budgets) - 0.9, -0.7)
    axes.set_xlim(0, widest * 1.2)
    axes.set_xlabel("memory of one GPU, GiB (black line: what it has)")
    tidy(axes)
    _phase_legend(figure, budgets)
    return figure


def _phase_kind(part: str) -> str:
    name = part.removeprefix("vLLM's ").removeprefix("trainer's ")
    return name if name in _PHASE_COLOURS else "other"


def _phase_bar(axes: Axes, row: float, parts: dict[str, float], widest: float) -> None:
    left = 0.0
    for part, gib in parts.items():
        colour = _PHASE_COLOURS[_phase_kind(part)]
        # What belongs to vLLM is hatched: both phases have weights.
        hatch = "////" if part.startswith("vLLM") else None
        axes.barh(row, gib, left=left, height=0.8, color=colour, hatch=hatch, edgecolor="white")
        if gib > 0.05 * widest:
            dark = colour in (OKABE_ITO["blue"], OKABE_ITO["green"], OKABE_ITO["vermillion"])
            box = {"facecolor": colour, "pad": 1, "linewidth": 0} if hatch else None
            axes.text(
                left + gib / 2,
                row,
                f"{gib:.0f}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                bbox=box,
                fontsize=9,
            )
        left += gib


def _training_name(budget: TrainingBudget) -> str:
    way = f"LoRA {budget.lora_rank}" if budget.lora_rank else "full"
    return f"{budget.model.split('/')[-1]}, {way},\n{budget.gpus} x {budget.device}"


def _phase_legend(figure: Figure, budgets: Iterable[TrainingBudget]) -> None:
    from matplotlib.patches import Patch

    shown = {
        _phase_kind(part)
        for budget in budgets
        for parts in (budget.update, budget.generate)
        for part, gib in parts.items()
        if gib > 0
    }
    handles = [Patch(color=c, label=part) for part, c in _PHASE_COLOURS.items() if part in shown]
    handles.append(Patch(facecolor=PALE, edgecolor=GREY, hatch="////", label="vLLM's"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False)


def _stacked_bar(axes: Axes, row: int, budget: Budget, widest: float) -> None:
    left = 0.0
    for part, gib in budget.parts().items():
        if gib <= 0:
            continue
        estimate = part in budget.estimated
        axes.barh(
            row,
            gib,
            left=left,
            height=0.6,
            color=_PART_COLOURS[part],
            hatch="////" if estimate else None,
            edgecolor="white" if estimate else None,
        )
        if gib > 0.07 * widest:
            dark = part in ("weights", "KV cache")
            colour = "white" if dark else "black"
            axes.text(left + gib / 2, row, f"{gib:.1f}", ha="center", va="center", color=colour)
        left += gib
    axes.plot([budget.capacity_gib] * 2, [row - 0.38, row + 0.38], color="black", linewidth=2)
    end = max(left, budget.capacity_gib) + 0.015 * widest
    if budget.fits:
        axes.text(end, row, f"{budget.kv.tokens:,}\ntokens", va="center")
    else:
        axes.text(end, row, "does\nnot fit", va="center", color=OKABE_ITO["vermillion"])


def _budget_name(budget: Budget) -> str:
    share = budget.gpu_memory_utilization
    use = f", util. {share}" if share is not None else ""
    return f"{budget.model.split('/')[-1]}\n{budget.device}, TP={budget.tp}{use}"


def _part_legend(figure: Figure, budgets: Iterable[Budget]) -> None:
    """A legend above the bars: parts are too thin to be labelled in place."""
    from matplotlib.patches import Patch

    shown = {part for budget in budgets for part, gib in budget.parts().items() if gib > 0}
    handles = [Patch(color=c, label=part) for part, c in _PART_COLOURS.items() if part in shown]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False)
