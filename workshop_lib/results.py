"""Results that a notebook leaves for tests and reports, and what the learner expected of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.progress import in_notebook

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

__all__ = ["RECORD_MIME", "predict", "predictions", "read_records", "record"]

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
            what JSON can hold. The notebook turns values of numpy or pandas into those
            first (`float(x)`, `x.tolist()`).
        show: Whether the learner sees it too; some results only tests need.

    Raises:
        WorkshopError: The name is not one, or JSON cannot hold the value.

    Example:
        >>> record("p95_ttft_ms", 153.2)
        p95_ttft_ms = 153.2
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise WorkshopError(
            f"record({name!r}, …): a result's name has lower-case letters, digits and '_',"
            " for example p95_ttft_ms"
        )
    plain = _RECORDED[name] = _plain(f"record({name!r}, …)", value)
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
    _SAID[name] = _plain(f"predict({name!r}, …)", expected)


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


def read_records(notebook: str | Path) -> dict[str, Any]:
    """What an executed notebook recorded: values by name."""
    try:
        content = json.loads(Path(notebook).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkshopError(f"{notebook} cannot be read as a notebook: {error}") from error
    outputs = [each for cell in content["cells"] for each in cell.get("outputs", [])]
    found = [output.get("data", {}).get(RECORD_MIME) for output in outputs]
    return {kept["name"]: kept["value"] for kept in found if kept is not None}


def _plain(what: str, value: Any) -> Any:
    """A copy of a value as JSON holds it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise WorkshopError(
            f"{what}: JSON cannot hold it ({error}); record a number, text, list or dict"
            " (float(x), x.tolist(), x.to_dict()), and None for 'unknown'"
        ) from error


def _readable(value: Any) -> str:
    """A value as one short line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
