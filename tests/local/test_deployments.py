"""Deployments with real processes: replicas, probes, crashes, killed containers, Services."""

import os
import random
import signal
import socket
import time
import urllib.request

import pytest
from local_helpers import (
    agent_pid,
    body,
    container_status,
    listening,
    objects,
    pod_spec,
    server,
    shims,
    sleeper,
    texts,
    until,
)

from workshop_lib.cluster.local import processes
from workshop_lib.errors import NotFoundError, WaitTimeoutError

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
QUICK = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 60}


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def probed(**probes):
    """The web server with exactly these probes."""
    items = objects("server")
    container = pod_spec(items)["containers"][0]
    del container["readinessProbe"]
    container.update(probes)
    return items


def asking(path, port="http", **more):
    return {**QUICK, "httpGet": {"path": path, "port": port}, **more}


def switch(cluster, name, on=True):
    file = cluster.paths.claims / "switches" / name
    file.touch() if on else file.unlink()


def reached(cluster, target="server", port=80):
    with cluster.forward(target, port) as url, OPENER.open(url, timeout=120) as answer:
        return answer.read().decode()


# -- replicas -------------------------------------------------------------------------------------


def test_replicas_up_and_down(cluster):
    web = cluster.apply_objects("web", server(replicas=1)).wait_ready(timeout_s=300)
    first = web.pods
    cluster.apply_objects("web", server(replicas=3)).wait_ready(timeout_s=300)
    assert len(web.pods) == 3 and web.pods[0] == first[0], "the pod that ran goes on"
    assert len({row.address for row in web.table().itertuples()}) == 3
    cluster.apply_objects("web", server(replicas=1))
    until(lambda: web.pods == first)
    cluster.apply_objects("web", server(replicas=0)).wait_ready(timeout_s=300)
    until(lambda: web.pods == [] and not shims(cluster, "Deployment/server"))


def test_unchanged_apply_restarts_nothing(cluster):
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    before = web.observe().pods, agent_pid(cluster), web.observe().body
    again = cluster.apply_objects("web", server())
    assert set(again.actions.values()) == {"unchanged"}
    time.sleep(0.5)  # time enough for a restart to show
    assert (web.observe().pods, agent_pid(cluster), web.observe().body) == before
    condition = before[2]["status"]["conditions"][0]
    time.sleep(0.6)  # a timestamp of now would be another one
    cluster.apply_objects("web", server(strategy={"type": "Recreate"}))
    until(lambda: web.observe().body["status"].get("observedGeneration") == 2)
    assert web.observe().body["status"]["conditions"][0] == condition


def test_new_template_replaces_the_pods(cluster):
    web = cluster.apply_objects("web", sleeper("echo old; sleep 600", replicas=2))
    web.wait_ready(timeout_s=300)
    old = set(web.pods)
    new = cluster.apply_objects("web", sleeper("echo new; sleep 600", replicas=2))
    assert new.actions == {"Deployment/server": "configured"}
    new.wait_ready(timeout_s=300)  # ready means the new ones, not the old ones that still run
    assert old.isdisjoint(web.pods) and len(web.pods) == 2
    until(lambda: sorted(texts(web)) == ["new", "new"])
    assert len(shims(cluster, "Deployment/server")) == 2


def test_delete_removes_ports_logs_and_environments(cluster):
    cluster.apply_objects("web", server(replicas=2)).wait_ready(timeout_s=300)
    assert len(listening(cluster.paths.network)) == 2
    assert len(list(cluster.paths.environments.iterdir())) == 3, "the neighbour has one"
    for _ in range(2):  # once more is no error
        cluster.delete("web")
        assert listening(cluster.paths.network) == []
        assert len(list(cluster.paths.environments.iterdir())) == 1
        assert not (cluster.paths.logs / "Deployment.server").exists()


# -- probes ---------------------------------------------------------------------------------------


def test_readiness_flips(cluster):
    web = cluster.apply_objects("web", objects("server")).wait_ready(timeout_s=300)
    switch(cluster, "not-ready")
    until(lambda: list(web.table()["ready"]) == [False])
    pod = web.observe().pods[0]["status"]
    ready = {c["type"]: c for c in pod["conditions"]}["Ready"]
    assert (ready["reason"], ready["message"]) == (
        "ContainersNotReady", "containers with unready status: [web]"
    )  # fmt: skip
    assert container_status(web)["restartCount"] == 0 and pod["phase"] == "Running"
    messages = list(web.events()["message"])
    assert "Readiness probe failed: HTTP probe failed with statuscode: 503" in messages
    with pytest.raises(WaitTimeoutError, match="0 of 1 pods ready"):
        web.wait_ready(timeout_s=0.2)
    switch(cluster, "not-ready", on=False)
    web.wait_ready(timeout_s=300)


def test_startup_probe_gates_the_others(cluster):
    items = probed(
        startupProbe=asking("/started", failureThreshold=100),
        livenessProbe=asking("/never", 1),
    )
    (cluster.paths.claims / "switches").mkdir(parents=True)
    switch(cluster, "not-started")
    web = cluster.apply_objects("web", items)
    until(lambda: any("Startup probe failed: HTTP" in m for m in web.events()["message"]))
    status = container_status(web)
    assert (status["started"], status["ready"], status["restartCount"]) == (False, False, 0)
    switch(cluster, "not-started", on=False)
    # Now the liveness probe counts, and it asks a port where nobody is.
    until(lambda: container_status(web)["restartCount"] >= 1)
    refused = "Liveness probe failed: Get .*/never.: dial tcp .*: connect: connection refused"
    assert web.events()["message"].str.fullmatch(refused).any(), "as a kubelet says it"


def test_liveness_kills(cluster):
    items = probed(
        startupProbe=asking("/", failureThreshold=100), livenessProbe=asking("/alive", 8000)
    )
    web = cluster.apply_objects("web", items).wait_ready(timeout_s=300)
    switch(cluster, "not-alive")
    until(lambda: container_status(web)["restartCount"] >= 1)
    switch(cluster, "not-alive", on=False)
    web.wait_ready(timeout_s=300)
    assert container_status(web)["lastState"]["terminated"]["exitCode"] == 143
    assert "Container web failed liveness probe, will be restarted" in set(web.events()["message"])


# -- crashes --------------------------------------------------------------------------------------


def test_crashing_container_is_restarted_and_backs_off(cluster, new_cluster):
    slow = new_cluster(restart_backoff_s=300)
    web = slow.apply_objects("web", sleeper("echo up; exit 5"))
    until(lambda: list(web.table()["state"]) == ["CrashLoopBackOff"])
    status = container_status(web)
    assert status["restartCount"] == 1, "the first restart comes at once"
    assert status["lastState"]["terminated"]["exitCode"] == 5
    message = status["state"]["waiting"]["message"]
    assert message.startswith(f"back-off 300s restarting failed container=web pod={web.pods[0]}_")
    assert "BackOff" in set(web.events()["reason"])
    assert texts(web) == texts(web, previous=True) == ["up"]
    with pytest.raises(NotFoundError, match=r"container 'web' of server-.* does not run"):
        slow.exec("server", ["true"])

    quick = cluster.apply_objects("web", sleeper("exit 0"))
    until(lambda: container_status(quick)["restartCount"] >= 3)


GRANDCHILDREN = """
import os, sys, time
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.execve("/bin/sleep", ["sleep", sys.argv[1]], {})
print("spawned", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["shim", "command"])
def test_what_is_killed_takes_its_grandchildren_along(cluster, victim):
    """The grandchildren have sessions of their own and no environment."""
    duration = str(random.randrange(10**6, 10**7))
    items = sleeper("")
    pod_spec(items)["containers"][0]["command"] = ["python", "-Sc", GRANDCHILDREN, duration]
    web = cluster.apply_objects("web", items)

    def grandchildren():
        wanted = [b"sleep", duration.encode()]
        return [pid for pid in processes.all_pids() if processes.command_line(pid) == wanted]

    first = set(until(lambda: len(grandchildren()) == 2 and grandchildren()))
    killed = shims(cluster, "Deployment/server")[0]
    if victim == "command":
        (killed,) = (pid for pid in processes.descendants(killed) if pid not in first)
    os.kill(killed, signal.SIGKILL)
    until(lambda: container_status(web)["restartCount"] == 1 and len(grandchildren()) == 2)
    assert first.isdisjoint(grandchildren())
    assert container_status(web)["lastState"]["terminated"]["exitCode"] == 137
    cluster.delete("web")
    assert grandchildren() == []


def test_container_may_finish_what_it_does_and_is_killed_when_it_does_not(cluster):
    items = sleeper("trap 'sleep 0.3; echo finished; exit 0' TERM; echo up; sleep 600 & wait $!")
    web = cluster.apply_objects("web", items)
    until(lambda: texts(web) == ["up"])
    follower = web.logs(follow=True, timeout_s=300)
    assert next(follower).text == "up"
    body(items, "Deployment")["spec"]["replicas"] = 0
    cluster.apply_objects("web", items)
    assert next(follower).text == "finished"
    stubborn = sleeper("trap '' TERM; echo up; while true; do sleep 0.1; done")
    pod_spec(stubborn)["terminationGracePeriodSeconds"] = 1
    cluster.apply_objects("web", stubborn)
    until(lambda: texts(web) == ["up"])
    cluster.delete("web")
    assert not shims(cluster, "Deployment/server")


# -- Services and ports ---------------------------------------------------------------------------


def test_only_ready_pods_are_behind_a_service(cluster):
    web = cluster.apply_objects("web", server(replicas=2)).wait_ready(timeout_s=300)
    one, other = web.pods
    switch(cluster, f"not-ready-{one}")
    until(lambda: list(web.table()["ready"]) == [False, True])
    assert reached(cluster) == other
    switch(cluster, f"not-ready-{other}")
    until(lambda: list(web.table()["ready"]) == [False, False])
    for target, port, said in (
        ("server", 80, "Service/server has no ready pod behind it"),
        ("server", 99, "Service/server has no port 99; it has 80"),
        (one, 99, f"{one} has no port 99; it has 8000"),
    ):
        with pytest.raises(NotFoundError, match=said):
            reached(cluster, target, port)
    assert reached(cluster, one, 8000) == one, "a pod can be reached whether it is ready or not"


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
        assert reached(cluster, "server", taken) == web.pods[0]
        stranger.settimeout(0)
        with pytest.raises(BlockingIOError):
            stranger.accept()  # nobody bothered the stranger
