"""Deleting: the workshop's own, in full, and nothing else."""

import pytest
from local_helpers import until
from objects import claim, config_map, deployment, job, objects, service

from workshop_lib.errors import NotFoundError, WaitTimeoutError


def test_what_a_component_made_and_nothing_else(emulator, cluster):
    cluster.apply_objects("demo", objects(config_map("mine"), service(), job()))
    cluster.apply_objects("other", objects(config_map("others")))
    emulator.put(config_map("theirs"))
    emulator.add_pod(emulator.get("Job", "talk"), "talk-abcde")
    cluster.delete("demo")
    assert emulator.names("Job") == emulator.names("Pod") == emulator.names("Service") == []
    assert emulator.names("ConfigMap") == ["others", "theirs"]
    deleted = [path for method, path in emulator.requests if method == "DELETE"]
    assert len(deleted) == 3 and "jobs/talk" in deleted[0], "workloads first, one by one"
    with pytest.raises(NotFoundError, match=r"component 'demo' is not applied \(other is\)"):
        cluster.get("demo")


def test_clean_keeps_data_and_says_so(emulator, cluster, capsys):
    cluster.apply_objects("one", objects(claim("models"), job()))
    cluster.apply_objects("two", objects(deployment()))
    emulator.put(config_map("theirs"))
    cluster.clean()
    assert emulator.names("Job") == emulator.names("Deployment") == []
    assert emulator.names("ConfigMap") == ["theirs"]
    assert "kept, with their data: models; clean(claims=[...])" in capsys.readouterr().out
    cluster.clean(claims=["models"])
    assert emulator.names("PersistentVolumeClaim") == []


def test_what_is_left_and_why(emulator, cluster):
    cluster.apply_objects("demo", objects(config_map(), job()))
    emulator.add_pod(emulator.get("Job", "talk"), "talk-abcde")
    emulator.stuck = {"talk-abcde"}
    with pytest.raises(WaitTimeoutError):
        cluster.delete("demo", timeout_s=0.1)
    # The garbage collector has told the pod to end.
    until(lambda: "deletionTimestamp" in emulator.get("Pod", "talk-abcde")["metadata"])
    with pytest.raises(WaitTimeoutError) as error:
        cluster.delete("demo", timeout_s=0.5)
    line = str(error.value)
    assert line.startswith("not gone after 0.5 s: Job/talk waits for its pods; Pod/talk-abcde is")
    assert "ending on node-a, to be killed at" in line and "call delete again" in line
    emulator.stuck = set()
    cluster.delete("demo")
    assert emulator.names("Job") == emulator.names("ConfigMap") == []


def test_a_finalizer_that_nobody_removes(emulator, cluster):
    cluster.apply_objects("demo", objects(job()))
    body = emulator.get("Job", "talk")
    body["metadata"]["finalizers"] = ["ray.io/gcs-ft"]
    emulator.put(body)
    with pytest.raises(
        WaitTimeoutError, match=r"Job/talk waits for ray.io/gcs-ft \(does its operator run"
    ):
        cluster.delete("demo", timeout_s=0.5)


def test_one_made_anew_under_the_name_is_not_deleted(emulator, cluster):
    """Deleted and applied again by another kernel, between our look and our request."""
    cluster.apply_objects("demo", objects(config_map()))
    delete = emulator.store.delete

    def made_anew(resource, namespace, name, options):
        emulator.store.delete = delete
        emulator.store.drop(resource, namespace, name)
        emulator.put(config_map(a="new"))
        return delete(resource, namespace, name, options)

    emulator.store.delete = made_anew
    cluster.delete("demo")
    assert emulator.get("ConfigMap", "settings")["data"] == {"a": "new"}


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_lost_connection_is_no_reason_to_stop(emulator, cluster, lost):
    cluster.apply_objects("demo", objects(config_map(), job()))
    emulator.fail("DELETE", "", lost=lost, times=2)
    cluster.delete("demo")
    assert emulator.names("Job") == emulator.names("ConfigMap") == []


def test_a_cluster_without_operators_or_rights_to_roles(emulator, cluster):
    emulator.crds = False
    emulator.forbidden = {("list", "roles"), ("list", "networkpolicies")}
    cluster.apply_objects("demo", objects(config_map()))
    cluster.delete("demo")
    assert emulator.names("ConfigMap") == []
