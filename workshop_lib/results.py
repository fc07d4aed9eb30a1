"""Results that a notebook leaves for tests and reports.

`record("p95_ttft_ms", 153.2)` shows the value in the cell's output and keeps it there
in a form that programs read, so that an executed notebook carries its own results:
`make run` gathers them in `build/results.json`, and tests assert them.

`predict("p95_ttft_ms", 200)` keeps what the learner expects of such a result, and
`predictions()` shows it beside what the run said.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

__all__ = [
    "RECORD_MIME",
    "in_notebook",
    "predict",
    "predictions",
    "read_records",
    "record",
]

RECORD_MIME = "application/vnd.workshop.record+json"
"""The MIME type of a recorded value in a cell's output: `{"name": …, "value": …}`."""

TEXT_LENGTH = 200

_SAID: dict[str, Any] = {}
_RECORDED: dict[str, Any] = {}
"""What this kernel's learner predicted, and what it recorded."""


def record(name: str, value: Any, *, show: bool = True) -> None:
    """Show a value in the cell's output and keep it there for tests and reports.

    Recording a name again replaces its value. In a script the value is only printed.

    Args:
        name: The result's name, with its unit: `p95_ttft_ms`.
        value: A number, text, truth value or None, or lists and dictionaries of these:
            what JSON can hold. Values of numpy or pandas are turned into those first
            (`float(x)`, `x.tolist()`), by the notebook, which knows what they mean.
        show: Whether the learner sees it too; some results only tests need.

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
    _RECORDED[name] = plain
    shown = f"{name} = {_readable(plain)}"
    if in_notebook():
        from IPython.display import display

        text = shown if show else ""
        display({RECORD_MIME: {"name": name, "value": plain}, "text/plain": text}, raw=True)
    elif show:
        print(shown)


def predict(name: str, expected: Any = None) -> None:
    """Keep what you expect of a result, before you run what records it.

    Nothing waits for it: with None the prediction is left open.

    Args:
        name: The name under which the result will be recorded.
        expected: A number, a word, or a list of these.

    Raises:
        WorkshopError: JSON cannot hold the value.

    Example:
        >>> predict("p95_ttft_ms", 200)
    """
    reason = _refusal(expected)
    if reason:
        raise WorkshopError(f"predict({name!r}, …): {reason}")
    _SAID[name] = expected


def predictions() -> Styler:
    """Show every prediction of this notebook beside the result that was recorded.

    Example:
        >>> predict("nodes", 2)
        >>> record("nodes", 2)
        nodes = 2
        >>> "nodes" in predictions().to_html()
        True
    """
    import pandas as pd

    from workshop_lib.tables import text_table

    rows = [
        {
            "result": name,
            "you expected": "not entered" if expected is None else _readable(expected),
            "the run said": _readable(_RECORDED[name]) if name in _RECORDED else "not run yet",
        }
        for name, expected in _SAID.items()
    ]
    return text_table(pd.DataFrame(rows, columns=["result", "you expected", "the run said"]))


def shared_predictions() -> str:
    """The predictions that were entered, each beside its result, as one short line."""
    known = {name: said for name, said in _SAID.items() if said is not None and name in _RECORDED}
    return "; ".join(f"{n}: {_readable(s)} -> {_readable(_RECORDED[n])}" for n, s in known.items())


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
