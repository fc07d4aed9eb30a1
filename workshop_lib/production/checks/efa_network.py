"""EFA's EC2 side: security groups, subnets, interfaces, through the EC2 API.

Read only, but for `fix_security_group(..., apply=True)`. `ec2` is a boto3 client.

Sources: AWSEC2 UserGuide "Create and attach an Elastic Fabric Adapter": the group must allow
all traffic to and from itself, in and out; aws/aws-ofi-nccl issue 663 and gardener's
extension-provider-aws issue 1832: a rule for 0.0.0.0/0 does not count; ParallelCluster's guide:
EFA does not cross Availability Zones.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.catalogue import catalogue
from workshop_lib.errors import EnvironmentError_, WorkshopError

__all__ = [
    "check_instances", "check_network", "check_security_group", "check_subnets", "ec2_client",
    "fix_security_group", "practice_ec2",
]  # fmt: skip

Json = Mapping[str, Any]


def ec2_client(region: str | None = None) -> Any:
    """A boto3 client of the EC2 API, with the machine's own credentials.

    Args:
        region: Such as `us-east-1`; default: the configured one.

    Raises:
        EnvironmentError_: boto3 is not installed, or no region is configured.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise EnvironmentError_("boto3 is not installed; run: pip install boto3") from None
    try:
        return boto3.client("ec2", region_name=region)
    except BotoCoreError as error:
        raise EnvironmentError_(f"no EC2 client: {error}; set AWS_REGION") from error


@contextlib.contextmanager
def practice_ec2() -> Iterator[tuple[Any, str, str]]:
    """An EC2 API to practise on: moto's, in this process, with no account behind it.

    Yields:
        A client, a security group with the rules that EC2 gives a new one, a subnet.

    Raises:
        EnvironmentError_: boto3 or moto is not installed.
    """
    try:
        import moto
    except ImportError:
        raise EnvironmentError_("moto is not installed; run: pip install 'moto[ec2]'") from None
    with moto.mock_aws():  # puts credentials of nobody into the environment, for as long
        ec2 = ec2_client("us-east-1")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/20")["Subnet"]["SubnetId"]
        group = ec2.create_security_group(GroupName="efa", Description="practice", VpcId=vpc)
        yield ec2, group["GroupId"], subnet


def _ask(ec2: Any, operation: str, **arguments: Any) -> dict[str, Any]:
    """One call of the EC2 API.

    Raises:
        WorkshopError: No credentials, no permission, no such object, no answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer: dict[str, Any] = getattr(ec2, operation)(**arguments)
    except ClientError as error:
        detail = error.response["Error"]
        raise WorkshopError(
            f"ec2 {operation}: {detail['Code']}: {detail['Message'][:200]}"
        ) from None
    except BotoCoreError as error:
        raise WorkshopError(f"ec2 {operation}: {str(error)[:200]}; aws sso login?") from None
    return answer


def check_security_group(ec2: Any, group_id: str) -> CheckList:
    """Whether a security group lets EFA's traffic to and from itself pass, both ways.

    Args:
        ec2: A client of the EC2 API.
        group_id: Such as `sg-0a1b2c3d`.

    Raises:
        WorkshopError: The API refuses, or there is no such group.

    Example:
        >>> for check in check_security_group(ec2_client(), "sg-0a1b"): ...   # doctest: +SKIP
    """
    group = _ask(ec2, "describe_security_groups", GroupIds=[group_id])["SecurityGroups"][0]
    return CheckList(
        _direction(group, direction, key)
        for direction, key in (("ingress", "IpPermissions"), ("egress", "IpPermissionsEgress"))
    )


def _direction(group: Json, direction: str, key: str) -> Check:
    group_id = group["GroupId"]
    own = [
        rule for rule in group.get(key) or []
        if any(pair.get("GroupId") == group_id for pair in rule.get("UserIdGroupPairs") or [])
    ]  # fmt: skip
    whole = any(rule["IpProtocol"] == "-1" for rule in own)
    anywhere = any(
        block.get("CidrIp") == "0.0.0.0/0"
        for rule in group.get(key) or []
        for block in rule.get("IpRanges") or []
    )
    if whole:
        seen = f"all traffic, group {group_id} itself"
    elif own:
        seen = f"a rule for {group_id} itself, but not for all protocols"
    elif anywhere:
        seen = "only 0.0.0.0/0, which EFA's traffic does not match"
    else:
        seen = f"no rule for {group_id} itself"
    return Check(f"{group_id}: {direction} to itself", whole, seen, _command(group_id, direction))


def _command(group_id: str, direction: str) -> str:
    return (
        f"aws ec2 authorize-security-group-{direction} --group-id {group_id} "
        f"--ip-permissions 'IpProtocol=-1,UserIdGroupPairs=[{{GroupId={group_id}}}]'"
    )


def fix_security_group(ec2: Any, group_id: str, *, apply: bool = False) -> list[str]:
    """The commands that give a security group its rules for itself; runs them only when told.

    Args:
        ec2: A client of the EC2 API.
        group_id: Such as `sg-0a1b2c3d`.
        apply: Change the group. Without it nothing is changed.

    Returns:
        The commands for what was missing; empty when nothing was.

    Raises:
        WorkshopError: The API refuses.
    """
    missing = [check for check in check_security_group(ec2, group_id) if not check.passed]
    if apply:
        rule = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}
        for check in missing:
            direction = "ingress" if "ingress" in check.name else "egress"
            _ask(ec2, f"authorize_security_group_{direction}", GroupId=group_id,
                 IpPermissions=[rule])  # fmt: skip
    return [check.fix for check in missing]


def check_subnets(ec2: Any, subnet_ids: Sequence[str]) -> CheckList:
    """Whether nodes of these subnets can reach one another over EFA.

    EFA stays within one Availability Zone and VPC. That it drops packets in a secondary CIDR
    of the VPC is reported by users, without a public source: there the check cannot tell, and
    says which reading decides.

    Args:
        ec2: A client of the EC2 API.
        subnet_ids: The nodes' subnets.

    Raises:
        WorkshopError: The API refuses, or there is no such subnet.
    """
    subnets = _ask(ec2, "describe_subnets", SubnetIds=list(subnet_ids))["Subnets"]
    zones = sorted({subnet["AvailabilityZone"] for subnet in subnets})
    vpcs = sorted({subnet["VpcId"] for subnet in subnets})
    checks = CheckList(
        [
            Check(
                "the nodes' subnets are in one zone and VPC", len(zones) == len(vpcs) == 1,
                f"{', '.join(zones)}; {', '.join(vpcs)}",
                "put the nodes of one job into one Availability Zone (a NodePool's requirement "
                "topology.kubernetes.io/zone)",
            )
        ]
    )  # fmt: skip
    known = {vpc["VpcId"]: vpc for vpc in _ask(ec2, "describe_vpcs", VpcIds=vpcs)["Vpcs"]}
    for subnet in subnets:
        block = ipaddress.ip_network(subnet["CidrBlock"])
        primary = ipaddress.ip_network(known[subnet["VpcId"]]["CidrBlock"])
        inside = block.version == primary.version and block.subnet_of(primary)  # type: ignore[arg-type]
        where = "the VPC's primary CIDR" if inside else "not the primary CIDR"
        checks.append(
            Check(
                f"{subnet['SubnetId']}: addresses of the VPC's primary CIDR",
                True if inside else None,
                f"{block} is {'in ' if inside else ''}{where} {primary}"
                + ("" if inside else ": users report dropped packets, AWS documents no such limit"),
                "read the hw counters twice under load: tx_pkts rises and rx_pkts does not",
            )
        )
    return checks


def check_instances(reservations: Sequence[Json]) -> CheckList:
    """Whether instances have all the EFA interfaces that their type can have.

    Args:
        reservations: `Reservations` of DescribeInstances.
    """
    checks = CheckList()
    for machine in (each for found in reservations for each in found["Instances"]):
        kind = machine["InstanceType"]
        interfaces = machine.get("NetworkInterfaces") or []
        found = sum(each.get("InterfaceType") in ("efa", "efa-only") for each in interfaces)
        name = f"{machine['InstanceId']} ({kind}) has its EFA interfaces"
        if kind not in catalogue():
            why = f"{found} interfaces; the catalogue does not have {kind}"
            checks.append(Check(name, None, why, f"aws ec2 describe-instance-types {kind}"))
            continue
        wanted = catalogue()[kind].efa
        checks.append(
            Check(
                name, found == wanted, f"{found} of {wanted} of type efa or efa-only",
                "interfaces are given at launch: launch template, or Karpenter's "
                "vpc.amazonaws.com/efa request",
                applies=wanted > 0,
            )
        )  # fmt: skip
    return checks


def check_network(
    ec2: Any, *, group_id: str, subnet_ids: Sequence[str], instance_ids: Sequence[str] = ()
) -> CheckList:
    """All that the EC2 API can say about EFA between some nodes.

    Args:
        ec2: A client of the EC2 API.
        group_id: The nodes' security group.
        subnet_ids: Their subnets.
        instance_ids: The nodes' instances.

    Raises:
        WorkshopError: The API refuses.
    """
    checks = check_security_group(ec2, group_id)
    checks += check_subnets(ec2, subnet_ids)
    if instance_ids:
        answer = _ask(ec2, "describe_instances", InstanceIds=list(instance_ids))
        checks += check_instances(answer["Reservations"])
    return CheckList(checks)
