"""EFA: what it adds to a Job, only where it is asked for, and the numbers of each instance type."""

import copy

import pytest
import yaml
from manifest_checks import pod_specs

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.data import data_path
from workshop_lib.errors import ManifestError

COMPONENTS = ("ray-cluster", "grpo")
CATALOGUE = yaml.safe_load(data_path("instances.yaml").read_text())
INSTANCES = {name: entry for name, entry in CATALOGUE.items() if "nccl" in entry}
DEFAULT = "p5.48xlarge"


def job_of(component, parameters=None):
    found = manifests.render("eks", component, parameters)
    return next(item.body for item in found if item.kind == "Job")


def pod_of(component, parameters=None):
    return next(pod_specs(job_of(component, parameters)))


def env_of(pod):
    return {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}


@pytest.mark.parametrize("component", COMPONENTS)
def test_it_adds_what_it_says_and_nothing_else(component):
    plain, efa = job_of(component), job_of(f"{component}-efa")
    without = copy.deepcopy(efa)
    (before,), (pod,) = pod_specs(plain), pod_specs(without)
    container, old = pod["containers"][0], before["containers"][0]
    assert pod.pop("hostNetwork") is True
    assert pod.pop("dnsPolicy") == "ClusterFirstWithHostNet"
    assert container["securityContext"]["capabilities"].pop("add") == ["IPC_LOCK"]
    added = {"NCCL_DEBUG": "INFO", **INSTANCES[DEFAULT]["nccl"]}
    assert not {"FI_PROVIDER", "FI_EFA_USE_DEVICE_RDMA", "RDMAV_FORK_SAFE"} & set(added)
    env = env_of(pod)
    assert {name: env[name] for name in added} == added and not set(added) & set(env_of(before))
    assert {**env_of(before), **added, "NUM_GPUS": "8"} == env
    assert len(container.pop("env")) == len(old.pop("env")) + len(added)
    assert container.pop("resources") != old.pop("resources")
    assert pod.pop("nodeSelector") != before.pop("nodeSelector")
    if component == "grpo":  # NeMo RL's image takes EFA's libraries from the node
        host = {"name": "efa", "hostPath": {"path": "/opt/amazon", "type": "Directory"}}
        pod["volumes"].remove(host)
        mount = container["volumeMounts"].pop()
        assert mount == {"name": "efa", "mountPath": "/opt/amazon", "readOnly": True}
    (shm,) = (each["emptyDir"] for each in pod["volumes"] if each["name"] == "shm")
    (usual,) = (each["emptyDir"] for each in before["volumes"] if each["name"] == "shm")
    for each in (pod, before):  # kustomize puts first what a patch names
        each["volumes"].sort(key=lambda volume: volume["name"])
    assert shm.pop("sizeLimit") == "128Gi" and usual.pop("sizeLimit") in ("48Gi", "128Gi")
    assert without == plain


@pytest.mark.parametrize("component", COMPONENTS)
def test_everything_follows_from_the_instance_type(component):
    name = f"{component}-efa"
    allowed = manifests.parameters_of("eks", name)["instance_type"].allowed
    assert DEFAULT in allowed and set(allowed) <= set(INSTANCES)
    assert job_of(name) == job_of(name, {"instance_type": DEFAULT})
    for instance_type in allowed:
        wanted = INSTANCES[instance_type]
        pod = pod_of(name, {"instance_type": instance_type})
        assert pod["nodeSelector"] == {"node.kubernetes.io/instance-type": instance_type}
        amounts = {
            "cpu": wanted["pod_cpu"], "memory": wanted["pod_memory"],
            "nvidia.com/gpu": str(wanted["gpus"]), "vpc.amazonaws.com/efa": str(wanted["efa"]),
        }  # fmt: skip
        assert pod["containers"][0]["resources"] == {"requests": amounts, "limits": amounts}
        env = env_of(pod)
        assert env["NUM_GPUS"] == str(wanted["gpus"])
        assert {key: env[key] for key in wanted["nccl"]} == wanted["nccl"]


def test_the_catalogue_fits_the_machines():
    interfaces = {name: entry["efa"] for name, entry in INSTANCES.items()}
    assert interfaces == {
        "p4d.24xlarge": 4, "p4de.24xlarge": 4, "p5.48xlarge": 32, "p5e.48xlarge": 32,
        "p5en.48xlarge": 16, "p6-b200.48xlarge": 8,
    }  # fmt: skip
    for entry in INSTANCES.values():
        assert parse_quantity(entry["pod_cpu"]) < entry["vcpus"]
        assert parse_quantity(entry["pod_memory"]) < 0.95 * entry["memory_gib"] * 2**30


def test_what_is_refused():
    with pytest.raises(ManifestError, match=r"'g5\.xlarge' is not one of p5\.48xlarge"):
        manifests.render("eks", "grpo-efa", {"instance_type": "g5.xlarge"})
    with pytest.raises(ManifestError, match=r"is not one of p5\.48xlarge"):  # no kernels for A100
        manifests.render("eks", "grpo-efa", {"instance_type": "p4d.24xlarge"})
    with pytest.raises(ManifestError, match="no parameter 'gpus'"):
        manifests.render("eks", "grpo-efa", {"gpus": 4})
    for profile in ("local", "kind"):
        with pytest.raises(ManifestError, match=rf"in profile '{profile}' \(only in eks\)"):
            manifests.render(profile, "grpo-efa")


def test_the_parameters_of_the_plain_component_stay():
    pod = pod_of("grpo-efa", {"steps": 5, "model": "org/name"})
    assert env_of(pod)["STEPS"] == "5" and env_of(pod)["MODEL_FOLDER"] == "/models/org--name"
    assert job_of("ray-cluster-efa", {"nodes": 4})["spec"]["parallelism"] == 4
