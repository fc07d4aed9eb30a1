"""The examples in the docstrings of the room and the budget are right."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["budget", "room.board", "room.roster", "room.room"])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"workshop_lib.production.{name}")).failed == 0
