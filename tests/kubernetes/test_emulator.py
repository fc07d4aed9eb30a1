"""The emulator answers as a real Kubernetes 1.36 did, request by request."""

import json
from pathlib import Path

import httpx
import pytest
from emulator import Emulator

DATA = Path(__file__).parents[1] / "data" / "kubernetes" / "http"
RECORDED = json.loads((DATA / "exchanges.json").read_text())

ITS_OWN = ("uid", "resourceVersion", "creationTimestamp", "time", "deletionTimestamp",
           "controller-uid", "batch.kubernetes.io/controller-uid", "f:status")  # fmt: skip
"""What no two servers have in common."""

IN_ORDER = [
    "apply-created", "apply-unchanged", "apply-configured", "apply-conflict", "apply-force",
    "apply-strict-unknown-field", "apply-invalid", "apply-dry-run", "get-after-dry-run",
    "apply-no-namespace", "crd-missing", "discovery-missing-group", "unauthorized",
    "forbidden-create", "forbidden-logs", "allowed-list", "apply-indexed-job-success-policy",
    "log-no-pod", "delete-missing", "delete-collection",
]  # fmt: skip


def comparable(value):
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in value.items() if key not in ITS_OWN}
    if isinstance(value, list):
        return [comparable(each) for each in value]
    return value


@pytest.fixture(scope="module")
def answers():
    """Each recorded request sent to the emulator, in the recorded order."""
    server = Emulator(crds=False)
    answers = {}
    with httpx.Client(base_url=server.url, timeout=20) as client:
        for name in IN_ORDER:
            request = RECORDED[name]["request"]
            server.forbidden = {("patch", "configmaps"), ("get", "pods/log")}
            server.forbidden &= {("patch", "configmaps")} if name == "forbidden-create" else (
                {("get", "pods/log")} if name == "forbidden-logs" else set()
            )  # fmt: skip
            token = "bad" if name == "unauthorized" else "good-token"
            body = request["body"]
            answers[name] = client.request(
                request["method"], request["path"], params=request["params"],
                headers={**request["headers"], "Authorization": f"Bearer {token}"},
                content=None if body is None else json.dumps(body),
            )  # fmt: skip
    server.close()
    return answers


@pytest.mark.parametrize("name", IN_ORDER)
def test_answers_are_the_recorded_ones(answers, name):
    recorded, answer = RECORDED[name]["response"], answers[name]
    assert answer.status_code == recorded["status"]
    assert answer.headers["content-type"] == recorded["headers"]["Content-Type"]
    body = recorded["body"]
    if isinstance(body, str):
        assert answer.text == body
    else:
        assert comparable(answer.json()) == comparable(body)


def test_unchanged_keeps_its_version(answers):
    versions = [
        answers[f"apply-{name}"].json()["metadata"]["resourceVersion"]
        for name in ("created", "unchanged", "configured")
    ]
    assert versions[0] == versions[1] != versions[2]


LINES = [each["line"] for each in RECORDED["log-follow-timestamps"]["response"]["lines"]]


@pytest.mark.parametrize("name", ["log-follow-timestamps", "log-since-time", "log-tail"])
def test_logs_are_the_recorded_ones(emulator, name):
    pod = "talk-0-s4dst"
    emulator.add_pod(None, pod, containers=("c",))
    for line in LINES:
        stamp, _, text = line.partition(" ")
        emulator.kubelet.log(pod, "c").write(text, stamp=stamp)
    emulator.kubelet.log(pod, "c").end()
    request, recorded = RECORDED[name]["request"], RECORDED[name]["response"]
    answer = httpx.get(
        emulator.url + request["path"], params=request["params"],
        headers={"Authorization": "Bearer good-token"},
    )  # fmt: skip
    expected = recorded.get("body") or "".join(f"{line}\n" for line in LINES)
    assert answer.text == expected
