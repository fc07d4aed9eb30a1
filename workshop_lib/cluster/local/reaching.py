"""Reaching pods: by the beginning of a name, at an address, with a command."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.network import AddressBook
from workshop_lib.cluster.local.objects import find_object
from workshop_lib.cluster.local.paths import StatePaths, read_json
from workshop_lib.cluster.local.records import live_pods
from workshop_lib.cluster.local.service_proxy import ready_targets
from workshop_lib.cluster.records import ExecResult
from workshop_lib.errors import ClusterError, NotFoundError

__all__ = ["address_of", "execute", "find_pod"]


def find_pod(paths: StatePaths, name: str) -> dict[str, Any]:
    """A pod that has not ended, by its name or the beginning of it.

    Args:
        paths: The state's files.
        name: Such as `ray-cluster-0` for `ray-cluster-0-x7k2p`.

    Raises:
        NotFoundError: No pod has that name, or several do.
    """
    pods = [pod for pod in live_pods(paths) if pod["status"]["phase"] in ("Pending", "Running")]
    exact = [pod for pod in pods if pod["metadata"]["name"] == name]
    found = exact or [pod for pod in pods if pod["metadata"]["name"].startswith(f"{name}-")]
    if len(found) != 1:
        names = ", ".join(pod["metadata"]["name"] for pod in found or pods) or "none"
        problem = "fits several pods" if found else "is no running pod's name"
        raise NotFoundError(f"{name!r} {problem}: {names}")
    return found[0]


def address_of(paths: StatePaths, book: AddressBook, target: str, port: int) -> str:
    """Where a port of a Service or pod really is, as `ip:port`: a ready pod's own address.

    Args:
        paths: The state's files.
        book: Its addresses.
        target: A Service's name, a pod's name, or the beginning of one.
        port: The port as the manifest says it.

    Raises:
        NotFoundError: No such target, port or ready pod.
    """
    service = find_object(paths, "Service", target)
    if service is None:
        pod = find_pod(paths, target)
        endpoint = book.by_ip().get(pod["status"]["podIP"])
        if endpoint is None or port not in endpoint.ports:
            ports = ", ".join(map(str, endpoint.ports if endpoint else ())) or "none"
            raise NotFoundError(f"{target} has no port {port}; it has {ports}")
        return f"{endpoint.ip}:{endpoint.ports[port]}"
    entries = {entry["port"]: entry for entry in service["spec"].get("ports", [])}
    if port not in entries:
        ports = ", ".join(map(str, entries)) or "none"
        raise NotFoundError(f"Service/{target} has no port {port}; it has {ports}")
    targets = ready_targets(paths, book, service, entries[port])
    if not targets:
        raise NotFoundError(
            f"Service/{target} has no ready pod behind it; wait_ready() on its workload first"
        )
    return f"{targets[0][0]}:{targets[0][1]}"


def execute(
    paths: StatePaths,
    pod: Mapping[str, Any],
    command: Sequence[str],
    container: str | None,
    timeout_s: float,
) -> ExecResult:
    """Run a command with a container's environment and working folder.

    Args:
        paths: The state's files.
        pod: The pod.
        command: The command and its arguments.
        container: Which container; None for the first.
        timeout_s: The longest it may take; then it is killed.

    Raises:
        NotFoundError: The container is not there, or does not run.
        ClusterError: The command does not exist, or took too long.
    """
    name = pod["metadata"]["name"]
    names = [each["name"] for each in pod["spec"]["containers"]]
    container = container or names[0]
    if container not in names:
        raise NotFoundError(f"{name} has no container {container!r}; it has {', '.join(names)}")
    known = read_json(paths.environments / f"{name}.{container}.json")
    if known is None:
        raise NotFoundError(
            f"container {container!r} of {name} does not run; see its workload's table()"
        )
    if not command:
        raise ClusterError(f"exec in {name}: there is no command")
    # Files and no pipes: what the command leaves in the background would keep a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                list(command), env=known["environment"], cwd=known["folder"],
                start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ClusterError(f"exec in {name}: {command[0]!r}: {reason}") from None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"exec in {name}: {' '.join(command)[:80]!r} did not end within {timeout_s:g} s "
                "and was killed; give it more with timeout_s="
            ) from None
        finally:
            if process.poll() is None:
                processes.stop_all([process.pid], grace_s=0.0)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5.0)
        # A signal's number as kubectl reports it.
        return ExecResult(128 - code if code < 0 else code, _text(output), _text(errors))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
