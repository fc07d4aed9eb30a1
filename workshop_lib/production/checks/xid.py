"""XID lines of the kernel's log, and what NVIDIA's catalogue says to do about each.

An XID is the driver's report of an error, as a number. Most come from a program that reads a
wrong address, some from memory, a link or firmware. `data/xids.yaml` gives the immediate action
for each number; the alerts of `manifests/base/monitoring` follow the same table.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from workshop_lib.checklist import Check, CheckList
from workshop_lib.data import data_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_xids", "xid_severity", "xid_table"]

_LINE = re.compile(
    r"^(?P<before>.*?)NVRM: Xid \((?:PCI:)?(?P<bus>[0-9a-fA-F:.]+)(?: [^)]*)?\): "
    r"(?P<number>\d+)(?:, (?P<rest>.*))?$"
)
_TIME = re.compile(r"\[\s*([^\]]+?)\s*\]|^(\w{3}\s+\d+ [\d:]+|\d{4}-\d\d-\d\d[T ][\d:,.+-]+)")
_REPEATS = 3
"""Programs that fail on one GPU, and on no other, from which on the GPU is the suspect."""


Xid: TypeAlias = dict[str, Any]
"""A line: when, the GPU's PCI address, and what the catalogue and the driver say."""


@functools.cache
def _table() -> dict[str, dict[Any, Any]]:
    found: dict[str, dict[Any, Any]] = yaml.safe_load(data_path("xids.yaml").read_text())
    return found


def xid_severity(number: int) -> str:
    """How urgent an XID is: `critical`, `info` (a program has to be restarted) or `none`.

    Example:
        >>> [xid_severity(number) for number in (79, 94, 63, 9999)]
        ['critical', 'info', 'none', 'critical']
    """
    now = _table()["xids"].get(number, {"now": "ASK"})["now"]
    return str(_table()["actions"][now]["severity"])


def _read(lines: str | Iterable[str]) -> list[Xid]:
    """The XID lines of a kernel log; everything else is passed over."""
    lines = lines.splitlines() if isinstance(lines, str) else lines
    found: list[Xid] = []
    for match in filter(None, (_LINE.match(line.strip()) for line in lines)):
        number, rest = int(match["number"]), match["rest"] or ""
        unknown = {"what": "not in the catalogue", "now": "ASK", "origin": "unknown"}
        entry = _table()["xids"].get(number, unknown)
        do = entry.get("do") or _table()["actions"][entry["now"]]["do"]
        urgent = xid_severity(number) == "critical"
        if number == 154 and (asked := re.search(r"to 0x\w+ \(([^)]+)\)", rest)):
            do, urgent = f"the driver now asks for: {asked[1]}", asked[1] != "None"
        pid, process = re.search(r"pid='?(\d+)", rest), re.search(r"name=([^,]+)", rest)
        stamp = _TIME.search(match["before"])
        text = re.sub(r"(pid|name)=('[^']*'|[^,]*),? ?", "", rest).strip()
        found.append(
            {
                "time": (stamp[1] or stamp[2] or "") if stamp else "",
                **{"gpu": match["bus"], "xid": number, "what": entry["what"]},
                **{"origin": entry["origin"], "text": text, "do": do},
                "process": process[1].strip("<>' ") if process else "",
                **{"pid": pid[1] if pid else "", "urgent": urgent},
            }
        )
    return found


def xid_table(lines: str | Iterable[str]) -> pd.DataFrame:
    """The XIDs of a kernel log, one row each, with what to do.

    Args:
        lines: What `dmesg`, `journalctl -k` or a syslog file has, as text or line by line.

    Returns:
        Columns `time`, `gpu` (PCI address), `xid`, `what`, `origin`, `process`, `text`, `do`.

    Example:
        >>> xid_table("NVRM: Xid (PCI:0000:cb:00): 31, pid=7, name=python, x")["origin"].item()
        'application'
    """
    import pandas as pd

    columns = ["time", "gpu", "xid", "what", "origin", "process", "text", "do"]
    return pd.DataFrame(_read(lines), columns=columns)


def check_xids(lines: str | Iterable[str]) -> CheckList:
    """Whether the kernel's log holds XIDs that point to hardware.

    A program's own errors (13, 31, 43) do not fail the check, unless one GPU has them from
    several programs while the others have none: then the GPU is the suspect.

    Args:
        lines: The log, as text or line by line; only XID and SXid lines count.

    Example:
        >>> [each.outcome for each in check_xids("NVRM: Xid (PCI:0000:cb:00): 79, gone")]
        ['fail', 'pass', 'pass']
    """
    lines = lines.splitlines() if isinstance(lines, str) else list(lines)
    found = _read(lines)
    broken = [each for each in found if each["urgent"]]
    own = [each for each in found if not each["urgent"] and each["origin"] == "application"]
    switches = [line[line.index("SXid") :] for line in lines if "SXid (PCI:" in line]
    programs = {each["pid"] for each in own if each["pid"]}
    suspect = len({each["gpu"] for each in own}) == 1 and len(programs) >= _REPEATS
    gathered = f"{len(programs)} programs had {_listed(own)}; no other GPU has any"
    fixes = dict.fromkeys(f"XID {each['xid']}: {each['do']}" for each in broken)
    seen = _listed(broken) or f"{len(found)} XIDs, none of these"
    checks = [Check("no XID asks for a reset or a replacement", not broken, seen, "; ".join(fixes))]
    seen = gathered if suspect else _listed(own) or "no program's errors"
    fix = "run the same program on another GPU: if it runs there, have this one replaced"
    checks.append(Check("programs' errors do not gather on one GPU", not suspect, seen, fix))
    seen = switches[0][:120] if switches else "no SXid line"
    fix = "fatal ones: drain the node and terminate its instance; see NVIDIA's Fabric Manager guide"
    return CheckList([*checks, Check("no NVSwitch reports errors", not switches, seen, fix)])


def _listed(xids: Sequence[Xid]) -> str:
    """Each number once, with its count and GPUs."""
    words = []
    for number in sorted({each["xid"] for each in xids}):
        same = [each for each in xids if each["xid"] == number]
        buses = ", ".join(sorted({each["gpu"] for each in same}))
        words.append(f"XID {number} ({same[0]['what']}), {len(same)} times on {buses}")
    return "; ".join(words)
