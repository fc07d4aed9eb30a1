"""Snapshots of a real Kubernetes 1.36 in which something was broken (see tests/data/README.md)."""

import json
from pathlib import Path

import pytest
from snapshots import check

from workshop_lib.production.diagnosis import diagnose, load_snapshot

FOLDER = Path(__file__).parents[1] / "data" / "kubernetes" / "cluster"

# File, the one rule that must speak, words of its cause, an object it names.
BROKEN = {
    "inithang": ("service-name-unknown", "redis-master", "Deployment/vllm"),
    "sidecarprobe": ("startup-probe-too-short", "proxy", "Deployment/vllm"),
    "poststart": ("post-start-hook", "postStart", "Deployment/vllm"),
    "dra": ("resource-claim", "gpu-claim", "Deployment/vllm"),
    "emptydir": ("ephemeral-storage-limit", "emptyDir 'v'", "Job/train"),
    "spread": ("topology-spread", "topology.kubernetes.io/zone", "Deployment/vllm"),
    "index": ("module-missing", "lacks a package", "Job/ray"),
    "svcport": ("service-target-port", "'web'", "Service/vllm"),
    "execprobe": ("readiness-probe", "does not exist in the image", "Deployment/vllm"),
    "quota": ("quota-exceeded", "nvidia.com/gpu=8", "ResourceQuota/team"),
    "cmvol": ("configmap-missing", "'recipe'", "ConfigMap/recipe"),
    "ready404": ("readiness-probe", "404", "Deployment/vllm"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_thing_gives_one_finding(name):
    rule, words, about = BROKEN[name]
    found = check(load_snapshot(FOLDER / f"{name}.json"), rule, objects=[about])
    assert words in found[0].cause


def test_completed_and_retried_jobs_beside_a_server_are_healthy():
    assert diagnose(load_snapshot(FOLDER / "healthy.json")).verdict == "healthy"


@pytest.mark.parametrize("name", BROKEN)
def test_the_time_it_was_taken_may_be_missing(name):
    """The time is then the latest that the snapshot knows of."""
    body = json.loads((FOLDER / f"{name}.json").read_text())
    body.pop("taken_at")
    assert diagnose(body).rules == [BROKEN[name][0]]
