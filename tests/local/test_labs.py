"""Each lab for real: it breaks, shows, is not passed, is repaired as documented, leaves nothing."""

import subprocess

import pytest
from local_helpers import server, until

from workshop_lib.cluster.cleaning import check_clean
from workshop_lib.errors import ClusterError
from workshop_lib.production import labs

REPAIRS = {
    "wrong-port": {"target_port": 8000},
    "no-endpoints": {"selector": "lab-server"},
    "failing-probe": {"readiness_path": "/health"},
    "impatient-probe": {"startup_failures": 30},
    "killed-engine": {"liveness_path": "/health", "readiness_path": "/health"},
    "no-gpus": {"gpus": 0},
    "missing-setting": {"settings_key": "load-s"},
    "stale-address": {"file_name": "head-address-$(RUN_ID)"},
    "missing-model": {},
    "too-much-kv": {},
    "killed-worker": {},
}
"""What each solution says, as parameters of the component."""

SEEN = {
    "wrong-port": "no answer", "no-endpoints": "no answer", "failing-probe": "no answer",
    "impatient-probe": "no answer", "killed-engine": "HTTP 503", "no-gpus": "no answer",
    "missing-setting": "no answer", "stale-address": "rank 1 dials", "missing-model": "no answer",
    "too-much-kv": "no answer", "killed-worker": "no answer",
}  # fmt: skip
"""What a user sees."""

DIAGNOSED = {
    "wrong-port": "8081", "no-endpoints": "lab-sever", "failing-probe": "/healthz",
    "impatient-probe": "startup", "killed-engine": "engine", "no-gpus": "gpu",
    "missing-setting": "load-seconds", "stale-address": "stale", "missing-model": "news-13b",
    "too-much-kv": "KV", "killed-worker": "ray-cluster-1",
}  # fmt: skip
"""What cluster.diagnose() must say of each."""

QUICK = ("wrong-port", "no-gpus", "stale-address")
HEAVY = ("missing-model", "too-much-kv", "killed-worker")


def repair(cluster, name):
    """Do what the solution says, and wait for it."""
    component = labs.plan(name).component
    said = labs.plan(name).solution
    for key, value in REPAIRS[name].items():
        assert f"{key}={value!r}" in said, "the solution must say what repairs it"
    if name in ("stale-address", "killed-worker"):
        assert f"cluster.delete('{component}')" in said
        cluster.delete(component)
    work = cluster.apply(component, **REPAIRS[name])
    if name == "stale-address":
        return work.wait_complete(timeout_s=300)
    return work.wait_ready(timeout_s=900)


def from_start_to_end(cluster, name):
    before = cluster.remains()
    lab = labs.start(cluster, name)
    symptoms = lab.symptoms()
    assert SEEN[name] in symptoms.user
    found = cluster.diagnose(lab.component)
    assert found.verdict == "problems", name
    first = f"{found[0].cause} {found[0].evidence} {found[0].objects} {found[0].fix}"
    assert DIAGNOSED[name].lower() in first.lower(), first
    assert name not in str(symptoms) or name == lab.component
    broken = lab.check(timeout_s=20)
    assert not broken.passed, str(broken)
    with pytest.raises(ClusterError, match="which is applied"):
        labs.start(cluster, name)
    repair(cluster, name)
    repaired = labs.get(cluster, name).check(timeout_s=300)
    assert repaired.passed, str(repaired)
    assert not check_clean(cluster, before, timeout_s=0).passed
    lab.end()
    gone = check_clean(cluster, before)
    assert gone.passed, str(gone)


@pytest.mark.parametrize(
    "name",
    [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in SEEN
               if each not in (*QUICK, *HEAVY))],
)  # fmt: skip
def test_lab(busy_cluster, name):
    from_start_to_end(busy_cluster, name)


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", HEAVY)
def test_lab_with_the_real_engine(cluster, name):
    from_start_to_end(cluster, name)


@pytest.mark.slow
def test_a_probe_that_asks_the_front_alone_is_no_repair(busy_cluster):
    """A restart brings the engine back, until it dies the next time: the check tries it out."""
    lab = labs.start(busy_cluster, "killed-engine")
    busy_cluster.delete(lab.component)
    again = busy_cluster.apply(lab.component, liveness_path="/ping", readiness_path="/ping")
    again.wait_ready(timeout_s=300)
    checks = lab.check(timeout_s=8)
    assert [each.outcome for each in checks] == ["pass", "pass", "fail"], str(checks)
    lab.end()


def test_nothing_of_a_stale_address_stays(busy_cluster):
    lab = labs.start(busy_cluster, "stale-address")
    shared = busy_cluster.paths.claims / "shared"
    assert [path.name for path in shared.iterdir()] == ["head-address-lab"]
    (shared / "checkpoints").mkdir()
    lab.end()
    assert [path.name for path in shared.iterdir()] == ["checkpoints"]
    (shared / "checkpoints").rmdir()


def test_what_nobody_accounts_for_is_named(cluster):
    before = cluster.remains()
    assert before == type(before)((), (), ())
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    there = cluster.remains()
    assert "Deployment/server" in there.objects and there.running == there.ports == ()
    cluster.delete("web")  # it ends whatever names the state
    stray = subprocess.Popen(["sleep", "600"], env={"STATE": str(cluster.paths.runtime)})
    try:
        checks = check_clean(cluster, before, timeout_s=1)
        assert [each.outcome for each in checks] == ["pass", "fail", "pass", "pass", "pass"]
        assert f"process {stray.pid}: sleep 600" in str(checks)
    finally:
        stray.kill()
        stray.wait()
    until(lambda: check_clean(cluster, before).passed)
