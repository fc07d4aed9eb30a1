"""The explorers: what their sliders show is what the memory model and the simulators say."""

import doctest
import subprocess
import sys

import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import plot_batching, plot_paging
from workshop_lib.serving.memory import ModelShape, gpu_budget
from workshop_lib.serving.simulators import simulate_batching
from workshop_lib.widgets import (
    batching_explorer,
    explorers,
    live,
    memory_explorer,
    paging_explorer,
)
from workshop_lib.widgets.explorers import explored_budget, explored_paging, explored_schedules

WIDGET = "application/vnd.jupyter.widget-view+json"


def expected(model, gpu, **settings):
    return gpu_budget(ModelShape.named(model), gpu, **settings)


def shown(widget, explored):
    """What the model or simulator says to the controls' values."""
    return explored(**{name: control.value for name, control in widget.controls.items()})


@pytest.fixture
def budgets():
    budgets = memory_explorer("mistral-7b", gpu="a100-40", gpu_memory_utilization=0.9)
    yield budgets
    budgets.close()


@pytest.mark.parametrize(
    ("control", "value", "change"),
    [
        ("gpu_memory_utilization", 0.95, {"gpu_memory_utilization": 0.95}),
        ("max_model_len", 32768, {"max_model_len": 32768}),
        ("tp", 4, {"tp": 4}),
        ("gpu", "h100", {"gpu": "h100"}),
        ("model", "llama-2-7b", {"model": "llama-2-7b"}),
    ],
)
def test_moving_a_control_redraws_with_the_budgets_numbers(budgets, control, value, change):
    before, picture = budgets.says, bytes(budgets.picture.value)
    budgets.controls[control].value = value

    settings = {"model": "mistral-7b", "gpu": "a100-40", "gpu_memory_utilization": 0.9, **change}
    budget = expected(**settings)
    assert shown(budgets, explored_budget) == budget
    assert budgets.says != before
    assert f"{budget.kv_gib:.1f} GiB" in budgets.says
    assert f"{budget.kv.tokens:,} tokens" in budgets.says
    assert f"{budget.kv.concurrency:,.1f} requests of {budget.kv.max_model_len:,}" in budgets.says
    assert budgets.says in budgets.answer.value
    assert bytes(budgets.picture.value).startswith(b"\x89PNG")
    if control != "max_model_len":  # which changes no part of the memory
        assert budgets.picture.value != picture


@pytest.mark.parametrize(
    ("control", "value", "reason", "has_picture"),
    [
        ("tp", 3, "tensor parallelism over 3 GPUs does not divide its 32 heads", False),
        ("max_model_len", 65536, "knows 32,768 positions and vLLM refuses more", False),
        ("model", "llama-3.1-70b", "leave no memory for the KV cache", True),
        ("gpu_memory_utilization", 0.3, "leave no memory for the KV cache", True),
    ],
)
def test_what_cannot_work_is_answered_by_its_reason(control, value, reason, has_picture, capfd):
    budgets = memory_explorer("mistral-7b", gpu="a100-40")
    budgets.controls[control].value = value
    assert reason in budgets.says
    assert "\n" not in budgets.says
    assert "✗" in budgets.answer.value
    assert (budgets.picture.layout.visibility == "visible") is has_picture
    assert ("image/png" in budgets._repr_mimebundle_()) is has_picture
    assert capfd.readouterr().err == ""

    for name in ("tp", "max_model_len", "model", "gpu_memory_utilization"):  # and it comes back
        budgets.controls[name].value = memory_explorer("mistral-7b").controls[name].value
    assert "✓" in budgets.answer.value
    assert budgets.picture.layout.visibility == "visible"


def test_the_lessons_question_has_the_answer_that_it_expects():
    budgets = memory_explorer("mistral-7b", gpu="a10g")
    budgets.controls["model"].value, budgets.controls["max_model_len"].value = (
        "llama-3.1-8b",
        131072,
    )
    assert "too few for one request of 131,072" in budgets.says
    assert budgets.picture.layout.visibility == "visible"
    budgets.controls[
        "gpu_memory_utilization"
    ].value = 0.94  # all that the card can give is not enough
    assert "too few" in budgets.says
    budgets.controls["tp"].value = 2
    assert "✓" in budgets.answer.value


def test_its_static_picture_is_the_default_state(budgets):
    bundle = budgets._repr_mimebundle_()
    assert WIDGET in bundle
    assert bundle["image/png"] == budgets.picture.value
    assert bundle["text/plain"] == budgets.says
    assert memory_explorer("mistral-7b", gpu="a100-40").picture.value == bundle["image/png"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"model": "mistral"}, "no model 'mistral'"),
        ({"gpu": "b100"}, "'b100' is not known"),
        ({"gpu_memory_utilization": 1.2}, "gpu_memory_utilization 1.2 is not on its slider"),
        ({"tp": 16}, "tp 16 is not on its slider; use 1 to 8"),
        ({"max_model_len": 0}, "max_model_len 0 is not on its slider"),
    ],
)
def test_bad_defaults_are_refused(arguments, reason):
    with pytest.raises(WorkshopError, match=reason):
        memory_explorer(**arguments)


# -- the simulators ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "value"), [("block_size", 128), ("requests", 20), ("max_model_len", 4096)]
)
def test_paging_is_redrawn_with_the_simulators_numbers(control, value):
    widget = paging_explorer()
    before, picture = widget.says, bytes(widget.picture.value)
    widget.controls[control].value = value
    paging = shown(widget, explored_paging)
    blocks, pieces = paging.summary()
    assert widget.says != before and widget.picture.value != picture
    assert f"{blocks['requests']} stored" in widget.says.split(";")[0]
    assert f"{pieces['requests']} stored" in widget.says.split(";")[1]
    assert bytes(widget.picture.value).startswith(b"\x89PNG")
    assert len(plot_paging(paging).axes) == 2
    widget.controls[control].value = paging_explorer().controls[control].value
    assert (widget.says, widget.picture.value) == (before, picture)


def test_paging_says_who_waits():
    widget = paging_explorer(requests=26)
    assert shown(widget, explored_paging).waiting and "✗" in widget.answer.value
    assert "✓" in paging_explorer(requests=2).answer.value
    # One more request changes none of the others.
    assert (
        list(shown(paging_explorer(requests=3), explored_paging).tokens.items())
        == list(shown(paging_explorer(requests=4), explored_paging).tokens.items())[:3]
    )


@pytest.mark.parametrize(("control", "value"), [("slots", 1), ("requests", 12), ("longest", 30)])
def test_batching_is_redrawn_with_the_simulators_numbers(control, value):
    widget = batching_explorer()
    before, picture = widget.says, bytes(widget.picture.value)
    widget.controls[control].value = value
    static, continuous = shown(widget, explored_schedules)
    jobs = [run.job for run in static.runs]
    again = simulate_batching(jobs, slots=widget.controls["slots"].value, policy="continuous")
    assert again == continuous and static.policy == "static"
    assert (
        len(jobs) == widget.controls["requests"].value
        and jobs[0].tokens == widget.controls["longest"].value
    )
    assert f"static: a request waits {static.mean_wait:.1f} steps" in widget.says
    assert f"all are done after {continuous.steps}" in widget.says
    assert widget.says != before and widget.picture.value != picture
    assert len(plot_batching([static, continuous]).axes) == 2


@pytest.mark.parametrize(
    ("make", "arguments", "reason"),
    [
        (paging_explorer, {"block_size": 48}, "block_size 48 is not on its slider; use 16, 32"),
        (paging_explorer, {"requests": 27}, "requests 27 is not on its slider; use 1 to 26"),
        (paging_explorer, {"max_model_len": 1}, "max_model_len 1 is not on its slider"),
        (batching_explorer, {"slots": 0}, "slots 0 is not on its slider; use 1 to 6"),
        (batching_explorer, {"requests": 1}, "requests 1 is not on its slider; use 2 to 12"),
        (batching_explorer, {"longest": 31}, "longest 31 is not on its slider; use 1 to 30"),
    ],
)
def test_values_off_the_sliders_are_refused(make, arguments, reason):
    with pytest.raises(WorkshopError, match=reason):
        make(**arguments)


@pytest.mark.parametrize("make", [paging_explorer, batching_explorer])
def test_simulators_carry_their_static_picture(make):
    widget = make()
    bundle = widget._repr_mimebundle_()
    assert WIDGET in bundle and bundle["text/plain"] == widget.says
    assert bundle["image/png"] == widget.picture.value


def test_nothing_runs_beside_the_kernel():
    """No thread, no child, no window: the process ends by itself."""
    code = (
        "import threading, psutil, sys\n"
        "from workshop_lib.widgets import batching_explorer, memory_explorer, paging_explorer\n"
        "memory_explorer().controls['tp'].value = 2; paging_explorer(); batching_explorer()\n"
        "print(threading.active_count(), len(psutil.Process().children()),"
        " 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert done.stdout.split() == ["1", "0", "False"]


@pytest.mark.parametrize("module", [explorers, live])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
