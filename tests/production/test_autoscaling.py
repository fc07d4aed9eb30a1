"""Scaling: what the settings ask for, load against a real HTTP server, what a run says."""

import doctest
import importlib
import json
import os
import pkgutil
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
from workshop_lib.production import autoscaling, probes
from workshop_lib.production.autoscaling import (
    Recovery,
    ScalingRun,
    ServeApp,
    check_scaling,
    desired_replicas,
    explain_autoscaling,
    load_times,
    probe_budgets,
    recorded_start_s,
    run,
    run_load,
    scaling_layers,
    startup_timeline,
)
from workshop_lib.production.autoscaling.app import Replica, ServeSnapshot
from workshop_lib.production.autoscaling.load import Load, Request
from workshop_lib.production.autoscaling.settings import AutoscalingSettings
from workshop_lib.serving.memory import ModelShape

SETTINGS = AutoscalingSettings(1, 4, 2.0, 2.0, 5.0, 3.0)


def test_the_formula_is_that_of_the_installed_ray():
    """The same numbers as Ray's own policy, for a deployment that runs as it should."""
    from ray.serve.autoscaling_policy import _core_replica_queue_length_policy
    from ray.serve.config import AutoscalingConfig, AutoscalingContext

    for running in (1, 2, 4):
        for ongoing in (0.5, 1, 2, 5.9, 6, 7, 8):
            for target in (1, 2, 3.5):
                config = AutoscalingConfig(target_ongoing_requests=target, max_replicas=100)
                unset = dict.fromkeys(
                    ("deployment_id", "deployment_name", "app_name", "running_replicas",
                     "total_queued_requests", "aggregated_metrics", "raw_metrics",
                     "capacity_adjusted_min_replicas", "capacity_adjusted_max_replicas",
                     "policy_state", "last_scale_up_time", "last_scale_down_time", "current_time")
                )  # fmt: skip
                context = AutoscalingContext(
                    **unset, current_num_replicas=running, target_num_replicas=running,
                    total_num_requests=ongoing, config=config,
                )  # fmt: skip
                wanted, _ = _core_replica_queue_length_policy(context)
                assert desired_replicas(wanted, 1) == desired_replicas(ongoing, target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 0}, "it must be more than 0"),
        ({"target": 2, "min_replicas": 3, "max_replicas": 2}, "leave no number between"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(WorkshopError, match=message):
        desired_replicas(1, **arguments)


class Server:
    """Answers after `delay_s`; the next `failures` requests get a 500."""

    def __init__(self, *, delay_s=0.02):
        self.delay_s, self.failures, self.hang_up = delay_s, 0, False
        self.active = self.most = self.answered = 0
        self.lock, self.stopped = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with outer.lock:
                    outer.active += 1
                    outer.most = max(outer.most, outer.active)
                    fails = outer.failures > 0
                    outer.failures -= fails
                reader = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["reader"]
                outer.stopped.wait(outer.delay_s)
                with outer.lock:
                    outer.active -= 1
                    outer.answered += not fails
                if outer.hang_up:
                    self.close_connection = True
                    return
                body = json.dumps(
                    {"articles": [reader], "replica": "one", "service_ms": 1000 * outer.delay_s}
                ).encode()
                self.send_response(500 if fails else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # clients that went away
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"


@contextmanager
def serving(**options):
    server = Server(**options)
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


def until(look, timeout_s=300.0):
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_users_keep_one_request_each_in_flight():
    with serving() as server, Load(server.url) as load:
        load.set_users(3)
        until(lambda: server.answered >= 20 and server.most >= 3)
        assert server.most == 3
        load.set_users(1)
        until(lambda: load.in_flight == 1 and server.active <= 1)
        seen = server.answered
        server.most = 0
        until(lambda: server.answered >= seen + 10)
        assert server.most == 1
        load.set_users(0)
        until(lambda: load.in_flight == 0)
    frame = load.frame()
    assert len(frame) == server.answered
    assert (frame["error"] == "").all() and frame["last"].all()
    assert set(frame["replica"]) == {"one"} and (frame["latency_ms"] >= 20).all()
    assert frame["start_s"].is_monotonic_increasing


def test_failures_are_counted_and_retries_are_rows():
    with serving() as server, Load(server.url, retries=1) as load:
        server.failures = 1
        load.set_users(1)
        until(lambda: server.answered >= 2)
    frame = load.frame()
    first = frame[frame["number"] == 0]
    assert first["attempt"].tolist() == [1, 2]
    assert first["error"].tolist() == ["http 500", ""]
    assert first["last"].tolist() == [False, True]


def test_kinds_of_failure():
    with serving(delay_s=3600) as server, Load(server.url, timeout_s=0.1) as load:
        load.set_users(1)
        until(lambda: load.attempts)
    assert load.attempts[0].error == "timeout"
    with serving() as server:
        url = server.url
    with Load(url) as load:
        load.set_users(1)
        until(lambda: load.attempts)
    assert load.attempts[0].error == "refused"


def test_an_interrupt_ends_the_load_at_once():
    """Nobody waits for an answer that takes an hour."""
    with serving(delay_s=3600) as server:
        with pytest.raises(KeyboardInterrupt), Load(server.url) as load:
            load.set_users(2)
            until(lambda: server.active == 2)
            raise KeyboardInterrupt
        assert not load.attempts


def replica(name="a", state="RUNNING", pid=1, ip="127.0.0.2", started_s=10.0):
    return Replica(name, state, pid, ip, started_s)


def snapshot(running=1, *, target=None, starting=0, settings=SETTINGS, **more):
    replicas = [replica(f"r{n}") for n in range(running)]
    replicas += [replica(f"s{n}", "STARTING", None) for n in range(starting)]
    target = running + starting if target is None else target
    return ServeSnapshot("RUNNING", "HEALTHY", "", target, tuple(replicas), settings, **more)


CONFIG = {
    "min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2.0, "upscale_delay_s": 2.0,
    "downscale_delay_s": 5.0, "look_back_period_s": 3.0, "smoothing_factor": 1.0,
}  # fmt: skip


# As Ray 2.60 answered while it scaled up: a replica that starts has no pid yet.
ANSWER = {
    "applications": {
        "recommender": {
            "status": "RUNNING", "message": "",
            "deployments": {
                "Recommender": {
                    "status": "UPSCALING", "status_trigger": "AUTOSCALING", "message": "",
                    "target_num_replicas": 2, "deployment_config": {"autoscaling_config": CONFIG},
                    "replicas": [
                        {"replica_id": "j4zddi0z", "state": "RUNNING", "pid": 30089,
                         "node_ip": "127.0.0.2", "start_time_s": 1795270118.3},
                        {"replica_id": "k2m8b1xq", "state": "STARTING",
                         "start_time_s": 1795270140.1},
                    ],
                }
            },
        }
    }
}  # fmt: skip


def test_snapshot_of_an_application_that_scales_up():
    seen = ServeSnapshot.of(ANSWER, "recommender")
    assert [each.name for each in seen.running] == ["j4zddi0z"]
    assert seen.replicas[1].pid is None
    assert seen.settings == SETTINGS
    assert not seen.settled(2) and not seen.settled(1)
    assert str(seen) == "UPSCALING: 1 running, 1 starting of 2 replicas"
    with pytest.raises(NotFoundError, match=r"'llm' \(it has: recommender\)"):
        ServeSnapshot.of(ANSWER, "llm")


class ScalingApp(ServeApp):
    """A real server's URL, and a controller that follows the users after some looks."""

    def __init__(self, server, *, looks=2, never=False, fails=()):
        self.url, self.name, self.server = server.url, "recommender", server
        self.looks, self.never, self.fails = looks, never, list(fails)
        self.running = 1
        self.ongoing = deque(maxlen=5)

    def snapshot(self, *, autoscaler=True):
        if self.fails and self.fails.pop(0):
            raise ClusterError("Ray's dashboard does not answer")
        # Between an answer and the next question a user has none; Ray looks back too.
        self.ongoing.append(self.server.active)
        wanted = SETTINGS.replicas_for(max(self.ongoing))
        if wanted != self.running and not self.never:
            self.looks -= 1
            if self.looks <= 0:
                self.running, self.looks = wanted, 2
        return snapshot(self.running, autoscaler={"counted_requests": float(self.server.active)})


def test_a_part_of_the_load_lasts_until_the_replicas_are_there():
    with serving(delay_s=0.3) as server:
        found = run_load(ScalingApp(server), [(1, 0.1), (6, 0.1), (1, 0.1)], hold_s=0.6)
    assert found.phases["predicted"].tolist() == [1, 3, 1]
    assert found.phases["replicas"].tolist() == [1, 3, 1] and found.phases["settled"].all()
    assert found.samples["running"].max() == 3
    assert found.target == 2 and found.counts()["failed_attempts"] == 0
    assert found.counts()["requests"] == len(found.requests) > 6


def test_a_part_that_does_not_settle_says_so():
    with serving() as server:
        found = run_load(ScalingApp(server, never=True), [(6, 0.1)], settle_timeout_s=0.5)
    assert found.phases[["predicted", "replicas", "settled"]].values.tolist() == [[3, 1, False]]


def test_a_look_that_fails_is_a_gap():
    with serving(delay_s=0.3) as server:
        app = ScalingApp(server, fails=[False, True, True, False, True])
        found = run_load(app, [(1, 1.0), (6, 1.0)], hold_s=0.6)
    assert found.phases["settled"].all() and len(found.samples) >= 2


def test_a_dashboard_that_is_gone_ends_the_run():
    with serving() as server:
        app = ScalingApp(server, fails=[False, *[True] * 1000])
        with pytest.raises(ClusterError, match="does not answer"):
            run_load(app, [(1, 0.1)], settle_timeout_s=0.1)


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ([], "is none"),
        ([(1, 5), (6,)], r"\(6,\) is none"),
        ([(1.5, 5)], "is none"),
        ([(-1, 5)], "is none"),
        ([(1, 0)], "is none"),
    ],
)
def test_a_bad_profile_sends_nothing(profile, message):
    with serving() as server:
        with pytest.raises(WorkshopError, match=message):
            run_load(ScalingApp(server), profile)
        assert server.answered == 0


def test_waiting_for_settings_ends_with_what_was_seen():
    with serving() as server:
        app = ScalingApp(server)
        assert app.wait_settings(target_ongoing_requests=2, max_replicas=4).settings == SETTINGS
        with pytest.raises(
            WaitTimeoutError, match=r"after 0 s: target_ongoing_requests 3; HEALTHY"
        ):
            app.wait_settings(target_ongoing_requests=3, timeout_s=0)


def made_run(*, failures=0, settings=SETTINGS):
    """Six users from second 5 on; three replicas from second 10; one again from second 20."""
    requests, samples = [], []
    for number in range(100):
        start_s = number * 0.25
        busy = 5 <= start_s < 18
        bad = number < failures
        requests.append(
            Request(number, 1, 0, start_s, 900.0 if busy and start_s < 10 else 300.0,
                    "http 500" if bad else "", not bad, service_ms=150.0)
        )  # fmt: skip
        if bad:
            requests.append(Request(number, 2, 0, start_s + 0.2, 300.0, "", True))
    for tick in range(52):
        time_s = tick * 0.5
        users = 6 if 5 <= time_s < 18 else 1
        target = 3 if 8 <= time_s < 23 else 1
        samples.append(
            {"time_s": time_s, "users": users, "in_flight": users, "target": target,
             "running": 3 if 10 <= time_s < 23.5 else 1, "starting": 0, "stopping": 0,
             "application": "RUNNING", "deployment": "HEALTHY", "counted_requests": float(users),
             "wanted_replicas": float(target), "queued_requests": 1.0 if users > 5 else 0.0}
        )  # fmt: skip
    phases = [(1, 0, 5, 1, 1, True), (6, 5, 18, 3, 3, True), (1, 18, 26, 1, 1, True)]
    return ScalingRun(
        pd.DataFrame(requests),
        pd.DataFrame(samples),
        pd.DataFrame(phases, columns=run.PHASE_COLUMNS),
        settings.target_ongoing_requests,
    )


def test_summary_has_the_latency_at_the_end():
    summary = made_run().summary()
    assert summary["p50_at_the_end_ms"].tolist() == [300, 300, 300]
    assert summary["p50_ms"].tolist()[1] == 300
    assert summary["failed"].tolist() == [0, 0, 0]
    assert summary["users"].tolist() == [1, 6, 1]
    assert summary["predicted_ms"].tolist() == [150, 300, 150]


def test_reactions_count_from_the_change_of_the_load():
    reactions = made_run().reactions()
    assert reactions["users"].tolist() == ["1 to 6", "6 to 1"]
    assert reactions["decided_after_s"].tolist() == [3.0, 5.0]
    assert reactions["done_after_s"].tolist() == [5.0, 5.5]


def test_counts_tell_saved_from_lost():
    found = made_run(failures=3)
    assert found.counts() == {
        "requests": 100, "failed_attempts": 3, "saved_by_retry": 3, "lost_requests": 0
    }  # fmt: skip
    found.requests.loc[0, "last"] = True  # the user gave up
    found.requests = found.requests.drop(index=1)
    assert found.counts()["lost_requests"] == 1 and found.counts()["saved_by_retry"] == 2


def made_recovery(**options):
    return Recovery(made_run(**options), replica(), 6.0, 8.5, 16.0)


def test_recovery_counts_from_the_kill():
    row = made_recovery(failures=2).table().iloc[0]
    assert (row["noticed_after_s"], row["recovered_after_s"]) == (2.5, 10.0)
    assert (row["failed_attempts"], row["saved_by_retry"], row["lost_requests"]) == (2, 2, 0)


def test_checks_see_what_went_wrong():
    good = made_run()
    assert check_scaling(good, made_recovery()).passed
    bad = made_run()
    bad.phases.loc[1, "settled"] = False
    checks = check_scaling(bad, replace(made_recovery(), recovered_s=None))
    assert [check.name for check in checks if not check.passed] == [
        "each part ended with the predicted number", "a killed replica was replaced"
    ]  # fmt: skip


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
        assert victim.wait(timeout=30) == -signal.SIGKILL
    with process("somebody-elses-program") as bystander:
        with pytest.raises(ClusterError, match="is no replica of Serve"):
            run._kill(service, replica(pid=bystander.pid))
        assert bystander.poll() is None
    with pytest.raises(NotFoundError, match=r"on 127\.9\.9\.9\) is in no pod"):
        run._kill(service, replica(ip="127.9.9.9"))
    with pytest.raises(NotFoundError, match="in no pod"):
        run._kill(service, replica(pid=None))


def stamp(second):
    return f"2026-11-21T14:00:{second:02d}Z"


def started_service(*, started=3):
    head = {
        "metadata": {"name": "head"},
        "status": {
            "containerStatuses": [{"state": {"running": {"startedAt": stamp(started)}}}],
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": stamp(20)}
            ],
        },
    }  # fmt: skip
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(32)}
    return Observation({"kind": "RayService", "status": {"conditions": [ready]}}, [head])


ZERO_S = 1795269600.0  # 2026-11-21T14:00:00Z


def test_on_a_cluster_node_and_image_are_steps_too():
    service = started_service(started=16)
    head = service.pods[0]
    head["status"]["conditions"].append(
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(6)}
    )
    worker = {"metadata": {"name": "worker"}, "status": {"containerStatuses": [
        {"state": {"running": {"startedAt": stamp(22)}}}]}}  # fmt: skip
    pulled = [
        {"reason": "Pulled", "lastTimestamp": stamp(at), "involvedObject": {"name": name}}
        for name, at in (("head", 14), ("worker", 21))
    ]
    seen = replace(snapshot(1), replicas=(replica(started_s=ZERO_S + 24.5),))
    steps = startup_timeline(
        replace(service, pods=[head, worker], events=pulled), seen,
        applied_s=ZERO_S + 2, answered_s=ZERO_S + 33,
    )  # fmt: skip
    took = dict(zip(steps["step"], steps["took_s"], strict=True))
    assert took["a node is found for the head"] == 4.0
    assert took["its image is there"] == 8.0
    assert took["a worker's container runs"] == 2.0
    assert steps["done_after_s"].iloc[-1] == sum(took.values()) == 31.0


def test_a_step_never_ends_before_the_one_before():
    """Timestamps of whole seconds lie up to a second before what they mean."""
    seen = replace(snapshot(1), replicas=(replica(started_s=ZERO_S + 20.9),))
    steps = startup_timeline(
        started_service(), seen, applied_s=ZERO_S + 3.6, answered_s=ZERO_S + 31.5
    )
    assert (steps["took_s"] >= 0).all()


def test_a_warm_start_is_no_cold_start():
    with pytest.raises(WorkshopError, match=r"running since 37 s before .*delete"):
        startup_timeline(
            started_service(), snapshot(1), applied_s=ZERO_S + 40, answered_s=ZERO_S + 41
        )


def test_probe_budgets_are_those_of_the_manifest():
    table = probe_budgets("vllm", "local").set_index("probe")
    assert table["GPU cluster, s"].to_dict() == {"startup": 900, "readiness": 30, "liveness": 90}
    assert table.at["startup", "here, s"] == 300
    assert probes.probe_budget_s({"initialDelaySeconds": 5, "periodSeconds": 2}) == 11
    with pytest.raises(ManifestError, match="has no Deployment"):
        probe_budgets("raycluster", "local")


def test_a_small_budget_is_too_small_for_a_large_model():
    shapes = [ModelShape.named("mistral-7b"), ModelShape.named("llama-3.1-70b")]
    table = load_times(shapes, disk_mib_s=125, start_s=recorded_start_s(), budget_s=900)
    assert table["fits"].tolist() == [True, False]
    needed = table["needed_s"].tolist()
    assert all(
        10 * count >= each > 10 * (count - 1) - 1
        for count, each in zip(table["failureThreshold_at_10_s"], needed, strict=True)
    )
    with pytest.raises(WorkshopError, match="loads nothing"):
        load_times(shapes, disk_mib_s=0, start_s=1, budget_s=1)


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


MODULES = [
    probes.__name__,
    *(f"{autoscaling.__name__}.{m.name}" for m in pkgutil.iter_modules(autoscaling.__path__)),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


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
