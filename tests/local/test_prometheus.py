"""A real Prometheus on this machine, with the manifests' alerts, and pages read without it."""

import shutil
import subprocess
import sys
import time

import pytest
from local_helpers import CHECKOUT, assert_nothing_left, objects, until

from workshop_lib.cluster.local import processes
from workshop_lib.errors import NotFoundError, ServerError, WorkshopError
from workshop_lib.production.monitoring import start_prometheus, watch_serving

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
    served.clean()
    assert_nothing_left(served)


def test_without_prometheus_the_pages_are_read(served, monkeypatch):
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
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(WorkshopError, match="apt-get install prometheus"), start_prometheus(served):
        pass
