"""The `workshop` command: every subcommand is there and ends in one line; what documents name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workshop_lib.tools.cli import COMMANDS, main
from workshop_lib.tools.execute import CHECKOUT

SNAPSHOT = str(Path(__file__).parents[1] / "data/kubernetes/cluster/healthy.json")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "notebooks/INSTRUCTOR.md", "tests/data/README.md")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage: workshop" in capsys.readouterr().out


def test_without_a_command_it_lists_them_and_nothing_is_reported_home(monkeypatch, capsys):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")  # a learner's own choice stays
    assert main([]) == 0
    assert re.findall(r"^  (\w+)", capsys.readouterr().out, re.MULTILINE) == list(COMMANDS)
    main(["status"])
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" == os.environ["DO_NOT_TRACK"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nope"], 2, "no command 'nope'"),
        (["run", "99"], 1, "there is no notebook '99'"),
        (["diagnose", "/no/such/file"], 2, "/no/such/file"),
        (["recipe", "check", "/no/such/file"], 1, "/no/such/file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line(arguments, status, words, capfd):
    assert main(arguments) == status
    out, err = capfd.readouterr()
    assert (out + err).count("\n") == 1
    assert words in out + err


@pytest.mark.parametrize("arguments", [["diagnose", SNAPSHOT, "--json"], ["cost"], ["--help"]])
def test_output_that_nobody_reads_ends_the_command_in_silence(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "workshop_lib.tools.cli", *arguments]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 141)


# -- what README, CONTRIBUTING and INSTRUCTOR name ---------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_names_is_there(name):
    path, text = CHECKOUT / name, (CHECKOUT / name).read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    local = [link for link in links if link and not re.match(r"https?:", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []
    folders = re.findall(r"^\| `([\w./]+/)`", text, re.MULTILINE)
    assert [folder for folder in folders if not (CHECKOUT / folder).is_dir()] == []
    known = set(re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE)) <= known
    assert set(re.findall(r"(?:^|`)workshop ([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)


def test_readme_shows_every_command_in_900_words():
    text = (CHECKOUT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert {*re.findall(r"^workshop ([a-z]+)", text, re.MULTILINE), "lab"} == set(COMMANDS)
    assert len((CHECKOUT / "Makefile").read_text().splitlines()) <= 100
