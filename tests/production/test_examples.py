"""The examples in the docstrings of these rooms are right."""

import doctest
import importlib
import pkgutil

import pytest

from workshop_lib import production

ROOMS = ("autoscaling", "labs", "monitoring", "room", "budget", "probes")
MODULES = [
    found.name
    for found in pkgutil.walk_packages(production.__path__, "workshop_lib.production.")
    if found.name.split(".")[2] in ROOMS
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
