"""Alerts and dashboards: promtool reads them, every alert fires when it should and only then."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.production.monitoring import SOURCES, rule_groups

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    not PROMTOOL, reason="promtool is not installed; apt-get install prometheus brings it"
)
ALERTS = {
    rule["alert"]: rule for group in rule_groups()["groups"] for rule in group["rules"]
    if "alert" in rule
}  # fmt: skip

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
HEAD = 'job="recommender-head-svc", namespace="ada", pod="head"'

CASES = [
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
    ("RayNodeDown", "20m", [f"up{{{HEAD}}} 1x5 0x15"], True),
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
    ("GpuXidError", "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 79x5"], True),
    ("GpuXidError", "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 31x5"], False),
    ("GpuXidError", "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 0x5"], False),
    ("GpuProgramError", "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 31x5"], True),
    ("GpuProgramError", "5m", [f"DCGM_FI_DEV_XID_ERRORS{{{GPU}}} 79x5"], False),
    ("GpuMemoryError", "30m",
     [f"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{{{GPU}}} 0x10 1x20"], True),
    ("GpuMemoryError", "30m", [f"DCGM_FI_DEV_ROW_REMAP_FAILURE{{{GPU}}} 1x30"], True),
    ("GpuMemoryError", "30m",
     [f"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS{{{GPU}}} 4x30",
      f"DCGM_FI_DEV_ROW_REMAP_FAILURE{{{GPU}}} 0x30"], False),
]  # fmt: skip


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(yaml.safe_dump(rule_groups()))
    return file


def promtool(*arguments):
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=900)


@needs_promtool
def test_prometheus_reads_the_rules(rules, tmp_path):
    done = promtool("check", "rules", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text(rules.read_text().replace("histogram", "").replace("rate(", "rat("))
    assert promtool("check", "rules", str(broken)).returncode != 0


def test_every_alert_is_tried_both_ways():
    for fires in (True, False):
        assert {name for name, *_, wanted in CASES if wanted is fires} == set(ALERTS)


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then(rules):
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
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_what_it_is_and_what_to_do(alert):
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


# -- dashboards -----------------------------------------------------------------------------------


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
    assert len(rules) > 25
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    done = promtool("check", "rules", "--lint=none", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_are_what_grafana_imports():
    found = boards()
    assert len({board["uid"] for board in found.values()}) == len(found) == 2
    for board in found.values():
        known = {each["name"] for each in board["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) - {"__all"}
        assert used <= known and "datasource" in known
        places = [tuple(panel["gridPos"][k] for k in "xy") for panel in board["panels"]]
        assert len(set(places)) == len(places) == len({p["id"] for p in board["panels"]})
        for panel in board["panels"]:
            assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"]


# -- names ----------------------------------------------------------------------------------------

SEEN = json.loads((Path(__file__).parents[1] / "data/monitoring/names.json").read_text())
TARGET = {"namespace", "pod", "job", "ray_io_cluster", "le"}
"""Labels that the operator gives every series (`ray_io_cluster`: the monitors), and a bucket's."""

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
"""What neither Ray nor vLLM exports: by its exporter's own list."""


def labels_of(name):
    """A metric's labels as they were seen on a real page; None when nobody is known to have it."""
    if name in ELSEWHERE or name.startswith("workshop:"):
        return TARGET | {"model_name"}
    found = SEEN["vllm"].get(name) or SEEN["ray"].get(name)
    if found is None and name.startswith("ray_vllm_"):
        # Ray makes a counter when it first counts; vLLM has it from the start.
        found = SEEN["vllm"].get(name.replace("ray_vllm_", "vllm:"))
    if found is None and name in SEEN["rays_own_dashboards"]:
        return None if name.startswith("ray_vllm_") else {"application", *TARGET}
    return TARGET | set(found["labels"]) if found else None


def metric_names(expression):
    plain = re.sub(r"\b(by|on|ignoring|group_left)\s*\([^)]*\)", " ", expression)
    plain = re.sub(r'"[^"]*"', '""', plain) + " "
    names = set(re.findall(r"(?<![\w:])((?:ray_|vllm:|workshop:|kube_|DCGM_)[\w:]+)", plain))
    for text in re.findall(r'__name__=~"([^"]+)"', expression):
        names |= set(text.split("|"))
    return names


EXPRESSIONS = [rule["expr"] for group in rule_groups()["groups"] for rule in group["rules"]]


def test_every_metric_is_one_that_was_seen():
    asked = EXPRESSIONS + [text for board in boards().values() for text in expressions(board)]
    records = {r["record"] for g in rule_groups()["groups"] for r in g["rules"] if "record" in r}
    names = set().union(*map(metric_names, asked))
    assert len(names) > 45
    assert [name for name in names if labels_of(name) is None] == []
    assert {name for name in names if name.startswith("workshop:")} <= records
    for source in SOURCES.values():
        for name in (source.running, source.waiting, source.level, f"{source.latency}_bucket"):
            assert name in SEEN["vllm"] or name in SEEN["ray"], name


def test_every_label_is_one_that_its_metric_has():
    for board in boards().values():
        for text in expressions(board):
            known = set().union(*(labels_of(name) for name in metric_names(text)))
            grouped = re.findall(r"by \(([^)]*)\)", text)
            used = {part.strip() for each in grouped for part in each.split(",")}
            used |= set(re.findall(r"(\w+)=~", text)) - {"__name__"}
            missing = used - known - {"ReplicaId", "GpuIndex"}
            assert not missing, (text, missing)


def test_latency_alerts_ask_for_bounds_that_the_histograms_have():
    """A bound that is no bucket's is a series that is not there: the alert would never fire."""
    found = 0
    for alert in ("TimeToFirstTokenSlow", "TokensSlow"):
        record = re.search(r"workshop:\w+:rate5m", ALERTS[alert]["expr"])[0]
        (rule,) = (r for g in rule_groups()["groups"] for r in g["rules"]
                   if r.get("record") == record)  # fmt: skip
        for bound in re.findall(r'le="([^"]+)"', ALERTS[alert]["expr"]):
            for name in metric_names(rule["expr"]):
                place = "vllm" if name.startswith("vllm:") else "ray"
                assert bound in SEEN[place][name]["le"]
                found += 1
    assert found == 8
