"""The production checklist on rendered manifests, on snapshots, and on what breaks each item."""

import copy
import functools

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.errors import ManifestError
from workshop_lib.production.checks.production import CHECKLIST, check_production, production_table

COMPONENTS = ("vllm", "ray-service", "grpo", "ray-cluster-efa", "storage")


@functools.cache
def rendered(profile="eks", names=COMPONENTS):
    return [each.body for name in names for each in manifests.render(profile, name)]


def eks():
    return copy.deepcopy(rendered())


def one(bodies, kind, name):
    return next(b for b in bodies if b["kind"] == kind and b["metadata"]["name"] == name)


def verdict(target, item):
    """The check of one item, found by the beginning of its name."""
    (found,) = [c for c in check_production(target) if c.name.partition(": ")[2].startswith(item)]
    return found


def container(body, group=None):
    spec = body["spec"]
    if group is not None:
        spec = spec["rayClusterConfig"]["workerGroupSpecs"][group]
    return spec["template"]["spec"]["containers"][0]


def set_env(body, name, value):
    env = container(body)["env"]
    env[:] = [each for each in env if each["name"] != name]
    if value is not None:
        env.append({"name": name, "value": value})


def node(name, kind, efa=0, address="10.0.1.7"):
    return {"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"node.kubernetes.io/instance-type": kind}},
            "status": {"allocatable": {"vpc.amazonaws.com/efa": str(efa)},
                       "addresses": [{"type": "InternalIP", "address": address}]}}  # fmt: skip


# -- the manifests as they are --------------------------------------------------------------------


def test_what_we_apply_on_eks_breaks_no_rule():
    failed = [c for c in check_production(rendered()) if c.outcome == "fail"]
    assert failed == [], failed


def test_on_a_laptop_hardware_is_not_applicable_and_says_why():
    names = ("vllm", "ray-service", "grpo")
    checks = check_production(rendered("local", names))
    seen = {c.name.partition(": ")[2].split(",")[0]: c for c in checks}
    for item in (
        "GPU nodes offer their EFA devices",
        "the security group has rules for itself",
        "/dev/shm is in memory",
        "gpu_memory_utilization is set for inference",
    ):
        assert seen[item].outcome == "not applicable" and seen[item].evidence.startswith("no ")
    assert not [c for c in checks if c.outcome == "fail"]


def test_every_item_of_the_first_checklist_is_there():
    """Six of infrastructure, five of serving, five of training, four of monitoring."""
    sections = [item.section for item in CHECKLIST]
    assert {s: sections.count(s) for s in sections} == {
        "infrastructure": 6, "serving": 5, "training": 5, "monitoring": 4}  # fmt: skip
    table = production_table(rendered())
    assert len(table) == 20 and (table.corrected != "").sum() >= 8
    assert all(item.fix for item in CHECKLIST)


def test_evidence_quotes_object_and_value():
    said = verdict(rendered(), "gpu_memory_utilization is set").evidence
    assert "Deployment/vllm: GPU_MEMORY_UTILIZATION = 0.9" in said
    assert "RayService/llm: gpu_memory_utilization = 0.85" in said


def test_a_profile_is_rendered_and_an_unknown_one_refused():
    with pytest.raises(ManifestError, match="no profile 'gke'; there are: eks, kind, local"):
        check_production("gke")


# -- what breaks an item --------------------------------------------------------------------------


def serve(bodies, **engine):
    body = one(bodies, "RayService", "llm")
    config = yaml.safe_load(body["spec"]["serveConfigV2"])
    config["applications"][0]["args"]["llm_configs"][0]["engine_kwargs"].update(engine)
    body["spec"]["serveConfigV2"] = yaml.safe_dump(config)


def without_probe(bodies):
    del container(one(bodies, "Deployment", "vllm"))["startupProbe"]


def short_start(bodies):
    container(one(bodies, "Deployment", "vllm"))["startupProbe"]["failureThreshold"] = 6


def no_models(bodies):
    mounts = container(one(bodies, "Deployment", "vllm"))["volumeMounts"]
    mounts[:] = [each for each in mounts if each["mountPath"] != "/models"]


def shm_on_disk(bodies):
    spec = one(bodies, "Deployment", "vllm")["spec"]["template"]["spec"]
    next(v for v in spec["volumes"] if v["name"] == "shm")["emptyDir"] = {}


def host_network(bodies):
    one(bodies, "Deployment", "vllm")["spec"]["template"]["spec"]["hostNetwork"] = True


def no_headless(bodies):
    one(bodies, "Service", "grpo")["spec"]["publishNotReadyAddresses"] = False


def recipe(bodies, text):
    bodies.append({"kind": "ConfigMap", "metadata": {"name": "mine"}, "data": {"r.yaml": text}})


@pytest.mark.parametrize(
    ("spoil", "item", "evidence"),
    [
        (host_network, "hostNetwork", "Deployment/vllm: hostNetwork true without"),
        (shm_on_disk, "/dev/shm", "Deployment/vllm: /dev/shm none, 1 GPUs"),
        (lambda b: one(b, "PersistentVolumeClaim", "shared")["spec"].update(
            accessModes=["ReadWriteOnce"]), "the shared volume", "['ReadWriteOnce']"),
        (lambda b: serve(b, gpu_memory_utilization=0.5), "gpu_memory_utilization is set", "= 0.5"),
        (without_probe, "startup, readiness", "no startupProbe"),
        (short_start, "startup, readiness", "60 s to start"),
        (no_models, "weights come from", "models from no claim"),
        (lambda b: serve(b, tensor_parallel_size=16), "autoscaling has", "4 replicas of 16 GPUs"),
        (lambda b: serve(b, distributed_executor_backend="mp"), "the executor",
         "distributed_executor_backend mp"),
        (lambda b: set_env(one(b, "Job", "grpo"), "NCCL_TIMEOUT", "7200"), "NCCL's timeout",
         "NCCL_TIMEOUT=7200"),
        (no_headless, "workers find the head", "grpo-0.grpo:6379, no headless Service"),
        (lambda b: set_env(one(b, "Job", "grpo"), "OUTPUT_DIR", "/tmp/ray/out"), "checkpoints",
         "/tmp/ray/out on the pod itself"),
        (lambda b: recipe(b, "grpo: {}\npolicy: {generation: {vllm_cfg: "
                             "{gpu_memory_utilization: 0.9}}}"), "vLLM leaves room", "= 0.9"),
        (lambda b: set_env(one(b, "Job", "grpo"), "RAY_AUTH_MODE", None), "the Ray dashboard",
         "RAY_AUTH_MODE=None"),
        (lambda b: recipe(b, "grpo: {}\nlogger: {wandb_enabled: false}"), "training metrics",
         "logger writes nothing"),
        (lambda b: b.append({"kind": "PrometheusRule", "metadata": {"name": "r"}, "spec": {
            "groups": [{"rules": [{"alert": "PodRestarts", "expr": "x"}]}]}}), "alerts",
         "without OOM, GPU errors"),
        (lambda b: b.append(node("a", "p5en.48xlarge", efa=8)), "GPU nodes offer",
         "Node/a (p5en.48xlarge): vpc.amazonaws.com/efa 8 of 16"),
    ],
)  # fmt: skip
def test_what_breaks_an_item_is_found_and_quoted(spoil, item, evidence):
    bodies = eks()
    spoil(bodies)
    check = verdict(bodies, item)
    assert check.outcome == "fail" and evidence in check.evidence and check.fix, check


# -- a live cluster -------------------------------------------------------------------------------


def test_a_snapshot_is_read_like_manifests():
    bodies = eks()
    for body in bodies:
        if body["kind"] == "PersistentVolumeClaim":
            body["status"] = {"phase": "Bound"}
    rules = [{"alert": name, "expr": "x"} for name in ("PodRestarts", "OomKilled", "GpuXid")]
    alerts = {"kind": "PrometheusRule", "metadata": {"name": "workshop"},
              "spec": {"groups": [{"rules": rules}]}}  # fmt: skip
    snapshot = {
        "deployments": [b for b in bodies if b["kind"] == "Deployment"],
        "jobs": [b for b in bodies if b["kind"] == "Job"],
        "services": [b for b in bodies if b["kind"] == "Service"],
        "rayservices": [b for b in bodies if b["kind"] == "RayService"],
        "configmaps": [b for b in bodies if b["kind"] == "ConfigMap"],
        "persistentvolumeclaims": [b for b in bodies if b["kind"] == "PersistentVolumeClaim"],
        "nodes": [node("a", "p5.48xlarge", efa=32)], "prometheusrules": [alerts],
        "daemonsets": [{"kind": "DaemonSet", "metadata": {"name": "nvidia-dcgm-exporter"}}],
        "logs": {"vllm-0": ["..."]}, "events": [{"reason": "Pulled"}],
    }  # fmt: skip

    class Cluster:
        def snapshot(self, component=None):
            return snapshot

    for target in (snapshot, Cluster()):
        outcomes = {c.name.partition(": ")[2]: c.outcome for c in check_production(target)}
        assert outcomes["the shared volume is bound, and for many nodes"] == "pass"
        assert outcomes["GPU nodes offer their EFA devices"] == "pass"
        assert outcomes["GPU metrics are exported"] == "pass"
        assert outcomes["alerts on restarts, memory kills and GPU errors"] == "pass"
        assert outcomes["the security group has rules for itself, in and out"] == "cannot tell"


def test_a_rayservices_own_cluster_is_not_judged_twice():
    bodies = eks()
    service = one(bodies, "RayService", "llm")
    metadata = {"name": "llm-x", "ownerReferences": [{"kind": "RayService"}]}
    own = {"kind": "RayCluster", "metadata": metadata, "spec": service["spec"]["rayClusterConfig"]}
    bodies.append(own)
    assert "llm-x" not in verdict(bodies, "/dev/shm").evidence


def test_nothing_at_all_is_not_a_pass():
    outcomes = {c.outcome for c in check_production([])}
    assert "fail" not in outcomes and verdict([], "hostNetwork").outcome == "pass"
    assert verdict({"pods": []}, "the shared volume").outcome == "cannot tell"


def test_addresses_that_look_secondary_are_reported_not_judged():
    bodies = [*eks(), node("a", "p5.48xlarge", 32, address="100.64.3.9")]
    check = verdict(bodies, "nodes are in the VPC")
    assert check.outcome == "cannot tell" and "Node/a 100.64.3.9 look secondary" in check.evidence


@pytest.mark.parametrize("profile", ["eks", "local"])  # kind's one node has one-node volumes
def test_the_workshops_own_manifests_fail_nothing(profile):
    outcomes = production_table(profile).set_index("item")["outcome"]
    assert [name for name, outcome in outcomes.items() if outcome == "fail"] == []
