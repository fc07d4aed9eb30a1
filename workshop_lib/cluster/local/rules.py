"""What must fit together in a manifest: volumes and mounts, ports and probes, policies.

As in `schema`, everything is refused before anything starts, with file, object and field.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from workshop_lib.cluster.local import schema
from workshop_lib.cluster.local.jobs import indexes
from workshop_lib.cluster.local.ray_templates import HEAD_PORTS, WORKER_PORTS, derived_objects
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ManifestError

__all__ = ["check_rules", "checked"]

Json = Mapping[str, Any]

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
VOLUME_SOURCES = ("emptyDir", "configMap", "secret", "persistentVolumeClaim")
SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")


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
        ManifestError: One of them is wrong.
    """
    if not objects:
        raise ManifestError(f"component {component!r} has no objects")
    bodies: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    for item in objects:
        plain = Object(schema.without_nulls(item.body), item.origin)
        notes |= {f"{plain.key}.{field}": why for field, why in schema.check(plain).items()}
        check_rules(plain)
        bodies.append(plain.body)
        if plain.kind in ("RayCluster", "RayService"):
            bodies[:0] = derived_objects(plain.body)
    for key, count in Counter(f"{b['kind']}/{b['metadata']['name']}" for b in bodies).items():
        if count > 1:
            raise ManifestError(f"component {component!r}: {key} is there {count} times")
    return bodies, notes


def check_rules(item: Object) -> None:
    """Refuse an object whose parts do not fit together.

    Args:
        item: A rendered object that `schema.check` has accepted.

    Raises:
        ManifestError: What does not fit, in one line.
    """
    spec: Json = item.body.get("spec") or {}
    if item.kind == "Job":
        _check_job(spec, item)
    elif item.kind == "Deployment":
        _check_deployment(spec, item)
    elif item.kind == "Service":
        _check_service(spec, item)
    elif item.kind == "Secret":
        _check_secret(item)
    elif item.kind == "RayService":
        _check_serve_config(spec, item)
    for path, template, ray_ports in _templates(item.body):
        _check_pod(template["spec"], path, ray_ports, item)


def _templates(body: Json) -> Iterator[tuple[str, Json, Mapping[str, int] | None]]:
    """Each pod template: its path, itself, and for Ray the ports that its first container gets."""
    spec: Json = body.get("spec") or {}
    if body["kind"] in ("Job", "Deployment"):
        yield "spec.template.spec", spec["template"], None
    elif body["kind"] in ("RayCluster", "RayService"):
        cluster = spec.get("rayClusterConfig", spec)
        base = "spec.rayClusterConfig" if "rayClusterConfig" in spec else "spec"
        yield (
            f"{base}.headGroupSpec.template.spec",
            cluster["headGroupSpec"]["template"],
            HEAD_PORTS,
        )
        for number, group in enumerate(cluster.get("workerGroupSpecs", [])):
            path = f"{base}.workerGroupSpecs[{number}].template.spec"
            yield path, group["template"], WORKER_PORTS


def _unique(names: Iterable[Any], where: str, item: Object) -> None:
    for name, count in Counter(names).items():
        if name is not None and count > 1:
            raise item.error(f"{where}: {name!r} is there {count} times")


def _check_job(spec: Json, item: Object) -> None:
    policy = spec["template"]["spec"].get("restartPolicy")
    if policy not in ("Never", "OnFailure"):
        raise item.error(
            f"spec.template.spec.restartPolicy: {policy!r}: a Job needs 'Never' or 'OnFailure'"
        )
    indexed = spec.get("completionMode") == "Indexed"
    if indexed and "completions" not in spec:
        raise item.error("spec.completions is missing; completionMode Indexed needs it")
    if "completions" not in spec and spec.get("parallelism", 1) > 1:
        raise item.error(
            "spec.completions is missing; parallelism alone means a work queue, "
            "which is not played on this machine"
        )
    if "successPolicy" in spec and not indexed:
        raise item.error("spec.successPolicy needs completionMode Indexed")
    for number, rule in enumerate(spec.get("successPolicy", {}).get("rules", [])):
        where = f"spec.successPolicy.rules[{number}]"
        if not rule:
            raise item.error(f"{where} needs succeededIndexes or succeededCount")
        asked = indexes(rule.get("succeededIndexes", ""))
        if asked and max(asked) >= spec["completions"]:
            raise item.error(
                f"{where}.succeededIndexes: there is no index {max(asked)} among "
                f"{spec['completions']} completions"
            )
        most = len(asked) or spec["completions"]
        if rule.get("succeededCount", 1) > most:
            raise item.error(f"{where}.succeededCount: at most {most} can succeed")


def _check_deployment(spec: Json, item: Object) -> None:
    if spec["template"]["spec"].get("restartPolicy", "Always") != "Always":
        raise item.error("spec.template.spec.restartPolicy: a Deployment needs 'Always'")
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    for key, value in spec["selector"]["matchLabels"].items():
        if labels.get(key) != value:
            raise item.error(
                f"spec.selector.matchLabels.{key}: the template's label is {labels.get(key)!r}, "
                f"not {value!r}"
            )


def _check_service(spec: Json, item: Object) -> None:
    ports = spec.get("ports", [])
    if not ports and spec.get("clusterIP") != "None":
        raise item.error("spec.ports is missing; only a headless Service needs none")
    _unique((port["port"] for port in ports), "spec.ports", item)
    _unique((port.get("name") for port in ports), "spec.ports", item)


def _check_secret(item: Object) -> None:
    for key, value in (item.body.get("data") or {}).items():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise item.error(f"data.{key}: the value is not base64") from None


def _check_serve_config(spec: Json, item: Object) -> None:
    where = "spec.serveConfigV2"
    config: Any
    try:
        config = yaml.safe_load(spec["serveConfigV2"])
    except yaml.YAMLError as error:
        raise item.error(f"{where}: no YAML: {' '.join(str(error).split())[:200]}") from None
    applications = config.get("applications") if isinstance(config, dict) else None
    if not isinstance(applications, list) or not all(isinstance(a, dict) for a in applications):
        raise item.error(f"{where}: it needs a list `applications`")


def _check_pod(spec: Json, path: str, ray_ports: Mapping[str, int] | None, item: Object) -> None:
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    _unique((each["name"] for each in containers), f"{path}: containers", item)
    _unique((each["name"] for each in spec.get("volumes", [])), f"{path}.volumes", item)
    for volume in spec.get("volumes", []):
        if sum(source in volume for source in VOLUME_SOURCES) > 1:
            raise item.error(f"{path}.volumes[name={volume['name']}]: more than one source")
    everywhere = [port for each in spec["containers"] for port in each.get("ports", [])]
    _unique((port["containerPort"] for port in everywhere), f"{path}: containerPort", item)
    _unique((port.get("name") for port in everywhere), f"{path}: ports", item)
    for container in containers:
        where = f"{path}.containers[name={container['name']}]"
        is_ray = ray_ports is not None and container is spec["containers"][0]
        _check_container(container, where, spec, ray_ports if is_ray else None, item)
    for container in spec.get("initContainers", []):
        for field in (*PROBES, "ports"):
            if field in container:
                raise item.error(
                    f"{path}.initContainers[name={container['name']}].{field}: "
                    "an init container has none"
                )


def _check_container(
    container: Json, where: str, spec: Json, ray_ports: Mapping[str, int] | None, item: Object
) -> None:
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    mounts = [mount["mountPath"].rstrip("/") for mount in container.get("volumeMounts", [])]
    _unique(mounts, f"{where}.volumeMounts", item)
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            raise item.error(f"{where}.volumeMounts: there is no volume {mount['name']!r}")
    folder = container.get("workingDir")
    if folder and not any(f"{folder}/".startswith(f"{mount}/") for mount in mounts):
        raise item.error(
            f"{where}.workingDir: {folder} is in no mounted volume, and no image is here"
        )
    names = {port.get("name") for port in container.get("ports", [])}
    if ray_ports is not None:
        _check_ray_container(container, where, item)
        names |= set(ray_ports)
    elif "command" not in container:
        raise item.error(f"{where}.command is missing: an image's entry point is not here")
    for kind in PROBES:
        if kind in container:
            _check_probe(container[kind], f"{where}.{kind}", names, item)
            if kind != "readinessProbe" and container[kind].get("successThreshold", 1) != 1:
                raise item.error(f"{where}.{kind}.successThreshold: it must be 1")
    for number, entry in enumerate(container.get("env", [])):
        sources = [source for source in SOURCES if source in entry.get("valueFrom", {})]
        if "valueFrom" in entry and (len(sources) != 1 or "value" in entry):
            raise item.error(
                f"{where}.env[{number}] ({entry['name']}): exactly one source is needed"
            )
    for number, source in enumerate(container.get("envFrom", [])):
        if ("configMapRef" in source) == ("secretRef" in source):
            raise item.error(f"{where}.envFrom[{number}]: exactly one source is needed")


def _check_ray_container(container: Json, where: str, item: Object) -> None:
    for field in ("command", "args"):
        if field in container:
            raise item.error(
                f"{where}.{field} is not played on this machine: the first container runs ray start"
            )
    for port in container.get("ports", []):
        if port["containerPort"] not in HEAD_PORTS.values():
            raise item.error(
                f"{where}.ports: {port['containerPort']} is not played on this machine; a Ray pod "
                f"has {', '.join(map(str, HEAD_PORTS.values()))}"
            )


def _check_probe(probe: Json, where: str, names: set[str | None], item: Object) -> None:
    actions = [action for action in ("httpGet", "tcpSocket", "exec") if action in probe]
    if len(actions) != 1:
        raise item.error(f"{where}: exactly one of httpGet, tcpSocket and exec is needed")
    port = probe[actions[0]].get("port")
    if isinstance(port, str) and port not in names:
        raise item.error(f"{where}: there is no port named {port!r}")
    if actions[0] == "httpGet" and not probe["httpGet"].get("path", "/").startswith("/"):
        raise item.error(f"{where}.httpGet.path: it must begin with /")
