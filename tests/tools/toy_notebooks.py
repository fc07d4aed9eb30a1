"""Tiny notebooks for the tests of the machinery: no Ray, a kernel start and a second each."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workshop_lib.tools.execute import CHECKOUT

METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
PARAMETERS = 'PROFILE = "none"  # which cluster\nSECONDS = 0  # how long a cell takes'

FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(3, 2)); plt.plot([1, 2]); plt.show()"

BUSY = """
import json, os, subprocess, time
child = subprocess.Popen(["sleep", "600"])
with open("../build/new.json", "w") as file: json.dump([os.getpid(), child.pid], file)
os.rename("../build/new.json", "../build/pids.json")
time.sleep(600)
"""

# Its `stop` takes a while: stopping.txt when it begins, stopped.txt when it has ended, and between
# them for as long as there is a hold.txt.
DRIVER = """
import sys, time
from pathlib import Path
from workshop_lib.tools import run
root = Path(sys.argv[1])
def stop(state):
    (root / "stopping.txt").touch()
    while (root / "hold.txt").exists():
        time.sleep(0.02)
    (root / "stopped.txt").write_text(state)
    return ""
sys.exit(run.main(sys.argv[2:], root=root, stop=stop))
"""


def write(root, name, *sources, parameters=PARAMETERS):
    """Write `notebooks/<name>.ipynb` with these code cells after a title and parameters."""
    cells = [new_markdown_cell(f"# The {name} notebook\n\n$2^{{10}}$ and [another](02_two.ipynb)")]
    cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    cells += [new_code_cell(source.strip()) for source in sources]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), path)
    return path


def start(root, *arguments):
    """Start `run.main` in a process of its own and wait until it is in the middle of a cell."""
    write(root, "01_one", BUSY)
    (root / "build").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(root), *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = root / "build" / "pids.json"
    wait_for(lambda: pids.exists() or process.poll() is not None, "no cell began")
    assert process.poll() is None, process.communicate()
    return process, pids


def wait_for(condition, what, timeout_s=300.0):
    """Wait until a function's result is true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} after {timeout_s:g} s"
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def snapshot(folder):
    """Every file of a folder with its content."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
