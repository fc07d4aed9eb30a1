"""The figures of the Ray cluster notebook: its parts, its start, where work is placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from workshop_lib.cluster.kube import conditions
from workshop_lib.plots.style import GREY, OKABE_ITO, PALE, new_figure, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_allocation", "plot_ray_cluster", "plot_startup", "startup_stages"]

Json = Mapping[str, Any]

HEAD_PARTS = (
    ("GCS", "gcs-server", "which nodes there are, what runs"),
    ("Dashboard", "dashboard", "web page, HTTP API, jobs"),
    ("Client server", "client", "ray:// from outside"),
    ("Serve proxy", "serve", "HTTP to deployments"),
)


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colour, edgecolor=GREY, linewidth=1,
        )
    )  # fmt: skip


def plot_ray_cluster(nodes: pd.DataFrame, ports: Mapping[str, int]) -> Figure:
    """Ray in one picture: the parts of this very cluster, with their addresses.

    Args:
        nodes: `RayDashboard.nodes()`.
        ports: Port of each part of the head: `gcs-server`, `dashboard`, `client` and
            `serve` where it runs.

    Example:
        >>> plot_ray_cluster(dashboard.nodes(), {"gcs-server": 6379})   # doctest: +SKIP
    """
    figure = new_figure(8.0, 3.9)
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(0, 16), ylim=(0, 8))
    head = nodes[nodes["role"] == "head"].iloc[0]
    workers = nodes[nodes["role"] != "head"].reset_index(drop=True)

    _box(axes, 0.1, 3.0, 2.6, 2.0, "white")
    axes.text(1.4, 4.0, "your\nnotebook", ha="center", va="center", fontsize=10)

    parts = [part for part in HEAD_PARTS if part[1] in ports]
    _box(axes, 4.3, 0.3, 5.5, 7.4, "#DCEBF5")
    axes.text(7.05, 7.3, f"head  {head['node']}", ha="center", fontsize=10, weight="bold")
    axes.text(7.05, 1.35, "raylet: as on a worker", ha="center", fontsize=9, color="#555555")
    _resources(axes, 7.05, 0.72, head)
    step = 5.2 / max(len(parts), 1)
    for number, (label, name, role) in enumerate(parts):
        y = 6.9 - step * (number + 1)
        _box(axes, 4.6, y + 0.1, 4.9, step - 0.22, "white")
        middle = y + step / 2
        axes.text(4.8, middle + 0.22, f"{label}  :{ports[name]}", va="center", fontsize=9.5)
        axes.text(4.8, middle - 0.34, role, va="center", fontsize=9, color="#555555")

    height = min(3.4, 7.4 / max(len(workers), 1) - 0.3)
    for number, (_, worker) in enumerate(workers.iterrows(), start=1):
        y = 7.7 - number * (height + 0.3) + 0.3
        y = y if len(workers) > 1 else 4.0 - height / 2
        _box(axes, 11.6, y, 4.3, height, "#E3F2EA")
        axes.text(
            13.75, y + height - 0.45, f"worker  {worker['node']}", ha="center", fontsize=10,
            weight="bold",
        )  # fmt: skip
        axes.text(
            13.75, y + height / 2 - 0.05, "raylet: starts tasks and\nactors, holds objects",
            ha="center", va="center", fontsize=9, color="#555555",
        )  # fmt: skip
        _resources(axes, 13.75, y + 0.3, worker)
        _arrow(axes, (11.6, y + height / 2), (9.8, y + height / 2), "joins, heartbeats")
    _arrow(axes, (2.7, 4.0), (4.3, 4.0), "HTTP + token")
    return figure


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444"})
    axes.text(
        (start[0] + end[0]) / 2, start[1] + 0.2, text.replace(" ", "\n", 1), ha="center",
        va="bottom", fontsize=9, color="#444444",
    )  # fmt: skip


def _resources(axes: Axes, x: float, y: float, node: Any) -> None:
    text = f"{node['cpus']} CPU, {node['gpus']} GPU, {node['memory_gib']:.1f} GiB"
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00"))


def startup_stages(pod: Json) -> list[tuple[str, float, float]]:
    """A pod's way to readiness, in seconds since it was created.

    Args:
        pod: A Pod object.

    Returns:
        `(stage, from, to)` for each stage that is over: `waiting for a place`,
        `starting`. Kubernetes' timestamps are whole seconds.
    """
    created = _time(pod["metadata"]["creationTimestamp"])
    stages = []
    previous = 0.0
    for stage, kind in (("waiting for a place", "PodScheduled"), ("starting", "Ready")):
        condition = conditions(pod).get(kind, {})
        if condition.get("status") != "True":
            break
        until = (_time(condition["lastTransitionTime"]) - created).total_seconds()
        stages.append((stage, previous, until))
        previous = until
    return stages


def plot_startup(groups: Mapping[str, Sequence[Json]]) -> Figure:
    """How long each pod took to be ready, stage by stage.

    Args:
        groups: Title of a group to its Pod objects.

    Example:
        >>> plot_startup({"Indexed Job": workload.observe().pods})   # doctest: +SKIP
    """
    colours = {"waiting for a place": OKABE_ITO["orange"], "starting": OKABE_ITO["sky"]}
    rows = [(title, pod) for title, pods in groups.items() for pod in pods]
    figure = new_figure(8.0, 1.1 + 0.42 * len(rows))
    axes = figure.subplots()
    labels = []
    for position, (title, pod) in enumerate(rows):
        labels.append(f"{title}: {pod['metadata']['name']}")
        end = 0.0
        for stage, begin, end in startup_stages(pod):
            axes.barh(position, end - begin, left=begin, height=0.55, color=colours[stage])
        text = f"{end:.0f} s" if end else "not ready"
        axes.text(end, position, f" {text}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the pod was created")
    axes.margins(x=0.1)
    axes.set_title("From created to ready", loc="left")
    for number, (stage, colour) in enumerate(colours.items()):
        axes.text(
            0.42 + 0.33 * number, 1.04, f"■ {stage}", color=colour, transform=axes.transAxes,
            fontsize=9.5,
        )  # fmt: skip
    tidy(axes)
    return figure


def plot_allocation(result: Json) -> Figure:
    """Where Ray put each request, drawn as the GPU slots of every node.

    Args:
        result: What `notebooks/jobs/gpu_allocation.py` prints: `gpus` (GPUs of each
            node) and `requests` (`request`, `nodes` where its parts landed, `created`).

    Example:
        >>> plot_allocation({"gpus": {"a": 2}, "requests": []})   # doctest: +SKIP
    """
    gpus: Mapping[str, int] = result["gpus"]
    nodes = sorted(gpus)
    requests = result["requests"]
    figure = new_figure(8.0, 0.9 + 0.62 * len(requests))
    axes = figure.subplots()
    axes.axis("off")
    widest = max(gpus.values())
    step = widest + 0.9
    for column, node in enumerate(nodes):
        axes.text(
            column * step + widest / 2, -0.75, f"node {node}", ha="center", fontsize=9.5,
            weight="bold",
        )  # fmt: skip
    for row, request in enumerate(requests):
        axes.text(-0.3, row, request["request"], ha="right", va="center", fontsize=9.5)
        for column, node in enumerate(nodes):
            used = request["nodes"].count(node)
            for slot in range(gpus[node]):
                taken = slot < used
                _box(
                    axes, column * step + slot + 0.06, row - 0.32, 0.88, 0.64,
                    OKABE_ITO["sky"] if taken else PALE,
                )  # fmt: skip
                axes.text(
                    column * step + slot + 0.5, row, "taken" if taken else "free", ha="center",
                    va="center", fontsize=9, color="black" if taken else "#777777",
                )  # fmt: skip
        if not request["created"]:
            axes.text(
                len(nodes) * step - 0.6, row, "pending: no node\nhas that many",
                va="center", fontsize=9, color=OKABE_ITO["vermillion"],
            )  # fmt: skip
    axes.set(xlim=(-step * 1.05, len(nodes) * step + 1.9), ylim=(len(requests) - 0.4, -1.1))
    axes.set_title("Which GPU slots each request takes", loc="left", fontsize=11)
    return figure
