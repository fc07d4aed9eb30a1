"""Who reads the mock API server's log: our library, `kubectl logs`, and one that only receives.

Each runs in a process of its own (see `workers`), and reads one log after the other.
"""

from __future__ import annotations

import resource
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.log_server import CONTAINER, NAMESPACE, POD
from workshop_lib.tools.measures.workers import answer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Read", "kubectl_client", "receiving_client", "workshop_client", "write_kubeconfig"]

KUBECTL_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Read:
    """What a client says of a log that it has read.

    Attributes:
        lines: How many it was given; None: it does not count them.
        cpu_s: CPU time that it took.
    """

    lines: int | None
    cpu_s: float


def write_kubeconfig(url: str, path: Path) -> Path:
    """Write the configuration with which the mock server is reached.

    Args:
        url: The server's address.
        path: The file.

    Returns:
        The file.
    """
    import yaml

    body = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "mock",
        "clusters": [{"name": "mock", "cluster": {"server": url}}],
        "users": [{"name": "mock", "user": {}}],
        "contexts": [
            {"name": "mock", "context": {"cluster": "mock", "user": "mock", "namespace": NAMESPACE}}
        ],
    }
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    return path


def workshop_client(connection: Connection) -> None:
    """Be a learner who goes through the lines of `cluster.logs`."""
    from workshop_lib.cluster.kubernetes import KubernetesCluster

    def read(url: str) -> Read:
        with tempfile.TemporaryDirectory() as folder:
            kubeconfig = write_kubeconfig(url, Path(folder) / "kubeconfig")
            cluster = KubernetesCluster("kind", kubeconfig=kubeconfig)
            began_s, count = time.process_time(), 0
            for _line in cluster.logs("Pod", POD):
                count += 1
            cpu_s = time.process_time() - began_s
            cluster.close()
        return Read(count, cpu_s)

    answer(connection, read)


def kubectl_client(connection: Connection) -> None:
    """Be `kubectl logs`, asked for the times as our library asks, its output thrown away."""
    from workshop_lib.cluster import manifests

    def read(url: str) -> Read:
        with tempfile.TemporaryDirectory() as folder:
            kubeconfig = write_kubeconfig(url, Path(folder) / "kubeconfig")
            command = [manifests._kubectl(), f"--kubeconfig={kubeconfig}"]
            command += [f"--cache-dir={folder}/cache", "logs", POD, "--timestamps"]
            before_s = _children_s()
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=KUBECTL_TIMEOUT_S,
                check=False,
            )
        if done.returncode:
            last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
            raise WorkshopError(f"kubectl logs ended with status {done.returncode}: {last}")
        return Read(None, _children_s() - before_s)

    answer(connection, read)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def receiving_client(connection: Connection) -> None:
    """Be a client that only empties its socket: the server's own rate shows."""

    def read(url: str) -> Read:
        address = urlsplit(url)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{POD}/log?container={CONTAINER}"
        began_s = time.process_time()
        buffer = bytearray(1 << 20)
        with socket.create_connection((address.hostname or "", address.port or 80)) as server:
            server.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            while server.recv_into(buffer):
                pass
        return Read(None, time.process_time() - began_s)

    answer(connection, read)
