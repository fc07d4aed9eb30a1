"""GPU health, read from what commands print: nvidia-smi's CSV and the kernel's XID lines.

Pure functions over text, so they hold for a pod's `nvidia-smi`, a node's, and one in a mail.
What a GPU or driver does not report ("[N/A]") is no error: it is said, and decides nothing.

Sources: the fields are those of `nvidia-smi --help-query-gpu` (driver 580); what counters and
flags mean is in NVIDIA's "GPU Memory Error Management"; XIDs are in `production.checks.xid`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workshop_lib.checklist import Check, CheckList
from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.cluster.base import Cluster

__all__ = ["FIELDS", "Gpu", "check_gpus", "gpu_table", "query_command", "query_gpus", "read_gpus"]

FIELDS = (
    "index", "name", "pci.bus_id", "driver_version", "temperature.gpu", "temperature.memory",
    "power.draw", "power.limit", "utilization.gpu", "memory.used", "memory.total",
    "ecc.mode.current",
    "ecc.errors.corrected.volatile.total", "ecc.errors.uncorrected.volatile.total",
    "ecc.errors.corrected.aggregate.total", "ecc.errors.uncorrected.aggregate.total",
    "retired_pages.pending",
    "remapped_rows.correctable", "remapped_rows.uncorrectable",
    "remapped_rows.pending", "remapped_rows.failure",
    "clocks_event_reasons.hw_thermal_slowdown", "clocks_event_reasons.sw_thermal_slowdown",
    "clocks_event_reasons.hw_power_brake_slowdown", "clocks_event_reasons.sw_power_cap",
)  # fmt: skip
"""What is asked of nvidia-smi. Volatile counts start at 0 with the driver, aggregate ones never."""

MANY_CORRECTED = 1000
"""Corrected errors since the driver was loaded from which on a GPU is worth watching."""

HOT_C = 90.0
"""Without a slowdown flag, a core as hot as this is reported (an H200 slows down at 89 C)."""

_LOST = ("requires reset", "is lost", "unknown error", "err!", "unable to determine")
"""What nvidia-smi prints, in a cell or instead of a line, for a GPU that does not answer."""


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi's table.

    Attributes:
        values: Field to its value, without unit, as printed; fields without a value are absent.
        missing: Field to why it has no value, as printed ("[N/A]").
    """

    values: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages name it: its index and type."""
        return f"GPU {self.values.get('index', '?')} ({self.values.get('name', 'unknown type')})"

    def number(self, name: str) -> float | None:
        """A field as a number; None when it has none."""
        try:
            return float(self.values[name].split()[0])
        except (KeyError, ValueError, IndexError):
            return None

    def flag(self, name: str) -> bool | None:
        """A field that says yes or no; None when it says neither."""
        said = self.values.get(name, "").lower()
        if said in ("yes", "active", "1", "enabled"):
            return True
        return False if said in ("no", "not active", "0", "disabled") else None


def query_command(fields: Sequence[str] = FIELDS) -> list[str]:
    """The command whose output these functions read.

    Example:
        >>> query_command(["index", "name"])
        ['nvidia-smi', '--query-gpu=index,name', '--format=csv']
    """
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv"]


def query_gpus(cluster: Cluster, pod: str) -> str:
    """What `nvidia-smi` prints in a pod.

    Args:
        cluster: Where the pod runs.
        pod: Its name, or the beginning of one.

    Raises:
        WorkshopError: The command fails there: most often because the pod has no GPU.
    """
    done = cluster.exec(pod, query_command())
    if done.exit_code:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        raise WorkshopError(
            f"nvidia-smi in pod {pod} ended with {done.exit_code} ({said}); "
            "does the pod ask for nvidia.com/gpu?"
        )
    return done.stdout


def read_gpus(text: str) -> list[Gpu]:
    r"""The GPUs of nvidia-smi's CSV, with its header line.

    Args:
        text: What `query_command` printed. Lines before the header are skipped, columns may be
            in any order and fewer, units may be there or not. Of several readings
            (`nvidia-smi -l`) the last of each GPU counts. Without its header
            (`csv,noheader`) a table is only read when it has just the columns of `FIELDS`.

    Raises:
        WorkshopError: There is no such table; the line quotes what is there instead.

    Example:
        >>> read_gpus("index, temperature.gpu\n0, 36\n")[0].number("temperature.gpu")
        36.0
    """
    lines = [line for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if "index" in _cells(line)), None)
    if start is None and any(_is_row(line) and len(_cells(line)) == len(FIELDS) for line in lines):
        lines, start = [", ".join(FIELDS), *lines], 0
    if start is None:
        said = lines[0].strip()[:160] if lines else "nothing"
        raise WorkshopError(
            f"this is no output of nvidia-smi --query-gpu=index,... --format=csv: {said!r}; "
            f"next: {_next(said)}"
        )
    header, *rows = csv.reader(lines[start:], skipinitialspace=True)
    names = [_NEW_NAMES.sub("clocks_event_reasons.", n.split(" [")[0].strip()) for n in header]
    found = [Gpu({}, {"line": line.strip()[:160]}) for line in lines[:start] if _is_lost(line)]
    for row in _last_readings(rows, header, names.index("index")):
        if len(row) != len(names):
            found.append(Gpu({}, {"line": ", ".join(row)[:160]}))
            continue
        pairs = {name: value.strip() for name, value in zip(names, row, strict=True)}
        absent = {name: value or "empty" for name, value in pairs.items() if _is_nothing(value)}
        found.append(Gpu({k: v for k, v in pairs.items() if k not in absent}, absent))
    return found


_NEW_NAMES = re.compile(r"^clocks_throttle_reasons\.")
"""Drivers before 535 know the clocks' reasons by this name."""

_REASONS = (
    ("version mismatch", "restart the node: its driver was replaced under the loaded module"),
    ("No devices were found", "look for XID 79 in dmesg; does the pod ask for nvidia.com/gpu?"),
    ("couldn't communicate", "load the driver on the node, or use EKS's accelerated AMI"),
)
"""What nvidia-smi says instead of a table, and what mends it."""


def _next(said: str) -> str:
    """What to do when there is no table."""
    if _is_row(said):
        return "keep the header line: --format=csv, without noheader"
    return next((fix for words, fix in _REASONS if words.lower() in said.lower()),
                f"run {query_command()[0]} on a machine with a GPU")  # fmt: skip


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]


def _is_row(line: str) -> bool:
    return len(cells := _cells(line)) > 1 and cells[0].isdigit()


def _last_readings(rows: list[list[str]], header: list[str], index: int) -> list[list[str]]:
    """The last line of each GPU; what follows a header that comes again is another machine's."""
    last: dict[tuple[int, str], list[str]] = {}
    table = 0
    for number, row in enumerate(rows):
        if row == header:
            table += 1
            continue
        known = len(row) == len(header) and row[index].strip().isdigit()
        last[table, row[index].strip() if known else f"unreadable {number}"] = row
    return list(last.values())


def _is_nothing(value: str) -> bool:
    """Whether nvidia-smi prints this in place of a value: `[N/A]`, `[Not Supported]`, `ERR!`."""
    return value.lower() in ("", "n/a", "not supported", "err!") or value.startswith("[")


def _is_lost(said: str) -> bool:
    return any(word in said.lower() for word in _LOST)


def _problems(gpu: Gpu) -> list[tuple[str, str, str]]:
    """What is wrong with a GPU: topic, evidence, fix."""
    found = []

    def note(topic: str, evidence: str, fix: str) -> None:
        found.append((topic, f"{gpu.name}: {evidence}", fix))

    if "line" in gpu.missing:
        gone = _is_lost(gpu.missing["line"])
        note("read", f"unreadable line {gpu.missing['line']!r}",
             "drain the node, reset the GPU; look for its XID in dmesg" if gone
             else "run nvidia-smi again")  # fmt: skip
    lost = {name: said for name, said in gpu.missing.items() if _is_lost(said)}
    if lost and "line" not in gpu.missing:
        name, said = next(iter(lost.items()))
        note(
            "read", f"{name} is {said}", "drain the node, reset the GPU; look for its XID in dmesg"
        )
    fresh = gpu.number("ecc.errors.uncorrected.volatile.total")
    if fresh:
        note("memory", f"{fresh:.0f} uncorrectable memory errors since the driver was loaded",
             "drain the node, reset the GPU; if it comes again, have it replaced")  # fmt: skip
    if gpu.flag("remapped_rows.failure"):
        note("memory", "remapping a bad memory row failed", "have the GPU replaced")
    for name, what in (("remapped_rows.pending", "row remapping"),
                       ("retired_pages.pending", "page retirement")):  # fmt: skip
        if gpu.flag(name):
            note("memory", f"a {what} waits for a reset", "drain the node and reset the GPU")
    corrected = gpu.number("ecc.errors.corrected.volatile.total")
    if corrected and corrected >= MANY_CORRECTED:
        note("memory", f"{corrected:.0f} corrected memory errors since the driver was loaded",
             "watch it; errors that can be corrected cost nothing but warn of others")  # fmt: skip
    if gpu.flag("ecc.mode.current") is False:
        note("ecc", "error correction is off", "nvidia-smi -e 1, then reset the GPU")
    for name in ("hw_thermal_slowdown", "sw_thermal_slowdown"):
        if gpu.flag(f"clocks_event_reasons.{name}"):
            note("heat", f"it runs slower because of its temperature ({name})",
                 "stop the load; on EC2 stop and start the instance: it moves")  # fmt: skip
    hot = gpu.number("temperature.gpu")
    if hot is not None and hot >= HOT_C and not any(t == "heat" for t, _, _ in found):
        note("heat", f"{hot:.0f} C", "look at it under load again")
    if gpu.flag("clocks_event_reasons.hw_power_brake_slowdown"):
        note("power", "it runs slower because the machine's power supply asks it to",
             "on EC2 stop and start the instance: it moves")  # fmt: skip
    return found


_TOPICS = {
    "read": "every GPU's line can be read",
    "memory": "no memory errors that need a reset or a replacement",
    "ecc": "memory errors are corrected (ECC)",
    "heat": "no GPU is slowed down by heat",
    "power": "no GPU is slowed down by the power supply",
}
_NEEDS = {
    "memory": "ecc.errors.uncorrected.volatile.total",
    "ecc": "ecc.mode.current",
    "heat": "temperature.gpu",
    "power": "clocks_event_reasons.hw_power_brake_slowdown",
}


def check_gpus(text: str, *, expected: int | None = None) -> CheckList:
    r"""Whether the GPUs of a machine are well.

    A power cap (`sw_power_cap`) is no failure: under full load it is the normal limit.

    Args:
        text: What `query_command` printed.
        expected: GPUs that the machine should have.

    Raises:
        WorkshopError: It is no table of nvidia-smi.

    Example:
        >>> check_gpus("index, name\n0, NVIDIA L4\n", expected=8)[0].evidence
        '1 GPU of 8'
    """
    gpus = read_gpus(text)
    count = f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'}"
    wanted = f" of {expected}" if expected is not None else ""
    checks = CheckList(
        [
            Check(
                "the GPUs are all there", bool(gpus) and expected in (None, len(gpus)),
                count + wanted,
                "" if gpus and expected in (None, len(gpus))
                else "look for XID 79 in dmesg: a GPU that has fallen off the bus is not listed",
            )
        ]
    )  # fmt: skip
    problems = [each for gpu in gpus for each in _problems(gpu)]
    for topic, name in _TOPICS.items():
        own = [(evidence, fix) for what, evidence, fix in problems if what == topic]
        if own:
            fixes = "; ".join(dict.fromkeys(fix for _, fix in own))
            checks.append(Check(name, False, "; ".join(evidence for evidence, _ in own), fixes))
            continue
        checks.append(_well(topic, name, gpus))
    return checks


def _well(topic: str, name: str, gpus: Sequence[Gpu]) -> Check:
    """A topic without a problem: passed, or not told because no GPU reports it."""
    need = _NEEDS.get(topic)
    silent = [gpu for gpu in gpus if need is not None and need not in gpu.values]
    if silent:
        why = silent[0].missing.get(str(need), "not asked for")
        return Check(
            name, None, f"{need} is {why} on {len(silent)} of {len(gpus)}",
            f"ask with: {' '.join(query_command(['index', str(need)]))}",
        )  # fmt: skip
    hottest = max((gpu.number("temperature.gpu") or 0.0 for gpu in gpus), default=0.0)
    seen = f"{hottest:.0f} C at most" if topic == "heat" else f"{len(gpus)} looked at"
    return Check(name, bool(gpus), seen, "" if gpus else "there is no GPU")


def gpu_table(text: str) -> pd.DataFrame:
    """One row a GPU: what it does, its errors, and a verdict with its reason.

    Args:
        text: What `query_command` printed.

    Returns:
        Columns `gpu`, `type`, `temp_c`, `power_w`, `util_percent`, `memory_gib`,
        `corrected`, `uncorrected` (since the driver was loaded), `verdict`, `why`.
    """
    import pandas as pd

    rows = []
    for gpu in read_gpus(text):
        used, total = gpu.number("memory.used"), gpu.number("memory.total")
        problems = _problems(gpu)
        rows.append({
            "gpu": gpu.values.get("index", "?"),
            "type": gpu.values.get("name", "?").removeprefix("NVIDIA "),
            "temp_c": gpu.number("temperature.gpu"),
            "power_w": gpu.number("power.draw"),
            "util_percent": gpu.number("utilization.gpu"),
            "memory_gib": "" if used is None or total is None
            else f"{used / 1024:.1f} of {total / 1024:.1f}",
            "corrected": gpu.number("ecc.errors.corrected.volatile.total"),
            "uncorrected": gpu.number("ecc.errors.uncorrected.volatile.total"),
            "verdict": "look at it" if problems else "well",
            "why": "; ".join(e.partition(": ")[2] for _, e, _ in problems)
            or (f"not reported: {', '.join(gpu.missing)}" if gpu.missing else ""),
        })  # fmt: skip
    return pd.DataFrame(rows)
