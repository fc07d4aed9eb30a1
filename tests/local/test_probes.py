"""Probes against real processes: each kind, each consequence."""

import asyncio

import pytest
from local_helpers import container_status, job, objects, pod_spec, texts, until

from workshop_lib.cluster.local import probes
from workshop_lib.errors import WaitTimeoutError

QUICK = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 60}


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def probed(**probes):
    """The web server with exactly these probes."""
    items = objects("server")
    container = pod_spec(items)["containers"][0]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        container.pop(name, None)
    container.update(probes)
    return items


def switch(cluster, name, on):
    file = cluster.paths.claims / "switches" / name
    file.touch() if on else file.unlink()


def test_readiness_flips(cluster):
    web = cluster.apply_objects("web", objects("server")).wait_ready(timeout_s=300)
    switch(cluster, "not-ready", True)
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
    switch(cluster, "not-ready", False)
    web.wait_ready(timeout_s=300)


def test_startup_probe_gates_the_others(cluster):
    ask = {"exec": {"command": ["bash", "-c", "test -e $SWITCHES/started"]}}
    items = probed(
        startupProbe={**QUICK, **ask, "failureThreshold": 100},
        livenessProbe={**QUICK, "httpGet": {"path": "/never", "port": 1}},
    )
    web = cluster.apply_objects("web", items)
    until(lambda: any("Startup probe failed" in m for m in web.events()["message"]))
    status = container_status(web)
    assert (status["started"], status["ready"], status["restartCount"]) == (False, False, 0)
    switch(cluster, "started", True)
    # Now the liveness probe counts, and it asks a port where nobody is.
    until(lambda: container_status(web)["restartCount"] >= 1)
    assert any("connect: connection refused" in m for m in web.events()["message"])


def test_startup_probe_that_never_succeeds_restarts(cluster):
    never = {"tcpSocket": {"port": 1}, "failureThreshold": 1, "periodSeconds": 300}
    web = cluster.apply_objects("web", probed(startupProbe=never))
    # At the last failure, not a period later.
    until(lambda: container_status(web)["restartCount"] >= 1)
    messages = set(web.events()["message"])
    assert "Container web failed startup probe, will be restarted" in messages


def test_liveness_kills(cluster):
    items = probed(
        startupProbe={**QUICK, "tcpSocket": {"port": "http"}, "failureThreshold": 100},
        livenessProbe={**QUICK, "httpGet": {"path": "/alive", "port": "http"}},
    )
    web = cluster.apply_objects("web", items).wait_ready(timeout_s=300)
    switch(cluster, "not-alive", True)
    until(lambda: container_status(web)["restartCount"] >= 1)
    switch(cluster, "not-alive", False)
    web.wait_ready(timeout_s=300)
    assert container_status(web)["lastState"]["terminated"]["exitCode"] == 143
    assert "Container web failed liveness probe, will be restarted" in set(web.events()["message"])


@pytest.mark.parametrize(
    "action",
    [
        {"httpGet": {"path": "/", "port": "http"}},
        {"httpGet": {"path": "/", "port": 8000}},
        {"tcpSocket": {"port": "http"}},
        {"exec": {"command": ["cat", "/scripts/server.py"]}},
    ],
    ids=["http by name", "http by number", "tcp", "exec with a mounted path"],
)
def test_each_kind_of_probe_succeeds(cluster, action):
    web = cluster.apply_objects("web", probed(readinessProbe={**QUICK, **action}))
    web.wait_ready(timeout_s=300)


def test_probe_command_that_hangs_or_is_missing_only_fails(cluster):
    hangs = {"exec": {"command": ["sleep", "600"]}, "timeoutSeconds": 1, "periodSeconds": 1}
    missing = {"exec": {"command": ["no-such-program"]}, "periodSeconds": 1,
               "failureThreshold": 100}  # fmt: skip
    web = cluster.apply_objects("web", probed(readinessProbe=hangs, livenessProbe=missing))
    until(lambda: any("command timed out" in m for m in web.events()["message"]))
    until(lambda: any("no-such-program" in m for m in web.events()["message"]))
    assert container_status(web)["restartCount"] == 0
    assert "listening" in texts(web)[0]


@pytest.mark.parametrize("policy", ["OnFailure", "Never"])
def test_job_that_ends_well_because_a_probe_gave_it_up(cluster, policy):
    """It is started again, or where that may not be, it is over; it says which of them."""
    script = "trap 'exit 0' TERM; [ -e $TMPDIR/2 ] && exit 0; touch $TMPDIR/2; " \
             "while true; do sleep 0.05; done"  # fmt: skip
    items = job(script, restart=policy, backoffLimit=6)
    container = pod_spec(items)["containers"][0]
    container["livenessProbe"] = {
        **QUICK, "exec": {"command": ["bash", "-c", "test ! -e $TMPDIR/2"]},
        "initialDelaySeconds": 2,  # the second run has ended by then
    }  # fmt: skip
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    again = policy == "OnFailure"
    assert bool(container_status(work)["restartCount"]) == again
    said = "Container main failed liveness probe" + again * ", will be restarted"
    assert said in set(work.events()["message"])


def test_initial_delay_begins_with_the_container(monkeypatch):
    """Not when the startup probe has succeeded: by then it may long be over."""
    clock, slept, ready = [100.0], [], []

    async def sleep(seconds):
        slept.append(seconds)
        clock[0] += seconds
        if ready:
            raise asyncio.CancelledError

    answers = iter(["not yet", None, None])

    async def execute(command, timeout_s):
        return next(answers)

    monkeypatch.setattr(probes.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(probes.asyncio, "sleep", sleep)
    action = {"exec": {"command": ["x"]}, "periodSeconds": 20}
    prober = probes.Prober(
        container={"startupProbe": action, "readinessProbe": {**action, "initialDelaySeconds": 30}},
        ip="", port=int, execute=execute, say=lambda *_: None,
        on_started=lambda: slept.append("started"), on_ready=ready.append,
    )  # fmt: skip
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(prober.run())
    assert slept == [0.0, 20, "started", 10.0, 20] and ready == [True]
