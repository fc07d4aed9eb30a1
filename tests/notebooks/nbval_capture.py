"""A pytest plugin beside nbval: keeps the outputs that nbval sees and then forgets.

So that one execution is enough both to compare outputs and to read recorded results.
Kernels start in WORKSHOP_KERNEL_FOLDER, the notebook's own folder, and not in its copy's.
The executed notebook is written to WORKSHOP_EXECUTED.
"""

import os
from pathlib import Path

import nbformat
import nbval.plugin
from nbval.kernel import RunningKernel


def pytest_configure(config):
    def start(kernel_name, cwd, startup_timeout):
        folder = os.environ.get("WORKSHOP_KERNEL_FOLDER", cwd)
        return RunningKernel(kernel_name, cwd=folder, startup_timeout=startup_timeout)

    nbval.plugin.RunningKernel = start


def pytest_runtest_logfinish(nodeid, location):
    """After each cell, so that an execution that is killed leaves what there was."""
    notebook = _Session.notebook
    if notebook is not None:
        nbformat.write(notebook, os.environ["WORKSHOP_EXECUTED"])


def pytest_runtest_teardown(item):
    if not isinstance(item, nbval.plugin.IPyNbCell):
        return
    if _Session.notebook is None:
        _Session.notebook = nbformat.read(Path(item.path), as_version=4)
    code = [cell for cell in _Session.notebook.cells if cell.cell_type == "code"]
    cell = code[item.cell_num]
    cell.outputs = [nbformat.from_dict(output) for output in item.test_outputs or []]
    cell.execution_count = item.cell_num + 1


class _Session:
    notebook = None
