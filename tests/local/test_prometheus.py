"""A real Prometheus on this machine, reading what the manifests' monitors find."""

import shutil
import subprocess
import sys
import time

import pytest
from local_helpers import CHECKOUT, assert_nothing_left, objects, until

from workshop_lib.cluster.local import processes
from workshop_lib.errors import NotFoundError, ServerError, WorkshopError
from workshop_lib.production.monitoring import (
    PrometheusClient,
    serving_history,
    start_prometheus,
    watch_serving,
)

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
def test_prometheus_reads_what_the_monitors_say(served):
    with start_prometheus(served, scrape_every_s=0.5) as prometheus:
        prometheus.wait_scraped(["vllm"])
        (target,) = prometheus.targets().to_dict("records")
        with served.forward("vllm", 8000) as url:
            assert target["url"] == f"{url}/metrics"
        up = until(lambda: prometheus.query("up").to_dict("records"))
        assert up[0]["namespace"] == "default" and up[0]["pod"] == served.get("vllm").pods[0]
        running = until(
            lambda: prometheus.query("workshop:requests_running").to_dict("records")
        )  # a record of the manifests' rules
        assert (running[0]["value"], running[0]["model_name"]) == (4, "m")

        until(lambda: len(prometheus.query_range("up", last_s=60, step_s=0.5)) > 10)

        def history():
            found = serving_history(prometheus, last_s=30, step_s=0.5, window_s=10)
            return [found] if found["latency_p95_s"].notna().sum() > 3 else []

        last = until(history)[0].dropna().iloc[-1]
        assert last[["running", "waiting", "level"]].tolist() == pytest.approx([4, 2, 97])
        # Of ten requests nine are between 0.1 and 0.5 s, one between 2.5 and 5 s.
        assert 0.1 < last["latency_p50_s"] < 0.5 and 2.5 < last["latency_p95_s"] < 5
        # The cache is full and requests wait: the alert starts its five minutes.
        found = until(lambda: prometheus.alerts().to_dict("records"), timeout_s=300)
        assert ("KvCacheFull", "pending") in {(a["alert"], a["state"]) for a in found}

        with pytest.raises(ServerError, match="parse error"):
            prometheus.query("sum(")
        with pytest.raises(NotFoundError, match=r"no ray_vllm_num_requests_running of the last"):
            serving_history(prometheus, source="ray-serve-llm", last_s=10)
        with pytest.raises(NotFoundError, match=r"has not read llm-head-svc .* it reads vllm"):
            prometheus.wait_scraped(["llm-head-svc"], timeout_s=0.1)
        served.delete("vllm")
        until(lambda: prometheus.targets().empty)
        folder, url = prometheus.folder, prometheus.url
        assert url.startswith("http://127.0.0.1:")
    assert not folder.exists()
    with pytest.raises(ServerError, match="does not answer"):
        PrometheusClient(url).query("up")


KERNEL = """
import sys, time
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.production.monitoring import start_prometheus
prometheus = start_prometheus(LocalCluster(state=sys.argv[1]))
print(prometheus._process.pid, flush=True)
time.sleep(600)
"""


@needs_prometheus
def test_it_ends_with_the_kernel_however_that_ends(new_cluster):
    cluster = new_cluster()
    kernel = subprocess.Popen(
        [sys.executable, "-c", KERNEL, cluster.paths.state], stdout=subprocess.PIPE, text=True,
        cwd=CHECKOUT,
    )  # fmt: skip
    pid = int(kernel.stdout.readline())
    ticks = processes.start_ticks(pid)
    kernel.kill()
    kernel.wait()
    kernel.stdout.close()
    until(lambda: not processes.is_running(pid, ticks))
    cluster.clean()
    assert_nothing_left(cluster)


def test_without_prometheus_the_pages_are_read(served):
    for seconds in (2, 20, 120):  # until there are a few readings: when is the machine's affair
        seen = watch_serving(served.get("vllm"), seconds=seconds, every_s=0.2, window_s=seconds)
        if len(seen) >= 3:
            break
    assert seen.attrs["source"] == "vllm" and len(seen) >= 3
    last = seen.iloc[-1]
    assert last[["running", "waiting", "level"]].tolist() == pytest.approx([4, 2, 97])
    assert 0.1 < last["latency_p50_s"] < 0.5 and 2.5 < last["latency_p95_s"] < 5
    assert seen["time_s"].is_monotonic_increasing and seen["latency_p50_s"].isna().iloc[0]

    def load():
        time.sleep(1)
        raise WorkshopError("no such model")

    with pytest.raises(WorkshopError, match="no such model"):
        watch_serving(served.get("vllm"), seconds=0.1, every_s=0.1, during=load)


def test_where_prometheus_is_not_installed_it_says_how(new_cluster, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(WorkshopError, match="apt-get install prometheus"):
        start_prometheus(new_cluster())
