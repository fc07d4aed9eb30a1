"""EFA's EC2 side: security groups and subnets, through the EC2 API.

Read only, but for `fix_security_group(..., apply=True)`. `ec2` is a boto3 client.

Sources: AWSEC2 UserGuide, "Create and attach an Elastic Fabric Adapter": the group must allow all
traffic to and from itself, in and out; aws/aws-ofi-nccl issue 663 and gardener's
extension-provider-aws issue 1832: a rule for 0.0.0.0/0 does not count; ParallelCluster's guide:
EFA does not cross Availability Zones.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

from workshop_lib.checklist import Check, CheckList
from workshop_lib.errors import EnvironmentError_, WorkshopError

__all__ = ["check_network", "ec2_client", "fix_security_group", "practice_ec2"]

_DIRECTIONS = {"ingress": "IpPermissions", "egress": "IpPermissionsEgress"}


def ec2_client(region: str | None = None) -> Any:
    """A boto3 client of the EC2 API, with the machine's own credentials.

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
    """One call of the EC2 API; no credentials, no permission or no such object is one line."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer: dict[str, Any] = getattr(ec2, operation)(**arguments)
    except ClientError as error:
        said = error.response["Error"]
        raise WorkshopError(f"ec2 {operation}: {said['Code']}: {said['Message'][:200]}") from None
    except BotoCoreError as error:
        raise WorkshopError(f"ec2 {operation}: {str(error)[:200]}; aws sso login?") from None
    return answer


def _security_group(ec2: Any, group_id: str) -> CheckList:
    """Whether a security group lets EFA's traffic to and from itself pass, both ways."""
    group = _ask(ec2, "describe_security_groups", GroupIds=[group_id])["SecurityGroups"][0]
    checks = CheckList()
    for direction, key in _DIRECTIONS.items():
        rules = group.get(key) or []
        own = [r for r in rules if group_id in [p.get("GroupId") for p in r["UserIdGroupPairs"]]]
        whole = any(rule["IpProtocol"] == "-1" for rule in own)
        if whole:
            seen = f"all traffic, group {group_id} itself"
        elif own:
            seen = f"a rule for {group_id} itself, but not for all protocols"
        elif any(b["CidrIp"] == "0.0.0.0/0" for rule in rules for b in rule["IpRanges"]):
            seen = "only 0.0.0.0/0, which EFA's traffic does not match"
        else:
            seen = f"no rule for {group_id} itself"
        fix = (
            f"aws ec2 authorize-security-group-{direction} --group-id {group_id} "
            f"--ip-permissions 'IpProtocol=-1,UserIdGroupPairs=[{{GroupId={group_id}}}]'"
        )
        checks.append(Check(f"{group_id}: {direction} to itself", whole, seen, fix))
    return checks


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
    checks = _security_group(ec2, group_id)
    rule = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]}
    for check, direction in zip(checks, _DIRECTIONS, strict=True):
        if apply and not check.passed:
            operation = f"authorize_security_group_{direction}"
            _ask(ec2, operation, GroupId=group_id, IpPermissions=[rule])
    return [check.fix for check in checks if not check.passed]


def check_network(ec2: Any, *, group_id: str, subnet_ids: Sequence[str]) -> CheckList:
    """All that the EC2 API can say about EFA between some nodes.

    EFA stays within one Availability Zone and VPC. That it drops packets in a secondary CIDR of
    the VPC is reported by users, without a public source: there the check cannot tell, and says
    which reading decides.

    Args:
        ec2: A client of the EC2 API.
        group_id: The nodes' security group.
        subnet_ids: Their subnets.

    Raises:
        WorkshopError: The API refuses, or something of this is not there.

    Example:
        >>> with practice_ec2() as (ec2, group, subnet):        # doctest: +SKIP
        ...     check_network(ec2, group_id=group, subnet_ids=[subnet])
    """
    return CheckList([*_security_group(ec2, group_id), *_subnets(ec2, subnet_ids)])


def _subnets(ec2: Any, subnet_ids: Sequence[str]) -> Iterator[Check]:
    subnets = _ask(ec2, "describe_subnets", SubnetIds=list(subnet_ids))["Subnets"]
    zones = sorted({subnet["AvailabilityZone"] for subnet in subnets})
    vpcs = sorted({subnet["VpcId"] for subnet in subnets})
    yield Check(
        "the nodes' subnets are in one zone and VPC",
        len(zones) == len(vpcs) == 1,
        f"{', '.join(zones)}; {', '.join(vpcs)}",
        "put the nodes of one job into one Availability Zone (availabilityZones of the node group, "
        "or a NodePool's requirement topology.kubernetes.io/zone)",
    )
    known = {vpc["VpcId"]: vpc for vpc in _ask(ec2, "describe_vpcs", VpcIds=vpcs)["Vpcs"]}
    for subnet in subnets:
        block = ipaddress.IPv4Network(subnet["CidrBlock"])
        primary = ipaddress.IPv4Network(known[subnet["VpcId"]]["CidrBlock"])
        seen = f"{block} is in the VPC's primary CIDR {primary}"
        if not block.subnet_of(primary):
            seen = (
                f"{block} is not in the primary CIDR {primary}: users report dropped packets, "
                "AWS documents no such limit"
            )
        yield Check(
            f"{subnet['SubnetId']}: addresses of the VPC's primary CIDR",
            block.subnet_of(primary) or None,
            seen,
            "read the hw counters twice under load: tx_pkts rises and rx_pkts does not",
        )
