"""From a pod's spec to what to run: environment, command, files.

A process has no mount namespace, so a volume mounted at `/shared` is a folder somewhere
else. Values that begin with a mount path (arguments, environment) get the real folder
instead; scripts therefore take every path from a variable, which is good practice in a
cluster too.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import INDEX, parse_quantity
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.cluster.local.network import replace_address
from workshop_lib.cluster.local.paths import remove_tree

__all__ = [
    "ConfigError", "PodContext", "Volumes", "container_command",
    "container_environment", "object_data", "rewrite", "working_folder",
]  # fmt: skip

Spec = Mapping[str, Any]
Find = Callable[[str, str], Mapping[str, Any] | None]

FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]|metadata\.name|status\.podIP")
"""The fields of the downward API that are played."""


class ConfigError(Exception):
    """What a kubelet reports as CreateContainerConfigError or FailedMount."""


@dataclass(frozen=True)
class PodContext:
    """What a pod's containers are resolved against.

    Attributes:
        metadata: The pod's metadata (name, labels, annotations).
        ip: Its address.
        mounts: Mount path to folder, for each container by name.
        hosts: The addresses of the ranks of Indexed Jobs (see `replace_address`).
        find: Returns the body of a ConfigMap or Secret, or None: `find(kind, name)`.
        base: The environment that every container starts from.
    """

    metadata: Spec
    ip: str
    mounts: Mapping[str, Mapping[str, Path]]
    hosts: Mapping[str, Any]
    find: Find
    base: Mapping[str, str]


def object_data(find: Find, kind: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
    """A ConfigMap's or Secret's entries; none of an optional one that is not there."""
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


def rewrite(value: str, mounts: Mapping[str, Path], hosts: Mapping[str, Any]) -> str:
    """Real folders for mount paths and real addresses for names, in a whole value or `--flag=`."""
    flag, equals, rest = value.partition("=") if value.startswith("--") else ("", "", value)
    for mount in sorted(mounts, key=len, reverse=True):
        base = mount.rstrip("/")
        if rest.rstrip("/") == base or rest.startswith(f"{base}/"):
            return f"{flag}{equals}{mounts[mount]}{rest[len(base) :]}"
    return f"{flag}{equals}{replace_address(rest, hosts)}"


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' own `$(NAME)`: an unknown name stays as it is, `$$(NAME)` is literal."""

    def value(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return environment.get(match[1], match[0])

    return re.sub(r"\$?\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)


def _from_source(source: Spec, container: Spec, context: PodContext) -> str:
    """The value of a `valueFrom`."""
    if "fieldRef" in source:
        path = source["fieldRef"]["fieldPath"]
        if (match := FIELD.fullmatch(path)) and match[1]:
            return str((context.metadata.get(match[1]) or {}).get(match[2], ""))
        return context.ip if path == "status.podIP" else str(context.metadata["name"])
    if "resourceFieldRef" in source:
        # Rounded up, as Kubernetes does; a limit that is not set is the node's capacity.
        what = source["resourceFieldRef"]["resource"].partition(".")[2]
        limits = container.get("resources", {}).get("limits", {})
        amount = parse_quantity(limits[what]) if what in limits else capacity()[what]
        return str(math.ceil(amount))
    name, key = source["configMapKeyRef"]["name"], source["configMapKeyRef"]["key"]
    data = object_data(context.find, "ConfigMap", name)
    if key not in data:
        raise ConfigError(f"couldn't find key {key} in ConfigMap default/{name}")
    return rewrite(data[key].decode(), context.mounts[container["name"]], context.hosts)


def container_environment(container: Spec, context: PodContext) -> dict[str, str]:
    """A container's environment, as a kubelet would build it.

    Raises:
        ConfigError: A ConfigMap or key is missing.
    """
    # A pod's host name; in an Indexed Job that of the rank, the same in every run.
    rank = (context.metadata.get("annotations") or {}).get(INDEX)
    host = context.metadata["name"]
    if rank is not None:
        host = f"{context.metadata['labels']['job-name']}-{rank}"
    environment: dict[str, str] = {}
    for entry in container.get("env", []):
        if "valueFrom" in entry:
            value = _from_source(entry["valueFrom"], container, context)
        else:
            mounts = context.mounts[container["name"]]
            value = _expand(rewrite(entry.get("value", ""), mounts, context.hosts), environment)
        environment[entry["name"]] = value
    return {**context.base, "HOSTNAME": host, **environment}


def container_command(
    container: Spec, context: PodContext, environment: Mapping[str, str]
) -> list[str]:
    """A container's command line, with `$(NAME)` from its environment."""
    mounts = context.mounts[container["name"]]
    words = [*container["command"], *container.get("args", [])]
    return [_expand(rewrite(word, mounts, context.hosts), environment) for word in words]


def working_folder(container: Spec, context: PodContext) -> Path:
    """The folder that a container starts in: the manifest's in a volume, else its scratch."""
    wanted = container.get("workingDir")
    if wanted is None:
        return Path(context.base["TMPDIR"])
    folder = Path(rewrite(wanted, context.mounts[container["name"]], {}))
    folder.mkdir(parents=True, exist_ok=True)  # as a container runtime does
    return folder


class Volumes:
    """A pod's volumes: folders of this machine, filled from ConfigMaps and Secrets.

    Args:
        spec: The pod's spec.
        scratch: Prefix of the folders that are its own, such as `/tmp/ws-1/v/7`.
        find: Returns the body of a ConfigMap or Secret, or None.
        claim: Returns the folder behind a claim.
    """

    def __init__(self, spec: Spec, scratch: str, find: Find, claim: Callable[[str], Path]) -> None:
        self._volumes = {
            volume["name"]: (volume, Path(f"{scratch}-{number}"))
            for number, volume in enumerate(spec.get("volumes", []))
        }
        self._find = find
        self._claim = claim
        self.temporary = Path(f"{scratch}-t")

    @property
    def own(self) -> list[Path]:
        """The folders that go with the pod."""
        return [self.temporary, *(folder for _, folder in self._volumes.values())]

    def prepare(self) -> None:
        """Make every folder, empty what is the pod's own, write the files.

        Raises:
            ConfigError: A ConfigMap, Secret, key or claim is not there.
        """
        for folder in self.own:
            remove_tree(folder)
            folder.mkdir(parents=True, mode=0o700)
        for name, (volume, folder) in self._volumes.items():
            if "persistentVolumeClaim" in volume:
                self._claim(volume["persistentVolumeClaim"]["claimName"])
            elif "configMap" in volume or "secret" in volume:
                try:
                    _write_files(volume, folder, self._find)
                except ConfigError as error:
                    problem = f'MountVolume.SetUp failed for volume "{name}" : {error}'
                    raise ConfigError(problem) from None

    def mounts(self, container: Spec) -> dict[str, Path]:
        """Mount path to folder, for one container."""
        found = {}
        for mount in container.get("volumeMounts", []):
            volume, folder = self._volumes[mount["name"]]
            if "persistentVolumeClaim" in volume:
                folder = self._claim(volume["persistentVolumeClaim"]["claimName"])
            found[mount["mountPath"]] = folder
        return found


def _write_files(volume: Spec, folder: Path, find: Find) -> None:
    """The files of a ConfigMap or Secret volume."""
    kind = "ConfigMap" if "configMap" in volume else "Secret"
    source = volume["configMap"] if kind == "ConfigMap" else volume["secret"]
    name = source["name"] if kind == "ConfigMap" else source["secretName"]
    data = object_data(find, kind, name, optional=source.get("optional", False))
    # A Secret is for its owner alone, whatever mode the manifest gives a cluster's user.
    mode = 0o600 if kind == "Secret" else source.get("defaultMode", 0o644)
    for item in source.get("items") or [{"key": key, "path": key} for key in data]:
        if item["key"] not in data:
            raise ConfigError(f"references non-existent config key: {item['key']}")
        file = folder / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(data[item["key"]])
        file.chmod(mode)
