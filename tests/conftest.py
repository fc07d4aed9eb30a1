"""What every test can use."""

import functools
import os
import signal

import pytest

from workshop_lib import manifests


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """A learner's shell may choose a state or a model; tests choose for themselves."""
    for name in list(os.environ):
        if name.startswith("WORKSHOP_") and name not in ("WORKSHOP_CRDS", "WORKSHOP_MODELS_DIR"):
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


def pytest_configure():
    """A shell's background job ignores Ctrl-C, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
