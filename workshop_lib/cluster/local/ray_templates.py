"""What the KubeRay operator adds: the `ray start` of a pod, Services, the token's Secret.

Pod templates get the `ray start` that KubeRay 1.7 would generate: parameters from
`rayStartParams`, logical resources from the container's limits. What differs is what
one machine forces: every node says which address is its own, the ports that Ray opens
on all addresses are free ones, and each node keeps its files in its own folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.cluster.local.network import Endpoint

__all__ = ["HEAD_PORTS", "WORKER_PORTS", "derived_objects", "group_template", "port_list"]

HEAD_PORTS = {
    "gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000,
    "metrics": 8080, "dashboard-agent": 52365,
}  # fmt: skip
"""KubeRay's default ports of a head, and the agent's, which its probes ask."""

WORKER_PORTS = {"metrics": 8080, "dashboard-agent": 52365}

TOKEN_MOUNT = "/var/run/ray-auth"

GENERATE = "workshop.techpulse/generate"
"""Annotation of a Secret: the key that apply fills with a random value, once."""


def port_list(ports: Mapping[str, int]) -> list[dict[str, Any]]:
    """Ports as `AddressBook.assign` takes them."""
    return [{"name": name, "port": port} for name, port in ports.items()]


def derived_objects(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects that the operator makes beside the pods: Services and the token's Secret.

    Args:
        body: A RayCluster or RayService.

    Returns:
        A headless Service for the head, one for Serve (RayService), and an empty
        Secret, named like the cluster, that apply fills with a random token.
    """
    name = body["metadata"]["name"]
    origin = {"ray.io/originated-from-cr-name": name}

    def named(kind: str, suffix: str, **rest: Any) -> dict[str, Any]:
        metadata = {"name": name + suffix, "labels": dict(origin)}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest}

    secret = named("Secret", "", data={})
    secret["metadata"]["annotations"] = {GENERATE: "auth_token"}
    head = {
        "clusterIP": "None",
        "selector": {**origin, "ray.io/node-type": "head"},
        "ports": [each for each in port_list(HEAD_PORTS) if each["name"] != "dashboard-agent"],
    }
    head_service = named("Service", "-head-svc", spec=head)
    head_service["metadata"]["labels"] |= {"ray.io/cluster": name, "ray.io/node-type": "head"}
    made = [secret, head_service]
    if body["kind"] == "RayService":
        serve = {
            "selector": {**origin, "ray.io/serve": "true"},
            "ports": [{"name": "serve", "port": HEAD_PORTS["serve"], "targetPort": "serve"}],
        }
        made.append(named("Service", "-serve-svc", spec=serve))
    return made


def group_template(
    template: Mapping[str, Any],
    parameters: Mapping[str, str],
    endpoint: Endpoint,
    *,
    head: Endpoint | None,
    token_secret: str,
) -> dict[str, Any]:
    """A pod template with the `ray start` that belongs in it.

    Args:
        template: The group's template from the manifest.
        parameters: Its `rayStartParams`.
        endpoint: The pod's address and ports.
        head: The head's endpoint for a worker; None for the head itself.
        token_secret: The Secret with Ray's token.

    Returns:
        A new template; the given one is not changed.
    """
    spec = dict(template["spec"])
    container = dict(spec["containers"][0])
    ports = HEAD_PORTS if head is None else WORKER_PORTS
    flags = {
        **_resources(container),
        "log-color": "false",  # the log is read in notebooks and files
        **parameters,
        **_addresses({name: endpoint.ports[port] for name, port in ports.items()}, endpoint, head),
    }
    flags.pop("block", None)
    container["command"] = ["ray", "start"]
    container["args"] = [
        *(["--head"] if head is None else []),
        "--block",
        "--disable-usage-stats",
        *(f"--{name}={value}" for name, value in sorted(flags.items())),
    ]
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    gcs = (head or endpoint).ports[HEAD_PORTS["gcs-server"]]
    container["env"] = [
        # Whoever deletes a cluster on a laptop does not wait for its requests to end.
        {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "0"},
        *container.get("env", []),
        # As KubeRay sets it; here it also keeps `ray status` from finding every Ray around.
        {"name": "RAY_ADDRESS", "value": f"{(head or endpoint).ip}:{gcs}"},
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN_PATH", "value": f"{TOKEN_MOUNT}/auth_token"},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
    ]
    container["volumeMounts"] = [
        *(m for m in container.get("volumeMounts", []) if m["mountPath"] != "/tmp/ray"),
        {"name": "ray-auth", "mountPath": TOKEN_MOUNT},
        {"name": "ray-tmp", "mountPath": "/tmp/ray"},
    ]
    path, port = (
        ("/api/gcs_healthz", "dashboard")
        if head is None
        else ("/api/local_raylet_healthz", "dashboard-agent")
    )
    container.setdefault(
        "readinessProbe",
        {"httpGet": {"path": path, "port": port}, "periodSeconds": 1, "timeoutSeconds": 2,
         "failureThreshold": 10},
    )  # fmt: skip
    spec["containers"] = [container, *spec["containers"][1:]]
    spec["volumes"] = [
        *(v for v in spec.get("volumes", []) if v["name"] not in ("ray-auth", "ray-tmp")),
        {"name": "ray-auth", "secret": {"secretName": token_secret}},
        {"name": "ray-tmp", "emptyDir": {}},
    ]
    # One process tree is one node: at most seconds to stop, and GRACE_LIMIT_S here anyway.
    spec.setdefault("terminationGracePeriodSeconds", 5)
    return {**template, "spec": spec}


def _addresses(
    ports: Mapping[str, int], endpoint: Endpoint, head: Endpoint | None
) -> dict[str, str]:
    """The flags that put a node on its own address and ports."""
    flags = {
        "node-ip-address": endpoint.ip,
        "metrics-export-port": str(ports["metrics"]),
        "dashboard-agent-listen-port": str(ports["dashboard-agent"]),
        # Two nodes on one machine would hand out the same numbers: let the kernel choose.
        "min-worker-port": "0",
        "max-worker-port": "0",
        "temp-dir": "/tmp/ray",
    }
    if head is not None:
        return flags | {"address": f"{head.ip}:{head.ports[HEAD_PORTS['gcs-server']]}"}
    return flags | {
        "port": str(ports["gcs-server"]),
        "dashboard-host": endpoint.ip,
        "dashboard-port": str(ports["dashboard"]),
        "ray-client-server-port": str(ports["client"]),
    }


def _resources(container: Mapping[str, Any]) -> dict[str, str]:
    """Logical resources from a container's limits, as KubeRay derives them.

    Ray gives its object store 30% of a node's memory by itself; here every node would
    take the whole machine for its own, so both shares are said.
    """
    resources = container.get("resources", {})
    amounts = {**resources.get("requests", {}), **resources.get("limits", {})}
    flags: dict[str, str] = {}
    if "cpu" in amounts:
        flags["num-cpus"] = str(math.ceil(parse_quantity(amounts["cpu"])))
    if "memory" in amounts:
        memory = parse_quantity(amounts["memory"])
        flags["memory"] = str(int(memory * 0.7))
        flags["object-store-memory"] = str(int(memory * 0.3))
    if "nvidia.com/gpu" in amounts:
        flags["num-gpus"] = str(int(parse_quantity(amounts["nvidia.com/gpu"])))
    return flags
