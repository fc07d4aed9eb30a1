"""What every test can use."""

import os
import signal

import pytest


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """A learner's shell may choose a state or a model; tests choose for themselves."""
    for name in list(os.environ):
        if name.startswith("WORKSHOP_") and name not in ("WORKSHOP_CRDS", "WORKSHOP_MODELS_DIR"):
            monkeypatch.delenv(name)


def pytest_configure():
    """A shell's background job ignores Ctrl-C, and so would every process that a test starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
