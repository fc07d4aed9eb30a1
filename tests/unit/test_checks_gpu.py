"""GPU health from documented and recorded output of nvidia-smi and the kernel's log."""

import pytest

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError
from workshop_lib.production.checks.gpu import (
    FIELDS,
    check_gpus,
    gpu_table,
    query_command,
    read_gpus,
)
from workshop_lib.production.checks.xid import _catalogue, check_xids, read_xids, xid_table

H200 = data_path("recorded/h200/nvidia-smi-health.csv").read_text()
WELL = {
    "index": "0", "name": "NVIDIA H100 80GB HBM3", "temperature.gpu": "41",
    "power.draw": "112.40 W", "utilization.gpu": "0 %", "memory.used": "0 MiB",
    "memory.total": "81559 MiB", "ecc.mode.current": "Enabled",
    "ecc.errors.corrected.volatile.total": "0", "ecc.errors.uncorrected.volatile.total": "0",
    "retired_pages.pending": "[N/A]", "remapped_rows.pending": "No", "remapped_rows.failure": "No",
    "clocks_event_reasons.hw_thermal_slowdown": "Not Active",
    "clocks_event_reasons.sw_thermal_slowdown": "Not Active",
    "clocks_event_reasons.hw_power_brake_slowdown": "Not Active",
    "clocks_event_reasons.sw_power_cap": "Active",
}  # fmt: skip


def smi(*changes):
    rows = [{**WELL, "index": str(i), **change} for i, change in enumerate(changes)]
    return "\n".join([", ".join(WELL), *(", ".join(row.values()) for row in rows)]) + "\n"


def failed(text, **options):
    return {c.name: c.evidence for c in check_gpus(text, **options) if c.outcome == "fail"}


def test_a_recorded_h200_is_well():
    assert check_gpus(H200, expected=1).passed
    assert H200.splitlines()[0].count(",") == len(FIELDS) - 1
    row = gpu_table(H200).iloc[0]
    assert (row["type"], row.temp_c, row.power_w, row.verdict) == ("H200", 36, 108.63, "well")
    assert row.memory_gib == "0.0 of 140.4" and row.why == "not reported: retired_pages.pending"
    assert query_command()[1].endswith("sw_power_cap")


@pytest.mark.parametrize(
    ("change", "topic", "evidence"),
    [
        ({"ecc.errors.uncorrected.volatile.total": "2"}, "no memory errors", "2 uncorrectable"),
        ({"remapped_rows.failure": "Yes"}, "no memory errors", "remapping a bad memory row failed"),
        ({"remapped_rows.pending": "Yes"}, "no memory errors", "row remapping waits for a reset"),
        ({"retired_pages.pending": "Yes"}, "no memory errors", "page retirement waits"),
        ({"ecc.errors.corrected.volatile.total": "5123"}, "no memory errors", "5123 corrected"),
        ({"ecc.mode.current": "Disabled"}, "memory errors are corrected", "correction is off"),
        ({"clocks_event_reasons.hw_thermal_slowdown": "Active"}, "no GPU is slowed down by heat",
         "hw_thermal_slowdown"),
        ({"temperature.gpu": "93"}, "no GPU is slowed down by heat", "93 C"),
        ({"clocks_event_reasons.hw_power_brake_slowdown": "Active"}, "no GPU is slowed down by the",
         "power supply"),
        ({"temperature.gpu": "[GPU requires reset]"}, "every GPU's line", "requires reset"),
        ({"power.draw": "ERR!"}, "every GPU's line", "ERR!"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_gpu(change, topic, evidence):
    found = failed(smi({}, change))
    (name,) = found
    assert name.startswith(topic) and evidence in found[name]
    assert "GPU 1 (NVIDIA H100 80GB HBM3)" in found[name] and "GPU 0" not in found[name]
    table = gpu_table(smi({}, change))
    assert list(table.verdict) == ["well", "look at it"]


def test_a_power_cap_and_a_few_corrected_errors_are_normal():
    assert not failed(smi({"ecc.errors.corrected.volatile.total": "12"}))


def test_what_a_gpu_does_not_report_cannot_be_told():
    said = check_gpus("index, name\n0, NVIDIA GeForce RTX 4090\n")
    assert {c.name.split()[0]: c.outcome for c in said if c.outcome == "cannot tell"}
    absent = check_gpus(smi({"ecc.mode.current": "[N/A]"}))
    (open_,) = absent.open
    assert (
        open_.outcome == "cannot tell" and "ecc.mode.current is [N/A] on 1 of 1" in open_.evidence
    )


def test_a_gpu_that_is_gone_is_missed():
    assert failed(smi({}, {}), expected=8) == {"the GPUs are all there": "2 GPUs of 8"}
    lost = "Unable to determine the device handle for GPU 0000:CB:00.0: Unknown Error\n" + smi({})
    assert "Unable to determine" in failed(lost)["every GPU's line can be read"]


def test_units_columns_and_lines_around_do_not_matter():
    text = "Defaulted container main\n\ntemperature.gpu, index\n41, 0\n"
    assert read_gpus(text)[0].number("temperature.gpu") == 41
    (gpu,) = read_gpus("Defaulted container main\n\nindex, power.draw [W]\n0, 71.2 W\n")
    assert gpu.number("power.draw") == 71.2


@pytest.mark.parametrize(
    "text",
    ["", "bash: nvidia-smi: command not found\n", "No devices were found\n", "\x00\xff{}",
     'Field "nonsense" is not a valid field to query.\n'],
)  # fmt: skip
def test_garbage_is_said_in_one_line(text):
    with pytest.raises(WorkshopError, match="this is no output of nvidia-smi") as error:
        check_gpus(text)
    assert "\n" not in str(error.value)


def test_other_forms_of_the_table_are_read():
    whole = smi({}, {})
    assert check_gpus("\ufeff" + whole.replace("\n", "\r\n"), expected=2)[0].passed
    turned = "name, index, temperature.gpu\nNVIDIA L4, 0, 95\n"
    assert "95 C" in failed(turned)["no GPU is slowed down by heat"]
    older = "index, name, clocks_throttle_reasons.hw_thermal_slowdown\n0, Tesla T4, Active\n"
    assert "hw_thermal" in failed(older)["no GPU is slowed down by heat"]
    values = H200.splitlines()[-1]  # of csv,noheader, with the columns that were asked for
    assert check_gpus(values, expected=1).passed
    with pytest.raises(WorkshopError, match="keep the header line"):
        read_gpus("0, NVIDIA H200, 36\n")
    # nvidia-smi -l: the last reading of a GPU counts; a second header begins another machine.
    later = smi({"ecc.errors.uncorrected.volatile.total": "3"}).splitlines()[1]
    assert "3 uncorrectable" in str(failed(f"{whole}{later}\n", expected=2))
    assert len(read_gpus(f"{whole}{later}\n")) == 2
    assert len(read_gpus(whole + whole)) == 4


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("No devices were found", "XID 79"),
        ("Failed to initialize NVML: Driver/library version mismatch", "restart the node"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
         "load the driver"),
    ],
)  # fmt: skip
def test_what_nvidia_smi_says_instead_has_its_own_fix(said, fix):
    with pytest.raises(WorkshopError, match=fix):
        read_gpus(said + "\n")


def test_a_gpu_without_a_handle_is_to_be_reset():
    lost = "Unable to determine the device handle for GPU0000:53:00.0: Unknown Error\n" + smi({})
    check = next(c for c in check_gpus(lost, expected=2) if c.outcome == "fail")
    assert "0000:53:00.0" in check.evidence and "reset the GPU" in check.fix


def test_a_broken_line_is_reported_and_the_others_are_read():
    text = smi({}, {}) + "1, NVIDIA H1\n"
    assert "unreadable line '1, NVIDIA H1'" in failed(text)["every GPU's line can be read"]
    assert len(gpu_table(text)) == 3


# -- XIDs -----------------------------------------------------------------------------------------

DMESG = """\
[    0.425041] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04
[Fri Aug 30 11:43:09 2024] NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on (GPC 7, TPC 0)
[ 1302.775921] NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked for remapping, reset gpu to activate.
[...] NVRM: Xid (0000:03:00): 14, Channel 00000001
Nov  2 03:04:05 ip-10-0-1-7 kernel: NVRM: Xid (PCI:0000:53:00): 79, pid=2210, name=ray::VLLMEngine, GPU has fallen off the bus.
"""  # noqa: E501


def test_lines_of_a_kernel_log_become_a_table():
    found = read_xids(DMESG)
    assert [x.number for x in found] == [13, 63, 14, 79]
    assert [x.bus for x in found] == ["0000:cb:00", "0000:10:1c", "0000:03:00", "0000:53:00"]
    assert [x.pid for x in found] == [None, 1896, None, 2210]
    assert found[0].time == "Fri Aug 30 11:43:09 2024" and found[1].time == "1302.775921"
    assert found[3].process == "ray::VLLMEngine" and found[3].time == "Nov  2 03:04:05"
    assert found[3].text == "GPU has fallen off the bus."
    table = xid_table(DMESG)
    assert list(table.origin) == ["application", "memory", "unknown", "link"]
    assert table["do"].iloc[3].startswith("replace the node") and len(xid_table("nothing")) == 0


@pytest.mark.parametrize(
    ("number", "origin", "fails"),
    [
        (13, "application", False), (31, "application", False), (43, "application", False),
        (45, "notice", False), (63, "memory", False), (94, "memory", False), (92, "memory", False),
        (48, "memory", True), (64, "memory", True), (95, "memory", True), (74, "link", True),
        (79, "link", True), (119, "firmware", True), (62, "firmware", True),
        (9999, "unknown", True),
    ],
)  # fmt: skip
def test_verdicts_follow_the_catalogue(number, origin, fails):
    line = f"NVRM: Xid (PCI:0000:cb:00): {number}, pid=7, name=python, something"
    (xid,) = read_xids(line)
    assert xid.entry["origin"] == origin and xid.needs_hands is fails
    first = check_xids(line)[0]
    assert first.passed is not fails
    assert (f"XID {number}: " in first.fix) is fails


def test_xid_154_says_what_the_driver_asks_for():
    line = "NVRM: Xid (PCI:0000:cb:00): 154, GPU recovery action changed from 0x{}"
    (asks,) = read_xids(line.format("0 (None) to 0x2 (Node Reboot Required)"))
    assert asks.verdict == "the driver now asks for: Node Reboot Required" and asks.needs_hands
    (over,) = read_xids(line.format("2 (Node Reboot Required) to 0x0 (None)"))
    assert not over.needs_hands


def test_programs_errors_are_the_gpus_when_only_it_has_them():
    line = "NVRM: Xid (PCI:0000:{}:00): 31, pid={}, name=python, Ch 00000008"
    same = [line.format("cb", pid) for pid in (1, 2, 3)]
    assert "3 programs had XID 31" in check_xids(same)[1].evidence
    assert check_xids(same)[1].passed is False
    assert check_xids([line.format("cb", 1)] * 5).passed  # one program, many lines
    assert check_xids([*same, line.format("53", 4)]).passed  # other GPUs too: the program's fault


def test_nvswitch_lines_are_not_taken_for_xids():
    line = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore"
    checks = check_xids(line)
    assert not read_xids(line) and checks[2].passed is False and "28006" in checks[2].evidence


def test_every_number_of_the_catalogue_has_words():
    assert {13, 31, 43, 48, 63, 64, 74, 79, 94, 95, 119, 154} <= set(_catalogue())
    for number in _catalogue():
        (xid,) = read_xids(f"NVRM: Xid (PCI:0000:cb:00): {number}, x")
        assert xid.verdict and xid.entry["what"] and xid.entry["origin"]
