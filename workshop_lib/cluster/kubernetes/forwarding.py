"""A port of a pod on this machine's loopback address, for as long as a block runs.

Each connection finds its pod anew, so what is forwarded survives a pod's restart. Every
connection is one WebSocket to the API server (channel 0 carries data, channel 1 errors;
the first frame of each holds the port, two bytes, low one first).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.kube import is_true
from workshop_lib.cluster.kubernetes.api import Api, Lost
from workshop_lib.cluster.kubernetes.carrying import carry
from workshop_lib.cluster.kubernetes.executing import choose_pod
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.kubernetes.sockets import Refused, open_socket
from workshop_lib.errors import NotFoundError, WorkshopError

if TYPE_CHECKING:
    from websocket import WebSocket

__all__ = ["Forward", "find_target", "forwarded"]

Json = Mapping[str, Any]

PROTOCOL = "v4.channel.k8s.io"
WAIT_FOR_POD_S = 30.0
"""A connection waits so long for a pod that is ready, while one is being replaced."""


def find_target(api: Api, namespace: str, target: str, port: int) -> tuple[str, int]:
    """The pod and its port behind a Service's or pod's name.

    Args:
        api: The server.
        namespace: Where.
        target: A Service's name, a pod's name, or the beginning of one.
        port: The port as the manifest says it.

    Raises:
        NotFoundError: No such target, port or ready pod.
    """
    service = api.get(resource_of_kind("Service"), namespace, target)
    if service is None:
        pods, _ = api.list(resource_of_kind("Pod"), namespace)
        pod = choose_pod(target, pods)
        return pod["metadata"]["name"], port
    entries = {entry["port"]: entry for entry in service["spec"].get("ports") or []}
    if port not in entries:
        ports = ", ".join(map(str, entries)) or "none"
        raise NotFoundError(f"Service/{target} has no port {port}; it has {ports}")
    selector = service["spec"].get("selector") or {}
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    pods, _ = api.list(resource_of_kind("Pod"), namespace, labels=labels) if labels else ([], "")
    ready = [p for p in pods if is_true(p, "Ready") and not p["metadata"].get("deletionTimestamp")]
    if not ready:
        raise NotFoundError(
            f"Service/{target} has no ready pod behind it; wait_ready() on its workload first"
        )
    wanted = entries[port].get("targetPort", port)
    return ready[0]["metadata"]["name"], _container_port(ready[0], wanted)


def _container_port(pod: Json, wanted: int | str) -> int:
    """A Service's target port as a number; a name is looked up in the pod."""
    if isinstance(wanted, int):
        return wanted
    for container in pod["spec"]["containers"]:
        for entry in container.get("ports") or []:
            if entry.get("name") == wanted:
                return int(entry["containerPort"])
    raise NotFoundError(f"pod {pod['metadata']['name']} has no port named {wanted!r}")


class Forward:
    """Listens on loopback and carries each connection to a pod, until it is closed.

    Args:
        api: The server.
        namespace: Where.
        target: A Service's name, a pod's name, or the beginning of one.
        port: The port as the manifest says it.
    """

    def __init__(self, api: Api, namespace: str, target: str, port: int) -> None:
        self._api = api
        self._namespace = namespace
        self._target = target
        self._port = port
        self._try_out()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.error: str = ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        name = f"forward {target}:{port}"
        self._acceptor = threading.Thread(target=self._accept, name=name, daemon=True)
        self._acceptor.start()

    def _try_out(self) -> None:
        """Say here, not in a thread, what is wrong with the name, the port or the rights."""
        pod, port = find_target(self._api, self._namespace, self._target, self._port)
        try:
            self._open_to(pod, port).shutdown()
        except Refused as refused:
            raise refused.explained(f"forward to {self._target}") from None
        except Lost:
            pass  # each connection tries for itself

    def _open_to(self, pod: str, port: int) -> WebSocket:
        path = resource_of_kind("Pod").path(self._namespace, pod) + "/portforward"
        return open_socket(self._api, path, {"ports": str(port)}, PROTOCOL)

    def close(self) -> None:
        """Close the port and every connection, and end every thread."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    # Not SSLSocket's own, which takes the encryption from under its reader.
                    socket.socket.shutdown(each, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                local, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=self._carry, args=(local,), name=self._acceptor.name, daemon=True
            )
            with self._lock:
                self._open.add(local)
                self._threads = [each for each in self._threads if each.is_alive()]
                self._threads.append(thread)
            thread.start()

    def _carry(self, local: socket.socket) -> None:
        """One connection, from its beginning to its end."""
        try:
            remote = self._connect()
            if remote is not None:
                pod = remote.sock
                with self._lock:
                    self._open.add(pod)
                try:
                    self.error = carry(local, remote, self._stop) or self.error
                finally:
                    with self._lock:
                        self._open.discard(pod)
                    remote.shutdown()
        finally:
            with self._lock:
                self._open.discard(local)
            local.close()

    def _connect(self) -> WebSocket | None:
        """A WebSocket to a pod that is ready; None when there is none, or the block has ended."""
        deadline = time.monotonic() + WAIT_FOR_POD_S
        while not self._stop.is_set():
            try:
                return self._open_to(
                    *find_target(self._api, self._namespace, self._target, self._port)
                )
            except Refused as refused:
                self.error = str(refused)
            except WorkshopError as error:
                self.error = str(error)
            if time.monotonic() > deadline:
                return None
            self._stop.wait(0.5)
        return None


@contextlib.contextmanager
def forwarded(api: Api, namespace: str, target: str, port: int) -> Iterator[str]:
    """A URL on this machine for a port of a Service or pod.

    Raises:
        NotFoundError: No such target, port or ready pod.
    """
    forward = Forward(api, namespace, target, port)
    try:
        yield forward.url
    finally:
        forward.close()
