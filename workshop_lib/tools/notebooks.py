"""`make notebooks`: regenerates the outputs that are committed with the notebooks.

```
python -m workshop_lib.tools.notebooks             every notebook, solutions too
python -m workshop_lib.tools.notebooks 02          one of them
python -m workshop_lib.tools.notebooks --check     only looks at them
```

Each is executed from a clean kernel with its own parameters, in the local cluster's
state `notebooks`. What papermill and the machine left in the copy is stripped, and it
replaces the notebook only if every cell went well and nothing in it is only true here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.execute import (
    INJECTED_TAG,
    MARKER_TAG,
    execute,
    find_notebooks,
    parameters_of,
    read_notebook,
)
from workshop_lib.tools.kernels import CHECKOUT
from workshop_lib.tools.report import IMAGES, without_interactive
from workshop_lib.tools.stopping import (
    Interrupted,
    alone,
    say,
    signals_interrupt,
    stop_everything,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["main", "normalize", "problems"]

STATE = "notebooks"

MAX_CELLS = 40
MAX_LINES = 25

KEPT_CELL_METADATA = ("tags", "jupyter", "slideshow")
CHECKED_TAG = "nbval-check-output"
RAISES_TAG = "raises-exception"

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""What every committed notebook says of its kernel: nothing of the machine it ran on."""


def normalize(notebook: Any) -> Any:
    """Strip an executed notebook of what papermill and this machine put into it.

    Execution counts become 1 to n; widgets go, because they show nothing without a
    kernel, and the static picture that each carries stays.

    Args:
        notebook: The executed notebook's content, which is changed.

    Returns:
        The same notebook.

    Example:
        >>> normalize({"metadata": {"papermill": {}}, "cells": []})["metadata"]["language_info"]
        {'name': 'python'}
    """
    notebook["metadata"] = json.loads(json.dumps(METADATA))
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if not {INJECTED_TAG, MARKER_TAG} & set(cell["metadata"].get("tags", []))
    ]
    count = 0
    for cell in notebook["cells"]:
        metadata = cell["metadata"]
        cell["metadata"] = {key: metadata[key] for key in KEPT_CELL_METADATA if metadata.get(key)}
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = without_interactive(cell["outputs"])
        if cell["execution_count"] is None:
            continue  # an empty cell, or one that was not run: `problems` tells
        count += 1
        cell["execution_count"] = count
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                output["execution_count"] = count
    return notebook


def machine_paths(root: Path = CHECKOUT) -> dict[str, str]:
    """List the paths that mean nothing on another machine, by what they are.

    Args:
        root: The checkout.
    """
    paths = {
        "this checkout": str(root.resolve()),
        "the home folder": str(Path.home()),
        "this environment": sys.prefix,
    }
    return {what: path for what, path in paths.items() if path != "/"}


def problems(notebook: Mapping[str, Any], paths: Mapping[str, str]) -> list[str]:
    """Find what keeps a notebook from being committed.

    Args:
        notebook: The notebook's content.
        paths: What its outputs must not hold, by what it is (`machine_paths`).

    Returns:
        One line for each problem.

    Example:
        >>> problems({"metadata": {}, "cells": []}, {})[0]
        'it has no outputs: run `make notebooks`'
    """
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = []
    if len(cells) > MAX_CELLS:
        found.append(f"it has {len(cells)} cells; {MAX_CELLS} is the most")
    counts = [cell["execution_count"] for cell in code if "".join(cell["source"]).strip()]
    if counts != list(range(1, len(counts) + 1)):
        found.append(
            f"its cells ran as {_listed(counts)}, not as 1 to {len(counts)}: run `make notebooks`"
        )
    if not any(cell["outputs"] for cell in code):
        found.append("it has no outputs: run `make notebooks`")
    if "papermill" in notebook["metadata"] or "widgets" in notebook["metadata"]:
        found.append("its metadata holds papermill's notes or widgets: run `make notebooks`")
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        found.append(f"{len(tagged)} cells are tagged `parameters`; it must be one")
    for name in parameters_of(notebook):
        if not name.isupper():
            found.append(f"the parameter {name} is not in upper case")
    for number, cell in enumerate(code, start=1):
        found += [f"cell {number}: {problem}" for problem in _cell_problems(cell, paths)]
    return found


def _listed(counts: Sequence[int | None]) -> str:
    """Execution counts, the first twelve of them."""
    shown = ", ".join("-" if count is None else str(count) for count in counts[:12])
    return shown + (", …" if len(counts) > 12 else "")


def _cell_problems(cell: Mapping[str, Any], paths: Mapping[str, str]) -> list[str]:
    """What is wrong with one code cell."""
    tags = cell["metadata"].get("tags", [])
    found = []
    lines = len("".join(cell["source"]).strip().splitlines())
    if lines > MAX_LINES:
        found.append(f"{lines} lines of code; {MAX_LINES} is the most")
    if INJECTED_TAG in tags or "papermill" in cell["metadata"]:
        found.append("papermill's notes: run `make notebooks`")
    if CHECKED_TAG in tags and not cell["outputs"]:
        found.append(f"tagged {CHECKED_TAG}, and there is no output to check")
    for output in cell["outputs"]:
        if output["output_type"] == "error" and RAISES_TAG not in tags:
            found.append(f"it failed: {output['ename']}: {output['evalue'][:200]}")
        text = _text_of(output)
        for what, path in paths.items():
            at = re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])", text)
            if at:
                shown = " ".join(text[max(0, at.start() - 30) : at.end() + 30].split())
                found.append(f"its output names {what}, which is only true here: …{shown}…")
                break
    return found


def _text_of(output: Mapping[str, Any]) -> str:
    """Everything in an output that people read."""
    data = output.get("data", {})
    parts = [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
    for mime, value in data.items():
        if mime == IMAGES[2] or mime not in IMAGES:
            parts.append(value if isinstance(value, str) else json.dumps(value))
    return "\n".join("".join(part) for part in parts)


def _counted(sources: Sequence[Path]) -> str:
    return "1 notebook is" if len(sources) == 1 else f"{len(sources)} notebooks are"


def check(root: Path, sources: Sequence[Path]) -> int:
    """Look at notebooks as they are committed, and print what is wrong.

    Args:
        root: The checkout.
        sources: The notebooks.

    Returns:
        The exit status: 1 if anything is wrong.
    """
    paths = machine_paths(root)
    count = 0
    for source in sources:
        for problem in problems(read_notebook(source), paths):
            say(f"{source.name}: {problem}", error=True)
            count += 1
    if not count:
        say(f"{_counted(sources)} fit to be committed.")
    return int(count > 0)


def regenerate(root: Path, source: Path, label: str = "") -> int:
    """Execute one notebook and, if all is well, replace its outputs.

    Args:
        root: The checkout.
        source: The notebook.
        label: Shown before its name.

    Returns:
        The exit status: 1 if it was left as it was.
    """
    import nbformat

    build = root / "build"
    copy = build / STATE / source.name
    outcome = execute(source, copy, state=STATE, build=build, label=label)
    if outcome.failure is not None:
        say(f"{outcome.explain()}; {source.name} is left as it was", error=True)
        return 1
    notebook = normalize(read_notebook(copy))
    found = problems(notebook, machine_paths(root))
    for problem in found:
        say(f"{source.name}: {problem}; it is left as it was", error=True)
    if found:
        return 1
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    scratch = source.with_name(f".{source.name}.new")
    scratch.write_text(text, encoding="utf-8")
    scratch.chmod(source.stat().st_mode & 0o777)
    scratch.replace(source)
    return 0


def main(
    arguments: Sequence[str] | None = None,
    *,
    root: Path = CHECKOUT,
    stop: Callable[[str], str] = stop_everything,
) -> int:
    """Run the command line; see the module's docstring.

    Args:
        arguments: The command line; default: the process's.
        root: Where `notebooks/` and `build/` lie.
        stop: Stops what a state runs; returns what went wrong, or nothing.

    Returns:
        The exit status: 0, 1 after a failure, 128 + signal after a signal.
    """
    parser = argparse.ArgumentParser(
        prog="python -m workshop_lib.tools.notebooks",
        description="Regenerate the outputs that are committed with the notebooks.",
    )
    parser.add_argument("names", nargs="*", help="only these notebooks: 01, 02_vllm_serving")
    parser.add_argument("--check", action="store_true", help="only look, change nothing")
    wishes = parser.parse_args(arguments)
    with signals_interrupt():
        try:
            sources = find_notebooks(root / "notebooks", wishes.names, solutions=True)
            if wishes.check:
                return check(root, sources)
            with alone(root / "build", STATE):
                return _regenerate_all(root, sources, stop)
        except WorkshopError as error:
            say(f"{type(error).__name__}: {error}", error=True)
            return 1
        except Interrupted as signalled:
            say("Interrupted: the notebook that ran is left as it was.", error=True)
            return signalled.exit_status


def _regenerate_all(root: Path, sources: Sequence[Path], stop: Callable[[str], str]) -> int:
    """One after the other, each from nothing; the first failure ends it."""
    for number, source in enumerate(sources, start=1):
        status = 1
        try:
            status = regenerate(root, source, f"{number}/{len(sources)} ")
        finally:
            problem = stop(STATE)
        if problem:
            raise WorkshopError(problem)
        if status:
            return status
    say(f"{_counted(sources)} regenerated; nothing that ran for that is left running.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
