"""Snapshots of real clusters, public cases, wordings and logs: what the first finding says."""

import json
import random
import time
from pathlib import Path

import pytest
import yaml
from small import container, crashed, event, look, pending, pod, snapshot, thing, waiting

from workshop_lib.data import data_dir
from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis import diagnose, load_snapshot, save_snapshot
from workshop_lib.production.diagnosis.diagnose import main
from workshop_lib.production.diagnosis.logs import read as read_log
from workshop_lib.production.diagnosis.patterns import all_patterns, fact, patterns

DATA = Path(__file__).parents[1] / "data"
INDEX = yaml.safe_load((DATA / "diagnosis/index.yaml").read_text())
ISSUES = yaml.safe_load((DATA / "diagnosis/issues.yaml").read_text())
LINES = yaml.safe_load((DATA / "diagnosis/lines.yaml").read_text())
ROWS = [(where, *row) for where, rows in LINES.items() for row in rows]
RECORDED = data_dir() / "recorded/kubernetes"
CLUSTER = DATA / "kubernetes/cluster"
EFA, GPU = "RES vpc.amazonaws.com/efa=4", {"nvidia.com/gpu": "1"}

# Recordings with one broken thing: the rule, what is quoted or named, an object.
ONE_THING = {
    RECORDED / "backoff-exceeded": ("head-address-missing", "Master IP not found", "Job/vllm"),
    RECORDED / "crash-loop": ("model-unreadable", "Unrecognized model in /shared", "Job/vllm"),
    RECORDED / "cuda-oom": ("cuda-oom", "CUDA out of memory. Tried", "Job/vllm"),
    RECORDED / "image-pull": ("image-registry-unreachable", "lookup registry.invalid", "Job/vllm"),
    RECORDED / "insufficient-gpu": ("gpu-not-offered", "1 Insufficient nvidia.com/gpu", "Job/vllm"),
    RECORDED / "not-ready": ("readiness-probe", "connect: connection refused", "Job/vllm"),
    RECORDED / "oom-killed": ("oom-killed", "OOMKilled", "Job/vllm"),
    RECORDED / "pvc-unbound": ("storage-class-missing", '"fsx-sc" not found', "Job/vllm"),
    CLUSTER / "inithang": ("service-name-unknown", "redis-master", "Deployment/vllm"),
    CLUSTER / "sidecarprobe": ("startup-probe-too-short", "proxy", "Deployment/vllm"),
    CLUSTER / "poststart": ("post-start-hook", "postStart", "Deployment/vllm"),
    CLUSTER / "dra": ("resource-claim", "gpu-claim", "Deployment/vllm"),
    CLUSTER / "emptydir": ("ephemeral-storage-limit", 'volume "v"', "Job/train"),
    CLUSTER / "spread": ("topology-spread", "topology.kubernetes.io/zone", "Deployment/vllm"),
    CLUSTER / "index": ("module-missing", "No module named", "Job/ray"),
    CLUSTER / "svcport": ("service-target-port", "web", "Service/vllm"),
    CLUSTER / "execprobe": ("readiness-probe", "does not exist in the image", "Deployment/vllm"),
    CLUSTER / "quota": ("quota-exceeded", "nvidia.com/gpu=8", "ResourceQuota/team"),
    CLUSTER / "cmvol": ("configmap-missing", "recipe", "ConfigMap/recipe"),
    CLUSTER / "ready404": ("readiness-probe", "404", "Deployment/vllm"),
}


def read(path):
    return load_snapshot(path.with_suffix(".json"))


def says(found, row):
    """The first finding says what it must, and no finding what it may not."""
    first, whole = str(found[0]).lower(), str(found).lower()
    assert [word for word in row.get("must", []) if word.lower() not in first] == [], found
    assert [word for word in row.get("never", []) if word.lower() in whole] == [], found


@pytest.mark.parametrize("name", INDEX)
def test_the_cause_is_in_the_first_finding(name):
    row, found = INDEX[name], diagnose(read(DATA / "diagnosis" / name))
    if row.get("healthy"):
        assert found.verdict == "healthy", found
    else:
        says(found, row)


@pytest.mark.parametrize("name", ISSUES)
def test_a_public_issue(name):
    row, logs = ISSUES[name], {}
    if "crash" in row:
        state, env = crashed(row.get("code", 1)), row.get("env")
        objects = [pod("vllm-0", container(state, env=env, resources=GPU))]
        logs = {"vllm-0/main": f"{row['crash']}\n"}
    elif "mount" in row:
        objects = [pod("app-0", container(waiting("ContainerCreating")), phase="Pending")]
        objects.append(event("Pod/app-0", "FailedMount", row["mount"]))
    elif "refused" in row:
        why = {"reason": "UnexpectedAdmissionError", "message": row["refused"]}
        objects = [pod("app-0", container({"state": {}}), phase="Failed", owner="Job/app", **why)]
    elif "create" in row:
        objects = [thing("ReplicaSet", "vllm-5d", {"replicas": 1})]
        message = f"Error creating: {row['create']}"
        objects.append(event("ReplicaSet/vllm-5d", "FailedCreate", message))
    else:
        objects = [pending(row["pending"], resources=GPU)]
    says(look(*objects, logs=logs), row)


@pytest.mark.parametrize("path", ONE_THING, ids=lambda path: path.name)
@pytest.mark.parametrize("timed", [True, False], ids=["timed", "without its time"])
def test_one_broken_thing_is_one_finding(path, timed):
    rule, words, about = ONE_THING[path]
    body = read(path)
    if not timed:
        body.pop("taken_at", None)
    found = diagnose(body)
    assert found.rules == [rule], found
    assert words in f"{found[0].cause} {found[0].evidence}" and about in found[0].objects


@pytest.mark.parametrize("path", [RECORDED / "healthy", CLUSTER / "healthy"])
def test_what_is_well_is_healthy(path):
    found = diagnose(read(path))
    assert found.verdict == "healthy" and not found.notes


def test_the_order_of_a_snapshots_lists_does_not_matter():
    for path in [*ONE_THING, *(DATA / "diagnosis" / name for name in INDEX)]:
        body = read(path)
        rules = diagnose(body).rules
        for items in body.values():
            if isinstance(items, list):
                random.Random(3).shuffle(items)
        assert diagnose(body).rules == rules, path


def test_two_broken_things_are_two_findings():
    both = read(RECORDED / "pvc-unbound")
    other = json.loads((RECORDED / "oom-killed.json").read_text().replace("vllm", "grpo"))
    for key, items in other.items():
        if isinstance(items, list):
            both[key] += items
    assert diagnose(both).rules == ["storage-class-missing", "oom-killed"]


def many(number, name, pod_name, salt):
    """So many pods of a recording, all with logs of their own."""
    one = read(RECORDED / name)
    log = "".join(f"INFO step {i} of a long log with many words in it\n" for i in range(300))
    log += one["logs"].get(f"{pod_name}/main", "") + "connecting to the server\n"
    found = {**one, "pods": [], "events": [], "logs": {}}
    for each in (f"vllm-{index}" for index in range(number)):
        for key in ("pods", "events"):
            found[key] += json.loads(json.dumps(one[key]).replace(pod_name, each))
        found["logs"][f"{each}/main"] = log.replace("step", f"{salt} {each}")
    return found


@pytest.mark.parametrize(
    ("name", "pod_name", "rule"),
    [
        ("crash-loop", "vllm-vnpmn", "model-unreadable"),
        ("not-ready", "vllm-24pgf", "waits-for-peer"),
    ],
)
def test_ten_times_the_pods_take_about_ten_times_as_long(name, pod_name, rule):
    times = {}
    for number in (50, 500):
        for salt in "abc":  # the best of three: other programs run here, too
            snapshot, began = many(number, name, pod_name, salt), time.process_time()
            found = diagnose(snapshot)
            took = time.process_time() - began
            times[number] = min(took, times.get(number, took))
        assert len(found) == 1 and len(found[0].objects) == number + 1
    assert found.rules == [rule]
    assert times[500] < 40 * times[50]  # a hundred times would be every pod with every other


# -- wordings and logs ----------------------------------------------------------------------------


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
    reading = read_log(text)
    found = reading.match.rule if reading.match and reading.kind != "consequence" else ""
    assert words in " ".join(reading.quotes) and found == rule


# -- the command line, files, and snapshots of odd forms ------------------------------------------


def test_the_command(capsys):
    assert main([str(RECORDED / "oom-killed.json"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    keys = ["rule", "cause", "objects", "evidence", "fix", "taught_in"]
    assert answer["verdict"] == "problems" and list(answer["findings"][0]) == keys
    assert main([str(RECORDED / "healthy.json")]) == 0
    assert capsys.readouterr().out == "verdict: healthy\n"


@pytest.mark.parametrize("text", ["", "[]", '{"pods": 3}', '{"a": 1}', '{"pods": [1]}', "{"])
def test_a_file_that_is_no_snapshot_is_one_line(tmp_path, capsys, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    assert main([str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert said.err.startswith("WorkshopError: ")


def test_saving_and_loading(tmp_path):
    taken = snapshot(pod("a", container(crashed())))
    file = save_snapshot(taken, tmp_path / "snapshot.json")
    assert load_snapshot(file) == taken
    with pytest.raises(WorkshopError, match="No such file or directory"):
        load_snapshot(tmp_path / "none.json")
    with pytest.raises(WorkshopError, match="No such file or directory"):
        save_snapshot(taken, tmp_path / "none/snapshot.json")


def test_a_diagnosis_shows_itself():
    found = diagnose(load_snapshot(RECORDED / "cuda-oom.json"))
    page = found._repr_html_()
    assert "CUDA out of memory. Tried to allocate" in page and "verdict: <b>problems" in page
    assert str(found).splitlines()[1].startswith("1. cuda-oom: ")
    assert found[0] in found and found[:1] == [found[0]]


def test_fields_that_a_server_left_out_or_nulled_are_no_error():
    for body in (
        {"pods": [{"metadata": {"name": "a"}}]},
        {"pods": [{"metadata": {"name": "a", "labels": None}, "spec": None, "status": None}]},
        {"services": [{"metadata": {"name": "a"}, "spec": None}]},
        {"jobs": [{"metadata": {"name": "a"}}], "logs": None, "nodes": None},
        {"events": [{"reason": "x"}], "rayservices": [{"metadata": {"name": "a"}}]},
        {"persistentvolumeclaims": [{"metadata": {"name": "a"}}], "ray": [], "serve": 3},
        {"pods": {"kind": "List", "items": [{"metadata": {"name": "a"}}]}},
    ):
        diagnose(body)
