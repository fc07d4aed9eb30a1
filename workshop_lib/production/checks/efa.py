"""EFA inside a pod or on a node, read from what commands print.

EFA fails silently: NCCL then uses TCP, or waits for ever. So each sign is looked at by itself:
devices, libfabric's provider, the plugin's file, the environment, NCCL's log, the counters of two
readings, `fi_pingpong`. `workshop_lib.production.checks.efa_network` looks at the EC2 side.

Sources: AWS' EFA user guide (`fi_info -p efa -t FI_EP_RDM`); `efa-cheatsheet.md` of
aws-samples/awsome-distributed-training (environment); NCCL's user guide on `NCCL_NET_PLUGIN` and
aws/aws-ofi-nccl pull request 808 (names of the plugin); aws/aws-ofi-nccl issues 156 and 663
(security groups).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.catalogue import catalogue, instance
from workshop_lib.errors import ClusterError, NotFoundError

if TYPE_CHECKING:
    from workshop_lib.cluster.base import Cluster

__all__ = ["check_counters", "check_efa", "check_nccl_log", "check_pingpong", "collect_efa"]

COMMANDS = {
    "devices": "ls /dev/infiniband",
    "fi_info": "fi_info -p efa -t FI_EP_RDM",
    "plugin": "ldconfig -p | grep libnccl-net; ls /opt/amazon/*ofi-nccl/lib/libnccl-net* "
    "/opt/amazon/*ofi-nccl/lib/*/libnccl-net* 2>/dev/null; true",
    "environment": "env",
    "counters": "for f in /sys/class/infiniband/*/ports/1/hw_counters/[rt]x_*; "
    "do echo $f $(cat $f); done",
}
"""What is run in a pod, by a shell; each output goes to the check of the same name."""

_OBSOLETE = {
    "RDMAV_FORK_SAFE": "it is not to be used any more: remove it",
    "FI_EFA_FORK_SAFE": "current libfabric does this by itself: remove it",
    "FI_PROVIDER": "not needed by a current aws-ofi-nccl: remove it",
    "FI_EFA_USE_DEVICE_RDMA": "not needed by a current aws-ofi-nccl: remove it",
}
_RULES = (
    "give the security group ingress and egress rules for itself, keep the nodes in one zone: "
    "check_network(ec2, group_id=..., subnet_ids=[...])"
)


def collect_efa(cluster: Cluster, pod: str, *, peer: str | None = None) -> dict[str, str]:
    """What the commands of the EFA checks print in a pod; one that fails gives its error instead.

    Args:
        cluster: Where the pod runs.
        pod: Its name, or the beginning of one.
        peer: A pod on another EFA node: `fi_pingpong` runs between the two, too, for at most 60 s.

    Raises:
        NotFoundError: There is no such pod.

    Example:
        >>> outputs = collect_efa(cluster, "ray-cluster-0", peer="ray-cluster-1")  # doctest: +SKIP
        >>> check_efa(outputs, instance_type="p5.48xlarge")                        # doctest: +SKIP
    """

    def ask(where: str, command: str) -> str:
        try:
            done = cluster.exec(where, ["sh", "-c", command])
        except NotFoundError:  # of the pod, not of the command
            raise
        except ClusterError as error:
            return str(error)
        return done.stdout + done.stderr

    outputs = {name: ask(pod, command) for name, command in COMMANDS.items()}
    if peer is not None:
        pingpong = "timeout 60 fi_pingpong -p efa -e rdm"
        said = ask(peer, f"{pingpong} >/dev/null 2>&1 & hostname -i")
        address = next(iter(said.split()), peer)
        outputs["pingpong"] = ask(pod, f"sleep 2; {pingpong} {address}")
    return outputs


def check_efa(outputs: Mapping[str, str], *, instance_type: str) -> CheckList:
    """Every check that the outputs of `collect_efa` allow.

    Args:
        outputs: Name of a command to what it printed.
        instance_type: The node's EC2 type.

    Raises:
        WorkshopError: The instance type is not in the catalogue.

    Example:
        >>> listing = {"devices": "uverbs0 uverbs1 uverbs2 uverbs3"}
        >>> check_efa(listing, instance_type="p4d.24xlarge")[0].passed
        True
    """
    pairs = (line.partition("=") for line in outputs.get("environment", "").splitlines())
    environment = {name: value for name, _, value in pairs}
    checks = [
        _devices(outputs.get("devices", ""), instance_type),
        _fi_info(outputs.get("fi_info", ""), instance_type),
        _plugin(outputs.get("plugin", ""), environment.get("NCCL_NET_PLUGIN", "")),
        _environment(environment),
    ]
    more = [check_pingpong(outputs["pingpong"])] if "pingpong" in outputs else []
    return CheckList([*checks, *more])


def _devices(listing: str, instance_type: str) -> Check:
    wanted = instance(instance_type).efa
    name = f"the pod has the EFA devices of a {instance_type}"
    found = set(re.findall(r"\buverbs\d+\b", listing))
    if not wanted:
        return Check(name, None, f"a {instance_type} has no EFA", applies=False)
    seen = f"{len(found)} of {wanted} uverbs devices"
    fix = f"ask for vpc.amazonaws.com/efa: {wanted} and see that the EFA device plugin runs there"
    return Check(name, len(found) == wanted, seen, fix)


def _fi_info(output: str, instance_type: str) -> Check:
    """Whether libfabric finds the provider `efa` with reliable datagrams."""
    name = "libfabric finds EFA"
    if not output.strip():
        return Check(name, None, "no output", f"run: {COMMANDS['fi_info']}")
    if re.search(r"not found|No such file", output):
        return Check(name, None, _first(output), "the image has no fi_info: mount /opt/amazon/efa")
    domains = {
        domain
        for block in re.split(r"(?=^provider:)", output, flags=re.MULTILINE)
        if re.search(r"^provider:\s*efa\s*$", block, re.MULTILINE) and "FI_EP_RDM" in block
        for domain in re.findall(r"^\s+domain:\s*(\S+)", block, re.MULTILINE)
    }
    if not domains:
        fix = "-61 is 'no data': no device in the pod, or a libfabric without the efa provider"
        return Check(name, False, _first(output), fix)
    wanted = catalogue()[instance_type].efa
    seen = f"provider efa with {len(domains)} of {wanted} domains"
    return Check(name, len(domains) == wanted, seen, "ask for all devices: vpc.amazonaws.com/efa")


def _plugin(listing: str, chosen: str) -> Check:
    """Whether NCCL finds the OFI plugin under the name that the container asks for.

    NCCL_NET_PLUGIN=x makes NCCL load `x` or `libnccl-net-x.so`; unset, it loads `libnccl-net.so`.
    NVIDIA's containers with NCCL 2.29 set `aws-ofi`, and the EFA installer lays down
    `libnccl-net-ofi.so` and `libnccl-net.so`: NCCL then takes TCP, without an error.
    """
    name = f"NCCL finds its EFA plugin (NCCL_NET_PLUGIN={chosen or 'not set'})"
    found = sorted(set(re.findall(r"(?:\S*/)?libnccl-net\S*\.so\b", listing)), key=len)
    wanted = {chosen, f"libnccl-net-{chosen}.so"} if chosen else {"libnccl-net.so"}
    own = [path for path in found if "ofi" in path]  # not another network's, such as HPC-X's
    fitting = [path for path in own if path in wanted or path.rpartition("/")[2] in wanted]
    if fitting:
        return Check(name, True, fitting[-1])
    if not own:
        fix = "install aws-ofi-nccl, or mount /opt/amazon of the node"
        return Check(name, False, "no plugin of aws-ofi-nccl", fix)
    seen = f"only {own[-1]}; NCCL looks for {' or '.join(sorted(wanted))}"
    other = own[-1].rpartition("/")[2].removeprefix("libnccl-net").removesuffix(".so").strip("-")
    return Check(
        name, False, seen, f"set NCCL_NET_PLUGIN={other}" if other else "unset NCCL_NET_PLUGIN"
    )


def _environment(variables: Mapping[str, str]) -> Check:
    """Whether the environment leaves EFA to NCCL: nothing obsolete, nothing that turns it off."""
    wrong = [f"{n}={variables[n]}: {why}" for n, why in _OBSOLETE.items() if n in variables]
    if variables.get("NCCL_NET_PLUGIN") == "none" or variables.get("NCCL_NET") == "Socket":
        wrong.append("NCCL is told to use TCP (NCCL_NET_PLUGIN=none or NCCL_NET=Socket)")
    seen = f"nothing obsolete; NCCL_SOCKET_IFNAME={variables.get('NCCL_SOCKET_IFNAME', 'not set')}"
    name = "the environment leaves EFA to NCCL"
    return Check(name, not wrong, "; ".join(wrong) or seen, "change the pod's env")


_TAKES_OFI = re.compile(
    r"[Ss]elected [Pp]rovider is efa|(via NET/|network |plugin ).*(Libfabric|OFI)"
)
_TAKES_TCP = re.compile(r"via NET/Socket|Using network Socket|NET plugin Socket")
_NO_PLUGIN = re.compile(r"No eligible providers|NET/Plugin.*(not find|No plugin)|NET/OFI.*failed")
_FAILS = re.compile(
    r"refused|unreachable|no route to host|tim(ed|ing) ?out|timeout waiting|broken pipe|"
    r"reset by peer|closed by remote|completed with error|prov_err|unhandled|nccl\w+Error",
    re.IGNORECASE,
)
_WARNS = re.compile(r"NCCL WARN|<warn>|\bERROR\b")


def check_nccl_log(lines: str | Iterable[str]) -> CheckList:
    """Whether NCCL talked over EFA and whether its ranks reach one another, from its own log.

    A request that failed, a refused connection or a timeout fails the second check, also at the
    level INFO; another warning of NCCL or libfabric makes it "cannot tell".

    Args:
        lines: The log with `NCCL_DEBUG=INFO`, as text or line by line.

    Example:
        >>> check_nccl_log("h:1:1 [0] NCCL INFO NET/OFI Selected provider is efa")[0].outcome
        'pass'
    """
    lines = lines.splitlines() if isinstance(lines, str) else list(lines)
    nccl = [line for line in lines if re.search(r"\bNCCL (INFO|WARN)\b|libfabric", line)]
    network = "NCCL uses EFA (NET/OFI), not TCP (NET/Socket)"
    reach = "NCCL's ranks reach one another"
    if not nccl:
        rest = (None, "no NCCL line in the log", "set NCCL_DEBUG=INFO and run again")
        return CheckList([Check(network, *rest), Check(reach, *rest)])

    def first(pattern: re.Pattern[str]) -> str:
        return next((_said(line) for line in nccl if pattern.search(line)), "")

    look = "look at devices, plugin and environment: check_efa(collect_efa(cluster, pod), ...)"
    tcp, ofi, failed, warned = map(first, (_TAKES_TCP, _TAKES_OFI, _FAILS, _WARNS))
    if tcp:
        seen = " and ".join(each for each in (first(_NO_PLUGIN), tcp) if each)
        checks = CheckList([Check(network, False, seen, look)])
    else:
        seen = ofi or "NCCL's log names no network: one node needs none"
        checks = CheckList([Check(network, bool(ofi) or None, seen, look)])
    if failed:
        checks.append(Check(reach, False, failed, _other_interface(nccl, failed) or _RULES))
    elif warned:
        checks.append(Check(reach, None, warned, "read the log from this line on"))
    else:
        checks.append(Check(reach, True, "no failed request, refusal or timeout in the log"))
    return checks


def _other_interface(lines: Iterable[str], failed: str) -> str:
    """What to do when NCCL dials an address that only its own node knows."""
    for text in re.findall(r"\d+\.\d+\.\d+\.\d+", failed):
        address = ipaddress.ip_address(text)
        if address.is_link_local or address.is_loopback:
            named = re.search(rf"\[\d+\]([\w.-]+):{re.escape(text)}<", "\n".join(lines))
            interface = named[1] if named else "its interface"
            return (
                f"{text} ({interface}) is an address that no other node reaches: exclude it, "
                f"NCCL_SOCKET_IFNAME=^{interface},lo"
            )
    return ""


def _counters(output: str) -> dict[str, dict[str, int]]:
    """Hardware counters by device, from `COMMANDS["counters"]` or from `tx_pkts: N` lines."""
    found: dict[str, dict[str, int]] = {}
    device = "efa"
    for line in output.splitlines():
        if path := re.search(r"infiniband/([^/\s]+)", line):
            device = path[1]
        if pair := re.search(r"\b([rt]x_\w+)\s*[:=\s]\s*(\d+)\s*$", line):
            found.setdefault(device, {})[pair[1]] = int(pair[2])
    return found


def check_counters(before: str, after: str) -> CheckList:
    r"""Whether packets go out and come in between two readings, while ranks talk.

    Packets out and none in is the sign of a network that drops them (security group); neither
    is the sign that EFA is not used at all.

    Args:
        before: Lines of `.../infiniband/<device>/ports/1/hw_counters/<name> <number>`, read first.
        after: The same, some seconds of traffic later.

    Example:
        >>> path = "/sys/class/infiniband/rdmap0/ports/1/hw_counters/"
        >>> one, two = (f"{path}tx_pkts {n}\n{path}rx_pkts 7" for n in (1, 90))
        >>> check_counters(one, two)[0].outcome
        'fail'
    """
    first, second = _counters(before), _counters(after)
    name, need = "EFA packets go out and come in", {"tx_pkts", "rx_pkts"}
    both = sorted(d for d in set(first) & set(second) if need <= set(first[d]) & set(second[d]))
    if not both:
        why = "no device has tx_pkts and rx_pkts in both readings"
        return CheckList([Check(name, None, why, "read all of hw_counters in the pod, twice")])

    def rise(counter: str) -> list[int]:
        return [second[each].get(counter, 0) - first[each].get(counter, 0) for each in both]

    sent, received, drops = rise("tx_pkts"), rise("rx_pkts"), sum(rise("rx_drops"))
    seen = f"{sum(sent)} out, {sum(received)} in, on {len(both)} devices"
    silent = [d for d, out, came in zip(both, sent, received, strict=True) if out and not came]
    passed: bool | None = False
    if min(*sent, *received) < 0:
        passed, fix = None, "take two readings again"
        seen = "counters went back: the node or driver was restarted between the readings"
    elif silent:
        seen, fix = (
            f"{seen}; nothing comes in on {', '.join(silent)}",
            f"the network drops it: {_RULES}",
        )
    elif any(received) and not any(sent):
        passed, seen = None, f"{seen}: this node only receives"
        fix = f"take two readings while both sides send; if still nothing goes out: {_RULES}"
    else:
        passed, fix = any(sent), "EFA is not used: look at NCCL's log and the plugin"
    drop_fix = "a few are harmless; many: too many connections for the device"
    dropped = Check("no packet is dropped on arrival", not drops, f"{drops} rx_drops", drop_fix)
    return CheckList([Check(name, passed, seen, fix), dropped])


def check_pingpong(output: str) -> Check:
    """Whether `fi_pingpong -p efa -e rdm <peer>` got answers.

    Args:
        output: What the client printed: a table with one row a message size.

    Example:
        >>> check_pingpong("").outcome
        'fail'
    """
    name = "fi_pingpong reaches the other node over EFA"
    row = r"(?im)^\s*(\d+[kmg]?)\s+\d+[kmg]?\s.*?([\d.]+)\s+[\d.]+\s*$"
    if rows := re.findall(row, output):
        size, usec = rows[-1]
        return Check(name, True, f"{len(rows)} sizes, {usec} us a transfer at {size} bytes")
    seen = _first(output) if output.strip() else "no output: it waits"
    return Check(name, False, seen, f"does fi_pingpong run on the peer? Then {_RULES}")


def _said(line: str) -> str:
    start = re.search(r"NCCL |libfabric", line)
    return " ".join(line[start.start() if start else 0 :].split())[:160]


def _first(output: str) -> str:
    return next((line.strip()[:140] for line in output.splitlines() if line.strip()), "no output")
