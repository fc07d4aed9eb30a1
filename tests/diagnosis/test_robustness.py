"""Snapshots of odd forms and sizes, and output that nobody reads to its end."""

import copy
import json
import random
import time

from snapshots import asks, container, crash_loop, event, job, node, pending, pod, service, snapshot

from workshop_lib.errors import WorkshopError
from workshop_lib.production.diagnosis import diagnose

ODD = [None, [], {}, "x", 5, -1, True, [None], [1], {"a": None}, "", float("inf"), [[]], "9" * 400,
       {"name": 5}, float("nan")]  # fmt: skip


def whole():
    """A snapshot with a little of everything."""
    return json.loads(json.dumps(snapshot(
        pod("vllm-0", owner="ReplicaSet/vllm-1", labels={"app": "vllm"}, ready=False,
            statuses=[crash_loop(1)], containers=[container(
                readinessProbe={"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 5},
                ports=[{"containerPort": 8000}], resources=asks(gpu=1))]),
        pending("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", name="vllm-1"),
        event("Pod/vllm-0", "Unhealthy", "Readiness probe failed: statuscode: 404", field="main"),
        event("Job/train", "FailedCreate", 'pods "x" is forbidden: exceeded quota: q, requested: '
              "cpu=1, used: cpu=4, limited: cpu=4"),
        job("train", failed="BackoffLimitExceeded"), service("vllm"), node(gpu=1),
        logs={"vllm-0/main": "ConnectionRefusedError: [Errno 111] Connection refused\n"},
        ray={"nodes": {"data": {"result": {"result": [{"state": "DEAD", "node_ip": "1.2.3.4"}]}}},
             "jobs": [{"status": "FAILED", "message": "x", "job_id": "1"}],
             "placement_groups": [{"state": "PENDING", "bundles": [{"unit_resources": {"GPU": 1}}],
                                   "stats": {"scheduling_state": "INFEASIBLE"}}]},
        serve={"applications": {"app": {"status": "DEPLOY_FAILED", "message": "x", "deployments": {
            "d": {"status": "UNHEALTHY", "message": "y", "replicas": [{"state": "RUNNING"}],
                  "deployment_config": {"autoscaling_config": {"max_replicas": 1}}}}}}},
    )))  # fmt: skip


def paths(body, so_far=()):
    """Where there is something in it."""
    items = body.items() if isinstance(body, dict) else enumerate(body)
    for key, value in items:
        yield (*so_far, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*so_far, key))


def test_a_field_of_any_form_gives_a_diagnosis_or_one_line():
    good = whole()
    places = list(paths(good))
    choose = random.Random(7)
    for place in places:
        bad = copy.deepcopy(good)
        inner = bad
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = choose.choice(ODD)
        try:
            json.dumps(diagnose(bad).to_dict())
        except WorkshopError as error:
            assert "\n" not in str(error)
    assert len(places) > 200


def test_events_of_the_newer_form_and_lists_of_kubectl_count():
    """`regarding`, `note` apart: eventTime, series, and no lastTimestamp; pods as a List."""
    found = event("Pod/vllm-0", "FailedScheduling", "0/1 nodes are available: 1 Too many pods.")
    found["regarding"] = found.pop("involvedObject")
    found |= {"firstTimestamp": None, "lastTimestamp": None, "count": None,
              "eventTime": "2026-11-21T11:58:00.123456Z",
              "series": {"count": 4, "lastObservedTime": "2026-11-21T11:59:30Z"}}  # fmt: skip
    snap = snapshot(pending("", name="vllm-0"), found)
    snap["pods"] = {"apiVersion": "v1", "kind": "List", "items": snap["pods"]}
    assert diagnose(snap).rules == ["too-many-pods"]
    found["note"] = found.pop("message")
    assert diagnose(snap).rules == ["too-many-pods"]


def test_a_large_snapshot_takes_no_time():
    """5,000 events, 400 pods and their logs."""
    pods, logs = [], {}
    for number in range(400):
        name, owner = f"p{number}", f"Job/j{number % 40}"
        if number % 4:
            pods.append(pod(name, owner=owner, ready=False, statuses=[crash_loop(1)]))
            logs[f"{name}/main"] = "\n".join(f"step {n} of {name}" for n in range(300))
        else:
            pods.append(pending("0/9 nodes are available: 9 Too many pods.", name=name))
    events = [event(f"Pod/p{n % 600}", "BackOff", "Back-off", ago=n % 3000) for n in range(5000)]
    services = [service(f"s{n}", selector={"app": f"x{n}"}) for n in range(50)]
    snap = snapshot(*pods, *events, *services, node(), logs=logs)
    begun = time.process_time()
    assert diagnose(snap).verdict == "problems"
    assert time.process_time() - begun < 2
