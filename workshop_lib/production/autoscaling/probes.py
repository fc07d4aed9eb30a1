"""Probes as time budgets, and what the loading of a model needs of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import manifests
from workshop_lib.data import data_path
from workshop_lib.errors import ManifestError, WorkshopError

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving.memory import ModelShape

__all__ = ["load_times", "probe_budget_s", "probe_budgets", "recorded_start_s"]

KINDS = {
    "startupProbe": "the container is killed if it has not started by then",
    "readinessProbe": "it gets no more requests; nothing is killed",
    "livenessProbe": "it is killed and started again",
}

RECORDED_START = "recorded/h200/vllm-0.25.1-tp1-util0.90.log"


def probe_budget_s(probe: Mapping[str, Any]) -> int:
    """How long a probe may fail before it acts, in seconds.

    `initialDelaySeconds + periodSeconds x failureThreshold`, with Kubernetes' defaults
    (0, 10 and 3) for what is not said.

    Args:
        probe: The probe, as a manifest has it.

    Example:
        >>> probe_budget_s({"periodSeconds": 10, "failureThreshold": 90}), probe_budget_s({})
        (900, 30)
    """
    delay_s = int(probe.get("initialDelaySeconds", 0))
    return delay_s + int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


def _container(objects: Sequence[manifests.Object], component: str) -> Mapping[str, Any]:
    for item in objects:
        spec = (item.body.get("spec") or {}).get("template", {}).get("spec", {})
        if spec.get("containers"):
            return spec["containers"][0]  # type: ignore[no-any-return]
    raise ManifestError(f"{component} has no pod template whose probes could be read")


def probe_budgets(component: str, profile: str) -> pd.DataFrame:
    """A component's probes: how often they ask, and for how long they may fail.

    Args:
        component: A Deployment's or Job's component, such as `vllm`.
        profile: The profile whose overlay is compared with the base.

    Raises:
        ManifestError: The component has no pod template, or no probe.

    Example:
        >>> int(probe_budgets("vllm", "local").iloc[0]["GPU cluster, s"])
        900
    """
    import pandas as pd

    base = manifests.render_folder(manifests.manifests_dir() / "base" / component)
    here = manifests.render(profile, component)
    there, mine = (_container(objects, component) for objects in (base, here))
    rows = [
        {
            "probe": kind.removesuffix("Probe"),
            "asks": there[kind].get("httpGet", {}).get("path", ""),
            "every_s": there[kind].get("periodSeconds", 10),
            "failures": there[kind].get("failureThreshold", 3),
            "GPU cluster, s": probe_budget_s(there[kind]),
            "here, s": probe_budget_s(mine[kind]) if kind in mine else None,
            "then": then,
        }
        for kind, then in KINDS.items()
        if kind in there
    ]
    if not rows:
        raise ManifestError(f"{component} has no probes")
    return pd.DataFrame(rows)


def recorded_start_s(path: str | Path | None = None) -> float:
    """How long vLLM took to start on a GPU beside reading weights, from a recorded log.

    Args:
        path: The log; by default the recording on an H200, whose weights were made up on
            the spot (`load_format dummy`), so that reading them from a disk is not in it.

    Raises:
        WorkshopError: The log has no start with two timestamps.

    Example:
        >>> 60 < recorded_start_s() < 90
        True
    """
    path = Path(path) if path else data_path(RECORDED_START)
    text = path.read_text(encoding="utf-8").partition("Application startup complete")[0]
    stamps = re.findall(r" (\d\d-\d\d \d\d:\d\d:\d\d) \[", text)
    if len(stamps) < 2:
        raise WorkshopError(f"{path.name} is no log of a start of vLLM")
    # The log has no year; any will do, for a difference.
    first, last = (datetime.strptime(f"2000-{s}", "%Y-%m-%d %H:%M:%S") for s in
                   (stamps[0], stamps[-1]))  # fmt: skip
    weights = re.search(r"Model loading took [\d.]+ GiB and ([\d.]+) seconds", text)
    return (last - first).total_seconds() - (float(weights[1]) if weights else 0.0)


def load_times(
    shapes: Sequence[ModelShape], *, disk_mib_s: float, start_s: float, budget_s: float
) -> pd.DataFrame:
    """Whether a startup budget is long enough for models of different sizes.

    A lower bound: the weights are read once, at the disk's full speed, and the engine
    then starts as fast as in the recording.

    Args:
        shapes: The models.
        disk_mib_s: What the volume with the weights gives, MiB/s.
        start_s: The rest of the start, seconds (`recorded_start_s`).
        budget_s: What the startup probe allows, seconds (`probe_budget_s`).

    Raises:
        WorkshopError: The disk gives nothing.

    Example:
        >>> from workshop_lib.serving.memory import ModelShape
        >>> shapes = [ModelShape.named("mistral-7b")]
        >>> load_times(shapes, disk_mib_s=125, start_s=71, budget_s=900)["fits"].tolist()
        [True]
    """
    import pandas as pd

    if disk_mib_s <= 0:
        raise WorkshopError(f"a disk that gives {disk_mib_s:g} MiB/s loads nothing")
    rows = []
    for shape in shapes:
        weights_gib = shape.weights_bytes() / 2**30
        needed_s = weights_gib * 1024 / disk_mib_s + start_s
        rows.append(
            {
                "model": shape.name,
                "weights_gib": round(weights_gib, 1),
                "read_s": round(weights_gib * 1024 / disk_mib_s),
                "start_s": round(start_s),
                "needed_s": round(needed_s),
                "budget_s": round(budget_s),
                "fits": needed_s <= budget_s,
                "failureThreshold_at_10_s": math.ceil(needed_s / 10),
            }
        )
    return pd.DataFrame(rows)
