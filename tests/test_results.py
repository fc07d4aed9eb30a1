"""What a notebook shows and keeps: records, predictions, tables of words, lists of checks."""

import doctest
import importlib
import json
import math
import re
from types import SimpleNamespace

import numpy
import pandas as pd
import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.results import predict, predictions, read_records, record, shared_predictions
from workshop_lib.tables import text_table


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """Reads back what was recorded, from a notebook that holds what was displayed."""
    import IPython
    import IPython.display

    outputs = [{"output_type": "stream", "text": "a log line"}]
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=True))
    monkeypatch.setattr(
        IPython.display, "display", lambda data, raw: outputs.append({"data": data})
    )

    def read():
        cells = [{"cell_type": "markdown"}, {"outputs": outputs}]
        (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
        return read_records(tmp_path / "a.ipynb")

    read.outputs = outputs
    return read


def test_values_come_back(notebook):
    values = [23296, 153.2, "Complete", True, None, [1, 2.5, "x"], {"1": {"p50": 3.0}}]
    for number, value in enumerate(values):
        record(f"value_{number}", value)
    record("numpys_float", numpy.float64(0.5))
    record("value_0", 7)  # again: it is replaced
    back = {f"value_{n}": value for n, value in enumerate(values)} | {"value_0": 7}
    assert notebook() == back | {"numpys_float": 0.5}


def test_a_value_is_shown_short_and_kept_as_it_was(notebook):
    value = ["two\nlines " + "x" * 300]
    record("answer", value)
    value.append(2)
    shown = notebook.outputs[-1]["data"]["text/plain"]
    assert shown.startswith('answer = ["two') and len(shown) < 220
    assert notebook() == {"answer": value[:1]}


@pytest.mark.parametrize(
    "value", [math.nan, [1.0, math.inf], numpy.int64(3), numpy.arange(3), {"a": {3}}, object()]
)
def test_what_json_cannot_hold_is_refused_in_one_line(notebook, value):
    for keep in (record, predict):
        with pytest.raises(WorkshopError, match=r"^\w+\('odd_value', …\): JSON cannot.*$"):
            keep("odd_value", value)
    with pytest.raises(WorkshopError, match="lower-case"):
        record("Odd value", 1)
    assert notebook() == {}


def test_a_script_only_prints(capsys):
    record("nodes", 2)
    assert capsys.readouterr().out == "nodes = 2\n"


def test_what_is_no_notebook_is_refused(tmp_path):
    (tmp_path / "a.ipynb").write_text('{"cells": ')
    with pytest.raises(WorkshopError, match=r"a\.ipynb cannot be read as a notebook"):
        read_records(tmp_path / "a.ipynb")


def test_predictions_stand_beside_what_the_run_said(notebook):
    predict("nodes_that_joined", 3)
    predict("left_open")
    predict("not_yet_run", "rank 0")
    record("nodes_that_joined", 2, show=False)
    record("left_open", 5)
    table = predictions().data.set_index("result")
    assert table.loc["nodes_that_joined"].tolist() == ["3", "2"]
    assert table.loc["left_open"].tolist() == ["not entered", "5"]
    assert table.loc["not_yet_run"].tolist() == ["rank 0", "not run yet"]
    assert shared_predictions() == "nodes_that_joined: 3 -> 2"
    assert notebook.outputs[1]["data"]["text/plain"] == ""  # not shown, and kept all the same
    assert notebook() == {"nodes_that_joined": 2, "left_open": 5}


def test_a_table_of_words_is_whole_and_stays_the_same():
    why = "each pod gets a rank, in <JOB_COMPLETION_INDEX> " * 3
    frame = pd.DataFrame({"setting": ["completionMode", "limits"], "why": [why, "x"]})
    html = text_table(frame).to_html()
    assert why.strip().replace("<", "&lt;").replace(">", "&gt;") in html  # not cut, not markup
    rules = dict(re.findall(r"\.col(\d) {(.*?)}", html, re.DOTALL))
    assert "nowrap" in rules["0"] and "nowrap" not in rules["1"]
    assert "text-align: left" in html and "row_heading" not in html
    assert text_table(frame.copy()).to_html() == html != text_table(frame[:1]).to_html()


@pytest.mark.parametrize("name", ["checklist", "data", "errors", "progress", "results", "tables"])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"workshop_lib.{name}")).failed == 0
