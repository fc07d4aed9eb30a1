"""A cluster's objects as the production checklist reads them: pods, their settings, their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from workshop_lib.cluster.local.machine import requests_of
from workshop_lib.cluster.needs import pod_specs

__all__ = ["EFA", "GPU", "Objects", "Template"]

Json = Mapping[str, Any]
GPU, EFA = "nvidia.com/gpu", "vpc.amazonaws.com/efa"


@dataclass(frozen=True)
class Template:
    """The pods that a workload makes.

    Attributes:
        owner: `Kind/name` of the workload.
        kind: The workload's kind.
        count: How many of them.
        spec: Their spec.
    """

    owner: str
    kind: str
    count: int
    spec: Json

    @property
    def container(self) -> Json:
        """Their main container."""
        first: Json = self.spec["containers"][0]
        return first

    @property
    def gpus(self) -> int:
        """GPUs of each."""
        return int(requests_of(self.spec).get(GPU, 0))

    @property
    def efa(self) -> int:
        """EFA devices of each."""
        return int(requests_of(self.spec).get(EFA, 0))

    @property
    def env(self) -> dict[str, str]:
        """The main container's environment, as far as it stands in the manifest."""
        entries = self.container.get("env") or []
        return {each["name"]: str(each["value"]) for each in entries if "value" in each}

    def volume_at(self, path: str) -> tuple[str, Json] | None:
        """The volume that holds a path of the main container: where it is mounted, and it.

        Example:
            >>> spec = {"containers": [{"volumeMounts": [{"name": "v", "mountPath": "/shared"}]}],
            ...         "volumes": [{"name": "v", "emptyDir": {}}]}
            >>> Template("Job/x", "Job", 1, spec).volume_at("/shared/run")[0]
            '/shared'
        """
        mounts = sorted(
            self.container.get("volumeMounts") or [], key=lambda each: -len(each["mountPath"])
        )
        for mount in mounts:
            place = mount["mountPath"].rstrip("/")
            if path == place or path.startswith(f"{place}/"):
                volumes = {each["name"]: each for each in self.spec.get("volumes") or []}
                return place, volumes.get(mount["name"], {})
        return None


class Objects:
    """Objects by kind, whether rendered or read from a cluster.

    Args:
        bodies: The objects.
    """

    def __init__(self, bodies: Iterable[Json]) -> None:
        self._by_kind: dict[str, list[Json]] = {}
        for body in bodies:
            self._by_kind.setdefault(str(body.get("kind")), []).append(body)

    @classmethod
    def of_snapshot(cls, snapshot: Mapping[str, Any]) -> Objects:
        """The objects of a snapshot: a mapping of lists, as `cluster.snapshot()` gives it."""
        lists = (value for value in snapshot.values() if isinstance(value, list))
        return cls(each for found in lists for each in found if isinstance(each, Mapping)
                   and "kind" in each)  # fmt: skip

    def of(self, *kinds: str) -> list[Json]:
        """All objects of some kinds."""
        return [body for kind in kinds for body in self._by_kind.get(kind, [])]

    @property
    def templates(self) -> list[Template]:
        """The pods of every workload, a RayCluster's groups one by one.

        A RayService's own RayClusters are left out: its template says the same.
        """
        found = []
        for body in self.of("Job", "Deployment", "RayCluster", "RayService"):
            owners = body["metadata"].get("ownerReferences") or []
            if any(each.get("kind") == "RayService" for each in owners):
                continue
            owner = f"{body['kind']}/{body['metadata']['name']}"
            found += [Template(owner, body["kind"], n, spec) for n, spec in pod_specs(body)]
        return found

    @property
    def serve_configs(self) -> list[tuple[str, Json]]:
        """RayService's name to its parsed Serve configuration."""
        return [
            (f"RayService/{body['metadata']['name']}",
             yaml.safe_load(body["spec"].get("serveConfigV2") or "{}") or {})
            for body in self.of("RayService")
        ]  # fmt: skip

    @property
    def llm_configs(self) -> list[tuple[str, Json]]:
        """RayService's name to each `LLMConfig` in it."""
        return [
            (name, config)
            for name, serve in self.serve_configs
            for application in serve.get("applications") or []
            for config in (application.get("args") or {}).get("llm_configs") or []
        ]

    @property
    def recipes(self) -> list[tuple[str, Json]]:
        """ConfigMap's key to the NeMo RL recipe that it holds."""
        found = []
        for body in self.of("ConfigMap"):
            for key, text in (body.get("data") or {}).items():
                if not key.endswith((".yaml", ".yml")):
                    continue
                try:
                    recipe = yaml.safe_load(text)
                except yaml.YAMLError:
                    continue  # somebody else's, and not for us to judge
                if isinstance(recipe, Mapping) and "grpo" in recipe:
                    found.append((f"ConfigMap/{body['metadata']['name']}:{key}", recipe))
        return found
