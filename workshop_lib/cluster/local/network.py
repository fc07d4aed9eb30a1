"""Addresses: each pod gets a loopback address of its own, as in a cluster.

All of 127.0.0.0/8 is this machine, so two pods can listen on port 8000. A server that listens
on every address (Ray's GCS does, whatever it is told) blocks its port for everyone: such a port
is moved, and the pod is told by an annotation for each named port.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.errors import ClusterError

__all__ = ["Addresses", "Endpoint", "Hosts", "is_free", "listening", "named_ports",
           "port_annotations", "real_port", "replace_address"]  # fmt: skip

PORT_ANNOTATION = "workshop.techpulse/port."
"""Prefix of the annotation that tells a pod the port it got: `…/port.http: "8000"`."""

EVERYWHERE = {"gcs-server", "metrics", "client", "dashboard-agent"}
"""Names of Ray's ports that listen on more addresses than the node's own (seen with Ray 2.60)."""

# Ray's workers use 10002 to 19999, the system's ephemeral ports start at 32768.
MOVED_PORTS = range(20000, 32000)

Hosts = Mapping[str, tuple[str, Mapping[str, int]]]
"""The name of a rank of an Indexed Job to its address, and the port in fact for a declared one."""


@dataclass(frozen=True)
class Endpoint:
    """A pod's loopback address, and the port in fact for each named port."""

    ip: str
    ports: dict[str, int]


class Addresses:
    """Who has which address and ports in one state; the agent's own, so it needs no lock."""

    def __init__(self, network: str, offset: int) -> None:
        self._network = network
        self._offset = offset
        self._known: dict[str, Endpoint] = {}

    def find(self, owner: str) -> Endpoint | None:
        """The endpoint of an owner, such as `Job/ray-cluster/0`."""
        return self._known.get(owner)

    def assign(self, owner: str, ports: Mapping[str, int]) -> Endpoint:
        """Give an owner an address, and for each named port one that is free; once."""
        if owner in self._known:
            return self._known[owner]
        taken = {each.ip for each in self._known.values()}
        addresses = (f"{self._network}.{number}" for number in range(2, 255))
        ip = next((each for each in addresses if each not in taken), None)
        if ip is None:
            raise ClusterError(
                f"no address is left for {owner}: 253 pods run; "
                "delete some with cluster.delete(...)"
            )
        promised = [item for each in self._known.values() for item in each.ports.items()]
        chosen: dict[str, int] = {}
        for name, wanted in ports.items():
            everywhere = name in EVERYWHERE
            # What a pod was promised may not listen yet.
            used = {port for each, port in promised if everywhere or each in EVERYWHERE}
            used.update(chosen.values())
            moved = (MOVED_PORTS[(self._offset + n) % len(MOVED_PORTS)] for n in range(12000))
            chosen[name] = next(
                port
                for port in itertools.chain([wanted], moved)
                if port not in used and is_free("0.0.0.0" if everywhere else ip, port)
            )
        self._known[owner] = Endpoint(ip, chosen)
        return self._known[owner]

    def release(self, owner: str) -> None:
        """Free an owner's address, and those of all below it (`Job/demo` frees `Job/demo/0`)."""
        for key in [k for k in self._known if k == owner or k.startswith(f"{owner}/")]:
            del self._known[key]


def is_free(address: str, port: int) -> bool:
    """Whether a server could listen on an address of this machine; `0.0.0.0` is all of them."""
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT counts as free, a listening one does not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def named_ports(spec: Mapping[str, Any]) -> dict[str, int]:
    """A pod spec's named ports; a port without a name cannot be moved."""
    ports = [port for each in spec["containers"] for port in each.get("ports", [])]
    return {port["name"]: port["containerPort"] for port in ports if "name" in port}


def port_annotations(endpoint: Endpoint) -> dict[str, str]:
    """Annotations that tell a pod which port it got for each of its named ports."""
    return {f"{PORT_ANNOTATION}{name}": str(port) for name, port in endpoint.ports.items()}


def real_port(pod: Mapping[str, Any], wanted: int | str) -> int | None:
    """A pod's port in fact, by the name or number in its spec; None when it declares none."""
    annotations = pod["metadata"].get("annotations") or {}
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", []):
            if wanted in (port.get("name"), port["containerPort"]):
                moved = annotations.get(f"{PORT_ANNOTATION}{port.get('name')}")
                return int(moved or port["containerPort"])
    return None


def replace_address(value: str, hosts: Hosts) -> str:
    """Put the real address in place of a value that is all of it a rank's `host` or `host:port`."""
    host, colon, port = value.partition(":")
    if host not in hosts:
        return value
    ip, ports = hosts[host]
    return f"{ip}{colon}{ports.get(port, port)}"


def listening(network: str) -> list[str]:
    """Where something listens in a network, such as `127.20.3`, of this machine, as `ip:port`."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        address, port = local.split(":")
        ip = ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
        if state == "0A" and ip.startswith(f"{network}."):  # the state of a listening socket
            found.append(f"{ip}:{int(port, 16)}")
    return sorted(found)
