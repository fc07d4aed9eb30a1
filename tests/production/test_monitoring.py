"""Alerts through promtool, what rules and dashboards ask for, a server over time."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.cluster.records import ExecResult
from workshop_lib.data import data_path
from workshop_lib.errors import ClusterError, NotFoundError, OperatorError
from workshop_lib.production.checks.xid import xid_severity
from workshop_lib.production.monitoring import SOURCES, ray_dashboards, rule_groups, watch_serving
from workshop_lib.production.monitoring.serving import bucket_quantile, serving_table

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    not PROMTOOL, reason="promtool is not installed; apt-get install prometheus brings it"
)
RULES = [rule for group in rule_groups()["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
XIDS = {n: xid_severity(n) for n in yaml.safe_load(data_path("xids.yaml").read_text())["xids"]}
"""Of each number of the catalogue how urgent it is: what the alerts have to follow."""

VLLM = 'namespace="ada", pod="vllm-1", model_name="m"'
RAY = 'namespace="ada", pod="llm-1", model_name="m", ReplicaId="a"'
POD = 'namespace="ada", pod="p", container="vllm"'
GPU = 'Hostname="node-1", gpu="3"'


def slow(metric, bound, share, labels=VLLM):
    """A histogram of 100 requests a minute, of which a share is over a bound."""
    return [
        f'{metric}_bucket{{{labels}, le="{bound}"}} 0+{100 * (1 - share):g}x60',
        f'{metric}_bucket{{{labels}, le="+Inf"}} 0+100x60',
    ]


TTFT, ITL = "time_to_first_token_seconds", "inter_token_latency_seconds"
RAY_HEAD = 'job="recommender-head-svc", namespace="ada", pod="head"'


STEPS = 'namespace="ada", SessionName="s1"'
LAST, STEP = "ray_workshop_training_last_step_unix_s", "ray_workshop_training_step_s"
NODE = f"ray_node_cpu_count{{{STEPS}}} 8x60"


def training(stops_at_min, *, step_s=60, node=NODE):
    """A step a minute until a minute; the gauges' names are those that run_nemo_rl.py sets."""
    ends = " ".join(str(60 * n) for n in range(stops_at_min + 1))
    return [f"{LAST}{{{STEPS}}} {ends}", f"{STEP}{{{STEPS}}} {step_s}x{stops_at_min}", node]


CASES = [
    ("TrainingHangs", "30m", training(10), True),
    ("TrainingHangs", "18m", training(10), False),  # nine steps late is not ten
    ("TrainingHangs", "30m", training(10, step_s=300), False),
    ("TrainingHangs", "30m", training(10, node=f"ray_node_cpu_count{{{STEPS}}} 8x12 _x50"), False),
    ("GpuXidError", "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 9999x5"], True),
    ("GpuXidError", "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 0x5"], False),
    *(
        (alert, "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} {number}x5"], severity == wanted)
        for number, severity in XIDS.items()
        for alert, wanted in (("GpuXidError", "critical"), ("GpuProgramError", "info"))
    ),
    ("TimeToFirstTokenSlow", "30m", slow(f"vllm:{TTFT}", "2.5", 0.1), True),
    ("TimeToFirstTokenSlow", "30m", slow(f"ray_vllm_{TTFT}", "2.5", 0.1, RAY), True),
    ("TimeToFirstTokenSlow", "30m", slow(f"vllm:{TTFT}", "2.5", 0.02), False),
    ("TimeToFirstTokenSlow", "8m", slow(f"vllm:{TTFT}", "2.5", 0.1), False),
    ("TokensSlow", "30m", slow(f"vllm:{ITL}", "0.1", 0.1), True),
    ("TokensSlow", "30m", slow(f"ray_vllm_{ITL}", "0.1", 0.1, RAY), True),
    ("TokensSlow", "30m", slow(f"vllm:{ITL}", "0.1", 0.02), False),
    ("KvCacheFull", "10m", [f"vllm:kv_cache_usage_perc{{{VLLM}}} 0.99x20",
                            f"vllm:num_requests_waiting{{{VLLM}}} 3x20"], True),
    ("KvCacheFull", "10m", [f"ray_vllm_kv_cache_usage_perc{{{RAY}}} 0.99x20",
                            f"ray_vllm_num_requests_waiting{{{RAY}}} 3x20"], True),
    ("KvCacheFull", "10m", [f"vllm:kv_cache_usage_perc{{{VLLM}}} 0.99x20",
                            f"vllm:num_requests_waiting{{{VLLM}}} 0x20"], False),
    ("RequestsPreempted", "20m", [f"vllm:num_preemptions_total{{{VLLM}}} 0+30x20"], True),
    ("RequestsPreempted", "20m", [f"vllm:num_preemptions_total{{{VLLM}}} 7x20"], False),
    ("QueueGrowing", "25m", [f"vllm:num_requests_waiting{{{VLLM}}} 1+2x30"], True),
    ("QueueGrowing", "25m", [f"vllm:num_requests_waiting{{{VLLM}}} 5x30"], False),
    ("QueueGrowing", "25m", [f"vllm:num_requests_waiting{{{VLLM}}} 0+1x4 0x26"], False),
    ("ServeRequestsFail", "20m",
     ['ray_serve_num_http_error_requests_total{namespace="ada", application="llm", '
      'error_code="500"} 0+5x20',
      'ray_serve_num_http_requests_total{namespace="ada", application="llm"} 0+100x20'], True),
    ("ServeRequestsFail", "20m",
     ['ray_serve_num_http_error_requests_total{namespace="ada", application="llm", '
      'error_code="500"} 0+1x20',
      'ray_serve_num_http_requests_total{namespace="ada", application="llm"} 0+100x20'], False),
    ("ServeReplicaUnhealthy", "10m",
     ['ray_serve_deployment_replica_healthy{namespace="ada", application="a", deployment="d", '
      'replica="r"} 0x10'], True),
    ("ServeReplicaUnhealthy", "10m",
     ['ray_serve_deployment_replica_healthy{namespace="ada", application="a", deployment="d", '
      'replica="r"} 1x10'], False),
    ("ModelServerDown", "20m", ['up{job="vllm", namespace="ada", pod="v"} 1x5 0x15'], True),
    ("ModelServerDown", "20m", ['up{job="vllm", namespace="ada", pod="v"} 0x20'], False),
    ("ModelServerNotReady", "30m",
     ['kube_deployment_status_replicas_unavailable{namespace="ada", deployment="vllm"} 1x30'],
     True),
    ("ModelServerNotReady", "15m",
     ['kube_deployment_status_replicas_unavailable{namespace="ada", deployment="vllm"} 1x30'],
     False),
    ("RayNodeDown", "20m", [f"up{{{RAY_HEAD}}} 1x5 0x15"], True),
    ("RayNodeDown", "20m",
     ['up{job="monitoring/ray-jobs", namespace="ada", pod="w"} 1x5 0x15'], True),
    ("RayNodeDown", "20m",
     ['up{job="monitoring/ray-workers", namespace="ada", pod="w"} 1x5 0x15'], True),
    ("RayNodeDown", "20m", ['up{job="vllm", namespace="ada", pod="w"} 1x5 0x15'], False),
    ("RayWorkersKilledForMemory", "20m",
     ['ray_memory_manager_worker_eviction_total{namespace="ada", ray_io_cluster="c"} 0x12 2x8'],
     True),
    ("RayWorkersKilledForMemory", "20m",
     ['ray_memory_manager_worker_eviction_total{namespace="ada", ray_io_cluster="c"} 2x20'],
     False),
    ("ContainerRestarts", "20m",
     [f"kube_pod_container_status_restarts_total{{{POD}}} 0x8 1 2 3 4 4x10"], True),
    ("ContainerRestarts", "20m",
     [f"kube_pod_container_status_restarts_total{{{POD}}} 0x8 1 1x12"], False),
    ("ContainerRestarts", "20m",
     ['kube_pod_container_status_restarts_total{namespace="x", pod="p", container="nginx"} '
      "0x8 1 2 3 4 4x10"], False),
    ("ContainerOutOfMemory", "10m",
     [f'kube_pod_container_status_terminated_reason{{{POD}, reason="OOMKilled"}} 1x10'], True),
    ("ContainerOutOfMemory", "10m",
     [f'kube_pod_container_status_last_terminated_reason{{{POD}, reason="OOMKilled"}} 1x10',
      f"kube_pod_container_status_restarts_total{{{POD}}} 0 0 0 1x8"], True),
    ("ContainerOutOfMemory", "60m",
     [f'kube_pod_container_status_last_terminated_reason{{{POD}, reason="OOMKilled"}} 1x60',
      f"kube_pod_container_status_restarts_total{{{POD}}} 0 0 0 1x58"], False),
    ("PodNotScheduled", "30m",
     ['kube_pod_status_unschedulable{namespace="ada", pod="p"} 1x30',
      f'kube_pod_container_resource_requests{{{POD}, resource="cpu", unit="core"}} 8x30'], True),
    ("PodNotScheduled", "30m",
     ['kube_pod_status_unschedulable{namespace="ada", pod="p"} 1x30',
      'kube_pod_container_resource_requests{namespace="ada", pod="p", container="nginx", '
      'resource="cpu", unit="core"} 8x30'], False),
    ("GpuRowRemapped", "30m",
     [f"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{{{GPU}}} 0x10 1x20"], True),
    ("GpuRowRemapped", "30m", [f"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{{{GPU}}} 4x30"], False),
    ("GpuMemoryError", "30m", [f"DCGM_FI_DEV_ROW_REMAP_FAILURE{{{GPU}}} 1x30"], True),
    ("GpuMemoryError", "30m", [f"DCGM_FI_DEV_ROW_REMAP_FAILURE{{{GPU}}} 0x30"], False),
]  # fmt: skip


def promtool(*arguments):
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    for fires in (True, False):
        assert {name for name, *_, wanted in CASES if wanted is fires} == set(ALERTS)
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump(rule_groups()))
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": text[: text.rindex("}") + 1], "values": text[text.rindex("}") + 2 :]}
                for text in series
            ],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}})',
                    "eval_time": when,
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for alert, when, series, fires in CASES
    ]
    file = rules.parent / "tests.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": tests})
    )
    promtool("test", "rules", str(file))


def test_an_alert_says_what_it_is_and_what_to_do():
    for alert in ALERTS.values():
        assert set(alert["annotations"]) == {"summary", "description", "action"}
        assert re.search(r"\(section 0[1-4]\)\.$", alert["annotations"]["action"])
        assert alert["labels"]["severity"] in ("critical", "warning", "info")


def test_alerts_about_containers_know_the_workshops():
    """Those that run for long, by the names in the manifests."""
    names = set()
    for folder in (manifests.manifests_dir() / "base").glob("*/kustomization.yaml"):
        for item in manifests.render_folder(folder.parent):
            if folder.parent.name in ("model", "prestage", "stale-address", "lab-server"):
                continue  # over in minutes, or broken on purpose
            names |= {c["name"] for c in _containers(item.body)}
    for alert in ("ContainerRestarts", "ContainerOutOfMemory", "PodNotScheduled"):
        for text in re.findall(r'container=~"([^"]+)"', ALERTS[alert]["expr"]):
            assert set(text.split("|")) >= {n for n in names if n != "autoscaler"}


def _containers(node):
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield from node["containers"]
        for value in node.values():
            yield from _containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from _containers(value)


def boards():
    config = next(o for o in manifests.render("eks", "monitoring") if o.kind == "ConfigMap")
    assert config.body["metadata"]["labels"]["grafana_dashboard"] == "1"
    return {name: json.loads(text) for name, text in config.body["data"].items()}


def expressions(board):
    """What a dashboard asks, with its variables filled in."""
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$namespace", ".*").replace("$model", ".*")


@needs_promtool
def test_prometheus_can_read_what_dashboards_ask(tmp_path):
    rules = [
        {"record": f"r{number}", "expr": text}
        for board in boards().values()
        for number, text in enumerate(expressions(board))
    ]
    assert len(rules) > 10
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", str(file))


SEEN = json.loads((Path(__file__).parents[1] / "data/monitoring/names.json").read_text())
ELSEWHERE = {
    # https://github.com/NVIDIA/dcgm-exporter, etc/default-counters.csv
    "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    # https://github.com/kubernetes/kube-state-metrics, docs/metrics/workload
    "kube_pod_container_status_restarts_total", "kube_pod_container_status_terminated_reason",
    "kube_pod_container_status_last_terminated_reason", "kube_pod_status_unschedulable",
    "kube_pod_container_resource_requests", "kube_deployment_status_replicas_unavailable",
    "up",
}  # fmt: skip


def was_seen(name):
    """Whether a real page had the metric, or those who make it document it."""
    known = {*SEEN["vllm"], *SEEN["ray"], *ELSEWHERE}
    # Ray makes a counter when it first counts; vLLM has it from the start.
    return (
        name in known
        or name.replace("ray_vllm_", "vllm:") in known
        or (name in SEEN["rays_own_dashboards"] and not name.startswith("ray_vllm_"))
    )


def metric_names(expression):
    plain = re.sub(r"\b(by|on|ignoring|group_left)\s*\([^)]*\)", " ", expression)
    plain = re.sub(r'"[^"]*"', '""', plain) + " "
    names = set(re.findall(r"(?<![\w:])((?:ray_|vllm:|workshop:|kube_|DCGM_)[\w:]+)", plain))
    for text in re.findall(r'__name__=~"([^"]+)"', expression):
        names |= set(text.split("|"))
    return {name for name in names if not name.startswith("ray_workshop_")}  # our own, see STEPS


def test_every_metric_is_one_that_was_seen():
    asked = [rule["expr"] for rule in RULES]
    asked += [text for board in boards().values() for text in expressions(board)]
    records = {rule["record"] for rule in RULES if "record" in rule}
    names = set().union(*map(metric_names, asked))
    assert len(names) > 25
    assert [name for name in names - records if not was_seen(name)] == []
    for source in SOURCES.values():
        for name in (source.running, source.waiting, source.level, f"{source.latency}_bucket"):
            assert name in SEEN["vllm"] or name in SEEN["ray"], name


def test_latency_alerts_ask_for_bounds_that_the_histograms_have():
    """A bound that is no bucket's is a series that is not there: the alert would never fire."""
    found = 0
    for alert in ("TimeToFirstTokenSlow", "TokensSlow"):
        record = re.search(r"workshop:\w+:rate5m", ALERTS[alert]["expr"])[0]
        (rule,) = (rule for rule in RULES if rule.get("record") == record)
        for bound in re.findall(r'le="([^"]+)"', ALERTS[alert]["expr"]):
            for name in metric_names(rule["expr"]):
                place = "vllm" if name.startswith("vllm:") else "ray"
                assert bound in SEEN[place][name]["le"]
                found += 1
    assert found == 8


def test_the_training_sets_what_its_alert_reads():
    script = (manifests.manifests_dir() / "base/grpo/scripts/run_nemo_rl.py").read_text()
    for name in (LAST, STEP):
        assert f'Gauge("{name.removeprefix("ray_")}"' in script


# -- a server over time ---------------------------------------------------------------------------


def test_quantiles_are_promqls():
    buckets = {0.1: 0.0, 0.5: 9.0, 1.0: 9.0, 5.0: 10.0, float("inf"): 10.0}
    assert bucket_quantile(0.5, buckets) == pytest.approx(0.1 + 0.4 * 5 / 9)
    assert bucket_quantile(0.95, buckets) == pytest.approx(1 + 4 * 0.5)
    assert bucket_quantile(0.9, {1.0: 5.0, float("inf"): 10.0}) == 1.0
    assert math.isnan(bucket_quantile(0.5, {1.0: 0.0, float("inf"): 0.0}))


def page(source, running, *, slow=0, fast=0, level=0.5):
    """A page with a source's metrics, in Prometheus' format."""
    names = SOURCES[source]
    return (
        f"{names.running} {running}\n{names.waiting} 1\n{names.level} {level}\n"
        f"# TYPE {names.latency} histogram\n"
        f'{names.latency}_bucket{{le="1.0"}} {fast}\n'
        f'{names.latency}_bucket{{le="3.0"}} {fast + slow}\n'
        f'{names.latency}_bucket{{le="+Inf"}} {fast + slow}\n'
        f"{names.latency}_sum 1\n{names.latency}_count {fast + slow}\n"
    )


def test_several_engines_are_one_server():
    first = [page("vllm", 2, level=0.2), page("vllm", 3, level=0.6)]
    then = [page("vllm", 0, slow=4, level=0.0), page("vllm", 1, fast=4, level=0.1)]
    table = serving_table([0.0, 1.0], [first, then])
    assert table["running"].tolist() == [5, 1] and table["waiting"].tolist() == [2, 2]
    assert table["level"].tolist() == pytest.approx([60, 10]), "the fullest engine, in percent"
    assert table["latency_p50_s"].isna().tolist() == [True, False]
    assert table["latency_p50_s"].iloc[1] == 1.0
    assert table["latency_p95_s"].iloc[1] == pytest.approx(1 + 2 * 3.6 / 4)


@pytest.mark.parametrize("source", SOURCES)
def test_a_gauge_that_is_missing_for_a_moment_is_as_it_was(source):
    """Ray's page has a gauge only when it was set since the page before."""
    pages = [[page(source, 3, level=2)], [""], [page(source, 1, level=2, slow=2)]]
    table = serving_table([0.0, 1.0, 2.0], pages)
    assert table.attrs["source"] == source and table["running"].tolist() == [3, 3, 1]
    assert table["level"].nunique() == 1
    if source == "ray-serve":
        assert table["latency_p50_s"].iloc[2] == pytest.approx(0.002), "milliseconds there"


def test_a_page_without_a_server_is_refused():
    with pytest.raises(NotFoundError, match="send a request first"):
        serving_table([0.0], [["up 1\n"]])
    with pytest.raises(NotFoundError, match="has no metrics of a server"):
        watch_serving(Head("{}"))


# -- dashboards and the component -----------------------------------------------------------------


class Head:
    """A RayCluster whose head answers what a test says."""

    kind, pods = "RayCluster", ("head", "worker")

    def __init__(self, stdout, stderr=""):
        self.cluster, self.result = self, ExecResult(0, stdout, stderr)

    def exec(self, pod, command, *, timeout_s):
        assert pod == "head" and command[:2] == ["python", "-c"]
        compile(command[2], "read", "exec")
        return self.result


SERVE = {"serve_llm_grafana_dashboard.json": {"title": "Serve", "panels": []}}


def test_rays_dashboards_are_a_component(emulator, cluster):
    (item,) = ray_dashboards(Head(f"a line of somebody\n{json.dumps(SERVE)}\n"))
    assert item.body["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = item.body["data"].values()
    assert json.loads(text)["title"] == "Serve"
    cluster.apply_objects("ray-dashboards", [item])
    assert emulator.names("ConfigMap") == ["ray-dashboard-serve-llm"]
    with pytest.raises(ClusterError, match="head did not tell its dashboards: no Ray"):
        ray_dashboards(Head("", "no Ray"))
    with pytest.raises(ClusterError, match="has written no dashboards yet"):
        ray_dashboards(Head("{}"))


def test_the_component_is_applied_and_removed(emulator, cluster):
    cluster.profile = "eks"
    made = cluster.apply("monitoring", release="prom")
    assert set(made.actions.values()) == {"created"} and len(made.actions) == 6
    rule = emulator.get("PrometheusRule", "ray-vllm-workshop")
    assert rule["metadata"]["labels"]["release"] == "prom"
    assert set(cluster.apply("monitoring", release="prom").actions.values()) == {"unchanged"}
    cluster.delete("monitoring")
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"):
        assert emulator.names(kind) == []
    emulator.crds = False
    said = r"Prometheus operator is not installed here; .* helm install monitoring kube-prometheus"
    with pytest.raises(OperatorError, match=said):
        cluster.apply("monitoring")
