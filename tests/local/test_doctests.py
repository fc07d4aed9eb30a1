"""The examples in docstrings are right."""

import doctest
import importlib
import pkgutil

import pytest

import workshop_lib.cluster.local

NAMES = [
    "workshop_lib.cluster.base", "workshop_lib.cluster.manifests", "workshop_lib.cluster.kube",
    *(f"workshop_lib.cluster.local.{m.name}"
    for m in pkgutil.iter_modules(workshop_lib.cluster.local.__path__)
      if m.name not in ("__main__", "launch", "shim")),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
