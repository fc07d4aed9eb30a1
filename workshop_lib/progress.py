"""Progress of whatever takes longer than a few seconds: one line that changes in place.

In a notebook it is one display with a bar, which becomes a short static line when the
work ends: that line is what a committed notebook keeps. In a terminal it is one line
on stderr. Elsewhere (a CI log) a plain line appears now and then, and one at the end.

```python
with Progress(label="vllm ready") as progress:
    progress.update(done=1, total=2, text="1 of 2 pods ready")

for prompt in track(prompts, "Asking"):
    ...

with Progress(label="sweep") as progress:              # callbacks (done, total, text)
    run_sweep(server, prompts, on_progress=progress.update)
```
"""

from __future__ import annotations

import html
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Progress", "format_duration", "track"]

T = TypeVar("T")

LOG_EVERY_S = 15.0
"""A log that is no terminal gets at most one line in this time, and the last one."""

REDRAW_EVERY_S = 0.2
"""A display is redrawn at most this often, however often `update` is called."""

TEXT_LENGTH = 160
BAR_LENGTH = 20


def format_duration(seconds: float) -> str:
    """Write a duration for people.

    Args:
        seconds: How long something took.

    Example:
        >>> format_duration(3.21), format_duration(31), format_duration(95)
        ('3.2 s', '31 s', '1 min 35 s')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _amount(value: float) -> str:
    """A count or an amount: digits after the point only where there are any."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def track(
    iterable: Iterable[T], label: str, *, total: float | None = None, unit: str = ""
) -> Iterator[T]:
    """Go through something with a progress display.

    Args:
        iterable: What to go through.
        label: What is being done.
        total: How many there are; default: its length, if it has one.
        unit: What is counted, for the display.

    Yields:
        The items.

    Example:
        >>> sum(track([1, 2, 3], "Adding"))
        6
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(total, label, unit=unit) as progress:
        for number, item in enumerate(iterable, start=1):
            yield item
            progress.update(done=number)


class Progress:
    """A display of how far something is, alive while its `with` block runs.

    Leaving the block leaves one line: done, failed or interrupted, after how long, and
    the last text. The display never raises because its terminal has gone away.

    Args:
        total: How much there is to do; None while that is not known.
        label: What is being done, in a few words.
        unit: What `done` and `total` count, for the display.
        tick_s: Redraw every so many seconds by a thread that ends with the block, for
            work that cannot call `update` itself. None: only `update` redraws.
        stream: Where lines go outside notebooks; default: stderr.

    Example:
        >>> with Progress(3, "Counting", stream=sys.stdout) as progress:
        ...     progress.update(done=3, text="all counted")  # doctest: +ELLIPSIS
        ✓ Counting: 3/3 · ... s · all counted
    """

    def __init__(
        self,
        total: float | None = None,
        label: str = "",
        *,
        unit: str = "",
        tick_s: float | None = None,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.done: float | None = None
        self.text = ""
        self._tick_s = tick_s
        self._stream = stream
        self._began = time.monotonic()
        self._ended: float | None = None
        self._outcome = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._display: _Display | None = None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._display = _choose_display(self._stream)
        self._draw(force=True)
        if self._tick_s is not None:
            self._thread = threading.Thread(target=self._tick, args=(self._tick_s,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if kind is None:
            self._outcome = "done"
        else:
            left = issubclass(kind, (KeyboardInterrupt, GeneratorExit))  # the latter by `break`
            self._outcome = "interrupted" if left else "failed"
        self._ended = time.monotonic()
        self._draw(force=True)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the block began; it stands still once the block has ended."""
        return (self._ended or time.monotonic()) - self._began

    def update(
        self, done: float | None = None, total: float | None = None, text: str | None = None
    ) -> None:
        """Say how far it is; what is not given stays as it was.

        Args:
            done: How much is done, in the unit of `total`.
            total: How much there is to do.
            text: The last state, one line.
        """
        with self._lock:
            self.done = self.done if done is None else done
            self.total = self.total if total is None else total
            self.text = self.text if text is None else text
        self._draw()

    def say(self, text: str) -> None:
        """Show a line of text: `update(text=…)` for callbacks that give only that.

        Args:
            text: The last state, one line.
        """
        self.update(text=text)

    def line(self, with_bar: bool = False) -> str:
        """The state as one line of text.

        Args:
            with_bar: Draw a bar before the numbers, when the total is known.
        """
        mark = {"": "", "done": "✓ ", "failed": "✗ ", "interrupted": "✗ "}[self._outcome]
        head = mark + (self.label or "working")
        if self._outcome in ("failed", "interrupted"):
            head += f" {self._outcome}"
        share = self._share()
        bar = ""
        if with_bar and not self._outcome and share is not None:
            full = round(share * BAR_LENGTH)
            bar = f"{'█' * full}{'░' * (BAR_LENGTH - full)} "
        return f"{head}: {bar}{self._numbers()}"

    def _share(self) -> float | None:
        """How much of it is done, from 0 to 1; None when the total is not known."""
        if not self.total or self.total <= 0:
            return None
        return min(1.0, max(0.0, (self.done or 0.0) / self.total))

    def _numbers(self) -> str:
        """How much, for how long, and the last text."""
        parts = []
        if self.total:
            parts.append(f"{_amount(self.done or 0)}/{_amount(self.total)} {self.unit}".rstrip())
        elif self.done is not None:
            parts.append(f"{_amount(self.done)} {self.unit}".rstrip())
        parts.append(format_duration(self.elapsed_s))
        text = " ".join(self.text.split())
        if text:
            parts.append(text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…")
        return " · ".join(parts)

    def _html(self) -> str:
        """The state for a notebook: a bar while it runs, then the line alone.

        Colours come from the page, so that it reads on dark and light ones, and the
        style is inline, because a stored notebook carries no style sheet.
        """
        base = "font-size:13px;line-height:1.6"
        if self._outcome:
            return f'<div style="{base};opacity:.75">{html.escape(self.line())}</div>'
        share = self._share()
        bar = ""
        if share is not None:
            bar = (
                '<span style="display:inline-block;vertical-align:middle;width:12em;height:.6em;'
                'margin:0 .6em;border-radius:.3em;background:rgba(128,128,128,.25)">'
                f'<span style="display:block;width:{share:.1%};height:100%;border-radius:.3em;'
                'background:#2a78d6"></span></span>'
            )
        label = html.escape(self.label or "working")
        return (
            f'<div style="{base}"><b>{label}</b>{bar or ": "}'
            f'<span style="opacity:.75">{html.escape(self._numbers())}</span></div>'
        )

    def _tick(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            self._draw()

    def _draw(self, force: bool = False) -> None:
        if self._display is not None:
            with self._lock:
                self._display.show(self, force=force, last=bool(self._outcome))


class _Display(Protocol):
    """A place where progress is shown."""

    def show(self, progress: Progress, *, force: bool, last: bool) -> None:
        """Show the state, or leave it out if one was shown a moment ago."""


class _Rare:
    """Lets a drawing through only so often."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._latest = time.monotonic()

    def is_due(self) -> bool:
        now = time.monotonic()
        if now - self._latest < self.every_s:
            return False
        self._latest = now
        return True


class _Notebook:
    """One display of a notebook's cell, updated in place."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._rare = _Rare(REDRAW_EVERY_S)

    def show(self, progress: Progress, *, force: bool, last: bool) -> None:
        from IPython.display import display

        bundle = {"text/html": progress._html(), "text/plain": progress.line()}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        elif force or self._rare.is_due():
            self._handle.update(bundle, raw=True)


class _Terminal:
    """One line of a terminal, rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rare = _Rare(REDRAW_EVERY_S / 2)

    def show(self, progress: Progress, *, force: bool, last: bool) -> None:
        if not (force or self._rare.is_due()):
            return
        line = progress.line(with_bar=True)
        if not last:
            width = shutil.get_terminal_size().columns - 1  # a full line would wrap
            line = line if len(line) <= width else line[: width - 1] + "…"
        _write(self._stream, f"\r\x1b[K{line}" + ("\n" if last else ""))


class _Log:
    """Plain lines, now and then and at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rare = _Rare(LOG_EVERY_S)

    def show(self, progress: Progress, *, force: bool, last: bool) -> None:
        if last or self._rare.is_due():
            _write(self._stream, progress.line() + "\n")


def _write(stream: TextIO, text: str) -> None:
    """Write to a stream, in its own encoding; a stream that has gone away is no error."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):  # the terminal is closed, or the pipe's reader has ended
        return


def _choose_display(stream: TextIO | None) -> _Display:
    """The display for where this runs; IPython is not imported to find out."""
    if stream is None and "IPython" in sys.modules:
        from IPython import get_ipython

        if getattr(get_ipython(), "kernel", None) is not None:
            return _Notebook()
    stream = sys.stderr if stream is None else stream
    is_terminal = not stream.closed and stream.isatty()
    return _Terminal(stream) if is_terminal else _Log(stream)
