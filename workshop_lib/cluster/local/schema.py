"""Which kinds and fields this machine plays; everything else is refused by name.

A field is *played*, or *noted* (right on a cluster, without effect here: the
learner is told), or refused before anything starts. The table below is the whole
truth about what `LocalCluster` understands; the runners read no other field. What
one field cannot say (names that must fit together) is in `rules`.
"""

from __future__ import annotations

import re
from typing import Any

from workshop_lib.cluster.local.fields import Fields, Leaf, ListOf, MapOf, Note, Quantity, walk
from workshop_lib.cluster.local.podspec import FIELD_PATHS, METADATA_FIELD
from workshop_lib.cluster.manifests import Object

__all__ = ["KINDS", "check", "without_nulls"]


def _one_of(*allowed: Any) -> Leaf:
    return Leaf((str, bool), allowed=allowed)


def _whole(minimum: int, maximum: int | None = None) -> Leaf:
    limit = f" up to {maximum}" if maximum is not None else ""
    return Leaf((int,), f"a whole number from {minimum}{limit}", minimum=minimum, maximum=maximum)


TEXT = Leaf((str,), "text")
# DNS-1123, as the API server wants it: names become parts of file names here.
NAME = Leaf(
    (str,), "a name of at most 63 lower-case letters, digits and '-'",
    pattern=r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
)  # fmt: skip
# ConfigMaps and Secrets may have dots; nothing else does that this machine plays.
LONG_NAME = Leaf(
    (str,), "a name of at most 200 lower-case letters, digits, '-' and '.'",
    pattern=r"[a-z0-9]([-a-z0-9]|\.(?=[a-z0-9])){0,198}[a-z0-9]|[a-z0-9]",
)  # fmt: skip
VARIABLE = Leaf(
    (str,), "a variable's name: letters, digits, '_', '-' and '.', no digit first",
    pattern=r"[-._a-zA-Z][-._a-zA-Z0-9]*",
)  # fmt: skip
DATA_KEY = Leaf(
    (str,), "a key of letters, digits, '-', '_' and '.'", pattern=r"(?!\.\.?$)[-._a-zA-Z0-9]{1,253}"
)
INSIDE = Leaf((str,), "a relative path without '..'", pattern=r"(?!/)(?!(.*/)?\.\.(/|$)).+")
ABSOLUTE = Leaf((str,), "an absolute path other than /", pattern=r"/(?=.*[^/])[^\0:]*")
INT = _whole(0)
POSITIVE = _whole(1)
BOOL = Leaf((bool,), "true or false")
PORT = _whole(1, 65535)
PORT_OR_NAME = Leaf((int, str), "a port number or a port's name", minimum=1, maximum=65535)
COMMAND = ListOf(TEXT, minimum=1)
NODE = Note("one machine, one node")
NETWORK = Note("every process shares this machine's network")
ISOLATION = Note("a process runs as you, without a container")
CLUSTER_ONLY = Note("a cluster's API server or operator does this")


def _metadata(name: Leaf, *required: str) -> Fields:
    return Fields(
        {
            "name": name, "labels": MapOf(TEXT), "annotations": MapOf(TEXT),
            "namespace": Note("a state of this machine has one namespace"),
            "creationTimestamp": Note("set by an API server"),
        },
        required,
    )  # fmt: skip


KEY_REF = Fields({"name": LONG_NAME, "key": DATA_KEY, "optional": BOOL}, ("name", "key"))
ENV = Fields(
    {
        "name": VARIABLE,
        "value": TEXT,
        "valueFrom": Fields(
            {
                "fieldRef": Fields(
                    {
                        "fieldPath": Leaf(
                            (str,), f"one of {', '.join(FIELD_PATHS)}, metadata.labels['…'] and "
                            "metadata.annotations['…']",
                            pattern="|".join(
                                [*map(re.escape, FIELD_PATHS), METADATA_FIELD.pattern]),
                        ),
                        "apiVersion": TEXT,
                    },
                    ("fieldPath",)),
                "resourceFieldRef": Fields(
                    {
                        "resource": _one_of(
                            "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"),
                        "divisor": Quantity(),
                    },
                    ("resource",),
                ),
                "configMapKeyRef": KEY_REF,
                "secretKeyRef": KEY_REF,
            }
        ),
    },
    ("name",),
)  # fmt: skip
NAME_REF = Fields({"name": LONG_NAME, "optional": BOOL}, ("name",))
HTTP_GET = {"path": TEXT, "port": PORT_OR_NAME, "scheme": _one_of("HTTP")}
PROBE = Fields(
    {
        "httpGet": Fields(HTTP_GET, ("port",)),
        "tcpSocket": Fields({"port": PORT_OR_NAME}, ("port",)),
        "exec": Fields({"command": COMMAND}, ("command",)),
        "initialDelaySeconds": INT, "periodSeconds": POSITIVE, "timeoutSeconds": POSITIVE,
        "failureThreshold": POSITIVE, "successThreshold": POSITIVE,
    }
)  # fmt: skip
CONTAINER = Fields(
    {
        "name": NAME,
        # The overlay says outright that no image is pulled here.
        "image": _one_of("localhost/this-environment"),
        "imagePullPolicy": Note("no image is pulled"),
        "command": COMMAND, "args": ListOf(TEXT), "workingDir": ABSOLUTE,
        "env": ListOf(ENV),
        "envFrom": ListOf(
            Fields({"configMapRef": NAME_REF, "secretRef": NAME_REF, "prefix": VARIABLE})),
        "ports": ListOf(
            Fields({"name": NAME, "containerPort": PORT, "protocol": _one_of("TCP")},
                   ("containerPort",))),
        "resources": Fields({"limits": MapOf(Quantity()), "requests": MapOf(Quantity())}),
        "volumeMounts": ListOf(
            Fields({"name": NAME, "mountPath": ABSOLUTE,
                    "readOnly": Note("files keep their own modes"), "subPath": INSIDE},
                   ("name", "mountPath"))),
        "startupProbe": PROBE, "readinessProbe": PROBE, "livenessProbe": PROBE,
        "securityContext": ISOLATION,
        "terminationMessagePolicy": ISOLATION,
    },
    ("name", "image"),
)  # fmt: skip
ITEMS = ListOf(Fields({"key": DATA_KEY, "path": INSIDE, "mode": _whole(0, 0o777)}, ("key", "path")))
MODE = _whole(0, 0o777)
VOLUME = Fields(
    {
        "name": NAME,
        "emptyDir": Fields({"medium": _one_of("", "Memory"), "sizeLimit": Quantity()}),
        "configMap": Fields(
            {"name": LONG_NAME, "defaultMode": MODE, "items": ITEMS, "optional": BOOL}, ("name",)),
        "secret": Fields(
            {"secretName": LONG_NAME, "defaultMode": MODE, "items": ITEMS, "optional": BOOL},
            ("secretName",)),
        "persistentVolumeClaim": Fields({"claimName": NAME, "readOnly": BOOL}, ("claimName",)),
    },
    ("name",),
)  # fmt: skip
POD_SPEC = Fields(
    {
        "containers": ListOf(CONTAINER, minimum=1), "initContainers": ListOf(CONTAINER),
        "volumes": ListOf(VOLUME),
        "restartPolicy": _one_of("Always", "OnFailure", "Never"),
        "subdomain": NAME, "terminationGracePeriodSeconds": INT,
        "nodeSelector": NODE, "tolerations": NODE, "affinity": NODE,
        "topologySpreadConstraints": NODE, "priorityClassName": NODE,
        "hostNetwork": NETWORK, "dnsPolicy": NETWORK, "enableServiceLinks": NETWORK,
        "serviceAccountName": ISOLATION, "automountServiceAccountToken": ISOLATION,
        "securityContext": ISOLATION, "imagePullSecrets": ISOLATION,
    },
    ("containers",),
)  # fmt: skip
POD_TEMPLATE = Fields({"metadata": _metadata(NAME), "spec": POD_SPEC}, ("spec",))
SELECTOR = Fields({"matchLabels": MapOf(TEXT)}, ("matchLabels",))
INDEXES = Leaf((str,), "indexes such as 0,2-4", pattern=r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")

JOB = Fields(
    {
        "template": POD_TEMPLATE,
        # Each index gets an address of the state's 253.
        "completions": _whole(0, 200), "parallelism": INT,
        "completionMode": _one_of("NonIndexed", "Indexed"),
        "backoffLimit": INT, "activeDeadlineSeconds": POSITIVE,
        "successPolicy": Fields({"rules": ListOf(
            Fields({"succeededIndexes": INDEXES, "succeededCount": POSITIVE}), minimum=1)},
            ("rules",)),
        "ttlSecondsAfterFinished": Note("a finished Job stays until it is deleted"),
    },
    ("template",),
)  # fmt: skip
DEPLOYMENT = Fields(
    {
        "replicas": _whole(0, 200), "selector": SELECTOR, "template": POD_TEMPLATE,
        "strategy": Note("a changed template replaces the pods at once"),
        "progressDeadlineSeconds": Note("the runner keeps trying"),
        "revisionHistoryLimit": Note("no history is kept"),
    },
    ("selector", "template"),
)  # fmt: skip
SERVICE = Fields(
    {
        "selector": MapOf(TEXT),
        "ports": ListOf(Fields(
            {"name": NAME, "port": PORT, "targetPort": PORT_OR_NAME, "protocol": _one_of("TCP"),
             "appProtocol": NETWORK}, ("port",))),
        "clusterIP": _one_of("None"),
        "type": _one_of("ClusterIP"),
        "publishNotReadyAddresses": BOOL,
    },
    ("selector",),
)  # fmt: skip
RAY_GROUP = {
    "rayStartParams": MapOf(TEXT, keys=Leaf((str,), "an option of ray start",
                                            pattern=r"[a-z][a-z0-9-]*")),
    "template": POD_TEMPLATE,
}  # fmt: skip
RAYCLUSTER = Fields(
    {
        "rayVersion": TEXT,
        "headGroupSpec": Fields({**RAY_GROUP, "serviceType": _one_of("ClusterIP")}, ("template",)),
        "workerGroupSpecs": ListOf(Fields(
            {**RAY_GROUP, "groupName": NAME, "replicas": _whole(0, 100),
             "minReplicas": _whole(0, 100), "maxReplicas": INT}, ("groupName", "template"))),
        "authOptions": Fields({"mode": _one_of("token")}, ("mode",)),
        "enableInTreeAutoscaling": Leaf((bool,), allowed=(False,)),
        "autoscalerOptions": CLUSTER_ONLY,
    },
    ("headGroupSpec",),
)  # fmt: skip
RAYSERVICE = Fields(
    {
        "serveConfigV2": TEXT,
        "rayClusterConfig": RAYCLUSTER,
        "upgradeStrategy": CLUSTER_ONLY,
        "rayClusterDeletionDelaySeconds": CLUSTER_ONLY,
        "excludeHeadPodFromServeSvc": CLUSTER_ONLY,
    },
    ("serveConfigV2", "rayClusterConfig"),
)
CLAIM = Fields(
    {
        "storageClassName": _one_of("local-path", "model-cache"),
        "accessModes": ListOf(TEXT),
        "resources": Fields({"requests": MapOf(Quantity())}),
        "volumeMode": _one_of("Filesystem"),
    },
    ("storageClassName",),
)
DATA = MapOf(TEXT, keys=DATA_KEY)

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ConfigMap": ("v1", {"data": DATA, "immutable": BOOL}),
    "Secret": ("v1", {"data": DATA, "stringData": DATA, "type": TEXT}),
    "PersistentVolumeClaim": ("v1", {"spec": CLAIM}),
    "Service": ("v1", {"spec": SERVICE}),
    "Job": ("batch/v1", {"spec": JOB}),
    "Deployment": ("apps/v1", {"spec": DEPLOYMENT}),
    "RayCluster": ("ray.io/v1", {"spec": RAYCLUSTER}),
    "RayService": ("ray.io/v1", {"spec": RAYSERVICE}),
    # Right on a cluster; here one user owns the machine, and nothing enforces them.
    "Namespace": ("v1", {}),
    "ResourceQuota": ("v1", {"spec": CLUSTER_ONLY}),
    "LimitRange": ("v1", {"spec": CLUSTER_ONLY}),
    "ServiceAccount": ("v1", {"automountServiceAccountToken": CLUSTER_ONLY}),
    "Role": ("rbac.authorization.k8s.io/v1", {"rules": CLUSTER_ONLY}),
    "RoleBinding": (
        "rbac.authorization.k8s.io/v1", {"roleRef": CLUSTER_ONLY, "subjects": CLUSTER_ONLY}),
    "NetworkPolicy": ("networking.k8s.io/v1", {"spec": NETWORK}),
}  # fmt: skip
"""Kind to its API version and its fields (beside `apiVersion`, `kind`, `metadata`)."""

DOTTED_NAMES = ("ConfigMap", "Secret", "Role", "RoleBinding", "ServiceAccount")


def without_nulls(node: Any) -> Any:
    """The same data without fields that are null, which mean nothing in a manifest.

    Args:
        node: An object or a part of one.

    Example:
        >>> without_nulls({"volumes": None, "replicas": 1})
        {'replicas': 1}
    """
    if isinstance(node, dict):
        return {key: without_nulls(value) for key, value in node.items() if value is not None}
    return [without_nulls(value) for value in node] if isinstance(node, list) else node


def check(item: Object) -> dict[str, str]:
    """Refuse an object that this machine cannot play; say what has no effect here.

    Args:
        item: A rendered object with its origin.

    Returns:
        Field path to the reason, for every field that is right on a cluster and
        has no effect on this machine.

    Raises:
        ManifestError: An unknown kind or field, or a value of the wrong type; the
            line names the file, the object and the field.

    Example:
        >>> from workshop_lib.cluster.manifests import Object
        >>> check(Object({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}, "p.yaml"))
        Traceback (most recent call last):
        ...
        workshop_lib.errors.ManifestError: p.yaml: Pod/a: kind Pod is not played on this machine; \
it plays ConfigMap, Deployment, Job, PersistentVolumeClaim, RayCluster, RayService, Secret, Service
    """
    body = item.body
    if item.kind not in KINDS:
        played = sorted(k for k, (_, fields) in KINDS.items() if not _only_notes(fields))
        raise item.error(
            f"kind {item.kind} is not played on this machine; it plays {', '.join(played)}"
        )
    version, fields = KINDS[item.kind]
    if body.get("apiVersion") != version:
        raise item.error(f"apiVersion: {body.get('apiVersion')!r} is not known; write {version}")
    notes: dict[str, str] = {}
    metadata = _metadata(LONG_NAME if item.kind in DOTTED_NAMES else NAME, "name")
    required = ("metadata", *(["spec"] if "spec" in fields else []))
    whole = Fields({"apiVersion": TEXT, "kind": TEXT, "metadata": metadata, **fields}, required)
    walk(whole, body, "", item, notes)
    return notes


def _only_notes(fields: dict[str, Any]) -> bool:
    return all(isinstance(value, Note) for value in fields.values())
