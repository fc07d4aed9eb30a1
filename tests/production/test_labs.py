"""Each lab for real: it breaks, shows, is not passed, is repaired as documented, leaves nothing."""

import subprocess
from unittest.mock import Mock

import pytest
from local_helpers import server, until
from real_cluster import KUBECONFIG, REASON, real_namespace

from workshop_lib.cluster import manifests
from workshop_lib.cluster.cleaning import check_clean
from workshop_lib.errors import ClusterError, WorkshopError
from workshop_lib.production import labs

LABS = {  # the solution's parameters, what a user sees, what cluster.diagnose() must say
    "wrong-port": ({"target_port": 8000}, "no answer", "8081"),
    "no-endpoints": ({"selector": "lab-server"}, "no answer", "lab-sever"),
    "failing-probe": ({"readiness_path": "/health"}, "no answer", "/healthz"),
    "impatient-probe": ({"startup_failures": 30}, "no answer", "startup"),
    "killed-engine": (
        {"liveness_path": "/health", "readiness_path": "/health"}, "HTTP 503", "engine"),
    "no-gpus": ({"gpus": 0}, "no answer", "gpu"),
    "missing-setting": ({"settings_key": "load-s"}, "no answer", "load-seconds"),
    "stale-address": ({"file_name": "head-address-$(RUN_ID)"}, "rank 1 dials", "stale"),
    "missing-model": ({}, "no answer", "news-13b"),
    "too-much-kv": ({}, "no answer", "KV"),
    "killed-worker": ({}, "no answer", "ray-cluster-1"),
}  # fmt: skip
QUICK = ("wrong-port", "no-gpus", "stale-address")
ENGINE = ("missing-model", "too-much-kv", "killed-worker")


def from_start_to_end(cluster, name):
    values, seen_by_users, told = LABS[name]
    before = cluster.remains()
    lab = labs.start(cluster, name)
    symptoms = lab.symptoms()
    assert seen_by_users in symptoms.user
    assert name not in str(symptoms) or name == lab.component
    found = cluster.diagnose(lab.component)
    assert found.verdict == "problems", name
    first = f"{found[0].cause} {found[0].evidence} {found[0].objects} {found[0].fix}"
    assert told.lower() in first.lower(), first
    assert not lab.check(timeout_s=20).passed
    with pytest.raises(ClusterError, match="applied; it starts after cluster"):
        labs.start(cluster, name)
    for key, value in values.items():
        assert f"{key}={value!r}" in lab.solution(), "the solution must say what repairs it"
    if name in ("stale-address", "killed-worker"):
        assert f"cluster.delete('{lab.component}')" in lab.solution()
        cluster.delete(lab.component)
    work = cluster.apply(lab.component, **values)
    wait = work.wait_complete if name == "stale-address" else work.wait_ready
    wait(timeout_s=900)
    repaired = labs.get(cluster, name).check(timeout_s=300)
    assert repaired.passed, str(repaired)
    lab.end()
    gone = check_clean(cluster, before)
    assert gone.passed, str(gone)
    assert "is not applied" in str(lab.check())


def slow(names):
    return [pytest.param(each, marks=pytest.mark.slow) for each in names]


@pytest.mark.parametrize("name", [*QUICK, *slow(set(LABS) - {*QUICK, *ENGINE})])
def test_lab(busy_cluster, name):
    from_start_to_end(busy_cluster, name)


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", slow(ENGINE))
def test_lab_with_its_own_engine(new_cluster, name):
    from_start_to_end(new_cluster(), name)


@pytest.mark.skipif(not KUBECONFIG, reason=REASON)
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", slow(LABS))
def test_lab_on_a_real_cluster(name):
    with real_namespace() as cluster:
        cluster.apply("storage")
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


def test_half_a_lab_does_not_stay_and_a_stale_address_neither(busy_cluster, monkeypatch):
    before = busy_cluster.remains()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(labs.lab, "until_it_shows", Mock(side_effect=KeyboardInterrupt))
        labs.start(busy_cluster, "wrong-port")
    assert check_clean(busy_cluster, before).passed
    lab = labs.start(busy_cluster, "stale-address")
    shared = busy_cluster.paths.claims / "shared"
    assert [path.name for path in shared.iterdir()] == ["head-address-lab"]
    (shared / "checkpoints").mkdir()
    lab.end()
    assert [path.name for path in shared.iterdir()] == ["checkpoints"]
    (shared / "checkpoints").rmdir()


def test_what_nobody_accounts_for_is_named(new_cluster):
    cluster = new_cluster()
    before = cluster.remains()
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


# -- the catalogue --------------------------------------------------------------------------------


def leaves(node, path=""):
    if not isinstance(node, dict | list):
        return {path: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {p: v for key, each in items for p, v in leaves(each, f"{path}/{key}").items()}


@pytest.mark.parametrize("profile", ["local", "eks", "kind"])
@pytest.mark.parametrize("name", LABS)
def test_a_break_is_a_small_change_that_no_report_gives_away(name, profile):
    plan = labs.plan(name)
    shown = labs.table().set_index("lab").loc[plan.number].to_string() + repr(labs.Lab(None, plan))
    assert name not in shown or name == plan.component  # notebook 01 has a component of this name
    assert not any(str(value) in plan.report for value in plan.broken(profile).values())
    plain = manifests.render(profile, plan.component)
    broken = manifests.render(profile, plan.component, plan.broken(profile))
    changed = [
        old.key
        for old, new in zip(plain, broken, strict=True)
        for path, value in leaves(old.body).items()
        if value != leaves(new.body).get(path)
    ]
    assert len(changed) <= 2 and len(set(changed)) == (name != "killed-worker"), changed


def test_the_catalogue_is_complete_and_hints_go_on_to_the_last_one():
    assert {labs.plan(number).name for number in labs.table()["lab"]} == set(LABS)
    with pytest.raises(WorkshopError, match=r"no lab 'worng-port'; labs.table\(\) has 1 to"):
        labs.plan("worng-port")
    lab = labs.Lab(None, labs.plan("wrong-port"))
    said = [lab.hint() for _ in range(4)]
    assert said[0].startswith("hint 1 of 3: ") and "8081" not in said[0]
    assert said[2] == said[3] and "8081" in said[2]


def test_a_quota_lets_the_scheduler_say_that_there_are_not_enough_gpus():
    """Refused by a quota there is no pod, and no Pending: in no profile is that the lesson."""
    asked = 2 * 16  # notebook 01: TOO_MANY_GPUS for each of two pods
    for profile in ("eks", "kind"):
        quota = next(i for i in manifests.render(profile, "namespace") if i.kind == "ResourceQuota")
        assert int(quota.body["spec"]["hard"].get("requests.nvidia.com/gpu", asked)) >= asked
