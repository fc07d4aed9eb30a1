"""What every cluster promises a notebook, asked of each of them in the same words."""

import contextlib
import inspect
import json
import threading

import httpx
import pytest
from local_helpers import until
from objects import config_map, secret

from workshop_lib.cluster.base import Cluster
from workshop_lib.errors import (
    ClusterError,
    ManifestError,
    NotFoundError,
    WaitTimeoutError,
    WorkshopError,
)

COMPONENT = "app.kubernetes.io/component"


def texts(work, **options):
    return [line.text for line in work.logs(**options)]


def test_every_method_of_the_protocol_is_there(world):
    for name, method in inspect.getmembers(Cluster, inspect.isfunction):
        if name.startswith("_"):
            continue
        wanted = inspect.signature(method).parameters
        found = inspect.signature(getattr(type(world.cluster), name)).parameters
        for each in wanted.values():
            assert (found[each.name].kind, found[each.name].default) == (each.kind, each.default)


# -- applying -------------------------------------------------------------------------------------


def test_apply_tells_what_it_did_and_can_be_repeated(world, apply):
    job = world.job()
    assert apply(job).actions == {"Job/talk": "created"}
    assert apply(job).actions == {"Job/talk": "unchanged"}
    third = apply(job, config_map())
    assert third.actions == {"Job/talk": "unchanged", "ConfigMap/settings": "created"}
    fourth = apply(job, config_map(a="2"))
    assert fourth.actions == {"Job/talk": "unchanged", "ConfigMap/settings": "configured"}
    assert repr(fourth) == "job/talk unchanged\nconfigmap/settings configured"


def test_parameters_are_keywords_and_are_checked_first(world):
    for wrong, said in (
        ({"replicas": "two"}, r"parameter replicas: 'two' is not of type int"),
        ({"replicas": -1}, r"parameter replicas: -1 is less than 0"),
        ({"replica": 2}, r"no parameter 'replica'; it has .*model, "),
    ):
        with pytest.raises(ManifestError, match=said):
            world.cluster.apply("vllm", model="org/name", **wrong)
    assert world.cluster.components() == []


def test_another_kernel_finds_what_was_applied(world, apply):
    apply(world.job())
    found = world.cluster.get("demo")
    assert (found.kind, found.name, found.component) == ("Job", "talk", "demo")
    assert found.observe().body["metadata"]["labels"][COMPONENT] == "demo"
    assert world.cluster.components() == ["demo"]


def test_a_component_without_pods_is_ready_when_it_is_there(world, apply):
    apply(config_map("one"), config_map("two")).wait_ready(timeout_s=300)
    found = world.cluster.get("demo")
    assert (found.kind, found.name) == ("ConfigMap", "two")
    world.cluster.delete("demo")
    with pytest.raises(NotFoundError, match=r"'demo' is not applied \(nothing is\)"):
        world.cluster.get("demo")


# -- refusing -------------------------------------------------------------------------------------


def test_what_is_not_there(world):
    with pytest.raises(NotFoundError, match=r"component 'demo' is not applied \(nothing is\)"):
        world.cluster.get("demo")
    with pytest.raises(NotFoundError, match=r"Job/talk is not there; start it with cluster.apply"):
        world.cluster.observe("Job", "talk")
    with pytest.raises(NotFoundError, match="is no running pod's name"):
        world.cluster.exec("talk", ["true"])
    with pytest.raises(NotFoundError, match="'talk' is no running pod's name"):
        world.cluster.forward("talk", 80).__enter__()
    with pytest.raises(NotFoundError, match="Secret/none with key 'x' is not there"):
        world.cluster.secret("none", "x")
    with pytest.raises(WorkshopError, match="there is no component 'nothing'"):
        world.cluster.apply("nothing")
    world.cluster.delete("demo")  # nothing to do is no error


def test_a_jobs_pods_cannot_change_while_it_exists(world, apply):
    apply(world.job())
    with pytest.raises(ClusterError, match=r"Job/talk: a Job's pods cannot change while it exists"):
        apply(world.job(ANOTHER="value"))


def test_an_object_belongs_to_one_component(world, apply):
    apply(config_map())
    with pytest.raises(ClusterError, match=r"belongs to component 'demo' already; first cluster"):
        apply(config_map(), component="other")
    assert world.cluster.components() == ["demo"]


def test_a_refusal_changes_nothing(world, apply):
    apply(config_map(a="1"))
    wrong = world.job()
    wrong["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(WorkshopError, match="restartPolicy"):
        apply(config_map(a="2"), wrong)
    assert apply(config_map(a="1")).actions == {"ConfigMap/settings": "unchanged"}


# -- a workload's life ----------------------------------------------------------------------------


def test_a_jobs_life(world, apply):
    work = apply(world.job())
    world.run("starting")
    work.wait_ready(timeout_s=300)
    until(lambda: texts(work) == ["starting"])
    table = work.table()
    assert table["state"].tolist() == ["Running"] and table["restarts"].tolist() == [0]
    assert work.pods[0].startswith("talk-0-")
    world.run("done", code=0)
    work.wait_complete(timeout_s=300)
    assert [str(line) for line in work.logs(follow=True)] == ["[rank 0] starting", "[rank 0] done"]
    assert texts(work, tail=1) == ["done"]
    with pytest.raises(NotFoundError, match="no previous run"):
        texts(work, previous=True)
    world.cluster.delete("demo")
    assert world.cluster.components() == []
    with pytest.raises(NotFoundError):
        work.observe()


def test_lines_are_followed_as_they_come(world, apply):
    work = apply(world.job())
    world.run("one")
    work.wait_ready(timeout_s=300)
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(texts(work, follow=True)))
    with contextlib.closing(work.logs(follow=True)) as lines:
        assert next(lines).text == "one"
        world.run("two")
        assert next(lines).text == "two"
    reader.start()
    world.run("three", code=0)
    reader.join(timeout=300)
    assert seen == ["one", "two", "three"], "it ends with the workload"


def test_following_stops_when_it_was_told(world, apply):
    work = apply(world.job())
    world.run("one")
    work.wait_ready(timeout_s=300)
    until(lambda: texts(work) == ["one"])
    # It ends by itself after any time; how long a line takes is the machine's affair.
    assert ["one"] in (texts(work, follow=True, timeout_s=limit_s) for limit_s in (0.5, 5, 60))


def test_a_workload_is_observed_as_it_changes(world, apply):
    work = apply(world.job())
    with contextlib.closing(world.cluster.watch("Job", "talk")) as looks:
        next(looks)
        world.run(code=0)
        for look in looks:
            conditions = look.body["status"].get("conditions") or []
            if any(c["type"] == "Complete" and c["status"] == "True" for c in conditions):
                break
    assert work.observe().pods[0]["status"]["phase"] == "Succeeded"


def test_a_failure_quotes_the_last_words(world, apply):
    work = apply(world.job())
    world.run("no such model", code=1)
    with pytest.raises(
        ClusterError,
        match=r"failed after .*BackoffLimitExceeded.*\(talk-0-\w{5} said: no such model",
    ):
        work.wait_complete(timeout_s=300)


def test_a_wait_in_vain_says_what_is_missing(world, apply):
    work = apply(world.job(gpus=99))
    world.unschedulable()
    with pytest.raises(WaitTimeoutError) as error:
        work.wait_ready(timeout_s=0.5)
    line = str(error.value)
    assert line.startswith("Job/talk is not ready after 0.5 s: 0 of 1 pods ready; talk-0-")
    assert "is Pending since" in line and "1 Insufficient nvidia.com/gpu" in line
    assert "\n" not in line


# -- what is wrong ---------------------------------------------------------------------------------


def test_a_snapshot_is_plain_data_without_secrets(world, apply):
    apply(world.job(), config_map(), secret())
    world.run("hello")
    until(lambda: "hello\n" in world.cluster.snapshot()["logs"].values())
    taken = json.loads(json.dumps(world.cluster.snapshot("demo")))
    assert [body["metadata"]["name"] for body in taken["jobs"]] == ["talk"]
    assert [body["kind"] for body in taken["pods"]] == ["Pod"] and "secrets" not in taken
    token = world.cluster.secret("auth", "auth_token")
    assert token and token not in json.dumps(taken)
    with pytest.raises(NotFoundError, match="component 'other' is not applied"):
        world.cluster.snapshot("other")


def test_a_component_that_is_well_is_healthy(world, apply):
    apply(world.job())
    world.run("hello")
    until(lambda: world.cluster.diagnose("demo").verdict == "healthy")
    world.run(code=0)
    world.cluster.get("demo").wait_complete(timeout_s=300)
    assert world.cluster.diagnose().verdict == "healthy"


def test_a_pod_that_no_node_takes_is_explained(world, apply):
    apply(world.job(gpus=99), config_map("others", a="1"))
    world.unschedulable()
    found = world.cluster.diagnose("demo")
    assert found.verdict == "problems" and len(found) == 1
    assert "gpu" in found[0].rule and "1 Insufficient nvidia.com/gpu" in found[0].evidence[0]
    assert "Job/talk" in found[0].objects


def test_a_crash_is_explained_by_its_log(world, apply):
    apply(world.job())
    world.run("ModuleNotFoundError: No module named 'cheese'", code=1)
    with pytest.raises(ClusterError):
        world.cluster.get("demo").wait_complete(timeout_s=300)
    found = world.cluster.diagnose("demo")
    assert found.rules == ["module-missing"], found
    assert found[0].evidence[0] == "ModuleNotFoundError: No module named 'cheese'"


# -- reaching in ----------------------------------------------------------------------------------


def test_a_command_in_a_pod(world, apply):
    apply(world.job())
    world.started()
    done = until(lambda: said(world, ["bash", "-c", "echo out; echo err >&2; exit 3"]))
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert str(done) == "out\nerr\n(exit code 3)"
    with pytest.raises(ClusterError, match=r"exec in talk-0-\w{5}: 'no-such-command': "):
        world.cluster.exec("talk-0", ["no-such-command"])
    with pytest.raises(ClusterError, match=r"'sleep 600' did not end within 0\.3 s"):
        world.cluster.exec("talk-0", ["sleep", "600"], timeout_s=0.3)


def said(world, command):
    """What a command says, once its container runs."""
    try:
        return world.cluster.exec("talk-0", command)
    except NotFoundError:
        return None


def test_a_port_of_a_service(world, apply):
    apply(*world.server(), component="web")
    name = world.serving()
    with world.cluster.forward("server", 80) as url:
        assert url.startswith("http://127.")
        assert httpx.get(url, timeout=120).text == name
    with pytest.raises(NotFoundError, match="Service/server has no port 81; it has 80"):
        world.cluster.forward("server", 81).__enter__()


# -- deleting -------------------------------------------------------------------------------------


def test_data_goes_only_by_name(world, apply):
    apply(world.claim(), world.job())
    with pytest.raises(NotFoundError, match="component 'demo' has no claim 'x'; it has shared"):
        world.cluster.delete("demo", claims=["x"])
    assert world.cluster.components() == ["demo"], "nothing was deleted"
    world.cluster.delete("demo")
    assert world.cluster.components() == []
    assert apply(world.claim()).actions == {"PersistentVolumeClaim/shared": "unchanged"}
    world.cluster.delete("demo", claims=["shared"])
    assert apply(world.claim()).actions == {"PersistentVolumeClaim/shared": "created"}


def test_deleting_one_leaves_the_others(world, apply):
    apply(config_map("mine"), world.job())
    apply(config_map("others"), component="other")
    world.started()
    world.cluster.delete("demo")
    assert world.cluster.components() == ["other"]
    assert apply(config_map("others"), component="other").actions == {
        "ConfigMap/others": "unchanged"
    }
    world.cluster.clean()
    assert world.cluster.components() == []
