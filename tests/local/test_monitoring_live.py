"""The real vLLM and the real Ray Serve under a real Prometheus: names, targets, dashboards."""

import json
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from local_helpers import until

from workshop_lib.production.monitoring import (
    SOURCES,
    ray_dashboards,
    start_prometheus,
    watch_serving,
)
from workshop_lib.serving import ModelServer

READY_S = 900
SEEN = json.loads((Path(__file__).parents[1] / "data/monitoring/names.json").read_text())

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        not shutil.which("prometheus"), reason="Prometheus is not installed; .ci/run installs it"
    ),
]


def ask(cluster, service, times=4, tokens=16):
    with cluster.forward(service, 8000) as url, ThreadPoolExecutor(times) as pool:
        server = ModelServer(url, timeout_s=READY_S)
        done = pool.map(lambda n: server.chat(f"Count to {n}.", max_tokens=tokens), range(times))
        assert all(answer.completion_tokens for answer in done)


def recorded(prometheus, place, prefix):
    """The names that were seen when they were recorded, and are not in this Prometheus."""
    there = set(prometheus.query('count by (__name__) ({job!=""})')["__name__"])
    return {name for name in SEEN[place] if name.startswith(prefix)} - there


def test_vllm(new_cluster):
    cluster = new_cluster()
    cluster.apply("model").wait_complete(timeout_s=READY_S)
    vllm = cluster.apply("vllm").wait_ready(timeout_s=READY_S)
    with start_prometheus(cluster, scrape_every_s=1) as prometheus:
        # Long answers: on a busy machine a page is late, and a load that is over is not seen.
        long = lambda: ask(cluster, "vllm", tokens=128)  # noqa: E731
        seen = watch_serving(vllm, seconds=3, every_s=0.5, during=long)
        assert seen.attrs["source"] == "vllm" and seen["running"].max() >= 1
        assert seen["level"].max() > 0 and seen["latency_p95_s"].notna().any()
        until(lambda: not recorded(prometheus, "vllm", "vllm:"), every_s=1.0)
        record = until(lambda: prometheus.query("workshop:requests_running").to_dict("records"))
        assert record[0]["model_name"] and record[0]["namespace"] == "default"


def test_ray_serve_llm(new_cluster):
    cluster = new_cluster()
    cluster.apply("model").wait_complete(timeout_s=READY_S)
    llm = cluster.apply("ray-service").wait_ready(timeout_s=READY_S)
    with start_prometheus(cluster, scrape_every_s=1) as prometheus:
        ask(cluster, "llm-serve-svc")
        source = SOURCES["ray-serve-llm"]

        def counted():
            found = prometheus.query(f"sum({source.latency}_count)")
            return len(found) and found["value"].iloc[0] >= 4

        until(counted, timeout_s=300, every_s=1.0)
        # Some counters are there only when they have counted: those of the rules and dashboards
        # that are needed from the start are asked for.
        until(lambda: not recorded(prometheus, "ray", "ray_vllm_time_to_first"), every_s=1.0)
        head = prometheus.query(source.running).iloc[0]
        assert head["ray_io_cluster"] == "llm"
        assert watch_serving(llm, seconds=1).attrs["source"] == "ray-serve-llm"
    # Ray's token guards its dashboard; its page of metrics is open to who reaches the port.
    with cluster.forward(llm.pods[0], 8080) as url:
        assert urllib.request.urlopen(f"{url}/metrics").status == 200
    names = {item.name for item in ray_dashboards(llm)}
    assert {"ray-dashboard-default", "ray-dashboard-serve", "ray-dashboard-serve-llm"} <= names
