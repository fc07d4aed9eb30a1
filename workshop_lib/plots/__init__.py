"""The figures of the notebooks, a module a lesson: each draws plain data and returns one figure."""

from __future__ import annotations

from workshop_lib.plots.cluster import plot_allocation, plot_ray_cluster, plot_startup
from workshop_lib.plots.production import (
    plot_autoscaler,
    plot_recovery,
    plot_scaling,
    plot_serving,
    plot_startup_timeline,
)
from workshop_lib.plots.serving import (
    load_recorded_levels,
    plot_batching,
    plot_deployments,
    plot_engine,
    plot_kv_prediction,
    plot_load_sweep,
    plot_memory_budget,
    plot_paging,
    plot_serve_paths,
    plot_token_timeline,
)
from workshop_lib.plots.style import OKABE_ITO
from workshop_lib.plots.training import (
    plot_accuracy,
    plot_advantages,
    plot_groups,
    plot_run,
    plot_runs,
    plot_settings,
    plot_step_memory,
    plot_training,
    plot_training_models,
)

__all__ = [
    "OKABE_ITO",
    "load_recorded_levels",
    "plot_accuracy",
    "plot_advantages",
    "plot_allocation",
    "plot_autoscaler",
    "plot_batching",
    "plot_deployments",
    "plot_engine",
    "plot_groups",
    "plot_kv_prediction",
    "plot_load_sweep",
    "plot_memory_budget",
    "plot_paging",
    "plot_ray_cluster",
    "plot_recovery",
    "plot_run",
    "plot_runs",
    "plot_scaling",
    "plot_serve_paths",
    "plot_serving",
    "plot_settings",
    "plot_startup",
    "plot_startup_timeline",
    "plot_step_memory",
    "plot_token_timeline",
    "plot_training",
    "plot_training_models",
]
