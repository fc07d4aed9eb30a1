"""A real Prometheus on this machine: the manifests' alerts, and the names that servers have."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from local_helpers import CHECKOUT, objects, until

from workshop_lib.cluster.local import processes
from workshop_lib.errors import NotFoundError, ServerError, WorkshopError
from workshop_lib.production.monitoring import (
    SOURCES,
    ray_dashboards,
    start_prometheus,
    watch_serving,
)
from workshop_lib.serving import ModelServer

READY_S = 900
SEEN = json.loads((Path(__file__).parents[1] / "data/monitoring/names.json").read_text())
needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"),
    reason="Prometheus is not installed; apt-get install prometheus (.ci/run does)",
)


@pytest.fixture
def served(new_cluster):
    """A server with vLLM's metrics, found as vLLM is."""
    cluster = new_cluster()
    cluster.apply_objects("vllm", objects("metrics")).wait_ready(timeout_s=300)
    return cluster


@needs_prometheus
def test_prometheus_reads_the_pods_and_evaluates_the_alerts(served):
    with start_prometheus(served, scrape_every_s=0.5) as prometheus:
        up = until(lambda: prometheus.query("up").to_dict("records"))
        assert up[0]["job"] == "vllm" and up[0]["pod"] == served.get("vllm").pods[0]
        running = until(
            lambda: prometheus.query("workshop:requests_running").to_dict("records")
        )  # a record of the manifests' rules
        assert (running[0]["value"], running[0]["model_name"]) == (4, "m")
        # The cache is full and requests wait: the alert starts its five minutes.
        pending = 'ALERTS{alertname="KvCacheFull", alertstate="pending"}'
        until(lambda: len(prometheus.query(pending)), timeout_s=300)
        with pytest.raises(ServerError, match="parse error"):
            prometheus.query("sum(")
        assert prometheus.url.startswith("http://127.0.0.1:")
    with pytest.raises(ServerError, match="does not answer"):
        prometheus.query("up")
    served.delete("vllm")
    with (
        pytest.raises(NotFoundError, match="no pod has a page of metrics"),
        start_prometheus(served),
    ):
        pass


KERNEL = """
import sys, time
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.production.monitoring import start_prometheus
with start_prometheus(LocalCluster(state=sys.argv[1])) as prometheus:
    print(prometheus.url.rpartition(":")[2], flush=True)
    time.sleep(600)
"""


@needs_prometheus
def test_it_ends_with_the_kernel_however_that_ends(served):
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, served.paths.state], stdout=subprocess.PIPE, text=True,
        cwd=CHECKOUT,
    )  # fmt: skip
    port = kernel.stdout.readline().strip()
    pid = int(
        subprocess.check_output(["pgrep", "-f", f"listen-address=127.0.0.1:{port}"]).split()[0]
    )
    ticks = processes.start_ticks(pid)
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    until(lambda: not processes.is_running(pid, ticks))


def test_without_prometheus_the_pages_are_read(served, monkeypatch):
    seen = watch_serving(served.get("vllm"), seconds=3)
    assert seen.attrs["source"] == "vllm" and len(seen) >= 2
    last = seen.iloc[-1]
    assert last[["running", "waiting", "level"]].tolist() == pytest.approx([4, 2, 97])
    assert 0.1 < last["latency_p50_s"] < 0.5 and 2.5 < last["latency_p95_s"] < 5
    assert seen["time_s"].is_monotonic_increasing and seen["latency_p50_s"].isna().iloc[0]

    def load():
        raise WorkshopError("no such model")

    with pytest.raises(WorkshopError, match="no such model"):
        watch_serving(served.get("vllm"), seconds=0.1, during=load)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(WorkshopError, match="apt-get install prometheus"), start_prometheus(served):
        pass


def ask(cluster, service, times=4, tokens=16):
    with cluster.forward(service, 8000) as url, ThreadPoolExecutor(times) as pool:
        server = ModelServer(url, timeout_s=READY_S)
        done = pool.map(lambda n: server.chat(f"Count to {n}.", max_tokens=tokens), range(times))
        assert all(answer.completion_tokens for answer in done)


def recorded(prometheus, place, prefix):
    """The names that were seen when they were recorded, and are not in this Prometheus."""
    there = set(prometheus.query('count by (__name__) ({job!=""})')["__name__"])
    return {name for name in SEEN[place] if name.startswith(prefix)} - there


@pytest.fixture
def with_model(new_cluster):
    cluster = new_cluster()
    cluster.apply("model").wait_complete(timeout_s=READY_S)
    return cluster


@needs_prometheus
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_vllm(with_model):
    vllm = with_model.apply("vllm").wait_ready(timeout_s=READY_S)
    with start_prometheus(with_model, scrape_every_s=1) as prometheus:
        # Long answers: on a busy machine a page is late, and a load that is over is not seen.
        seen = watch_serving(vllm, seconds=3, during=lambda: ask(with_model, "vllm", tokens=256))
        assert seen.attrs["source"] == "vllm" and seen["running"].max() >= 1
        assert seen["level"].max() > 0 and seen["latency_p95_s"].notna().any()
        until(lambda: not recorded(prometheus, "vllm", "vllm:"), every_s=1.0)
        record = until(lambda: prometheus.query("workshop:requests_running").to_dict("records"))
        assert record[0]["model_name"] and record[0]["namespace"] == "default"


@needs_prometheus
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_ray_serve_llm(with_model):
    llm = with_model.apply("ray-service").wait_ready(timeout_s=READY_S)
    with start_prometheus(with_model, scrape_every_s=1) as prometheus:
        ask(with_model, "llm-serve-svc")
        source = SOURCES["ray-serve-llm"]
        enough = f"sum({source.latency}_count) >= 4"
        until(lambda: len(prometheus.query(enough)), timeout_s=300, every_s=1.0)
        # Some counters are there only when they have counted: those of the rules and dashboards
        # that are needed from the start are asked for.
        until(lambda: not recorded(prometheus, "ray", "ray_vllm_time_to_first"), every_s=1.0)
        assert prometheus.query(source.running).iloc[0]["ray_io_cluster"] == "llm"
        assert watch_serving(llm, seconds=1).attrs["source"] == "ray-serve-llm"
    names = {item.name for item in ray_dashboards(llm)}
    assert {"ray-dashboard-default", "ray-dashboard-serve", "ray-dashboard-serve-llm"} <= names
