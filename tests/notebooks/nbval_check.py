"""Executes a notebook once under nbval, with small parameters, and keeps what it recorded."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import papermill
import psutil
import yaml

from workshop_lib.results import read_records
from workshop_lib.tools.execute import CHECKOUT, kernel_environment

HERE = Path(__file__).parent


@dataclass
class Checked:
    passed: bool
    output: str
    records: dict
    notebook: Path


def _kill(pid):
    """Kill pytest and its kernel, so that nothing applies more while its state is cleaned."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        process.kill()


def check_notebook(source, folder, *, state, params=None, cell_timeout_s=600.0, timeout_s=1200.0):
    """papermill injects the parameters, then nbval executes and compares tagged cells."""
    folder.mkdir(parents=True, exist_ok=True)
    prepared, executed = folder / source.name, folder / f"executed-{source.name}"
    executed.unlink(missing_ok=True)
    environment = {
        **kernel_environment(folder, state),
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(HERE)]),
        "WORKSHOP_KERNEL_FOLDER": str(source.parent),
        "WORKSHOP_EXECUTED": str(executed),
    }
    wanted = {} if params is None else yaml.safe_load(params.read_text())
    unknown = set(wanted) - set(papermill.inspect_notebook(str(source)))
    assert not unknown, f"{params.name} sets what {source.name} does not have: {unknown}"
    quiet = {"prepare_only": True, "progress_bar": False}
    papermill.execute_notebook(str(source), str(prepared), wanted, **quiet)
    command = [
        sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={folder}", "-q", "-x",
        "--color=no", "-p", "no:cacheprovider", "-p", "nbval_capture",
        "--nbval-lax", "--nbval-current-env", f"--nbval-sanitize-with={HERE / 'nbval.cfg'}",
        f"--nbval-cell-timeout={cell_timeout_s}", str(prepared),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _kill(process.pid)
        output = process.communicate()[0] + f"\nended: it took more than {timeout_s:g} s"
    finally:
        if process.poll() is None:  # these tests were interrupted
            _kill(process.pid)
    records = read_records(executed) if executed.exists() else {}
    return Checked(process.returncode == 0, output, records, executed)
