"""Preflight over HTTP: what an administrator sees, what a learner sees, and what each item says."""

import json

import pytest
from emulated import kubeconfig
from objects import claim

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kubernetes import KubernetesCluster, access
from workshop_lib.cluster.local.cluster import LocalCluster
from workshop_lib.cluster.needs import needs_of
from workshop_lib.production.checks.preflight import main
from workshop_lib.production.checks.production import check_production

READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def node(name, kind, gpus=None, efa=None, ready="True", labels=None, images=()):
    allocatable = {"cpu": "95", "memory": "1000Gi"}
    allocatable |= {} if gpus is None else {"nvidia.com/gpu": str(gpus)}
    allocatable |= {} if efa is None else {"vpc.amazonaws.com/efa": str(efa)}
    return {
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name,
                     "labels": {"node.kubernetes.io/instance-type": kind, **(labels or {})}},
        "status": {"allocatable": allocatable, "images": [{"names": list(images)}],
                   "conditions": [{"type": "Ready", "status": ready}]},
    }  # fmt: skip


def operator(image="quay.io/kuberay/operator:v1.7.0"):
    labels = {"app.kubernetes.io/name": "kuberay-operator"}
    pod = {"containers": [{"name": "operator", "image": image}]}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"spec": pod}},
            "metadata": {"name": "kuberay-operator", "labels": labels}}  # fmt: skip


def storage_class(name="fsx-sc"):
    return {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": "fsx.csi.aws.com"}  # fmt: skip


def pool(name="workshop-cpu", status=READY):
    return {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": name},
            "spec": {"template": {"metadata": {"labels": {"workshop.techpulse/pool": "cpu"}}}},
            "status": status}  # fmt: skip


def quota(used, **hard):
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "workshop"},
            "spec": {"hard": hard}, "status": {"hard": hard, "used": used}}  # fmt: skip


@pytest.fixture
def eks(config, quick):
    found = KubernetesCluster("eks", kubeconfig=config)
    yield found
    found.close()


@pytest.fixture
def good(emulator):
    """A cluster with all of it."""
    images = [f"docker.io/{image}" for image in needs_of("eks").images]
    for body in (
        node("a", "p4d.24xlarge", 8, 4, images=images), node("b", "p4d.24xlarge", 8, 4),
        operator(), storage_class(), storage_class("workshop-gp3"), pool(),
        quota({"requests.nvidia.com/gpu": "0"}, **{"requests.nvidia.com/gpu": "32", "pods": "20"}),
    ):  # fmt: skip
        emulator.put(body)
    bound = emulator.put(claim())
    emulator.set_status("PersistentVolumeClaim", bound["metadata"]["name"], phase="Bound")
    emulator.requests.clear()
    return emulator


def outcomes(checks):
    return {check.name: check.outcome for check in checks}


def test_a_cluster_with_all_of_it_passes(good, eks):
    checks = eks.prerequisites()
    assert set(outcomes(checks).values()) == {"pass"}, str(checks)
    assert len(checks) == 15
    changes = [path for method, path in good.changes() if "selfsubjectaccessreviews" not in path]
    assert changes == []  # it reads, and asks what it may


@pytest.mark.parametrize(
    ("name", "spoil", "evidence"),
    [
        ("nodes are ready", lambda e: e.put(node("b", "p4d.24xlarge", 8, 4, "False")), "not: b"),
        ("GPUs for the largest pod",
         lambda e: [e.put(node(n, "p4d.24xlarge", 2, 4)) for n in "ab"], "2 on one node"),
        ("NVIDIA device plugin", lambda e: e.put(node("b", "p4d.24xlarge", None, 4)),
         "b (p4d.24xlarge) offers 0 of 8"),
        ("EFA device plugin", lambda e: e.put(node("b", "p5en.48xlarge", 8, 8)),
         "b (p5en.48xlarge) offers 8 of 16"),
        ("KubeRay is installed", lambda e: setattr(e, "crds", False), "knows no ray.io/v1"),
        ("KubeRay 1.7 or newer", lambda e: e.put(operator("quay.io/kuberay/operator:v1.1.0")),
         "v1.1.0"),
        ("storage class fsx-sc, workshop-gp3",
         lambda e: e.store.drop(e.kind("StorageClass"), "", "fsx-sc"), "there are workshop-gp3"),
        ("volume claims are bound",
         lambda e: e.set_status("PersistentVolumeClaim", claim()["metadata"]["name"],
                                phase="Pending"), "is Pending"),
        ("quota for the largest component",
         lambda e: e.put(quota({"requests.nvidia.com/gpu": "20"},
                               **{"requests.nvidia.com/gpu": "32"})), "20 of 32 used"),
        ("the rights of a learner", lambda e: e.forbidden.add(("create", "jobs")),
         "not: create jobs"),
        ("images can be pulled",
         lambda e: e.add_pod(None, "x", phase="Pending", ready=False, state={"waiting": {
             "reason": "ImagePullBackOff", "message": "Back-off pulling image nope:1"}}),
         "x is ImagePullBackOff: Back-off pulling image nope:1"),
        ("Karpenter NodePools are ready", lambda e: e.put(pool(status={})), "not ready"),
        ("nodes labelled workshop.techpulse/pool",
         lambda e: e.store.drop(e.kind("NodePool"), "", "workshop-cpu"), "is on no node"),
    ],
)  # fmt: skip
def test_what_is_missing_fails_with_its_evidence_and_a_fix(good, eks, name, spoil, evidence):
    spoil(good)
    check = next(each for each in eks.prerequisites() if each.name == name)
    assert evidence in check.evidence and check.fix
    # A NodePool could still bring what no node has.
    expected = "cannot tell" if name.startswith("GPUs") else "fail"
    assert check.outcome == expected


def test_a_learner_is_told_whom_to_ask(good, eks):
    good.rules = next(
        item.body for item in manifests.render("eks", "namespace") if item.kind == "Role"
    )["rules"]
    good.asked.clear()
    checks = eks.prerequisites()
    seen = outcomes(checks)
    assert "fail" not in seen.values(), str(checks)
    hidden = {name for name, outcome in seen.items() if outcome == "cannot tell"}
    assert {"nodes are ready", "GPUs for the largest pod", "storage class fsx-sc, workshop-gp3",
            "KubeRay 1.7 or newer", "Karpenter NodePools are ready"} <= hidden  # fmt: skip
    for check in checks.open:
        if check.name != "images can be pulled":
            assert "ask who administers the cluster to run: kubectl" in check.fix, check
            assert "may not list" in check.evidence
    assert seen["KubeRay is installed"] == seen["the rights of a learner"] == "pass"
    assert seen["volume claims are bound"] == seen["quota for the largest component"] == "pass"
    # Nothing namespaced is asked for that the Role does not have.
    assert {plural for _, plural, _ in good.refused} == {
        "nodes", "nodepools", "storageclasses", "deployments"}  # fmt: skip


def test_no_operator_no_karpenter_and_no_rights(emulator, eks):
    emulator.crds = emulator.karpenter = False
    emulator.rules = []
    checks = {check.name: check for check in eks.prerequisites()}
    assert checks["KubeRay is installed"].outcome == "fail"
    assert "helm install kuberay-operator" in checks["KubeRay is installed"].fix
    assert checks["Karpenter NodePools are ready"].outcome == "not applicable"
    assert checks["the rights of a learner"].outcome == "fail"
    assert "0 of " in checks["the rights of a learner"].evidence
    operator = checks["the Prometheus operator is installed"]
    assert operator.outcome == "not applicable" and "kube-prometheus-stack" in operator.evidence


def test_a_profile_without_gpus_does_not_ask_for_them(emulator, cluster):
    emulator.put(node("kind", "", images=()))
    seen = outcomes(cluster.prerequisites())
    for name in ("GPUs for the largest pod", "NVIDIA device plugin", "EFA device plugin"):
        assert seen[name] == "not applicable"
    assert seen["nodes are ready"] == "pass"


def test_the_laptop_says_why_it_is_not_asked():
    checks = LocalCluster(state="t-preflight").prerequisites()
    assert {"pass", "not applicable"} >= set(outcomes(checks).values())
    assert all(check.evidence for check in checks)


def test_the_command(good, config, monkeypatch, capsys):
    monkeypatch.setenv("KUBECONFIG", str(config))
    main(["--profile", "eks", "--json"])
    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    names = [each["name"] for each in found]
    assert "Python 3.11" in names and "KubeRay 1.7 or newer" in names
    good.crds = False
    assert main(["--profile", "eks"]) == 1
    assert "✗ KubeRay is installed" in capsys.readouterr().out


def test_a_cluster_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(kubeconfig("http://127.0.0.1:9", token="x")))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.setattr(access, "RETRY", 0)
    assert main(["--profile", "eks"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_checklist_reads_a_live_cluster(good, eks):
    for kind, name in (("PersistentVolumeClaim", "shared"), ("Deployment", "kuberay-operator")):
        good.store.drop(good.kind(kind), "workshop", name)  # not the workshop's
    for component in ("vllm", "ray-cluster"):
        eks.apply(component)
    checks = {check.name.partition(": ")[2]: check for check in check_production(eks)}
    share = checks["gpu_memory_utilization is set for inference"]
    assert share.outcome == "pass" and "Deployment/vllm: GPU_MEMORY_UTILIZATION" in share.evidence
    assert checks["workers find the head by a name of this Job"].outcome == "pass"
    assert checks["GPU nodes offer their EFA devices"].outcome == "pass"
    assert "Node/a (p4d.24xlarge)" in checks["GPU nodes offer their EFA devices"].evidence
    assert [name for name, check in checks.items() if check.outcome == "fail"] == []


def test_the_checklist_reads_a_laptop():
    checks = check_production(LocalCluster(state="t-production"))
    assert len(checks) == 21 and "fail" not in outcomes(checks).values()
