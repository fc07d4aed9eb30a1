"""The `workshop` command: every subcommand is there, says what it takes, and ends in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workshop_lib.tools.cli import COMMANDS, main

SNAPSHOT = Path(__file__).parents[1] / "data/kubernetes/cluster/healthy.json"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage: workshop" in capsys.readouterr().out


def test_without_a_command_it_lists_them(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name}" in out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nope"], 2, "no command 'nope'"),
        (["run", "99"], 1, "there is no notebook '99'"),
        (["diagnose", "/no/such/file"], 1, "/no/such/file"),
        (["recipe", "check", "/no/such/file"], 1, "/no/such/file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line(arguments, status, words, capfd):
    assert main(arguments) in (status, 2)
    out, err = capfd.readouterr()
    assert (out + err).count("\n") == 1
    assert words in out + err


def test_nothing_is_reported_home(monkeypatch, capsys):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "0")  # a learner's own choice stays
    main(["status"])
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["DO_NOT_TRACK"] == "0"


@pytest.mark.parametrize("arguments", [["diagnose", "SNAPSHOT", "--json"], ["cost"], ["--help"]])
def test_output_that_nobody_reads_ends_the_command_in_silence(arguments):
    words = [str(SNAPSHOT) if word == "SNAPSHOT" else word for word in arguments]
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "workshop_lib.tools.cli", *words]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 141)
