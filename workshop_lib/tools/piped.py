"""Commands whose output somebody may stop reading, as `| head` does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

__all__ = ["piped"]

SIGPIPE_STATUS = 141
"""What a shell reports for a program that a closed pipe ended: 128 + SIGPIPE."""


def piped(main: Callable[[], int]) -> int:
    """Run a command's `main`, and end without a word when nobody reads its output any more.

    Python writes what is left of stdout when it exits, and would complain then as well: so
    stdout leads nowhere from there on (as the manual of Python's `signal` advises).

    Args:
        main: The command; it prints, and returns its exit code.

    Returns:
        Its exit code, or 141 when the reader has gone.

    Example:
        >>> piped(lambda: 0)
        0
    """
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGPIPE_STATUS
