"""The house: which room may import which, no circle of files, and how large rooms may be.

The rooms stand in one order, and a file imports only from its own room and from those before it.
TYPE_CHECKING imports count: whoever reads a file follows them, too.
"""

import ast
import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest

import workshop_lib

HOUSE = Path(workshop_lib.__file__).parent
ORDER = ("root", "cluster", "serving", "training", "production", "plots", "widgets", "tools")
FILES = sorted(HOUSE.rglob("*.py"))

ALLOWED = {
    ("cluster/base.py", "production"): "Cluster.diagnose imports the rules when it is called",
}
"""Arrows that go up, and why."""

BUDGETS = {
    "cluster": 8_450,
    "serving": 4_600,
    "training": 5_400,
    "production": 7_000,
    "plots": 1_550,
    "widgets": 480,
    "tools": 900,
}
"""Lines of Python that a room has today, rounded up: it may only get smaller."""


def name_of(path):
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NOTEBOOKS = sorted((HOUSE.parent / "notebooks").rglob("*.ipynb"))
MODULES = {name_of(path): path for path in FILES}


@cache
def imports_of(path):
    """The files of the house that a file imports, inside functions too; packages' own apart."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        known = [name for name in names if name in MODULES]
        # `from package import module` needs the module; `from package import name` the package.
        found.update(MODULES[name] for name in (known[1:] or known))
    return found - {path}


def room_of(path):
    parts = path.relative_to(HOUSE).parts
    return parts[0] if len(parts) > 1 else "root"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_arrows_point_down(path):
    here = ORDER.index(room_of(path))
    name = str(path.relative_to(HOUSE))
    if name == "__init__.py":
        return  # the package's own names: connect
    up = {room_of(other) for other in imports_of(path) if ORDER.index(room_of(other)) > here}
    assert {room for room in up if (name, room) not in ALLOWED} == set()


def test_no_circle_of_files():
    done, trail = set(), []

    def visit(path):
        if path in trail:
            names = [str(each.relative_to(HOUSE)) for each in trail[trail.index(path) :]]
            pytest.fail(f"these import each other in a circle: {' -> '.join(names)}")
        if path in done:
            return
        trail.append(path)
        for other in sorted(imports_of(path)):
            if (str(path.relative_to(HOUSE)), room_of(other)) not in ALLOWED:
                visit(other)
        trail.pop()
        done.add(path)

    for path in FILES:
        visit(path)


@pytest.mark.parametrize(("room", "most"), BUDGETS.items())
def test_room_is_small(room, most):
    lines = sum(len(path.read_text().splitlines()) for path in (HOUSE / room).rglob("*.py"))
    assert lines <= most, f"{room} has {lines} lines: a second mechanism, or a special case?"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_what_rooms_export(path):
    """From a room (`serving`, `serving.memory`) or a module beside the rooms, no deeper."""
    cells = json.loads(path.read_text())["cells"]
    source = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    for module, names in re.findall(
        r"^from (workshop_lib[\w.]*) import (\([^)]*\)|.*)$", source, re.M
    ):
        assert module.count(".") <= 2, f"{module} lies inside a room"
        parts = {name.rpartition(".")[2] for name in MODULES if name.startswith(f"{module}.")}
        exported = {*getattr(importlib.import_module(module), "__all__", []), *parts}
        assert set(re.findall(r"\w+", names)) <= exported, module


def test_what_a_room_exports_is_there():
    for room in ORDER[1:-1]:
        module = importlib.import_module(f"workshop_lib.{room}")
        missing = [name for name in getattr(module, "__all__", []) if not hasattr(module, name)]
        assert missing == [], room
