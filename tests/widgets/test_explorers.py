"""The explorers: what their sliders show is what the memory model and the simulators say."""

import doctest
import subprocess
import sys

import pytest

from workshop_lib.serving.memory import ModelShape, gpu_budget
from workshop_lib.widgets import batching_explorer, explorers, memory_explorer, paging_explorer
from workshop_lib.widgets.explorers import explored_paging, explored_schedules

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.mark.parametrize(
    ("make", "control", "value"),
    [
        (memory_explorer, "gpu_memory_utilization", 0.95),
        (memory_explorer, "tp", 4),
        (memory_explorer, "gpu", "h100"),
        (memory_explorer, "model", "llama-2-7b"),
        (paging_explorer, "block_size", 128),
        (paging_explorer, "requests", 20),
        (paging_explorer, "max_model_len", 4096),
        (batching_explorer, "slots", 1),
        (batching_explorer, "requests", 12),
        (batching_explorer, "longest", 30),
    ],
)
def test_a_moved_control_redraws_and_back_is_as_before(make, control, value):
    widget = make()
    before, picture, old = widget.says, bytes(widget.picture.value), widget.controls[control].value
    widget.controls[control].value = value
    assert widget.says != before and widget.picture.value != picture
    assert widget.says == make(**{control: value}).says  # what is asked for at first, too
    assert bytes(widget.picture.value).startswith(b"\x89PNG")
    widget.controls[control].value = old
    assert (widget.says, widget.picture.value) == (before, picture)
    bundle = widget._repr_mimebundle_()  # for a page without a kernel
    assert WIDGET in bundle and bundle["text/plain"] == widget.says
    assert bundle["image/png"] == picture


def test_the_line_has_the_budgets_numbers():
    settings = {"gpu_memory_utilization": 0.95, "max_model_len": 32768, "tp": 2}
    budget = gpu_budget(ModelShape.named("llama-3.1-8b"), "h100", **settings)
    assert memory_explorer("llama-3.1-8b", gpu="h100", **settings).says == (
        f"KV cache: {budget.kv_gib:.1f} GiB on each of 2 GPUs, {budget.kv.tokens:,} tokens: "
        f"{budget.kv.concurrency:,.1f} requests of 32,768 tokens at once"
    )


def test_the_lines_have_the_simulators_numbers():
    blocks, pieces = explored_paging(16, 26, 1024).summary()
    widget = paging_explorer(requests=26)
    assert f"{blocks['requests']} stored" in widget.says.split(";")[0]
    assert f"{pieces['requests']} stored" in widget.says.split(";")[1]
    assert "✗" in widget.answer.value and "✓" in paging_explorer(requests=2).answer.value
    # One more request changes none of the others.
    few, more = (list(explored_paging(16, n, 1024).tokens.items()) for n in (3, 4))
    assert few == more[:3]
    static, continuous = explored_schedules(3, 7, 14)
    assert batching_explorer().says == (
        f"static: a request waits {static.mean_wait:.1f} steps on average, all are done after "
        f"{static.steps}; continuous: a request waits {continuous.mean_wait:.1f} steps on "
        f"average, all are done after {continuous.steps}"
    )


@pytest.mark.parametrize(
    ("changes", "reason", "drawn"),
    [
        ({"tp": 3}, "tensor parallelism over 3 GPUs does not divide its 32 heads", False),
        ({"max_model_len": 65536}, "knows 32,768 positions and vLLM refuses more", False),
        ({"model": "llama-3.1-70b"}, "leave no memory for the KV cache", True),
        ({"gpu_memory_utilization": 0.3}, "leave no memory for the KV cache", True),
        ({"model": "llama-3.1-8b", "max_model_len": 131072}, "too few for one request", True),
    ],
)
def test_what_cannot_work_is_answered_by_its_reason(changes, reason, drawn, capfd):
    widget = memory_explorer("mistral-7b", gpu="a10g")
    before = {name: widget.controls[name].value for name in changes}
    for name, value in changes.items():
        widget.controls[name].value = value
    assert reason in widget.says and "\n" not in widget.says and "✗" in widget.answer.value
    assert (widget.picture.layout.visibility == "visible") is drawn
    assert ("image/png" in widget._repr_mimebundle_()) is drawn
    assert capfd.readouterr().err == ""
    for name, value in before.items():  # and it comes back
        widget.controls[name].value = value
    assert "✓" in widget.answer.value and widget.picture.layout.visibility == "visible"


def test_nothing_runs_beside_the_kernel_and_no_global_state_of_matplotlib_is_used():
    code = (
        "import threading, psutil, sys\n"
        "from workshop_lib.widgets import batching_explorer, memory_explorer, paging_explorer\n"
        "memory_explorer().controls['tp'].value = 2; paging_explorer(); batching_explorer()\n"
        "print(threading.active_count(), len(psutil.Process().children()),"
        " 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0", "False"]


def test_examples():
    assert doctest.testmod(explorers).failed == 0
