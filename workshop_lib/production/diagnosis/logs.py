"""What a log says of its end: which error line is the cause, and what only follows from it.

A program that fails says the cause once and its consequences many times ("Engine core
initialization failed. See root cause above"), and harmless things before. So error lines count:
what was raised, what was logged as an error, and the last lines. Of these a pattern's comes first;
when no pattern matches, the process that raised something first has the cause, in the last line of
its traceback.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from workshop_lib.production.diagnosis.patterns import Match, Table, patterns, says

__all__ = ["Reading", "last_line", "lines_of", "lines_with", "read", "shown", "still_waits"]

LAST_LINES, TAIL, LONGEST, DETAIL, RUNNING, READY = 400, 8, 500, 5, 40, 6
"""How many lines count: of a log, as its last words, characters of one, of an error's message; and
of a program that runs, or is ready."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_WHO = r"(?:\d{4}-\d\d-\d\dT[\d:.]+Z? )?((?:\([^()]{1,90}\) *|\[rank ?\d+\]:? *)*)"
_PREFIX = re.compile(
    rf"^{_WHO}"
    r"(?:(?:ERROR|CRITICAL|FATAL|WARNING|WARN|INFO|DEBUG)\b[ :]*)?"
    r"(?:\[?\d{2,4}-\d\d[-\d]*[T ][\d:.,]+(?: [A-Z] \d+ \d+)?\]?[ \t]*)?"
    r"(?:\(\w+\) )?(?:(?:ERROR|CRITICAL|FATAL|WARNING|INFO)[ \t]+)?"
    r"(?:\[?[\w./]+\.(?:py|cc|cpp|h):\d+\]?:?(?: -- )?)? ?(?:E {3,})?"
)
_LEVEL = re.compile(
    r"\b(?:ERROR|CRITICAL|FATAL)\b|(?:^|[\s)\]:])(?:[Ee]rror|[Ff]atal|FATAL|panic): |NCCL WARN|"
    r"<warn>| [ECF] \d+ \d+\]|^[EF]\d{4} |level=(?:error|fatal)|\"(?:error|fatal|panic)\"|"
    r"Check failed|\bXid\b"
)
_MILD = re.compile(r"\b(?:INFO|DEBUG|WARNING)\b| [IWD] \d+ \d+\]")
_RAISED = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Timeout|Interrupt|Failure|Fault|NotFound)"
    r"(?:\([\w.]+\))?(?::|$)|^(?:[a-z_]\w*\.)+[A-Z]\w+: |^(?:fatal error|panic): "
)
_HINTS = (
    *("rror", "xcept", "Exit", "imeout", "nterrupt", "ailure", "Fault", "NotFound"),
    *("ERROR", "CRITICAL", "FATAL", "fatal", "panic", "WARN", "<warn>", "Xid", "Check failed"),
    *(" E ", " C ", " F "),
)
"""What every line has that is raised or logged as an error; looked for first, being quick."""
_FRAME = re.compile(r"^(?:\s|Traceback |File \"|\^|During handling|The above exception)")


@dataclass(frozen=True)
class _Line:
    """An error line: its text without prefixes, with the lines of its message behind it."""

    whole: str
    raw: str
    place: int
    process: str
    raised: bool
    logged: bool
    tail: bool

    @property
    def quote(self) -> str:
        """As it is quoted; with the lines below where the message goes on there, as Pydantic's."""
        goes_on = self.raw.rstrip().endswith(",") or "validation error" in self.whole
        return shown(self.whole if goes_on else self.raw)


@dataclass(frozen=True)
class Reading:
    """What a log says of its end."""

    match: Match | None = None
    line: str = ""
    quotes: tuple[str, ...] = ()
    waits: bool = False

    @property
    def kind(self) -> str:
        """`own`, `peer`, `weak` or `consequence` as the pattern says; `unknown` without one."""
        return self.match.pattern.kind if self.match else "unknown"


def shown(line: str) -> str:
    """A line as it is quoted: of a very long one, the beginning."""
    return line[:LONGEST].strip()


@functools.lru_cache(maxsize=2048)
def lines_of(text: str) -> tuple[str, ...]:
    """The last lines of a log, without colours and empty lines."""
    plain = _ANSI.sub("", text) if "\x1b" in text else text
    lines = plain.replace("\r", "\n").split("\n")
    return tuple(line for line in lines if line and not line.isspace())[-LAST_LINES:]


@functools.lru_cache(maxsize=2048)
def _index(text: str) -> tuple[str, list[int]]:
    lines = lines_of(text)
    return "\n".join(lines), list(accumulate(len(line) + 1 for line in lines))


def lines_with(text: str, *words: str) -> list[int]:
    """The places in `lines_of` of the lines that have one of these words.

    To search the whole text for a word takes a fifth of the time of searching each line.
    """
    (whole, ends), places = _index(text), set()
    for word in words:
        at = whole.find(word)
        while at >= 0:
            place = bisect_right(ends, at)
            places.add(place)
            at = whole.find(word, ends[place])
    return sorted(places)


def last_line(text: str) -> str:
    """The last line of a log; empty for an empty one."""
    return shown(lines_of(text)[-1]) if lines_of(text) else ""


def _plain(raw: str) -> tuple[str, str]:
    """A line without its prefixes, and the process that they name."""
    found = _PREFIX.match(raw)
    return (raw[found.end() :], found[1].strip()) if found else (raw, "")


@functools.lru_cache(maxsize=2048)
def _errors(text: str) -> tuple[_Line, ...]:
    lines, found, ignored = lines_of(text), [], False
    last = range(max(0, len(lines) - TAIL), len(lines))
    for place in sorted({*lines_with(text, *_HINTS), *last}):
        raw, tail = lines[place], place in last
        plain, process = _plain(raw)
        raised = _RAISED.search(plain) is not None
        if plain.startswith("Exception ignored in") or (raised and ignored):
            ignored = not raised  # what a dying process says of its leftovers
            continue
        if _FRAME.match(plain) and (raw.startswith((" ", "\t")) or not tail):
            continue
        logged = _LEVEL.search(raw[:300]) is not None
        if raised or tail or logged:
            more = _details(lines, place) if raised else ()
            whole = " ".join([plain.strip(), *more])[:4000]
            found.append(_Line(whole, raw, place, process, raised, logged, tail))
    return tuple(found)


def _details(lines: tuple[str, ...], place: int) -> Iterator[str]:
    for raw in lines[place + 1 : place + 1 + DETAIL]:
        plain, _ = _plain(raw)
        if _MILD.search(raw[:120]) or _RAISED.search(plain) or plain.startswith("Traceback"):
            return
        yield plain.strip()


def read(text: str, facts: str = "") -> Reading:
    """Which line of a log says why its program ended, and which pattern knows it."""
    errors = _errors(text)
    matches = [(error, _known(error, facts)) for error in errors]
    raised = [e for e, m in matches if e.raised and not (m and m.pattern.kind == "consequence")]
    last = [raised[-1].quote] if raised else []
    firm = [(e, m) for e, m in matches if e.raised or e.logged or not raised]
    if own := [(e, m) for e, m in firm if m and m.pattern.kind == "own"]:
        error, match = min(own, key=lambda each: (not each[0].raised, each[0].place))
        told = match.pattern.regex.search(error.raw)  # or in the lines of its message below
        return _reading([error.quote if told else shown(error.whole), *last], match)
    peers = [(e, m) for e, m in matches if m and m.pattern.kind == "peer"]
    unknown = [e for e in raised if all(e is not peer for peer, _ in peers)]
    if unknown and not (peers and unknown[-1].place < peers[-1][0].place):
        first = [e for e in unknown if e.process == unknown[0].process]
        more = [shown(e.whole) for e in first[-1:] if len(e.whole) > len(e.quote)]
        return _reading([first[-1].quote, *more, *(e.quote for e in first[-2:-1]), *last])
    if peers:
        return _reading([peers[-1][0].quote, *last], peers[-1][1])
    if weak := list(_anywhere(text, facts, patterns("log", weak=True))):
        return _reading([shown(weak[-1][1])], weak[-1][2])
    if follows := [(e, m) for e, m in matches if m]:
        before = [e.quote for e in errors if e.place < follows[0][0].place and not e.tail]
        return _reading([follows[0][0].quote, *before[:1]], follows[0][1])
    logged = [e.quote for e in errors if e.logged] or [e.quote for e in errors[-1:]]
    return _reading([*logged[:1], last_line(text)]) if logged else Reading()


def _known(error: _Line, facts: str) -> Match | None:
    """The pattern that knows an error: by the cause that it names first, then by all of it."""
    inner = error.whole.rpartition("(Caused by ")[2] if "(Caused by " in error.whole else ""
    match = patterns("log").match(inner, facts) if inner else None
    if match is None or match.pattern.kind != "own":
        match = patterns("log").match(error.whole, facts)
    if match and match.pattern.kind == "consequence":  # what follows below it makes it none
        match = patterns("log").match(error.raw, facts)
    return match


def _reading(quotes: Iterable[str], match: Match | None = None) -> Reading:
    unique = tuple(dict.fromkeys(quotes))
    return Reading(match, unique[0], unique[:3])


def _anywhere(
    text: str, facts: str, table: Table, last: int = LAST_LINES
) -> Iterator[tuple[int, str, Match]]:
    lines = lines_of(text)
    likely = table.likely("\n".join(lines[-last:]))
    for place, raw in enumerate(lines[-last:] if likely else (), max(0, len(lines) - last)):
        if match := table.match(raw, facts, likely):
            yield place, raw, match


def still_waits(text: str, facts: str = "", *, ready: bool = False) -> Reading:
    """What a program that runs says of why it does not go on; nothing when it went on since."""
    lines = lines_of(text)
    table, last_lines = patterns("log", waits=True), READY if ready else RUNNING
    for place, raw, match in reversed(list(_anywhere(text, facts, table, last_lines))):
        if match.pattern.kind == "peer" and any(map(says("got over").search, lines[place + 1 :])):
            continue
        whole = read(text, facts) if match.pattern.kind == "consequence" else Reading()
        if whole.kind == "own":
            return whole  # what died has said why, further up
        return _reading([shown(raw), *whole.quotes[:1]], match)
    last = last_line(text)
    shapes = [re.sub(r"[\d.:]+", "#", line) for line in lines[-12:]]
    loops = bool(shapes) and shapes.count(shapes[-1]) >= 3 and "%" not in last
    if ready or not (loops or (says("waits").search(last) and not says("idles").search(last))):
        return Reading()
    failed = any(error.raised or error.logged for error in _errors(text))
    whole = read(text, facts) if failed else Reading()
    if whole.kind in ("own", "unknown") and whole.line:
        return whole  # a part of it has failed, and the rest waits for that part
    return Reading(None, last, (last,), waits=True)
