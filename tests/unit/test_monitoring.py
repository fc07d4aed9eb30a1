"""Monitors as the operator reads them, tables of a server over time, Ray's own dashboards."""

import copy
import doctest
import importlib
import json

import pandas as pd
import pytest

from workshop_lib.cluster import manifests
from workshop_lib.cluster.local.ray_templates import derived_objects
from workshop_lib.cluster.records import ExecResult, Observation
from workshop_lib.errors import ClusterError, ManifestError, NotFoundError, WorkshopError
from workshop_lib.plots import plot_serving
from workshop_lib.production.monitoring import (
    SOURCES,
    find_targets,
    monitors,
    ray_dashboards,
    start_prometheus,
    watch_serving,
)
from workshop_lib.production.monitoring import scraping as module
from workshop_lib.production.monitoring.serving import _Reading, _table, bucket_quantile
from workshop_lib.serving.metrics import parse_metrics

ours = {"app.kubernetes.io/part-of": "ray-vllm-workshop"}


def pod(name, labels, ports, *, phase="Running", containers="main"):
    return {
        "metadata": {"name": name, "namespace": "ada", "labels": labels},
        "spec": {"containers": [{"name": containers, "ports": [
            {"name": key, "containerPort": value} for key, value in ports.items()]}]},
        "status": {"phase": phase, "podIP": "10.0.0.7"},
    }  # fmt: skip


def head_service(cluster, **labels):
    """As KubeRay makes it, from a Ray cluster's own."""
    return {"metadata": {"name": f"{cluster}-head-svc", "labels": labels},
            "spec": {"selector": {"ray.io/cluster": "c", "ray.io/node-type": "head"},
                     "ports": [{"name": "metrics", "port": 8080}]}}  # fmt: skip


HEAD = pod("head", {"ray.io/cluster": "c", "ray.io/node-type": "head"}, {"metrics": 8080})
WORKER = pod("worker", {"ray.io/cluster": "c", "ray.io/node-type": "worker"}, {"metrics": 8080})
RANK = pod("rank", {**ours, "app": "grpo"}, {"gcs": 6379, "metrics": 8080})
VLLM = pod("vllm-1", {**ours, "app": "vllm"}, {"http": 8000})


def vllm_service():
    (found,) = (o.body for o in manifests.render("eks", "vllm") if o.kind == "Service")
    return found


def found(services=(), pods=()):
    targets = find_targets(monitors(), services, pods)
    return {(target.monitor.name, target.pod): target for target in targets}


def test_each_monitor_finds_its_pods_and_gives_the_operators_labels():
    service = head_service("c", **{"ray.io/cluster": "c", "ray.io/node-type": "head"})
    seen = found([service, vllm_service()], [HEAD, WORKER, RANK, VLLM])
    assert set(seen) == {("ray-heads", "head"), ("ray-workers", "worker"), ("ray-jobs", "rank"),
                         ("vllm", "vllm-1")}  # fmt: skip
    assert seen["vllm", "vllm-1"].port == 8000
    assert seen["vllm", "vllm-1"].labels == {
        "job": "vllm", "service": "vllm", "namespace": "ada", "pod": "vllm-1", "endpoint": "http",
    }  # fmt: skip
    assert seen["ray-heads", "head"].labels["ray_io_cluster"] == "c"
    assert seen["ray-heads", "head"].labels["job"] == "c-head-svc"
    assert seen["ray-workers", "worker"].labels["ray_io_cluster"] == "c"
    assert seen["ray-jobs", "rank"].labels["ray_io_cluster"] == "grpo"
    assert seen["ray-jobs", "rank"].labels["job"] == "monitoring/ray-jobs"


def test_a_rayservices_second_service_does_not_count_its_head_twice():
    """KubeRay's Service for the RayService has the head's type and no cluster."""
    second = head_service("llm", **{"ray.io/node-type": "head",
                                    "ray.io/originated-from-cr-name": "llm"})  # fmt: skip
    assert found([second], [HEAD]) == {}


def test_what_is_over_or_has_no_such_port_is_no_target():
    over = copy.deepcopy(RANK)
    over["status"]["phase"] = "Succeeded"
    bare = pod("rank", {**ours, "app": "grpo"}, {"gcs": 6379})
    stranger = pod("rank", {"app": "grpo"}, {"metrics": 8080})
    assert found(pods=[over, bare, stranger]) == {}


@pytest.mark.parametrize("component", ["ray-cluster", "grpo", "vllm"])
def test_the_manifests_pods_have_what_the_monitors_want(component):
    """Labels and named ports of the templates: a monitor for a port that nobody has is silent."""
    objects = manifests.render("eks", component)
    template = objects[-1].body["spec"]["template"]
    made = {"metadata": {"name": "p", **template["metadata"]}, "spec": template["spec"],
            "status": {"phase": "Running"}}  # fmt: skip
    services = [item.body for item in objects if item.kind == "Service"]
    assert len(found(services, [made])) == 1


def test_a_local_head_is_found_as_on_a_cluster():
    (cluster,) = (o.body for o in manifests.render("local", "raycluster") if o.kind == "RayCluster")
    services = [body for body in derived_objects(cluster) if body["kind"] == "Service"]
    labels = {"ray.io/originated-from-cr-name": "raycluster", "ray.io/node-type": "head"}
    assert set(found(services, [pod("h", labels, {"metrics": 8080})])) == {("ray-heads", "h")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.update(sampleLimit=5), "not understood here: sampleLimit"),
        (lambda spec: spec["endpoints"].append({}), "more than one endpoint"),
        (lambda spec: spec["endpoints"][0].update(scheme="https"), "not understood here: scheme"),
        (lambda spec: spec["endpoints"][0].update(metricRelabelings=[{"modulus": 2}]),
         "not understood here: modulus"),
        (lambda spec: spec["endpoints"][0].update(interval="1h"), "interval '1h'"),
        (lambda spec: spec["endpoints"][0].update(relabelings=[{"action": "drop"}]),
         "may only copy one label"),
    ],
)  # fmt: skip
def test_a_monitor_that_is_not_understood_is_refused(change, said):
    item = next(o for o in manifests.render("eks", "monitoring") if o.kind == "ServiceMonitor")
    change(item.body["spec"])
    with pytest.raises(ManifestError, match=said):
        module._monitor(item)


def test_selectors_are_kubernetes():
    labels = {"app": "vllm"}
    expressions = [("In", ["vllm"], True), ("In", ["x"], False), ("NotIn", ["x"], True),
                   ("Exists", None, True), ("DoesNotExist", None, False)]  # fmt: skip
    for operator, values, wanted in expressions:
        each = {"key": "app", "operator": operator, "values": values}
        assert module.selects({"matchExpressions": [each]}, labels) is wanted
    with pytest.raises(ManifestError, match="no operator 'Near'"):
        module.selects({"matchExpressions": [{"key": "app", "operator": "Near"}]}, labels)


# Fields of the operator's CRDs (monitoring.coreos.com/v1, August 2026) that are used here.
FIELDS = {
    "ServiceMonitor": {"namespaceSelector", "selector", "targetLabels", "endpoints"},
    "PodMonitor": {"namespaceSelector", "selector", "podTargetLabels", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
}
ENDPOINT = {"port": str, "path": str, "interval": str, "scrapeTimeout": str, "relabelings": list,
            "metricRelabelings": list}  # fmt: skip
RULE = {"alert": str, "record": str, "expr": str, "for": str, "labels": dict, "annotations": dict}


def test_the_operators_objects_have_only_fields_of_their_crds():
    for item in manifests.render("eks", "monitoring"):
        if item.kind not in FIELDS:
            continue
        spec = item.body["spec"]
        assert set(spec) <= FIELDS[item.kind]
        for endpoint in spec.get("endpoints", []) + spec.get("podMetricsEndpoints", []):
            assert all(isinstance(value, ENDPOINT[key]) for key, value in endpoint.items())
        for group in spec.get("groups", []):
            assert set(group) <= {"name", "interval", "rules"}
            for rule in group["rules"]:
                assert all(isinstance(value, RULE[key]) for key, value in rule.items())
        # Without it kube-prometheus-stack's Prometheus does not look at the object.
        assert item.body["metadata"]["labels"]["release"] == "monitoring"
    named = manifests.render("eks", "monitoring", {"release": "prom"})
    labels = {o.body["metadata"]["labels"].get("release") for o in named if o.kind in FIELDS}
    assert labels == {"prom"}


# -- a server over time ---------------------------------------------------------------------------


def test_quantiles_are_promqls():
    buckets = {0.1: 0.0, 0.5: 9.0, 1.0: 9.0, 5.0: 10.0, float("inf"): 10.0}
    assert bucket_quantile(0.5, buckets) == pytest.approx(0.1 + 0.4 * 5 / 9)
    assert bucket_quantile(0.95, buckets) == pytest.approx(1 + 4 * 0.5)
    assert bucket_quantile(0.9, {1.0: 5.0, float("inf"): 10.0}) == 1.0
    assert bucket_quantile(0.5, {1.0: 0.0, float("inf"): 0.0}) is None
    assert bucket_quantile(0.5, {}) is None


def page(source, running, *, slow=0, fast=0, level=0.5):
    """A page with a source's metrics, in Prometheus' format."""
    names = SOURCES[source]
    return parse_metrics(
        f"# TYPE {names.running} gauge\n{names.running} {running}\n"
        f"# TYPE {names.waiting} gauge\n{names.waiting} 1\n"
        f"# TYPE {names.level} gauge\n{names.level} {level}\n"
        f"# TYPE {names.latency} histogram\n"
        f'{names.latency}_bucket{{le="1.0"}} {fast}\n'
        f'{names.latency}_bucket{{le="3.0"}} {fast + slow}\n'
        f'{names.latency}_bucket{{le="+Inf"}} {fast + slow}\n'
        f"{names.latency}_sum 1\n{names.latency}_count {fast + slow}\n"
    )


def test_several_engines_are_one_server():
    readings = [
        _Reading(0.0, [page("vllm", 2, level=0.2), page("vllm", 3, level=0.6)]),
        _Reading(1.0, [page("vllm", 0, slow=4, level=0.0), page("vllm", 1, fast=4, level=0.1)]),
    ]
    table = _table(readings, window_s=10)
    assert table["running"].tolist() == [5, 1] and table["waiting"].tolist() == [2, 2]
    assert table["level"].tolist() == pytest.approx([60, 10]), "the fullest engine, in percent"
    assert table["latency_p50_s"].isna().tolist() == [True, False]
    assert table["latency_p50_s"].iloc[1] == 1.0
    assert table["latency_p95_s"].iloc[1] == pytest.approx(1 + 2 * 3.6 / 4)


def test_a_gauge_that_is_missing_for_a_moment_is_as_it_was():
    """Ray's page has a gauge only when it was set since the page before."""
    pages = [page("ray-serve", 3, level=2), parse_metrics(""), page("ray-serve", 1, level=2)]
    table = _table([_Reading(float(n), [each]) for n, each in enumerate(pages)], window_s=5)
    assert table["running"].tolist() == [3, 3, 1] and table["level"].tolist() == [2, 2, 2]


def test_what_serves_is_seen_on_its_page():
    for name in SOURCES:
        table = _table([_Reading(0.0, [page(name, 1, level=2)])] * 2, window_s=5)
        assert table.attrs["source"] == name
    serve = _table([_Reading(0.0, [page("ray-serve", 1)]),
                    _Reading(1.0, [page("ray-serve", 1, slow=2)])], window_s=5)  # fmt: skip
    assert serve["latency_p50_s"].iloc[1] == pytest.approx(0.002), "milliseconds there"
    with pytest.raises(NotFoundError, match="send a request first"):
        _table([_Reading(0.0, [parse_metrics("")])], window_s=5)


class Head:
    """A cluster whose head answers what a test says."""

    profile = "eks"

    def __init__(self, stdout, stderr=""):
        self.result = ExecResult(0 if stdout else 1, stdout, stderr)

    def exec(self, pod, command, *, timeout_s):
        assert pod == "head" and command[:2] == ["python", "-c"]
        compile(command[2], "read", "exec")
        return self.result


class Handle:
    kind, name, component = "RayCluster", "c", "raycluster"

    def __init__(self, cluster, pods):
        self.cluster, self._pods = cluster, pods

    def observe(self):
        return Observation({}, self._pods)


def test_rays_dashboards_become_a_config_map():
    boards = {
        "serve_grafana_dashboard.json": json.dumps({"title": "Serve", "panels": []}, indent=9)
    }
    answer = f"a line of somebody\n{json.dumps(boards)}\n"
    (item,) = ray_dashboards(Handle(Head(answer), [WORKER, HEAD]))
    assert item.body["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert item.key == "ConfigMap/ray-dashboard-serve"
    (text,) = item.body["data"].values()
    assert json.loads(text)["title"] == "Serve" and "\n" not in text


@pytest.mark.parametrize(
    ("stdout", "pods", "said"),
    [
        ("", [HEAD], "head did not tell its dashboards: no Ray"),
        ("{}", [HEAD], "has written no dashboards yet"),
        ("{}", [WORKER], "has no Ray head"),
        ('{"a.json": "{}"}', [HEAD], "a.json is no Grafana dashboard"),
        (json.dumps({"a.json": json.dumps({"title": "x" * 10**6, "panels": []})}), [HEAD],
         "a ConfigMap holds 1,000,000"),
    ],
)  # fmt: skip
def test_without_dashboards_it_says_why(stdout, pods, said):
    with pytest.raises(ClusterError, match=said):
        ray_dashboards(Handle(Head(stdout, "no Ray"), pods))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(WorkshopError, match="must be more than 0"):
        watch_serving(Handle(None, []), seconds=0)
    with pytest.raises(NotFoundError, match="has no metrics of a server"):
        watch_serving(Handle(None, []))
    with pytest.raises(WorkshopError, match="Prometheus runs in the cluster"):
        start_prometheus(Head(""))


@pytest.mark.parametrize("source", SOURCES)
def test_the_figure_says_what_it_shows(source):
    table = pd.DataFrame({
        "time_s": range(10), "running": [0, 1, 4, 4, 4, 3, 2, 1, 0, 0], "waiting": [0] * 10,
        "level": [0, 5, 40, 60, 70, 60, 40, 10, 0, 0],
        "latency_p50_s": [None, 0.2, 0.3, 0.4, 0.5, 0.5, 0.4, 0.3, None, None],
        "latency_p95_s": [None, 0.3, 0.5, 0.8, 0.9, 0.9, 0.6, 0.5, None, None],
    }, dtype=float)  # fmt: skip
    table.attrs["source"] = source
    figure = plot_serving(table, title="a test")
    labels = " ".join(axes.get_ylabel().replace("\n", " ") for axes in figure.axes)
    assert SOURCES[source].latency_label in labels and "requests" in labels
    assert figure.axes[2].get_xlabel() == "time, s"


@pytest.mark.parametrize(
    "name",
    [
        "production.monitoring.scraping",
        "production.monitoring.serving",
        "production.monitoring.client",
        "production.monitoring.local",
        "production.monitoring.ray_dashboards",
        "production.room.roster",
        "production.room.room",
        "production.room.kubeconfigs",
        "plots.monitoring",
    ],
)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"workshop_lib.{name}")).failed == 0
