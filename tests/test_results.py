"""record and read_records: what JSON holds goes in and comes out, the rest is refused."""

import json
import math

import numpy
import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.results import (
    RECORD_MIME,
    predict,
    predictions,
    read_records,
    record,
    shared_predictions,
)


class Kernel:
    """IPython in a notebook, as far as `record` looks at it."""

    kernel = True


@pytest.fixture
def displayed(monkeypatch):
    """What `record` displays, as in a notebook's cell."""
    import IPython
    import IPython.display

    outputs = []
    monkeypatch.setattr(IPython, "get_ipython", Kernel)
    monkeypatch.setattr(
        IPython.display, "display", lambda data, raw: outputs.append({"data": data})
    )
    return outputs


@pytest.mark.parametrize(
    "value",
    [23296, 153.2, "Complete", True, None, [1, 2.5, "x"], {"1": {"p50": 3.0}}, numpy.float64(0.5)],
)
def test_a_value_comes_back(displayed, value):
    record("a_value", value)
    back = read_records({"cells": [{"outputs": displayed}]})
    assert back == {"a_value": value}
    json.dumps(displayed)  # the notebook can be written


def test_text_is_readable_and_short(displayed):
    record("p95_ttft_ms", 153.2)
    record("answer", "two\nlines " + "x" * 300)
    assert displayed[0]["data"]["text/plain"] == "p95_ttft_ms = 153.2"
    assert displayed[1]["data"]["text/plain"].startswith("answer = two lines xxx")
    assert len(displayed[1]["data"]["text/plain"]) < 220
    assert len(displayed[1]["data"][RECORD_MIME]["value"]) == 310


def test_a_list_is_kept_as_it_was_when_recorded(displayed):
    value = [1]
    record("a_list", value)
    value.append(2)
    assert displayed[0]["data"][RECORD_MIME]["value"] == [1]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "JSON has no nan"),
        ([1.0, math.inf], "JSON has no inf"),
        (numpy.int64(3), "cannot hold a numpy.int64"),
        (numpy.arange(3), "x.tolist()"),
        ({1: 2}, "keys must be text, and 1 is not"),
        ({"a": {3}}, "cannot hold a builtins.set"),
    ],
)
def test_what_json_cannot_hold_is_refused_in_one_line(displayed, value, expected):
    with pytest.raises(WorkshopError) as caught:
        record("odd_value", value)
    assert expected in str(caught.value)
    assert "odd_value" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert displayed == []


@pytest.mark.parametrize("name", ["", "P95", "a b", "9_lives", 3])
def test_a_name_that_is_none_is_refused(displayed, name):
    with pytest.raises(WorkshopError, match="lower-case"):
        record(name, 1)
    assert displayed == []


def test_recording_again_replaces(displayed):
    record("a", 1)
    record("b", 2)
    record("a", 3)
    cells = [{"cell_type": "markdown"}, {"outputs": displayed[:2]}, {"outputs": displayed[2:]}]
    assert read_records({"cells": cells}) == {"a": 3, "b": 2}


def test_a_script_only_prints(capsys):
    record("nodes", 2)
    assert capsys.readouterr().out == "nodes = 2\n"


def test_a_file_is_read(tmp_path):
    path = tmp_path / "a.ipynb"
    output = {"output_type": "display_data", "data": {RECORD_MIME: {"name": "a", "value": [1]}}}
    path.write_text(json.dumps({"cells": [{"outputs": [output, {"output_type": "stream"}]}]}))
    assert read_records(path) == {"a": [1]}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"cells": 1}'])
def test_what_is_no_notebook_is_refused(tmp_path, content):
    path = tmp_path / "a.ipynb"
    path.write_text(content)
    with pytest.raises(WorkshopError, match="notebook"):
        read_records(path)


def test_predictions_stand_beside_what_the_run_said(displayed):
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
    assert displayed[0]["data"]["text/plain"] == ""  # not shown, and kept all the same
    assert read_records({"cells": [{"outputs": displayed}]})["nodes_that_joined"] == 2
    with pytest.raises(WorkshopError, match="predict"):
        predict("nodes_that_joined", object())
