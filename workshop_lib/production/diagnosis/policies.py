"""NetworkPolicies, evaluated: which of them keep one pod from another.

By `networking.k8s.io/v1`: a pod that no policy of a direction selects may do everything in
that direction; one that some select may do what any rule of any of them admits. A rule
without peers admits everybody, one without ports every port.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from workshop_lib.production.diagnosis.view import Json, View, fits, ref

__all__ = ["DNS", "Peer", "blocking", "peer_of"]


@dataclass(frozen=True)
class Peer:
    """One end of a connection.

    Attributes:
        namespace: The namespace of its pod; empty for who is no pod of the cluster.
        labels: Its pod's labels; None for who is no pod.
        address: Its IP address, empty when it is not known.
        ports: Its pod's named ports.
    """

    namespace: str = ""
    labels: Json | None = None
    address: str = ""
    ports: dict[str, int] = field(default_factory=dict)


DNS = Peer("kube-system", {"k8s-app": "kube-dns"})
"""The cluster's name server, as policies usually name it."""


def peer_of(pod: Json) -> Peer:
    """A pod as one end of a connection."""
    metadata = pod["metadata"]
    ports = {
        str(port["name"]): int(port["containerPort"])
        for container in (pod.get("spec") or {}).get("containers") or []
        for port in container.get("ports") or []
        if port.get("name") and port.get("containerPort")
    }
    address = str((pod.get("status") or {}).get("podIP") or "")
    return Peer(str(metadata.get("namespace") or ""), metadata.get("labels") or {}, address, ports)


def blocking(
    view: View, source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> list[tuple[str, str]]:
    """The policies that keep one end from dialling another, each with its direction.

    Args:
        view: The snapshot.
        source: Who dials.
        target: Who is dialled.
        port: The port at the target's pod (not its Service's); 0 when it is not known, which
            any rule's ports then match.
        protocol: `TCP` or `UDP`.

    Returns:
        `NetworkPolicy/name` and `Egress` or `Ingress`; empty when the connection is let through.

    Example:
        >>> blocking(View({"networkpolicies": []}), Peer("a", {}), Peer("a", {}), 80)
        []
    """
    found: list[tuple[str, str]] = []
    for direction, own, other, peers in (("Egress", source, target, "to"),
                                         ("Ingress", target, source, "from")):  # fmt: skip
        chosen = [p for p in view.items("networkpolicies") if _selects(p, own, direction)]
        if chosen and not any(
            _admits(view, policy, rule, peers, other, target, port, protocol)
            for policy in chosen
            for rule in _rules(policy, direction)
        ):
            found += [(ref(policy), direction) for policy in chosen]
    return found


def _rules(policy: Json, direction: str) -> Iterator[Json]:
    yield from (policy.get("spec") or {}).get(direction.lower()) or []


def _selects(policy: Json, own: Peer, direction: str) -> bool:
    """Whether a policy says something about one end in a direction."""
    spec = policy.get("spec") or {}
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return (
        own.labels is not None
        and direction in kinds
        and _namespace(policy) in ("", own.namespace)
        and fits(spec.get("podSelector") or {}, own.labels)
    )


def _namespace(body: Json) -> str:
    return str((body.get("metadata") or {}).get("namespace") or "")


def _admits(view: View, policy: Json, rule: Json, peers: str, other: Peer, target: Peer,
            port: int, protocol: str) -> bool:  # fmt: skip
    ports = rule.get("ports")
    if ports and not any(_is_port(each, target, port, protocol) for each in ports):
        return False
    named = rule.get(peers)
    return not named or any(_is_peer(view, policy, each, other) for each in named)


def _is_port(each: Json, target: Peer, port: int, protocol: str) -> bool:
    if (each.get("protocol") or "TCP") != protocol:
        return False
    wanted: Any = each.get("port")
    if wanted is None or not port:
        return True
    if isinstance(wanted, str):
        wanted = int(wanted) if wanted.isdigit() else target.ports.get(wanted)
    if not isinstance(wanted, int):
        return False
    return wanted <= port <= int(each.get("endPort") or wanted)


def _is_peer(view: View, policy: Json, each: Json, other: Peer) -> bool:
    if block := each.get("ipBlock"):
        return _in_block(block, other)
    if other.labels is None:
        return False
    pods, namespaces = each.get("podSelector"), each.get("namespaceSelector")
    if namespaces is None:
        near = _namespace(policy) in ("", other.namespace)
        return near and pods is not None and fits(pods, other.labels)
    return fits(namespaces, _namespace_labels(view, other.namespace)) and (
        pods is None or fits(pods, other.labels)
    )


def _in_block(block: Json, other: Peer) -> bool:
    """Whether an address is in a block; one that is not known may be."""
    if not other.address:
        return other.labels is None or block.get("cidr") in ("0.0.0.0/0", "::/0")
    try:
        address = ipaddress.ip_address(other.address)
        if address not in ipaddress.ip_network(str(block.get("cidr")), strict=False):
            return False
        return not any(
            address in ipaddress.ip_network(hole, strict=False)
            for hole in block.get("except") or []
        )
    except ValueError:
        return True


def _namespace_labels(view: View, name: str) -> dict[str, str]:
    """A namespace's labels; without it in the snapshot those that every namespace has."""
    body = view.find("Namespace", name) or {}
    labels: Json = (body.get("metadata") or {}).get("labels") or {}
    return {"kubernetes.io/metadata.name": name, **labels}
