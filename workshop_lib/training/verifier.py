"""Comparing mathematical values in a process of its own, with a time and a memory limit.

`math-verify` works out what a model wrote, and a model writes anything: a tower of
powers occupies Python inside one multiplication, where no signal reaches it. So the
comparison runs in another process, which is killed when it takes too long and is
started anew for the next answer.

The file is also that process's program and uses nothing of the workshop.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Verifier", "shared_verifier"]

_START_LIMIT_S = 180.0
_MEMORY_LIMIT_BYTES = 2 * 2**30
_LONGEST_NUMBER_DIGITS = 4000


class Verifier:
    """A process that compares values, started with the first comparison.

    Example:
        >>> with Verifier() as verifier:
        ...     verifier.check("The sum is 21.", "21", time_limit_s=5)
        True
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._unread = b""

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(
        self,
        completion: str,
        answer: str,
        *,
        time_limit_s: float,
        accept_unevaluated: bool = False,
    ) -> bool:
        """Whether a text ends in the right value.

        False also for what cannot be read, takes longer than the limit or needs too much memory;
        an error where `answer` cannot be read. `accept_unevaluated`: whether a sum or product left
        to do counts as its value.
        """
        request = {
            "completion": completion,
            "answer": answer,
            "accept_unevaluated": accept_unevaluated,
        }
        with self._lock:
            reply = self._ask(request, time_limit_s)
        if reply.get("unreadable_answer"):
            from workshop_lib.errors import WorkshopError

            raise WorkshopError(f"the answer {answer[:60]!r} is no value that math-verify can read")
        return bool(reply.get("right"))

    def close(self) -> None:
        """Stop the process; a later check starts another."""
        with self._lock:
            self._stop()

    def _ask(self, request: dict[str, Any], time_limit_s: float) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._stop()
            return {}
        reply = self._read(time_limit_s)
        if reply is None:
            self._stop()
        return reply or {}

    def _start(self) -> None:
        self._stop()
        # -P: the program's folder is no place to import from, its modules have common names.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._read(_START_LIMIT_S) is None:
            self._stop()
            from workshop_lib.errors import WorkshopError

            raise WorkshopError(
                "math-verify could not be started; try"
                f' `{Path(sys.executable).name} -c "import math_verify"`'
            )

    def _read(self, time_limit_s: float) -> dict[str, Any] | None:
        """One line of the process, or None when it is late or gone."""
        assert self._process is not None and self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        until = time.monotonic() + time_limit_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(pipe, 65536) if ready else b""
            if not piece:
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _stop(self) -> None:
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@cache
def shared_verifier() -> Verifier:
    """The verifier that all rewards of this process share; stopped when Python ends."""
    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier


@cache
def _answer(answer: str) -> list[Any]:
    """In the other process: the right answer, read once.

    Without a time limit of its own: an answer that is read slowly, on a busy machine, is not one
    that cannot be read. The asker's limit holds.
    """
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    found: list[Any] = parse(
        f"\\boxed{{{answer}}}", [LatexExtractionConfig()], parsing_timeout=None
    )
    return found


def _build_parsers() -> None:
    """In the other process: what the first text costs, seconds, before a request's clock runs.

    Without a limit: on a busy machine the parsers would else be left half built, and the first
    right answer be taken for a wrong one.
    """
    from math_verify import parse
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    parse("$\\frac{1}{2}$", [ExprExtractionConfig(), LatexExtractionConfig()], parsing_timeout=None)
    _compare("$\\frac{1}{2}$", "0.5", accept_unevaluated=False)


def _compare(completion: str, answer: str, *, accept_unevaluated: bool) -> dict[str, bool]:
    """In the other process: read both, and compare."""
    from math_verify import parse, verify
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    # What NeMo RL's math environment extracts, so that both judge alike.
    right = _answer(answer)
    if not right:
        return {"unreadable_answer": True}
    found = parse(completion, [ExprExtractionConfig(), LatexExtractionConfig()], parsing_timeout=2)
    if not accept_unevaluated and not any(map(_work_left, right)):
        found = [] if any(map(_work_left, found)) else found
    return {"right": bool(found) and bool(verify(right, found, timeout_seconds=2))}


def _work_left(value: Any) -> bool:
    """Whether a value still has a sum or a product of plain numbers to work out."""
    from sympy import Add, Basic, Mul, preorder_traversal

    if not isinstance(value, Basic):
        return False
    for part in preorder_traversal(value):
        # In 42/2 the second factor is 1/2: a fraction. In 3 * 7 both are whole.
        plain = [a for a in part.args if a.is_Integer and abs(a) != 1]
        if isinstance(part, Add) and all(a.is_rational for a in part.args) and len(part.args) > 1:
            return True
        if isinstance(part, Mul) and len(plain) > 1:
            return True
    return False


def _serve() -> None:
    """The other process's program: a request a line in, a reply a line out."""
    import logging
    import resource

    logging.disable(logging.CRITICAL)
    sys.set_int_max_str_digits(_LONGEST_NUMBER_DIGITS)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no reply

    from math_verify.errors import TimeoutException

    _build_parsers()

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = _compare(**json.loads(line))
        # Whatever a text does to the parser, it is not the right answer. TimeoutException
        # is no Exception; neither is math-verify's recursion into the interpreter's limit.
        except (Exception, TimeoutException):  # noqa: BLE001
            reply = {"right": False}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
