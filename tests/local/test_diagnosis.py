"""The diagnosis on this machine: really broken components, found by their own words."""

import pytest
from local_helpers import body, config_map, job, pod_spec, server, until


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def rules(cluster, component, *wanted):
    """The findings, once they are these: what is broken may still be starting."""
    return until(lambda: (found := cluster.diagnose(component)).rules == list(wanted) and found)


def test_a_command_that_is_not_there(cluster):
    items = server()
    pod_spec(items)["containers"][0]["command"] = ["no-such-program"]
    cluster.apply_objects("web", items)
    found = rules(cluster, "web", "command-not-found")
    assert '"no-such-program": executable file not found' in found[0].evidence[0]
    assert "Deployment/server" in found[0].objects


def test_a_config_map_that_is_not_there_and_then_is(cluster):
    source = {"configMapKeyRef": {"name": "later", "key": "word"}}
    items = job("echo $WORD", env=[{"name": "WORD", "valueFrom": source}])
    cluster.apply_objects("work", items)
    found = rules(cluster, "work", "configmap-missing")
    assert found[0].objects[0] == "ConfigMap/later"
    cluster.apply_objects("settings", [config_map("later", word="here")])
    cluster.get("work").wait_complete(timeout_s=300)
    assert cluster.diagnose("work").verdict == "healthy"


def test_a_service_that_selects_nobody_and_one_that_is_well(cluster):
    items = server()
    body(items, "Service")["spec"]["selector"] = {"app": "sever"}
    web = cluster.apply_objects("web", items)
    until(lambda: web.observe().pods and all(web.table()["ready"]))
    found = rules(cluster, "web", "service-selector")
    assert "app=server" in found[0].cause
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    until(lambda: cluster.diagnose("web").verdict == "healthy")


def test_a_crash_is_told_by_the_last_words_of_the_run_before(cluster):
    script = "echo 'OSError: [Errno 98] Address already in use' >&2; exit 1"
    items = [item for item in server() if item.kind == "Deployment"]
    pod_spec(items)["containers"] = [
        {"name": "web", "image": "localhost/this-environment", "command": ["bash", "-c", script]}
    ]
    del pod_spec(items)["volumes"]
    cluster.apply_objects("work", items)
    found = rules(cluster, "work", "port-taken")
    assert found[0].evidence[0] == "OSError: [Errno 98] Address already in use"
    assert found[0].objects[-1] == "Deployment/server"
