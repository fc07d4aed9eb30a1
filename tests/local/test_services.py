"""Services: who is behind them, whose turn it is, and ports that strangers have."""

import socket
import urllib.error
import urllib.request
from collections import Counter

import pytest
from local_helpers import body, objects, pod_spec, server, texts, until

from workshop_lib.errors import NotFoundError

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def get(url):
    with OPENER.open(url, timeout=120) as answer:
        return answer.read().decode()


def service_url(cluster, name="server", port=80):
    endpoint = cluster.book.find(f"Service/{name}")
    return f"http://{endpoint.ip}:{endpoint.ports[port]}/"


def answers(url):
    try:
        return get(url)
    except (OSError, urllib.error.URLError):
        return None


def test_service_takes_turns_between_ready_pods(cluster):
    web = cluster.apply_objects("web", server(replicas=2)).wait_ready(timeout_s=300)
    url = service_url(cluster)
    until(lambda: answers(url))
    assert Counter(get(url) for _ in range(6)) == dict.fromkeys(web.pods, 3)


def test_only_ready_pods_get_connections(cluster):
    items = server()
    container = pod_spec(items)["containers"][0]
    container["readinessProbe"] = {
        "exec": {"command": ["bash", "-c", "test ! -e $TMPDIR/not-ready"]},
        "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 60,
    }  # fmt: skip
    body(items, "Deployment")["spec"]["replicas"] = 2
    web = cluster.apply_objects("web", items).wait_ready(timeout_s=300)
    one, other = web.pods
    url = service_url(cluster)
    until(lambda: answers(url))
    cluster.exec(one, ["bash", "-c", "touch $TMPDIR/not-ready"])
    until(lambda: list(web.table()["ready"]) == [False, True])
    assert {get(url) for _ in range(4)} == {other}
    with cluster.forward("server", 80) as direct:
        assert get(direct) == other
    cluster.exec(other, ["bash", "-c", "touch $TMPDIR/not-ready"])
    until(lambda: list(web.table()["ready"]) == [False, False])
    with pytest.raises((OSError, urllib.error.URLError)):
        get(url)
    with (
        pytest.raises(NotFoundError, match="no ready pod behind it"),
        cluster.forward("server", 80),
    ):
        pass
    with cluster.forward(one, 8000) as direct:
        assert get(direct) == one, "a pod can be reached whether it is ready or not"


def test_pod_that_ends_gets_nothing_new(cluster):
    items = server(replicas=2)
    pod_spec(items)["terminationGracePeriodSeconds"] = 6
    container = pod_spec(items)["containers"][0]
    container["env"].append({"name": "SCRIPTS", "value": "/scripts"})
    # It serves on while it ends.
    container["command"] = ["bash", "-c", "trap : TERM; python -S -E $SCRIPTS/server.py"]
    web = cluster.apply_objects("web", items).wait_ready(timeout_s=300)
    url = service_url(cluster)
    until(lambda: answers(url))
    body(items, "Deployment")["spec"]["replicas"] = 1
    first = web.pods[0]
    cluster.apply_objects("web", items)
    until(lambda: "deletionTimestamp" in web.observe().pods[-1]["metadata"] or len(web.pods) == 1)
    assert {get(url) for _ in range(6)} == {first}
    web.wait_ready(timeout_s=300)
    assert web.observe().body["status"]["replicas"] == 1, "one that ends is none"


def test_selector_chooses_the_pods(cluster):
    items = server()
    body(items, "Service")["spec"]["selector"] = {"app": "somebody-else"}
    cluster.apply_objects("web", items).wait_ready(timeout_s=300)
    with (
        pytest.raises(NotFoundError, match="no ready pod behind it"),
        cluster.forward("server", 80),
    ):
        pass
    changed = cluster.apply_objects("web", server())
    assert changed.actions["Service/server"] == "configured"
    assert changed.actions["Deployment/server"] == "unchanged"
    until(lambda: answers(service_url(cluster)))


def test_changed_port_of_a_service_moves_its_listener(cluster):
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    until(lambda: answers(service_url(cluster)))
    before = service_url(cluster)
    items = server()
    body(items, "Service")["spec"]["ports"] = [{"port": 81, "targetPort": 8000}]
    cluster.apply_objects("web", items)
    until(lambda: answers(service_url(cluster, port=81)))
    until(lambda: answers(before) is None)


def test_unknown_targets_and_ports_are_named(cluster):
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    with pytest.raises(NotFoundError, match="Service/server has no port 99; it has 80"), \
            cluster.forward("server", 99):  # fmt: skip
        pass
    with pytest.raises(NotFoundError, match="'nobody' is no running pod's name"), \
            cluster.forward("nobody", 80):  # fmt: skip
        pass
    pod = cluster.get("web").pods[0]
    with pytest.raises(NotFoundError, match=f"{pod} has no port 99; it has 8000"), \
            cluster.forward(pod, 99):  # fmt: skip
        pass


def test_other_pods_find_a_service_by_name(cluster):
    cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    until(lambda: answers(service_url(cluster)))
    script = "exec 3<>/dev/tcp/${WHERE%:*}/${WHERE#*:}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; " \
             "tail -n 1 <&3"  # fmt: skip
    items = objects("job")
    container = pod_spec(items)["containers"][0]
    container["command"] = ["bash", "-c", script]
    container["env"] = [{"name": "WHERE", "value": "server:80"}]
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    assert texts(work) == cluster.get("web").pods


def test_port_that_a_stranger_has_is_moved_and_the_pod_is_told(cluster):
    with socket.socket() as stranger:
        stranger.bind(("0.0.0.0", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        items = server()
        pod_spec(items)["containers"][0]["ports"][0]["containerPort"] = taken
        body(items, "Service")["spec"]["ports"][0]["port"] = taken
        web = cluster.apply_objects("web", items).wait_ready(timeout_s=300)
        assert texts(web)[0].split()[-1] != str(taken)
        with cluster.forward("server", taken) as url:
            assert not url.endswith(f":{taken}")
            assert get(url) == web.pods[0]
        url = service_url(cluster, port=taken)
        until(lambda: answers(url))
        assert not url.endswith(f":{taken}/")
        stranger.settimeout(0)
        with pytest.raises(BlockingIOError):
            stranger.accept()  # nobody bothered the stranger


def test_port_taken_while_a_pod_was_down_is_moved_for_the_next_one(cluster):
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    before = cluster.book.find("Deployment/server/0")
    assert before.ports == {8000: 8000}
    cluster.apply_objects("web", server(replicas=0))
    until(lambda: not web.pods)
    assert cluster.book.find("Deployment/server/0") is None, "the address was given back"
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind((before.ip, 8000))
        stranger.listen()
        cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
        after = cluster.book.find("Deployment/server/0")
        assert after.ip == before.ip and after.ports[8000] != 8000
        with cluster.forward("server", 80) as url:
            assert get(url) == web.pods[0]
