"""RayClusters and RayServices, as the KubeRay operator runs them.

Pod templates get the `ray start` that KubeRay 1.7 would generate: parameters from
`rayStartParams`, logical resources from the container's limits. What differs is what one
machine forces: every node says which address is its own, the ports that Ray opens on all
addresses are free ones, and each node keeps its files in its own folder.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.cluster.local.controllers import Controller, ReplicaSet
from workshop_lib.cluster.local.network import Endpoint
from workshop_lib.cluster.local.objects import GENERATE
from workshop_lib.cluster.local.podspec import ConfigError, rewrite
from workshop_lib.cluster.local.world import World

__all__ = ["RayClusterController", "RayServiceController", "derived_objects"]

HEAD_PORTS = {
    "gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000,
    "metrics": 8080, "dashboard-agent": 52365,
}  # fmt: skip
"""KubeRay's default ports of a head, and the agent's, which its probes ask."""

WORKER_PORTS = {"metrics": 8080, "dashboard-agent": 52365}

TOKEN_MOUNT = "/var/run/ray-auth"

SERVE_LOOK_EVERY_S = 0.5

REQUEST_TIMEOUT_S = 20.0


def derived_objects(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects that the operator makes beside the pods of a RayCluster or RayService.

    Returns:
        An empty Secret, named like the cluster, that apply fills with a random token; a
        headless Service for the head; and one for Serve (RayService).
    """
    name = body["metadata"]["name"]
    origin = {"ray.io/originated-from-cr-name": name}

    def named(kind: str, suffix: str, **rest: Any) -> dict[str, Any]:
        metadata = {"name": name + suffix, "labels": dict(origin)}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest}

    secret = named("Secret", "", data={})
    secret["metadata"]["annotations"] = {GENERATE: "auth_token"}
    ports = [{"name": n, "port": p} for n, p in HEAD_PORTS.items() if n != "dashboard-agent"]
    selector = {**origin, "ray.io/node-type": "head"}
    spec: dict[str, Any] = {"clusterIP": "None", "selector": selector, "ports": ports}
    head = named("Service", "-head-svc", spec=spec)
    head["metadata"]["labels"] |= {"ray.io/cluster": name, "ray.io/node-type": "head"}
    made = [secret, head]
    if body["kind"] == "RayService":
        port = {"name": "serve", "port": HEAD_PORTS["serve"], "targetPort": "serve"}
        spec = {"selector": {**origin, "ray.io/serve": "true"}, "ports": [port]}
        made.append(named("Service", "-serve-svc", spec=spec))
    return made


def _resources(container: Mapping[str, Any]) -> dict[str, str]:
    """Logical resources from a container's limits, as KubeRay derives them.

    Ray gives its object store 30% of a node's memory by itself; here every node would take
    the whole machine for its own, so both shares are said.
    """
    resources = container.get("resources", {})
    amounts = {
        name: parse_quantity(amount)
        for name, amount in {**resources.get("requests", {}), **resources.get("limits", {})}.items()
    }
    flags = {}
    if "cpu" in amounts:
        flags["num-cpus"] = str(math.ceil(amounts["cpu"]))
    if "memory" in amounts:
        flags["memory"] = str(int(amounts["memory"] * 0.7))
        flags["object-store-memory"] = str(int(amounts["memory"] * 0.3))
    if "nvidia.com/gpu" in amounts:
        flags["num-gpus"] = str(int(amounts["nvidia.com/gpu"]))
    return flags


def _addresses(endpoint: Endpoint, head: Endpoint | None) -> dict[str, str]:
    """The flags that put a node on its own address and ports."""
    flags = {
        "node-ip-address": endpoint.ip,
        "metrics-export-port": str(endpoint.ports["metrics"]),
        "dashboard-agent-listen-port": str(endpoint.ports["dashboard-agent"]),
        # Two nodes on one machine would hand out the same numbers: let the system choose.
        "min-worker-port": "0",
        "max-worker-port": "0",
        "temp-dir": "/tmp/ray",
    }
    if head is not None:
        return flags | {"address": f"{head.ip}:{head.ports['gcs-server']}"}
    return flags | {
        "port": str(endpoint.ports["gcs-server"]),
        "dashboard-host": endpoint.ip,
        "dashboard-port": str(endpoint.ports["dashboard"]),
        "ray-client-server-port": str(endpoint.ports["client"]),
    }


def _ray_template(
    group: Mapping[str, Any], endpoint: Endpoint, head: Endpoint | None, token_secret: str
) -> dict[str, Any]:
    """A group's pod template with the `ray start` that belongs in it; `head` is a worker's."""
    template = group["template"]
    spec = dict(template["spec"])
    container = dict(spec["containers"][0])
    ports = HEAD_PORTS if head is None else WORKER_PORTS
    flags = {
        "log-color": "false",  # the log is read in notebooks and files
        **_resources(container),
        **(group.get("rayStartParams") or {}),
        **_addresses(endpoint, head),
    }
    container["command"] = ["ray", "start"]
    container["args"] = [
        *(["--head"] if head is None else []),
        "--block",
        "--disable-usage-stats",
        *(f"--{name}={value}" for name, value in sorted(flags.items()) if name != "block"),
    ]
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    container["env"] = [
        # Whoever deletes a cluster on a laptop does not wait for its requests to end.
        {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "0"},
        *container.get("env", []),
        # As KubeRay sets it; here it also keeps `ray status` from finding every Ray around.
        {"name": "RAY_ADDRESS",
         "value": f"{(head or endpoint).ip}:{(head or endpoint).ports['gcs-server']}"},
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN_PATH", "value": f"{TOKEN_MOUNT}/auth_token"},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
    ]  # fmt: skip
    container["volumeMounts"] = [
        *(m for m in container.get("volumeMounts", []) if m["mountPath"] != "/tmp/ray"),
        {"name": "ray-auth", "mountPath": TOKEN_MOUNT},
        {"name": "ray-tmp", "mountPath": "/tmp/ray"},
    ]
    path, port = "/api/gcs_healthz", "dashboard"
    if head is not None:
        path, port = "/api/local_raylet_healthz", "dashboard-agent"
    ready = {"httpGet": {"path": path, "port": port}, "periodSeconds": 1, "timeoutSeconds": 2}
    container.setdefault("readinessProbe", {**ready, "failureThreshold": 10})
    spec["containers"] = [container, *spec["containers"][1:]]
    spec["volumes"] = [
        *(v for v in spec.get("volumes", []) if v["name"] not in ("ray-auth", "ray-tmp")),
        {"name": "ray-auth", "secret": {"secretName": token_secret}},
        {"name": "ray-tmp", "emptyDir": {}},
    ]
    # One process tree is one node: it ends in seconds.
    spec.setdefault("terminationGracePeriodSeconds", 5)
    return {**template, "spec": spec}


class _Group(ReplicaSet):
    """The head, or the group of workers."""

    keeps_addresses = True  # the workers were told the head's
    ray_ports: Mapping[str, int]
    group: Mapping[str, Any]
    head: _Group | None = None

    def endpoint(self, slot: int) -> Endpoint:
        """The address of the pod in a slot."""
        return self.controller.world.addresses.assign(f"{self.slots}/{slot}", self.ray_ports)

    def pod_template(self, endpoint: Endpoint) -> Mapping[str, Any]:
        """The group's template with its `ray start`."""
        head = self.head.endpoint(0) if self.head else None
        return _ray_template(self.group, endpoint, head, self.controller.name)


class RayClusterController(Controller):
    """Drives a RayCluster, or the one under a RayService's `rayClusterConfig`."""

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        name, key = body["metadata"]["name"], f"{body['kind']}/{body['metadata']['name']}"
        shared = {
            "ray.io/cluster": name,
            "ray.io/originated-from-cr-name": name,
            "ray.io/is-ray-node": "yes",
        }
        spec = body["spec"].get("rayClusterConfig", body["spec"])
        head = {"ray.io/node-type": "head", "ray.io/group": "headgroup", "ray.io/serve": "true"}
        self._head = _Group(self, f"{name}-head", {**shared, **head}, f"{key}/head")
        self._head.group, self._head.ray_ports = spec["headGroupSpec"], HEAD_PORTS
        self._head.replicas = 1
        self._workers = []
        for group in spec.get("workerGroupSpecs", []):
            labels = {**shared, "ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
            prefix = f"{name}-{group['groupName']}-worker"
            workers = _Group(self, prefix, labels, f"{key}/workers")
            workers.group, workers.ray_ports, workers.head = group, WORKER_PORTS, self._head
            self._workers.append(workers)
        super().__init__(world, body)

    def update(self, body: Mapping[str, Any]) -> None:
        """Take changed replica counts; other changes need delete and apply, as with KubeRay."""
        super().update(body)
        groups = self.spec.get("rayClusterConfig", self.spec).get("workerGroupSpecs", [])
        for workers, group in zip(self._workers, groups, strict=True):
            workers.replicas = group.get("replicas", group.get("minReplicas", 0))

    @property
    def head_ready(self) -> bool:
        """Whether the head's pod is ready."""
        return any(pod.ready for pod in self._head.pods)

    async def step(self) -> None:
        """One look at head and workers."""
        await self._head.reconcile()
        for group in self._workers:
            await group.reconcile()
        # Head first, then the workers.
        self.pods = [pod for group in (self._head, *self._workers) for pod in group.pods]
        reason = "HeadPodRunningAndReady" if self.head_ready else "ContainersNotReady"
        self.condition("HeadPodReady", self.head_ready, reason)
        wanted = 1 + sum(group.replicas for group in self._workers)
        ready = sum(pod.ready for pod in self.pods)
        # KubeRay never takes this back: it says that the cluster was whole once.
        if not self.conditions.is_true("RayClusterProvisioned"):
            done = ready >= wanted
            reason = "AllPodRunningAndReadyFirstTime" if done else "RayClusterPodsProvisioning"
            self.condition("RayClusterProvisioned", done, reason, f"{ready} of {wanted} pods ready")

    def status(self) -> dict[str, Any]:
        """The RayCluster's status."""
        workers = [pod for group in self._workers for pod in group.pods]
        head = self._head.pods
        return {
            "observedGeneration": self.generation,
            "conditions": self.conditions.to_json(),
            "desiredWorkerReplicas": sum(group.replicas for group in self._workers),
            "readyWorkerReplicas": sum(pod.ready for pod in workers),
            "availableWorkerReplicas": sum(pod.phase == "Running" for pod in workers),
            "head": {
                "podIP": head[0].ip if head else "",
                "podName": head[0].name if head else "",
                "serviceName": f"{self.name}-head-svc",
            },
        }


class RayServiceController(RayClusterController):
    """Drives a RayService: a Ray cluster, and Serve applications that are deployed to it."""

    def __init__(self, world: World, body: Mapping[str, Any]) -> None:
        self._config: Any = None
        self._deployed: Any = None
        self._applications: dict[str, Any] = {}
        self._said = ""
        self._looked = 0.0
        super().__init__(world, body)
        self.condition("UpgradeInProgress", False, "NoPendingCluster")

    def update(self, body: Mapping[str, Any]) -> None:
        """Take a changed Serve configuration; it is deployed to the running cluster."""
        super().update(body)
        config = yaml.safe_load(self.spec["serveConfigV2"])
        if config != self._config:
            self._config = config
            self.condition("Ready", False, "Initializing", "the configuration is not deployed yet")

    def status(self) -> dict[str, Any]:
        """The RayService's status."""
        inner = super().status()
        conditions = inner.pop("conditions")
        own = ("Ready", "UpgradeInProgress")
        inner["conditions"] = [c for c in conditions if c["type"] not in own]
        return {
            "observedGeneration": inner.pop("observedGeneration"),
            "conditions": [c for c in conditions if c["type"] in own],
            "activeServiceStatus": {
                "rayClusterName": self.name,
                "applicationStatuses": self._applications,
                "rayClusterStatus": inner,
            },
        }

    async def step(self) -> None:
        """Keep the cluster up and the applications deployed."""
        await super().step()
        if not self.head_ready:
            self._deployed = None  # a new head has to be told again
            self.condition("Ready", False, "HeadPodNotReady")
        elif time.monotonic() - self._looked > SERVE_LOOK_EVERY_S:
            await self._look_after_serve()
            self._looked = time.monotonic()

    async def _look_after_serve(self) -> None:
        """Deploy the configuration if it is new, and read how the applications do."""
        wanted = self._config
        try:
            if self._deployed != wanted:
                config = _rewritten(wanted, self._claim_mounts())
                endpoint = self._head.endpoint(0)
                # Serve's proxy on the head's own address and port, and nowhere else.
                options = {"host": endpoint.ip, "port": endpoint.ports["serve"]}
                config["proxy_location"] = "HeadOnly"
                config["http_options"] = {**config.get("http_options", {}), **options}
                await asyncio.to_thread(self._request, "PUT", config)
                self._deployed = wanted
                self.say("UpdatedServeApplications", "Deployed serveConfigV2")
            answer = await asyncio.to_thread(self._request, "GET")
        except (OSError, ValueError, http.client.HTTPException, ConfigError) as error:
            self._say_once(f"Serve does not take the configuration yet: {error}")
            return
        found = answer.get("applications", {})
        applications = {
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
        self.events.changed |= applications != self._applications
        self._applications = applications
        names = {app.get("name", "default") for app in wanted["applications"]}
        running = names <= set(found) and all(a["status"] == "RUNNING" for a in found.values())
        self.condition(
            "Ready", running and wanted is self._config,
            "NonZeroServeEndpoints" if running else "ZeroServeEndpoints",
            "; ".join(f"{name} is {app['status']}" for name, app in found.items()),
        )  # fmt: skip
        for name, app in found.items():
            if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                self._say_once(f"application {name} is {app['status']}: {app.get('message', '')}")

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.say("ServeNotReady", text[:1000], "Warning")

    def _claim_mounts(self) -> dict[str, Path]:
        """The folders that the head's container has from claims: models lie there."""
        pod = self._head.pods[0]
        container = pod.spec["containers"][0]
        folders = pod.context().mounts[container["name"]]
        claims = [v["name"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v]
        mounts = [m["mountPath"] for m in container["volumeMounts"] if m["name"] in claims]
        return {path: folders[path] for path in mounts}

    def _request(self, method: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the head's dashboard about Serve."""
        endpoint = self._head.endpoint(0)
        secret = self.world.find("Secret", self.name) or {}
        token = (secret.get("stringData") or {}).get("auth_token", "")
        request = urllib.request.Request(
            f"http://{endpoint.ip}:{endpoint.ports['dashboard']}/api/serve/applications/",
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


def _rewritten(node: Any, mounts: Mapping[str, Path]) -> Any:
    """The same data with real folders in place of mount paths."""
    if isinstance(node, dict):
        return {key: _rewritten(value, mounts) for key, value in node.items()}
    if isinstance(node, list):
        return [_rewritten(value, mounts) for value in node]
    return rewrite(node, mounts, {}) if isinstance(node, str) else node
