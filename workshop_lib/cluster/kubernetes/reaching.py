"""Reaching into pods over WebSockets: commands that run there, and ports carried to here.

`exec`: channel 1 is the command's output, 2 its errors, 3 its status. Port-forward: channel 0
carries data, 1 errors, and the first frame of each holds the port (two bytes, low one first).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from workshop_lib.cluster.kube import Json, container_statuses, is_true, labels_of
from workshop_lib.cluster.kubernetes.answers import Answer, problem
from workshop_lib.cluster.kubernetes.api import Api, Lost
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.records import ExecResult
from workshop_lib.errors import ClusterError, ConnectError, NotFoundError, WorkshopError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection as AsyncConnection
    from websockets.sync.client import ClientConnection

    from workshop_lib.cluster.kubernetes.access import Access

__all__ = ["execute", "forwarded"]

OPEN_S = 45.0
"""The longest that a WebSocket may take to open; an API server gives a kubelet 30 s."""

PING_EVERY_S = 30.0
"""A quiet connection is kept alive: load balancers drop those that are idle for minutes."""

WAIT_FOR_POD_S = 30.0
"""A connection waits so long for a pod that is ready, while one is being replaced."""

HALF_CLOSED_S = 30.0
"""Who has sent all may still wait for an answer; silent for so long, it is taken for gone.

The protocol cannot tell the pod that no more will come, nor a socket here whether its other
end is still read.
"""

CLOSE_S = 5.0
"""The longest that closing a forward waits for its connections to end."""

DATA, STDOUT, STDERR, STATUS = 0, 1, 2, 3
PORT_PROTOCOL = ("v4.channel.k8s.io",)

_NOT_FOUND = re.compile(r'exec: \\?"(?P<what>[^"\\]+)\\?": (?P<why>[^:]+)')

# -- WebSockets -----------------------------------------------------------------------------------


class _RefusedError(Exception):
    """The server answered, but did not open the WebSocket."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


def _open(
    api: Api, pod_path: str, params: Mapping[str, Any], protocols: Sequence[str]
) -> ClientConnection:
    """A WebSocket to a pod, with fresh credentials after a 401.

    Raises:
        _RefusedError: The server answered something else.
        Lost: There was no answer.
        ConnectError: The server's certificate is not trusted.
    """
    from websockets.sync.client import connect

    def opened() -> ClientConnection:
        access = api.access
        with _told(access):
            found: ClientConnection = connect(
                _url(access, pod_path, params), **_options(access, protocols)
            )
        return found

    access = api.access
    try:
        return opened()
    except _RefusedError as refused:
        if refused.answer.status != 401:
            raise
    api.login_again(access)
    return opened()


def _url(access: Access, path: str, params: Mapping[str, Any]) -> str:
    return f"ws{access.server.removeprefix('http')}{path}?{urlencode(params, doseq=True)}"


def _options(access: Access, protocols: Sequence[str]) -> dict[str, Any]:
    """How a WebSocket is opened: as every other request of these credentials."""
    from kubernetes.client.rest import should_bypass_proxies

    configuration = access.client.configuration
    direct = should_bypass_proxies(access.server, configuration.no_proxy or "")
    secure = access.server.startswith("https:")
    return {
        "ssl": _trusted(configuration) if secure else None,
        "server_hostname": configuration.tls_server_name or None,
        "subprotocols": list(protocols),
        "additional_headers": access.headers(),  # no Accept: a kubelet answers 406 to JSON
        "user_agent_header": None,
        "compression": None,
        "proxy": None if direct else configuration.proxy,
        "open_timeout": OPEN_S,
        "ping_interval": PING_EVERY_S,
        "ping_timeout": None,
        "close_timeout": 1.0,
        "max_size": None,
    }


@contextlib.contextmanager
def _told(access: Access) -> Iterator[None]:
    """Turn what opening a WebSocket raises into the errors of `_open`."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

    try:
        yield
    except InvalidStatus as error:
        body = error.response.body or b""
        answer = Answer(error.response.status_code, body.decode(errors="replace"))
        raise _RefusedError(answer) from None
    except ssl.SSLError as error:
        raise ConnectError(f"{access.server}: no trusted connection ({error})") from None
    except (InvalidHandshake, InvalidURI, OSError, EOFError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise Lost(f"{access.server} does not answer: {said}") from None


def _trusted(configuration: Any) -> ssl.SSLContext:
    """Which certificates count, and which is ours, as for every other request."""
    import certifi

    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or certifi.where())
    if not configuration.verify_ssl:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


# -- which pod ------------------------------------------------------------------------------------


def _choose_pod(name: str, pods: Iterable[Json]) -> Json:
    """The pod that a name, or the beginning of one (`ray-cluster-0`), means.

    Raises:
        NotFoundError: None fits, or several do.
    """
    alive = [p for p in pods if (p.get("status") or {}).get("phase") in ("Pending", "Running")]
    exact = [pod for pod in alive if pod["metadata"]["name"] == name]
    found = exact or [pod for pod in alive if pod["metadata"]["name"].startswith(f"{name}-")]
    # Somebody else's pods, and those that are ending, only count when there is no other.
    for preferred in (_is_ours, lambda pod: not pod["metadata"].get("deletionTimestamp")):
        if len(found) > 1:
            found = [pod for pod in found if preferred(pod)] or found
    if len(found) != 1:
        shown = [pod["metadata"]["name"] for pod in found or alive]
        what = "fits several pods" if found else "is no running pod's name"
        raise NotFoundError(f"{name!r} {what}: {', '.join(shown[:8]) or 'none'}")
    return found[0]


def _is_ours(pod: Json) -> bool:
    labels = labels_of(pod)
    return labels.get("app.kubernetes.io/part-of") == "ray-vllm-workshop" or (
        "ray.io/cluster" in labels
    )


def _find_target(api: Api, namespace: str, target: str, port: int) -> tuple[str, int]:
    """The pod and its port behind a Service's or pod's name.

    Raises:
        NotFoundError: No such target, port or ready pod.
    """
    service = api.get(resource_of_kind("Service"), namespace, target)
    pods = resource_of_kind("Pod")
    if service is None:
        return _choose_pod(target, api.list(pods, namespace))["metadata"]["name"], port
    entries = {entry["port"]: entry for entry in service["spec"].get("ports") or []}
    if port not in entries:
        ports = ", ".join(map(str, entries)) or "none"
        raise NotFoundError(f"Service/{target} has no port {port}; it has {ports}")
    selector = service["spec"].get("selector") or {}
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    found = api.list(pods, namespace, labels=labels) if labels else []
    ready = [p for p in found if is_true(p, "Ready") and not p["metadata"].get("deletionTimestamp")]
    if not ready:
        raise NotFoundError(
            f"Service/{target} has no ready pod behind it; wait_ready() on its workload first"
        )
    name, wanted = ready[0]["metadata"]["name"], entries[port].get("targetPort", port)
    named = {entry.get("name"): entry["containerPort"]
             for container in ready[0]["spec"]["containers"]
             for entry in container.get("ports") or []}  # fmt: skip
    if not isinstance(wanted, int) and wanted not in named:
        raise NotFoundError(f"pod {name} has no port named {wanted!r}")
    return name, int(named.get(wanted, wanted))


# -- exec -----------------------------------------------------------------------------------------


def execute(
    api: Api,
    namespace: str,
    pod: str,
    command: Sequence[str],
    container: str | None,
    timeout_s: float,
) -> ExecResult:
    """Run a command in a container and wait for its end.

    It is sent once: what was begun is never begun again by itself.

    Raises:
        NotFoundError: The pod or container is not there, or does not run.
        ClusterError: The command does not exist, took too long, or its end is not known.
    """
    found = _choose_pod(pod, api.list(resource_of_kind("Pod"), namespace))
    name = found["metadata"]["name"]
    names = [each["name"] for each in found["spec"]["containers"]]
    container = container or names[0]
    if container not in names:
        raise NotFoundError(f"{name} has no container {container!r}; it has {', '.join(names)}")
    if "running" not in (container_statuses(found).get(container, {}).get("state") or {}):
        raise NotFoundError(
            f"container {container!r} of {name} does not run; see its workload's table()"
        )
    if not command:
        raise ClusterError(f"exec in {name}: there is no command")
    path = resource_of_kind("Pod").path(namespace, name) + "/exec"
    params = {"command": list(command), "container": container, "stdout": "true", "stderr": "true"}
    try:
        opened = _open(api, path, params, ["v5.channel.k8s.io", "v4.channel.k8s.io"])
    except _RefusedError as refused:
        raise problem(refused.answer, f"exec in {name}") from None
    with opened:
        return _read_to_end(opened, name, command, timeout_s)


def _read_to_end(
    opened: ClientConnection, name: str, command: Sequence[str], timeout_s: float
) -> ExecResult:
    """Collect the channels until the status comes."""
    from websockets.exceptions import ConnectionClosed

    deadline = time.monotonic() + timeout_s
    said = {STDOUT: bytearray(), STDERR: bytearray()}
    shown = " ".join(command)[:80]
    while True:
        try:
            data = opened.recv(timeout=max(0.01, deadline - time.monotonic()), decode=False)
        except TimeoutError:
            raise ClusterError(
                f"exec in {name}: {shown!r} did not end within {timeout_s:g} s; it may still run "
                "there; give it more with timeout_s="
            ) from None
        except ConnectionClosed as error:
            raise Lost(
                f"exec in {name}: the connection ended without an exit code ({error}); whether "
                f"{shown!r} has ended is not known: look before you run it again"
            ) from None
        channel, text = (data[0], data[1:]) if data else (STDOUT, b"")
        if channel in said:
            said[channel] += text
        elif channel == STATUS:
            code = _exit_code(json.loads(text), name, command)
            output, errors = (bytes(each).decode(errors="replace") for each in said.values())
            return ExecResult(code, output, errors)


def _exit_code(status: Json, name: str, command: Sequence[str]) -> int:
    """The exit code in a Status.

    Raises:
        ClusterError: The command was not run.
    """
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or []:
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    message = str(status.get("message", ""))
    found = _NOT_FOUND.search(message)
    reason = found["why"].strip() if found else " ".join(message.split())[:300]
    raise ClusterError(f"exec in {name}: {command[0]!r}: {reason}")


# -- forward --------------------------------------------------------------------------------------


@contextlib.contextmanager
def forwarded(api: Api, namespace: str, target: str, port: int) -> Iterator[str]:
    """A URL on this machine for a port of a Service or pod, for as long as a block runs.

    Each connection finds its pod anew, so what is forwarded survives a pod's restart.

    Raises:
        NotFoundError: No such target, port or ready pod.
        WorkshopError: The server refuses it.
    """
    forward = _Forward(api, namespace, target, port)
    forward.try_out()  # what is wrong is said here, not in a thread
    forward.start()
    try:
        yield forward.url
    finally:
        forward.close()


class _Forward:
    """Listens on loopback, in a thread of its own, and carries each connection to a pod."""

    def __init__(self, api: Api, namespace: str, target: str, port: int) -> None:
        self._api, self._namespace, self._target, self._port = api, namespace, target, port
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name=f"forward {target}:{port}", daemon=True
        )
        self._listens = threading.Event()
        self._open: set[socket.socket] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.url = ""

    def try_out(self) -> None:
        """Open the pod's port once."""
        try:
            with _open(self._api, *self._where(), PORT_PROTOCOL):
                pass
        except _RefusedError as refused:
            raise problem(refused.answer, f"forward to {self._target}") from None

    def start(self) -> None:
        """Take connections from now on."""
        self._thread.start()
        self._listens.wait()

    def close(self) -> None:
        """Close the port and every connection; none is waited for longer than `CLOSE_S`."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(CLOSE_S)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            tasks = [asyncio.create_task(self._accept(listener))]
            self._listens.set()
            await self._stop.wait()
        tasks += self._carrying
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for local in self._open:
            local.close()

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            local, _ = await self._loop.sock_accept(listener)
            self._open.add(local)
            task = asyncio.create_task(self._carry(local))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    def _where(self) -> tuple[str, dict[str, str]]:
        """The path and query of the pod's port, as it is now."""
        pod, port = _find_target(self._api, self._namespace, self._target, self._port)
        path = resource_of_kind("Pod").path(self._namespace, pod) + "/portforward"
        return path, {"ports": str(port)}

    async def _carry(self, local: socket.socket) -> None:
        """One connection, from its beginning to its end."""
        try:
            if remote := await self._patiently_connected():
                async with remote:
                    sender = asyncio.create_task(_send_all(local, remote))
                    await _receive_all(local, remote, sender)
                    sender.cancel()
        finally:
            self._open.discard(local)
            local.close()

    async def _patiently_connected(self) -> AsyncConnection | None:
        """A WebSocket to a pod that is ready; None when none comes."""
        from websockets.asyncio.client import connect

        deadline = time.monotonic() + WAIT_FOR_POD_S
        while time.monotonic() < deadline:
            with contextlib.suppress(_RefusedError, WorkshopError):
                where = await asyncio.to_thread(self._where)  # a 401 logs in again there
                access = self._api.access
                with _told(access):
                    return await connect(_url(access, *where), **_options(access, PORT_PROTOCOL))
            await asyncio.sleep(0.5)
        return None


async def _send_all(local: socket.socket, remote: AsyncConnection) -> None:
    """What comes from here goes to the pod, until no more will come."""
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(OSError, ConnectionClosed):
        while data := await asyncio.get_running_loop().sock_recv(local, 1 << 16):
            await remote.send(bytes([DATA]) + data)


async def _receive_all(
    local: socket.socket, remote: AsyncConnection, sender: asyncio.Task[None]
) -> None:
    """What comes from the pod goes here, until its end, or nobody listens any more."""
    from websockets.exceptions import ConnectionClosed

    begun: set[int] = set()
    with contextlib.suppress(OSError, ConnectionClosed):
        while True:
            try:
                async with asyncio.timeout(HALF_CLOSED_S):
                    message = await remote.recv(decode=False)
            except TimeoutError:
                if sender.done():
                    return
                continue
            channel, data = (message[0], message[1:]) if message else (DATA, b"")
            if channel not in begun:  # its first frame says which port it is for
                begun.add(channel)
            elif channel != DATA:  # such as: nobody listens on the pod's port
                return
            else:
                await asyncio.get_running_loop().sock_sendall(local, data)
