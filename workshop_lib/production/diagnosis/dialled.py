"""Whom a line of a log says was dialled: the host, its port, and which Service that is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workshop_lib.production.diagnosis.view import Json, View, ref

__all__ = ["dialled", "dialled_near", "service_named", "targets"]

_PORT = [
    r"(?:https?|tcp|grpc|ray|nats|redis)://(?P<host>[\w.-]+):(?P<port>\d{2,5})",
    r"host='(?P<host>[\w.-]+)', port=(?P<port>\d{2,5})",
    r"\('(?P<host>[\w.-]+)', (?P<port>\d{2,5})\)",
    r"connect to (?P<host>[\w.-]+) port (?P<port>\d{2,5})",
    r"dial tcp (?P<host>[\w.-]+):(?P<port>\d{2,5})",
    r"/dev/tcp/(?P<host>[\w.-]+)/(?P<port>\d{2,5})",
    r"(?P<host>[\w-]+(?:\.[\w-]+)*) \([\d.]+\) port (?P<port>\d{2,5})",
    r"(?P<host>[A-Za-z0-9][\w-]*(?:\.[\w-]+)*):(?P<port>\d{4,5})\b",
    r"(?P<host>[A-Za-z0-9][\w-]*(?:\.[\w-]+)+):(?P<port>\d{2,5})\b",
    r"(?P<host>[\w-]+(?:\.[\w-]+)*) (?P<port>\d{2,5}) port \[",
    r"(?:nc|telnet): (?:connect to )?(?P<host>[\w.-]+)[ :]+(?:port )?(?P<port>\d{2,5})",
]
_NAME = [
    r"lookup (?!address\b)(?P<host>[\w.-]+)", r"resolve host(?:name)?:? '?(?P<host>[\w.-]+)",
    r"server can't find (?P<host>[\w.-]+)", r"(?:can't|[Ff]ailed to) resolve '(?P<host>[\w.-]+)",
    r"bad address '(?P<host>[\w.-]+)", r"ENOTFOUND (?P<host>[\w.-]+)",
    r"https?://(?P<host>[\w.-]+)", r"host='(?P<host>[\w.-]+)'",
    r"(?:^|[\s:])(?!information:)(?P<host>[A-Za-z][\w-]*(?:\.[\w-]+)*): (?:Name or|"
    r"Temporary failure|Unknown host|forward host|Try again|No address)",
    r"[Uu]nknown host:? '?(?P<host>[\w.-]+)", r"[\"'](?P<host>[a-z0-9][\w-]*(?:\.[\w-]+)*)[\"']",
]  # fmt: skip


_URL = re.compile(r"https?://(?P<host>[\w.-]+)(?::(?P<port>\d+))?|host='(?P<other>[\w.-]+)'")


def dialled_near(lines: Sequence[str]) -> tuple[str, int]:
    """The server that lines beside an error name by its URL; an empty name and 0 without one.

    Args:
        lines: The lines, the nearest first.
    """
    for line in lines:
        if found := _URL.search(line):
            return found["host"] or found["other"], int(found["port"] or 0)
    return "", 0


def dialled(line: str) -> tuple[str, int]:
    """The host and port in a line; an empty name and 0 for what it does not say.

    Example:
        >>> dialled("dial tcp: lookup vllm on 10.0.0.10:53: no such host")
        ('vllm', 0)
        >>> dialled("curl: (7) Failed to connect to vllm port 8000 after 0 ms")
        ('vllm', 8000)
    """
    lookup = re.search(_NAME[0], line)
    for pattern in [] if lookup else _PORT:
        if found := re.search(pattern, line):
            return found["host"].rstrip("."), int(found["port"])
    for pattern in _NAME:
        if found := re.search(pattern, line):
            return found["host"].rstrip("."), 0
    return "", 0


def service_named(view: View, host: str) -> tuple[Json | None, list[Json]]:
    """The Service that a host name means here, and the pods that stand behind it.

    `vllm`, `vllm.namespace.svc`, `ray-0.ray` (a pod by its Service), a cluster IP, a pod's IP.
    """
    if re.fullmatch(r"[\d.]+", host):
        for service in view.items("services"):
            if (service.get("spec") or {}).get("clusterIP") == host:
                return service, view.selected(service)
        return None, [p for p in view.pods if (p.get("status") or {}).get("podIP") == host]
    parts = host.split(".")
    if first := view.find("Service", parts[0]):
        return first, view.selected(first)
    if len(parts) > 1 and (second := view.find("Service", parts[1])):
        pods = view.selected(second)
        named = [p for p in pods if (p.get("spec") or {}).get("hostname", "") == parts[0]
                 or p["metadata"]["name"] == parts[0]]  # fmt: skip
        return second, named or pods
    return None, []


def targets(view: View, host: str) -> set[str]:
    """The objects whose trouble would explain that a host does not answer."""
    service, pods = service_named(view, host)
    found = {ref(pod) for pod in pods}
    if service is not None:
        found.add(ref(service))
        selector = (service.get("spec") or {}).get("selector") or {}
        for pod in view.pods:  # those that ended count, too: nobody answers for them
            labels = pod["metadata"].get("labels") or {}
            if selector and all(labels.get(k) == v for k, v in selector.items()):
                found.add(ref(pod))
                found.update(view.owners(pod))
    return found
