"""Progress: one line in a terminal, few in a log, one display in a notebook."""

import io
import os
import pty
import re
import select
import threading
from types import SimpleNamespace

import pytest

from workshop_lib import progress
from workshop_lib.progress import Progress, track


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook's one display was given, with a drawing for each update."""
    import IPython
    import IPython.display

    shown = []

    class Handle:
        def update(self, bundle, *, raw):
            shown.append(bundle)

    def display(bundle, *, raw, display_id):
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=True))
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setitem(progress.EVERY_S, "notebook", 0.0)
    return shown


def test_a_log_gets_a_line_now_and_then_and_the_last(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s))
    log = io.StringIO()
    with Progress(50, "vllm ready", stream=log) as shown:
        for count in range(50):
            shown.update(count, text=f"state\n{count}")
            now_s += 1
    assert [line.split(" · ")[-1] for line in log.getvalue().splitlines()] == [
        "state 15", "state 30", "state 45", "state 49",
    ]  # fmt: skip
    assert log.getvalue().splitlines()[-1] == "✓ vllm ready: 49/50 · 50 s · state 49"


def test_a_terminal_shows_one_line(monkeypatch):
    monkeypatch.setitem(progress.EVERY_S, "terminal", 0.0)
    master, slave = pty.openpty()
    with (
        os.fdopen(slave, "w", encoding="utf-8") as stream,
        Progress(4, "Sweep", stream=stream) as shown,
    ):
        shown.update(1, text="x" * 500)
        shown.update(2)
        shown.update(2, text="")
    written = b""
    while select.select([master], [], [], 0.1)[0] and not written.endswith(b"\n"):
        written += os.read(master, 100_000)
    os.close(master)
    text = written.decode()
    drawn = [part.removeprefix("\x1b[K") for part in text.split("\r") if part.strip()]
    assert text.count("\n") == 1 and "█████░" in text
    assert max(map(len, drawn)) < 80, "a longer line would wrap and stay"
    assert re.fullmatch(r"✓ Sweep: 2/4 · \d+\.\d s", drawn[-1])


def test_a_notebook_has_one_display_that_ends_as_a_line(notebook):
    with Progress(10, "<b>load", unit="requests") as shown:
        shown.update(5, text="half & more")
    first, half, last = notebook
    assert "0/10" in first["text/plain"]
    assert '<progress value="0.500"' in half["text/html"] and "&lt;b&gt;load" in half["text/html"]
    assert "<progress" not in last["text/html"], "the bar is gone"
    assert re.fullmatch(r"✓ <b>load: 5/10 requests · \d+\.\d s · half & more", last["text/plain"])


def test_updates_are_not_drawn_too_often(notebook, monkeypatch):
    monkeypatch.setitem(progress.EVERY_S, "notebook", 3600.0)
    with Progress(1000, "fast") as shown:
        for number in range(1000):
            shown.update(number)
    assert len(notebook) == 2


def test_ticking_redraws_and_ends_with_the_block(notebook):
    before = set(threading.enumerate())
    with Progress(label="download", tick_s=0.02):
        (ticking,) = set(threading.enumerate()) - before
        while len(notebook) < 4:
            ticking.join(0.02)
    ticking.join(60)
    assert not ticking.is_alive()
    assert "✓ download" in notebook[-1]["text/plain"]


@pytest.mark.parametrize(
    ("error", "outcome"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_an_error_is_shown_and_goes_on(error, outcome):
    log = io.StringIO()
    with pytest.raises(error), Progress(label="load", stream=log) as shown:
        shown.say("the last state")
        raise error
    assert re.fullmatch(rf"✗ load {outcome}: .* · the last state\n", log.getvalue())


def test_a_stream_that_has_gone_or_knows_no_unicode_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone, Progress(label="x", stream=gone):
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # so that closing it can flush
    with Progress(label="x", stream=gone):
        pass
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Progress(1, "ASCII", stream=ascii_only):
        pass
    assert b"? ASCII: 0/1" in ascii_only.buffer.getvalue()


def test_track_counts_and_says_when_it_was_left(capsys):
    assert list(track([1, 2, 3], "Asking")) == [1, 2, 3]
    assert list(track((n for n in (1, 2)), "Reading")) == [1, 2]
    for number in track([1, 2, 3], "Looking"):
        if number == 2:
            break
    said = capsys.readouterr().err
    assert "✓ Asking: 3/3" in said and "✓ Reading: 2 · " in said
    assert "Looking interrupted: 1/3" in said
