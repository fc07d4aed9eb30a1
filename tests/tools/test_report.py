"""The report of a run: what a room sees first, from toy notebooks and from records."""

import json
import re

import nbformat
import pytest
from toy_notebooks import FIGURE, write

from workshop_lib.errors import WorkshopError
from workshop_lib.tools import report, run
from workshop_lib.tools.report import KEYS_SHOWN, key_results, readable

RECORD = "from workshop_lib.results import record\n"


def quiet(state):
    return ""


def summary_of(root):
    """The report's part above the notebooks."""
    page = (root / "build" / "report.html").read_text()
    return page[page.index("<header>") : page.index("</header>")]


def card(root, number):
    cards = re.findall(r"<article.*?</article>", summary_of(root), re.DOTALL)
    return next(each for each in cards if f'href="#{number}_' in each)


# -- a run of toy notebooks --------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four notebooks: one good, one that misses a bar, one that fails, one that is not run."""
    root = tmp_path_factory.mktemp("report")
    one = write(root, "01_one", RECORD + "record('checks_passed', True)", FIGURE, FIGURE)
    notebook = nbformat.read(one, as_version=4)
    notebook.cells[3].metadata["tags"] = ["key-figure"]
    nbformat.write(notebook, one)
    write(
        root,
        "02_two",
        RECORD + "record('kv_error_share', 0.25)\nrecord('new_thing_ms', 12.5)",
        FIGURE,
        "from workshop_lib.widgets import memory_explorer\nmemory_explorer()",
    )
    write(root, "03_three", "raise ValueError('this is why')")
    write(root, "04_four", "1")
    assert run.main([], root=root, stop=quiet) == 1
    return root


def test_card_of_a_good_notebook(root):
    good = card(root, "01")
    assert "The 01_one notebook" in good
    assert "✓ done" in good
    assert re.search(r"checks at the end passed <span><b>yes</b> <small>✓", good, re.DOTALL)
    assert 'data-of="01_one-figure-1"' in good, "the tagged figure, not the last"


def test_card_of_a_missed_bar(root):
    two = card(root, "02")
    assert "✓ done" in two, "a missed bar is no failure"
    assert re.search(r'class="missed".*?off by.*?<b>25.00%</b>.*?✗ &lt;= 1.00%', two, re.DOTALL)
    assert "new_thing_ms" not in two
    assert "new_thing_ms" in summary_of(root), "what the table does not know is listed all the same"


def test_widget_is_shown_as_its_static_picture(root):
    assert 'data-of="02_two-figure-2"' in card(root, "02"), "the last figure, as none is tagged"
    page = (root / "build" / "report.html").read_text()
    assert page.count('id="02_two-figure-2"') == 1
    assert "widget-view" not in page


def test_failed_notebook_is_shown_clearly(root):
    failed = card(root, "03")
    assert 'class="card failed"' in failed
    assert "✗ failed" in failed
    assert "this is why" in failed
    assert 'href="#03_three-failed"' in failed
    assert "2 of 4</b> notebooks done" in summary_of(root)


def test_notebook_that_was_not_run(root):
    four = card(root, "04")
    assert 'class="card not-run"' in four
    assert "The 04_four notebook" in four, "its title, though it was not run"


def test_times_add_up(root):
    line = re.search(r'<div class="times".*?</div>', summary_of(root), re.DOTALL)[0]
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", line)]
    results = json.loads((root / "build" / "results.json").read_text())
    assert results["bar_s"] == 600
    assert sum(widths) == pytest.approx(100 * results["seconds"] / 600, abs=0.1)
    assert [*re.findall(r'href="#(\w+)"', line)] == ["01_one", "02_two", "03_three"]
    assert re.search(r'class="limit" style="left:100.000%"', line)


def test_one_file_without_a_network(root):
    page = (root / "build" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", page)
    for key in re.findall(r'data-of="([^"]+)"', page):
        assert f'<figure id="{key}">' in page


def test_bar_is_for_a_run_of_everything_only(tmp_path):
    write(tmp_path, "01_one", "1")
    assert run.main(["01"], root=tmp_path, stop=quiet) == 0
    results = json.loads((tmp_path / "build" / "results.json").read_text())
    assert results["bar_s"] is None
    assert "notebooks done in" in summary_of(tmp_path)
    assert 'class="limit"' not in summary_of(tmp_path)

    results["bar_s"] = results["seconds"] / 2  # a run that took twice what it may
    (tmp_path / "build" / "results.json").write_text(json.dumps(results))
    report.write_report(tmp_path)
    assert re.search(r'the bar: .*?<span class="missed">missed', summary_of(tmp_path))
    assert 'left:50.000%"' in summary_of(tmp_path)


def test_report_without_results(tmp_path):
    with pytest.raises(WorkshopError, match="run `make run` first"):
        report.write_report(tmp_path)


# -- what a result looks like ------------------------------------------------------------------


def shown(**records):
    return [(each["value"], each["bar"], each["met"]) for each in key_results(records)]


def test_results_beside_their_bars():
    assert shown(kv_error_share=0.0125) == [("1.25%", "<= 1.00%", False)]
    assert shown(errors=0, nodes_alive=2) == [("2", "", True), ("0", "", True)]
    assert shown(job_condition="Failed") == [("Failed", "== Complete", False)]
    assert shown(second_run_found_head=False) == [("no", "", True)]
    assert shown(throughput_gain=0.9) == [("0.9 times", ">= 1 times", False)]
    assert shown(throughput_gain=None) == [("unknown times", ">= 1 times", False)]
    assert shown(checks={"a": True, "b": True}) == [("2 of 2", "", True)]
    assert shown(checks={"a": True, "b": False}) == [("1 of 2", "== yes", False)]


def test_a_result_beside_another():
    assert shown(accuracy_before=0.21, accuracy_after=0.96) == [("21% → 96%", "", None)]
    assert shown(replicas_seen=[1, 3], predicted_replicas=[1, 3]) == [("1, 3", "", True)]
    assert shown(replicas_seen=[1, 2], predicted_replicas=[1, 3]) == [("1, 2", "== 1, 3", False)]


def test_a_missed_bar_is_never_left_out():
    good = {"nodes_alive": 2, "status_without_token": 401, "spread_over_nodes": 2}
    good |= {"job_condition": "Complete", "recovered": True}
    found = key_results({**good, "checks_passed": False})
    assert len(found) == KEYS_SHOWN
    assert found[-1]["met"] is False


def test_unknown_results_are_shown_as_they_are():
    found = key_results({"list": [1, 2], **{f"thing_{n}": n / 3 for n in range(9)}})
    assert [each["label"] for each in found] == [f"thing_{n}" for n in range(KEYS_SHOWN)]
    assert found[1]["value"] == "0.3333"


def test_readable_is_one_line():
    assert len(readable({"a": "b" * 500})) == 60
