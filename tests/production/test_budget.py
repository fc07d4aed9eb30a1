"""The catalogue's facts against other copies of them, and what is computed from it."""

import datetime
import gzip
import json
from pathlib import Path

import pytest

from workshop_lib.cluster import manifests
from workshop_lib.cluster.catalogue import catalogue, catalogue_table, instance
from workshop_lib.cluster.kube import parse_quantity
from workshop_lib.cluster.prices import announce, component_cost, cost_of
from workshop_lib.errors import ManifestError, WorkshopError
from workshop_lib.production import budget as module
from workshop_lib.production.budget import PLAN, Phase, budget, main
from workshop_lib.serving.memory import DEVICES, ModelShape, gpu_budget

# -- the catalogue --------------------------------------------------------------------------------


def test_its_facts_are_those_of_the_ec2_api():
    """moto keeps DescribeInstanceTypes' answers: a copy made by other people than ours."""
    moto = pytest.importorskip("moto", reason="moto is not installed")
    path = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    known = json.loads(gzip.decompress(path.read_bytes()))
    for name, ours in catalogue().items():
        theirs = known[name]
        gpus = (theirs.get("GpuInfo") or {"Gpus": [{}]})["Gpus"][0]
        efa = (theirs["NetworkInfo"].get("EfaInfo") or {}).get("MaximumEfaInterfaces", 0)
        assert (ours.gpus, ours.efa) == (gpus.get("Count", 0), efa), name
        assert ours.vcpus == theirs["VCpuInfo"]["DefaultVCpus"], name
        assert ours.memory_gib * 1024 == theirs["MemoryInfo"]["SizeInMiB"], name
        assert (ours.gpu or "").split("-")[0] == gpus.get("Name", ""), name


@pytest.mark.parametrize("name", catalogue())
def test_every_price_has_its_date_and_source_or_says_it_is_not_verified(name):
    found = instance(name)
    assert found.gpu is None or found.gpu in {device.name for device in DEVICES.values()}
    if found.usd_per_hour is None:
        assert found.date is None and found.source == ""
        return
    assert found.date > datetime.date(2025, 6, 30), "before the cut of P4 and P5 prices"
    assert found.region == "us-east-1" and found.source and 0.1 < found.usd_per_hour < 200
    if found.spot_saves_percent is not None:
        assert found.spot_usd_per_hour < found.usd_per_hour and found.spot_interrupted
    assert parse_quantity(found.node["cpu"]) < found.vcpus
    assert parse_quantity(found.node["memory"]) < found.memory_gib * 2**30


def test_what_older_lists_had_wrong():
    assert instance("p5en.48xlarge").efa == 16
    assert instance("p4d.24xlarge").usd_per_hour < 32.77 * 0.7
    assert instance("p5.48xlarge").usd_per_hour < 98.32 * 0.6
    with pytest.raises(WorkshopError, match=r"'p9.metal' is not in data/instances.yaml; it has p4"):
        instance("p9.metal")
    row = catalogue_table().set_index("instance").loc["p5.48xlarge"]
    assert row.usd_per_gpu_hour == pytest.approx(55.04 / 8)


# -- what a component costs -----------------------------------------------------------------------


def deployment(replicas=1, *, requests=None, name="server", **spec):
    pod = {"containers": [{"resources": {"requests": requests or {}}}], **spec}
    return {"kind": "Deployment", "metadata": {"name": name},
            "spec": {"replicas": replicas, "template": {"spec": pod}}}  # fmt: skip


def on(instance_type):
    return {"nodeSelector": {"node.kubernetes.io/instance-type": instance_type}}


ONE_GPU = {"nvidia.com/gpu": "1"}
APART = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
    {"topologyKey": "kubernetes.io/hostname"}]}}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "machines"),
    [
        (deployment(8, requests=ONE_GPU, **on("p4d.24xlarge")), {"p4d.24xlarge": 1}),
        (deployment(9, requests=ONE_GPU, **on("p4d.24xlarge")), {"p4d.24xlarge": 2}),
        (deployment(3, requests={"cpu": "40"}, **on("p4d.24xlarge")), {"p4d.24xlarge": 2}),
        (deployment(3, requests={"memory": "600Gi"}, **on("p4d.24xlarge")), {"p4d.24xlarge": 3}),
        (deployment(2, affinity=APART, **on("p5.48xlarge")), {"p5.48xlarge": 2}),
        (deployment(2, **on("p5.48xlarge")), {"p5.48xlarge": 1}),
        (deployment(0, **on("p5.48xlarge")), {}),
        (deployment(1, requests={"cpu": "2", "memory": "2Gi"}), {"c7i.xlarge": 1}),
        (deployment(1, requests={"cpu": "2", "memory": "8Gi"}), {"m7i.xlarge": 1}),
        (deployment(1, requests={"cpu": "4", "memory": "16Gi"}), {"m7i.2xlarge": 1}),
    ],
)  # fmt: skip
def test_pods_are_packed_onto_machines(body, machines):
    found = cost_of([body])
    assert dict(found.machines) == machines
    price = sum(catalogue()[name].usd_per_hour * count for name, count in machines.items())
    assert found.usd_per_hour == pytest.approx(price)


def test_what_cannot_be_priced_is_said():
    line = cost_of([deployment(**on("p5e.48xlarge"))]).line()
    assert "the price of p5e.48xlarge is not verified" in line
    assert (
        "not priced: p9.metal for Deployment/server"
        in cost_of([deployment(**on("p9.metal"))]).line()
    )
    gpu = cost_of([deployment(requests={"nvidia.com/gpu": "1"})])
    assert "a machine with GPUs for Deployment/server" in gpu.line() and not gpu.machines


def test_components_of_the_workshop():
    assert component_cost("ray-cluster").machines == {"p4d.24xlarge": 2}
    assert component_cost("ray-cluster", nodes=3).machines == {"p4d.24xlarge": 3}
    efa = component_cost("ray-cluster-efa", instance_type="p5en.48xlarge")
    assert efa.machines == {"p5en.48xlarge": 2}
    assert efa.machines_usd_per_hour == pytest.approx(2 * 63.296)
    assert component_cost("storage").claims == {"shared": 1200}
    assert component_cost("storage").usd_per_hour == pytest.approx(1200 * 0.14 / 730)
    scaled = component_cost("autoscale")
    assert scaled.most.usd_per_hour > scaled.usd_per_hour and "up to $" in scaled.line()
    assert component_cost("raycluster").most is None  # nothing scales its workers by itself
    with pytest.raises(ManifestError, match="no component 'nothing'"):
        component_cost("nothing")


def test_only_what_is_paid_for_is_announced():
    eks = [each.body for each in manifests.render("eks", "vllm")]
    assert announce("eks", eks).startswith("$4.76 an hour on demand: 1 x g6e.8xlarge")
    assert "2026-07-20" in announce("eks", eks)
    assert announce("local", eks) == announce("kind", eks) == ""
    assert announce("eks", [{"kind": "ConfigMap", "metadata": {"name": "x"}}]) == ""


# -- the workshop ---------------------------------------------------------------------------------

SHORT = (Phase("serve", ("vllm",), 60), Phase("train", ("grpo",), 30))


def test_a_budget_is_the_sum_of_its_phases(monkeypatch):
    monkeypatch.setattr(module, "PLAN", SHORT)
    one = budget(1)
    machines = 4.52856 * 1 + 2 * 6.88 * 0.5
    waiting = (4.52856 + 2 * 6.88) * 15 / 60
    storage = 1200 * 0.14 / 730 * 1.5  # one file system for the whole plan
    assert one.usd == pytest.approx(machines + waiting + storage + 2 * 0.10)
    room = budget(20)
    assert room.usd == pytest.approx(20 * (machines + waiting + storage) + 2 * 0.10)
    assert room.kept_usd > room.usd and "20 learners and 90 minutes" in str(room)
    assert list(one.table().usd) == [4.53, 6.88]
    spot = budget(1, spot=True)
    assert spot.usd < one.usd
    assert "g6e.8xlarge saved 66%, interrupted >20% a month" in str(spot)
    assert "2 minutes' notice" in str(spot) and "counted on demand: p5.4xlarge" in str(spot)


def test_the_plan_is_the_75_minutes_of_the_lessons():
    assert sum(phase.minutes for phase in PLAN[1:]) == 75
    assert {each for phase in PLAN for each in phase.components} <= {*manifests.components("eks")}


def test_the_command_prints_the_tables(capsys):
    assert main(["--learners", "12"]) == 0
    text = capsys.readouterr().out
    assert "p5en.48xlarge" in text and "not verified" in text and "12 learners" in text
    assert "ray-cluster-efa $110.31 an hour" in text
    assert main(["--learners", "0"]) == 1
    assert "at least one learner, not 0" in capsys.readouterr().err


def test_the_server_for_one_gpu_takes_the_cheapest_machine_that_holds_a_room():
    """Thirty-two requests of the full length at once: the memory model and the prices decide."""
    (deployment,) = (i.body for i in manifests.render("eks", "vllm") if i.kind == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    share = {"gpu_memory_utilization": 0.9, "max_model_len": 4096, "tp": 1}
    fitting = {}
    for each in catalogue().values():
        if each.gpus and each.usd_per_hour and each.vcpus >= 8:
            held = gpu_budget(ModelShape.named("mistral-7b"), each.gpu, **share)
            if held.fits and held.kv.concurrency >= 32:
                fitting[each.name] = each.usd_per_hour
    chosen = pod["nodeSelector"]["node.kubernetes.io/instance-type"]
    assert chosen == min(fitting, key=fitting.get), fitting
    values = manifests.parameters_of("eks", "vllm")["instance_type"]
    assert {"p4d.24xlarge", "p5.48xlarge"} <= set(fitting) and values.type == "str"
