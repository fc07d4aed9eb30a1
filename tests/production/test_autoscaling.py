"""Scaling: what the settings ask for, load against a real HTTP server, what a run says."""

import inspect
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from figures import check_readable

from workshop_lib.cluster import manifests
from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.records import ExecResult, Observation
from workshop_lib.errors import (
    ClusterError,
    ManifestError,
    NotFoundError,
    WaitTimeoutError,
    WorkshopError,
)
from workshop_lib.plots import plot_autoscaler, plot_recovery, plot_scaling
from workshop_lib.production import probes
from workshop_lib.production.autoscaling import (
    Recovery,
    ScalingRun,
    ServeApp,
    check_scaling,
    desired_replicas,
    explain_autoscaling,
    probe_budgets,
    run,
    run_load,
    scaling_layers,
    startup_timeline,
)
from workshop_lib.production.autoscaling.app import Replica, ServeSnapshot
from workshop_lib.production.autoscaling.load import Load, Request
from workshop_lib.production.autoscaling.settings import AutoscalingSettings

SETTINGS = AutoscalingSettings(
    min_replicas=1,
    max_replicas=4,
    target_ongoing_requests=2.0,
    upscale_delay_s=2.0,
    downscale_delay_s=5.0,
    look_back_period_s=3.0,
)


def test_the_formula_is_that_of_the_installed_ray():
    """The same numbers as Ray's own policy, for a deployment that runs as it should."""
    from ray.serve.autoscaling_policy import _core_replica_queue_length_policy
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    fields = inspect.signature(AutoscalingContext).parameters
    for running, ongoing, target in itertools.product((1, 4), (0.5, 2, 5.9, 6, 8), (1, 2, 3.5)):
        given = {
            "config": AutoscalingConfig(target_ongoing_requests=target, max_replicas=100),
            "current_num_replicas": running,
            "target_num_replicas": running,
            "total_num_requests": ongoing,
        }
        context = AutoscalingContext(**{name: given.get(name) for name in fields})
        wanted, _ = _core_replica_queue_length_policy(context)
        assert desired_replicas(wanted, 1) == desired_replicas(ongoing, target)


class Server(ThreadingHTTPServer):
    """Answers after `delay_s`, or when it stops; the next `failures` requests get a 500."""

    daemon_threads = True

    def __init__(self, delay_s=0.02):
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay_s, self.failures = delay_s, 0
        self.active = self.most = self.answered = 0
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, *_):
        """Clients that went away."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        with server.lock:
            server.active += 1
            server.most = max(server.most, server.active)
            fails = server.failures > 0
            server.failures -= fails
        self.rfile.read(int(self.headers["Content-Length"]))
        server.stopped.wait(server.delay_s)
        with server.lock:
            server.active -= 1
            server.answered += not fails
        body = json.dumps({"service_ms": 1000 * server.delay_s}).encode()
        self.send_response(500 if fails else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(**options):
    server = Server(**options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def until(look, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return True


def test_users_keep_one_request_each_in_flight():
    with serving() as server, Load(server.url) as load:
        load.set_users(3)
        until(lambda: server.answered >= 20)
        load.set_users(1)
        until(lambda: server.active <= 1)
        most, server.most, seen = server.most, 0, server.answered
        until(lambda: server.answered >= seen + 10)
    assert most == 3 and server.most == 1
    frame = load.frame()
    assert len(frame) == server.answered, "leaving the block lets users finish"
    assert (frame["error"] == "").all() and (frame["latency_ms"] >= 20).all()
    assert frame["start_s"].is_monotonic_increasing and (frame["service_ms"] == 20).all()


def test_failures_are_counted_and_further_attempts_are_rows():
    with serving() as server, Load(server.url, attempts=2) as load:
        server.failures = 1
        load.set_users(1)
        until(lambda: server.answered >= 2)
    first = load.frame().query("number == 0")
    assert first["error"].tolist() == ["HTTP 500", ""] and first["last"].tolist() == [False, True]
    with Load(server.url) as load:  # it is gone
        load.set_users(1)
        until(lambda: load.attempts)
    assert load.attempts[0].error == "ConnectError" and load.attempts[0].last


def test_an_interrupt_ends_the_load_at_once():
    """Nobody waits for an answer that takes an hour."""
    with serving(delay_s=3600) as server:
        with pytest.raises(KeyboardInterrupt), Load(server.url) as load:
            load.set_users(2)
            until(lambda: server.active == 2)
            raise KeyboardInterrupt
        assert not load.attempts


def replica(name="a", *, pid=1, ip="127.0.0.2", start_s=10.0):
    return Replica(replica_id=name, state="RUNNING", pid=pid, node_ip=ip, start_time_s=start_s)


def snapshot(running=1):
    replicas = [replica(f"r{n}") for n in range(running)]
    return ServeSnapshot(
        status="HEALTHY", target_num_replicas=running, replicas=replicas, settings=SETTINGS
    )


CONFIG = {**vars(SETTINGS), "smoothing_factor": 1.0}
DEPLOYMENT = {
    "status": "UPSCALING",
    "message": "",
    "target_num_replicas": 2,
    "deployment_config": {"autoscaling_config": CONFIG},
    "replicas": [
        {"replica_id": "j4", "state": "RUNNING", "pid": 30089, "node_ip": "127.0.0.2",
         "start_time_s": 1795270118.3},
        {"replica_id": "k2", "state": "STARTING", "start_time_s": 1795270140.1},
    ],
}  # fmt: skip
ANSWER = {"applications": {"recommender": {"deployments": {"Recommender": DEPLOYMENT}}}}
"""As Ray 2.60 answered while it scaled up: a replica that starts has no pid yet."""


def test_snapshot_of_an_application_that_scales_up():
    seen = ServeSnapshot.of(ANSWER, "recommender")
    assert [each.replica_id for each in seen.running] == ["j4"] and seen.replicas[1].pid is None
    assert seen.settings == SETTINGS and not seen.settled(2) and not seen.settled(1)
    assert str(seen) == "UPSCALING: 1 running, 1 starting of 2 replicas"
    with pytest.raises(NotFoundError, match=r"'llm' \(it has: recommender\)"):
        ServeSnapshot.of(ANSWER, "llm")


class ScalingApp(ServeApp):
    """A real server's URL, and a controller that follows the users after some looks."""

    def __init__(self, server, *, never=False, fails=()):
        self.url, self.name, self.server = server.url, "recommender", server
        self.never, self.fails, self.looks, self.running = never, list(fails), 2, 1
        self.ongoing = deque(maxlen=5)

    def gauges(self):
        return {"counted_requests": float(self.server.active)}

    def snapshot(self):
        if self.fails and self.fails.pop(0):
            raise ClusterError("Ray's dashboard does not answer")
        # Between an answer and the next question a user has none; Ray looks back too.
        self.ongoing.append(self.server.active)
        wanted = SETTINGS.replicas_for(max(self.ongoing))
        if wanted != self.running and not self.never:
            self.looks -= 1
            if self.looks <= 0:
                self.running, self.looks = wanted, 2
        return snapshot(self.running)


def test_a_part_of_the_load_lasts_until_the_replicas_are_there():
    with serving(delay_s=0.3) as server:
        fails = [False, False, True, False, True]  # a look that fails is a gap
        app = ScalingApp(server, fails=fails)
        found = run_load(app, [(1, 0.1), (6, 0.1), (1, 0.1)], hold_s=0.6)
    assert found.phases["predicted"].tolist() == [1, 3, 1]
    assert found.phases["replicas"].tolist() == [1, 3, 1] and found.phases["settled"].all()
    assert found.samples["running"].max() == 3 and found.samples["in_flight"].max() <= 6
    assert found.target == 2 and found.counts() == {"failed_attempts": 0, "lost_requests": 0}


def test_a_part_that_does_not_settle_says_so():
    with serving() as server:
        found = run_load(ScalingApp(server, never=True), [(6, 0.1)], settle_timeout_s=0.5)
        assert found.phases[["predicted", "replicas", "settled"]].values.tolist() == [[3, 1, False]]
        gone = ScalingApp(server, fails=[False, *[True] * 1000])
        with pytest.raises(ClusterError, match="does not answer"):
            run_load(gone, [(1, 0.1)], settle_timeout_s=0.1)


@pytest.mark.parametrize("profile", [[], [(1, 5), (6,)], [(1.5, 5)], [(0, 5)], [(1, 0)]])
def test_a_bad_profile_sends_nothing(profile):
    with serving() as server:
        with pytest.raises(WorkshopError, match=r"pairs of users and seconds.* is none"):
            run_load(ScalingApp(server), profile)
        assert server.answered == 0


def test_waiting_for_settings_ends_with_what_was_seen():
    with serving() as server:
        app = ScalingApp(server)
        assert app.wait_settings(target_ongoing_requests=2, max_replicas=4).settings == SETTINGS
        said = r"after 0 s: target_ongoing_requests 4; HEALTHY: 1 running"
        with pytest.raises(WaitTimeoutError, match=said):
            app.wait_settings(target_ongoing_requests=4, timeout_s=0)


def made_run(*, failures=0):
    """Six users from second 5 on; three replicas from second 10; one again from second 20."""
    requests, samples = [], []
    for number in range(100):
        start_s = number * 0.25
        latency_ms = 900.0 if 5 <= start_s < 10 else 300.0
        error = "HTTP 500" if number < failures else ""
        requests.append(Request(number, start_s, latency_ms, error, not error, 150.0))
        if error:
            requests.append(Request(number, start_s + 0.2, 300.0, "", True, 150.0))
    for time_s in (tick * 0.5 for tick in range(52)):
        users, target = (6 if 5 <= time_s < 18 else 1), (3 if 8 <= time_s < 23 else 1)
        running = 3 if 10 <= time_s < 23.5 else 1
        samples.append([time_s, users, users, target, running, float(users), float(users > 5)])
    phases = [(1, 0, 5, 1, 1, True), (6, 5, 18, 3, 3, True), (1, 18, 26, 1, 1, True)]
    return ScalingRun(
        pd.DataFrame(requests),
        pd.DataFrame(samples, columns=run.SAMPLE_COLUMNS),
        pd.DataFrame(phases, columns=run.PHASE_COLUMNS),
        SETTINGS.target_ongoing_requests,
    )


def made_recovery(**options):
    return Recovery(made_run(**options), 6.0, 16.0)


def test_a_run_says_latency_reactions_and_losses():
    found = made_run(failures=3)
    summary, reactions = found.summary(), found.reactions()
    assert summary["predicted_ms"].tolist() == [150, 300, 150]
    assert summary["p50_at_the_end_ms"].tolist() == [300, 300, 300]
    assert summary["replicas"].tolist() == [1, 3, 1]
    assert reactions["users"].tolist() == ["1 to 6", "6 to 1"]
    assert reactions["decided_after_s"].tolist() == [3.0, 5.0]
    assert reactions["done_after_s"].tolist() == [5.0, 5.5]
    assert found.counts() == {"failed_attempts": 3, "lost_requests": 0}
    found.requests.loc[0, "last"] = True  # the user gave up
    assert found.counts()["lost_requests"] == 1
    found.requests = found.requests[:50]  # none ended in the last part
    assert found.summary()["p50_at_the_end_ms"].isna().tolist() == [False, True, True]


def test_checks_see_what_went_wrong():
    assert check_scaling(made_run(), made_recovery()).passed
    bad = made_run()
    bad.phases.loc[1, "settled"] = False
    checks = check_scaling(bad, replace(made_recovery(), recovered_s=None))
    wrong = ["each part ended with the predicted number", "a killed replica was replaced"]
    assert [check.name for check in checks.open] == wrong


class ExecCluster:
    """A cluster with one pod, whose commands run here."""

    def observe(self, kind, name):
        pod = {"metadata": {"name": "head"}, "status": {"podIP": "127.0.0.2"}}
        return Observation({"kind": kind}, [pod])

    def exec(self, pod, command, **options):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return ExecResult(done.returncode, done.stdout, done.stderr)


@contextmanager
def process(name):
    started = subprocess.Popen(["bash", "-c", f"exec -a '{name}' sleep 60"])
    try:
        until(lambda: name in Path(f"/proc/{started.pid}/cmdline").read_text())
        yield started
    finally:
        if started.poll() is None:
            os.kill(started.pid, signal.SIGKILL)
        started.wait()


def test_only_a_replica_of_serve_is_killed():
    service = Workload(ExecCluster(), "autoscale", "RayService", "recommender")
    with process("ray::ServeReplica:recommender:Recommender") as victim:
        run._kill(service, replica(pid=victim.pid))
        assert victim.wait(timeout=300) == -signal.SIGKILL
    with process("somebody-elses-program") as bystander:
        with pytest.raises(ClusterError, match="is no replica of Serve"):
            run._kill(service, replica(pid=bystander.pid))
        assert bystander.poll() is None
    with pytest.raises(NotFoundError, match=r"on 127\.9\.9\.9\) is in no pod"):
        run._kill(service, replica(ip="127.9.9.9"))


ZERO_S = 1795269600.0  # 2026-11-21T14:00:00Z


def stamp(second):
    return f"2026-11-21T14:00:{second:02d}Z"


def condition(kind, second):
    return {"type": kind, "status": "True", "lastTransitionTime": stamp(second)}


def pod(name, started, *conditions):
    running = [{"state": {"running": {"startedAt": stamp(started)}}}]
    status = {"containerStatuses": running, "conditions": list(conditions)}
    return {"metadata": {"name": name}, "status": status}


SERVICE = {"kind": "RayService", "status": {"conditions": [condition("Ready", 32)]}}


def timeline(*, events=(), applied_s, head=3):
    seen = snapshot().model_copy(update={"replicas": [replica(start_s=ZERO_S + 24.5)]})
    conditions = condition("Ready", 20), condition("PodScheduled", 6)
    pods = [pod("head", head, *conditions), pod("worker", 22)]
    service = Observation(SERVICE, pods, list(events))
    times = {"applied_s": ZERO_S + applied_s, "answered_s": ZERO_S + 33}
    return startup_timeline(service, seen, **times)


def test_a_cold_start_is_told_step_by_step():
    events = [
        {"reason": "Pulled", "lastTimestamp": stamp(at), "involvedObject": {"name": name}}
        for name, at in (("head", 14), ("worker", 21))
    ]
    steps = timeline(events=events, applied_s=2, head=16)
    took = dict(zip(steps["step"], steps["took_s"], strict=True))
    assert took["a node is found for the head"] == 4.0 and took["its image is there"] == 8.0
    assert took["a worker's container runs"] == 2.0
    assert steps["done_after_s"].iloc[-1] == sum(took.values()) == 31.0
    # Timestamps of whole seconds lie up to a second before what they mean.
    assert (timeline(applied_s=3.6)["took_s"] >= 0).all()
    with pytest.raises(WorkshopError, match=r"running since 27 s before .*delete"):
        timeline(applied_s=30)


def test_probe_budgets_are_those_of_the_manifest():
    table = probe_budgets("vllm", "local").set_index("probe")
    assert table["GPU cluster, s"].to_dict() == {"startup": 900, "readiness": 30, "liveness": 90}
    assert table.at["startup", "here, s"] == 300
    assert probes.probe_budget_s({"initialDelaySeconds": 5, "periodSeconds": 2}) == 11
    with pytest.raises(ManifestError, match="has no Deployment"):
        probe_budgets("raycluster", "local")


def test_settings_are_told_with_rays_own_defaults():
    table = explain_autoscaling("autoscale", "local", {"downscale_delay_s": "x"}).iloc[0]
    assert (table["here"], table["Ray's default"]) == ("5", "600")
    with pytest.raises(ManifestError, match="does not set downscale_dealy_s"):
        explain_autoscaling("autoscale", "local", {"downscale_dealy_s": "x"})


def test_layers_fit_into_each_other():
    """What the manifests promise above, they allow below."""
    table = scaling_layers().set_index("scales")
    base = {
        name: manifests.render_folder(manifests.manifests_dir() / "base" / name)[-1].body
        for name in ("autoscale", "nodepool")
    }
    cluster = base["autoscale"]["spec"]["rayClusterConfig"]
    group = cluster["workerGroupSpecs"][0]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert int(table.at["replicas", "to"]) <= group["maxReplicas"] * cpus
    selector = group["template"]["spec"]["nodeSelector"]
    nodes = base["nodepool"]["spec"]
    assert selector == nodes["template"]["metadata"]["labels"]
    assert group["maxReplicas"] * cpus <= int(nodes["limits"]["cpu"])


FIGURES = {
    "scaling": lambda: plot_scaling(made_run(), title="target_ongoing_requests = 2"),
    "scaling with failures": lambda: plot_scaling(made_run(failures=4)),
    "autoscaler": lambda: plot_autoscaler(made_run()),
    "recovery": lambda: plot_recovery(made_recovery(failures=30)),
    "no recovery": lambda: plot_recovery(replace(made_recovery(), recovered_s=None)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure(name):
    check_readable(FIGURES[name]())
