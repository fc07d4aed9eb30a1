"""Every pattern has a line of its own, and everything that it says can be filled in."""

from pathlib import Path

import pytest
import yaml

from workshop_lib.production.diagnosis.logs import read
from workshop_lib.production.diagnosis.patterns import all_patterns, fact, patterns

LINES = yaml.safe_load((Path(__file__).parents[1] / "data/diagnosis/lines.yaml").read_text())
ROWS = [(where, *row) for where, rows in LINES.items() for row in rows]
EFA = "RES vpc.amazonaws.com/efa=4"


@pytest.mark.parametrize(("where", "rule", "line", "source"), ROWS)
def test_a_line_is_known_by_its_pattern(where, rule, line, source):
    match = patterns(where).match(line, EFA)
    assert match is not None and match.rule == rule
    words = match.add(who="the container", name="x", pod="x", message="x", line=line)
    assert words.cause and words.fix and "{" not in words.cause


def test_every_pattern_has_a_line():
    known = {id(patterns(where).match(line, EFA).pattern) for where, _, line, _ in ROWS}
    facts = [each for each in all_patterns() if each.where == "fact"]
    assert [p.rule for p in all_patterns() if id(p) not in known and p not in facts] == []
    assert all(fact(each.rule).cause and each.fix for each in facts)


def test_nothing_is_advised_that_is_done():
    line = "RuntimeError: NCCL error: unhandled system error"
    assert "NCCL_DEBUG=INFO" in patterns("log").match(line).fix
    assert "NCCL_DEBUG=INFO" not in patterns("log").match(line, "ENV NCCL_DEBUG=INFO").fix
    gpu, wants = "RuntimeError: No CUDA GPUs are available", "RES nvidia.com/gpu=1"
    assert "limits" in patterns("log").match(gpu).fix
    assert "limits" not in patterns("log").match(gpu, wants).fix
    gated = "OSError: You are trying to access a gated repo."
    assert "Give the pod" not in patterns("log").match(gated, "ENV HF_TOKEN=").fix


def test_advice_that_was_wrong_is_gone():
    text = " ".join(part["say"] for each in all_patterns() for part in each.fix)
    for words in ("logs deployment/kuberay-operator -A", "stop and start", "scale the node group,"):
        assert words not in text
    plugin = patterns("log").match("NET/Plugin: Could not find: libnccl-net-ofi.so", EFA)
    assert "NCCL_NET_PLUGIN" in plugin.fix and "2.29" not in plugin.cause


TRACEBACK = "Traceback (most recent call last):\n"
CORE = "(EngineCore_DP0 pid=2) ERROR 11-21 03:57:40 [core.py:8] "

# Logs: the line that has to be found, and the rule ("" where no pattern knows it).
LOGS = {
    "the last line of the traceback, not the harmless first line": (
        "/bin/bash: line 1: ulimit: open files: cannot modify limit: Operation not permitted\n"
        'Traceback (most recent call last):\n  File "x.py", line 1\nZeroDivisionError: by zero\n',
        "ZeroDivisionError",
        "",
    ),
    "the engine's error, not what the front says of it": (
        f"{CORE}{TRACEBACK}"
        f"{CORE}RuntimeError: the moon is full\n"
        "(APIServer pid=1) Traceback (most recent call last):\n"
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause.\n",
        "the moon is full",
        "",
    ),
    "NCCL's warning before the last unhandled error": (
        "a:1:1 [0] NCCL WARN Bootstrap : no socket interface found\n"
        f"{TRACEBACK}torch.distributed.DistBackendError: NCCL error in: x.cpp"
        ":3, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27\n",
        "no socket interface",
        "nccl-interface",
    ),
    "an unknown error after a refused connection that was retried": (
        f"{TRACEBACK}ConnectionRefusedError: [Errno 111] Connection refused\n"
        f"INFO connected\n{TRACEBACK}ValueError: unheard of\n",
        "unheard of",
        "",
    ),
    "what a dying process says of its leftovers is no cause": (
        "Traceback (most recent call last):\nValueError: the first\n"
        "Exception ignored in: <function LLM.__del__ at 0x7f>\nTraceback (most recent call last):\n"
        "AttributeError: 'LLM' object has no attribute 'engine'\n",
        "the first",
        "",
    ),
    "a colour and an interleaved line": (
        f'{TRACEBACK}  File "a"\n2026-11-29 11:29:26,434\tINFO x.py:4 -- up'
        "\n\x1b[36mValueError\x1b[0m: no\n",
        "ValueError",
        "",
    ),
    "Pydantic's own words": (
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for EngineArgs\ntask\n"
        "  Input should be 'a' or 'b' [type=enum]\n",
        "Input should be",
        "",
    ),
    "a harmless word of INFO lines is nothing": (
        "INFO retrying; timeout=30\nINFO Xid table loaded\nAddress: 10.0.0.1\nbye\n",
        "bye",
        "",
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_which_line_of_a_log_counts(name):
    text, words, rule = LOGS[name]
    reading = read(text)
    found = reading.match.rule if reading.match and reading.kind != "consequence" else ""
    assert words in " ".join(reading.quotes) and found == rule
