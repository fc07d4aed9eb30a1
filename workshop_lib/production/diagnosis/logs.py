"""Reading logs: a table of lines that name a cause, looked for in what a container wrote.

A log says the root of a crash once and its consequences many times ("Engine core
initialization failed. See root cause above"). So the table's order counts, not the
line's: what is more telling stands first.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Match", "Sign", "first_error", "last_words", "repeated_line", "search"]

LAST_LINES = 400
_LONGEST = 500
_NEAR = 4
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Sign:
    """A line that names a cause.

    Attributes:
        rule: The rule it is evidence for.
        words: One of these, in lower case, is in every such line: what is looked for first.
        pattern: What the line matches; its groups fill `cause` and `fix`.
        cause: What it means; `{who}` is the container.
        fix: What mends it.
        taught_in: Where it is explained.
        running: It counts in a container that runs, too: it says that something hangs.
        vague: It says that something failed, not why.
        target: The group that holds the host, or `host:port`, that did not answer.
    """

    rule: str
    words: tuple[str, ...]
    pattern: str
    cause: str
    fix: str
    taught_in: str
    running: bool = False
    vague: bool = False
    target: str = ""


@dataclass(frozen=True)
class Match:
    """A sign that was found.

    Attributes:
        sign: Which one.
        line: The line, as it was written.
        groups: What its groups caught.
        near: The lines beside it, the nearest first.
        after: The lines after it.
    """

    sign: Sign
    line: str
    groups: dict[str, str]
    near: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def text(self, template: str, **more: str) -> str:
        """A cause or fix with the caught words filled in."""
        return template.format(**{**{k: v or "" for k, v in self.groups.items()}, **more})


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@functools.lru_cache(maxsize=2048)
def _lines(text: str) -> tuple[str, ...]:
    """The last lines, without colours and carriage returns at their ends."""
    return tuple(line for line in re.split(r"[\r\n]+", text)[-LAST_LINES:] if line.strip())


@functools.lru_cache(maxsize=2048)
def search(
    text: str, signs: tuple[Sign, ...], *, running: bool = False, last: int = LAST_LINES
) -> Match | None:
    """The first sign of a table that a log shows; of its lines, the last.

    Args:
        text: The log.
        signs: The table.
        running: Only signs that count in a container that runs.
        last: Only in so many last lines.
    """
    lines = _lines(text)[-last:]
    whole = "\n".join(lines).lower()
    for sign in signs:
        if running and not sign.running:
            continue
        if not any(word in whole for word in sign.words):
            continue
        for place in range(len(lines) - 1, -1, -1):
            line = lines[place]
            if found := _compiled(sign.pattern).search(line[:4000]):
                near = (*reversed(lines[max(0, place - _NEAR) : place]),
                        *lines[place + 1 : place + 1 + _NEAR])  # fmt: skip
                return Match(sign, shown(line, found.start()), found.groupdict(), near,
                             lines[place + 1 :])  # fmt: skip
    return None


def shown(line: str, start: int = 0) -> str:
    """A line as it is quoted: of a very long one, the part around what counts."""
    if len(line) > _LONGEST:
        begin = max(0, start - 80)
        line = line[begin : begin + _LONGEST]
    return line.strip()


_ERROR = re.compile(
    r"^\s*(?:\[?[\w.]+\]?:? )?[\w.]*(?:Error|Exception|Exit|Interrupt)\b|\b(?:FATAL|CRITICAL|ERROR|"
    r"fatal|panic|error)\b|not found|failed|refused|denied|cannot|could not|unable to|invalid",
)
_PLAIN_ERROR = re.compile(r"^[\w.]*(?:Error|Exception)(?::|$)|^(?:FATAL|panic|fatal error)\b")


def last_words(text: str) -> str:
    r"""The line of a log that most likely says why it ends: a traceback's last one, or the last.

    Example:
        >>> last_words("Traceback (most recent call last):\n  x\nValueError: no\nbye")
        'ValueError: no'
    """
    lines = _lines(text)[-60:]
    for pattern in (_PLAIN_ERROR, _ERROR):
        for place in range(len(lines) - 1, -1, -1):
            if pattern.search(_ANSI.sub("", lines[place])):
                return shown(_of_validation(lines, place))
    return shown(lines[-1]) if lines else ""


def _of_validation(lines: Sequence[str], place: int) -> str:
    """A line, or what it announces: Pydantic says what is wrong in the lines below its error."""
    if "validation error" not in lines[place]:
        return lines[place]
    below = lines[place + 1 : place + 4]
    return next((line for line in below if re.match(r"\s+(?:Value|Assertion) error, |\s+Input "
                                                    r"should ", line)), lines[place])  # fmt: skip


_PREFIX = re.compile(
    r"^(?:\([\w .=,:+-]+\) ?)*(?:(?:ERROR|CRITICAL|FATAL|WARNING|INFO)\b[ :]*)?"
    r"(?:\[?\d{2,4}-\d\d[-\d]*[T ][\d:.,]+\]? ?)?(?:\[[\w./]+:\d+\] ?)?(?:E +)?"
)
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Timeout|Interrupt)\b")


def first_error(text: str, consequences: re.Pattern[str]) -> str:
    r"""The first line of a log that raises something that is no consequence of another thing.

    Args:
        text: The log; its lines may have a prefix of a process's name, level and time.
        consequences: What lines say that only tell of another error.

    Example:
        >>> first_error("(EngineCore pid=1) ERROR 11-21 03:57:40 [core.py:8] KeyError: 'x'\n"
        ...             "RuntimeError: engine died", re.compile("died"))
        "(EngineCore pid=1) ERROR 11-21 03:57:40 [core.py:8] KeyError: 'x'"
    """
    for line in _lines(text):
        plain = _PREFIX.sub("", _ANSI.sub("", line)).lstrip()
        if _RAISED.search(plain) and not consequences.search(line):
            return shown(line)
    return ""


def repeated_line(text: str) -> str:
    r"""The line that a log ends with again and again, its numbers apart; empty when there is none.

    What waits in a loop says the same thing each time; what makes progress does not.

    Example:
        >>> repeated_line("waiting 1\nwaiting 2\nwaiting 3")
        'waiting 3'
    """
    lines: Sequence[str] = _lines(text)[-12:]
    shapes = [re.sub(r"[\d.:]+", "#", line) for line in lines]
    if not shapes or "%" in lines[-1] or shapes.count(shapes[-1]) < 3:
        return ""
    return shown(lines[-1])
