"""The examples in the docstrings of checks and cost are right."""

import doctest
import importlib
import pkgutil

import pytest

import workshop_lib.production.cost

PACKAGES = (workshop_lib.production.cost,)
NAMES = [
    f"{package.__name__}.{module.name}"
    for package in PACKAGES
    for module in pkgutil.iter_modules(package.__path__)
    if module.name != "__main__"
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
