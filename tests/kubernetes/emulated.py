"""Fixtures: a cluster over real HTTP, from the emulator, a kubeconfig for it, and the library."""

import threading

import pytest
import yaml
from emulator import Emulator

from workshop_lib.cluster.kubernetes import KubernetesCluster, api, deleting


def kubeconfig(server, token="good-token", **context):
    return {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "ada", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {
            "cluster": "here", "user": "ada", "namespace": "workshop", **context}}],
    }  # fmt: skip


@pytest.fixture
def emulator():
    server = Emulator()
    yield server
    server.close()


@pytest.fixture
def config(emulator, tmp_path, monkeypatch):
    """A kubeconfig's path; nothing else of this machine's configuration is seen."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig(emulator.url)))
    return path


@pytest.fixture
def quick(monkeypatch):
    """Pauses of nothing, where the server does not ask for one."""
    monkeypatch.setattr(deleting, "POLL_S", 0.02)
    ask = api.Pauses.next_s

    def next_s(self, asked_s=None):
        pause_s = ask(self, asked_s)
        return pause_s if pause_s is None or asked_s is not None else 0.01

    monkeypatch.setattr(api.Pauses, "next_s", next_s)


@pytest.fixture
def cluster(config, quick):
    """The cluster, and the proof that it leaves no thread behind."""
    before = set(threading.enumerate())
    found = KubernetesCluster("kind", kubeconfig=config)
    yield found
    found.close()
    ours = ("watch ", "log ", "forward ")
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith(ours)]
    assert left == []
