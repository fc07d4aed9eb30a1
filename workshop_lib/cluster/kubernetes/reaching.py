"""Reaching into pods over WebSockets: commands that run there, and ports carried to here.

`exec`: channel 1 is the command's output, 2 its errors, 3 its status. Port-forward: channel 0
carries data, 1 errors, and the first frame of each holds the port (two bytes, low one first).

Each WebSocket is read and written by one thread, in an event loop of its own. Python 3.11 does not
lock a TLS connection: a thread that reads while another one writes can lose what was written. The
API server then waits 32 s for the request (its ReadHeaderTimeout), and closes without an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from workshop_lib.cluster.kube import (
    LABELS,
    RAY_CLUSTER,
    Json,
    container_statuses,
    is_true,
    labels_of,
)
from workshop_lib.cluster.kubernetes.answers import Answer, problem
from workshop_lib.cluster.kubernetes.api import Api, Lost
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.records import ExecResult
from workshop_lib.errors import ClusterError, ConnectError, NotFoundError, WorkshopError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

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

The protocol cannot tell the pod that no more will come.
"""

DATA, STDOUT, STDERR, STATUS = 0, 1, 2, 3
PORT_PROTOCOL = ("v4.channel.k8s.io",)
PODS = resource_of_kind("Pod")

_NOT_FOUND = re.compile(r'exec: \\?"(?P<what>[^"\\]+)\\?": (?P<why>[^:]+)')

# -- WebSockets -----------------------------------------------------------------------------------


class _RefusedError(Exception):
    """The server answered, but did not open the WebSocket."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


async def _open(
    api: Api, path: str, params: Mapping[str, Any], protocols: Sequence[str]
) -> ClientConnection:
    """A WebSocket to a pod, with fresh credentials after a 401."""
    access = api.access
    try:
        return await _connected(access, path, params, protocols)
    except _RefusedError as refused:
        if refused.answer.status != 401:
            raise
    await asyncio.to_thread(api.login_again, access)
    return await _connected(api.access, path, params, protocols)


async def _connected(
    access: Access, path: str, params: Mapping[str, Any], protocols: Sequence[str]
) -> ClientConnection:
    """A WebSocket, opened as every other request of these credentials."""
    import certifi
    from kubernetes.client.rest import should_bypass_proxies
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
    from websockets.typing import Subprotocol

    settings = access.client.configuration
    direct = should_bypass_proxies(access.server, settings.no_proxy or "")
    trusted = None
    try:
        if access.server.startswith("https:"):
            trusted = ssl.create_default_context(cafile=settings.ssl_ca_cert or certifi.where())
            if not settings.verify_ssl:
                trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE
            if settings.cert_file:
                trusted.load_cert_chain(settings.cert_file, settings.key_file)
        return await connect(
            f"ws{access.server.removeprefix('http')}{path}?{urlencode(params, doseq=True)}",
            ssl=trusted,
            server_hostname=settings.tls_server_name or None,
            subprotocols=[Subprotocol(each) for each in protocols],
            additional_headers=access.headers(),  # no Accept: a kubelet answers 406 to JSON
            user_agent_header=None,
            compression=None,
            proxy=None if direct else settings.proxy,
            open_timeout=OPEN_S,
            ping_interval=PING_EVERY_S,
            ping_timeout=None,
            close_timeout=1.0,
            max_size=None,
        )
    except InvalidStatus as error:
        body = error.response.body or b""
        answer = Answer(error.response.status_code, body.decode(errors="replace"))
        raise _RefusedError(answer) from None
    except ssl.SSLError as error:
        raise ConnectError(f"{access.server}: no trusted connection ({error})") from None
    except (InvalidHandshake, InvalidURI, OSError, EOFError) as error:
        both = filter(None, (error, error.__cause__))
        said = "; ".join(str(each) or type(each).__name__ for each in both)
        raise Lost(f"{access.server} does not answer: {' '.join(said.split())}") from None


# -- which pod ------------------------------------------------------------------------------------


def _choose_pod(name: str, pods: Iterable[Json]) -> Json:
    """The pod that a name, or the beginning of one (`ray-cluster-0`), means."""
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
    return labels.items() >= LABELS.items() or RAY_CLUSTER in labels


def _find_target(api: Api, namespace: str, target: str, port: int) -> tuple[str, int]:
    """The pod and its port behind a Service's or pod's name."""
    service = api.get(resource_of_kind("Service"), namespace, target)
    if service is None:
        return _choose_pod(target, api.list(PODS, namespace))["metadata"]["name"], port
    entries = {entry["port"]: entry for entry in service["spec"].get("ports") or []}
    if port not in entries:
        ports = ", ".join(map(str, entries)) or "none"
        raise NotFoundError(f"Service/{target} has no port {port}; it has {ports}")
    selector = service["spec"].get("selector") or {}
    labels = ",".join(f"{key}={value}" for key, value in selector.items())
    found = api.list(PODS, namespace, labels=labels) if labels else []
    ready = [pod for pod in found
             if is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")]  # fmt: skip
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
    """Run a command in a container and wait for its end; what was begun is never begun again."""
    from anyio.from_thread import start_blocking_portal

    found = _choose_pod(pod, api.list(PODS, namespace))
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
    path = PODS.path(namespace, name) + "/exec"
    params = {"command": list(command), "container": container, "stdout": "true", "stderr": "true"}
    try:
        # A notebook's own thread runs an event loop already.
        with start_blocking_portal(name=f"exec {name}") as portal:
            done: ExecResult = portal.call(_run, api, path, params, name, timeout_s)
            return done
    except _RefusedError as refused:
        raise problem(refused.answer, f"exec in {name}") from None


async def _run(
    api: Api, path: str, params: Mapping[str, Any], name: str, timeout_s: float
) -> ExecResult:
    """Send a command and collect its channels until the status comes."""
    from websockets.exceptions import ConnectionClosed

    said = {STDOUT: bytearray(), STDERR: bytearray()}
    shown = " ".join(params["command"])[:80]
    async with await _open(api, path, params, ("v5.channel.k8s.io", "v4.channel.k8s.io")) as opened:
        try:
            async with asyncio.timeout(timeout_s):
                while data := await opened.recv(decode=False):
                    if data[0] == STATUS:
                        break
                    said.get(data[0], bytearray()).extend(data[1:])
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
    code = _exit_code(json.loads(data[1:]), name, params["command"])
    output, errors = (bytes(each).decode(errors="replace") for each in said.values())
    return ExecResult(code, output, errors)


def _exit_code(status: Json, name: str, command: Sequence[str]) -> int:
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

Where = Callable[[], tuple[str, dict[str, str]]]
"""The path and query of the pod's port, as it is now."""


@contextlib.contextmanager
def forwarded(api: Api, namespace: str, target: str, port: int) -> Iterator[str]:
    """A URL on this machine for a port of a Service or pod, for as long as a block runs.

    Each connection finds its pod anew, so what is forwarded survives a pod's restart.
    """
    from anyio.from_thread import start_blocking_portal

    def where() -> tuple[str, dict[str, str]]:
        pod, number = _find_target(api, namespace, target, port)
        return PODS.path(namespace, pod) + "/portforward", {"ports": str(number)}

    with (
        start_blocking_portal(name=f"forward {target}:{port}") as portal,
        portal.wrap_async_context_manager(_listening(api, where, target)) as url,
    ):
        yield url


@contextlib.asynccontextmanager
async def _listening(api: Api, where: Where, target: str) -> AsyncIterator[str]:
    """Listen on loopback; what is still open at the end is cancelled with the event loop."""
    try:  # what is wrong is said here: nobody hears a connection that fails later
        async with await _open(api, *where(), PORT_PROTOCOL):
            pass
    except _RefusedError as refused:
        raise problem(refused.answer, f"forward to {target}") from None
    over = asyncio.Event()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not over.is_set() and (remote := await _patiently_opened(api, where)):
                async with remote:
                    sender = asyncio.create_task(_send_all(reader, remote))
                    await _receive_all(writer, remote, sender)
                    sender.cancel()
        except asyncio.CancelledError:
            pass  # the block is over; Python 3.11 prints a traceback for a cancelled handler
        finally:
            if over.is_set():
                writer.transport.abort()
            writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        over.set()
        for _ in range(3):  # a connection that was just taken gets its task, and sees its end
            await asyncio.sleep(0)
        server.close()  # not before: asyncio would forget what it is about to take


async def _patiently_opened(api: Api, where: Where) -> ClientConnection | None:
    """A WebSocket to a pod that is ready; None when none comes."""
    from anyio import to_thread

    deadline = asyncio.get_running_loop().time() + WAIT_FOR_POD_S
    while asyncio.get_running_loop().time() < deadline:
        with contextlib.suppress(_RefusedError, WorkshopError):
            there = await to_thread.run_sync(where, abandon_on_cancel=True)
            return await _open(api, *there, PORT_PROTOCOL)
        await asyncio.sleep(0.5)
    return None


async def _send_all(reader: asyncio.StreamReader, remote: ClientConnection) -> None:
    """What comes from here goes to the pod, until no more will come."""
    from websockets.exceptions import ConnectionClosed

    with contextlib.suppress(OSError, ConnectionClosed):
        while data := await reader.read(1 << 16):
            await remote.send(bytes([DATA]) + data)


async def _receive_all(
    writer: asyncio.StreamWriter, remote: ClientConnection, sender: asyncio.Task[None]
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
                writer.write(data)
                await writer.drain()
