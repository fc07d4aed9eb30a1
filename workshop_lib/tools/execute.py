"""Executes one notebook with papermill: progress, timeouts and a clean end.

papermill runs in a thread, so that signals and timeouts are the main thread's and never
tear its event loop: to stop a notebook, its kernel is killed, papermill sees a dead
kernel, saves what there is and ends. A kernel whose command was killed ends by itself
within a second or two (ipykernel watches the process that `JPY_PARENT_PID` names).
"""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError
from workshop_lib.progress import Progress
from workshop_lib.results import read_records
from workshop_lib.tools.kernels import kernel_environment, kernel_manager

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "INJECTED_TAG",
    "MARKER_TAG",
    "Failure",
    "Limits",
    "Outcome",
    "execute",
    "find_notebooks",
    "parameters_of",
    "read_notebook",
]

INJECTED_TAG = "injected-parameters"
"""papermill's tag for the cell with the parameters of this run."""

MARKER_TAG = "papermill-error-cell-tag"
"""papermill's tag for its own notes about a failure."""

KERNEL_NAME = "python3"
POLL_S = 0.2
ERROR_LENGTH = 400
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Limits:
    """How long things may take.

    Attributes:
        cell_s: One cell.
        notebook_s: One notebook.
    """

    cell_s: float = 900.0
    notebook_s: float = 1800.0


@dataclass(frozen=True)
class Failure:
    """Why a notebook did not end well.

    Attributes:
        cell: The cell's number among the code cells, as Jupyter shows it (`[3]`); 0 when
            no cell had begun.
        source: The cell's first line.
        error: The error's last line.
    """

    cell: int
    source: str
    error: str


@dataclass
class Outcome:
    """What became of one notebook.

    Attributes:
        name: Its file name without `.ipynb`.
        executed: The executed copy.
        status: `done`, `failed`, `interrupted` or `not run`.
        seconds: From the start of its kernel to the end.
        cells: How many code cells it has.
        parameters: What was injected.
        failure: Why it is not done.
        records: What it recorded.
    """

    name: str
    executed: Path
    status: str = "not run"
    seconds: float = 0.0
    cells: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    records: dict[str, Any] = field(default_factory=dict)

    def explain(self) -> str:
        """Say in one line why the notebook is not done, and where to look."""
        if self.failure is None:
            return f"{self.name}: {self.status}"
        where = (
            f"cell {self.failure.cell}, `{self.failure.source}`" if self.failure.cell else "start"
        )
        return f"{self.name}.ipynb failed at {where}: {self.failure.error}; see {self.executed}"


def find_notebooks(
    folder: Path, names: Sequence[str] = (), *, solutions: bool = False
) -> list[Path]:
    """Find the workshop's notebooks, sorted: files named like `01_ray_cluster.ipynb`.

    Args:
        folder: Where they lie.
        names: Only these, each given as `01`, `01_ray_cluster` or a file name; default: all.
        solutions: Those of the exercises too, in the folder's `solutions/`.

    Returns:
        Their paths, in the order of their names.

    Raises:
        WorkshopError: There are none, or a name fits none.

    Example:
        >>> [path.stem for path in find_notebooks(Path("notebooks"), ["01"])]  # doctest: +SKIP
        ['01_ray_cluster']
    """
    pattern = "[0-9][0-9]_*.ipynb"
    found = sorted(folder.glob(pattern))
    if solutions:
        found += sorted((folder / "solutions").glob(pattern))
    if not found:
        raise WorkshopError(f"there is no notebook in {folder} (NN_name.ipynb)")
    chosen = set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        fits = [path for path in found if stem in (path.stem, path.stem[:2])]
        if not fits:
            known = ", ".join(path.stem for path in found)
            raise WorkshopError(f"there is no notebook {name!r}; there are: {known}")
        chosen.update(fits)
    return sorted(chosen) or found


def parameters_of(notebook: Mapping[str, Any]) -> list[str]:
    """List the names that a notebook's `parameters` cell sets.

    Args:
        notebook: The notebook's content.

    Example:
        >>> cell = {"metadata": {"tags": ["parameters"]}, "source": "LEVELS = 3"}
        >>> parameters_of({"cells": [cell]})
        ['LEVELS']
    """
    for cell in notebook["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            statements = ast.parse("".join(cell["source"])).body
            return [
                target.id
                for statement in statements
                if isinstance(statement, (ast.Assign, ast.AnnAssign))
                for target in (
                    statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                )
                if isinstance(target, ast.Name)
            ]
    return []


class _Run(threading.Thread):
    """papermill at work on one notebook."""

    def __init__(self, source: Path, output: Path, parameters: Mapping[str, Any], env: Any) -> None:
        super().__init__(name=f"papermill {source.stem}", daemon=True)
        self.source = source
        self.output = output
        self.parameters = dict(parameters)
        self.env = env
        self.log = output.with_suffix(".kernel.log")
        self.kernels: list[int] = []
        self.error: BaseException | None = None
        self.index = -1  # of the cell that runs or ran last
        self.cell_began = time.monotonic()
        self.number = 0
        self.first_line = ""

    def run(self) -> None:
        from papermill.execute import execute_notebook

        manager = kernel_manager(self.env, self.source.parent, self.log, self.kernels)
        try:
            execute_notebook(
                str(self.source),
                str(self.output),
                parameters=self.parameters,
                kernel_name=KERNEL_NAME,
                progress_bar=False,
                kernel_manager_class=manager,
                coalesce_streams=True,
                on_cell_execute=self._on_cell,
            )
        except BaseException as error:  # noqa: BLE001 - the main thread looks at it
            self.error = error

    def _on_cell(self, cell: Any, cell_index: int) -> None:
        self.cell_began = time.monotonic()
        self.index = cell_index
        if INJECTED_TAG not in cell.metadata.get("tags", []):
            self.number += 1
            self.first_line = _first_line(cell.source)

    def kill(self) -> None:
        """Kill the kernel and what it started in its process group; papermill then ends."""
        for pid in self.kernels:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def execute(
    source: Path,
    output: Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    state: str,
    build: Path,
    limits: Limits | None = None,
    label: str = "",
) -> Outcome:
    """Execute a notebook into a copy, with progress on stdout.

    Args:
        source: The notebook; it is only read. Its folder is the kernel's working folder.
        output: The executed copy, written as it runs.
        parameters: Values to inject after the `parameters` cell.
        state: The local cluster's state that the notebook uses.
        build: Where private files of Jupyter and IPython go.
        limits: Timeouts.
        label: Shown before the notebook's name, such as `1/2 `.

    Returns:
        What became of it; `interrupted` is not among that, see Raises.

    Raises:
        KeyboardInterrupt: A signal came; the kernel is gone. Its `outcome` attribute
            holds what became of the notebook.

    Example:
        >>> source = Path("notebooks/01_ray_cluster.ipynb")
        >>> copy = Path("build/run/01_ray_cluster.ipynb")
        >>> execute(source, copy, state="run", build=Path("build")).status  # doctest: +SKIP
        'done'
    """
    limits = limits or Limits()
    _quiet_libraries()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    content = read_notebook(source)
    outcome = Outcome(source.stem, output, parameters=dict(parameters or {}))
    outcome.cells = sum(
        cell["cell_type"] == "code" and bool("".join(cell["source"]).strip())
        for cell in content["cells"]
    )
    run = _Run(source, output, outcome.parameters, kernel_environment(build, state))
    began = time.monotonic()
    reason = ""
    try:
        with Progress(outcome.cells, label + source.stem, unit="cells", stream=sys.stdout) as shown:
            try:
                run.start()
                reason = _watch(run, shown, limits)
            except KeyboardInterrupt as signalled:
                reason = INTERRUPTED
                signalled.outcome = outcome  # type: ignore[attr-defined]
                raise
            finally:
                _end(run)
                outcome.seconds = round(time.monotonic() - began, 1)
                _judge(outcome, run, reason)
            shown.update(text="")
            if outcome.failure is not None:
                raise _NotDone
    except _NotDone:
        pass  # the display has shown it as failed
    return outcome


class _NotDone(Exception):
    """Leaves the progress display as failed."""


def _watch(run: _Run, shown: Progress, limits: Limits) -> str:
    """Show progress until papermill ends; the reason if it was ended for taking too long."""
    began = time.monotonic()
    while run.is_alive():
        run.join(POLL_S)
        cells = int(shown.total or 0)
        shown.update(
            done=max(0, run.number - 1) if run.is_alive() or run.error else run.number,
            text=f"cell {run.number}/{cells}: {run.first_line}"
            if run.number
            else "kernel starting",
        )
        if time.monotonic() - began > limits.notebook_s:
            return f"the notebook took more than {limits.notebook_s:g} s and was stopped"
        if run.index >= 0 and time.monotonic() - run.cell_began > limits.cell_s:
            return f"the cell took more than {limits.cell_s:g} s and was stopped"
    return ""


def _end(run: _Run) -> None:
    """Leave no kernel and no thread behind, whatever happened."""
    while run.is_alive():
        run.kill()  # again and again: the kernel may only just be starting
        run.join(POLL_S)
    run.kill()  # what a cell left running in the kernel's process group


def _judge(outcome: Outcome, run: _Run, reason: str) -> None:
    """Say what became of the notebook, from papermill's error and the executed copy."""
    if run.error is None and not reason:
        outcome.status = "done"
        run.log.unlink(missing_ok=True)
    else:
        outcome.status = "interrupted" if reason == INTERRUPTED else "failed"
        outcome.failure = Failure(run.number, run.first_line, reason or _last_line(run.error))
    if outcome.executed.exists():
        content = read_notebook(outcome.executed)
        if outcome.failure is not None and not _has_error(content):
            _add_error(outcome.executed, run.index, outcome.failure.error)
        outcome.records = read_records(content)


def _last_line(error: BaseException | None) -> str:
    """The last line of an error, as a traceback would end."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        text = f"{error.ename}: {error.evalue}" if error.evalue else str(error.ename)
    elif isinstance(error, DeadKernelError) or "Kernel died" in str(error):
        text = "the kernel died (killed from outside, out of memory, or it crashed)"
    else:
        text = f"{type(error).__name__}: {error}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last if len(last) <= ERROR_LENGTH else last[: ERROR_LENGTH - 1] + "…"


def _first_line(source: str) -> str:
    """The first line of a cell that is not blank, shortened."""
    line = next((line.strip() for line in source.splitlines() if line.strip()), "")
    return line if len(line) <= 80 else line[:79] + "…"


def _quiet_libraries() -> None:
    """Let papermill and nbclient not write to the terminal: one clear line is ours to write."""
    for name in ("papermill", "traitlets", "nbconvert"):
        logger = logging.getLogger(name)
        logger.propagate = False
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())


def read_notebook(path: Path) -> dict[str, Any]:
    """Read a notebook's content.

    Args:
        path: The file.

    Raises:
        WorkshopError: It is damaged.
    """
    import nbformat

    try:
        content: dict[str, Any] = nbformat.read(str(path), as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise WorkshopError(f"{path} cannot be read as a notebook: {error}") from error
    return content


def _has_error(content: Mapping[str, Any]) -> bool:
    return any(
        output["output_type"] == "error"
        for cell in content["cells"]
        for output in cell.get("outputs", [])
    )


def _add_error(path: Path, index: int, text: str) -> None:
    """Note in the executed copy why a cell that raised nothing did not end."""
    import nbformat

    content = nbformat.read(str(path), as_version=4)
    if 0 <= index < len(content.cells):
        content.cells[index].outputs.append(
            nbformat.v4.new_output("error", ename="Stopped", evalue=text, traceback=[text])
        )
        nbformat.write(content, str(path))
