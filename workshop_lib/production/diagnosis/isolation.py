"""Connections that do not come about: whether the namespace's NetworkPolicies are why."""

from __future__ import annotations

from workshop_lib.production.diagnosis.cause import Cause
from workshop_lib.production.diagnosis.dialled import service_named
from workshop_lib.production.diagnosis.policies import DNS, Peer, blocking, peer_of
from workshop_lib.production.diagnosis.view import Json, View, conditions

__all__ = ["BLOCKED", "by_policy", "isolating"]

BLOCKED = frozenset({
    "connection-timeout", "connection-refused", "name-not-resolved", "ray-head-unreachable",
    "rendezvous-timeout",
})  # fmt: skip
"""What a connection that a policy does not let through looks like in a log.

Most network plugins drop its packets, some answer that it is refused.
"""

Blocked = list[tuple[str, str]]


def isolating(view: View, pod: Json, rule: str, host: str, port: int) -> Blocked:
    """The NetworkPolicies that keep a pod from a host, each with its direction.

    Only asked when what was dialled is there and well: otherwise that is the cause.

    Args:
        view: The snapshot.
        pod: Who dials.
        rule: What its log says of it, one of `BLOCKED`.
        host: Whom it dials; empty when that is not known.
        port: At which port; 0 when that is not known.
    """
    if not view.items("networkpolicies"):
        return []
    source = peer_of(pod)
    service, behind = service_named(view, host) if host else (None, [])
    if rule == "name-not-resolved":
        if host and service is None and "." not in host and view.items("services"):
            return []  # the name itself is wrong
        names = [*blocking(view, source, DNS, 53, "UDP"), *blocking(view, source, DNS, 53)]
        return list(dict.fromkeys(names))
    well = [p for p in behind if conditions(p).get("Ready", {}).get("status") == "True"]
    if behind and not well:
        return []
    if not behind:
        inside = service is not None or "." not in host
        return [] if inside else blocking(view, source, _outside(host), port)
    ports = [p for p in (_target_port(service, each, port) for each in well) if p is not None]
    if service is not None and not ports:
        return []  # the Service has no such port: that comes first
    found: Blocked = []
    for each, number in zip(well, ports or [port] * len(well), strict=False):
        if not (keeps := blocking(view, source, peer_of(each), number)):
            return []  # one of them is reached: it is not the policies
        found += keeps
    return list(dict.fromkeys(found))


def _outside(host: str) -> Peer:
    """Who is no pod of the snapshot."""
    return Peer(address=host if host.replace(".", "").isdigit() else "")


def _target_port(service: Json | None, pod: Json, port: int) -> int | None:
    """The pod's port behind a Service's; None when the Service has no such port."""
    if service is None or not port:
        return port
    spec = service.get("spec") or {}
    if spec.get("clusterIP") == "None":
        return port
    for each in spec.get("ports") or []:
        if str(each.get("port")) == str(port):
            target = each.get("targetPort", port)
            if isinstance(target, int) or str(target).isdigit():
                return int(target)
            return peer_of(pod).ports.get(str(target))
    return None


def by_policy(found: Cause, policies: Blocked, shown: str) -> Cause:
    """A cause, said more exactly: it is these policies.

    Args:
        found: What the log says.
        policies: The policies with their directions.
        shown: Whom the pod dials, in words.
    """
    names = ", ".join(dict.fromkeys(each.partition("/")[2] for each, _ in policies))
    ways = {"Egress": "what the pod may send (egress)",
            "Ingress": "what the other side may get (ingress)"}  # fmt: skip
    said = " and ".join(ways[way] for way in dict.fromkeys(way for _, way in policies))
    dns = found.rule == "name-not-resolved"
    found.rule, found.key = "network-policy", names
    missing = (
        "the cluster's DNS (port 53, UDP and TCP) is not among it" if dns
        else "this connection is not among it"
    )  # fmt: skip
    found.cause = (
        f"The pod does not get through to {'DNS, to look up ' if dns else ''}{shown}: the "
        f"namespace's network policies ({names}) name {said}, and {missing}."
    )
    found.fix = (
        "compare kubectl describe networkpolicy with the pods' labels and the port; add a rule "
        "that lets it through (DNS needs egress to port 53, UDP and TCP)"
    )
    found.objects += [each for each, _ in policies if each not in found.objects]
    return found
