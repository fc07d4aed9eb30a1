"""Reading on where a log stream broke off: every line once, none twice.

A stream can only be resumed by time, in whole seconds (`sinceTime` is truncated), and
timestamps repeat. So it is asked for again from the beginning of the last line's second,
and what was given since then is skipped: the resumed stream repeats exactly those lines,
in their order, as long as the file is the same. If the kubelet has rotated the file in
between, its beginning is missing; then the lines are skipped by their time. If even the last
line is missing, others may be too: only the newest file is ever given.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import repeat
from operator import itemgetter

__all__ = ["Position"]

SECOND = len("2026-11-21T04:52:49")
DAY = slice(len("2026-11-21T"))

# Logs have millions of lines: what is done for each is done by map(), without bytecode.
_second_of = itemgetter(slice(0, SECOND))
_tenth_of = itemgetter(slice(10, 11))
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

    Attributes:
        gap: Set when a resumed stream began after what was read last, which it should have
            repeated: between which times lines may be missing. The reader clears it.

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
    _known: bool = False
    gap: str = ""

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
        self._known = False
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
        if self._go_up(lines):
            self._note_in_order(lines)
        else:
            lines = self._timed(lines)
            self._note(lines)
        return list(map(_text_of, map(str.partition, lines, repeat(" "))))

    def _go_up(self, lines: list[str]) -> bool:
        """Whether all have timestamps, of one day, none before another's: the usual case.

        In sorted lines whose first and last begin alike all begin alike; and sorting what is
        sorted takes a tenth of the time of looking at each.
        """
        first, last = lines[0], lines[-1]
        return (
            first[DAY] == last[DAY]
            and first[10:11] == "T"
            and self._last <= first
            and lines == sorted(lines)
        )

    def _timed(self, lines: list[str]) -> list[str]:
        """Lines without a timestamp (a word of the kubelet's own) get the one before them."""
        if all(map("T".__eq__, map(_tenth_of, lines))):
            return lines
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
                elif (stamp := line.partition(" ")[0]) > self._last:  # the first one is gone
                    if not self._known:
                        self.gap = f"{self._last} and {stamp}"
                    self._seeking, self._skip = "", 0
                    fresh.append(line)
                else:
                    self._known = True  # rotated, but not beyond what was read
            else:
                self._skip -= 1
        return fresh

    def _note_in_order(self, lines: list[str]) -> None:
        """Remember how many lines of the last two seconds came; only they can come again."""
        second = lines[-1][:SECOND]
        for each in (_second_before(second), second):
            start = bisect_left(lines, each)
            if count := bisect_right(lines, each, start, key=_second_of) - start:
                self._add(each, count, lines[start], start)
        self._passed(lines)

    def _note(self, lines: list[str]) -> None:
        """The same of lines in any order."""
        for second, count in Counter(map(_second_of, lines)).items():
            known = second in self._seconds
            at = 0 if known else next(n for n, x in enumerate(lines) if x.startswith(second))
            self._add(second, count, lines[at], at)
        self._passed(lines)

    def _add(self, second: str, count: int, first: str, at: int) -> None:
        known = self._seconds.setdefault(second, _Second(0, first, self._given + at))
        known.lines += count

    def _passed(self, lines: list[str]) -> None:
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
