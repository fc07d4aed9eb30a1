"""GPU health, XIDs, EFA, the EC2 side, and the checklist: from recorded and documented output."""

import copy
import doctest
import functools
import importlib
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from workshop_lib.cluster import manifests
from workshop_lib.cluster.records import ExecResult
from workshop_lib.data import data_path
from workshop_lib.errors import ClusterError, ManifestError, NotFoundError, WorkshopError
from workshop_lib.production import checks
from workshop_lib.production.checks.preflight import check_laptop
from workshop_lib.production.checks.xid import xid_severity

DATA = Path(__file__).parents[1] / "data"
H200 = data_path("recorded/h200/nvidia-smi-health.csv").read_text()


def case(name):
    return (DATA / "checks" / name).read_text()


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(checks.__path__)])
def test_examples(name):
    assert doctest.testmod(importlib.import_module(f"{checks.__name__}.{name}")).failed == 0


# -- nvidia-smi -----------------------------------------------------------------------------------


def smi(**changes):
    """The recorded H200, and a second one with other values."""
    header, row = H200.splitlines()[:2]
    names = [name.split(" [")[0] for name in header.split(", ")]
    values = dict(zip(names, row.split(", "), strict=True)) | {"index": "1"} | changes
    return "\n".join([header, row, ", ".join(values.values())])


def test_a_recorded_h200_is_well():
    assert checks.check_gpus(H200, expected=1).passed
    row = checks.gpu_table(H200).iloc[0]
    assert (row["type"], row.temp_c, row.power_w, row.verdict) == ("H200", 36, 108.63, "well")
    assert row.memory_gib == "0.0 of 140.4" and "retired_pages.pending" in row.why


@pytest.mark.parametrize(
    ("name", "value", "evidence"),
    [
        ("ecc.errors.uncorrected.volatile.total", "2", "replace the GPU only when a row remapping"),
        ("remapped_rows.failure", "Yes", "remapping a bad memory row failed"),
        ("remapped_rows.pending", "Yes", "row remapping waits for a reset"),
        ("retired_pages.pending", "Yes", "page retirement waits"),
        ("ecc.errors.corrected.volatile.total", "5123", "5123 corrected"),
        ("ecc.mode.current", "Disabled", "ECC"),
        ("clocks_event_reasons.hw_thermal_slowdown", "Active", "terminate its instance"),
        ("temperature.gpu", "93", "93 C"),
        ("clocks_event_reasons.hw_power_brake_slowdown", "Active", "power supply"),
        ("temperature.gpu", "[GPU requires reset]", "requires reset"),
        ("power.draw", "ERR!", "ERR!"),
    ],
)
def test_what_is_wrong_is_named_with_its_gpu(name, value, evidence):
    (check,) = checks.check_gpus(smi(**{name: value})).open
    assert check.name.startswith("GPU 1 (NVIDIA H200)")
    assert evidence in f"{check.evidence}; {check.fix}"
    assert list(checks.gpu_table(smi(**{name: value})).verdict) == ["well", "look at it"]


def test_a_few_corrected_errors_are_normal_and_silence_is_not_health():
    assert checks.check_gpus(smi(**{"ecc.errors.corrected.volatile.total": "12"})).passed
    assert checks.check_gpus("index, name\n0, NVIDIA RTX 4090\n")[1].outcome == "cannot tell"


def test_other_forms_of_the_table_are_read():
    assert checks.check_gpus("\ufeffDefaulted container x\n" + H200.replace("\n", "\r\n"))[1].passed
    older = "index, name, clocks_throttle_reasons.hw_thermal_slowdown\n0, T4, Active\n"
    assert "hw_thermal" in checks.check_gpus(older)[1].evidence
    again = f"{H200}{H200.splitlines()[1].replace(', 36,', ', 95,')}\n"  # nvidia-smi -l
    assert len(checks.gpu_table(again)) == 1 and checks.gpu_table(again).temp_c.item() == 95
    lost = "Unable to determine the device handle for GPU 0000:CB:00.0: Unknown Error\n" + H200
    assert (
        "0000:CB:00.0" in str(checks.check_gpus(lost).open)
        and len(checks.gpu_table(H200 + "1, H1\n")) == 2
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (case("nvidia-smi-table.txt"), "--query-gpu"),
        ("", "nothing"),
        ("No devices were found", "XID 79"),
        ("Failed to initialize NVML: Driver/library version mismatch", "driver was replaced"),
        ("0, NVIDIA H200, 36\n", "keep the header line"),
        ("\x00\xff{}", "this is no output"),
    ],
)
def test_what_is_no_table_is_one_line_with_the_next_command(text, told):
    with pytest.raises(WorkshopError) as error:
        checks.check_gpus(text)
    assert told in str(error.value) and "\n" not in str(error.value)


# -- XIDs -----------------------------------------------------------------------------------------

DMESG = """\
[    0.425041] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04
[Fri Aug 30 11:43:09 2024] NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, SM on
NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9). RST: No
Nov  2 03:04:05 ip-10-0-1-7 kernel: NVRM: Xid (PCI:0000:53:00): 79, pid=2210, name=ray::V, GPU gone
"""


def xid(number, bus="cb", pid=7):
    return f"NVRM: Xid (PCI:0000:{bus}:00): {number}, pid={pid}, name=python, x"


def test_lines_of_a_kernel_log_become_a_table():
    table = checks.xid_table(DMESG)
    assert list(table.xid) == [13, 94, 79] and list(table.origin) == [
        "application",
        "memory",
        "link",
    ]
    assert list(table.time) == ["Fri Aug 30 11:43:09 2024", "", "Nov  2 03:04:05"]
    assert table.process.iloc[2] == "ray::V" and table.text.iloc[2] == "GPU gone"
    assert "terminate its instance" in table["do"].iloc[2] and len(checks.xid_table("nothing")) == 0


@pytest.mark.parametrize(
    ("number", "severity"),
    [
        *((n, "info") for n in (13, 31, 45, 94)),
        *((n, "none") for n in (43, 63, 92)),
        *((n, "critical") for n in (48, 64, 74, 79, 95, 119, 171, 9999)),
    ],
)
def test_verdicts_follow_the_catalogue(number, severity):
    assert xid_severity(number) == severity
    first = checks.check_xids(xid(number))[0]
    assert first.passed is (severity != "critical")
    assert (f"XID {number}: " in first.fix) is not first.passed


def test_xid_154_says_what_the_driver_asks_for():
    line = "NVRM: Xid (PCI:0000:cb:00): 154, GPU recovery action changed from 0x{}"
    asks = line.format("0 (None) to 0x2 (Node Reboot Required)")
    assert "asks for: Node Reboot Required" in checks.check_xids(asks)[0].fix
    assert checks.check_xids(line.format("2 (Node Reboot Required) to 0x0 (None)"))[0].passed


def test_programs_errors_are_the_gpus_when_only_it_has_them():
    same = [xid(31, pid=pid) for pid in (1, 2, 3)]
    assert "3 programs had XID 31" in checks.check_xids(same)[1].evidence
    assert checks.check_xids([xid(31)] * 5).passed  # one program, many lines
    assert checks.check_xids([*same, xid(31, bus="53", pid=4)]).passed  # other GPUs too
    switch = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore"
    assert (
        "28006" in checks.check_xids(switch)[2].evidence and not checks.check_xids(switch)[2].passed
    )


# -- EFA in a pod ---------------------------------------------------------------------------------

# AWSEC2 UserGuide, "Get started with EFA and NCCL": one block like these a device.
FI_INFO = "".join(
    f"provider: efa\n    fabric: efa\n    domain: rdmap{i}s27-rdm\n    type: FI_EP_RDM\n"
    for i in (16, 32, 144, 160)
)
OFI_LIB, OFI_NAMES = "/opt/amazon/ofi-nccl/lib/", ("libnccl-net-ofi.so", "libnccl-net.so")
INSTALLED = "\n".join(OFI_LIB + name for name in OFI_NAMES)
P4D = {"devices": "uverbs0 uverbs1 uverbs2 uverbs3", "fi_info": FI_INFO, "plugin": INSTALLED}
PINGPONG = """\
bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec
64      10      =10      1.2k        0.00s      2.45      26.10       0.04
1k      10      =10      20k         0.00s     36.70      27.90       0.04
"""


def efa(number, kind="p4d.24xlarge", **outputs):
    return checks.check_efa({**P4D, **outputs}, instance_type=kind)[number]


def test_a_well_pod_passes_and_pingpong_is_asked_where_it_ran():
    assert checks.check_efa(P4D, instance_type="p4d.24xlarge").passed
    assert len(checks.check_efa({**P4D, "pingpong": PINGPONG}, instance_type="p4d.24xlarge")) == 5
    assert efa(4, pingpong="").outcome == "fail"


@pytest.mark.parametrize(
    ("listing", "kind", "outcome"),
    [
        ("\n".join(f"uverbs{i}" for i in range(16)), "p5en.48xlarge", "pass"),
        ("\n".join(f"uverbs{i}" for i in range(32)), "p5en.48xlarge", "fail"),  # what seeds say
        ("ls: cannot access '/dev/infiniband': No such file or directory", "p5.48xlarge", "fail"),
        ("", "g5.xlarge", "not applicable"),
    ],
)
def test_devices_are_counted_by_instance_type(listing, kind, outcome):
    assert efa(0, kind, devices=listing).outcome == outcome
    with pytest.raises(WorkshopError, match=r"p9.metal.* is not in data/instances.yaml"):
        efa(0, "p9.metal")


@pytest.mark.parametrize(
    ("output", "outcome", "evidence"),
    [
        (FI_INFO[: len(FI_INFO) // 4], "fail", "1 of 4"),
        (FI_INFO.replace("FI_EP_RDM", "FI_EP_DGRAM"), "fail", "provider: efa"),
        ("fi_getinfo: -61 (No data available)\n", "fail", "-61"),
        ("sh: fi_info: not found", "cannot tell", "not found"),
    ],
)
def test_fi_info(output, outcome, evidence):
    check = efa(1, fi_info=output)
    assert check.outcome == outcome and evidence in check.evidence


@pytest.mark.parametrize(
    ("chosen", "listing", "outcome", "fix"),
    [
        ("", OFI_LIB + "libnccl-net-ofi.so", "fail", "set NCCL_NET_PLUGIN=ofi"),
        ("ofi", INSTALLED, "pass", ""),
        ("aws-ofi", INSTALLED, "fail", "set NCCL_NET_PLUGIN=ofi"),  # NVIDIA's containers, NCCL 2.29
        ("aws-ofi", "/opt/amazon/ofi/libnccl-net-aws-ofi.so", "pass", ""),
        (OFI_LIB + "libnccl-net-ofi.so", INSTALLED, "pass", ""),
        ("", "/opt/hpcx/nccl_rdma_sharp_plugin/lib/libnccl-net.so", "fail", "install aws-ofi-nccl"),
    ],
)
def test_the_containers_setting_decides_which_plugin_nccl_looks_for(chosen, listing, outcome, fix):
    check = efa(2, plugin=listing, environment=f"NCCL_NET_PLUGIN={chosen}" if chosen else "")
    assert check.outcome == outcome and fix in check.fix


@pytest.mark.parametrize(
    ("environment", "evidence"),
    [("RDMAV_FORK_SAFE=1", "not to be used"), ("NCCL_NET_PLUGIN=none", "told to use TCP")],
)
def test_what_turns_efa_off_in_the_environment(environment, evidence):
    assert evidence in efa(3, environment=environment).evidence
    assert efa(3, environment="NCCL_SOCKET_IFNAME=en\nHOME=/root").passed


class TwoPods:
    """Pods without EFA, as `cluster.exec` shows them."""

    asked = ()

    def exec(self, pod, command):
        if pod not in ("ray-0", "ray-1"):
            raise NotFoundError(f"{pod!r} is no pod")
        self.asked = (*self.asked, (pod, command[-1]))
        if command[-1].startswith("fi_info"):
            raise ClusterError("exec in ray-0: no such file")
        return ExecResult(0, "10.0.0.9\n" if "hostname" in command[-1] else "", "")


def test_pods_are_read_to_the_end_and_play_pingpong():
    pods = TwoPods()
    outputs = checks.collect_efa(pods, "ray-0", peer="ray-1")
    outcomes = [check.outcome for check in checks.check_efa(outputs, instance_type="p5.48xlarge")]
    assert outcomes == ["fail", "fail", "fail", "pass", "fail"]
    assert [c for pod, c in pods.asked if "fi_pingpong" in c][-1].endswith("-e rdm 10.0.0.9")
    with pytest.raises(NotFoundError):
        checks.collect_efa(pods, "nobody")


# -- NCCL's log, counters, pingpong ---------------------------------------------------------------

OFI = """\
ip-10-216-179-193:641223:641270 [4] NCCL INFO NET/OFI Selected Provider is efa
ip-10-216-179-193:641223:641270 [4] NCCL INFO Using network AWS Libfabric
"""
SOCKET = """\
node:1:1 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net-aws-ofi.so.
node:1:1 [0] NCCL INFO Using network Socket
"""


@pytest.mark.parametrize(
    ("log", "outcomes", "said"),
    [
        (OFI, ["pass", "pass"], "Selected Provider is efa"),
        ("n:1 [0] NCCL INFO Assigned NET plugin AWS Libfabric to comm", ["pass", "pass"], "AWS"),
        (SOCKET, ["fail", "pass"], "Could not find: libnccl-net-aws-ofi.so"),
        (OFI + SOCKET, ["fail", "pass"], "Socket"),
        ("n:1 [0] NCCL INFO Channel 00 : via P2P", ["cannot tell", "pass"], "one node"),
        ("Traceback (most recent call last):", ["cannot tell", "cannot tell"], "no NCCL line"),
        (OFI + "x [0] NCCL WARN Timeout waiting for connect", ["pass", "fail"], "Timeout"),
        (OFI + "x [0] NCCL WARN something new", ["pass", "cannot tell"], "something new"),
        (case("efa-requests-fail.log"), ["pass", "fail"], "completed with error. RC: 20"),
        (case("efa-requests-fail.log"), ["pass", "fail"], "security group"),
        (case("nccl-connect-refused.log"), ["fail", "fail"], "No eligible providers"),
        (case("nccl-connect-refused.log"), ["fail", "fail"], "NCCL_SOCKET_IFNAME=^pod-id-link0"),
    ],
)
def test_nccls_log(log, outcomes, said):
    found = checks.check_nccl_log(log.splitlines())
    assert [check.outcome for check in found] == outcomes and said in str(found)


def counters(tx, rx, drops=0, device="rdmap0s31"):
    path = f"/sys/class/infiniband/{device}/ports/1/hw_counters/"
    return f"{path}tx_pkts {tx}\n{path}rx_pkts {rx}\n{path}rx_drops {drops}\n"


@pytest.mark.parametrize(
    ("before", "after", "outcome", "evidence"),
    [
        (counters(10, 10), counters(210, 190), "pass", "200 out, 180 in, on 1 devices"),
        (counters(10**9, 10**9), counters(10**9 + 5, 10**9), "fail", "nothing comes in on rdmap"),
        (counters(900, 900), counters(900, 900), "fail", "0 out, 0 in"),
        (counters(900, 900), counters(3, 3), "cannot tell", "went back"),
        (counters(900, 900), counters(900, 990), "cannot tell", "only receives"),
        (counters(1, 1), counters(9, 9, device="other"), "cannot tell", "both readings"),
        ("=== infiniband/a ===\ntx_pkts: 12\nrx_pkts: 0", "infiniband/a\ntx_pkts: 90\nrx_pkts: 0",
         "fail", "nothing comes in on a"),
    ],
)  # fmt: skip
def test_two_readings_of_the_counters(before, after, outcome, evidence):
    check = checks.check_counters(before, after)[0]
    assert check.outcome == outcome and evidence in check.evidence
    assert (
        checks.check_counters(counters(1, 1), counters(9, 9, drops=4))[1].evidence == "4 rx_drops"
    )


@pytest.mark.parametrize(
    ("output", "passed", "evidence"),
    [(PINGPONG, True, "2 sizes, 27.90 us"), ("", False, "it waits"), ("error -61", False, "-61")],
)
def test_pingpong(output, passed, evidence):
    check = checks.check_pingpong(output)
    assert check.passed is passed and evidence in check.evidence


# -- the EC2 API, as moto plays it ----------------------------------------------------------------


def own_rule(group, protocol="-1"):
    rule = {"IpProtocol": protocol, "UserIdGroupPairs": [{"GroupId": group}]}
    return [rule if protocol == "-1" else {**rule, "FromPort": 0, "ToPort": 65535}]


def test_a_security_group_is_told_and_mended_only_when_asked():
    with checks.practice_ec2() as (ec2, group, subnet):
        found = checks.check_network(ec2, group_id=group, subnet_ids=[subnet])
        assert [check.outcome for check in found] == ["fail", "fail", "pass", "pass"]
        assert "no rule for" in found[0].evidence and "only 0.0.0.0/0" in found[1].evidence
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=own_rule(group, "tcp"))
        narrow = checks.check_network(ec2, group_id=group, subnet_ids=[subnet])[1]
        assert "not for all protocols" in narrow.evidence
        shown = checks.fix_security_group(ec2, group)
        assert [each.split()[2].rpartition("-")[2] for each in shown] == ["ingress", "egress"]
        assert not checks.check_network(ec2, group_id=group, subnet_ids=[subnet]).passed
        assert checks.fix_security_group(ec2, group, apply=True) == shown
        assert checks.check_network(ec2, group_id=group, subnet_ids=[subnet]).passed
        assert checks.fix_security_group(ec2, group, apply=True) == []
        with pytest.raises(WorkshopError, match="ec2 describe_security_groups: InvalidGroup"):
            checks.check_network(ec2, group_id="sg-0000", subnet_ids=[subnet])


def test_zones_and_secondary_addresses():
    with checks.practice_ec2() as (_, group, subnet):
        ec2 = checks.ec2_client("us-east-1")
        first = ec2.describe_subnets(SubnetIds=[subnet])["Subnets"][0]
        ec2.associate_vpc_cidr_block(VpcId=first["VpcId"], CidrBlock="100.64.0.0/16")
        zone = "us-east-1a" if first["AvailabilityZone"] != "us-east-1a" else "us-east-1b"
        where = {"VpcId": first["VpcId"], "AvailabilityZone": zone}
        second = ec2.create_subnet(CidrBlock="100.64.0.0/18", **where)["Subnet"]["SubnetId"]
        found = checks.check_network(ec2, group_id=group, subnet_ids=[subnet, second])[2:]
        assert [each.outcome for each in found if "one zone" in each.name] == ["fail"]
        blocks = {each.name.partition(":")[0]: each for each in found[1:]}
        assert blocks[subnet].passed and blocks[second].outcome == "cannot tell"
        assert "users report" in blocks[second].evidence


# -- preflight ------------------------------------------------------------------------------------


class Eks:
    """A cluster whose API server answers these paths, and nothing else."""

    profile = "eks"

    def __init__(self, answers, refused=False):
        self._api, self.answers, self.refused = self, answers, refused

    def prerequisites(self):
        return []

    def request(self, method, path):
        body = None if self.refused else self.answers.get(path)
        status = 403 if self.refused else 404
        return SimpleNamespace(ok=body is not None, status=status, json=lambda: body)


def daemons(name="aws-node", args=()):
    """A DaemonSet as the VPC CNI's chart renders it: the node agent is told by its arguments."""
    containers = [{"name": "aws-node"}, {"name": "aws-eks-nodeagent", "args": list(args)}]
    body = {"metadata": {"name": name}, "spec": {"template": {"spec": {"containers": containers}}}}
    return {"/apis/apps/v1/daemonsets": {"items": [body]}}


@pytest.mark.parametrize(
    ("cluster", "outcome", "said"),
    [
        (Eks(daemons(args=["--enable-network-policy=true"])), "pass", "aws-node): on"),
        (Eks(daemons(args=["--enable-network-policy=false"])), "fail", "not switched on"),
        (Eks(daemons("calico-node")), "pass", "by calico-node"),
        (Eks({}, refused=True), "cannot tell", "HTTP 403"),
    ],
)
def test_preflight_tells_whether_network_policies_are_enforced(cluster, outcome, said):
    check = next(
        each for each in checks.preflight(cluster) if each.name.startswith("NetworkPolicy")
    )
    assert check.outcome == outcome and said in check.evidence
    assert outcome == "pass" or "enable" in check.fix


def test_preflight_asks_for_the_addons_that_the_cluster_files_promise():
    s3 = {"/apis/storage.k8s.io/v1/csidrivers/s3.csi.aws.com": {"kind": "CSIDriver"}}
    found = {each.name: each.outcome for each in checks.preflight(Eks({**daemons(), **s3}))}
    assert found["S3 CSI driver"] == "pass" and found["FSx CSI driver"] == "fail"
    assert {"EKS Pod Identity agent", "pod metrics (metrics-server)"} <= set(found)


def test_this_machine_runs_the_workshop(monkeypatch, tmp_path):
    outcomes = {each.name: each.outcome for each in check_laptop()}
    assert {outcomes[n] for n in ("Python 3.11", "kubectl with kustomize", "2 cores")} == {"pass"}
    module = importlib.import_module(f"{checks.__name__}.preflight")
    monkeypatch.setattr(module, "capacity", lambda: {"cpu": 1.0, "memory": 8 * 2.0**30})
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("WORKSHOP_MODELS_DIR", str(tmp_path))
    small = {each.name: each for each in check_laptop()}
    for name in ("2 cores", "12 GiB of memory", "Linux on arm64, or x86-64 with AVX2"):
        assert small[name].outcome == "fail" and small[name].fix
    assert small["the model is in the cache"].outcome == "cannot tell"
    assert small["helm (optional)"].outcome == "not applicable"


# -- the checklist --------------------------------------------------------------------------------

COMPONENTS = ("vllm", "ray-service", "grpo", "ray-cluster-efa", "storage")


@functools.cache
def rendered():
    return [each.body for name in COMPONENTS for each in manifests.render("eks", name)]


def one(bodies, kind, name):
    return next(b for b in bodies if b["kind"] == kind and b["metadata"]["name"] == name)


def item(target, name):
    (found,) = [c for c in checks.check_production(target) if f": {name}" in c.name]
    return found


def pod(bodies, kind, name):
    return one(bodies, kind, name)["spec"]["template"]["spec"]


def env(bodies, name, value):
    found = pod(bodies, "Job", "grpo")["containers"][0]["env"]
    found[:] = [each for each in found if each["name"] != name] + [{"name": name, "value": value}]


def serve(bodies, part="engine_kwargs", **values):
    body = one(bodies, "RayService", "llm")
    config = yaml.safe_load(body["spec"]["serveConfigV2"])
    config["applications"][0]["args"]["llm_configs"][0][part].update(values)
    body["spec"]["serveConfigV2"] = yaml.safe_dump(config)


def node(name, kind, efa=0, address="10.0.1.7"):
    status = {"allocatable": {"vpc.amazonaws.com/efa": str(efa)},
              "addresses": [{"type": "InternalIP", "address": address}]}  # fmt: skip
    metadata = {"name": name, "labels": {"node.kubernetes.io/instance-type": kind}}
    return {"kind": "Node", "metadata": metadata, "status": status}


def recipe(text):
    return {"kind": "ConfigMap", "metadata": {"name": "mine"}, "data": {"r.yaml": text}}


def vllm(bodies):
    return pod(bodies, "Deployment", "vllm")["containers"][0]


@pytest.mark.parametrize(
    ("spoil", "name", "evidence"),
    [
        (lambda b: pod(b, "Deployment", "vllm").update(hostNetwork=True), "hostNetwork",
         "Deployment/vllm: hostNetwork true"),
        (lambda b: next(v for v in pod(b, "Deployment", "vllm")["volumes"] if v["name"] == "shm")
         .update(emptyDir={}), "/dev/shm", "Deployment/vllm: /dev/shm none"),
        (lambda b: one(b, "PersistentVolumeClaim", "shared")["spec"].update(
            accessModes=["ReadWriteOnce"]), "the shared volume", "ReadWriteOnce, fsx-sc"),
        (lambda b: serve(b, gpu_memory_utilization=0.5), "gpu_memory_utilization is", "= 0.5"),
        (lambda b: vllm(b).pop("startupProbe"), "startup", "no startupProbe"),
        (lambda b: vllm(b)["startupProbe"].update(failureThreshold=6), "startup", "60 s to start"),
        (lambda b: vllm(b)["volumeMounts"].clear(), "weights come from", "models from no claim"),
        (lambda b: serve(b, tensor_parallel_size=16), "autoscaling has", "replicas of 16 GPUs"),
        (lambda b: serve(b, "deployment_config", max_ongoing_requests=64), "Serve's router",
         "max_ongoing_requests 64, the engine takes 256"),
        (lambda b: serve(b, distributed_executor_backend="mp"), "the executor", "backend mp"),
        (lambda b: env(b, "NCCL_TIMEOUT", "7200"), "NCCL's timeout", "NCCL_TIMEOUT=7200"),
        (lambda b: one(b, "Service", "grpo")["spec"].update(publishNotReadyAddresses=False),
         "workers find the head", "grpo-0.grpo:6379"),
        (lambda b: env(b, "OUTPUT_DIR", "/tmp/out"), "checkpoints", "/tmp/out on the pod"),
        (lambda b: b.append(recipe("grpo: {}\npolicy: {generation: {vllm_cfg: "
                                   "{gpu_memory_utilization: 0.9}}}")), "vLLM leaves", "= 0.9"),
        (lambda b: env(b, "RAY_AUTH_MODE", ""), "the Ray dashboard", "RAY_AUTH_MODE="),
        (lambda b: b.append(recipe("grpo: {}\nlogger: {wandb_enabled: false}")),
         "training metrics", "logger writes nothing"),
        (lambda b: b.append({"kind": "PrometheusRule", "metadata": {"name": "r"}, "spec": {
            "groups": [{"rules": [{"alert": "Restarts"}]}]}}), "alerts", "without OOM, GPU errors"),
        (lambda b: b.append(node("a", "p5en.48xlarge", efa=8)), "GPU nodes offer", "efa 8 of 16"),
    ],
)  # fmt: skip
def test_what_breaks_an_item_is_found_and_quoted(spoil, name, evidence):
    bodies = copy.deepcopy(rendered())
    spoil(bodies)
    check = item(bodies, name)
    assert check.outcome == "fail" and evidence in check.evidence and check.fix, check


def test_gpus_are_counted_as_they_come():
    """maxReplicas of a worker group says nothing where no autoscaler is on."""
    bodies = copy.deepcopy(rendered())
    group = one(bodies, "RayService", "llm")["spec"]["rayClusterConfig"]
    group["workerGroupSpecs"][0].update(replicas=1, maxReplicas=4)
    gpus = group["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus["nvidia.com/gpu"] = "8"
    serve(bodies, tensor_parallel_size=8)
    group["enableInTreeAutoscaling"] = False
    assert "8 GPUs at most" in item(bodies, "autoscaling has").evidence
    group["enableInTreeAutoscaling"] = True
    assert "32 GPUs at most" in item(bodies, "autoscaling has").evidence


def test_a_cluster_and_a_snapshot_are_read_like_manifests():
    bodies = copy.deepcopy(rendered())
    for body in bodies:
        if body["kind"] == "PersistentVolumeClaim":
            body["status"] = {"phase": "Bound"}
    owned = {"name": "llm-x", "ownerReferences": [{"kind": "RayService"}]}
    own = one(bodies, "RayService", "llm")["spec"]["rayClusterConfig"]
    snapshot = {
        "objects": [*bodies, {"kind": "RayCluster", "metadata": owned, "spec": own}],
        "nodes": [node("a", "p5.48xlarge", efa=32, address="100.64.3.9")],
        "daemonsets": [{"kind": "DaemonSet", "metadata": {"name": "nvidia-dcgm-exporter"}}],
        "logs": {"vllm-0": ["..."]},
        "events": [{"reason": "Pulled"}],
    }
    before = copy.deepcopy(snapshot)

    class Cluster:
        def snapshot(self):
            return snapshot

    for target in (snapshot, Cluster()):
        assert item(target, "the shared volume").outcome == "pass"
        assert item(target, "GPU nodes offer").outcome == "pass"
        assert item(target, "GPU metrics are").outcome == "pass"
        assert item(target, "the security group").outcome == "cannot tell"
        assert "100.64.3.9 looks secondary" in item(target, "nodes are in").evidence
        assert "llm-x" not in item(target, "/dev/shm").evidence
    assert snapshot == before, "what is judged is not changed"
    assert {check.outcome for check in checks.check_production([])} == {"not applicable"}


@pytest.mark.parametrize("profile", ["eks", "local"])  # kind's one node has one-node volumes
def test_the_workshops_own_manifests_fail_nothing(profile):
    table = checks.production_table(profile)
    assert [row.item for row in table.itertuples() if row.outcome == "fail"] == []
    assert table.section.value_counts().to_dict() == {
        "infrastructure": 6, "serving": 6, "training": 5, "monitoring": 4}  # fmt: skip
    assert (table.corrected != "").sum() >= 8
    with pytest.raises(ManifestError, match="no profile 'gke'"):
        checks.check_production("gke")
