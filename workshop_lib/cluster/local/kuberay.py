"""RayClusters and RayServices, as the KubeRay operator runs them.

Pod templates get the `ray start` that KubeRay 1.7 would generate: parameters from
`rayStartParams`, logical resources from the container's limits. What differs is what one
machine forces: every node says which address is its own, the ports that Ray opens on all
addresses are free ones, and each node keeps its files in its own folder.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.cluster.local.controllers import Controller, Json, ReplicaSet
from workshop_lib.cluster.local.network import Endpoint
from workshop_lib.cluster.local.objects import GENERATE, data_of
from workshop_lib.cluster.local.podspec import rewrite
from workshop_lib.cluster.local.world import World
from workshop_lib.errors import ClusterError

__all__ = ["RayClusterController", "RayServiceController", "derived_objects"]

HEAD_PORTS = {
    "gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000,
    "metrics": 8080, "dashboard-agent": 52365,
}  # fmt: skip
"""KubeRay's default ports of a head, and the agent's, which its probes ask."""

WORKER_PORTS = {"metrics": 8080, "dashboard-agent": 52365}

TOKEN_MOUNT = "/var/run/ray-auth"
FILES_MOUNT = "/tmp/ray"

SERVE_LOOK_EVERY_S = 0.5


def derived_objects(body: Json) -> list[dict[str, Any]]:
    """The objects that the operator makes beside the pods of a RayCluster or RayService.

    An empty Secret, named like the cluster, that apply fills with a random token; a headless
    Service for the head; and one for Serve (RayService).
    """
    name = body["metadata"]["name"]
    origin = {"ray.io/originated-from-cr-name": name}

    def named(kind: str, suffix: str, **rest: Any) -> dict[str, Any]:
        metadata = {"name": name + suffix, "labels": dict(origin)}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest}

    secret = named("Secret", "")
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


def _resources(container: Json) -> dict[str, str]:
    """Logical resources from a container's limits, as KubeRay derives them.

    Ray gives its object store 30% of a node's memory by itself; here every node would take
    the whole machine for its own, so both shares are said.
    """
    limits = container.get("resources", {}).get("limits", {})
    amounts = {name: parse_quantity(amount) for name, amount in limits.items()}
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
    flags = {
        "node-ip-address": endpoint.ip,
        "metrics-export-port": str(endpoint.ports["metrics"]),
        "dashboard-agent-listen-port": str(endpoint.ports["dashboard-agent"]),
        # Two nodes on one machine would hand out the same numbers: let the system choose.
        "min-worker-port": "0",
        "max-worker-port": "0",
        "temp-dir": FILES_MOUNT,
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
    group: Json, token_secret: str, head: Endpoint | None, endpoint: Endpoint
) -> dict[str, Any]:
    """A group's pod template with the `ray start` that belongs in it; `head` is a worker's."""
    spec = dict(group["template"]["spec"])
    container = dict(spec["containers"][0])
    ports = HEAD_PORTS if head is None else WORKER_PORTS
    flags = {
        "log-color": "false",  # the log is read in notebooks and files
        **_resources(container),
        **group.get("rayStartParams", {}),
        **_addresses(endpoint, head),
    }
    gcs = head or endpoint
    path, port = "/api/gcs_healthz", "dashboard"
    if head is not None:
        path, port = "/api/local_raylet_healthz", "dashboard-agent"
    container |= {
        "command": ["ray", "start", *(["--head"] if head is None else [])],
        "args": [
            "--block",
            "--disable-usage-stats",
            *(f"--{name}={value}" for name, value in sorted(flags.items())),
        ],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "env": [
            *container.get("env", []),
            # As KubeRay sets it; here it also keeps `ray status` from finding every Ray around.
            {"name": "RAY_ADDRESS", "value": f"{gcs.ip}:{gcs.ports['gcs-server']}"},
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN_PATH", "value": f"{TOKEN_MOUNT}/auth_token"},
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        ],
        "volumeMounts": [
            *container.get("volumeMounts", []),
            {"name": "ray-auth", "mountPath": TOKEN_MOUNT},
            {"name": "ray-tmp", "mountPath": FILES_MOUNT},
        ],
        "readinessProbe": {
            "httpGet": {"path": path, "port": port},
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": 10,
        },
    }
    spec["containers"] = [container]
    spec["volumes"] = [
        *spec.get("volumes", []),
        {"name": "ray-auth", "secret": {"secretName": token_secret}},
        {"name": "ray-tmp", "emptyDir": {}},
    ]
    spec["terminationGracePeriodSeconds"] = 5  # one process tree is one node: it ends in seconds
    return {**group["template"], "spec": spec}


class RayClusterController(Controller):
    """Drives a RayCluster, or the one under a RayService's `rayClusterConfig`."""

    def __init__(self, world: World, body: Json) -> None:
        name = body["metadata"]["name"]
        spec = body["spec"].get("rayClusterConfig", body["spec"])
        self._head = self._group(body, "head", f"{name}-head", spec["headGroupSpec"])
        self._head.replicas = 1
        self._workers = [
            self._group(body, "worker", f"{name}-{group['groupName']}-worker", group)
            for group in spec.get("workerGroupSpecs", [])
        ]
        super().__init__(world, body)

    def _group(self, body: Json, kind: str, prefix: str, group: Json) -> ReplicaSet:
        name, head = body["metadata"]["name"], kind == "head"
        # The next pod in a slot has the same address: the workers were told the head's.
        made = ReplicaSet(self, f"{body['kind']}/{name}/{prefix}", keeps_addresses=True)
        made.prefix, made.ports = prefix, HEAD_PORTS if head else WORKER_PORTS
        made.labels = {
            "ray.io/cluster": name,
            "ray.io/originated-from-cr-name": name,
            "ray.io/is-ray-node": "yes",
            "ray.io/node-type": kind,
            "ray.io/group": group.get("groupName", "headgroup"),
            **({"ray.io/serve": "true"} if head else {}),
        }

        def template(endpoint: Endpoint) -> Json:
            return _ray_template(group, name, None if head else self._head.endpoint(0), endpoint)

        made.template = template
        return made

    def update(self, body: Json) -> None:
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
        for group in (self._head, *self._workers):
            await group.reconcile()
        self.pods = [pod for group in (self._head, *self._workers) for pod in group.pods]
        reason = "HeadPodRunningAndReady" if self.head_ready else "ContainersNotReady"
        self.conditions.set("HeadPodReady", self.head_ready, reason)
        wanted = 1 + sum(group.replicas for group in self._workers)
        ready = sum(pod.ready for pod in self.pods)
        # KubeRay never takes this back: it says that the cluster was whole once.
        if not self.conditions.is_true("RayClusterProvisioned"):
            done = ready >= wanted
            reason = "AllPodRunningAndReadyFirstTime" if done else "RayClusterPodsProvisioning"
            message = f"{ready} of {wanted} pods ready"
            self.conditions.set("RayClusterProvisioned", done, reason, message)

    def status(self) -> dict[str, Any]:
        """The RayCluster's status."""
        workers = [pod for group in self._workers for pod in group.pods]
        return {
            "observedGeneration": self.generation,
            "conditions": self.conditions.to_json(),
            "desiredWorkerReplicas": sum(group.replicas for group in self._workers),
            "readyWorkerReplicas": sum(pod.ready for pod in workers),
        }


class RayServiceController(RayClusterController):
    """Drives a RayService: a Ray cluster, and Serve applications that are deployed to it."""

    def __init__(self, world: World, body: Json) -> None:
        self._config: Any = None
        self._deployed: Any = None
        self._applications: dict[str, Any] = {}
        self._said = ""
        self._looked = 0.0
        super().__init__(world, body)

    def update(self, body: Json) -> None:
        """Take a changed Serve configuration; it is deployed to the running cluster."""
        super().update(body)
        config = yaml.safe_load(self.spec["serveConfigV2"])
        if config != self._config:
            self._config = config
            why = "the configuration is not deployed yet"
            self.conditions.set("Ready", False, "Initializing", why)

    def status(self) -> dict[str, Any]:
        """The RayService's status."""
        conditions = [c for c in self.conditions.to_json() if c["type"] == "Ready"]
        return {
            "observedGeneration": self.generation,
            "conditions": conditions,
            "activeServiceStatus": {
                "rayClusterName": self.name,
                "applicationStatuses": self._applications,
            },
        }

    async def step(self) -> None:
        """Keep the cluster up and the applications deployed."""
        await super().step()
        if not self.head_ready:
            self._deployed = None  # a new head has to be told again
            self.conditions.set("Ready", False, "HeadPodNotReady")
        elif time.monotonic() - self._looked > SERVE_LOOK_EVERY_S:
            try:
                await self._look_after_serve()
            except (OSError, ValueError, ClusterError) as error:
                self._say_once(f"Serve does not take the configuration yet: {error}")
            self._looked = time.monotonic()

    async def _look_after_serve(self) -> None:
        """Deploy the configuration if it is new, and read how the applications do."""
        wanted = self._config
        if self._deployed != wanted:
            config = _rewritten(wanted, self._head.pods[0].claim_mounts())
            endpoint = self._head.endpoint(0)
            # Serve's proxy on the head's own address and port, and nowhere else.
            options = {"host": endpoint.ip, "port": endpoint.ports["serve"]}
            config["proxy_location"] = "HeadOnly"
            config["http_options"] = {**config.get("http_options", {}), **options}
            await asyncio.to_thread(self._request, "PUT", config)
            self._deployed = wanted
            self.say("UpdatedServeApplications", "Deployed serveConfigV2")
        found = (await asyncio.to_thread(self._request, "GET")).get("applications", {})
        self._applications = {
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
        names = {app.get("name", "default") for app in wanted["applications"]}
        running = names <= set(found) and all(a["status"] == "RUNNING" for a in found.values())
        reason = "NonZeroServeEndpoints" if running else "ZeroServeEndpoints"
        said = "; ".join(f"{name} is {app['status']}" for name, app in found.items())
        self.conditions.set("Ready", running and wanted is self._config, reason, said)
        for name, app in found.items():
            if app["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                self._say_once(f"application {name} is {app['status']}: {app.get('message', '')}")

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.say("ServeNotReady", text[:1000], "Warning")

    def _request(self, method: str, body: Json | None = None) -> dict[str, Any]:
        import httpx  # here: it is slow to import, and no other workload needs it

        endpoint = self._head.endpoint(0)
        token = data_of(self.world.find(f"Secret/{self.name}") or {})["auth_token"]
        try:
            # A proxy that is configured for the outside has nothing to do with this machine.
            with httpx.Client(trust_env=False, timeout=20.0) as client:
                answer = client.request(
                    method,
                    f"http://{endpoint.ip}:{endpoint.ports['dashboard']}/api/serve/applications/",
                    headers={"Authorization": f"Bearer {token.decode()}"},
                    json=body,
                )
        except httpx.HTTPError as error:
            raise ClusterError(f"{type(error).__name__}: {error}") from None
        if not answer.is_success:
            raise ClusterError(f"HTTP {answer.status_code}: {answer.text.strip()[-500:]}")
        return answer.json() if answer.content else {}


def _rewritten(node: Any, mounts: Mapping[str, Path]) -> Any:
    """The same data with real folders in place of mount paths."""
    if isinstance(node, dict):
        return {key: _rewritten(value, mounts) for key, value in node.items()}
    if isinstance(node, list):
        return [_rewritten(value, mounts) for value in node]
    return rewrite(node, mounts, {}) if isinstance(node, str) else node
