"""ServiceMonitors and PodMonitors, read as the Prometheus operator reads them.

Only what the workshop's own monitors say is understood; anything else is refused by
name, so that a test on a laptop never passes for a setting that it did not look at.
Labels are those that the operator gives a target
(https://prometheus-operator.dev/docs/developer/getting-started/).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ManifestError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Monitor",
    "Target",
    "alerts_table",
    "find_targets",
    "monitors",
    "rule_groups",
    "selects",
]

Json = Mapping[str, Any]

COMPONENT = "monitoring"
ENDPOINTS = {"ServiceMonitor": "endpoints", "PodMonitor": "podMetricsEndpoints"}
SPEC_FIELDS = {"namespaceSelector", "selector", "targetLabels", "podTargetLabels"}
ENDPOINT_FIELDS = {
    "port", "path", "interval", "scrapeTimeout", "relabelings", "metricRelabelings",
}  # fmt: skip
RENAMING = {
    "action": "action", "sourceLabels": "source_labels", "regex": "regex",
    "targetLabel": "target_label", "replacement": "replacement",
}  # fmt: skip
"""A rule's fields in a monitor, and in Prometheus' own configuration."""

_POD_LABEL = "__meta_kubernetes_pod_label_"


@dataclass(frozen=True)
class Monitor:
    """One ServiceMonitor or PodMonitor, with its one endpoint.

    Attributes:
        kind: `ServiceMonitor` or `PodMonitor`.
        name: Its name.
        selector: The labels of the Services, or of the pods, that it takes.
        port: Name of the port.
        path: Path of the page.
        interval_s: Seconds between two readings.
        copied: Labels of the Service or pod that every series gets.
        renamed: Name of a label that every series gets, to the pod's label with its value.
        series_rules: What is done with each series, in Prometheus' own words.
    """

    kind: str
    name: str
    selector: Json
    port: str
    path: str
    interval_s: int
    copied: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    series_rules: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Target:
    """A page that Prometheus reads.

    Attributes:
        monitor: The monitor that found it.
        pod: The pod's name.
        port: The port's number in the manifest.
        labels: What every series of the page gets, `job` among them.
    """

    monitor: Monitor
    pod: str
    port: int
    labels: Mapping[str, str]


def monitors(profile: str = "eks") -> list[Monitor]:
    """The monitors of the component `monitoring`.

    Args:
        profile: The profile whose overlay is read; a laptop plays those of `eks`.

    Raises:
        ManifestError: One says something that this module does not understand.

    Example:
        >>> [monitor.name for monitor in monitors()]
        ['ray-jobs', 'ray-workers', 'ray-heads', 'vllm']
    """
    objects = manifests.render(profile, COMPONENT)
    return [_monitor(item) for item in objects if item.kind in ENDPOINTS]


def rule_groups(profile: str = "eks") -> dict[str, Any]:
    """The alerts and records, as Prometheus itself reads them from a file.

    Args:
        profile: The profile whose overlay is read.

    Example:
        >>> [group["name"] for group in rule_groups()["groups"]][:2]
        ['workshop.records', 'workshop.serving']
    """
    objects = manifests.render(profile, COMPONENT)
    rules = [item.body["spec"]["groups"] for item in objects if item.kind == "PrometheusRule"]
    return {"groups": [group for groups in rules for group in groups]}


def alerts_table(profile: str = "eks") -> pd.DataFrame:
    """The alerts of the manifests: `alert`, `severity`, `for`, `what it says`, `what to do`.

    Args:
        profile: The profile whose overlay is read.

    Example:
        >>> alerts_table().iloc[0]["alert"]
        'TimeToFirstTokenSlow'
    """
    import pandas as pd

    rules = [rule for group in rule_groups(profile)["groups"] for rule in group["rules"]]
    rows = [
        {
            "alert": rule["alert"],
            "severity": rule["labels"]["severity"],
            "for": rule.get("for", "at once"),
            "what it says": re.sub(r"{{ \$(?:labels\.)?(\w+)[^}]*}}", r"<\1>",
                                   rule["annotations"]["summary"]),
            "what to do": rule["annotations"]["action"],
        }
        for rule in rules
        if "alert" in rule
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _monitor(item: Object) -> Monitor:
    spec = item.body["spec"]
    endpoints = spec.get(ENDPOINTS[item.kind]) or []
    unknown = sorted(set(spec) - SPEC_FIELDS - {ENDPOINTS[item.kind]})
    if unknown or len(endpoints) != 1:
        raise item.error(f"not understood here: {', '.join(unknown) or 'more than one endpoint'}")
    (endpoint,) = endpoints
    if more := sorted(set(endpoint) - ENDPOINT_FIELDS):
        raise item.error(f"not understood here: {', '.join(more)}")
    return Monitor(
        kind=item.kind,
        name=item.name,
        selector=spec["selector"],
        port=endpoint["port"],
        path=endpoint.get("path", "/metrics"),
        interval_s=_seconds(endpoint.get("interval", "30s"), item),
        copied=tuple(spec.get("targetLabels") or spec.get("podTargetLabels") or ()),
        renamed=dict(_renamed(each, item) for each in endpoint.get("relabelings") or ()),
        series_rules=tuple(
            _series_rule(each, item) for each in endpoint.get("metricRelabelings") or ()
        ),
    )


def _seconds(text: str, item: Object) -> int:
    found = re.fullmatch(r"(\d+)(s|m)", text)
    if not found:
        raise item.error(f"interval {text!r}; write it in s or m")
    return int(found[1]) * (60 if found[2] == "m" else 1)


def _renamed(rule: Json, item: Object) -> tuple[str, str]:
    """A relabeling that gives a pod's label another name."""
    sources = rule.get("sourceLabels") or []
    plain = set(rule) == {"action", "sourceLabels", "targetLabel"} and rule["action"] == "replace"
    if not plain or len(sources) != 1 or not sources[0].startswith(_POD_LABEL):
        raise item.error("a relabeling may only copy one label of the pod here")
    return rule["targetLabel"], sources[0].removeprefix(_POD_LABEL)


def _series_rule(rule: Json, item: Object) -> dict[str, Any]:
    """A metric relabeling as Prometheus' configuration writes it."""
    if unknown := sorted(set(rule) - set(RENAMING)):
        raise item.error(f"not understood here: {', '.join(unknown)}")
    return {RENAMING[key]: value for key, value in rule.items()}


def _sanitized(label: str) -> str:
    """A label's name as Prometheus writes it."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes an object.

    Args:
        selector: With `matchLabels` and `matchExpressions`, which must all hold.
        labels: The object's labels.

    Raises:
        ManifestError: An operator that Kubernetes does not have.

    Example:
        >>> selects({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {"app": "vllm"})
        True
    """
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(each, labels) for each in selector.get("matchExpressions") or []
    )


def _holds(expression: Json, labels: Mapping[str, str]) -> bool:
    key, operator, values = (expression.get(name) for name in ("key", "operator", "values"))
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) is (operator == "Exists")
    if operator in ("In", "NotIn"):
        return (labels.get(str(key)) in (values or [])) is (operator == "In")
    raise ManifestError(f"selector: there is no operator {operator!r}")


def find_targets(
    found: Iterable[Monitor], services: Sequence[Json], pods: Sequence[Json]
) -> list[Target]:
    """The pages that the monitors take, of the Services and pods that there are.

    Args:
        found: The monitors.
        services: Service objects.
        pods: Pod objects with their status; those that are over are left out.

    Returns:
        One target for each pod and monitor, with the labels that the operator gives it.

    Example:
        >>> find_targets(monitors(), services=[], pods=[])
        []
    """
    running = [pod for pod in pods if pod["status"].get("phase") not in ("Succeeded", "Failed")]
    targets = []
    for monitor in found:
        if monitor.kind == "PodMonitor":
            taken = [pod for pod in running if selects(monitor.selector, _labels(pod))]
            targets += [each for pod in taken if (each := _pod_target(monitor, pod))]
            continue
        for service in services:
            if selects(monitor.selector, _labels(service)):
                targets += _service_targets(monitor, service, running)
    return targets


def _labels(body: Json) -> Mapping[str, str]:
    labels: Mapping[str, str] = body["metadata"].get("labels") or {}
    return labels


def _pod_target(monitor: Monitor, pod: Json) -> Target | None:
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or []:
            if port.get("name") == monitor.port:
                labels = {"job": f"{COMPONENT}/{monitor.name}", "container": container["name"]}
                return _target(monitor, pod, port["containerPort"], labels, pod)
    return None


def _service_targets(monitor: Monitor, service: Json, pods: Sequence[Json]) -> list[Target]:
    port = next((p for p in service["spec"]["ports"] if p.get("name") == monitor.port), None)
    selector = service["spec"].get("selector") or {}
    if port is None or not selector:
        return []
    targets = []
    for pod in pods:
        if not selects({"matchLabels": selector}, _labels(pod)):
            continue
        named = {
            entry.get("name"): entry["containerPort"]
            for container in pod["spec"]["containers"]
            for entry in container.get("ports") or []
        }
        number = named.get(port.get("targetPort"), port.get("targetPort", port["port"]))
        name = service["metadata"]["name"]
        targets.append(_target(monitor, pod, number, {"job": name, "service": name}, service))
    return targets


def _target(
    monitor: Monitor, pod: Json, port: int, labels: Mapping[str, str], source: Json
) -> Target:
    given = {
        "namespace": pod["metadata"].get("namespace", "default"),
        "pod": pod["metadata"]["name"],
        "endpoint": monitor.port,
        **labels,
    }
    given |= {_sanitized(key): _labels(source)[key] for key in monitor.copied
              if key in _labels(source)}  # fmt: skip
    by_written = {_sanitized(key): value for key, value in _labels(pod).items()}
    given |= {new: by_written[old] for new, old in monitor.renamed.items() if old in by_written}
    return Target(monitor, pod["metadata"]["name"], port, given)
