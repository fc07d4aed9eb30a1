"""Snapshots from anywhere, brought into the form that the rules read.

A snapshot may be cut by hand, come from `kubectl get -o json`, or have been written by a
program with opinions of its own: `null` where a list belongs, a list of objects as a `List`,
a number as text. What has the wrong form is left out here, once, instead of in every rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["in_form"]

_OBJECTS = frozenset({
    "metadata", "spec", "selector", "lastState", "running", "waiting", "terminated",
    "involvedObject", "regarding", "series", "source", "template", "resources", "loadBalancer",
    "readinessProbe", "livenessProbe", "startupProbe", "httpGet", "tcpSocket", "grpc", "exec",
    "affinity", "nodeAffinity", "podAffinity", "podAntiAffinity", "securityContext",
    "requiredDuringSchedulingIgnoredDuringExecution", "persistentVolumeClaim", "configMap",
    "secret", "ephemeral", "emptyDir", "projected", "hostPath", "podSelector",
    "namespaceSelector", "ipBlock", "activeServiceStatus", "pendingServiceStatus",
    "nodeInfo", "scaleTargetRef", "claimRef", "configMapKeyRef", "secretKeyRef", "valueFrom",
    "configMapRef", "secretRef", "targetRef", "stats", "deployment_config", "autoscaling_config",
})  # fmt: skip
_LISTS = frozenset({
    "containers", "initContainers", "containerStatuses", "initContainerStatuses", "volumes",
    "volumeMounts", "conditions", "ownerReferences", "tolerations", "taints", "ports",
    "matchExpressions", "matchFields", "nodeSelectorTerms", "schedulingGates", "readinessGates",
    "env", "envFrom", "endpoints", "ingress", "egress", "from", "to", "sources", "addresses",
    "imagePullSecrets", "resourceClaims", "bundles",
})  # fmt: skip
_FLAT = frozenset({
    "labels", "annotations", "matchLabels", "nodeSelector", "limits", "requests", "allocatable",
    "capacity", "hard", "used",
})  # fmt: skip
_TEXTS = frozenset({
    "name", "namespace", "kind", "uid", "reason", "message", "phase", "image", "type", "key",
    "operator", "effect", "creationTimestamp", "deletionTimestamp", "lastTransitionTime",
    "lastHeartbeatTime",
    "lastTimestamp", "firstTimestamp", "eventTime", "lastObservedTime", "startedAt", "finishedAt",
    "nodeName", "storageClassName", "volumeName", "claimName", "podIP", "hostIP", "fieldPath",
    "restartPolicy", "clusterIP", "serviceAccountName", "schedulerName", "startTime", "hostname",
    "subdomain", "completionMode", "configMapName", "secretName", "cidr",
})  # fmt: skip
_NUMBERS = frozenset({
    "restartCount", "exitCode", "count", "replicas", "availableReplicas", "updatedReplicas",
    "readyReplicas", "completions", "parallelism", "backoffLimit", "containerPort",
    "initialDelaySeconds", "periodSeconds", "failureThreshold", "timeoutSeconds",
    "activeDeadlineSeconds", "desiredWorkerReplicas", "readyWorkerReplicas", "endPort",
    "maxReplicas", "minReplicas", "max_replicas", "min_replicas", "currentReplicas",
    "desiredReplicas",
})  # fmt: skip
_PLAIN_LISTS = frozenset({"command", "args", "finalizers", "accessModes", "values", "policyTypes",
                          "except"})  # fmt: skip
_BY_NAME = frozenset({"applications", "deployments", "applicationStatuses",
                      "serveDeploymentStatuses"})  # fmt: skip
"""Objects whose fields are objects, each under its name."""
_UNREAD = frozenset({"managedFields"})

_DEEPEST = 40
_LARGEST = 2**40


def in_form(body: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """An object with what has the wrong form left out, and numbers and names as such.

    Args:
        body: The object, as it was read from JSON.
        depth: How deep it lies in another one; what lies too deep is left out.

    Example:
        >>> in_form({"status": {"conditions": None, "restartCount": "3"}, "spec": []})
        {'status': {'restartCount': 3}}
    """
    found: dict[str, Any] = {}
    for key, value in body.items():
        if value is None or key in _UNREAD or depth > _DEEPEST:
            continue
        if key == "status" and not isinstance(value, str if depth else Mapping):
            value = in_form(value, depth + 1) if isinstance(value, Mapping) else {}
        kept = _kept(key, value, depth)
        if kept is not None:
            found[key] = kept
    return found


def _kept(key: str, value: Any, depth: int) -> Any:
    """A field's value in its form; None for one that has another."""
    if key in _FLAT:
        return ({str(k): str(v) for k, v in value.items() if isinstance(v, str | int | float)}
                if isinstance(value, Mapping) else None)  # fmt: skip
    if key in _BY_NAME:
        return ({str(k): in_form(v, depth + 1) for k, v in value.items() if isinstance(v, Mapping)}
                if isinstance(value, Mapping) else None)  # fmt: skip
    if key in _NUMBERS and not (key == "replicas" and isinstance(value, list)):
        return _number(value)
    if key in _PLAIN_LISTS:
        return [str(v) for v in value if v is not None] if isinstance(value, list) else None
    if isinstance(value, Mapping):
        return None if key in _LISTS or key in _TEXTS else in_form(value, depth + 1)
    if key in ("containerStatuses", "initContainerStatuses") and isinstance(value, list):
        return [
            {k: v for k, v in each.items() if k != "state" or isinstance(v, Mapping)}
            for each in _all(value, depth, only_objects=True)
        ]
    if isinstance(value, list):
        if key in _OBJECTS or key in _TEXTS:
            return None if key != "requiredDuringSchedulingIgnoredDuringExecution" else _all(
                value, depth)  # fmt: skip
        return _all(value, depth, only_objects=key in _LISTS or key == "replicas")
    if key in _OBJECTS or key in _LISTS:
        return None
    return str(value) if key in _TEXTS and not isinstance(value, str) else value


def _all(values: list[Any], depth: int, *, only_objects: bool = False) -> list[Any]:
    return [
        in_form(each, depth + 1) if isinstance(each, Mapping) else each
        for each in values
        if isinstance(each, Mapping) or not (only_objects or each is None)
    ]


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < _LARGEST else None
