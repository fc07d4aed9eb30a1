"""GPU health, read from the CSV that nvidia-smi prints, in a pod, on a node or in a mail.

A value that a GPU or driver does not report ("[N/A]") is said and decides nothing.

Sources: fields of `nvidia-smi --help-query-gpu` (driver 580); NVIDIA, "GPU Memory Error
Management" (counters, row remapping, and when a GPU is replaced).
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

from workshop_lib.checklist import Check, CheckList
from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.cluster.base import Cluster

__all__ = ["check_gpus", "gpu_table", "query_gpus"]

UNCORRECTED = "ecc.errors.uncorrected.volatile.total"
CORRECTED = "ecc.errors.corrected.volatile.total"
CLOCKS = "clocks_event_reasons."
FIELDS = [
    *("index", "name", "pci.bus_id", "driver_version", "temperature.gpu", "power.draw"),
    *("utilization.gpu", "memory.used", "memory.total", "ecc.mode.current", CORRECTED, UNCORRECTED),
    *("retired_pages.pending", "remapped_rows.pending", "remapped_rows.failure"),
    *(f"{CLOCKS}hw_thermal_slowdown", f"{CLOCKS}sw_thermal_slowdown"),
    f"{CLOCKS}hw_power_brake_slowdown",
]
"""What is asked of nvidia-smi. Volatile counts start at 0 when the driver is loaded."""
COMMAND = ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv"]

MANY_CORRECTED, HOT_C = 1000, 90.0
"""Errors that are watched; and the heat of a core that is reported without a slowdown flag, too (an
H200 slows down at 89 C)."""

RESET = "drain the node and reset the GPU"
REPLACE_NODE = (
    "drain the node and terminate its instance; the node group or Karpenter starts another"
)
_LOST = ("requires reset", "is lost", "unknown error", "err!", "unable to determine")
_INSTEAD = {
    "version mismatch": "the node's driver was replaced under the loaded module: " + REPLACE_NODE,
    "no devices were found": "look for XID 79 in dmesg; does the pod ask for nvidia.com/gpu?",
    "couldn't communicate": "load the driver on the node, or use EKS's accelerated AMI",
    "driver version:": "this is the plain table; the checks read the query above",
    "": "run it on a machine with a GPU, and keep the header line (no noheader)",
}
"""What nvidia-smi says in place of the CSV, and what to do."""
_FLAGS = {
    "remapped_rows.failure": ("remapping a bad memory row failed", "replace the GPU"),
    "remapped_rows.pending": ("a row remapping waits for a reset", RESET),
    "retired_pages.pending": ("a page retirement waits for a reset", RESET),
    f"{CLOCKS}hw_thermal_slowdown": ("slowed down by heat (hw_thermal_slowdown)", REPLACE_NODE),
    f"{CLOCKS}sw_thermal_slowdown": ("slowed down by heat (sw_thermal_slowdown)", "less load"),
    f"{CLOCKS}hw_power_brake_slowdown": ("slowed down by the power supply", REPLACE_NODE),
}
"""Field that says yes: the evidence, and the fix."""

Gpu = dict[str, str]
"""A line of the table: field to value as printed; `line` holds one that cannot be read."""


def query_gpus(cluster: Cluster, pod: str) -> str:
    """What nvidia-smi prints in a pod, for `check_gpus` and `gpu_table`.

    Args:
        cluster: Where the pod runs.
        pod: Its name, or the beginning of one.

    Raises:
        WorkshopError: The command fails there, most often because the pod has no GPU.

    Example:
        >>> check_gpus(query_gpus(cluster, "vllm"))   # doctest: +SKIP
    """
    done = cluster.exec(pod, COMMAND)
    if done.exit_code:
        said = " ".join((done.stderr or done.stdout).split())[:200]
        raise WorkshopError(
            f"nvidia-smi in pod {pod} ended with {done.exit_code} ({said}); "
            "does the pod ask for nvidia.com/gpu?"
        )
    return done.stdout


def _read(text: str) -> list[Gpu]:
    """The GPUs of the CSV. Of several readings (`nvidia-smi -l`) the last of each GPU counts."""
    lines = [line for line in text.removeprefix("\ufeff").splitlines() if line.strip()]
    start = next((n for n, line in enumerate(lines) if "index" in re.split(r"\s*,\s*", line)), None)
    if start is None:
        said = " ".join(lines[:3])[:160] if lines else "nothing"
        fix = next(fix for words, fix in _INSTEAD.items() if words in text.lower())
        raise WorkshopError(
            "this is no output of nvidia-smi --query-gpu=index,... --format=csv: "
            f"{said!r}; next: {fix}"
        )
    header, *rows = csv.reader(lines[start:], skipinitialspace=True)
    # Drivers before 535 call the clocks' reasons clocks_throttle_reasons.
    names = [n.split(" [")[0].strip().replace("clocks_throttle_reasons.", CLOCKS) for n in header]
    found: dict[str, Gpu] = {line: {"line": line} for line in lines[:start] if _is_lost(line)}
    for row in rows:
        if len(row) != len(names):
            found[", ".join(row)] = {"line": ", ".join(row)}
        elif row != header:
            gpu = {name: value.strip() for name, value in zip(names, row, strict=True)}
            found[gpu["index"]] = gpu
    return list(found.values())


def _is_lost(said: str) -> bool:
    return any(word in said.lower() for word in _LOST)


def _is_reported(gpu: Gpu, name: str) -> bool:
    value = gpu.get(name, "").lower()
    return bool(value) and value not in ("n/a", "not supported", "err!") and value[0] != "["


def _number(gpu: Gpu, name: str) -> float | None:
    found = re.match(r"-?[\d.]+", gpu.get(name, ""))
    return float(found[0]) if found else None


def _problems(gpu: Gpu) -> list[tuple[str, str]]:
    look = f"{RESET}; look for its XID in dmesg"
    if "line" in gpu:
        fix = look if _is_lost(gpu["line"]) else "run it again"
        return [(f"unreadable line {gpu['line'].strip()[:120]!r}", fix)]
    found = [(f"{name} is {value}", look) for name, value in gpu.items() if _is_lost(value)][:1]
    since = "memory errors since the driver was loaded"
    if fresh := _number(gpu, UNCORRECTED):
        fix = f"{RESET}; replace the GPU only when a row remapping fails"
        found.append((f"{fresh:.0f} uncorrectable {since}", fix))
    if (corrected := _number(gpu, CORRECTED) or 0) >= MANY_CORRECTED:
        fix = "watch it: corrected errors cost nothing, but warn of others"
        found.append((f"{corrected:.0f} corrected {since}", fix))
    if gpu.get("ecc.mode.current", "").lower() == "disabled":
        found.append(("error correction (ECC) is off", "nvidia-smi -e 1, then reset the GPU"))
    yes = ("yes", "active", "1", "enabled")
    found += [said for name, said in _FLAGS.items() if gpu.get(name, "").lower() in yes]
    hot = _number(gpu, "temperature.gpu") or 0
    if hot >= HOT_C and not any("heat" in seen for seen, _ in found):
        found.append((f"{hot:.0f} C", "look at it under load again"))
    return found


def check_gpus(text: str, *, expected: int | None = None) -> CheckList:
    r"""Whether the GPUs of a machine are well: one check a GPU, and one for their number.

    A power cap (`sw_power_cap`) is no failure: under full load it is the normal limit. A GPU that
    does not report its memory errors cannot be told to be well.

    Args:
        text: What `query_gpus` gave; columns may be fewer and in any order.
        expected: GPUs that the machine should have.

    Raises:
        WorkshopError: It is no such table; the line quotes what is there instead.

    Example:
        >>> check_gpus("index, name\n0, NVIDIA L4\n", expected=8)[0].evidence
        '1 GPUs of 8'
    """
    gpus = _read(text)
    seen = f"{len(gpus)} GPUs" + (f" of {expected}" if expected is not None else "")
    fix = "look for XID 79 in dmesg: a GPU that has fallen off the bus is not listed"
    whole = bool(gpus) and expected in (None, len(gpus))
    checks = CheckList([Check("the GPUs are all there", whole, seen, fix)])
    for gpu in gpus:
        name = f"GPU {gpu.get('index', '?')} ({gpu.get('name', 'unknown type')}) is well"
        seen, fix = f"{gpu.get('temperature.gpu', '?')} C, no memory errors", ""
        passed = True if _is_reported(gpu, UNCORRECTED) else None
        if problems := _problems(gpu):
            passed, seen = False, "; ".join(seen for seen, _ in problems)
            fix = "; ".join(dict.fromkeys(fix for _, fix in problems))
        elif passed is None:
            seen = f"{UNCORRECTED} is {gpu.get(UNCORRECTED, 'not asked for')}"
            fix = f"ask with: {' '.join(COMMAND)}"
        checks.append(Check(name, passed, seen, fix))
    return checks


def gpu_table(text: str) -> pd.DataFrame:
    r"""One row a GPU: what it does, its errors, and a verdict with its reason.

    Args:
        text: What `query_gpus` gave.

    Returns:
        Columns `gpu`, `type`, `temp_c`, `power_w`, `util_percent`, `memory_gib`, `corrected` and
        `uncorrected` (errors since the driver was loaded), `verdict`, `why`.

    Raises:
        WorkshopError: It is no such table.

    Example:
        >>> gpu_table("index, temperature.gpu\n0, 95\n")["why"].item()
        '95 C'
    """
    import pandas as pd

    rows = []
    for gpu in _read(text):
        used, total = _number(gpu, "memory.used"), _number(gpu, "memory.total")
        gib = "" if used is None or total is None else f"{used / 1024:.1f} of {total / 1024:.1f}"
        silent = [name for name in gpu if name != "line" and not _is_reported(gpu, name)]
        problems = "; ".join(seen for seen, _ in _problems(gpu))
        rows.append(
            {
                "gpu": gpu.get("index", "?"),
                "type": gpu.get("name", "?").removeprefix("NVIDIA "),
                "temp_c": _number(gpu, "temperature.gpu"),
                "power_w": _number(gpu, "power.draw"),
                "util_percent": _number(gpu, "utilization.gpu"),
                "memory_gib": gib,
                "corrected": _number(gpu, CORRECTED),
                "uncorrected": _number(gpu, UNCORRECTED),
                "verdict": "look at it" if problems else "well",
                "why": problems or (f"not reported: {', '.join(silent)}" if silent else ""),
            }
        )
    return pd.DataFrame(rows)
