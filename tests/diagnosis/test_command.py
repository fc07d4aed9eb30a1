"""The command line, files, and snapshots of odd forms."""

import json
import subprocess
import sys

import pytest
from small import container, crashed, pod, snapshot

from workshop_lib.data import data_dir
from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis import diagnose, load_snapshot, save_snapshot
from workshop_lib.production.diagnosis.diagnose import main

RECORDED = data_dir() / "recorded/kubernetes"


def test_the_command_line(capsys):
    words = [sys.executable, "-m", "workshop_lib.tools.cli", "diagnose"]
    done = subprocess.run(
        [*words, RECORDED / "oom-killed.json", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert done.returncode == 0 and answer["verdict"] == "problems"
    keys = ["rule", "cause", "objects", "evidence", "fix", "taught_in"]
    assert list(answer["findings"][0]) == keys
    assert main([str(RECORDED / "healthy.json")]) == 0
    assert capsys.readouterr().out == "verdict: healthy\n"


@pytest.mark.parametrize("text", ["", "[]", '{"pods": 3}', '{"a": 1}', '{"pods": [1]}', "{"])
def test_a_file_that_is_no_snapshot_is_one_line(tmp_path, capsys, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    assert main([str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert said.err.startswith("WorkshopError: ")


def test_saving_and_loading(tmp_path):
    taken = snapshot(pod("a", container(crashed())))
    file = save_snapshot(taken, tmp_path / "snapshot.json")
    assert load_snapshot(file) == taken
    with pytest.raises(WorkshopError, match="No such file or directory"):
        load_snapshot(tmp_path / "none.json")
    with pytest.raises(WorkshopError, match="No such file or directory"):
        save_snapshot(taken, tmp_path / "none/snapshot.json")


def test_a_diagnosis_shows_itself():
    found = diagnose(load_snapshot(RECORDED / "cuda-oom.json"))
    page = found._repr_html_()
    assert "CUDA out of memory. Tried to allocate" in page and "verdict: <b>problems" in page
    assert str(found).splitlines()[1].startswith("1. cuda-oom: ")
    assert found[0] in found and found[:1] == [found[0]]


def test_fields_that_a_server_left_out_or_nulled_are_no_error():
    for body in (
        {"pods": [{"metadata": {"name": "a"}}]},
        {"pods": [{"metadata": {"name": "a", "labels": None}, "spec": None, "status": None}]},
        {"services": [{"metadata": {"name": "a"}, "spec": None}]},
        {"jobs": [{"metadata": {"name": "a"}}], "logs": None, "nodes": None},
        {"events": [{"reason": "x"}], "rayservices": [{"metadata": {"name": "a"}}]},
        {"persistentvolumeclaims": [{"metadata": {"name": "a"}}], "ray": [], "serve": 3},
        {"pods": {"kind": "List", "items": [{"metadata": {"name": "a"}}]}},
    ):
        diagnose(body)
