"""The component `monitoring` on a cluster: with the operator, and without it."""

import pytest

from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.errors import ManifestError, OperatorError
from workshop_lib.production.monitoring.grafana import _config_map


@pytest.fixture
def admin(cluster):
    cluster.profile = "eks"
    return cluster


def test_it_is_applied_and_removed(emulator, admin):
    made = admin.apply("monitoring", release="prom")
    assert set(made.actions.values()) == {"created"} and len(made.actions) == 6
    assert made.wait_ready() is made
    rule = emulator.get("PrometheusRule", "ray-vllm-workshop")
    assert rule["metadata"]["labels"]["release"] == "prom"
    again = admin.apply("monitoring", release="prom")
    assert set(again.actions.values()) == {"unchanged"}
    assert admin.components() == ["monitoring"]
    admin.delete("monitoring")
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"):
        assert emulator.names(kind) == []


def test_rays_dashboards_are_a_component_too(emulator, admin):
    objects = [_config_map(f"{name}_grafana_dashboard.json", '{"title": "A", "panels": []}')
               for name in ("serve", "serve_llm")]  # fmt: skip
    admin.apply_objects("ray-dashboards", objects)
    assert emulator.names("ConfigMap") == ["ray-dashboard-serve", "ray-dashboard-serve-llm"]
    admin.delete("ray-dashboards")
    assert emulator.names("ConfigMap") == []


def test_without_the_operator_it_says_how_it_is_installed(emulator, admin):
    emulator.crds = False
    said = r"Prometheus operator is not installed here; .* helm install monitoring kube-prometheus"
    with pytest.raises(OperatorError, match=said):
        admin.apply("monitoring")
    assert emulator.changes() == []


def test_a_laptop_has_its_own_way():
    with pytest.raises(ManifestError, match=r"'monitoring' in profile 'local' \(only in eks, kin"):
        LocalCluster(state="t-monitoring").apply("monitoring")
