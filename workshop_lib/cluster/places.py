"""What a parameter's value must be like at the place where it is written.

A value is set as data, so it cannot become other YAML. It can still be one that no cluster
takes, or that a program takes for an option: then it is refused before anything is sent.
"""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ["problem_of", "problem_there"]

LARGEST = 2**31 - 1
"""Of most of Kubernetes' numbers."""

_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"

_RULES = (
    (
        r"/image$",
        rf"(?:[A-Za-z0-9.-]+(?::\d+)?/)?{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?"
        r"(?:@sha256:[0-9a-f]{64})?",
        "an image's name, such as organisation/name:version",
    ),
    (
        r"/nodeSelector/",
        r"[A-Za-z0-9](?:[\w.-]{0,61}[A-Za-z0-9])?",
        "a label's value: at most 63 letters, digits, '-', '_' and '.'",
    ),
    (
        r"/storageClassName$",
        rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*",
        "the name of a storage class: lower-case letters, digits, '-' and '.'",
    ),
    (
        r"/subjects/0/namespace$|/kubernetes\.io~1metadata\.name$",
        _LABEL,
        "a namespace's name: at most 63 lower-case letters, digits and '-'",
    ),
    (
        r"/\[name=MODEL(?:_FOLDER)?\]/value$",  # programs get it as an argument
        r"[/~][^\x00-\x1f\x7f]*|(?!.*\.\.)[A-Za-z0-9._][\w./@:+-]*",
        "a model: organisation/name, or the full path of a folder",
    ),
)
_COMPILED = [(re.compile(a), re.compile(b, re.ASCII), what) for a, b, what in _RULES]


def problem_of(value: Any) -> str:
    """Why a value can stand nowhere, or nothing.

    Args:
        value: A parameter's value, of the right type.

    Example:
        >>> problem_of(float("nan"))
        'is not a number'
        >>> problem_of(0.5)
        ''
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a number"
    if isinstance(value, int | float) and abs(value) > LARGEST:
        return f"is more than {LARGEST}"
    return ""


def problem_there(place: str, value: Any) -> str:
    """Why a value cannot stand at a place, or nothing.

    Args:
        place: `Kind/name:/json/pointer`, as parameters.yaml names it.
        value: The value.

    Example:
        >>> problem_there("StorageClass/a:/spec/storageClassName", "two words")
        "is not the name of a storage class: lower-case letters, digits, '-' and '.'"
    """
    for where, like, what in _COMPILED:
        if isinstance(value, str) and where.search(place) and not like.fullmatch(value):
            return f"is not {what}"
    return ""
