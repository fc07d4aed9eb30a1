"""The memory explorer: what its sliders show is what `gpu_budget` says."""

import doctest
import subprocess
import sys

import pytest

from workshop_lib import widgets
from workshop_lib.errors import WorkshopError
from workshop_lib.memory import ModelShape, gpu_budget
from workshop_lib.widgets import memory_explorer

WIDGET = "application/vnd.jupyter.widget-view+json"


def expected(model, gpu, **settings):
    return gpu_budget(ModelShape.named(model), gpu, **settings)


@pytest.fixture
def explorer():
    explorer = memory_explorer("mistral-7b", gpu="a100-40", gpu_memory_utilization=0.9)
    yield explorer
    explorer.close()


@pytest.mark.parametrize(
    ("control", "value", "change"),
    [
        ("utilization", 0.95, {"gpu_memory_utilization": 0.95}),
        ("max_model_len", 32768, {"max_model_len": 32768}),
        ("tp", 4, {"tp": 4}),
        ("gpu", "h100", {"gpu": "h100"}),
        ("model", "llama-2-7b", {"model": "llama-2-7b"}),
    ],
)
def test_moving_a_control_redraws_with_the_budgets_numbers(explorer, control, value, change):
    before, picture = explorer.says, bytes(explorer.picture.value)
    getattr(explorer, control).value = value

    settings = {"model": "mistral-7b", "gpu": "a100-40", "gpu_memory_utilization": 0.9, **change}
    budget = expected(**settings)
    assert explorer.budget() == budget
    assert explorer.says != before
    assert f"{budget.kv_gib:.1f} GiB" in explorer.says
    assert f"{budget.kv.tokens:,} tokens" in explorer.says
    assert f"{budget.kv.concurrency:,.1f} requests of {budget.kv.max_model_len:,}" in explorer.says
    assert explorer.says in explorer.answer.value
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")
    if control != "max_model_len":  # which changes no part of the memory
        assert explorer.picture.value != picture


@pytest.mark.parametrize(
    ("control", "value", "reason", "has_picture"),
    [
        ("tp", 3, "tensor parallelism over 3 GPUs does not divide its 32 heads", False),
        ("max_model_len", 131072 * 4, "too few for one request of 524,288", True),
        ("model", "llama-3.1-70b", "GiB more than the device has", True),
        ("utilization", 0.3, "leave no memory for the KV cache", True),
    ],
)
def test_what_cannot_work_is_answered_by_its_reason(control, value, reason, has_picture, capfd):
    explorer = memory_explorer("mistral-7b", gpu="a100-40")
    if control == "max_model_len":
        explorer = memory_explorer("mistral-7b", gpu="a100-40", max_model_len=value)
    else:
        getattr(explorer, control).value = value
    assert reason in explorer.says
    assert "\n" not in explorer.says
    assert "✗" in explorer.answer.value
    assert (explorer.picture.layout.visibility == "visible") is has_picture
    assert ("image/png" in explorer._repr_mimebundle_()) is has_picture
    assert capfd.readouterr().err == ""

    for name in ("tp", "max_model_len", "model", "utilization"):  # and it comes back
        getattr(explorer, name).value = getattr(memory_explorer("mistral-7b"), name).value
    assert "✓" in explorer.answer.value
    assert explorer.picture.layout.visibility == "visible"


def test_its_static_picture_is_the_default_state(explorer):
    bundle = explorer._repr_mimebundle_()
    assert WIDGET in bundle
    assert bundle["image/png"] == explorer.picture.value
    assert bundle["text/plain"] == explorer.says
    assert memory_explorer("mistral-7b", gpu="a100-40").picture.value == bundle["image/png"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"model": "mistral"}, "no model 'mistral'"),
        ({"gpu": "b200"}, "'b200' is not in the table"),
        ({"gpu_memory_utilization": 1.2}, "gpu_memory_utilization 1.2 is not on its slider"),
        ({"tp": 16}, "tp 16 is not on its slider; use 1 to 8"),
        ({"max_model_len": 0}, "max_model_len 0 is not on its slider"),
    ],
)
def test_bad_defaults_are_refused(arguments, reason):
    with pytest.raises(WorkshopError, match=reason):
        memory_explorer(**arguments)


def test_nothing_runs_beside_the_kernel():
    """No thread, no child, no window: the process ends by itself."""
    code = (
        "import threading, psutil, sys\n"
        "from workshop_lib.widgets import memory_explorer\n"
        "explorer = memory_explorer(); explorer.tp.value = 2\n"
        "print(threading.active_count(), len(psutil.Process().children()),"
        " 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["1", "0", "False"]


def test_examples():
    assert doctest.testmod(widgets).failed == 0
