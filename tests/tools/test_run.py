"""`workshop run` and its report on toy notebooks: no Ray, no model, seconds."""

import contextlib
import doctest
import io
import json
import os
import re
import signal
import sys
from types import SimpleNamespace

import nbformat
import pytest
from filelock import FileLock
from toy_notebooks import FIGURE, alive, snapshot, start, wait_for, write

from workshop_lib.errors import WorkshopError
from workshop_lib.tools import report, run
from workshop_lib.tools.execute import CHECKOUT, execute
from workshop_lib.tools.lab import START_PAGE
from workshop_lib.tools.report import KEYS_SHOWN, key_results

RECORD = "from workshop_lib.results import record\n"


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


# -- a run of four notebooks, on a machine whose settings would break it -----------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One good notebook, one that misses a bar, one that fails, one that is not run."""
    root = tmp_path_factory.mktemp("run")
    (root / "kernels" / "python3").mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (root / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    (root / "startup.py").write_text("raise SystemExit('start-up file was read')")
    one = write(
        root, "01_one",
        "import os, sys\n" + RECORD + "record('executable', sys.executable)",
        "record('state', os.environ['WORKSHOP_STATE'])\nrecord('proxy', os.environ['HTTPS_PROXY'])",
        "record('folder', os.getcwd())\nrecord('seconds', SECONDS)\nrecord('checks_passed', True)",
        FIGURE, FIGURE,
        "print('\\n'.join(f'log line {n}' for n in range(60)))",
        "import pandas as pd\npd.DataFrame({'column': ['in a table']})",
        "import ipywidgets\nipywidgets.IntSlider()",
    )  # fmt: skip
    notebook = nbformat.read(one, as_version=4)
    notebook.cells[5].metadata["tags"] = ["key-figure"]
    nbformat.write(notebook, one)
    explorer = "from workshop_lib.widgets import memory_explorer\nmemory_explorer()"
    records = RECORD + "record('kv_error_share', 0.25)\nrecord('new_thing_ms', 12.5)"
    write(root, "02_two", records, FIGURE, explorer)
    bad = "# the bad one\nraise ValueError('first line\\n  and \\x1b[31mthis is why\\x1b[0m')"
    write(root, "03_three", "print('fine')", bad, "print('never')")
    write(root, "04_four", "1")
    before, states = snapshot(root / "notebooks"), []
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as machine,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
            machine.setenv(name, str(root))
        machine.setenv("PYTHONSTARTUP", str(root / "startup.py"))
        machine.setenv("MPLBACKEND", "Agg")
        machine.setenv("HTTPS_PROXY", "http://proxy")
        status = run.main(["-p", "SECONDS", "2.5"], root=root, stop=lambda s: states.append(s))
    assert snapshot(root / "notebooks") == before  # only read
    assert states == ["run"]
    return SimpleNamespace(
        root=root, status=status, out=out.getvalue(), err=err.getvalue(),
        results=results_of(root), page=(root / "build" / "report.html").read_text(),
    )  # fmt: skip


def card(page, number):
    cards = re.findall(r"<article.*?</article>", page, re.DOTALL)
    return next(each for each in cards if f'href="#{number}_' in each)


def test_what_a_run_says(ran):
    assert ran.status == 1
    assert re.search(r"✓ 1/4 01_one: 9/9 cells · \d", ran.out)
    assert "✗ 3/4 03_three failed" in ran.out
    assert "nothing of this run is left running" in ran.out
    assert "2 of 4 notebooks done" in ran.out
    executed = ran.root / "build" / "run" / "03_three.ipynb"
    assert ran.err == (
        "WorkshopError: 03_three.ipynb failed at cell 3, `# the bad one`: and this is why; see "
        f"{executed}\n"
    )


def test_results_hold_what_was_found_and_where(ran):
    one, _, three, four = ran.results["notebooks"].values()
    assert (one["status"], one["cells"], one["failure"]) == ("done", 9, None)
    assert one["parameters"] == {"PROFILE": "local", "SECONDS": 2.5}
    assert one["records"] == {
        "executable": sys.executable, "state": "run", "proxy": "http://proxy",
        "folder": str(ran.root / "notebooks"), "seconds": 2.5, "checks_passed": True,
    }  # fmt: skip
    assert (three["status"], three["failure"]["cell"]) == ("failed", 3)
    assert four["status"] == "not run"
    assert ran.results["machine"]["cores"] > 0 and ran.results["versions"]["papermill"]


def test_cards_show_what_became_of_each_notebook(ran):
    good, missed, failed, unrun = (card(ran.page, f"0{n}") for n in (1, 2, 3, 4))
    assert "The 01_one notebook" in good and "✓ done" in good
    assert re.search(r"checks at the end passed <span><b>yes</b> <small>✓", good, re.DOTALL)
    assert 'data-of="01_one-figure-1"' in good, "the tagged figure, not the last"
    assert "✓ done" in missed, "a missed bar is no failure"
    assert re.search(r'class="missed".*?off by.*?<b>25.00%</b>.*?✗ &lt;= 1.00%', missed, re.DOTALL)
    assert "new_thing_ms" not in missed and "new_thing_ms" in ran.page, "unknown, and listed"
    assert 'data-of="02_two-figure-2"' in missed, "the widget's picture: the last, none is tagged"
    assert 'class="card failed"' in failed and "this is why" in failed
    assert 'href="#03_three-failed"' in failed and 'id="03_three-failed"' in ran.page
    assert 'class="card not-run"' in unrun and "The 04_four notebook" in unrun
    assert "2 of 4</b> notebooks done" in ran.page


def test_the_report_is_one_file_without_network_or_kernel(ran):
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", ran.page)
    for key in re.findall(r'data-of="([^"]+)"', ran.page):
        assert ran.page.count(f'<figure id="{key}">') == 1
    assert "<summary>60 lines of output" in ran.page and "in a table" in ran.page
    assert "IntSlider(value" not in ran.page and "widget-view" not in ran.page
    assert "data:image/svg+xml" in ran.page, "the formula is drawn"
    assert 'href="#02_two"' in ran.page, "links between notebooks stay in the page"
    assert "An Exception was encountered" not in ran.page, "papermill's own note"


def test_times_are_drawn_against_the_bar_of_a_whole_run(ran):
    line = re.search(r'<div class="times".*?</div>', ran.page, re.DOTALL)[0]
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", line)]
    assert ran.results["bar_s"] == 600
    assert sum(widths) == pytest.approx(100 * ran.results["seconds"] / 600, abs=0.1)
    assert [*re.findall(r'href="#(\w+)"', line)] == ["01_one", "02_two", "03_three"]
    assert re.search(r'class="limit" style="left:100.000%"', line)


# -- how a run ends ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "arguments", "expected"),
    [
        ("import time; time.sleep(600)", ["--cell-timeout-s", "5"], "the cell took longer"),
        ("import os; os._exit(9)", [], "the kernel died"),
    ],
    ids=["too long", "kernel dies"],
)
def test_a_cell_that_never_answers(tmp_path, capfd, stopped, source, arguments, expected):
    write(tmp_path, "01_one", source)
    assert run.main(["01", *arguments], root=tmp_path, stop=stopped) == 1
    _, err = capfd.readouterr()
    assert err.count("\n") == 1 and "failed at cell 2" in err and expected in err
    assert expected in (tmp_path / "build" / "report.html").read_text()
    assert stopped.states == ["run"]
    assert results_of(tmp_path)["bar_s"] is None, "the bar is for a run of everything only"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_in_a_cell(tmp_path, signum):
    process, pids = start(tmp_path, "--keep-outputs")
    before, (kernel, child) = snapshot(tmp_path / "notebooks"), json.loads(pids.read_text())
    (tmp_path / "hold.txt").touch()
    process.send_signal(signum)
    wait_for((tmp_path / "stopping.txt").exists, "it does not stop what runs")
    process.send_signal(signum)  # a second Ctrl-C does not cut that short
    (tmp_path / "hold.txt").unlink()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signum
    assert not alive(kernel) and not alive(child)
    assert (tmp_path / "stopped.txt").read_text() == "run"
    if signum != signal.SIGHUP:  # then nobody reads
        assert "Still stopping what runs" in err
        assert "nothing of this run is left running" in out
    assert "Traceback" not in out + err
    assert results_of(tmp_path)["notebooks"]["01_one"]["status"] == "interrupted"
    assert "interrupted" in (tmp_path / "build" / "report.html").read_text()
    assert snapshot(tmp_path / "notebooks") == before


def test_kernel_ends_when_run_is_killed(tmp_path):
    process, pids = start(tmp_path)
    kernel, child = json.loads(pids.read_text())
    assert os.getpgid(kernel) == kernel, "a terminal's Ctrl-C does not reach it"
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(kernel), "the kernel still runs")
    if alive(child):  # a process that a cell itself started and left is not the kernel's to end
        os.kill(child, signal.SIGKILL)


def test_run_stops_what_a_killed_run_left(tmp_path, capfd, stopped):
    write(tmp_path, "01_one", "1")
    (tmp_path / ".workshop" / "run").mkdir(parents=True)
    assert run.main([], root=tmp_path, stop=lambda state: stopped(state) or "it would not") == 1
    assert stopped.states == ["run", "run"]
    assert "it would not" in capfd.readouterr().err


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


def test_a_model_is_injected_where_a_notebook_has_one(tmp_path, monkeypatch):
    one = write(tmp_path, "01_one", "1")
    two = write(tmp_path, "02_two", "1", parameters='PROFILE = "x"\nMODEL = None')
    monkeypatch.setenv("MODEL", "org/name")
    assert run.plan([one, two], run._parse(["--profile", "kind", "-p", "SECONDS", "3"])) == {
        one: {"PROFILE": "kind", "SECONDS": 3},
        two: {"PROFILE": "kind", "MODEL": "org/name"},
    }


# -- make notebooks ----------------------------------------------------------------------------


def test_outputs_of_what_ran_well_are_kept(tmp_path, capfd, stopped):
    one = write(
        tmp_path, "01_one", "print('a')", "40 + 2", "", "import ipywidgets\nipywidgets.IntSlider()",
        "from workshop_lib.widgets import memory_explorer\nmemory_explorer()",
    )  # fmt: skip
    two = write(tmp_path, "02_two", "1 / 0")
    failing = two.read_text()
    assert run.main(["--keep-outputs"], root=tmp_path, stop=stopped) == 1
    assert two.read_text() == failing
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
    assert sorted(one.parent.iterdir()) == [one, two]
    assert run.main(["--keep-outputs", "01"], root=tmp_path, stop=stopped) == 0
    assert one.read_text() == first, "the same outputs give the same file"


# -- what a result looks like ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ({"kv_error_share": 0.0125}, [("1.25%", "<= 1.00%", False)]),
        ({"errors": 0, "nodes_alive": 2}, [("2", "", True), ("0", "", True)]),
        ({"job_condition": "Failed"}, [("Failed", "== Complete", False)]),
        ({"second_run_found_head": False}, [("no", "", True)]),
        ({"recovered": None}, [("unknown", "== yes", False)]),
        ({"checks": {"a": True, "b": True}}, [("2 of 2", "", True)]),
        ({"checks": {"a": True, "b": False}}, [("1 of 2", "== yes", False)]),
        ({"accuracy_before": 0.21, "accuracy_after": 0.96}, [("21% → 96%", "", None)]),
        ({"replicas_seen": [1, 3], "predicted_replicas": [1, 3]}, [("1, 3", "", True)]),
        ({"replicas_seen": [1, 2], "predicted_replicas": [1, 3]}, [("1, 2", "== 1, 3", False)]),
        ({"unknown": 1 / 3, "list": [1], "text": "b" * 99}, [("0.3333",), ("b" * 59 + "…",)]),
    ],
)
def test_results_beside_their_bars(records, expected):
    found = [(each["value"], each["bar"], each["met"]) for each in key_results(records)]
    assert [shown[: len(wanted)] for shown, wanted in zip(found, expected, strict=True)] == expected


def test_a_missed_bar_is_never_left_out():
    good = {"nodes_alive": 2, "status_without_token": 401, "spread_over_nodes": 2}
    good |= {"job_condition": "Complete", "recovered": True}
    found = key_results({**good, "checks_passed": False})
    assert len(found) == KEYS_SHOWN and found[-1]["met"] is False
    assert doctest.testmod(report).failed == 0


# -- the page that `workshop lab` opens --------------------------------------------------------


def test_the_start_page_says_whether_everything_is_there(tmp_path):
    """Its one cell looks at this machine, in seconds; it is committed as nobody ran it."""
    page = CHECKOUT / "notebooks" / START_PAGE
    committed = nbformat.read(page, as_version=4)
    assert [cell.outputs for cell in committed.cells if cell.cell_type == "code"] == [[]]
    outcome = execute(page, tmp_path / START_PAGE, state="t-start", build=tmp_path)
    assert outcome.status == "done" and outcome.cells == 1
    cells = nbformat.read(outcome.executed, as_version=4).cells
    (cell,) = (each for each in cells if each.cell_type == "code")
    (shown,) = (out["data"]["text/html"] for out in cell.outputs if "data" in out)
    for each in ("Python 3.11", "kubectl with kustomize", "2 cores"):
        assert f"<td title='pass'>✓</td><td style='text-align:left'>{each}</td>" in shown
