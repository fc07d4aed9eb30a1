"""What README, CONTRIBUTING and INSTRUCTOR name is there, and their commands are understood."""

import re

import pytest

from workshop_lib.tools.cli import COMMANDS
from workshop_lib.tools.execute import CHECKOUT

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "notebooks/INSTRUCTOR.md", "tests/data/README.md")


@pytest.fixture(params=DOCUMENTS)
def document(request):
    path = CHECKOUT / request.param
    return path, path.read_text()


def test_links_lead_somewhere(document):
    path, text = document
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    local = [link for link in links if link and not re.match(r"https?:", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_folders_are_there(document):
    named = re.findall(r"^\| `([\w./]+/)`", document[1], re.MULTILINE)
    assert [name for name in named if not (CHECKOUT / name).is_dir()] == []


def test_commands_are_there(document):
    targets = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", document[1], re.MULTILINE))
    known = set(re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= known
    commands = re.findall(r"(?:^|`)workshop ([a-z]+)", document[1], re.MULTILINE)
    assert set(commands) <= set(COMMANDS)


def test_readme_shows_every_command_in_900_words():
    text = (CHECKOUT / "README.md").read_text()
    assert len(text.split()) <= 900
    shown = set(re.findall(r"^workshop ([a-z]+)", text, re.MULTILINE))
    assert shown | {"lab"} == set(COMMANDS)


def test_the_makefile_is_short():
    assert len((CHECKOUT / "Makefile").read_text().splitlines()) <= 100
