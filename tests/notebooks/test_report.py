"""The report of a run: what a room sees first, from toy notebooks and from records."""

import json
import re

import nbformat
import pytest
from toy_notebooks import FIGURE, write

from workshop_lib.tools import report, run
from workshop_lib.tools.report_results import KEYS_SHOWN, KNOWN, Known, key_results, readable
from workshop_lib.errors import WorkshopError

RECORD = "from workshop_lib.results import record\n"


def quiet(state):
    return ""


def summary_of(root):
    """The report's part above the notebooks."""
    page = (root / "build" / "report.html").read_text()
    return page[page.index('<header id="summary">') : page.index("</header>")]


def card(root, number):
    cards = re.findall(r"<article.*?</article>", summary_of(root), re.DOTALL)
    return next(each for each in cards if f'"number">{number}<' in each)


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
    assert re.search(r"checks at the end passed</span>.*?<b>yes</b>.*?✓", good, re.DOTALL)
    assert 'data-of="01_one-figure-1"' in good, "the tagged figure, not the last"


def test_card_of_a_missed_bar(root):
    two = card(root, "02")
    assert "✓ done" in two, "a missed bar is no failure"
    assert re.search(r'class="missed".*?off by.*?<b>25%</b>.*?✗ at most 1%', two, re.DOTALL)
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
    assert "the run ended before it" in four


def test_times_add_up(root):
    line = re.search(r'<div class="times".*?</div>', summary_of(root), re.DOTALL)[0]
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", line)]
    results = json.loads((root / "build" / "results.json").read_text())
    assert results["bar_s"] == 900
    assert sum(widths) == pytest.approx(100 * results["seconds"] / 900, abs=0.1)
    assert [*re.findall(r'href="#(\w+)"', line)] == ["01_one", "02_two", "03_three"]
    assert re.search(r'class="limit" style="left:100.000%"><span>15 min<', line)


def test_one_file_without_a_network(root):
    page = (root / "build" / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", page)
    shown = set(re.findall(r'data-of="([^"]+)"', page))
    assert shown == set(re.findall(r'<figure id="([^"]+)"', page)), "every figure is in the summary"


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


@pytest.mark.parametrize(
    ("lines", "kind", "folds"),
    [(25, "output", False), (26, "output", True), (4, "messages", False), (5, "messages", True)],
)
def test_long_text_is_folded(lines, kind, folds):
    text = report.fold("line\n" * lines, kind, str)
    assert text.startswith("<details>") == folds
    assert text.count("line") >= lines


# -- what a result looks like ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "value", "text", "bar", "met"),
    [
        (Known(label="a", unit="tokens"), 23168, "23,168 tokens", "", None),
        (Known(label="a", unit="%", at_most=0.01), 0.0125, "1.25%", "at most 1%", False),
        (Known(label="a", unit="%", digits=0), 0.9583, "96%", "", None),
        (Known(label="a", at_least=0.9, digits=2), 0.953, "0.95", "at least 0.90", True),
        (Known(label="a", at_least=0.9), None, "unknown", "at least 0.9", False),
        (Known(label="a", at_least=1), True, "yes", "at least 1", False),
        (Known(label="a", at_most=0), 0, "0", "0", True),
        (Known(label="a", exactly=False), False, "no", "no", True),
        (Known(label="a", exactly="Complete"), "Failed", "Failed", "Complete", False),
        (Known(label="a", unit="s", at_most=240, digits=0), 181.6, "182 s", "at most 240 s", True),
    ],
)
def test_known_results(known, value, text, bar, met):
    assert (known.text(value), known.bar, known.met(value)) == (text, bar, met)


def test_a_result_shows_where_it_came_from():
    records = {"accuracy_before": 0.21, "accuracy_after": 0.96}
    assert [each.value for each in key_results(records)] == ["21% → 96%"]
    predicted = {"kv_tokens_predicted": 23296, "kv_tokens_engine": 23296}
    assert [each.value for each in key_results(predicted)] == ["23,296 → 23,296 tokens"]


def test_results_of_several_values():
    table = {
        "checks": Known(label="checks", exactly=True, says="all"),
        "seen": Known(label="replicas", same_as="predicted", says="predicted"),
        "steps": Known(label="steps", unit="steps", at_least=0, says="reached"),
    }
    good = {"checks": {"a": True, "b": True}, "seen": [1, 3], "predicted": [1, 3], "steps": 7}
    shown = key_results(good, table)
    assert [each.value for each in shown] == ["2 of 2", "1, 3", "7 steps"]
    assert [each.met for each in shown] == [True, True, True]
    bad = {"checks": {"a": True, "b": False}, "seen": [1, 2], "predicted": [1, 3], "steps": None}
    shown = key_results(bad, table)
    assert [each.value for each in shown] == ["1 of 2", "1, 2", "unknown"]
    assert [each.met for each in shown] == [False, False, False]
    assert [each.bar for each in shown] == ["all", "predicted", "reached"]


def test_a_missed_bar_is_never_left_out():
    table = {f"r{n}": Known(label=f"result {n}", at_most=1) for n in range(2 * KEYS_SHOWN)}
    records = dict.fromkeys(table, 1) | {f"r{2 * KEYS_SHOWN - 1}": 2}
    shown = key_results(records, table)
    assert len(shown) == KEYS_SHOWN
    assert shown[-1].met is False


def test_unknown_results_are_shown_as_they_are():
    records = {"list": [1, 2], **{f"thing_{n}": n / 3 for n in range(9)}}
    shown = key_results(records)
    assert [each.label for each in shown] == [f"thing_{n}" for n in range(KEYS_SHOWN)]
    assert shown[1].value == "0.3333"


def test_every_label_is_short_enough_for_a_card():
    for name, known in KNOWN.items():
        assert len(known.label) <= 42, name
        assert not known.before or known.before != name


def test_readable_is_one_line():
    assert len(readable({"a": "b" * 500})) == 60
