"""Ray Serve's autoscaler, loaded, watched and explained.

`policy` says what the autoscaler should do and which settings decide it; `load` sends
requests from users who come and go; `serve_app` reads replicas, status and the
autoscaler's own numbers from the cluster; `run` does both on one time axis; `recovery`
kills a replica while it does; `startup` and `probes` are about cold starts and the
probes that must allow for them; `layers` about what scales below Serve; `verify` has
the learner's checks.
"""

from __future__ import annotations

from workshop_lib.production.autoscaling.layers import explain_autoscaling, scaling_layers
from workshop_lib.production.autoscaling.load import Load, Request
from workshop_lib.production.autoscaling.policy import AutoscalingSettings, desired_replicas
from workshop_lib.production.autoscaling.probes import load_times, probe_budgets, recorded_start_s
from workshop_lib.production.autoscaling.recovery import Recovery, kill_replica, run_recovery
from workshop_lib.production.autoscaling.run import Phase, ScalingRun, run_load
from workshop_lib.production.autoscaling.serve_app import (
    Replica,
    ServeApp,
    ServeSnapshot,
    serve_app,
)
from workshop_lib.production.autoscaling.startup import startup_timeline
from workshop_lib.production.autoscaling.verify import check_gone, check_scaling

__all__ = [
    "AutoscalingSettings",
    "Load",
    "Phase",
    "Recovery",
    "Replica",
    "Request",
    "ScalingRun",
    "ServeApp",
    "ServeSnapshot",
    "check_gone",
    "check_scaling",
    "desired_replicas",
    "explain_autoscaling",
    "kill_replica",
    "load_times",
    "probe_budgets",
    "recorded_start_s",
    "run_load",
    "run_recovery",
    "scaling_layers",
    "serve_app",
    "startup_timeline",
]
