"""What every test can use, and which tests run beside which.

`make test` has two processes (pytest-xdist). One runs what keeps both cores busy, a test
after the other: whatever starts Ray, vLLM, a training or a notebook. The other runs the
files of all the rest beside it, while those wait for a server to start.
"""

import functools
import os
import signal
from pathlib import Path

import pytest

from workshop_lib.cluster import manifests

TESTS = Path(__file__).parent
HEAVY = (
    "production/test_autoscale.py",
    "training/test_experiments.py",
    "training/test_grpo.py",
    "local/test_grpo_component.py",
    "local/test_ray.py",
    "training/test_shared_prompts.py",
    "notebooks/test_interrupted.py",
    "notebooks/test_notebooks.py",
    "serving/test_memory_vllm.py",
    "ui/test_lab.py",
)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """A learner's shell may choose a state or a model; tests choose for themselves."""
    for name in list(os.environ):
        if name.startswith("WORKSHOP_") and name != "WORKSHOP_MODELS_DIR":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="session")
def rendered_once():
    """The project's own manifests do not change while tests run: kustomize reads each once."""
    ask = manifests._kustomized
    remembered = functools.cache(ask)

    def kustomized(folder):
        own = folder.is_relative_to(manifests.manifests_dir())
        return (remembered if own else ask)(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "_kustomized", kustomized)
        yield


def scope_of(nodeid):
    """What stays together in one process: all that is heavy, or else a file."""
    path = nodeid.split("::")[0].removeprefix("tests/")
    return "heavy" if path in HEAVY else path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Heavy tests first: they take longest, and end last even so."""
    items.sort(key=lambda item: scope_of(item.nodeid) != "heavy")


def pytest_xdist_make_scheduler(config, log):
    """Instead of `--dist loadgroup`, whose groups are lost under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class HeavyInOneProcess(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope_of(nodeid)

    return HeavyInOneProcess(config, log)


def pytest_configure():
    """A shell's background job ignores Ctrl-C, and so would every process that a test starts."""
    missing = [path for path in HEAVY if not (TESTS / path).exists()]
    if missing:
        raise pytest.UsageError(f"tests/conftest.py: HEAVY names {missing}, which are not there")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
