"""Progress of whatever takes longer than a few seconds: one line that changes in place.

In a notebook it has a bar; in a terminal it is on stderr; a log gets a line now and then. The
line that is left at the end is what a committed notebook keeps.
"""

from __future__ import annotations

import html
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Progress", "format_duration", "track"]

T = TypeVar("T")

EVERY_S = {"notebook": 0.2, "terminal": 0.1, "log": 15.0}
"""How often the line is drawn at most, however often `update` is called."""

TEXT_LENGTH, BAR_LENGTH = 160, 20


def format_duration(seconds: float) -> str:
    """Write a duration for people.

    Example:
        >>> format_duration(3.21), format_duration(31), format_duration(95)
        ('3.2 s', '31 s', '1 min 35 s')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def track(iterable: Iterable[T], label: str, *, total: float | None = None) -> Iterator[T]:
    """Go through something with a progress display; `total` is its length, if it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(total, label) as progress:
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
        tick_s: Redraw every so many seconds, for work that cannot call `update` itself.
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
        self.total, self.label, self.unit, self.text = total, label or "working", unit, ""
        self.done: float | None = None
        self._stream = sys.stderr if stream is None else stream
        terminal = not self._stream.closed and self._stream.isatty()
        self._place = "terminal" if terminal else "log"
        if stream is None and in_notebook():
            self._place = "notebook"
        self._began = self._drawn = time.monotonic()
        self._ended: float | None = None
        self._outcome, self._tick_s = "", tick_s
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._handle: Any = None

    def __enter__(self) -> Self:
        self._began = self._drawn = time.monotonic()
        self._draw(force=self._place != "log")
        if self._tick_s is not None:
            threading.Thread(target=self._tick, args=(self._tick_s,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._ended, self._outcome = time.monotonic(), "done"
        if kind is not None:
            left = issubclass(kind, (KeyboardInterrupt, GeneratorExit))  # the latter by `break`
            self._outcome = "interrupted" if left else "failed"
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
        """Show a line of text: `update(text=…)` for callbacks that give only that."""
        self.update(text=text)

    def _share(self) -> float | None:
        """How much of it is done, from 0 to 1; None when the total is not known."""
        return min(1.0, max(0.0, (self.done or 0.0) / self.total)) if self.total else None

    def _numbers(self) -> str:
        """How much, for how long, and the last text."""
        parts = [format_duration(self.elapsed_s)]
        if self.total or self.done is not None:
            amounts = [self.done or 0, self.total] if self.total else [self.done or 0]
            written = (f"{x:,.0f}" if float(x).is_integer() else f"{x:,.1f}" for x in amounts)
            parts.insert(0, f"{'/'.join(written)} {self.unit}".rstrip())
        if text := " ".join(self.text.split()):
            parts.append(text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…")
        return " · ".join(parts)

    def _line(self) -> str:
        mark = {"": "", "done": "✓ "}.get(self._outcome, "✗ ")
        verb = f" {self._outcome}" if self._outcome in ("failed", "interrupted") else ""
        return f"{mark}{self.label}{verb}: {self._numbers()}"

    def _line_with_bar(self) -> str:
        share = self._share()
        full = round((share or 0) * BAR_LENGTH)
        bar = "" if share is None else f"{'█' * full}{'░' * (BAR_LENGTH - full)} "
        return f"{self.label}: {bar}{self._numbers()}"

    def _html(self) -> str:
        """A bar while it runs, then the line alone; colours come from the page."""
        style = "font-size:13px;line-height:1.6"
        if self._outcome:
            return f'<div style="{style};opacity:.75">{html.escape(self._line())}</div>'
        share, numbers = self._share(), html.escape(self._numbers())
        bar = ": " if share is None else f' <progress value="{share:.3f}" max="1"></progress> '
        return f'<div style="{style}"><b>{html.escape(self.label)}</b>{bar}{numbers}</div>'

    def _tick(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            self._draw()

    def _draw(self, force: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if not force and (self._outcome or now - self._drawn < EVERY_S[self._place]):
                return
            self._drawn = now
            if self._place == "notebook":
                self._show_in_notebook()
            elif self._place == "terminal" and not self._outcome:
                width = shutil.get_terminal_size().columns - 1  # a full line would wrap
                line = self._line_with_bar()
                line = line if len(line) <= width else line[: width - 1] + "…"
                _write(self._stream, f"\r\x1b[K{line}")
            else:
                start = "\r\x1b[K" if self._place == "terminal" else ""
                _write(self._stream, f"{start}{self._line()}\n")

    def _show_in_notebook(self) -> None:
        from IPython.display import display

        bundle = {"text/html": self._html(), "text/plain": self._line()}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel; IPython is not imported to find out."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def _write(stream: TextIO, text: str) -> None:
    """Write to a stream, in its own encoding; a stream that has gone away is no error."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):  # the terminal is closed, or the pipe's reader has ended
        return
