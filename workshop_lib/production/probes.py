"""Probes as time budgets, and what the loading of a model needs of them.

The one place where a probe's budget is computed: notebook 04, the production checklist and the
diagnosis use it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster import manifests
from workshop_lib.data import data_path
from workshop_lib.errors import ManifestError, WorkshopError

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.serving.memory import ModelShape

__all__ = [
    "LOADING_S",
    "load_times",
    "probe_budget_s",
    "probe_budgets",
    "recorded_start",
    "recorded_start_s",
]

LOADING_S = 300
"""A model of tens of GiB takes minutes to load; a shorter startup probe kills it on the way."""

_THEN = {
    "startupProbe": "the container is killed if it has not started by then",
    "readinessProbe": "it gets no more requests; nothing is killed",
    "livenessProbe": "it is killed and started again",
}


_START = {
    "Python imports vLLM": "Resolved architecture",
    "the engine's process starts": "Initializing a V1 LLM engine",
    "the weights are made up": "Model loading took",
    "torch.compile": "torch.compile took",
    "memory is measured, the KV cache made": "Maximum concurrency for",
    "CUDA graphs are captured": "Graph capturing finished",
    "warm-up; the server answers": "Application startup complete",
}
"""The steps of a start of vLLM, and what its log says when each is done."""


def probe_budget_s(probe: Mapping[str, Any]) -> int:
    """How long a probe may fail before it acts, in seconds.

    `initialDelaySeconds + periodSeconds x failureThreshold`, with Kubernetes' defaults (0, 10
    and 3) for what is not said.

    Example:
        >>> probe_budget_s({"periodSeconds": 10, "failureThreshold": 90}), probe_budget_s({})
        (900, 30)
    """
    delay_s = int(probe.get("initialDelaySeconds", 0))
    return delay_s + int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


def probe_budgets(component: str, profile: str) -> pd.DataFrame:
    """A component's probes: how often they ask, and for how long they may fail.

    Args:
        component: A Deployment's component, such as `vllm`.
        profile: The profile whose overlay is compared with the base.

    Returns:
        Columns `probe`, `asks`, `every_s`, `failures`, `GPU cluster, s`, `here, s`, `then`.

    Raises:
        ManifestError: The component has no Deployment.

    Example:
        >>> int(probe_budgets("vllm", "local").iloc[0]["GPU cluster, s"])
        900
    """
    import pandas as pd

    base = manifests.render_folder(manifests.manifests_dir() / "base" / component)
    rendered = (base, manifests.render(profile, component))
    pods = [i.body["spec"]["template"] for r in rendered for i in r if i.kind == "Deployment"]
    if len(pods) != len(rendered):
        raise ManifestError(f"{component} has no Deployment whose probes could be read")
    there, here = (pod["spec"]["containers"][0] for pod in pods)
    rows = [
        {
            "probe": kind.removesuffix("Probe"),
            "asks": there[kind].get("httpGet", {}).get("path", ""),
            "every_s": there[kind].get("periodSeconds", 10),
            "failures": there[kind].get("failureThreshold", 3),
            "GPU cluster, s": probe_budget_s(there[kind]),
            "here, s": probe_budget_s(here[kind]) if kind in here else None,
            "then": then,
        }
        for kind, then in _THEN.items()
        if kind in there
    ]
    return pd.DataFrame(rows)


def recorded_start() -> pd.DataFrame:
    """The steps of a start of vLLM 0.25.1 on an H200, from the recorded log.

    The weights of that start were made up on the spot (`load_format dummy`): a real start reads
    them from a volume.

    Returns:
        Columns `step`, `done_after_s` (since the first line of the log) and `took_s`.

    Example:
        >>> bool(recorded_start()["took_s"].sum() == 73)
        True
    """
    import pandas as pd

    rest = _recorded_log()
    began_s, done_s, rows = _last_stamp_s(rest.splitlines()[0]), 0.0, []
    for step, mark in _START.items():
        before, _, rest = rest.partition(mark)
        started_s, done_s = done_s, _last_stamp_s(before) - began_s
        rows.append([step, done_s, done_s - started_s])
    return pd.DataFrame(rows, columns=["step", "done_after_s", "took_s"])


def recorded_start_s() -> float:
    """How long vLLM took to start on an H200 beside its weights, seconds (`recorded_start`).

    Example:
        >>> 60 < recorded_start_s() < 90
        True
    """
    weights = re.search(r"Model loading took [\d.]+ GiB and ([\d.]+) seconds", _recorded_log())
    total_s = float(recorded_start()["done_after_s"].iloc[-1])
    return total_s - (float(weights[1]) if weights else 0.0)


def _recorded_log() -> str:
    return data_path("recorded/h200/vllm-0.25.1-tp1-util0.90.log").read_text(encoding="utf-8")


def _last_stamp_s(text: str) -> float:
    """The last time in a text of vLLM's log, in seconds; the log has no year, any will do."""
    stamp = re.findall(r" (\d\d-\d\d \d\d:\d\d:\d\d) \[", text)[-1]
    return datetime.fromisoformat(f"2000-{stamp}").timestamp()


def load_times(
    shapes: Sequence[ModelShape], *, disk_mib_s: float, start_s: float, budget_s: float
) -> pd.DataFrame:
    """Whether a startup budget is long enough for models of different sizes.

    A lower bound: the weights are read once, at the disk's full speed, and the engine then
    starts as fast as in the recording.

    Args:
        shapes: The models.
        disk_mib_s: What the volume with the weights gives, MiB/s.
        start_s: The rest of the start, seconds (`recorded_start_s`).
        budget_s: What the startup probe allows, seconds.

    Returns:
        Columns `model`, `weights_gib`, `read_s`, `start_s`, `needed_s`, `budget_s`, `fits`, and
        `failureThreshold_at_10_s`, which would be enough for a probe every 10 s.

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
    columns = ["model", "weights_gib", "read_s", "start_s", "needed_s", "budget_s", "fits"]
    rows = []
    for shape in shapes:
        weights_gib = shape.weights_bytes() / 2**30
        read_s = weights_gib * 1024 / disk_mib_s
        needed_s = read_s + start_s
        row = [
            shape.name,
            round(weights_gib, 1),
            *map(round, (read_s, start_s, needed_s, budget_s)),
        ]
        rows.append([*row, needed_s <= budget_s, math.ceil(needed_s / 10)])
    return pd.DataFrame(rows, columns=[*columns, "failureThreshold_at_10_s"])
