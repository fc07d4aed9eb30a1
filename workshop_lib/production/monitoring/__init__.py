"""Monitoring: what Prometheus reads of a cluster, asked and drawn, on a laptop and on EKS.

`manifests/base/monitoring` says which pods are read and when somebody is warned. On a
cluster the Prometheus operator acts on it; on a laptop `start_prometheus` does, with the
same monitors and the same alerts. Without a Prometheus, `watch_serving` reads the same
pages itself, for as long as somebody watches.
"""

from workshop_lib.production.monitoring.client import PrometheusClient
from workshop_lib.production.monitoring.local import LocalPrometheus, start_prometheus
from workshop_lib.production.monitoring.ray_dashboards import ray_dashboards
from workshop_lib.production.monitoring.scraping import (
    Monitor,
    Target,
    alerts_table,
    find_targets,
    monitors,
    rule_groups,
)
from workshop_lib.production.monitoring.serving import (
    SOURCES,
    Source,
    serving_history,
    watch_serving,
)

__all__ = [
    "SOURCES",
    "LocalPrometheus",
    "Monitor",
    "PrometheusClient",
    "Source",
    "Target",
    "alerts_table",
    "find_targets",
    "monitors",
    "ray_dashboards",
    "rule_groups",
    "serving_history",
    "start_prometheus",
    "watch_serving",
]
