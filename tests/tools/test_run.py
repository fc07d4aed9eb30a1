"""`workshop run` on toy notebooks: no Ray, no model, seconds."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock
from toy_notebooks import BUSY, FIGURE, alive, snapshot, start, wait_for, write

from workshop_lib.errors import WorkshopError
from workshop_lib.tools import run
from workshop_lib.tools.execute import CHECKOUT, execute, find_notebooks, kernel_environment
from workshop_lib.tools.lab import START_PAGE


@pytest.fixture
def stopped():
    """States that were cleaned, through the `stop` that the commands are given."""
    states = []

    def stop(state):
        states.append(state)
        return ""

    stop.states = states
    return stop


def results_of(root):
    return json.loads((root / "build" / "results.json").read_text())


# -- make run ----------------------------------------------------------------------------------


def test_run(tmp_path, capfd, stopped, monkeypatch):
    # What a user's machine may have: another kernel named python3, a start-up file that breaks.
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("raise SystemExit('start-up file was read')")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONSTARTUP", str(startup))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    write(
        tmp_path,
        "01_one",
        "import os, sys\nfrom workshop_lib.results import record",
        "record('executable', sys.executable)\nrecord('state', os.environ['WORKSHOP_STATE'])",
        "record('folder', os.getcwd())\nrecord('profile', PROFILE)\nrecord('seconds', SECONDS)",
        FIGURE,
        "print('\\n'.join(f'log line {n}' for n in range(60)))",
        "import pandas as pd\npd.DataFrame({'column': ['in a table']})",
        "import ipywidgets\nipywidgets.IntSlider()",
    )
    before = snapshot(tmp_path / "notebooks")

    assert run.main(["-p", "SECONDS", "2.5"], root=tmp_path, stop=stopped) == 0

    out, err = capfd.readouterr()
    assert err == ""
    assert re.search(r"✓ 1/1 01_one: 8/8 cells · \d", out)
    assert "nothing of this run is left running" in out
    assert "1 of 1 notebooks done" in out
    assert stopped.states == ["run"]
    assert snapshot(tmp_path / "notebooks") == before

    results = results_of(tmp_path)
    one = results["notebooks"]["01_one"]
    assert (one["status"], one["cells"], one["failure"]) == ("done", 8, None)
    assert one["seconds"] > 0
    assert one["parameters"] == {"PROFILE": "local", "SECONDS": 2.5}
    assert one["records"] == {
        "executable": sys.executable,
        "state": "run",
        "folder": str(tmp_path / "notebooks"),
        "profile": "local",
        "seconds": 2.5,
    }
    assert Path(one["executed"]).exists()
    assert results["machine"]["cores"] > 0
    assert results["machine"]["memory_gib"] > 0
    assert results["versions"]["papermill"]

    page = (tmp_path / "build" / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert page.count('id="01_one-figure-1"') == 1
    assert "<summary>60 lines of output" in page
    assert "in a table" in page
    assert "IntSlider(value" not in page, "a widget shows nothing without its kernel"
    assert "data:image/svg+xml" in page, "the formula is drawn"
    assert 'href="#02_two"' in page, "links between notebooks stay in the page"
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", page), "no network"


def test_run_with_a_failing_cell(tmp_path, capfd, stopped):
    write(tmp_path, "01_one", "from workshop_lib.results import record\nrecord('before', 1)")
    write(
        tmp_path,
        "02_two",
        "print('fine')",
        "# the bad one\nraise ValueError('first line\\n  and \\x1b[31mthe last\\x1b[0m')",
        "print('never')",
    )
    write(tmp_path, "03_three", "print(3)")

    assert run.main([], root=tmp_path, stop=stopped) == 1

    out, err = capfd.readouterr()
    executed = tmp_path / "build" / "run" / "02_two.ipynb"
    assert err == (
        "WorkshopError: 02_two.ipynb failed at cell 3, `# the bad one`: and the last; see "
        f"{executed}\n"
    )
    assert "✗ 2/3 02_two failed" in out
    assert stopped.states == ["run"]
    found = results_of(tmp_path)["notebooks"]
    assert [each["status"] for each in found.values()] == ["done", "failed", "not run"]
    assert found["01_one"]["records"] == {"before": 1}
    assert found["02_two"]["failure"]["cell"] == 3
    page = (tmp_path / "build" / "report.html").read_text()
    assert 'id="02_two-failed"' in page
    assert "An Exception was encountered" not in page, "papermill's own note"


@pytest.mark.parametrize(
    ("source", "arguments", "expected"),
    [
        (
            "import time; time.sleep(600)",
            ["--cell-timeout-s", "5"],
            "the cell took longer",
        ),
        ("import os; os._exit(9)", [], "the kernel died"),
    ],
    ids=["too long", "kernel dies"],
)
def test_run_with_a_cell_that_never_answers(tmp_path, capfd, stopped, source, arguments, expected):
    write(tmp_path, "01_one", source)
    assert run.main(arguments, root=tmp_path, stop=stopped) == 1
    _, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert "failed at cell 2" in err
    assert expected in err
    assert expected in (tmp_path / "build" / "report.html").read_text()
    assert stopped.states == ["run"]


def running_cell(root, *arguments):
    """Start a command and wait until it is in the middle of a cell."""
    write(root, "01_one", BUSY)
    (root / "build").mkdir()
    process = start(root, *arguments)
    pids = root / "build" / "pids.json"
    wait_for(lambda: pids.exists() or process.poll() is not None, "no cell began")
    assert process.poll() is None, process.communicate()
    return process, json.loads(pids.read_text())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_interrupted_in_a_cell(tmp_path, signum):
    process, (kernel, child) = running_cell(tmp_path)
    (tmp_path / "hold.txt").touch()
    process.send_signal(signum)
    wait_for((tmp_path / "stopping.txt").exists, "it does not stop what runs")
    process.send_signal(signum)  # a second Ctrl-C does not cut that short
    (tmp_path / "hold.txt").unlink()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signum
    assert not alive(kernel)
    assert not alive(child)
    assert (tmp_path / "stopped.txt").read_text() == "run "
    if signum != signal.SIGHUP:  # then nobody reads
        assert "Still stopping what runs" in err
        assert "nothing of this run is left running" in out
    assert "Traceback" not in out + err
    assert results_of(tmp_path)["notebooks"]["01_one"]["status"] == "interrupted"
    assert "interrupted" in (tmp_path / "build" / "report.html").read_text()


def test_kernel_ends_when_run_is_killed(tmp_path):
    process, (kernel, child) = running_cell(tmp_path)
    assert os.getpgid(kernel) == kernel, "a terminal's Ctrl-C does not reach it"
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(kernel), "the kernel still runs")
    if alive(child):  # a process that a cell itself started and left is not the kernel's to end
        os.kill(child, signal.SIGKILL)


def test_interrupted_outputs_are_left_as_they_were(tmp_path):
    process, (kernel, _) = running_cell(tmp_path, "--keep-outputs")
    before = snapshot(tmp_path / "notebooks")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert not alive(kernel)
    assert snapshot(tmp_path / "notebooks") == before


def test_run_stops_what_a_killed_run_left(tmp_path, capfd, stopped):
    write(tmp_path, "01_one", "1")
    (tmp_path / ".workshop" / "run").mkdir(parents=True)
    assert run.main([], root=tmp_path, stop=lambda state: stopped(state) or "it would not") == 1
    assert stopped.states == ["run", "run"]
    _, err = capfd.readouterr()
    assert "it would not" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["07"], "there is no notebook '07'; there are: 01_one"),
        (["-p", "SECOND", "1"], "-p SECOND: no notebook has that parameter"),
        (["-p", "SECONDS", "[1"], "this is no YAML value"),
        (["--profile", "moon"], "moon"),
    ],
)
def test_run_refuses_before_anything_changes(tmp_path, stopped, arguments, expected):
    write(tmp_path, "01_one", "1")
    with pytest.raises(WorkshopError, match=re.escape(expected)):
        run.main(arguments, root=tmp_path, stop=stopped)
    assert not (tmp_path / "build").exists()
    assert stopped.states == []


def test_run_refuses_a_second_one(tmp_path, stopped):
    write(tmp_path, "01_one", "1")
    (tmp_path / "build").mkdir()
    with (
        FileLock(tmp_path / "build" / ".run.lock"),
        pytest.raises(WorkshopError, match="another command executes notebooks"),
    ):
        run.main([], root=tmp_path, stop=stopped)
    assert stopped.states == []


def test_plan_injects_what_a_notebook_has(tmp_path, monkeypatch):
    one = write(tmp_path, "01_one", "1")
    two = write(tmp_path, "02_two", "1", parameters='PROFILE = "x"\nMODEL = None')
    monkeypatch.setenv("MODEL", "org/name")
    assert run.plan([one, two], run._parse(["-p", "SECONDS", "3"])) == {
        one: {"PROFILE": "local", "SECONDS": 3},
        two: {"PROFILE": "local", "MODEL": "org/name"},
    }
    monkeypatch.delenv("MODEL")
    assert run.plan([two], run._parse(["--profile", "kind"])) == {two: {"PROFILE": "kind"}}


def test_find_notebooks(tmp_path):
    with pytest.raises(WorkshopError, match="there is no notebook in"):
        find_notebooks(tmp_path)
    paths = [write(tmp_path, name, "1") for name in ("02_b", "01_a", "10_c")]
    write(tmp_path, "draft", "1")
    folder = tmp_path / "notebooks"
    assert find_notebooks(folder) == [paths[1], paths[0], paths[2]]
    assert find_notebooks(folder, ["10", "notebooks/01_a.ipynb"]) == [paths[1], paths[2]]


def test_kernels_keep_the_users_other_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    environment = kernel_environment(tmp_path, "a")
    assert environment["HTTPS_PROXY"] == "http://proxy"
    assert "JPY_PARENT_PID" not in environment
    assert environment["JUPYTER_CONFIG_DIR"].startswith(str(tmp_path))


# -- make notebooks ----------------------------------------------------------------------------


def test_outputs_are_kept(tmp_path, capfd, stopped):
    one = write(
        tmp_path, "01_one", "print('a')", "40 + 2", "", "import ipywidgets\nipywidgets.IntSlider()",
        "from workshop_lib.widgets import memory_explorer\nmemory_explorer()",
    )  # fmt: skip
    assert run.main(["--keep-outputs"], root=tmp_path, stop=stopped) == 0
    content = nbformat.read(one, as_version=4)
    nbformat.validate(content)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, None, 4, 5]
    assert code[1].outputs[0].text == "a\n"
    assert code[2].outputs[0].execution_count == 3
    assert code[4].outputs == [], "a widget shows nothing without its kernel"
    assert sorted(code[5].outputs[0].data) == ["image/png", "text/plain"], "but its picture does"
    assert content.metadata == run.METADATA
    assert [cell.metadata for cell in code[:2]] == [{"tags": ["parameters"]}, {}]

    first = one.read_text()
    assert list(one.parent.iterdir()) == [one]
    assert run.main(["--keep-outputs"], root=tmp_path, stop=stopped) == 0
    assert one.read_text() == first, "the same outputs give the same file"


def test_a_notebook_that_failed_is_left_as_it_was(tmp_path, capfd, stopped):
    write(tmp_path, "01_one", "1 / 0")
    before = snapshot(tmp_path / "notebooks")
    assert run.main(["--keep-outputs"], root=tmp_path, stop=stopped) == 1
    assert "ZeroDivisionError: division by zero" in capfd.readouterr().err
    assert snapshot(tmp_path / "notebooks") == before


# -- the page that `workshop lab` opens --------------------------------------------------------


def test_the_start_page_says_whether_everything_is_there(tmp_path):
    """Its one cell looks at this machine, in seconds; it is committed as nobody ran it."""
    page = CHECKOUT / "notebooks" / START_PAGE
    committed = nbformat.read(page, as_version=4)
    assert [cell.outputs for cell in committed.cells if cell.cell_type == "code"] == [[]]
    outcome = execute(page, tmp_path / START_PAGE, state="t-start", build=tmp_path)
    assert outcome.status == "done" and outcome.cells == 1
    (cell,) = (
        c for c in nbformat.read(outcome.executed, as_version=4).cells if c.cell_type == "code"
    )
    (shown,) = (out["data"]["text/html"] for out in cell.outputs if "data" in out)
    for each in ("Python 3.11", "kubectl with kustomize", "2 cores"):
        assert f"<td title='pass'>✓</td><td style='text-align:left'>{each}</td>" in shown
