"""EFA from documented output of commands, and from the EC2 API as moto plays it."""

import pytest

from workshop_lib.cluster.base import ExecResult
from workshop_lib.data import data_path
from workshop_lib.errors import ClusterError, EnvironmentError_, NotFoundError, WorkshopError
from workshop_lib.production.checks import efa, efa_network

# -- what commands print --------------------------------------------------------------------------

# AWSEC2 UserGuide, "Get started with EFA and NCCL": one block like these a device and type.
FI_INFO = "".join(
    f"provider: efa\n    fabric: efa\n    domain: rdmap{i}s27-rdm\n    version: 121.10\n"
    f"    type: {kind}\n    protocol: FI_PROTO_EFA\n"
    for i in (16, 32, 144, 160)
    for kind in ("FI_EP_RDM",)
)
OFI = """\
ip-10-216-179-193:641223:641223 [4] NCCL INFO Bootstrap : Using ens32:10.216.179.193<0>
ip-10-216-179-193:641223:641270 [4] NCCL INFO NET/OFI Using aws-ofi-nccl 1.4.0aws
ip-10-216-179-193:641223:641270 [4] NCCL INFO NET/OFI Selected Provider is efa
ip-10-216-179-193:641223:641270 [4] NCCL INFO Using network AWS Libfabric
"""
SOCKET = """\
node:1:1 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net-aws-ofi.so.
node:1:1 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.1.7<0>
node:1:1 [0] NCCL INFO Using network Socket
node:1:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/Socket/0
"""
PINGPONG = """\
bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec
64      10      =10      1.2k        0.00s      2.45      26.10       0.04
1k      10      =10      20k         0.00s     36.70      27.90       0.04
"""


@pytest.mark.parametrize(
    ("listing", "kind", "outcome"),
    [
        ("uverbs0  uverbs1  uverbs2  uverbs3", "p4d.24xlarge", "pass"),
        ("rdma_cm\n" + "\n".join(f"uverbs{i}" for i in range(16)), "p5en.48xlarge", "pass"),
        ("\n".join(f"uverbs{i}" for i in range(32)), "p5en.48xlarge", "fail"),  # what the seeds say
        ("uverbs0 uverbs1 uverbs2 uverbs3", "p5.48xlarge", "fail"),
        ("ls: cannot access '/dev/infiniband': No such file or directory", "p5.48xlarge", "fail"),
        ("rdma_cm", "p4d.24xlarge", "fail"),
        ("", "g5.xlarge", "not applicable"),
    ],
)
def test_devices_are_counted_by_instance_type(listing, kind, outcome):
    assert efa.check_devices(listing, kind).outcome == outcome


def test_a_type_that_nobody_knows_is_refused():
    with pytest.raises(WorkshopError, match=r"p9.metal.* is not in data/instances.yaml"):
        efa.check_devices("uverbs0", "p9.metal")


@pytest.mark.parametrize(
    ("output", "outcome", "evidence"),
    [
        (FI_INFO, "pass", "4 of 4 domains"),
        (FI_INFO[: len(FI_INFO) // 4], "fail", "1 of 4"),
        (FI_INFO.replace("FI_EP_RDM", "FI_EP_DGRAM"), "fail", "provider: efa"),
        (FI_INFO.replace("provider: efa", "provider: tcp"), "fail", "provider: tcp"),
        ("fi_getinfo: -61 (No data available)\n", "fail", "-61"),
        ("sh: fi_info: not found", "cannot tell", "not found"),
        ("", "cannot tell", "no output"),
    ],
)  # fmt: skip
def test_fi_info(output, outcome, evidence):
    check = efa.check_fi_info(output, "p4d.24xlarge")
    assert check.outcome == outcome and evidence in check.evidence


@pytest.mark.parametrize(
    ("listing", "nccl", "outcome", "fix"),
    [
        ("/opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so", "2.27.7", "pass", ""),
        ("/opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so", "2.29.3", "fail",
         "ln -s /opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so "
         "/opt/amazon/ofi-nccl/lib/libnccl-net-aws-ofi.so"),
        ("\tlibnccl-net-aws-ofi.so (libc6,x86-64) => /opt/amazon/lib/libnccl-net-aws-ofi.so",
         "2.30.1", "pass", ""),
        ("/x/libnccl-net-aws-ofi.so\n/x/libnccl-net-ofi.so", "2.29.0", "pass", ""),
        ("", "2.29.0", "fail", "install aws-ofi-nccl"),
        ("/opt/amazon/ofi-nccl/lib/libnccl-net.so", "2.27.7", "pass", ""),
        ("/opt/amazon/ofi-nccl/lib/libnccl-net.so", "2.29.3", "fail", "install aws-ofi-nccl"),
        ("/opt/hpcx/nccl_rdma_sharp_plugin/lib/libnccl-net.so", "2.27.7", "fail", "install"),
        ("libnccl-net-ofi.so", "unknown", "cannot tell", "first log line"),
    ],
)  # fmt: skip
def test_the_plugin_has_the_name_that_nccl_looks_for(listing, nccl, outcome, fix):
    check = efa.check_plugin(listing, nccl=nccl)
    assert check.outcome == outcome and fix in check.fix


@pytest.mark.parametrize(
    ("variables", "outcome", "evidence"),
    [
        ({"NCCL_SOCKET_IFNAME": "en", "FI_EFA_USE_HUGE_PAGE": "0"}, "pass", "IFNAME=en"),
        ({}, "pass", "NCCL chooses"),
        ({"RDMAV_FORK_SAFE": "1"}, "fail", "RDMAV_FORK_SAFE=1: it is not to be used"),
        ({"FI_PROVIDER": "efa"}, "fail", "not needed"),
        ({"NCCL_NET_PLUGIN": "none"}, "fail", "told to use TCP"),
    ],
)  # fmt: skip
def test_the_environment(variables, outcome, evidence):
    check = efa.check_environment(variables)
    assert check.outcome == outcome and evidence in check.evidence


@pytest.mark.parametrize(
    ("log", "outcome", "evidence"),
    [
        (OFI, "pass", "NET/OFI Selected Provider is efa"),
        ("n:1 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/Libfabric/1/GDRDMA", "pass",
         "GDRDMA"),
        (SOCKET, "fail", "Could not find: libnccl-net-aws-ofi.so"),
        (OFI + SOCKET, "fail", "Socket"),
        ("n:1 [0] NCCL INFO Assigned NET plugin Socket to comm", "fail", "NET plugin Socket"),
        ("n:1 [0] NCCL INFO Assigned NET plugin AWS Libfabric to comm", "pass", "Libfabric"),
        ("n:1 [0] NCCL INFO Channel 00 : 0[0] -> 1[0] via P2P/CUMEM", "cannot tell", "one node"),
        ("Traceback (most recent call last):", "cannot tell", "no NCCL line"),
        ("", "cannot tell", "no NCCL line"),
    ],
)  # fmt: skip
def test_nccls_log_says_which_network_it_uses(log, outcome, evidence):
    check = efa.check_nccl_log(log)[0]
    assert check.outcome == outcome and evidence in check.evidence


def test_a_rank_that_waits_is_seen_in_the_log():
    log = OFI + "[Rank 0] NCCL WARN Timeout waiting for connect from peer\n"
    first, second = efa.check_nccl_log(log.splitlines())
    assert first.passed and second.passed is False and "Timeout waiting" in second.evidence


def counters(tx, rx, drops=0, devices=("rdmap0s31",)):
    path = "/sys/class/infiniband/{}/ports/1/hw_counters/{} {}\n"
    return "".join(
        path.format(device, name, value)
        for device in devices
        for name, value in (("tx_pkts", tx), ("rx_pkts", rx), ("rx_drops", drops))
    )


@pytest.mark.parametrize(
    ("before", "after", "outcome", "evidence"),
    [
        (counters(10, 10), counters(210, 190), "pass", "200 out, 180 in, on 1 devices"),
        (counters(900, 900), counters(990, 900), "fail", "nothing comes in on rdmap0s31"),
        (counters(900, 900), counters(900, 900), "fail", "0 out, 0 in"),
        (counters(900, 900), counters(3, 3), "cannot tell", "went back"),
        ("cat: no such file", "", "cannot tell", "both readings"),
        (counters(900, 900), counters(900, 990), "cannot tell", "only receives"),
        (counters(2**64 - 9, 1), counters(90, 91), "cannot tell", "went back"),
        ("rdmap0: infiniband/rdmap0/ports/1/hw_counters/tx_pkts 1",
         "rdmap0: infiniband/rdmap0/ports/1/hw_counters/tx_pkts 99", "cannot tell", "no rx_pkts"),
        (counters(1, 1, devices=("a",)), counters(9, 9, devices=("b",)), "cannot tell", "both"),
    ],
)  # fmt: skip
def test_two_readings_of_the_counters(before, after, outcome, evidence):
    check = efa.check_counters(before, after)[0]
    assert check.outcome == outcome and evidence in check.evidence


def test_one_reading_alone_would_mislead():
    """Counts since the driver was loaded are high on any node that was well yesterday."""
    assert efa.check_counters(counters(10**9, 10**9), counters(10**9 + 5, 10**9))[0].passed is False


def test_counters_as_the_seeds_print_them():
    text = "=== /sys/class/infiniband/rdmap16s27 ===\ntx_pkts: 12\nrx_pkts: 0\n"
    assert efa.read_counters(text) == {"rdmap16s27": {"tx_pkts": 12, "rx_pkts": 0}}
    dropped = efa.check_counters(counters(1, 1), counters(9, 9, drops=4))[1]
    assert dropped.passed is False and dropped.evidence == "4 rx_drops"


@pytest.mark.parametrize(
    ("output", "passed", "evidence"),
    [
        (PINGPONG, True, "2 sizes, 27.90 us"),
        ("", False, "it waits"),
        ("fi_getinfo: -61", False, "-61"),
        ("connect(): Connection refused", False, "refused"),
    ],
)
def test_pingpong(output, passed, evidence):
    check = efa.check_pingpong(output)
    assert check.passed is passed and evidence in check.evidence


def test_all_of_a_pods_outputs_together():
    outputs = {
        "devices": "uverbs0 uverbs1 uverbs2 uverbs3", "fi_info": FI_INFO,
        "plugin": "/opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so",
        "environment": "HOME=/root\nNCCL_SOCKET_IFNAME=en\n",
    }  # fmt: skip
    assert efa.check_efa(outputs, instance_type="p4d.24xlarge", nccl="2.27").passed
    open_ = efa.check_efa(outputs, instance_type="p4d.24xlarge").open
    assert [check.fix.split()[0] for check in open_] == ["ln"]
    assert len(efa.check_efa({}, instance_type="p4d.24xlarge").open) == 3


class Pod:
    """A pod without EFA, as `cluster.exec` shows it."""

    def exec(self, pod, command):
        if pod != "ray-0":
            raise NotFoundError(f"{pod!r} is no pod")
        if command[0] == "fi_info":
            raise ClusterError("exec in ray-0: 'fi_info': No such file or directory")
        said = {"ls": "", "env": "HOME=/root\nRDMAV_FORK_SAFE=1\n"}.get(command[0], "")
        return ExecResult(0, said, "")


def test_a_pod_without_efa_is_read_to_the_end():
    outputs = efa.collect(Pod(), "ray-0")
    assert set(outputs) == set(efa.COMMANDS)
    checks = efa.check_efa(outputs, instance_type="p5.48xlarge")
    assert [c.outcome for c in checks] == ["fail", "cannot tell", "fail", "fail"]
    with pytest.raises(NotFoundError):
        efa.collect(Pod(), "nobody")


# -- the EC2 API ----------------------------------------------------------------------------------


@pytest.fixture
def ec2(monkeypatch):
    moto = pytest.importorskip("moto", reason="moto is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with moto.mock_aws():
        yield efa_network.ec2_client("us-east-1")


@pytest.fixture
def network(ec2):
    """A VPC with a second CIDR, a subnet in each, and a group with EC2's own default rules."""
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    ec2.associate_vpc_cidr_block(VpcId=vpc, CidrBlock="100.64.0.0/16")
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for block, zone in (("10.0.0.0/20", "us-east-1a"), ("100.64.0.0/18", "us-east-1a"),
                            ("10.0.16.0/20", "us-east-1b"))
    ]  # fmt: skip
    group = ec2.create_security_group(GroupName="efa", Description="efa", VpcId=vpc)["GroupId"]
    return group, subnets


def rules_of(ec2, group):
    found = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    return found["IpPermissions"], found["IpPermissionsEgress"]


def own_rule(group, protocol="-1"):
    return [{"IpProtocol": protocol, "UserIdGroupPairs": [{"GroupId": group}]}]


def test_rules_for_the_world_do_not_count(ec2, network):
    group, _ = network
    ec2.authorize_security_group_ingress(
        GroupId=group, IpPermissions=[{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    )
    ingress, egress = efa_network.check_security_group(ec2, group)
    for check, direction in ((ingress, "ingress"), (egress, "egress")):
        assert check.passed is False and "only 0.0.0.0/0" in check.evidence
        assert f"authorize-security-group-{direction} --group-id {group}" in check.fix


def test_a_fix_is_shown_and_applied_only_when_told(ec2, network):
    group, _ = network
    before = rules_of(ec2, group)
    shown = efa_network.fix_security_group(ec2, group)
    assert [command.split()[2] for command in shown] == [
        "authorize-security-group-ingress", "authorize-security-group-egress"]  # fmt: skip
    assert rules_of(ec2, group) == before
    assert efa_network.fix_security_group(ec2, group, apply=True) == shown
    assert efa_network.check_security_group(ec2, group).passed
    assert efa_network.fix_security_group(ec2, group, apply=True) == []
    egress = rules_of(ec2, group)[1]
    assert "0.0.0.0/0" in str(egress), "what was there stays"


def test_one_direction_or_one_protocol_is_not_enough(ec2, network):
    group, _ = network
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=own_rule(group))
    tcp = own_rule(group, "tcp")
    tcp[0] |= {"FromPort": 0, "ToPort": 65535}
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=tcp)
    ingress, egress = efa_network.check_security_group(ec2, group)
    assert ingress.passed and egress.passed is False
    assert "not for all protocols" in egress.evidence
    other = ec2.create_security_group(GroupName="other", Description="x",
                                      VpcId=ec2.describe_vpcs()["Vpcs"][-1]["VpcId"])  # fmt: skip
    ec2.authorize_security_group_ingress(
        GroupId=other["GroupId"], IpPermissions=own_rule(group))  # fmt: skip
    first = efa_network.check_security_group(ec2, other["GroupId"])[0]
    assert first.passed is False and "no rule for" in first.evidence


def test_subnets(ec2, network):
    _, (first, second, third) = network
    zone, primary = efa_network.check_subnets(ec2, [first])
    assert zone.passed and primary.passed and "10.0.0.0/20 is in" in primary.evidence
    reported = efa_network.check_subnets(ec2, [second])[1]
    assert reported.outcome == "cannot tell"
    assert "users report" in reported.evidence and "tx_pkts rises" in reported.fix
    across = efa_network.check_subnets(ec2, [first, third])[0]
    assert across.passed is False and "us-east-1a, us-east-1b" in across.evidence


def test_what_is_not_there_is_one_line(ec2):
    with pytest.raises(WorkshopError, match="ec2 describe_security_groups: InvalidGroup"):
        efa_network.check_security_group(ec2, "sg-0000")
    with pytest.raises(WorkshopError, match="ec2 describe_subnets: InvalidSubnetID"):
        efa_network.check_subnets(ec2, ["subnet-0000"])


def test_interfaces_of_instances(ec2, network):
    group, (subnet, *_) = network
    machine = ec2.run_instances(
        ImageId=ec2.describe_images()["Images"][0]["ImageId"], InstanceType="p4d.24xlarge",
        MinCount=1, MaxCount=1, NetworkInterfaces=[{"DeviceIndex": 0, "SubnetId": subnet}],
    )["Instances"][0]["InstanceId"]  # fmt: skip
    checks = efa_network.check_network(
        ec2, group_id=group, subnet_ids=[subnet], instance_ids=[machine]
    )
    assert checks[-1].evidence == "0 of 4 of type efa or efa-only"  # moto makes none of type efa
    assert [check.outcome for check in checks] == ["fail", "fail", "pass", "pass", "fail"]


@pytest.mark.parametrize(
    ("kind", "types", "outcome"),
    [
        ("p4d.24xlarge", ["efa", "efa", "efa", "efa"], "pass"),
        ("p4d.24xlarge", ["interface", *["efa-only"] * 4], "pass"),
        ("p4d.24xlarge", ["efa", "interface", "interface", "interface"], "fail"),
        ("m7i.xlarge", ["interface"], "not applicable"),
        ("x9.metal", ["efa"], "cannot tell"),
    ],
)
def test_interfaces_as_described(kind, types, outcome):
    """DescribeInstances' form: `InterfaceType` is interface, efa or efa-only."""
    machine = {"InstanceId": "i-1", "InstanceType": kind,
               "NetworkInterfaces": [{"InterfaceType": each} for each in types]}  # fmt: skip
    (check,) = efa_network.check_instances([{"Instances": [machine]}])
    assert check.outcome == outcome


def test_without_a_region_the_client_says_so(monkeypatch, tmp_path):
    pytest.importorskip("boto3", reason="boto3 is not installed")
    for name in ("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(EnvironmentError_, match=r"no EC2 client: .*region.*; set AWS_REGION"):
        efa_network.ec2_client()


def test_a_lesson_has_an_ec2_api_of_its_own():
    pytest.importorskip("moto", reason="moto is not installed")
    with efa_network.practice_ec2() as (ec2, group, subnet):
        checks = efa_network.check_network(ec2, group_id=group, subnet_ids=[subnet])
        assert [check.outcome for check in checks] == ["fail", "fail", "pass", "pass"]
        efa_network.fix_security_group(ec2, group, apply=True)
        assert efa_network.check_network(ec2, group_id=group, subnet_ids=[subnet]).passed


def test_what_the_lesson_reads_says_what_it_should():
    read = lambda name: data_path(f"documented/{name}").read_text()  # noqa: E731
    assert "nothing comes in" in efa.check_counters(
        read("efa-counters-before.txt"), read("efa-counters-after.txt"))[0].evidence  # fmt: skip
    assert efa.check_nccl_log(read("nccl-socket.log"))[0].passed is False
