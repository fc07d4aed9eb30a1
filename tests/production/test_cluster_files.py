"""manifests/cluster: what it makes is what components select and preflight asks for."""

import subprocess

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.cluster.kube import pod_specs
from workshop_lib.cluster.kubernetes.resources import operator_hint, resource_of_kind
from workshop_lib.cluster.needs import needs_of
from workshop_lib.production.budget import main

FOLDER = manifests.manifests_dir() / "cluster"
CONFIG = yaml.safe_load((FOLDER / "cluster.yaml").read_text())
GROUPS = {group["name"]: group for group in CONFIG["managedNodeGroups"]}
EFA_ONLY = ("ray-cluster-efa", "grpo-efa")  # their machines are a value of their own


def make(*words):
    command = ["make", "-n", "-C", str(FOLDER), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_there_is_a_group_for_every_component():
    types = {group["instanceType"] for group in GROUPS.values()}
    for component in manifests.components("eks"):
        for item in manifests.render("eks", component):
            for _, pod in pod_specs(item.body):
                wanted = (pod.get("nodeSelector") or {}).get("node.kubernetes.io/instance-type")
                if wanted and component not in EFA_ONLY:
                    assert wanted in types, (component, wanted)
    labels = [group.get("labels", {}) for group in GROUPS.values()]
    pools = {each["workshop.techpulse/pool"] for each in labels if each}
    assert needs_of("eks").pools <= pools
    for name, group in GROUPS.items():
        if name.startswith("gpu-"):
            assert group["desiredCapacity"] == group["minSize"] == 0, "no machine unasked"
            assert group["taints"][0]["key"] == "nvidia.com/gpu"


def test_addons_are_those_that_preflight_asks_for():
    addons = {addon["name"]: addon for addon in CONFIG["addons"]}
    assert {"aws-fsx-csi-driver", "aws-mountpoint-s3-csi-driver", "aws-ebs-csi-driver",
            "eks-pod-identity-agent", "metrics-server"} <= set(addons)  # fmt: skip
    assert yaml.safe_load(addons["vpc-cni"]["configurationValues"]) == {
        "enableNetworkPolicy": "true"
    }


@pytest.mark.skipif(
    subprocess.run(["which", "make"], capture_output=True).returncode != 0, reason="no make here"
)
def test_the_makefile_pins_asks_first_and_fills_in_its_values():
    text = make("install").stdout
    for line in text.replace("\\\n", " ").splitlines():
        assert "helm upgrade" not in line or " --version " in line
    wanted = operator_hint(resource_of_kind("RayCluster"))
    assert wanted.rpartition("--version ")[2].split()[0].rstrip(";") in text
    create = make("create").stdout
    assert create.index("cost --cluster") < create.index("eksctl create cluster")
    words = ["make", "--no-print-directory", "-C", str(FOLDER), "config", "EFA=true"]
    filled = yaml.safe_load(subprocess.check_output([*words, "RESERVATION=cr-0a1b"], text=True))
    groups = {group["name"]: group for group in filled["managedNodeGroups"]}
    assert groups["gpu-ray"]["efaEnabled"] is True
    target = groups["gpu-ray"]["capacityReservation"]["capacityReservationTarget"]
    assert target == {"capacityReservationID": "cr-0a1b"}
    refused = subprocess.run(["make", "-C", str(FOLDER), "create", "workshop=true"],
                             capture_output=True, text=True)  # fmt: skip
    assert refused.returncode != 0 and "Nothing was changed" in refused.stdout


def test_the_price_is_that_of_the_catalogue(capsys):
    assert main(["--cluster", str(FOLDER / "cluster.yaml")]) == 0
    said = capsys.readouterr().out
    assert "2 x m7i.2xlarge at $0.40" in said and "0 x p4d.24xlarge at $21.96" in said
    assert "$0.91 an hour as created" in said
    assert main(["--cluster", str(FOLDER / "Makefile")]) == 1
