"""Figures of lesson 01: the parts of a Ray cluster, its start, where work is placed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from workshop_lib.cluster.kube import conditions
from workshop_lib.plots.style import (
    GREY,
    ORANGE,
    PALE,
    SKY,
    VERMILLION,
    finish,
    new_figure,
    row_labels,
    write,
)

Json = Mapping[str, Any]

_HEAD_PARTS = (
    ("GCS", "gcs-server", "which nodes there are, what runs"),
    ("Dashboard", "dashboard", "web page, HTTP API, jobs"),
    ("Client server", "client", "ray:// from outside"),
    ("Serve proxy", "serve", "HTTP to deployments"),
)
_SOFT = "#555555"


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
    _text(axes, 1.4, 4.0, "your\nnotebook", fontsize=10)

    parts = [part for part in _HEAD_PARTS if part[1] in ports]
    _box(axes, 4.3, 0.3, 5.5, 7.4, "#DCEBF5")
    _text(axes, 7.05, 7.4, f"head  {head['node']}", fontsize=10, weight="bold")
    _text(axes, 7.05, 1.45, "raylet: as on a worker", color=_SOFT)
    _text(axes, 7.05, 0.72, _resources(head))
    step = 5.2 / max(len(parts), 1)
    for number, (label, name, role) in enumerate(parts):
        middle = 6.9 - step * (number + 0.5)
        _box(axes, 4.6, middle - step / 2 + 0.1, 4.9, step - 0.22, "white")
        _text(axes, 4.8, middle + 0.22, f"{label}  :{ports[name]}", ha="left", fontsize=9.5)
        _text(axes, 4.8, middle - 0.34, role, ha="left", color=_SOFT)

    height = min(3.4, 7.4 / max(len(workers), 1) - 0.3)
    for number, (_, worker) in enumerate(workers.iterrows(), start=1):
        y = 8.0 - number * (height + 0.3) if len(workers) > 1 else 4.0 - height / 2
        _box(axes, 11.6, y, 4.3, height, "#E3F2EA")
        _text(axes, 13.75, y + height - 0.35, f"worker  {worker['node']}", weight="bold")
        raylet = "raylet: starts tasks and\nactors, holds objects"
        _text(axes, 13.75, y + height / 2 - 0.05, raylet, color=_SOFT)
        _text(axes, 13.75, y + 0.3, _resources(worker))
        _arrow(axes, (11.6, y + height / 2), (9.8, y + height / 2), "joins,\nheartbeats")
    _arrow(axes, (2.7, 4.0), (4.3, 4.0), "HTTP\n+ token")
    return figure


def plot_startup(groups: Mapping[str, Sequence[Json]]) -> Figure:
    """How long each pod took to be ready, stage by stage.

    Args:
        groups: Title of a group to its Pod objects.

    Example:
        >>> plot_startup({"Indexed Job": workload.observe().pods})   # doctest: +SKIP
    """
    stages = {"PodScheduled": ("waiting for a place", ORANGE), "Ready": ("starting", SKY)}
    rows = [(title, pod) for title, pods in groups.items() for pod in pods]
    figure = new_figure(8.0, 1.1 + 0.42 * len(rows))
    axes = figure.subplots()
    for row, (_, pod) in enumerate(rows):
        created, end_s, known = _time(pod["metadata"]["creationTimestamp"]), 0.0, conditions(pod)
        for kind, (stage, colour) in stages.items():
            if known.get(kind, {}).get("status") != "True":
                break  # what is not over is left out
            begin_s, end = end_s, _time(known[kind]["lastTransitionTime"])
            end_s, label = (end - created).total_seconds(), f"_{stage}" if row else stage
            axes.barh(row, end_s - begin_s, 0.55, left=begin_s, color=colour, label=label)
        write(axes, end_s, row, f" {end_s:.0f} s" if end_s else " not ready")
    row_labels(axes, [f"{title}: {pod['metadata']['name']}" for title, pod in rows])
    axes.margins(x=0.1)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    finish(axes, "From created to ready", x="seconds since the pod was created")
    return figure


def plot_allocation(result: Json) -> Figure:
    """Where Ray put each request, drawn as the GPU slots of every node.

    Args:
        result: What `notebooks/jobs/gpu_allocation.py` prints: `gpus` (GPUs of each
            node) and `requests` (`request`, `nodes` where its parts landed, `created`).

    Example:
        >>> figure = plot_allocation({"gpus": {"a": 2}, "requests": []})
    """
    gpus: Mapping[str, int] = result["gpus"]
    nodes, requests = sorted(gpus), result["requests"]
    figure = new_figure(8.0, 0.9 + 0.62 * len(requests))
    axes = figure.subplots()
    axes.axis("off")
    widest = max(gpus.values())
    step = widest + 0.9
    for column, node in enumerate(nodes):
        _text(axes, column * step + widest / 2, -0.75, f"node {node}", weight="bold")
    for row, request in enumerate(requests):
        _text(axes, -0.3, row, request["request"], ha="right", fontsize=9.5)
        for column, node in enumerate(nodes):
            used = request["nodes"].count(node)
            for slot in range(gpus[node]):
                x, taken = column * step + slot, slot < used
                _box(axes, x + 0.06, row - 0.32, 0.88, 0.64, SKY if taken else PALE)
                word, colour = ("taken", "black") if taken else ("free", "#777777")
                _text(axes, x + 0.5, row, word, color=colour)
        if not request["created"]:
            reason = "pending: no node\nhas that many"
            _text(axes, len(nodes) * step - 0.6, row, reason, ha="left", color=VERMILLION)
    axes.set(xlim=(-step * 1.05, len(nodes) * step + 1.9), ylim=(len(requests) - 0.4, -1.1))
    axes.set_title("Which GPU slots each request takes", loc="left", fontsize=11)
    return figure


def _text(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 9, **style})


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    shape: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.12", "edgecolor": GREY}
    axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor=colour, **shape))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444"})
    _text(axes, (start[0] + end[0]) / 2, start[1] + 0.2, text, va="bottom", color="#444444")


def _resources(node: Any) -> str:
    return f"{node['cpus']} CPU, {node['gpus']} GPU, {node['memory_gib']:.1f} GiB"


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00"))
