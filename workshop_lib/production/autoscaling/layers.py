"""Three things scale: replicas, Ray's nodes, machines. Where each is set, from the manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.cluster import manifests
from workshop_lib.errors import ManifestError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["explain_autoscaling", "scaling_layers"]


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
    rows = []
    for name, reason in reasons.items():
        if name not in here or name not in there:
            raise ManifestError(f"{component}: its autoscaling_config does not set {name}")
        values = [there[name], here[name], getattr(defaults, name)]
        rows.append([name, *(f"{value:g}" for value in values), reason])
    return pd.DataFrame(
        rows, columns=["setting", "GPU cluster", "here", "Ray's default", "what it decides"]
    )


def scaling_layers(component: str = "autoscale", pool: str = "nodepool") -> pd.DataFrame:
    """What scales on a cluster, layer by layer, with the bounds that its manifests set.

    Args:
        component: The base with the RayService.
        pool: The base with Karpenter's NodePool.

    Example:
        >>> scaling_layers()["scales"].tolist()
        ['replicas', 'Ray nodes (pods)', 'machines']
    """
    import pandas as pd

    service = _rendered(None, component, "RayService")
    nodes = _rendered(None, pool, "NodePool")["spec"]
    deployment = _deployment(service)
    serve = deployment["autoscaling_config"]
    cluster = service["spec"]["rayClusterConfig"]
    group = cluster["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    selector = group["template"]["spec"]["nodeSelector"]
    label = ", ".join(f"{key.rpartition('/')[2]}={value}" for key, value in selector.items())
    rows = [
        {
            "scales": "replicas",
            "who decides": "Serve's autoscaler",
            "it looks at": f"requests per replica, {serve['target_ongoing_requests']} each",
            "from": str(serve["min_replicas"]),
            "to": str(serve["max_replicas"]),
            "down after": f"{serve['downscale_delay_s']} s",
            "needs of the next layer":
                f"{deployment['ray_actor_options']['num_cpus']} CPU of a Ray node",
        },
        {
            "scales": "Ray nodes (pods)",
            "who decides": "Ray's autoscaler, through KubeRay",
            "it looks at": "replicas that find no CPU",
            "from": str(group["minReplicas"]),
            "to": str(group["maxReplicas"]),
            "down after": f"{cluster['autoscalerOptions']['idleTimeoutSeconds']} s idle",
            "needs of the next layer":
                f"{limits['cpu']} CPUs and {limits['memory']} where {label}",
        },
        {
            "scales": "machines",
            "who decides": "Karpenter",
            "it looks at": "pods that find no machine",
            "from": "0",
            "to": f"{nodes['limits']['cpu']} CPUs in all",
            "down after": f"{nodes['disruption']['consolidateAfter']} underused",
            "needs of the next layer": "EC2 capacity and a quota",
        },
    ]  # fmt: skip
    return pd.DataFrame(rows)
