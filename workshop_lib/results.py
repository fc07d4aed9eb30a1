"""Results that a notebook leaves for tests and reports.

`record("p95_ttft_ms", 153.2)` shows the value in the cell's output and keeps it there
in a form that programs read, so that an executed notebook carries its own results:
`make run` gathers them in `build/results.json`, and tests assert them.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.errors import WorkshopError

__all__ = ["RECORD_MIME", "in_notebook", "read_records", "record"]

RECORD_MIME = "application/vnd.workshop.record+json"
"""The MIME type of a recorded value in a cell's output: `{"name": …, "value": …}`."""

TEXT_LENGTH = 200


def record(name: str, value: Any) -> None:
    """Show a value in the cell's output and keep it there for tests and reports.

    Recording a name again replaces its value. In a script the value is only printed.

    Args:
        name: The result's name, with its unit: `p95_ttft_ms`.
        value: A number, text, truth value or None, or lists and dictionaries of these:
            what JSON can hold. Values of numpy or pandas are turned into those first
            (`float(x)`, `x.tolist()`), by the notebook, which knows what they mean.

    Raises:
        WorkshopError: The name is not one, or JSON cannot hold the value.

    Example:
        >>> record("p95_ttft_ms", 153.2)
        p95_ttft_ms = 153.2
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise WorkshopError(
            f"record({name!r}, …): a result's name has lower-case letters, digits and '_',"
            " for example p95_ttft_ms"
        )
    reason = _refusal(value)
    if reason:
        raise WorkshopError(f"record({name!r}, …): {reason}")
    plain = json.loads(json.dumps(value, allow_nan=False))  # a copy; numpy's float is a float
    shown = f"{name} = {_readable(plain)}"
    if in_notebook():
        from IPython.display import display

        bundle = {RECORD_MIME: {"name": name, "value": plain}, "text/plain": shown}
        display(bundle, raw=True)
    else:
        print(shown)


def read_records(notebook: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Read what an executed notebook recorded.

    Args:
        notebook: An `.ipynb` file, or its content.

    Returns:
        The values by name, in the order in which the names were first recorded.

    Raises:
        WorkshopError: The file is no notebook.

    Example:
        >>> output = {"data": {RECORD_MIME: {"name": "answer", "value": 42}}}
        >>> read_records({"cells": [{"outputs": [output]}]})
        {'answer': 42}
    """
    if not isinstance(notebook, Mapping):
        try:
            notebook = json.loads(Path(notebook).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WorkshopError(f"{notebook} cannot be read as a notebook: {error}") from error
    if not isinstance(notebook, Mapping) or not isinstance(notebook.get("cells"), list):
        raise WorkshopError("this is no notebook: it has no list of cells")
    found: dict[str, Any] = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            kept = output.get("data", {}).get(RECORD_MIME)
            if kept is not None:
                found[kept["name"]] = kept["value"]
    return found


def _refusal(value: Any) -> str:
    """Why JSON cannot hold a value as it is, or nothing."""
    if value is None or isinstance(value, (bool, int, str)):
        return ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"JSON has no {value}; record None for 'unknown'"
    if isinstance(value, (list, tuple)):
        return next(filter(None, map(_refusal, value)), "")
    if isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            return f"a dictionary's keys must be text, and {odd[0]!r} is not; use str(key)"
        return next(filter(None, map(_refusal, value.values())), "")
    kind = type(value)
    return (
        f"JSON cannot hold a {kind.__module__}.{kind.__qualname__};"
        " record a number, text, list or dict (float(x), x.tolist(), x.to_dict())"
    )


def _readable(value: Any) -> str:
    """A value as one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def in_notebook() -> bool:
    """Whether this runs in a notebook's kernel; IPython is not imported to find out."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
