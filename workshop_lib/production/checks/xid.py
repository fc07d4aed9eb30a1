"""XID lines of the kernel's log, and what NVIDIA's catalogue says to do about each.

An XID is the driver's report of an error, as a number. Most come from a program that reads a
wrong address, some from memory, a link or firmware. The catalogue (`data/xids.yaml`) gives an
immediate action for each number; the verdict here says it in words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.checklist import Check, CheckList
from workshop_lib.data import data_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Xid", "check_xids", "read_xids", "xid_table"]

_LINE = re.compile(
    r"^(?P<before>.*?)NVRM: Xid \((?:PCI:)?(?P<bus>[0-9a-fA-F:.]+)\): (?P<number>\d+)"
    r"(?:, (?P<rest>.*))?$"
)
_SWITCH = re.compile(r"SXid \(PCI:(?P<bus>[0-9a-fA-F:.]+)\): (?P<number>\d+), (?P<rest>.*)")
_TIME = re.compile(r"\[\s*([^\]]+?)\s*\]|^(\w{3}\s+\d+ [\d:]+|\d{4}-\d\d-\d\d[T ][\d:,.+-]+)")

ACTIONS = {
    "": "nothing is known of an action: ask NVIDIA's or AWS' support",
    "IGNORE": "nothing to do for this one",
    "RESTART_APP": "restart the program",
    "RESET_GPU": "drain the node and reset the GPU (on EKS: replace the node)",
    "RESTART_BM": "replace the node: the machine must be power-cycled",
    "RESTART_VM": "restart the instance",
    "CHECK_MECHANICALS": "replace the node: the board has no power",
    "WORKFLOW_XID_45": "follow the other XIDs of this GPU; alone it is a killed program",
    "WORKFLOW_XID_48": "drain the node and reset the GPU; if it comes again, have it replaced",
    "WORKFLOW_NVLINK_ERR": "reset the GPU or replace the node; see nvidia-smi nvlink -e",
    "WORKFLOW_NVLINK5_ERR": "look its bits up in NVIDIA's catalogue; then reset or replace",
    "XID_154": "do what its text names",
}
"""NVIDIA's resolution buckets, in words."""

_HARMLESS = ("IGNORE", "RESTART_APP", "WORKFLOW_XID_45")
_REPEATS = 3


@dataclass(frozen=True)
class Xid:
    """One XID line.

    Attributes:
        number: The XID.
        bus: The GPU's PCI address.
        time: When, as the log has it; empty without.
        pid: The process that ran, None when the line names none.
        process: Its name.
        text: What the driver adds.
    """

    number: int
    bus: str
    time: str = ""
    pid: int | None = None
    process: str = ""
    text: str = ""

    @property
    def entry(self) -> dict[str, str]:
        """What the catalogue says of its number."""
        unknown = {"what": "not in the catalogue", "now": "", "origin": "unknown"}
        found: dict[str, str] = _catalogue().get(self.number, unknown)
        return found

    @property
    def needs_hands(self) -> bool:
        """Whether more than a restart of the program is called for."""
        if self.number == 154:
            return not re.search(r"to 0x\w+ \(None\)", self.text)
        return self.entry["now"] not in _HARMLESS

    @property
    def verdict(self) -> str:
        """What to do, in words."""
        if self.number == 154 and (found := re.search(r"to 0x\w+ \(([^)]+)\)", self.text)):
            return f"the driver now asks for: {found[1]}"
        return ACTIONS[self.entry["now"]]


@functools.cache
def _catalogue() -> dict[int, Any]:
    found: dict[int, Any] = yaml.safe_load(data_path("xids.yaml").read_text())
    return found


def read_xids(lines: str | Iterable[str]) -> list[Xid]:
    """The XID lines of a kernel log; everything else in it is passed over.

    Args:
        lines: What `dmesg`, `journalctl -k` or a syslog file has, as text or line by line.

    Example:
        >>> read_xids("[12.3] NVRM: Xid (PCI:0000:cb:00): 79, GPU is lost.")[0].number
        79
    """
    found = []
    for line in lines.splitlines() if isinstance(lines, str) else lines:
        match = _LINE.match(line.strip())
        if match is None:
            continue
        rest = match["rest"] or ""
        pid = re.search(r"pid='?(\d+)", rest)
        process = re.search(r"name=([^,]+)", rest)
        text = re.sub(r"(pid|name)=('[^']*'|[^,]*),? ?", "", rest).strip()
        stamp = _TIME.search(match["before"])
        found.append(
            Xid(
                number=int(match["number"]),
                bus=match["bus"],
                time=(stamp[1] or stamp[2] or "") if stamp else "",
                pid=int(pid[1]) if pid else None,
                process=process[1].strip("<>' ") if process else "",
                text=text,
            )
        )
    return found


def xid_table(lines: str | Iterable[str]) -> pd.DataFrame:
    """The XIDs of a kernel log, one row each, with what to do.

    Args:
        lines: The log, as text or line by line.

    Returns:
        Columns `time`, `gpu` (PCI address), `xid`, `what`, `origin`, `process`, `text`, `do`.
    """
    import pandas as pd

    columns = ["time", "gpu", "xid", "what", "origin", "process", "text", "do"]
    rows = [
        [x.time, x.bus, x.number, x.entry["what"], x.entry["origin"], x.process, x.text, x.verdict]
        for x in read_xids(lines)
    ]
    return pd.DataFrame(rows, columns=columns)


def check_xids(lines: str | Iterable[str]) -> CheckList:
    """Whether the kernel's log holds XIDs that point to hardware.

    A program's own errors (13, 31, 43) do not fail the check, unless one GPU has them from
    several programs while the others have none: then the GPU is the suspect.

    Args:
        lines: The log, as text or line by line; only XID and SXID lines count.

    Example:
        >>> [each.outcome for each in check_xids("NVRM: Xid (PCI:0000:cb:00): 79, gone")]
        ['fail', 'pass', 'pass']
    """
    lines = lines.splitlines() if isinstance(lines, str) else list(lines)
    found = read_xids(lines)
    broken = [xid for xid in found if xid.needs_hands]
    own = [xid for xid in found if not xid.needs_hands and xid.entry["origin"] == "application"]
    switches = [match[0] for line in lines if (match := _SWITCH.search(line))]
    suspects = _suspects(own)
    return CheckList(
        [
            Check(
                "no XID asks for a reset or a replacement", not broken,
                _listed(broken) or f"{len(found)} XIDs, none of these",
                "; ".join(dict.fromkeys(f"XID {x.number}: {x.verdict}" for x in broken)),
            ),
            Check(
                "programs' errors do not gather on one GPU", not suspects,
                "; ".join(suspects) or (_listed(own) or "no program's errors"),
                "run the same program on another GPU: if it runs there, have this one replaced",
            ),
            Check(
                "no NVSwitch reports errors", not switches,
                switches[0][:120] if switches else "no SXid line",
                "fatal ones: replace the node; see NVIDIA's Fabric Manager guide",
            ),
        ]
    )  # fmt: skip


def _listed(xids: Sequence[Xid]) -> str:
    """The XIDs of a kind, each number once with its count and GPUs."""
    words = []
    for number in sorted({xid.number for xid in xids}):
        same = [xid for xid in xids if xid.number == number]
        buses = ", ".join(sorted({xid.bus for xid in same}))
        times = "once" if len(same) == 1 else f"{len(same)} times"
        words.append(f"XID {number} ({same[0].entry['what']}), {times} on {buses}")
    return "; ".join(words)


def _suspects(xids: Sequence[Xid]) -> list[str]:
    """GPUs that several programs have errors on, while no other GPU has any."""
    buses = {xid.bus for xid in xids}
    if len(buses) != 1:
        return []
    programs = {xid.pid for xid in xids if xid.pid is not None}
    if len(programs) < _REPEATS:
        return []
    numbers = ", ".join(str(number) for number in sorted({xid.number for xid in xids}))
    return [f"{len(programs)} programs had XID {numbers} on {buses.pop()}, and no other GPU has"]
