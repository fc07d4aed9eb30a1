"""Progress: one line in a terminal, few in a log, one display in a notebook."""

import io
import os
import pty
import re
import select
import threading
import time
from types import SimpleNamespace

import pytest

from workshop_lib import progress
from workshop_lib.progress import Progress, format_duration, track


@pytest.fixture
def screen():
    """A terminal: (a stream to write to, a function that reads what came out)."""
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w", encoding="utf-8")

    def read():
        """All that was written, up to the line that stays."""
        written = b""
        while not written.endswith(b"\n") or select.select([master], [], [], 0.1)[0]:
            written += os.read(master, 100_000)
        return written.decode()

    yield stream, read
    stream.close()
    os.close(master)


def until(condition, timeout_s=300):
    """Wait for what a slow machine does later."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Handle:
    """What IPython's display gives: it keeps what was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, bundle, *, raw, display_id):
        self.shown.append(bundle)
        return self

    def update(self, bundle, *, raw):
        self.shown.append(bundle)


@pytest.fixture
def notebook(monkeypatch):
    import IPython
    import IPython.display

    handle = Handle()
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": True}))
    monkeypatch.setattr(IPython.display, "display", handle)
    monkeypatch.setattr(progress, "REDRAW_EVERY_S", 0.0)
    return handle


def test_log_gets_the_last_line_only():
    log = io.StringIO()
    with Progress(2, "vllm ready", stream=log) as shown:
        shown.update(done=1, text="loading\nweights")
        assert log.getvalue() == ""
        shown.update(done=2, text="2 of 2 pods ready")
    assert re.fullmatch(r"✓ vllm ready: 2/2 · \d+\.\d s · 2 of 2 pods ready\n", log.getvalue())


def test_log_gets_a_line_now_and_then(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(progress, "LOG_EVERY_S", 10)
    log = io.StringIO()
    with Progress(label="waiting", stream=log) as shown:
        for count in range(25):
            shown.update(text=f"state {count}")
            now_s += 1
    assert [line.split(" · ")[-1] for line in log.getvalue().splitlines()] == [
        "state 10",
        "state 20",
        "state 24",
    ]


def test_terminal_shows_one_line(screen):
    stream, read = screen
    with Progress(4, "Sweep", stream=stream) as shown:
        shown.update(1, text="x" * 500)
        time.sleep(0.15)
        shown.update(2)
    written = read()
    assert written.count("\n") == 1
    assert "█████" in written
    drawn = [re.sub(r"\x1b\[K", "", part) for part in written.split("\r") if part.strip()]
    assert max(len(line) for line in drawn[:-1]) < 80, "a longer line would wrap and stay"
    assert re.match(r"✓ Sweep: 2/4", drawn[-1])


def test_terminal_without_unicode():
    log = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with Progress(1, "ASCII", stream=log):
        pass
    log.flush()
    assert b"? ASCII: 0/1" in log.buffer.getvalue()


def test_notebook_has_one_display_that_ends_as_a_line(notebook):
    with Progress(10, "<b>load", unit="requests") as shown:
        shown.update(5, 10, "half & more")
    first, half, last = notebook.shown
    assert "width:50.0%" in half["text/html"]
    assert "&lt;b&gt;load" in half["text/html"]
    assert "half &amp; more" in half["text/html"]
    assert "background" in half["text/html"]
    assert "background" not in last["text/html"], "the bar is gone"
    assert re.fullmatch(r"✓ <b>load: 5/10 requests · \d+\.\d s · half & more", last["text/plain"])
    assert "0/10" in first["text/plain"]


def test_updates_are_not_drawn_too_often(notebook, monkeypatch):
    monkeypatch.setattr(progress, "REDRAW_EVERY_S", 3600.0)
    with Progress(1000, "fast") as shown:
        for number in range(1000):
            shown.update(number)
    assert len(notebook.shown) == 2


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_an_error_is_shown_and_goes_on(error, expected):
    log = io.StringIO()
    with pytest.raises(error), Progress(label="load", stream=log) as shown:
        shown.say("the last state")
        raise error
    assert log.getvalue().startswith(f"✗ load {expected}: ")
    assert log.getvalue().endswith("the last state\n")


def test_ticking_redraws_and_its_thread_ends(notebook):
    before = set(threading.enumerate())
    with Progress(label="download", tick_s=0.05):
        until(lambda: len(notebook.shown) >= 4)
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before


def test_elapsed_stands_still_at_the_end():
    with Progress(label="x", stream=io.StringIO()) as shown:
        pass
    elapsed_s = shown.elapsed_s
    time.sleep(0.02)
    assert shown.elapsed_s == elapsed_s


def test_a_stream_that_has_gone_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with Progress(label="x", stream=stream):
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # so that closing it can flush
    stream.close()
    with Progress(label="x", stream=stream):
        pass


def test_track_counts(capsys):
    assert list(track([1, 2, 3], "Asking", unit="prompts")) == [1, 2, 3]
    assert "✓ Asking: 3/3 prompts" in capsys.readouterr().err
    assert list(track((n for n in (1, 2)), "Reading")) == [1, 2]
    assert "✓ Reading: 2 · " in capsys.readouterr().err


def test_track_that_is_left_early_says_so(capsys):
    for number in track([1, 2, 3], "Asking"):
        if number == 2:
            break
    assert "Asking interrupted: 1/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (3725, "62 min 05 s")],
)
def test_durations(seconds, expected):
    assert format_duration(seconds) == expected
