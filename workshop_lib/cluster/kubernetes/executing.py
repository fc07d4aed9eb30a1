"""Running a command in a container: output and errors apart, and its exit code."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.kube import LABELS, container_statuses
from workshop_lib.cluster.kubernetes.api import Api, Lost
from workshop_lib.cluster.kubernetes.resources import resource_of_kind
from workshop_lib.cluster.kubernetes.sockets import Refused, open_socket
from workshop_lib.cluster.records import ExecResult
from workshop_lib.errors import ClusterError, NotFoundError, WorkshopError

if TYPE_CHECKING:
    from websocket import WebSocket

__all__ = ["choose_pod", "execute", "find_pod"]

Json = Mapping[str, Any]

PROTOCOLS = "v5.channel.k8s.io,v4.channel.k8s.io"
STDOUT, STDERR, STATUS = 1, 2, 3

_NOT_FOUND = re.compile(r'exec: \\?"(?P<what>[^"\\]+)\\?": (?P<why>[^:]+)')


def choose_pod(name: str, pods: Iterable[Json]) -> Json:
    """The pod that a name, or the beginning of one, means.

    Args:
        name: Such as `ray-cluster-0` for `ray-cluster-0-x7k2p`.
        pods: The pods of the namespace.

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
        problem = "fits several pods" if found else "is no running pod's name"
        raise NotFoundError(f"{name!r} {problem}: {', '.join(shown[:8]) or 'none'}")
    return found[0]


def _is_ours(pod: Json) -> bool:
    labels = pod["metadata"].get("labels") or {}
    part_of = "app.kubernetes.io/part-of"
    return labels.get(part_of) == LABELS[part_of] or "ray.io/cluster" in labels


def find_pod(api: Api, namespace: str, name: str) -> Json:
    """Like `choose_pod`, among the pods that are there now."""
    pods, _ = api.list(resource_of_kind("Pod"), namespace)
    return choose_pod(name, pods)


def execute(
    api: Api,
    namespace: str,
    pod: Json,
    command: Sequence[str],
    container: str | None,
    timeout_s: float,
) -> ExecResult:
    """Run a command in a container and wait for its end.

    It is sent once: what was begun is never begun again by itself.

    Args:
        api: The server.
        namespace: Where.
        pod: The pod.
        command: The command and its arguments.
        container: Which container; None for the first.
        timeout_s: The longest to wait for its end.

    Raises:
        NotFoundError: The container is not there, or does not run.
        ClusterError: The command does not exist, took too long, or its end is not known.
    """
    name = pod["metadata"]["name"]
    names = [each["name"] for each in pod["spec"]["containers"]]
    container = container or names[0]
    if container not in names:
        raise NotFoundError(f"{name} has no container {container!r}; it has {', '.join(names)}")
    if "running" not in (container_statuses(pod).get(container, {}).get("state") or {}):
        raise NotFoundError(
            f"container {container!r} of {name} does not run; see its workload's table()"
        )
    if not command:
        raise ClusterError(f"exec in {name}: there is no command")
    path = resource_of_kind("Pod").path(namespace, name) + "/exec"
    params = {
        "command": list(command), "container": container, "stdout": "true", "stderr": "true",
    }  # fmt: skip
    try:
        socket = open_socket(api, path, params, PROTOCOLS)
    except Refused as refused:
        raise refused.explained(f"exec in {name}") from None
    try:
        return _read_to_end(socket, name, command, timeout_s)
    finally:
        socket.shutdown()


def _read_to_end(
    socket: WebSocket, name: str, command: Sequence[str], timeout_s: float
) -> ExecResult:
    """Collect the channels until the status comes."""
    import websocket

    deadline = time.monotonic() + timeout_s
    said = {STDOUT: bytearray(), STDERR: bytearray()}
    shown = " ".join(command)[:80]
    while True:
        left_s = deadline - time.monotonic()
        try:
            socket.settimeout(max(0.01, left_s))
            opcode, data = socket.recv_data()
        except (websocket.WebSocketTimeoutException, TimeoutError):
            raise ClusterError(
                f"exec in {name}: {shown!r} did not end within {timeout_s:g} s; it may still run "
                "there; give it more with timeout_s="
            ) from None
        except (websocket.WebSocketException, OSError) as error:
            raise Lost(
                f"exec in {name}: the connection was lost ({error}); whether {shown!r} has ended "
                "is not known: look before you run it again"
            ) from None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise Lost(
                f"exec in {name}: the server closed the connection without an exit code; whether "
                f"{shown!r} has ended is not known: look before you run it again"
            )
        if not data:
            continue
        channel, text = data[0], data[1:]
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
    causes = (status.get("details") or {}).get("causes") or []
    for cause in causes:
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise _not_run(str(status.get("message", "")), name, command)


def _not_run(message: str, name: str, command: Sequence[str]) -> WorkshopError:
    found = _NOT_FOUND.search(message)
    reason = found["why"].strip() if found else " ".join(message.split())[:300]
    return ClusterError(f"exec in {name}: {command[0]!r}: {reason}")
