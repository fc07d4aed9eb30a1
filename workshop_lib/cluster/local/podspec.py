"""From a pod's spec to what to run: environment, command, files.

A process has no mount namespace, so a volume mounted at `/shared` is a folder somewhere
else. Values that begin with a mount path (arguments, environment) get the real folder
instead; scripts therefore take every path from a variable, which is good practice in a
cluster too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop_lib.cluster.kube import INDEX, parse_quantity
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.cluster.local.network import Hosts, replace_address
from workshop_lib.cluster.local.objects import data_of
from workshop_lib.cluster.local.paths import remove_tree

__all__ = ["FIELD", "NotYet", "PodContext", "Volumes", "container_command",
           "container_environment", "rewrite", "working_folder"]  # fmt: skip

Spec = Mapping[str, Any]
Find = Callable[[str], Mapping[str, Any] | None]

FIELD = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]|metadata\.name|status\.podIP")
"""The fields of the downward API that are played."""


class NotYet(Exception):
    """What a kubelet reports as CreateContainerNotYet or FailedMount."""


@dataclass(frozen=True)
class PodContext:
    """What a container is resolved against."""

    metadata: Spec
    ip: str
    mounts: Mapping[str, Path]  # mount path to folder
    hosts: Hosts
    find: Find
    base: Mapping[str, str]  # the environment that every container starts from


def rewrite(value: str, mounts: Mapping[str, Path], hosts: Hosts) -> str:
    """Real folders for mount paths and real addresses for names, in a whole value or `--flag=`."""
    flag, equals, rest = value.partition("=") if value.startswith("--") else ("", "", value)
    for mount in sorted(mounts, key=len, reverse=True):
        if rest == mount or rest.startswith(f"{mount}/"):
            return f"{flag}{equals}{mounts[mount]}{rest[len(mount) :]}"
    return f"{flag}{equals}{replace_address(rest, hosts)}"


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' own `$(NAME)`: an unknown name stays as it is, `$$(NAME)` is literal."""

    def value(match: re.Match[str]) -> str:
        return match[0][1:] if match[0].startswith("$$") else environment.get(match[1], match[0])

    return re.sub(r"\$?\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", value, text)


def _from_source(source: Spec, container: Spec, context: PodContext) -> str:
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
    data = _data(context.find, "ConfigMap", name)
    if key not in data:
        raise NotYet(f"couldn't find key {key} in ConfigMap default/{name}")
    return rewrite(data[key].decode(), context.mounts, context.hosts)


def _data(find: Find, kind: str, name: str) -> dict[str, bytes]:
    if (body := find(f"{kind}/{name}")) is None:
        raise NotYet(f'{kind.lower()} "{name}" not found')
    return data_of(body)


def container_environment(container: Spec, context: PodContext) -> dict[str, str]:
    """A container's environment, as a kubelet would build it."""
    environment: dict[str, str] = {}
    for entry in container.get("env", []):
        if "valueFrom" in entry:
            value = _from_source(entry["valueFrom"], container, context)
        else:
            real = rewrite(entry.get("value", ""), context.mounts, context.hosts)
            value = _expand(real, environment)
        environment[entry["name"]] = value
    # A pod's host name; in an Indexed Job that of the rank, the same in every run.
    host = context.metadata["name"]
    if INDEX in (context.metadata.get("annotations") or {}):
        host = host.rpartition("-")[0]
    return {**context.base, "HOSTNAME": host, **environment}


def container_command(
    container: Spec, context: PodContext, environment: Mapping[str, str]
) -> list[str]:
    """A container's command line, with `$(NAME)` from its environment."""
    words = [*container["command"], *container.get("args", [])]
    return [_expand(rewrite(word, context.mounts, context.hosts), environment) for word in words]


def working_folder(container: Spec, context: PodContext) -> Path:
    """The folder that a container starts in: the manifest's in a volume, else its scratch."""
    if (wanted := container.get("workingDir")) is None:
        return Path(context.base["TMPDIR"])
    folder = Path(rewrite(wanted, context.mounts, {}))
    folder.mkdir(parents=True, exist_ok=True)  # as a container runtime does
    return folder


class Volumes:
    """A pod's volumes: folders of this machine, filled from ConfigMaps and Secrets.

    Those that go with the pod begin with `scratch`; `claim` returns the folder behind a claim.
    """

    def __init__(self, spec: Spec, scratch: str, find: Find, claim: Callable[[str], Path]) -> None:
        self._volumes = {
            volume["name"]: (volume, Path(f"{scratch}-{number}"))
            for number, volume in enumerate(spec.get("volumes", []))
        }
        self._find, self._claim = find, claim
        self.temporary = Path(f"{scratch}-t")
        self.own = [self.temporary, *(folder for _, folder in self._volumes.values())]
        """The folders that go with the pod."""

    def prepare(self) -> None:
        """Make every folder, empty what is the pod's own, write the files."""
        for folder in self.own:
            remove_tree(folder)
            folder.mkdir(parents=True, mode=0o700)
        for name, (volume, folder) in self._volumes.items():
            try:
                self._fill(volume, folder)
            except NotYet as error:
                raise NotYet(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None

    def _fill(self, volume: Spec, folder: Path) -> None:
        source = volume.get("configMap") or volume.get("secret")
        if source is None:
            return
        kind = "ConfigMap" if "configMap" in volume else "Secret"
        name = source["name"] if kind == "ConfigMap" else source["secretName"]
        if source.get("optional") and self._find(f"{kind}/{name}") is None:
            return
        data = _data(self._find, kind, name)
        for item in source.get("items") or [{"key": key, "path": key} for key in data]:
            if item["key"] not in data:
                raise NotYet(f"references non-existent config key: {item['key']}")
            file = folder / item["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            # A Secret is for its owner alone, whatever mode the manifest gives a cluster's user.
            file.touch(mode=0o600 if kind == "Secret" else 0o644)
            file.write_bytes(data[item["key"]])

    def mounts(self, container: Spec, *, claims_only: bool = False) -> dict[str, Path]:
        """Mount path to folder, for one container."""
        found = {}
        for mount in container.get("volumeMounts", []):
            volume, folder = self._volumes[mount["name"]]
            claim = volume.get("persistentVolumeClaim")
            if claim or not claims_only:
                found[mount["mountPath"].rstrip("/")] = (
                    self._claim(claim["claimName"]) if claim else folder
                )
        return found
