"""From a pod's spec to what to run: environment, command, files. Pure.

A process has no mount namespace, so a volume mounted at `/shared` is a folder
somewhere else. Values that begin with a mount path (arguments, environment) get
the real folder instead; scripts therefore take every path from a variable, which
is good practice in a cluster too.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.cluster.local.network import Endpoint, replace_address

__all__ = [
    "FIELD_PATHS",
    "METADATA_FIELD",
    "ConfigError",
    "PodContext",
    "container_command",
    "container_environment",
    "object_data",
    "rewrite",
    "working_folder",
]

Spec = Mapping[str, Any]

FIELD_PATHS = (
    "metadata.name", "metadata.namespace", "metadata.uid", "status.podIP", "status.hostIP",
    "spec.nodeName",
)  # fmt: skip
"""The downward-API fields that are played, beside single labels and annotations."""

METADATA_FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class ConfigError(Exception):
    """What a kubelet reports as CreateContainerConfigError."""


@dataclass
class PodContext:
    """What a pod's containers are resolved against.

    Attributes:
        metadata: The pod's metadata (name, labels, annotations, uid).
        ip: Its address.
        mounts: Mount path to folder, for each container by name.
        names: The addresses of what is played.
        find: Returns the body of a ConfigMap or Secret, or None: `find(kind, name)`.
        base: The environment that every container starts from.
    """

    metadata: Mapping[str, Any]
    ip: str
    mounts: Mapping[str, Mapping[str, Path]]
    names: Mapping[str, Endpoint]
    find: Callable[[str, str], Mapping[str, Any] | None]
    base: Mapping[str, str] = field(default_factory=dict)


def object_data(
    find: Callable[[str, str], Mapping[str, Any] | None], kind: str, name: str, optional: bool
) -> dict[str, bytes]:
    """A ConfigMap's or Secret's entries.

    Args:
        find: Returns the object's body, or None.
        kind: `ConfigMap` or `Secret`.
        name: Its name.
        optional: One that is not there has no entries.

    Raises:
        ConfigError: It is not there.
    """
    body = find(kind, name)
    if body is None:
        if optional:
            return {}
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    if kind == "ConfigMap":
        return {key: text.encode() for key, text in (body.get("data") or {}).items()}
    return {
        **{key: base64.b64decode(text) for key, text in (body.get("data") or {}).items()},
        **{key: text.encode() for key, text in (body.get("stringData") or {}).items()},
    }


def rewrite(
    value: str,
    mounts: Mapping[str, Path],
    names: Mapping[str, Endpoint],
) -> str:
    """Real folders for mount paths and real addresses for names, in a whole value.

    Args:
        value: An argument, or an environment variable's value.
        mounts: Mount path to folder.
        names: The addresses of what is played.
    """
    flag, equals, rest = value.partition("=") if value.startswith("--") else ("", "", value)
    for mount in sorted(mounts, key=len, reverse=True):
        base = mount.rstrip("/")
        if rest.rstrip("/") == base or rest.startswith(f"{base}/"):
            return f"{flag}{equals}{mounts[mount]}{rest[len(base) :]}"
    return f"{flag}{equals}{replace_address(rest, names)}"


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' own `$(NAME)`: an unknown name stays as it is, `$$(NAME)` is literal."""

    def value(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return environment.get(match[1], match[0])

    return re.sub(r"\$?\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)


def _field(path: str, context: PodContext) -> str:
    """A downward-API field."""
    fixed = {
        "metadata.name": context.metadata["name"],
        "metadata.namespace": "default",
        "metadata.uid": context.metadata.get("uid", ""),
        "status.podIP": context.ip,
        "status.hostIP": context.ip,
        "spec.nodeName": "this-machine",
    }
    if path in fixed:
        return str(fixed[path])
    if match := METADATA_FIELD.fullmatch(path):
        return str((context.metadata.get(match[1]) or {}).get(match[2], ""))
    raise ConfigError(f"fieldPath {path} is not known on this machine")


def _resource(reference: Spec, container: Spec) -> str:
    """A `resourceFieldRef`, rounded up as Kubernetes does.

    A limit that is not set is the node's capacity, a request that is not set the limit.
    """
    kind, _, what = reference["resource"].partition(".")
    resources = container.get("resources", {})
    order = ("limits",) if kind == "limits" else ("requests", "limits")
    amounts = [resources[k][what] for k in order if what in resources.get(k, {})]
    amount = parse_quantity(amounts[0]) if amounts else capacity()[what]
    return str(math.ceil(amount / (parse_quantity(reference.get("divisor", "1")) or 1.0)))


def _text(data: bytes, where: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is no text, so it cannot be an environment variable") from None
    if "\0" in text:
        raise ConfigError(f"{where} holds a NUL, so it cannot be an environment variable")
    return text


def _hostname(metadata: Mapping[str, Any]) -> str:
    """A pod's host name: its name; in an Indexed Job, Job and rank, the same in every run."""
    rank = (metadata.get("annotations") or {}).get("batch.kubernetes.io/job-completion-index")
    return metadata["name"] if rank is None else f"{metadata['labels']['job-name']}-{rank}"


def container_environment(container: Spec, context: PodContext) -> dict[str, str]:
    """A container's environment, as a kubelet would build it.

    Args:
        container: The container's spec.
        context: What it is resolved against.

    Raises:
        ConfigError: A ConfigMap, Secret or key is missing.
    """
    mounts = context.mounts[container["name"]]
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if key in source:
                reference = source[key]
                optional = reference.get("optional", False)
                data = object_data(context.find, kind, reference["name"], optional)
                for name, value in data.items():
                    text = _text(value, f"{kind} {reference['name']} key {name}")
                    if kind == "ConfigMap":
                        text = rewrite(text, mounts, context.names)
                    environment[source.get("prefix", "") + name] = text
    for entry in container.get("env", []):
        found = _variable(entry, container, context, environment)
        if found is not None:
            environment[entry["name"]] = found
    return {**context.base, "HOSTNAME": _hostname(context.metadata), **environment}


def _variable(
    entry: Spec, container: Spec, context: PodContext, environment: Mapping[str, str]
) -> str | None:
    """The value of one entry of `env`; None when it is optional and not there."""
    mounts = context.mounts[container["name"]]
    source = entry.get("valueFrom") or {}
    if "fieldRef" in source:
        return _field(source["fieldRef"]["fieldPath"], context)
    if "resourceFieldRef" in source:
        return _resource(source["resourceFieldRef"], container)
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        if key not in source:
            continue
        reference = source[key]
        optional = reference.get("optional", False)
        data = object_data(context.find, kind, reference["name"], optional)
        if reference["key"] not in data:
            if optional:
                return None
            raise ConfigError(f"couldn't find key {reference['key']} in {kind} {reference['name']}")
        text = _text(data[reference["key"]], f"{kind} {reference['name']} key {reference['key']}")
        return rewrite(text, mounts, context.names) if kind == "ConfigMap" else text
    return _expand(rewrite(entry.get("value", ""), mounts, context.names), environment)


def container_command(
    container: Spec, context: PodContext, environment: Mapping[str, str]
) -> list[str]:
    """A container's command line.

    Args:
        container: The container's spec.
        context: What it is resolved against.
        environment: Its environment, for `$(NAME)`.
    """
    mounts = context.mounts[container["name"]]
    words: Sequence[str] = [*container["command"], *container.get("args", [])]
    return [_expand(rewrite(word, mounts, context.names), environment) for word in words]


def working_folder(container: Spec, context: PodContext) -> Path:
    """The folder that a container starts in: the manifest's in a volume, else its scratch."""
    wanted = container.get("workingDir")
    if wanted is None:
        return Path(context.base["TMPDIR"])
    folder = Path(rewrite(wanted, context.mounts[container["name"]], {}))
    folder.mkdir(parents=True, exist_ok=True)  # as a container runtime does
    return folder
