"""A notebook ended in the middle, in each way in which that happens, leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.errors import NotFoundError
from workshop_lib.tools.execute import CHECKOUT, find_notebooks

STATE = "run"
NOTEBOOKS = [path.stem for path in find_notebooks(CHECKOUT / "notebooks")]


def running_pods():
    cluster = LocalCluster(state=STATE)
    names = []
    for component in cluster.components():
        try:
            pods = cluster.get(component).observe().pods
        except NotFoundError:
            continue  # the notebook deleted it a moment ago
        names += [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]
    return names


def kernels_of(pid):
    found = []
    for child in processes.descendants(pid):
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        if b"ipykernel" in command:
            found.append(child)
    return found


def git_status():
    done = subprocess.run(
        ["git", "status", "--porcelain"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return done.stdout


def clean():
    subprocess.run(
        [sys.executable, "-m", "workshop_lib.tools.cli", "clean", "--state", STATE],
        cwd=CHECKOUT, check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def run_notebook(tmp_path):
    """Starts `make run` for one notebook, and ends it whatever became of it."""
    started = []

    def start(name):
        with (tmp_path / "run.log").open("wb") as log:
            run = subprocess.Popen(
                [sys.executable, "-m", "workshop_lib.tools.cli", "run", name],
                cwd=CHECKOUT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        started.append(run)
        return run

    clean()
    yield start
    for run in started:
        run.kill()
        run.wait(60)
    clean()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["Ctrl-C", "kernel killed", "run killed, then make clean"])
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_is_left(name, how, run_notebook, tmp_path):
    before = git_status()
    run = run_notebook(name)
    deadline = time.monotonic() + 400
    while not running_pods():
        assert run.poll() is None, (tmp_path / "run.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(5)  # the pods' own processes are on their way
    kernels = kernels_of(run.pid)
    assert kernels
    if how == "Ctrl-C":
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground
        assert run.wait(300) != 0
    elif how == "kernel killed":
        for kernel in kernels:
            os.kill(kernel, signal.SIGKILL)
        assert run.wait(300) != 0
    else:
        run.kill()
        run.wait(60)
        clean()
    deadline = time.monotonic() + 120  # an orphaned kernel looks for its parent now and then
    while any(map(processes.is_running, kernels)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in kernels if processes.is_running(pid)]
    paths = LocalCluster(state=STATE).paths
    assert processes.mentioning(paths.runtime) == []
    assert not paths.runtime.exists() and not paths.folder.exists()
    assert git_status() == before
