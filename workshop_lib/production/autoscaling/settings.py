"""What decides how many replicas, Ray nodes and machines there are, from the manifests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from workshop_lib.cluster import manifests
from workshop_lib.errors import ManifestError, WorkshopError

if TYPE_CHECKING:
    import pandas as pd


def desired_replicas(
    ongoing: float, target: float, *, min_replicas: int = 1, max_replicas: int = 100
) -> int:
    """The number of replicas that so many requests ask for, as Ray 2.60's default policy counts.

    Args:
        ongoing: Requests that are running or queued, averaged over the look-back period.
        target: `target_ongoing_requests`: how many of them a replica should have.
        min_replicas: Never fewer.
        max_replicas: Never more.

    Raises:
        WorkshopError: The target is not positive.

    Example:
        >>> desired_replicas(6, 2), desired_replicas(6, 4), desired_replicas(20, 2, max_replicas=4)
        (3, 2, 4)
    """
    if target <= 0:
        raise WorkshopError(f"target_ongoing_requests is {target:g}; it must be more than 0")
    return max(min_replicas, min(max_replicas, math.ceil(ongoing / target)))


class AutoscalingSettings(BaseModel):
    """The part of an `autoscaling_config`, in Ray's words, that decides when replicas change."""

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float
    upscale_delay_s: float
    downscale_delay_s: float
    look_back_period_s: float

    def replicas_for(self, users: float) -> int:
        """Replicas for users who each always have one request in flight."""
        bounds = {"min_replicas": self.min_replicas, "max_replicas": self.max_replicas}
        return desired_replicas(users, self.target_ongoing_requests, **bounds)


def _rendered(profile: str | None, component: str, kind: str) -> Mapping[str, Any]:
    """An object of a component: of the profile's overlay, or with None of the base."""
    if profile is None:
        objects = manifests.render_folder(manifests.manifests_dir() / "base" / component)
    else:
        objects = manifests.render(profile, component)
    return next(item.body for item in objects if item.kind == kind)


def _deployment(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first deployment in a RayService's Serve configuration."""
    config = yaml.safe_load(body["spec"]["serveConfigV2"])
    return config["applications"][0]["deployments"][0]  # type: ignore[no-any-return]


def explain_autoscaling(component: str, profile: str, reasons: Mapping[str, str]) -> pd.DataFrame:
    """Settings of Serve's autoscaler: on a cluster, in this profile, Ray's default, and why.

    Args:
        component: A component with a RayService.
        profile: The profile whose overlay is compared with the base.
        reasons: Field of `autoscaling_config` to the reason for its value.

    Raises:
        ManifestError: A field is not set there: the text would explain nothing.

    Example:
        >>> reasons = {"downscale_delay_s": "few seconds, so that the lesson is short"}
        >>> explain_autoscaling("autoscale", "local", reasons).iloc[0]["Ray's default"]
        '600'
    """
    import pandas as pd
    from ray.serve.config import AutoscalingConfig

    defaults = AutoscalingConfig()
    there, here = (
        _deployment(_rendered(each, component, "RayService"))["autoscaling_config"]
        for each in (None, profile)
    )
    if missing := [name for name in reasons if name not in here or name not in there]:
        raise ManifestError(f"{component}: its autoscaling_config does not set {missing[0]}")
    rows = [
        [name, f"{there[name]:g}", f"{here[name]:g}", f"{getattr(defaults, name):g}", reason]
        for name, reason in reasons.items()
    ]
    columns = ["setting", "GPU cluster", "here", "Ray's default", "what it decides"]
    return pd.DataFrame(rows, columns=columns)


def scaling_layers() -> pd.DataFrame:
    """What scales on a cluster, layer by layer, with the bounds that its manifests set.

    Example:
        >>> scaling_layers()["scales"].tolist()
        ['replicas', 'Ray nodes (pods)', 'machines']
    """
    import pandas as pd

    service = _rendered(None, "autoscale", "RayService")
    nodes = _rendered(None, "nodepool", "NodePool")["spec"]
    deployment = _deployment(service)
    serve, cpus = deployment["autoscaling_config"], deployment["ray_actor_options"]["num_cpus"]
    cluster = service["spec"]["rayClusterConfig"]
    group, idle_s = cluster["workerGroupSpecs"][0], cluster["autoscalerOptions"]
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    label = ", ".join(f"{k.rpartition('/')[2]}={v}" for k, v in pod["nodeSelector"].items())
    return pd.DataFrame(
        {
            "scales": ["replicas", "Ray nodes (pods)", "machines"],
            "who decides": ["Serve's autoscaler", "Ray's autoscaler, through KubeRay", "Karpenter"],
            "it looks at": [
                f"requests per replica, {serve['target_ongoing_requests']} each",
                "replicas that find no CPU",
                "pods that find no machine",
            ],
            "from": [str(serve["min_replicas"]), str(group["minReplicas"]), "0"],
            "to": [
                str(serve["max_replicas"]),
                str(group["maxReplicas"]),
                f"{nodes['limits']['cpu']} CPUs in all",
            ],
            "down after": [
                f"{serve['downscale_delay_s']} s",
                f"{idle_s['idleTimeoutSeconds']} s idle",
                f"{nodes['disruption']['consolidateAfter']} underused",
            ],
            "needs of the next layer": [
                f"{cpus} CPU of a Ray node",
                f"{limits['cpu']} CPUs and {limits['memory']} where {label}",
                "EC2 capacity and a quota",
            ],
        }
    )
