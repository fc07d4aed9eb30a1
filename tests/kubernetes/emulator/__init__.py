"""A Kubernetes API server for tests: real HTTP and WebSockets, no controllers but a few rules.

Its answers are checked against those of a real Kubernetes 1.36 (`tests/data/kubernetes/http`)
by `test_emulator.py`. Faults are scripted with `Emulator.fail`.
"""

from .server import Emulator, Fault

__all__ = ["Emulator", "Fault"]
