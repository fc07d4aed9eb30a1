"""Ray Serve's configuration: what it leaves to the engine, and the recording that it rests on."""

import json
from statistics import mean

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.data import data_path

HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED",
}  # fmt: skip


@pytest.mark.parametrize("profile", ["eks", "kind", "local"])
def test_requests_wait_in_the_engine_and_every_node_serves_alike(profile):
    (service,) = (o for o in manifests.render(profile, "ray-service") if o.kind == "RayService")
    application = yaml.safe_load(service.body["spec"]["serveConfigV2"])["applications"][0]
    (llm,) = application["args"]["llm_configs"]  # direct streaming serves one model
    assert "max_ongoing_requests" not in llm["deployment_config"]
    cluster = service.body["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
        (container,) = group["template"]["spec"]["containers"]
        said = {entry["name"] for entry in container["env"] if entry.get("value") == "1"}
        # HAProxy listens on all addresses: good in a pod, not on a laptop.
        assert said & HAPROXY == (set() if profile == "local" else HAPROXY)


def test_the_recorded_configuration_is_as_fast_as_vllm_alone():
    name = "recorded/h200/serve-paths-two-gpus-vllm-0.29.0.jsonl"
    rows = [json.loads(line) for line in data_path(name).read_text().splitlines()]

    def seen(field, *wanted, tp=1):
        keys = ("path", "conc", "stream", "tp")
        return mean(row[field] for row in rows if [row[k] for k in keys] == [*wanted, tp])

    assert not any(row["errors"] for row in rows)
    for conc, share, times in [(1, 0.95, 3), (16, 0.95, 3), (64, 0.95, 12), (256, 0.9, 15)]:
        alone, ours = (
            [seen("req_s", path, conc, stream) for stream in (False, True)]
            for path in ("vLLM alone", "ray.serve.llm")
        )
        assert all(o >= share * a for o, a in zip(ours, alone, strict=True)), conc
        assert ours[0] >= times * seen("req_s", "hand-written deployment", conc, False)
        first = [seen("ttft_p50_ms", p, conc, True) for p in ("ray.serve.llm", "vLLM alone")]
        assert first[0] <= 1.2 * first[1]
    # A model that fits one GPU: two replicas beat tensor parallelism over two GPUs under load.
    replicas, tp2 = "ray.serve.llm, two replicas", "ray.serve.llm"
    assert seen("req_s", replicas, 256, False) > 1.3 * seen("req_s", tp2, 256, False, tp=2)
    assert seen("e2e_p50_ms", tp2, 1, False, tp=2) < 0.8 * seen("e2e_p50_ms", replicas, 1, False)
