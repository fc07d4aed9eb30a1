"""Reading on where a log stream broke off: every line once, none twice.

A stream can only be resumed by time, in whole seconds (`sinceTime` is truncated), and
timestamps repeat. So it is asked for again from the beginning of the last line's second,
and what was given since then is skipped: the resumed stream repeats exactly those lines,
in their order, as long as the file is the same. If the kubelet has rotated the file in
between, its beginning is missing; then the lines are skipped by their time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import repeat
from operator import itemgetter

__all__ = ["Position"]

SECOND = len("2026-11-21T04:52:49")

# Logs have millions of lines: what is done for each is done by map(), without bytecode.
_second_of = itemgetter(slice(0, SECOND))
_text_of = itemgetter(2)


@dataclass
class _Second:
    """What was given of one second's lines.

    Attributes:
        lines: How many.
        first: The first of them, whole.
        at: Its number in the stream.
    """

    lines: int
    first: str
    at: int


@dataclass
class Position:
    """How far a container's log was read, and what to skip after a resumption.

    Example:
        >>> stamp = "2026-11-21T04:52:49.261385837Z"
        >>> position = Position()
        >>> position.new([f"{stamp} a", f"{stamp} b"])
        ['a', 'b']
        >>> position.resume()
        '2026-11-21T04:52:49Z'
        >>> position.new([f"{stamp} a", f"{stamp} b", f"{stamp} c"])
        ['c']
    """

    _seconds: dict[str, _Second] = field(default_factory=dict)
    _last: str = ""
    _given: int = 0
    _seeking: str = ""
    _skip: int = 0

    def resume(self) -> str | None:
        """The `sinceTime` to ask for next, or None when nothing was read; sets what to skip."""
        if not self._last:
            return None
        second = self._last[:SECOND]
        # Just after a second's beginning, a line of the one before may still come.
        since = _second_before(second) if self._last[SECOND : SECOND + 2] == ".0" else second
        window = {key: each for key, each in self._seconds.items() if key >= since}
        self._skip = sum(each.lines for each in window.values())
        self._seeking = min(window.values(), key=lambda each: each.at).first
        return since + _zone(self._last)

    def new(self, lines: Iterable[str]) -> list[str]:
        """The texts of the lines that were not given yet, without their timestamps.

        Args:
            lines: Whole lines as the stream brought them, each with its timestamp.
        """
        if self._skip:
            lines = self._unseen(lines)
        lines = lines if isinstance(lines, list) else list(lines)
        if not lines:
            return []
        counts = Counter(map(_second_of, lines))
        if not all(second[10:11] == "T" for second in counts):
            lines = self._timed(lines)
            counts = Counter(map(_second_of, lines))
        self._note(lines, counts)
        return list(map(_text_of, map(str.partition, lines, repeat(" "))))

    def _timed(self, lines: list[str]) -> list[str]:
        """Lines without a timestamp (a word of the kubelet's own) get the one before them."""
        timed, last = [], self._last or "1970-01-01T00:00:01.000000000Z"
        for line in lines:
            if line[10:11] == "T":
                last = line.partition(" ")[0]
            timed.append(line if line[10:11] == "T" else f"{last} {line}")
        return timed

    def _unseen(self, lines: Iterable[str]) -> list[str]:
        fresh = []
        for line in lines:
            if not self._skip:
                fresh.append(line)
            elif self._seeking:
                if line == self._seeking:
                    self._seeking = ""
                    self._skip -= 1
                elif line.partition(" ")[0] > self._last:  # rotated: the first one is gone
                    self._seeking, self._skip = "", 0
                    fresh.append(line)
            else:
                self._skip -= 1
        return fresh

    def _note(self, lines: list[str], counts: Mapping[str, int]) -> None:
        """Remember how many lines of each second came; only the last two can come again."""
        for second, count in counts.items():
            known = self._seconds.get(second)
            if known is None:
                at = next(n for n, line in enumerate(lines) if line.startswith(second))
                self._seconds[second] = _Second(count, lines[at], self._given + at)
            else:
                known.lines += count
        self._given += len(lines)
        last = max(lines[-1].partition(" ")[0], self._last)
        if last[:SECOND] != self._last[:SECOND]:
            since = _second_before(last[:SECOND])
            self._seconds = {key: s for key, s in self._seconds.items() if key >= since}
        self._last = last


def _second_before(second: str) -> str:
    when = datetime.fromisoformat(second) - timedelta(seconds=1)
    return when.isoformat()


def _zone(stamp: str) -> str:
    """The time zone at a timestamp's end: `Z`, or an offset such as `+02:00`."""
    return "Z" if stamp.endswith("Z") else stamp[-6:]
