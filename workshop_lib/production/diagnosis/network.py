"""Whom a line dials, and what the snapshot says about the way there: names, Services, policies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from workshop_lib.production.diagnosis.cause import Cause, Report, Stage, cause_of
from workshop_lib.production.diagnosis.logs import lines_of, lines_with
from workshop_lib.production.diagnosis.patterns import Match, dials, fact, says
from workshop_lib.production.diagnosis.view import Container, Json, Pod, View, fits, ref

__all__ = ["Way", "closed", "dialled", "listens_on", "service_causes", "the_way"]

_SAYS_SO = ("unning on", "isten", "erving ", "erver", "ound to")
_ASKED = re.compile(r"(?:--(?:\w+-)?port|http\.server|-p)[= ](\d{2,5})")
_ADDRESS = re.compile(r"\d+(?:\.\d+){3}")


def dialled(line: str) -> tuple[str, int]:
    """The host and port that a line dials; an empty name and 0 for what it does not say.

    Example:
        >>> dialled("waiting for the head at ray-0.ray:6379")
        ('ray-0.ray', 6379)
    """
    for pattern in dials():
        if found := pattern.search(line):
            groups = found.groupdict()
            return groups["host"].rstrip("."), int(groups.get("port") or 0)
    return "", 0


def listens_on(pod: Pod, container: Container) -> list[int]:
    """The ports that a server's log, else its command line, says it listens on."""
    if pod.node == "this-machine":
        return []  # on a laptop every pod's ports have been given other numbers
    log = container.log or container.previous
    lines = [lines_of(log)[place] for place in lines_with(log, *_SAYS_SO)]
    told = [number for line in lines for number in says("listens").findall(line)]
    return [int(number) for number in told or _ASKED.findall(container.words)]


@dataclass
class Way:
    """What is known of the way from a pod to a host."""

    wrong: Match | None = None
    objects: list[str] = field(default_factory=list)
    waits_for: set[str] = field(default_factory=set)
    checked: str = ""


def the_way(view: View, pod: Pod, host: str, port: int, *, name_fails: bool = False) -> Way:
    """Follow the way from a pod to a host: its name, its Service, its pods, the policies."""
    if not host:
        return Way()
    service, targets, wrong = _named(view, pod, host)
    if wrong is not None:
        return wrong
    shown, is_address = f"{host}:{port}" if port else host, _ADDRESS.fullmatch(host)
    if name_fails and (names := closed(view, pod, None, 53)):
        return _policy(names, "the cluster's DNS (port 53, UDP and TCP)")
    if service is None and not targets:
        names = closed(view, pod, None, port) if port and not is_address else []
        if names and not name_fails:
            return _policy(names, shown)
        return _stale(view, pod, host) if is_address else Way()
    way = Way(waits_for={target.ref for target in targets})
    if service is not None:
        way.waits_for |= {ref(service), *_makers(view, service)}
        ports = [each.get("port") for each in service["spec"].get("ports") or []]
        if port and ports and port not in ports and service["spec"].get("clusterIP") != "None":
            words = {"service": ref(service).partition("/")[2], "ports": ", ".join(map(str, ports))}
            return Way(fact("service-port", pod=pod.name, port=port, **words), [ref(service)])
    if ready := [target for target in targets if target.ready]:
        if names := closed(view, pod, ready[0], port):
            return _policy(names, shown)
        selects = f", {ref(service)} selects it" if service else ""
        kept = ", and no NetworkPolicy of the snapshot keeps them apart"
        way.checked = f"{ready[0].ref} is ready{selects}{kept * view.read('NetworkPolicy')}"
    return way


def _named(view: View, pod: Pod, host: str) -> tuple[Json | None, list[Pod], Way | None]:
    """The Service and the pods that a host means; or why its name has no address."""
    if _ADDRESS.fullmatch(host):
        services = [s for s in view.items("Service") if s["spec"].get("clusterIP") == host]
        pods = [p for p in view.pods if p.status.get("podIP") == host and not p.over]
        return (services[0], view.selected(services[0]), None) if services else (None, pods, None)
    first, *rest = re.sub(r"\.svc(?:\..*)?$", "", host).split(".")
    if rest and rest[-1] == pod.body["metadata"].get("namespace"):
        rest.pop()
    service = view.find("Service", rest[0] if rest else first)
    if not rest:  # a Service, or a pod by its own name
        stems = {each.name.rpartition("-")[0] for each in view.pods_of(pod.top) if each.rank == "0"}
        if f"Pod/{first}" in view.pod_of:
            return None, [view.pod_of[f"Pod/{first}"]], None
        if re.fullmatch(r".+-\w{5}", first) and first.rpartition("-")[0] in stems:
            return None, [], _stale(view, pod, host)
        if service is None:
            return None, [], _no_service(view, pod, first, host)
        return service, view.selected(service), None
    named = [p for p in view.pods if p.spec.get("hostname") == first and not p.over]
    if not named and service is None:
        return view.find("Service", first), [], None  # outside, or in another namespace
    if service is None:
        return None, named, _no_service(view, pod, rest[0], host)
    selected, objects = view.selected(service), [each.ref for each in named[:1]] + [ref(service)]
    subdomain = named[0].spec.get("subdomain") if named else rest[0]
    if subdomain != rest[0]:
        words = {"host": host, "target": named[0].name, "subdomain": subdomain or "(none)"}
        return None, [], Way(fact("subdomain-mismatch", service=rest[0], **words), objects)
    if named and named[0] not in selected:
        return service, [], _selects_nobody(view, service)
    if named and not named[0].ready and not service["spec"].get("publishNotReadyAddresses"):
        return None, named, Way(fact("headless-not-published", service=rest[0]), objects[1:])
    return service, named or selected, None


def _no_service(view: View, pod: Pod, name: str, host: str) -> Way | None:
    if not view.read("Service"):
        return None
    known = sorted(each["metadata"]["name"] for each in view.items("Service"))
    there = f"; there are: {', '.join(known[:6])}" if known else ""
    return Way(fact("service-name-unknown", pod=pod.name, host=host, service=name, there=there))


def _stale(view: View, pod: Pod, host: str) -> Way:
    """A rank 0 that is not there any more, where a rank dials one by its own name or address."""
    heads = [each for each in view.pods_of(pod.top) if each.rank == "0"]
    address = heads[-1].status.get("podIP") if heads else None
    if pod.rank in (None, "0") or not heads or (_ADDRESS.fullmatch(host) and not address):
        return Way()
    head = heads[-1].name + (f" at {address}" if address else "")
    return Way(fact("stale-head-address", pod=pod.name, host=host, head=head), [pod.top])


def _policy(names: list[str], whom: str) -> Way:
    listed = ", ".join(name.partition("/")[2] for name in names)
    return Way(fact("network-policy", policies=listed, whom=whom), names)


def closed(view: View, source: Pod | None, target: Pod | None, port: int) -> list[str]:
    """The NetworkPolicies that keep one pod from dialling another, as `NetworkPolicy/name`."""
    sides = (("Egress", source, target, "to"), ("Ingress", target, source, "from"))
    for way, own, other, peers in sides:
        chosen = [p for p in view.items("NetworkPolicy") if own and _binds(p["spec"], way, own)]
        rules = [rule for policy in chosen for rule in policy["spec"].get(way.lower()) or []]
        if chosen and not any(_admits(rule, peers, other, target, port) for rule in rules):
            return [ref(policy) for policy in chosen]
    return []


def _binds(spec: Json, way: str, own: Pod) -> bool:
    ways = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return way in ways and fits(spec.get("podSelector") or {}, own.labels)


def _admits(rule: Json, peers: str, other: Pod | None, target: Pod | None, port: int) -> bool:
    """Whether a rule lets a port and a peer pass; who is outside may be meant by any address."""
    names = {k: v for c in (target.containers if target else []) for k, v in c.ports.items()}
    ports = [(names.get(str(p.get("port")), p.get("port")), p) for p in rule.get("ports") or []]
    open_ = any(
        first is None or str(first) == str(port) or int(first) <= port <= int(p.get("endPort") or 0)
        for first, p in ports
        if first is None or str(first).isdigit()
    )
    if port and ports and not open_:
        return False
    named = rule.get(peers) or []
    if not named or other is None:
        return not named or any("namespaceSelector" in p or "ipBlock" in p for p in named)
    pods = [peer for peer in named if "ipBlock" not in peer]
    return any(fits(peer.get("podSelector") or {}, other.labels) for peer in pods)


def service_causes(view: View, report: Report) -> Iterator[Cause]:
    """Services that lead nowhere: no pod, no such port."""
    for service in view.items("Service"):
        selector = service["spec"].get("selector")
        if not selector or service["metadata"].get("deletionTimestamp"):
            continue
        pods = view.selected(service)
        ready = [pod for pod in pods if pod.ready]
        if "ray.io/serve" in selector and not pods:  # KubeRay gives this label when Serve answers
            report.starts([ref(service)], f"{ref(service)}: no Ray pod serves yet")
        elif not pods:
            yield from _nobody(view, service)
        elif ready and not any("Ray" in owner for owner in view.owners(service)):
            yield from _wrong_port(view, service, ready)


def _makers(view: View, service: Json) -> set[str]:
    selector = {"matchLabels": service["spec"].get("selector") or {}}
    found = set()
    for body in view.items("Deployment", "StatefulSet", "ReplicaSet", "Job"):
        template = (body["spec"].get("template") or {}).get("metadata") or {}
        if fits(selector, template.get("labels") or {}):
            found.add(ref(body))
    if any(key.startswith("ray.io/") for key in selector["matchLabels"]):
        found |= {ref(body) for body in view.items("RayCluster", "RayService")}
    for pod in view.pods:
        if fits(selector, pod.labels):
            found |= {pod.ref, *pod.owners}
    return found


def _nobody(view: View, service: Json) -> Iterator[Cause]:
    makers, name = sorted(_makers(view, service)), service["metadata"]["name"]
    specs = {m: (view.get(m) or {}).get("spec") or {} for m in makers if m.startswith("Deploy")}
    zero = [maker for maker, spec in specs.items() if spec.get("replicas") == 0]
    if zero:
        match = fact("scaled-to-zero", service=name, maker=zero[0].lower())
        yield cause_of(match, [ref(service), zero[0]], ['"replicas": 0'], Stage.DEPENDANTS)
    elif not makers:
        way = _selects_nobody(view, service)
        quotes = [f'"{k}": "{v}"' for k, v in service["spec"]["selector"].items()]
        yield cause_of(way.wrong, way.objects, quotes, Stage.DEPENDANTS)  # type: ignore[arg-type]


def _selects_nobody(view: View, service: Json) -> Way:
    name, selector = service["metadata"]["name"], service["spec"].get("selector") or {}

    def likeness(pod: Pod) -> int:
        return sum(2 if pod.labels.get(k) == v else k in pod.labels for k, v in selector.items())

    near = max(view.pods, key=likeness, default=None)
    have = [f"{k}={near.labels[k]}" for k in selector if k in near.labels] if near else []
    nearest = f" {near.ref} has {', '.join(have)}." if near and have else ""
    asked = ", ".join(f"{k}={v}" for k, v in selector.items())
    match = fact("service-selector", service=name, selector=asked, nearest=nearest)
    return Way(match, [ref(service), *([near.ref] if near and have else [])])


def _wrong_port(view: View, service: Json, ready: list[Pod]) -> Iterator[Cause]:
    containers = [each for each in ready[0].containers if not each.init]
    declared = {name: number for each in containers for name, number in each.ports.items()}
    known = set(declared.values()) | {p for c in containers for p in listens_on(ready[0], c)}
    known |= {c.probe(kind)[2] for c in containers for kind in ("readiness", "liveness")}
    for port in service["spec"].get("ports") or []:
        target = port.get("targetPort", port.get("port"))
        named = not str(target).isdigit()
        headless = service["spec"].get("clusterIP") == "None"
        if target in declared if named else headless or int(target) in known or not known - {0}:
            continue
        have = ", ".join(sorted(map(str, filter(None, declared if named else known)))) or "none"
        words = {"service": service["metadata"]["name"], "target": target, "have": have}
        match = fact("service-target-port", what=" of that name" if named else "", **words)
        key = "targetPort" if "targetPort" in port else "port"
        objects = [ref(service), *(pod.ref for pod in ready)]
        yield cause_of(match, objects, [f'"{key}": {target}'], Stage.DEPENDANTS)
