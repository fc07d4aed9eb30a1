"""RayServices: a Ray cluster, and Serve applications that are deployed to it."""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.local.podspec import ConfigError, rewrite
from workshop_lib.cluster.local.ray_cluster import RayClusterController
from workshop_lib.cluster.local.ray_templates import HEAD_PORTS
from workshop_lib.cluster.local.world import World

__all__ = ["RayServiceController"]

REQUEST_TIMEOUT_S = 20.0


def _rewrite_texts(node: Any, mounts: Mapping[str, Path]) -> Any:
    """The same data with real folders in place of mount paths."""
    if isinstance(node, dict):
        return {key: _rewrite_texts(value, mounts) for key, value in node.items()}
    if isinstance(node, list):
        return [_rewrite_texts(value, mounts) for value in node]
    return rewrite(node, mounts, {}) if isinstance(node, str) else node


class RayServiceController(RayClusterController):
    """Drives one RayService.

    Args:
        world: The runner's surroundings.
        body: The RayService.
    """

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        self.config: Any = {}
        self.applications: dict[str, Any] = {}
        self._body = body
        self._deployed: dict[str, Any] | None = None
        self._said = ""
        super().__init__(world, body)

    def update(self, body: Mapping[str, Any]) -> None:
        """Take a changed Serve configuration; it is deployed to the running cluster."""
        super().update(body)
        self._body = body
        config = yaml.safe_load(body["spec"]["serveConfigV2"])
        if config != self.config:
            self.config = config
            self.condition("Ready", False, "Initializing", "the configuration is not deployed yet")

    def _claim_mounts(self) -> dict[str, Path]:
        """The folders that the head's container has from claims: models lie there."""
        config = self._body["spec"]["rayClusterConfig"]
        spec = config["headGroupSpec"]["template"]["spec"]
        claims = {
            volume["name"]: self.world.claim(volume["persistentVolumeClaim"]["claimName"])
            for volume in spec.get("volumes", [])
            if "persistentVolumeClaim" in volume
        }
        return {
            mount["mountPath"]: claims[mount["name"]]
            for mount in spec["containers"][0].get("volumeMounts", [])
            if mount["name"] in claims
        }

    def status(self) -> dict[str, Any]:
        """The RayService's status."""
        inner = super().status()
        conditions = inner.pop("conditions")
        kinds = ("Ready", "UpgradeInProgress")
        return {
            "observedGeneration": inner.pop("observedGeneration"),
            "conditions": [c for c in conditions if c["type"] in kinds],
            "activeServiceStatus": {
                "rayClusterName": self.name,
                "applicationStatuses": self.applications,
                "rayClusterStatus": {
                    **inner, "conditions": [c for c in conditions if c["type"] not in kinds]
                },
            },
        }  # fmt: skip

    async def run(self) -> None:
        """Keep the cluster up and the applications deployed, for ever."""
        self.condition("Ready", False, "Initializing")
        self.condition("UpgradeInProgress", False, "NoPendingCluster")
        while True:
            await self.reconcile()
            if any(pod.ready for pod in self.head_set.pods):
                await self._look_after_serve()
            else:
                self._deployed = None  # a new head has to be told again
                self.condition("Ready", False, "HeadPodNotReady")
            await asyncio.sleep(0.5)

    async def _look_after_serve(self) -> None:
        """Deploy the configuration if it is new, and read how the applications do."""
        wanted = self.config
        try:
            if self._deployed != wanted:
                config = _rewrite_texts(wanted, self._claim_mounts())
                body = {**config, **self._http_options(config)}
                await asyncio.to_thread(self._request, "PUT", body)
                self._deployed = wanted
                self.world.event(
                    (self.kind, self.name), "UpdatedServeApplications", "Deployed serveConfigV2"
                )
            answer = await asyncio.to_thread(self._request, "GET")
        except (OSError, ValueError, http.client.HTTPException, ConfigError) as error:
            self._say_once(f"Serve does not take the configuration yet: {error}")
            return
        found = answer.get("applications", {})
        self.applications = {
            name: {
                "status": app["status"],
                "message": app.get("message", ""),
                "serveDeploymentStatuses": {
                    each: {"status": d["status"], "message": d.get("message", "")}
                    for each, d in app.get("deployments", {}).items()
                },
            }
            for name, app in found.items()
        }
        names = {app.get("name", "default") for app in wanted.get("applications", [])}
        running = names <= set(found) and all(a["status"] == "RUNNING" for a in found.values())
        self.condition(
            "Ready", running and wanted is self.config,
            "NonZeroServeEndpoints" if running else "ZeroServeEndpoints",
            "; ".join(f"{name} is {app['status']}" for name, app in found.items()),
        )  # fmt: skip
        for name, app in found.items():
            if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                self._say_once(f"application {name} is {app['status']}: {app.get('message', '')}")
        self.world.changed()

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.world.event((self.kind, self.name), "ServeNotReady", text[:1000], "Warning")

    def _http_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Serve's proxy on the head's own address and port, and nowhere else."""
        endpoint = self.head_set.endpoint(0)
        options = {"host": endpoint.ip, "port": endpoint.ports[HEAD_PORTS["serve"]]}
        return {
            "proxy_location": "HeadOnly",
            "http_options": {**config.get("http_options", {}), **options},
        }

    def _request(self, method: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the head's dashboard about Serve."""
        endpoint = self.head_set.endpoint(0)
        secret = self.world.find("Secret", self.name) or {}
        token = (secret.get("stringData") or {}).get("auth_token", "")
        request = urllib.request.Request(
            f"http://{endpoint.ip}:{endpoint.ports[HEAD_PORTS['dashboard']]}"
            "/api/serve/applications/",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        # A proxy that is configured for the outside has nothing to do with this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=REQUEST_TIMEOUT_S) as answer:
                return json.loads(answer.read() or b"{}")  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace").strip()[-500:]
            raise ValueError(f"HTTP {error.code}: {detail}") from error
