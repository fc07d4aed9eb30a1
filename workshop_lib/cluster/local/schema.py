"""Which kinds and fields this machine plays; everything else is refused by name.

A field is *played*, or *noted* (right on a cluster, without effect here: the learner is
told), or refused before anything starts. The models below are the whole truth about what
`LocalCluster` understands: the fields that the local overlays use. The controllers read no
other field.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    create_model,
    model_validator,
)

from workshop_lib.cluster.kube import key_of, parse_quantity
from workshop_lib.cluster.local.controllers import indexes
from workshop_lib.cluster.local.kuberay import derived_objects
from workshop_lib.cluster.local.podspec import FIELD
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ManifestError

__all__ = ["checked"]


class Model(BaseModel):
    """An object with named fields; no other field is played."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Note(NamedTuple):
    """A field that is accepted and has no effect on this machine, and why."""

    why: str


Checks = Sequence[Callable[[Any], None]]


def _model(name: str, fields: Mapping[str, Any], checks: Checks = ()) -> Any:
    """A model of fields as a manifest writes them.

    Args:
        name: Its name.
        fields: Name to type; `name?` need not be there. A type is Python's, a `Note`, a
            mapping (fields again) or a list with one element (the type of each).
        checks: Say what does not fit together, with a ValueError.
    """

    def type_of(field: str, kind: Any) -> Any:
        if isinstance(kind, dict):
            return _model(f"{name}.{field}", kind)
        return _some(type_of(field, kind[0]), 0) if isinstance(kind, list) else kind

    def validator(check: Callable[[Any], None]) -> Any:
        def run(found: Any) -> Any:
            check(found)
            return found

        return model_validator(mode="after")(run)

    definitions: dict[str, Any] = {}
    for key, kind in fields.items():
        field = key.rstrip("?")
        if isinstance(kind, Note):
            definitions[field] = (Any, Field(default=None, json_schema_extra={"note": kind.why}))
        else:
            definitions[field] = (type_of(field, kind), None if key.endswith("?") else ...)
    validators = {f"check_{number}": validator(each) for number, each in enumerate(checks)}
    return create_model(name, __base__=Model, __validators__=validators, **definitions)


def _text(pattern: str = r"^[^\x00]*$", longest: int | None = None) -> Any:
    return Annotated[str, StringConstraints(pattern=pattern, max_length=longest)]


def _whole(minimum: int, maximum: int | None = None) -> Any:
    return Annotated[int, Field(ge=minimum, le=maximum)]


def _some(item: Any, minimum: int = 1, maximum: int | None = None) -> Any:
    return Annotated[list[item], Field(min_length=minimum, max_length=maximum)]


def _map(value: Any, key: Any = str) -> Any:
    return dict[key, value]


def _checked_by(check: Callable[[Any], Any], kind: Any = str) -> Any:
    """Values that a function accepts; what it raises says what is wrong."""

    def run(value: Any) -> Any:
        try:
            check(value)
        except (ManifestError, binascii.Error, yaml.YAMLError) as error:
            raise ValueError(" ".join(str(error).split())[:200]) from None
        return value

    return Annotated[kind, AfterValidator(run)]


def _inside(value: str) -> None:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError("it must be a relative path without '..'")


def _field_path(value: str) -> None:
    if not FIELD.fullmatch(value):
        raise ValueError(
            "it must be metadata.name, status.podIP, metadata.labels['…'] or "
            "metadata.annotations['…']"
        )


def _serve_config(value: str) -> None:
    config = yaml.safe_load(value)
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not all(isinstance(a, dict) for a in applications):
        raise ValueError("it needs a list `applications`")


def _base64(value: str) -> None:
    base64.b64decode(value, validate=True)


TEXT = _text()
TEXTS = _map(TEXT)
# DNS-1123, as the API server wants it: names become parts of file names here.
NAME = _text(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
LONG_NAME = _text(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", 200)
KEY = _text(r"^\.{0,2}[-_a-zA-Z0-9][-._a-zA-Z0-9]*$", 200)
VARIABLE = _text(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
ABSOLUTE = _text(r"^/[^\x00:]*[^\x00:/]")
INDEXES = _text(r"^(\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*)?$")
MODE = _whole(0, 0o777)
PORT = _whole(1, 65535)
COUNT = _whole(0, 200)  # each pod gets an address of the state's 253
QUANTITY = _checked_by(parse_quantity, str | int | float)
AMOUNTS = _map(QUANTITY)

NETWORK = Note("every process shares this machine's network")
ISOLATION = Note("a process runs as you, without a container")
CLUSTER_ONLY = Note("a cluster's API server or operator does this")
NODE = Note("one machine, one node")


def _unique(names: Iterable[Any], what: str) -> None:
    for name, count in Counter(names).items():
        if name is not None and count > 1:
            raise ValueError(f"{what} {name!r} is there {count} times")


def _one_source(found: Any) -> None:
    if len(found.model_fields_set - {"name"}) != 1:
        raise ValueError("exactly one source is needed")


# -- pods -----------------------------------------------------------------------------------------

METADATA = {
    "name?": LONG_NAME,
    "labels?": TEXTS,
    "annotations?": TEXTS,
    "namespace": Note("a state of this machine has one namespace"),
    "creationTimestamp": Note("set by an API server"),
}
VALUE_FROM = {
    "fieldRef?": {"fieldPath": _checked_by(_field_path)},
    "resourceFieldRef?": {"resource": Literal["limits.cpu", "limits.memory"]},
    "configMapKeyRef?": {"name": LONG_NAME, "key": KEY},
}
ENV = {"name": VARIABLE, "value?": TEXT, "valueFrom?": _model("From", VALUE_FROM, [_one_source])}
PROBE = {
    "httpGet": {"path?": _text("^/"), "port": PORT | NAME},
    "initialDelaySeconds?": _whole(0),
    "periodSeconds?": _whole(1),
    "timeoutSeconds?": _whole(1),
    "failureThreshold?": _whole(1),
}
RAY_CONTAINER = {  # its command is `ray start`
    "name": NAME,
    # The overlay says outright that no image is pulled here.
    "image": Literal["localhost/this-environment"],
    "imagePullPolicy": Note("no image is pulled"),
    "env?": [_model("Env", ENV, [_one_source])],
    "resources?": {"limits?": AMOUNTS, "requests?": AMOUNTS},
    "volumeMounts?": [
        {"name": NAME, "mountPath": ABSOLUTE, "readOnly": Note("files keep their own modes")}
    ],
    "securityContext": ISOLATION,
    "terminationMessagePolicy": ISOLATION,
}
INIT_CONTAINER = {
    **RAY_CONTAINER,
    "command": _some(TEXT),
    "args?": [TEXT],
    "workingDir?": ABSOLUTE,
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
CONTAINER = {
    **INIT_CONTAINER,
    "ports?": [{"name?": NAME, "containerPort": PORT}],
    **{f"{probe}?": PROBE for probe in PROBES},
}
VOLUME = {
    "name": NAME,
    "emptyDir?": {"medium?": Literal["", "Memory"], "sizeLimit?": QUANTITY},
    "configMap?": {
        "name": LONG_NAME,
        "defaultMode?": MODE,
        "items?": [{"key": KEY, "path": _checked_by(_inside)}],
    },
    "secret?": {"secretName": LONG_NAME, "defaultMode?": MODE, "optional?": bool},
    "persistentVolumeClaim?": {"claimName": NAME},
}


def _check_ports(container: Any) -> None:
    ports = container.ports or []
    _unique((port.containerPort for port in ports), "containerPort")
    _unique((port.name for port in ports), "port")
    for kind in PROBES:
        probe = getattr(container, kind)
        port = probe.httpGet.port if probe else 0
        if isinstance(port, str) and port not in [each.name for each in ports]:
            raise ValueError(f"{kind}: there is no port named {port!r}")


def _check_pod(pod: Any) -> None:
    everything = [*(pod.initContainers or []), *pod.containers]
    _unique((each.name for each in everything), "container")
    _unique((each.name for each in pod.volumes or []), "volume")
    volumes = {each.name for each in pod.volumes or []}
    for container in everything:
        mounts = [mount.mountPath.rstrip("/") for mount in container.volumeMounts or []]
        _unique(mounts, f"container {container.name}: mountPath")
        for mount in container.volumeMounts or []:
            if mount.name not in volumes:
                raise ValueError(f"container {container.name}: there is no volume {mount.name!r}")
        folder = getattr(container, "workingDir", None)
        if folder and not any(f"{folder}/".startswith(f"{mount}/") for mount in mounts):
            raise ValueError(
                f"container {container.name}: workingDir {folder} is in no mounted volume, "
                "and no image is here"
            )


def _template(container: Any, **fields: Any) -> dict[str, Any]:
    """The pod template of a kind of workload."""
    spec = {
        "containers": _some(container),
        "initContainers?": [INIT_CONTAINER],
        "volumes?": [_model("Volume", VOLUME, [_one_source])],
        "terminationGracePeriodSeconds?": _whole(0),
        **dict.fromkeys(("nodeSelector", "tolerations", "affinity", "priorityClassName"), NODE),
        **dict.fromkeys(("hostNetwork", "dnsPolicy", "enableServiceLinks"), NETWORK),
        **dict.fromkeys(("securityContext", "serviceAccountName", "imagePullSecrets"), ISOLATION),
        "automountServiceAccountToken": ISOLATION,
        "topologySpreadConstraints": NODE,
        **fields,
    }
    return {"metadata?": METADATA, "spec": _model("PodSpec", spec, [_check_pod])}


# -- workloads ------------------------------------------------------------------------------------

MAIN = _model("Container", CONTAINER, [_check_ports])
RULE = {"succeededIndexes?": INDEXES, "succeededCount?": _whole(1)}
JOB = {
    "template": _template(MAIN, **{"restartPolicy": Literal["Never"], "subdomain?": NAME}),
    "completions?": COUNT,
    "parallelism?": _whole(0),
    "completionMode?": Literal["NonIndexed", "Indexed"],
    "backoffLimit?": _whole(0),
    "activeDeadlineSeconds?": _whole(1),
    "successPolicy?": {"rules": _some(_model("Rule", RULE))},
    "ttlSecondsAfterFinished": Note("a finished Job stays until it is deleted"),
}


def _check_job(job: Any) -> None:
    indexed = job.completionMode == "Indexed"
    if job.completions is None and (indexed or (job.parallelism or 1) > 1):
        raise ValueError("completions is missing: a work queue is not played on this machine")
    if job.successPolicy and not indexed:
        raise ValueError("successPolicy needs completionMode Indexed")
    for number, rule in enumerate(job.successPolicy.rules if job.successPolicy else ()):
        where = f"successPolicy.rules[{number}]"
        asked = indexes(rule.succeededIndexes or "")
        if not rule.model_fields_set:
            raise ValueError(f"{where} needs succeededIndexes or succeededCount")
        if max(asked, default=0) >= job.completions:
            raise ValueError(
                f"{where}: there is no index {max(asked)} among {job.completions} completions"
            )
        if (rule.succeededCount or 1) > (most := len(asked) or job.completions):
            raise ValueError(f"{where}: succeededCount: at most {most} can succeed")


DEPLOYMENT = {
    "replicas?": COUNT,
    "selector": {"matchLabels": TEXTS},
    "template": _template(MAIN, **{"restartPolicy?": Literal["Always"]}),
    "strategy": Note("a changed template replaces the pods at once"),
    "progressDeadlineSeconds": Note("the agent keeps trying"),
    "revisionHistoryLimit": Note("no history is kept"),
}


def _check_deployment(deployment: Any) -> None:
    metadata = deployment.template.metadata
    labels = (metadata.labels if metadata else None) or {}
    for key, value in deployment.selector.matchLabels.items():
        if labels.get(key) != value:
            raise ValueError(
                f"selector.matchLabels.{key}: the template's label is {labels.get(key)!r}, "
                f"not {value!r}"
            )


RAY_GROUP = {
    "template": _template(_model("RayContainer", RAY_CONTAINER)),
    "rayStartParams?": _map(TEXT, _text("^[a-z][a-z0-9-]*$")),
}
WORKERS = {"groupName": NAME, "replicas?": COUNT, "minReplicas?": COUNT, "maxReplicas?": _whole(0)}
RAYCLUSTER = {
    "rayVersion?": TEXT,
    "headGroupSpec": {**RAY_GROUP, "serviceType?": Literal["ClusterIP"]},
    "workerGroupSpecs?": _some(_model("WorkerGroup", {**RAY_GROUP, **WORKERS}), 0, 1),
    "authOptions?": {"mode": Literal["token"]},
    "enableInTreeAutoscaling?": Literal[False],
    "autoscalerOptions": CLUSTER_ONLY,
}
RAYSERVICE = {
    "serveConfigV2": _checked_by(_serve_config),
    "rayClusterConfig": RAYCLUSTER,
    "upgradeStrategy": CLUSTER_ONLY,
    "rayClusterDeletionDelaySeconds": CLUSTER_ONLY,
    "excludeHeadPodFromServeSvc": CLUSTER_ONLY,
}

# -- what they use --------------------------------------------------------------------------------

SERVICE = {
    "selector": TEXTS,
    "ports?": [{"name?": NAME, "port": PORT, "targetPort?": PORT | NAME, "appProtocol": NETWORK}],
    "clusterIP?": Literal["None"],
    "type?": Literal["ClusterIP"],
    "publishNotReadyAddresses?": bool,
}


def _check_service(service: Any) -> None:
    if not service.ports and service.clusterIP != "None":
        raise ValueError("ports is missing; only a headless Service needs none")
    _unique((port.port for port in service.ports or []), "port")


CLAIM = {
    "storageClassName": Literal["local-path", "model-cache"],
    "accessModes?": [TEXT],
    "resources?": {"requests?": AMOUNTS},
    "volumeMode?": Literal["Filesystem"],
}
DATA = _map(TEXT, KEY)
ENCODED = _map(_checked_by(_base64), KEY)

PLAYED: dict[str, tuple[str, dict[str, Any]]] = {
    "ConfigMap": ("v1", {"data?": DATA, "immutable?": bool}),
    "Deployment": ("apps/v1", {"spec": _model("Spec", DEPLOYMENT, [_check_deployment])}),
    "Job": ("batch/v1", {"spec": _model("Spec", JOB, [_check_job])}),
    "PersistentVolumeClaim": ("v1", {"spec": CLAIM}),
    "RayCluster": ("ray.io/v1", {"spec": RAYCLUSTER}),
    "RayService": ("ray.io/v1", {"spec": RAYSERVICE}),
    "Secret": ("v1", {"data?": ENCODED, "stringData?": DATA, "type?": TEXT}),
    "Service": ("v1", {"spec": _model("Spec", SERVICE, [_check_service])}),
}
"""Kind to its API version, and its fields beside `apiVersion`, `kind` and `metadata`."""

RBAC = "rbac.authorization.k8s.io/v1"
# Right on a cluster; here one user owns the machine, and nothing enforces them.
NOTED: dict[str, tuple[str, dict[str, Any]]] = {
    "Namespace": ("v1", {}),
    "ResourceQuota": ("v1", {"spec": CLUSTER_ONLY}),
    "LimitRange": ("v1", {"spec": CLUSTER_ONLY}),
    "ServiceAccount": ("v1", {"automountServiceAccountToken": CLUSTER_ONLY}),
    "Role": (RBAC, {"rules": CLUSTER_ONLY}),
    "RoleBinding": (RBAC, {"roleRef": CLUSTER_ONLY, "subjects": CLUSTER_ONLY}),
    "NetworkPolicy": ("networking.k8s.io/v1", {"spec": NETWORK}),
}


def _kind(kind: str, version: str, fields: Mapping[str, Any]) -> Any:
    name = NAME if kind in PLAYED and "spec" in fields else LONG_NAME
    metadata = {**METADATA, "name": name}
    del metadata["name?"]
    api_version = Literal[version]  # type: ignore[valid-type]
    whole = {"apiVersion": api_version, "kind": str, "metadata": metadata, **fields}
    return _model(kind, whole)


KINDS = {kind: _kind(kind, *each) for kind, each in {**PLAYED, **NOTED}.items()}


def checked(
    component: str, objects: Sequence[Object]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The bodies to apply, with what operators add, when all of them can be played here.

    Args:
        component: The component's name.
        objects: Its rendered objects.

    Returns:
        The bodies, and `Kind/name.field` to the reason for each field without effect here.

    Raises:
        ManifestError: One of them is wrong; the line names file, object and field.

    Example:
        >>> from workshop_lib.cluster.manifests import Object
        >>> pod = Object({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}, "p.yaml")
        >>> checked("demo", [pod])
        Traceback (most recent call last):
        ...
        workshop_lib.errors.ManifestError: p.yaml: Pod/a: kind Pod is not played on this machine; \
it plays ConfigMap, Deployment, Job, PersistentVolumeClaim, RayCluster, RayService, Secret, Service
    """
    if not objects:
        raise ManifestError(f"component {component!r} has no objects")
    bodies: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    for item in objects:
        if item.kind not in KINDS:
            plays = ", ".join(PLAYED)
            raise item.error(f"kind {item.kind} is not played on this machine; it plays {plays}")
        body = _without_nulls(item.body)
        try:
            model = KINDS[item.kind].model_validate(body)
        except ValidationError as error:
            raise item.error(_in_words(error, item.kind)) from None
        notes |= {f"{item.key}.{field}": why for field, why in _notes(model)}
        bodies.append(body)
        if item.kind in ("RayCluster", "RayService"):
            bodies[:0] = derived_objects(body)
    for key, count in Counter(map(key_of, bodies)).items():
        if count > 1:
            raise ManifestError(f"component {component!r}: {key} is there {count} times")
    return bodies, notes


def _without_nulls(node: Any) -> Any:
    """The same data without fields that are null, which mean nothing in a manifest."""
    if isinstance(node, dict):
        return {key: _without_nulls(value) for key, value in node.items() if value is not None}
    return [_without_nulls(value) for value in node] if isinstance(node, list) else node


def _notes(model: BaseModel) -> Iterator[tuple[str, str]]:
    """The path of each field that is given and has no effect here, and why."""
    for name, field in type(model).model_fields.items():
        if name not in model.model_fields_set:
            continue
        extra, value = field.json_schema_extra, getattr(model, name)
        if isinstance(extra, dict):
            yield name, str(extra["note"])
        parts = {f"{name}[{n}]": e for n, e in enumerate(value)} if isinstance(value, list) else {}
        for where, part in (parts or {name: value}).items():
            if isinstance(part, BaseModel):
                yield from ((f"{where}.{below}", why) for below, why in _notes(part))


def _in_words(error: ValidationError, kind: str) -> str:
    """One of a validation's errors in one line: field, what is wrong, what would be right."""
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    steps = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
    where = re.sub(r"\.(constrained-|function-|int$|str$|float$).*", "", "".join(steps).lstrip("."))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = {name for each in _models(Model) for name in each.model_fields}
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.8)
        hint = f"did you mean {close[0]}?" if close else "remove it from the local overlay"
        return f"{where} is not played on this machine; {hint}"
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        return f"{where}: {message}"
    # A Secret's value is never shown, not even when it is of the wrong type.
    secret = kind == "Secret" and where.startswith(("data", "stringData"))
    shown = "the value" if secret else repr(first["input"])[:80]
    return f"{where}: {shown}: {message[0].lower()}{message[1:]}"


def _models(model: type[Model]) -> Iterator[type[Model]]:
    for each in model.__subclasses__():
        yield each
        yield from _models(each)
