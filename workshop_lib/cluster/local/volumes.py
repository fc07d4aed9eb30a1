"""A pod's volumes: folders of this machine, filled from ConfigMaps and Secrets."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster.local.paths import remove_tree
from workshop_lib.cluster.local.podspec import ConfigError, object_data

__all__ = ["Volumes", "files_of", "write_files"]

Spec = Mapping[str, Any]
Find = Callable[[str, str], Mapping[str, Any] | None]


class Volumes:
    """The volumes of one pod.

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
        self._written: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.temporary = Path(f"{scratch}-t")

    def prepare(self) -> None:
        """Make every folder, empty what is the pod's own, write the files.

        Raises:
            ConfigError: A ConfigMap, Secret, key or claim is not there.
        """
        for folder in (self.temporary, *(folder for _, folder in self._volumes.values())):
            remove_tree(folder)
            folder.mkdir(parents=True, mode=0o700)
        for name, (volume, folder) in self._volumes.items():
            if "persistentVolumeClaim" in volume:
                self._claim(volume["persistentVolumeClaim"]["claimName"])
            elif "configMap" in volume or "secret" in volume:
                try:
                    files = files_of(volume, self._find)
                except ConfigError as error:
                    raise ConfigError(
                        f'MountVolume.SetUp failed for volume "{name}" : {error}'
                    ) from None
                write_files(files, folder)
                self._written[name] = files

    def refresh(self) -> None:
        """Bring files up to date with ConfigMaps and Secrets that changed since."""
        for name, written in self._written.items():
            volume, folder = self._volumes[name]
            # One that was deleted leaves its files where they are, as with a kubelet.
            with contextlib.suppress(ConfigError):
                files = files_of(volume, self._find)
                if files != written:
                    write_files(files, folder)
                    for gone in set(written) - set(files):
                        (folder / gone).unlink(missing_ok=True)
                    self._written[name] = files

    def mounts(self, container: Spec) -> dict[str, Path]:
        """Mount path to folder, for one container."""
        found = {}
        for mount in container.get("volumeMounts", []):
            volume, folder = self._volumes[mount["name"]]
            if "persistentVolumeClaim" in volume:
                folder = self._claim(volume["persistentVolumeClaim"]["claimName"])
            if sub := mount.get("subPath"):
                folder = folder / sub
                if "configMap" not in volume and "secret" not in volume:
                    folder.mkdir(parents=True, exist_ok=True)
            found[mount["mountPath"]] = folder
        return found


def files_of(volume: Spec, find: Find) -> dict[str, tuple[bytes, int]]:
    """The files of a ConfigMap or Secret volume: path to content and mode.

    Args:
        volume: The volume's spec.
        find: Returns the object's body, or None.

    Raises:
        ConfigError: The object or a key is missing.
    """
    if "configMap" in volume:
        source, kind, name = volume["configMap"], "ConfigMap", volume["configMap"]["name"]
    else:
        source, kind, name = volume["secret"], "Secret", volume["secret"]["secretName"]
    optional = source.get("optional", False)
    data = object_data(find, kind, name, optional)
    default = source.get("defaultMode", 0o644)
    files = {}
    for item in source.get("items") or [{"key": key, "path": key} for key in data]:
        if item["key"] in data:
            # A Secret is for its owner alone, whatever mode the manifest gives a cluster's user.
            mode = 0o600 if kind == "Secret" else item.get("mode", default)
            files[item["path"]] = (data[item["key"]], mode)
        elif not optional:
            raise ConfigError(f"references non-existent config key: {item['key']}")
    return files


def write_files(files: Mapping[str, tuple[bytes, int]], folder: Path) -> None:
    """Write files so that a reader sees the old one or the new one.

    Args:
        files: Path in the folder to content and mode.
        folder: An existing folder.
    """
    for path, (content, mode) in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(prefix=".", dir=file.parent)
        with os.fdopen(descriptor, "wb") as target:
            target.write(content)
        Path(scratch).chmod(mode)
        Path(scratch).replace(file)
