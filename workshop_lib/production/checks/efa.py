"""EFA inside a pod or on a node, read from what commands print.

EFA fails silently: NCCL then uses TCP, or waits for ever. So each sign is looked at by itself:
devices, libfabric's provider, the plugin's file, the environment, NCCL's log, the counters of
two readings, `fi_pingpong`. `workshop_lib.production.checks.efa_network` looks at the EC2 side.

Sources: AWS' EFA user guide (`fi_info -p efa -t FI_EP_RDM`); `efa-cheatsheet.md` of
aws-samples/awsome-distributed-training (environment); NVIDIA/exemplar-performance issue 39
(NCCL 2.29 and the plugin's name); aws/aws-ofi-nccl issue 663 (security groups).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from workshop_lib.checklist import Check, CheckList
from workshop_lib.cluster.catalogue import catalogue, instance
from workshop_lib.errors import ClusterError, NotFoundError

if TYPE_CHECKING:
    from workshop_lib.cluster.base import Cluster

__all__ = [
    "COMMANDS", "check_counters", "check_devices", "check_efa", "check_environment",
    "check_fi_info", "check_nccl_log", "check_pingpong", "check_plugin", "collect", "read_counters",
]  # fmt: skip

COMMANDS = {
    "devices": ["ls", "/dev/infiniband"],
    "fi_info": ["fi_info", "-p", "efa", "-t", "FI_EP_RDM"],
    "plugin": ["sh", "-c", "ldconfig -p | grep libnccl-net; "
               "ls /opt/amazon/ofi-nccl/lib/libnccl-net* "
               "/opt/amazon/ofi-nccl/lib/*/libnccl-net* "
               "/opt/amazon/aws-ofi-nccl/lib/libnccl-net* 2>/dev/null; true"],
    "environment": ["env"],
    "counters": ["sh", "-c", "for f in /sys/class/infiniband/*/ports/1/hw_counters/[rt]x_*; "
                 "do echo $f $(cat $f); done"],
}  # fmt: skip
"""What is run in a pod; each output goes to the check of the same name."""

_SETTINGS = {
    "RDMAV_FORK_SAFE": "it is not to be used any more: remove it",
    "FI_EFA_FORK_SAFE": "current libfabric does this by itself: remove it",
    "FI_PROVIDER": "not needed by a current aws-ofi-nccl: remove it",
    "FI_EFA_USE_DEVICE_RDMA": "not needed by a current aws-ofi-nccl: remove it",
}
_OLD, _NEW = "libnccl-net-ofi.so", "libnccl-net-aws-ofi.so"


def collect(cluster: Cluster, pod: str) -> dict[str, str]:
    """What `COMMANDS` print in a pod; a command that fails gives its error as output.

    Args:
        cluster: Where the pod runs.
        pod: Its name, or the beginning of one.

    Raises:
        NotFoundError: There is no such pod.
    """
    outputs = {}
    for name, command in COMMANDS.items():
        try:
            done = cluster.exec(pod, command)
            outputs[name] = done.stdout + done.stderr
        except NotFoundError:  # of the pod, not of the command
            raise
        except ClusterError as error:
            outputs[name] = str(error)
    return outputs


def check_efa(outputs: Mapping[str, str], *, instance_type: str, nccl: str = "2.29") -> CheckList:
    """Every check that the outputs of `collect` allow.

    Args:
        outputs: Name of a command to what it printed.
        instance_type: The node's EC2 type.
        nccl: NCCL's version.

    Raises:
        WorkshopError: The instance type is not in the catalogue.
    """
    checks = CheckList([check_devices(outputs.get("devices", ""), instance_type)])
    checks.append(check_fi_info(outputs.get("fi_info", ""), instance_type))
    checks.append(check_plugin(outputs.get("plugin", ""), nccl=nccl))
    environment = outputs.get("environment", "")
    pairs = (line.partition("=") for line in environment.splitlines() if "=" in line)
    checks.append(check_environment({name: value for name, _, value in pairs}))
    return checks


def check_devices(listing: str, instance_type: str) -> Check:
    """Whether a pod sees all of its machine's EFA devices.

    Args:
        listing: What `ls /dev/infiniband` printed.
        instance_type: The node's EC2 type.

    Raises:
        WorkshopError: The instance type is not in the catalogue.

    Example:
        >>> check_devices("uverbs0 uverbs1 uverbs2 uverbs3", "p4d.24xlarge").passed
        True
    """
    wanted = instance(instance_type).efa
    name = f"the pod has the EFA devices of a {instance_type}"
    found = set(re.findall(r"\buverbs\d+\b", listing))
    if not wanted:
        return Check(name, None, f"a {instance_type} has no EFA", applies=False)
    return Check(
        name, len(found) == wanted, f"{len(found)} of {wanted} uverbs devices",
        f"ask for vpc.amazonaws.com/efa: {wanted} and see that the EFA device plugin runs there",
    )  # fmt: skip


def check_fi_info(output: str, instance_type: str | None = None) -> Check:
    """Whether libfabric finds the provider `efa` with reliable datagrams.

    Args:
        output: What `fi_info -p efa -t FI_EP_RDM` printed.
        instance_type: The node's EC2 type, to compare the number of domains.
    """
    name = "libfabric finds EFA"
    domains = {
        domain
        for block in re.split(r"(?=^provider:)", output, flags=re.MULTILINE)
        if re.search(r"^provider:\s*efa\s*$", block, re.MULTILINE)
        and re.search(r"type:\s*FI_EP_RDM", block)
        for domain in re.findall(r"^\s+domain:\s*(\S+)", block, re.MULTILINE)
    }
    if not output.strip():
        return Check(name, None, "no output", "run: fi_info -p efa -t FI_EP_RDM")
    if re.search(r"not found|No such file", output):
        return Check(name, None, _first(output), "the image has no fi_info: mount /opt/amazon/efa")
    if not domains:
        return Check(
            name, False, _first(output),
            "-61 is 'no data': no device in the pod, or a libfabric without the efa provider",
        )  # fmt: skip
    wanted = catalogue()[instance_type].efa if instance_type in catalogue() else len(domains)
    return Check(
        name, len(domains) == wanted, f"provider efa with {len(domains)} of {wanted} domains",
        "ask for all of the machine's devices: vpc.amazonaws.com/efa",
    )  # fmt: skip


def check_plugin(listing: str, *, nccl: str) -> Check:
    """Whether NCCL finds the OFI plugin under the name that its version looks for.

    NVIDIA's containers with NCCL 2.29 set `NCCL_NET_PLUGIN=aws-ofi`, so NCCL looks for
    `libnccl-net-aws-ofi.so`; the EFA installer lays down `libnccl-net-ofi.so`. Where the name
    is not found NCCL takes TCP, without an error.

    Args:
        listing: Paths of the plugin files, from `ls` or `ldconfig -p`.
        nccl: NCCL's version.

    Example:
        >>> check_plugin("/opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so", nccl="2.29.3").outcome
        'fail'
    """
    name = f"NCCL {nccl} finds its EFA plugin"
    number = re.match(r"(\d+)\.(\d+)", nccl)
    if number is None:
        return Check(name, None, f"{nccl!r} is no version", "see NCCL's first log line")
    wanted = _NEW if (int(number[1]), int(number[2])) >= (2, 29) else _OLD
    found = re.findall(r"(?:\S*/)?libnccl-net\S*\.so\b", listing)
    own = [path for path in found if path.rpartition("/")[2] == wanted]
    if wanted == _OLD:  # older NCCL looks for libnccl-net.so first; not every one is for EFA
        own += [path for path in found if re.search(r"ofi-nccl/.*libnccl-net\.so$", path)]
    if own:
        return Check(name, True, own[-1])
    other = [path for path in found if path.rpartition("/")[2] in (_OLD, _NEW)]
    if not other:
        seen = "no libnccl-net-*ofi.so"
        return Check(name, False, seen, "install aws-ofi-nccl, or mount /opt/amazon of the node")
    folder = other[-1].rpartition("/")[0] or "."
    fix = f"ln -s {other[-1]} {folder}/{wanted}"
    return Check(name, False, f"only {other[-1]}; it looks for {wanted}", fix)


def check_environment(variables: Mapping[str, str]) -> Check:
    """Whether the environment leaves EFA to NCCL: nothing obsolete, nothing that turns it off.

    Args:
        variables: Name to value.
    """
    wrong = {name: f"{name}={variables[name]}: {why}" for name, why in _SETTINGS.items()
             if name in variables}  # fmt: skip
    if variables.get("NCCL_NET_PLUGIN") == "none" or variables.get("NCCL_NET") == "Socket":
        wrong["off"] = "NCCL is told to use TCP (NCCL_NET_PLUGIN=none or NCCL_NET=Socket)"
    names = variables.get("NCCL_SOCKET_IFNAME", "")
    shown = f"NCCL_SOCKET_IFNAME={names}" if names else "NCCL chooses its interface"
    return Check(
        "the environment leaves EFA to NCCL", not wrong,
        "; ".join(wrong.values()) or f"nothing obsolete is set; {shown}",
        "change the pod's env",
    )  # fmt: skip


def check_nccl_log(lines: str | Iterable[str]) -> CheckList:
    """Whether NCCL talked over EFA, from its own log (`NCCL_DEBUG=INFO`).

    Args:
        lines: The log, as text or line by line.

    Example:
        >>> check_nccl_log("h:1:1 [0] NCCL INFO NET/OFI Selected provider is efa")[0].outcome
        'pass'
    """
    lines = lines.splitlines() if isinstance(lines, str) else list(lines)
    ofi = [line for line in lines if re.search(r"NET/OFI.*[Ss]elected [Pp]rovider is efa", line)]
    used_ofi = [line for line in lines if re.search(r"via NET/(OFI|Libfabric|AWS Libfabric)", line)]
    socket = [
        line
        for line in lines
        if re.search(
            r"via NET/Socket|Using network Socket|(?:Initialized|Assigned) NET plugin Socket", line
        )
    ]
    used = [line for line in lines if re.search(
        r"Using network (\S.*)$|(?:Initialized|Assigned) NET plugin \S", line)]  # fmt: skip
    missing = [line for line in lines if re.search(r"NET/Plugin.*(not find|No plugin)", line)]
    waits = re.compile(r"NCCL WARN.*([Tt]imeout|[Tt]imed out|Connection refused)")
    stuck = [line for line in lines if waits.search(line)]
    name = "NCCL uses EFA (NET/OFI), not TCP (NET/Socket)"
    fix = "look at devices, plugin name and environment: check_efa(collect(cluster, pod), ...)"
    if socket:
        seen = " and ".join(_said(each) for each in (missing[:1] + socket[:1]))
        first = Check(name, False, seen, fix)
    elif ofi or used_ofi or any("Libfabric" in line or "OFI" in line for line in used):
        first = Check(name, True, _said((ofi or used_ofi or used)[0]))
    elif any("NCCL INFO" in line for line in lines):
        first = Check(name, None, "NCCL's log names no network: one node needs none", fix)
    else:
        why = "no NCCL line in the log"
        first = Check(name, None, why, "set NCCL_DEBUG=INFO and run again")
    return CheckList(
        [
            first,
            Check(
                "NCCL's ranks reach one another", not stuck,
                _said(stuck[0]) if stuck else "no timeout in the log",
                "compare counters of both nodes; check the security group's rules for itself",
            ),
        ]
    )  # fmt: skip


def read_counters(output: str) -> dict[str, dict[str, int]]:
    """Hardware counters by device, from `COMMANDS["counters"]` or `tx_pkts: N` lines.

    Args:
        output: Lines of `.../infiniband/<device>/ports/1/hw_counters/<name> <number>`.

    Example:
        >>> read_counters("/sys/class/infiniband/rdmap0/ports/1/hw_counters/tx_pkts 7")
        {'rdmap0': {'tx_pkts': 7}}
    """
    found: dict[str, dict[str, int]] = {}
    device = "efa"
    for line in output.splitlines():
        if path := re.search(
            r"infiniband/([^/\s]+)(?:/ports/\d+/hw_counters/(\w+)\s+(\d+))?", line
        ):
            device = path[1]
            if path[2]:
                found.setdefault(device, {})[path[2]] = int(path[3])
        elif pair := re.match(r"\s*([rt]x_\w+)\s*[:=]\s*(\d+)\s*$", line):
            found.setdefault(device, {})[pair[1]] = int(pair[2])
    return found


def check_counters(before: str, after: str) -> CheckList:
    """Whether packets go out and come in between two readings, while ranks talk.

    Packets out and none in is the sign of a network that drops them (security group);
    neither is the sign that EFA is not used at all.

    Args:
        before: The counters' output, read first.
        after: The same, some seconds of traffic later.
    """
    first, second = read_counters(before), read_counters(after)
    both = sorted(set(first) & set(second))
    name = "EFA packets go out and come in"
    if not both:
        why = "no hw_counters of one device in both readings"
        return CheckList([Check(name, None, why, "read /sys/class/infiniband twice in the pod")])

    def rise(counter: str) -> dict[str, int]:
        return {each: second[each].get(counter, 0) - first[each].get(counter, 0) for each in both}

    lacking = [each for each in both if {"tx_pkts", "rx_pkts"} - set(first[each])
               or {"tx_pkts", "rx_pkts"} - set(second[each])]  # fmt: skip
    if lacking:
        why = f"no tx_pkts or no rx_pkts of {', '.join(lacking)} in one of the readings"
        return CheckList([Check(name, None, why, "read all of hw_counters, both times")])
    sent, received = rise("tx_pkts"), rise("rx_pkts")
    if any(value < 0 for value in (*sent.values(), *received.values())):
        why = "counters went back: the node or driver was restarted between the readings"
        return CheckList([Check(name, None, why, "take two readings again")])
    total = f"{sum(sent.values())} out, {sum(received.values())} in, on {len(both)} devices"
    silent = [each for each in both if sent[each] and not received[each]]
    if silent:
        check = Check(
            name, False, f"{total}; nothing comes in on {', '.join(silent)}",
            "the network drops it: give the security group ingress and egress rules for itself",
        )  # fmt: skip
    elif any(received.values()) and not any(sent.values()):
        check = Check(
            name, None, f"{total}: this node only receives",
            "take two readings while both sides send; if still nothing goes out, look at the "
            "security group's egress rule for itself",
        )  # fmt: skip
    elif not any(sent.values()):
        check = Check(name, False, total, "EFA is not used: look at NCCL's log and the plugin")
    else:
        check = Check(name, True, total)
    drops = sum(rise("rx_drops").values())
    return CheckList(
        [check, Check("no packet is dropped on arrival", not drops, f"{drops} rx_drops",
                      "a few are harmless; many: too many connections for the device")]
    )  # fmt: skip


def check_pingpong(output: str) -> Check:
    """Whether `fi_pingpong -p efa -e rdm <peer>` got answers.

    Args:
        output: What the client printed: a table with one row a message size.
    """
    name = "fi_pingpong reaches the other node over EFA"
    rows = re.findall(r"^\s*(\d+[kmg]?)\s+(\d+[kmg]?)\s.*?([\d.]+)\s+([\d.]+)\s+([\d.]+)\s*$",
                      output, re.MULTILINE | re.IGNORECASE)  # fmt: skip
    if rows:
        last = rows[-1]
        return Check(name, True, f"{len(rows)} sizes, {last[3]} us a transfer at {last[0]} bytes")
    if not output.strip():
        seen = "no output: it waits"
        fix = "start fi_pingpong -p efa -e rdm on the peer first; check the security group"
        return Check(name, False, seen, fix)
    return Check(name, False, _first(output), "start it on the peer first, then with its address")


def _said(line: str) -> str:
    """A log line from NCCL on, cut to a length that a table takes."""
    start = line.find("NCCL ")
    return " ".join(line[max(start, 0) :].split())[:140]


def _first(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[0][:140] if lines else "no output"
