"""Deployments with real processes: replicas, crashes, killed containers, new templates."""

import os
import random
import signal
import time

import pytest
from local_helpers import (
    body,
    container_status,
    listening,
    objects,
    pod_spec,
    runner_pid,
    server,
    shims,
    texts,
    until,
)

from workshop_lib.cluster.local import processes


def sleeper(script, **spec):
    """A Deployment of one container that runs a shell script, without volumes and probes."""
    items = [item for item in objects("server") if item.kind == "Deployment"]
    items[0].body["spec"] |= spec
    container = pod_spec(items)["containers"][0]
    pod_spec(items)["containers"] = [
        {"name": "web", "image": container["image"], "command": ["bash", "-c", script]}
    ]
    del pod_spec(items)["volumes"]
    return items


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
    before = web.observe().pods, runner_pid(cluster, "Deployment/server"), web.observe().body
    again = cluster.apply_objects("web", server())
    assert set(again.actions.values()) == {"unchanged"}
    again.wait_ready(timeout_s=300)
    time.sleep(0.5)  # time enough for a restart to show
    after = web.observe().pods, runner_pid(cluster, "Deployment/server"), web.observe().body
    assert after == before


def test_status_says_since_when_it_is_available(cluster):
    web = cluster.apply_objects("web", server()).wait_ready(timeout_s=300)
    condition = web.observe().body["status"]["conditions"][0]
    time.sleep(1.1)  # a timestamp of now would be another one
    cluster.apply_objects("web", server(revisionHistoryLimit=3))
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

    quick = cluster.apply_objects("web", sleeper("exit 5"))
    until(lambda: container_status(quick)["restartCount"] >= 3)


def test_container_that_ends_well_backs_off_too(new_cluster):
    web = new_cluster(restart_backoff_s=300).apply_objects("web", sleeper("exit 0"))
    until(lambda: list(web.table()["state"]) == ["CrashLoopBackOff"])


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


@pytest.fixture
def spawner(cluster):
    """A container whose grandchildren have sessions of their own and no environment."""
    duration = str(random.randrange(10**6, 10**7))
    items = sleeper("")
    pod_spec(items)["containers"][0]["command"] = ["python", "-Sc", GRANDCHILDREN, duration]
    web = cluster.apply_objects("web", items)

    def grandchildren():
        wanted = [b"sleep", duration.encode()]
        return [pid for pid in processes.all_pids() if processes.command_line(pid) == wanted]

    until(lambda: len(grandchildren()) == 2)
    return web, grandchildren


def test_killed_shim_takes_everything_down_and_restarts(cluster, spawner):
    web, grandchildren = spawner
    first = set(grandchildren())
    os.kill(shims(cluster, "Deployment/server")[0], signal.SIGKILL)
    until(lambda: container_status(web)["restartCount"] == 1 and len(grandchildren()) == 2)
    assert first.isdisjoint(grandchildren())
    assert container_status(web)["lastState"]["terminated"]["exitCode"] == 137
    cluster.delete("web")
    assert grandchildren() == []


def test_killed_process_takes_its_grandchildren_along(cluster, spawner):
    web, grandchildren = spawner
    first = set(grandchildren())
    shim = shims(cluster, "Deployment/server")[0]
    inner = [pid for pid in processes.descendants(shim) if pid not in first]
    assert len(inner) == 1
    os.kill(inner[0], signal.SIGKILL)
    until(lambda: container_status(web)["restartCount"] == 1 and len(grandchildren()) == 2)
    assert first.isdisjoint(grandchildren())
    assert container_status(web)["lastState"]["terminated"]["exitCode"] == 137


def test_stubborn_container_is_killed_after_its_grace_period(cluster):
    items = sleeper("trap '' TERM; echo up; while true; do sleep 0.1; done")
    pod_spec(items)["terminationGracePeriodSeconds"] = 1
    web = cluster.apply_objects("web", items)
    until(lambda: texts(web) == ["up"])
    cluster.delete("web")
    assert not processes.mentioning(cluster.paths.runtime)


def test_container_may_finish_what_it_does(cluster):
    items = sleeper("trap 'sleep 0.3; echo finished; exit 0' TERM; echo up; sleep 600 & wait $!")
    items += [item for item in objects("server") if item.kind == "PersistentVolumeClaim"]
    pod_spec(items)["terminationGracePeriodSeconds"] = 300
    web = cluster.apply_objects("web", items)
    until(lambda: texts(web) == ["up"])
    follower = web.logs(follow=True, timeout_s=300)
    assert next(follower).text == "up"
    body(items, "Deployment")["spec"]["replicas"] = 0
    cluster.apply_objects("web", items)
    assert next(follower).text == "finished"


def test_delete_removes_ports_logs_and_scratch(cluster):
    cluster.apply_objects("web", server(replicas=2)).wait_ready(timeout_s=300)
    assert len(listening(cluster.paths.network)) == 3, "two pods and the service"
    cluster.delete("web")
    assert listening(cluster.paths.network) == []
    assert not list(cluster.paths.volumes.iterdir())
    assert not (cluster.paths.logs / "Deployment.server").exists()
    assert not list(cluster.paths.environments.iterdir())
    assert cluster.components() == []
    cluster.delete("web")  # once more is no error
