"""The chat and the stop button, against a real server and in a real kernel."""

import _thread
import asyncio
import threading
import time
from contextlib import nullcontext

import nbformat
import pytest
from nbclient import NotebookClient
from streaming_server import StreamingServer

from workshop_lib.serving.benchmark import start_sweep
from workshop_lib.widgets import watch
from workshop_lib.widgets.live import ChatBox

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def stub():
    with StreamingServer(ttft_ms=10, itl_ms=5) as server:
        yield server


@pytest.fixture
def slowly(stub):
    """An answer that is far from its end when something is done in its middle."""
    stub.itl_ms = 500
    yield
    stub.itl_ms = 5


def until(holds, what, timeout_s=300):
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.01)


def box(stub, max_tokens=6):
    return ChatBox(lambda: nullcontext(stub.url), max_tokens=max_tokens)


def test_a_question_is_answered_and_the_next_one_knows_it(stub):
    chat = box(stub)
    assert chat.ask("What is a GPU?").split() == ["word"] * 6
    stub.bodies.clear()
    chat.ask("And <b>why</b>?")
    assert [each["role"] for each in stub.bodies[0]["messages"]] == ["user", "assistant", "user"]
    assert stub.bodies[0]["messages"][1]["content"].split() == ["word"] * 6
    assert "&lt;b&gt;why" in chat.conversation.value and "<b>why" not in chat.conversation.value
    assert "6 tokens, the first after" in chat.says and "max_tokens=6" in chat.says
    bundle = chat._repr_mimebundle_()
    assert WIDGET in bundle
    assert "you: What is a GPU?" in bundle["text/plain"] and "word" in bundle["text/html"]


def test_the_buttons_send_from_a_thread_and_stop_it(stub, slowly):
    chat = box(stub, max_tokens=90)
    chat.question.value = "What is a GPU?"
    chat.send.click()
    until(lambda: "word word" in chat.conversation.value, "the answer does not grow")
    assert chat.question.value == "" and chat.send.disabled and not chat.stop.disabled
    chat.question.value = "too early"
    chat.send.click()  # while it answers: nothing happens
    assert chat.question.value == "too early"
    chat.stop.click()
    until(lambda: not chat.send.disabled, "it does not stop")
    assert "stopped after" in chat.says
    assert 2 <= len(chat.messages[-1]["content"].split()) < 90  # what came is kept
    until(lambda: stub.running == 0, "the server does not end")
    assert len(stub.sent[-1].text_s) < 90, "the server worked on for nobody"
    stub.itl_ms = 1
    chat.question._handle_custom_msg({"event": "submit"}, [])  # Enter, and it goes on
    until(lambda: len(chat.messages) == 4 and not chat.send.disabled, "Enter sends nothing")
    until(lambda: "chat" not in [t.name for t in threading.enumerate()], "a thread is left")


def test_an_interrupt_keeps_what_came(stub, slowly):
    chat = box(stub, max_tokens=90)

    def interrupt():
        until(lambda: bool(chat.messages and chat.messages[-1]["content"]), "no answer")
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    chat.ask("Hi")
    assert "interrupted" in chat.says and not chat.send.disabled


@pytest.mark.parametrize(
    ("question", "words"),
    [("FAULT:die x", "broke off the answer"), ("word " * 99, "context of 100 tokens")],
)
def test_a_failure_is_one_line_and_forgotten(stub, question, words):
    chat = box(stub)
    said = chat.ask(question)
    assert words in said and "\n" not in said
    assert words in chat.says and chat.messages == []
    assert chat.ask("  ") == ""
    assert chat.ask("Hi").split() == ["word"] * 6


# -- the stop button ---------------------------------------------------------------------------


def test_outside_notebooks_there_is_no_button(stub, capsys):
    run = start_sweep(stub.url, ["Hi"], levels=(1,), requests_per_level=2, max_tokens=1)
    result = asyncio.run(watch(run))
    assert len(result.request_records) == 2 and not result.stopped
    assert "✓ load: 2/2" in capsys.readouterr().err


def test_an_interrupt_of_an_awaiting_cell_keeps_what_has_finished(stub):
    async def cell():
        run = start_sweep(stub.url, ["Hi"], levels=(1,), requests_per_level=5000, max_tokens=1)
        task = asyncio.create_task(watch(run))
        while run._progress[0] < 3:
            await asyncio.sleep(0.01)
        task.cancel()  # what the kernel does with SIGINT
        result = await task
        assert result.stopped and 3 <= len(result.request_records) < 5000

    asyncio.run(cell())


CELL = """
import threading, time
import ipywidgets
from workshop_lib.serving.benchmark import start_sweep
from workshop_lib.widgets import watch

made = []
made_by = ipywidgets.Button.on_click
ipywidgets.Button.on_click = lambda self, call: (made.append(self), made_by(self, call))
run = start_sweep({url!r}, ["Hi"], levels=(1, 2), requests_per_level=2000, max_tokens=2)

def press():
    while not made or run._progress[0] < 3:
        time.sleep(0.01)
    made[-1].click()

threading.Thread(target=press).start()
result = await watch(run)
print(result.stopped, 3 <= len(result.request_records) < 2000, made[-1].comm is None)
"""


def test_in_a_kernel_the_button_stops_it_and_says_so(stub):
    """What the front end does with a click is tested in a browser (tests/ui)."""
    cells = [nbformat.v4.new_code_cell(CELL.format(url=stub.url))]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    text = "".join(each["text"] for each in outputs if each["output_type"] == "stream")
    assert "True True True" in text
    shown = [each["data"] for each in outputs if "data" in each]
    assert shown[0]["text/plain"].startswith("stopped: ")  # in the button's place
    assert WIDGET not in shown[0]
