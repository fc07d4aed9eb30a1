"""Ray Serve's autoscaler, loaded, watched and explained."""

from __future__ import annotations

from workshop_lib.production.autoscaling.app import ServeApp, serve_app, startup_timeline
from workshop_lib.production.autoscaling.run import (
    Recovery,
    ScalingRun,
    check_scaling,
    run_load,
    run_recovery,
)
from workshop_lib.production.autoscaling.settings import (
    desired_replicas,
    explain_autoscaling,
    scaling_layers,
)
from workshop_lib.production.probes import (
    load_times,
    probe_budgets,
    recorded_start,
    recorded_start_s,
)

__all__ = [
    "Recovery",
    "ScalingRun",
    "ServeApp",
    "check_scaling",
    "desired_replicas",
    "explain_autoscaling",
    "load_times",
    "probe_budgets",
    "recorded_start",
    "recorded_start_s",
    "run_load",
    "run_recovery",
    "scaling_layers",
    "serve_app",
    "startup_timeline",
]
