"""Fixtures: a cluster over real HTTP, from the emulator, a kubeconfig for it, and the library."""

import threading

import pytest
import yaml
from emulator import Emulator

from workshop_lib.cluster.kubernetes import KubernetesCluster, access, deleting, logs


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
    """Pauses of nearly nothing, where the server does not ask for one."""
    monkeypatch.setattr(access, "RETRY", access.RETRY.new(backoff_factor=0, backoff_jitter=0))
    monkeypatch.setattr(deleting, "POLL_S", 0.02)
    monkeypatch.setattr(logs, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(KubernetesCluster, "poll_s", 0.05)


@pytest.fixture
def cluster(config, quick):
    """The cluster, and the proof that it leaves no thread behind."""
    before = set(threading.enumerate())
    found = KubernetesCluster("kind", kubeconfig=config)
    yield found
    found.close()
    ours = ("forward ",)
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith(ours)]
    assert left == []
