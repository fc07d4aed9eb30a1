"""Monitoring: a server's own metrics watched, alerts, Ray's dashboards, Prometheus on a laptop.

`manifests/base/monitoring` says which pods Prometheus reads on a cluster and when somebody is
warned; there the Prometheus operator acts on it.
"""

from __future__ import annotations

from workshop_lib.production.monitoring.grafana import ray_dashboards
from workshop_lib.production.monitoring.prometheus import (
    alerts_table,
    rule_groups,
    start_prometheus,
)
from workshop_lib.production.monitoring.serving import SOURCES, watch_serving

__all__ = [
    "SOURCES",
    "alerts_table",
    "ray_dashboards",
    "rule_groups",
    "start_prometheus",
    "watch_serving",
]
