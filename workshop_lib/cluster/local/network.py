"""Addresses: each pod and service gets a loopback address of its own, as in a cluster.

All of 127.0.0.0/8 is this machine, so a pod can have `127.x.y.2` and the next one
`127.x.y.3`, and both can listen on port 8000. Some ports are taken all the same:
a server that listens on every address (Ray's GCS does, whatever it is told) blocks
its port for everyone. Such a port is moved, and the pod is told (`PORT_ANNOTATION`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workshop_lib.cluster.local.machine import is_port_free
from workshop_lib.cluster.local.paths import (
    TEMPORARY,
    Busy,
    StatePaths,
    locked,
    read_json,
    write_json,
)
from workshop_lib.errors import ClusterError

__all__ = [
    "PORT_ANNOTATION",
    "AddressBook",
    "Endpoint",
    "container_ports",
    "endpoints",
    "port_annotations",
    "replace_address",
]

PORT_ANNOTATION = "workshop.techpulse/port."
"""Prefix of the annotation that tells a pod the port it got: `…/port.http: "8000"`."""

EXCLUSIVE_PORTS = {"gcs-server", "metrics", "client", "dashboard-agent"}
"""Names of Ray's ports that listen on more addresses than the node's own (seen with Ray 2.60)."""

# Ray's workers use 10002 to 19999, the kernel's ephemeral ports start at 32768.
MOVED_PORTS = range(20000, 32000)


@dataclass(frozen=True)
class Endpoint:
    """Where a pod or a service listens.

    Attributes:
        ip: Its loopback address.
        ports: Port in the manifest to port in fact.
    """

    ip: str
    ports: dict[int, int]


def _endpoint(entry: Mapping[str, Any]) -> Endpoint:
    return Endpoint(entry["ip"], {int(k): v for k, v in entry["ports"].items()})


class AddressBook:
    """Who has which address and ports in one state; kept in a file, guarded by a lock.

    Args:
        paths: The state's files.
    """

    def __init__(self, paths: StatePaths) -> None:
        self.paths = paths

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with locked(self.paths.runtime / "addresses.lock", timeout_s=60):
                yield
        except Busy as error:
            raise ClusterError(f"{error} holds {self.paths.addresses} for 60 s") from None

    def _read(self) -> dict[str, Any]:
        return read_json(self.paths.addresses) or {}

    def find(self, owner: str) -> Endpoint | None:
        """The endpoint of an owner, such as `Job/ray-cluster/0` or `Service/vllm`."""
        entry = self._read().get(owner)
        return entry and _endpoint(entry)

    def below(self, owner: str) -> list[Endpoint]:
        """The endpoints of an owner and of all below it, such as the pods of `Job/demo`."""
        book = self._read().items()
        return [_endpoint(e) for k, e in book if k == owner or k.startswith(f"{owner}/")]

    def by_ip(self) -> dict[str, Endpoint]:
        """Every endpoint by its address."""
        return {entry["ip"]: _endpoint(entry) for entry in self._read().values()}

    def assign(
        self, owner: str, ports: Sequence[Mapping[str, Any]], *, probe: bool = False
    ) -> Endpoint:
        """Give an owner an address and free ports; what it had is kept while it fits.

        Args:
            owner: `Kind/name/index` of a pod, or `Service/name`.
            ports: The manifest's ports: each with `port` and perhaps `name`.
            probe: The owner does not run: look whether its ports are still free.

        Raises:
            ClusterError: The state's 253 addresses are used up.
        """
        known = self.find(owner)
        if not probe and known and set(known.ports) == {port["port"] for port in ports}:
            return known  # asked for again and again: no lock, nothing written
        with self._locked():
            entry = self._write(owner, ports, probe)
            # Another state may have looked at the same time and found the same port free: one
            # of the two writes last, and at least that one sees it here.
            if self._clashes(entry):
                entry = self._write(owner, ports, probe=True)
        return _endpoint(entry)

    def _clashes(self, entry: Mapping[str, Any]) -> bool:
        """Whether another state has a port of an entry where only one of them can listen."""
        others = self._elsewhere()
        used = {port for e in others for port in e["ports"].values()}
        everywhere = {port for e in others for port in e.get("exclusive", [])}
        return bool(used & set(entry["exclusive"]) or everywhere & set(entry["ports"].values()))

    def _write(self, owner: str, ports: Sequence[Mapping[str, Any]], probe: bool) -> dict[str, Any]:
        """Choose address and ports, and write them into the book."""
        book = self._read()
        entry: dict[str, Any] | None = book.get(owner)
        if entry is None:
            taken = {int(e["ip"].rsplit(".", 1)[1]) for e in book.values()}
            free = next((n for n in range(2, 255) if n not in taken), None)
            if free is None:
                raise ClusterError(
                    f"no address is left for {owner}: 253 pods and services run; "
                    "delete some with cluster.delete(...)"
                )
            entry = {"ip": f"{self.paths.network}.{free}", "ports": {}}
        book.pop(owner, None)
        others = [*book.values(), *self._elsewhere()]
        used = {port for e in others for port in e["ports"].values()}
        everywhere = {port for e in others for port in e.get("exclusive", [])}
        kept = {} if probe else entry["ports"]
        entry = {"ip": entry["ip"], "ports": {}, "exclusive": []}
        for port in ports:
            wanted = str(port["port"])
            exclusive = port.get("name") in EXCLUSIVE_PORTS
            real = kept.get(wanted) or self._free_port(
                entry["ip"], int(wanted), exclusive, used, everywhere
            )
            entry["ports"][wanted] = real
            used.add(real)
            if exclusive:
                entry["exclusive"].append(real)
        book[owner] = entry
        write_json(self.paths.addresses, book)
        return entry

    def _elsewhere(self) -> list[dict[str, Any]]:
        """The entries of our other states: what got a port there may not listen yet."""
        found: list[dict[str, Any]] = []
        for file in TEMPORARY.glob("ws-*/addresses.json"):
            if file != self.paths.addresses:
                # Another user's, or being removed: then it shows when it listens.
                with contextlib.suppress(OSError, ClusterError):
                    found += (read_json(file) or {}).values()
        return found

    def _free_port(
        self, ip: str, port: int, exclusive: bool, used: set[int], everywhere: set[int]
    ) -> int:
        """The port itself when it is free, else the first free one of those set aside."""
        promised = port in used if exclusive else port in everywhere
        if not promised and is_port_free("0.0.0.0" if exclusive else ip, port):
            return port
        # Each state begins elsewhere, so two that look at the same time find different ones.
        count = len(MOVED_PORTS)
        for number in range(count):
            other = MOVED_PORTS[(self.paths.offset + number) % count]
            if other not in used and is_port_free("0.0.0.0", other):
                return other
        raise ClusterError(f"port {port} is taken, and so is every one from 20000 to 31999")

    def release(self, owner: str) -> None:
        """Free an owner's address, and those of all below it (`Job/demo` frees `Job/demo/0`)."""
        with self._locked():
            book = self._read()
            kept = {k: v for k, v in book.items() if k != owner and not k.startswith(f"{owner}/")}
            write_json(self.paths.addresses, kept)


def container_ports(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A pod's ports, as `AddressBook.assign` takes them."""
    return [
        {"port": port["containerPort"], "name": port.get("name")}
        for container in spec["containers"]
        for port in container.get("ports", [])
    ]


def port_annotations(spec: Mapping[str, Any], ports: Mapping[int, int]) -> dict[str, str]:
    """Annotations that tell a pod which port it got for each of its named ports."""
    return {
        f"{PORT_ANNOTATION}{port['name']}": str(ports[port["containerPort"]])
        for container in spec["containers"]
        for port in container.get("ports", [])
        if "name" in port
    }


def endpoints(objects: Sequence[Mapping[str, Any]], book: AddressBook) -> dict[str, Endpoint]:
    """What each name means in this state: `service`, and `pod.service` of Indexed Jobs.

    Args:
        objects: Every applied object.
        book: The state's addresses.
    """
    found: dict[str, Endpoint] = {}
    services = [item for item in objects if item["kind"] == "Service"]
    jobs = [item for item in objects if item["kind"] == "Job"]
    for item in objects:
        if item["kind"] in ("RayCluster", "RayService"):
            name = item["metadata"]["name"]
            if head := book.find(f"{item['kind']}/{name}/head"):
                found[f"{name}-head-svc"] = head
    for service in services:
        name = service["metadata"]["name"]
        if own := book.find(f"Service/{name}"):
            found[name] = own
            continue
        for job in jobs:  # a headless service names the pods of a Job in its subdomain
            if job["spec"]["template"]["spec"].get("subdomain") != name:
                continue
            for index in range(job["spec"].get("completions", 1)):
                if pod := book.find(f"Job/{job['metadata']['name']}/{index}"):
                    found[f"{job['metadata']['name']}-{index}.{name}"] = pod
                    found.setdefault(name, pod)
    return found


_ADDRESS = re.compile(
    r"(?P<scheme>[a-z]+://)?(?P<host>[a-z0-9.-]+?)(:(?P<port>\d+))?(?P<path>/.*)?"
)
_LONG = re.compile(r"\.default(\.svc(\.cluster\.local)?)?$")


def replace_address(value: str, names: Mapping[str, Endpoint]) -> str:
    """Put the real address in place of a value that is exactly the name of one played.

    A name alone (`vllm`) may be a word like any other, such as a user's name: only `name:port`,
    a URL or a dotted name is an address.

    Args:
        value: A value of an environment variable or an argument.
        names: What `endpoints` found.

    Returns:
        The value; changed only when all of it is `name`, `name:port` or a URL of them.

    Example:
        >>> replace_address("a-0.a:6379", {"a-0.a": Endpoint("127.9.9.2", {6379: 20001})})
        '127.9.9.2:20001'
        >>> replace_address("say a-0.a", {"a-0.a": Endpoint("127.9.9.2", {})})
        'say a-0.a'
    """
    match = _ADDRESS.fullmatch(value)
    if match is None or (match["path"] and not match["scheme"]):
        return value
    endpoint = names.get(match["host"]) or names.get(_LONG.sub("", match["host"]))
    bare = not (match["scheme"] or match["port"] or "." in match["host"])
    if endpoint is None or bare:
        return value
    port = match["port"] and endpoint.ports.get(int(match["port"]), int(match["port"]))
    return "".join(
        (match["scheme"] or "", endpoint.ip, f":{port}" if port else "", match["path"] or "")
    )
