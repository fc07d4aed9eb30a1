"""The tree and its four rules, where no recording shows them."""

import pytest
from small import (
    at,
    container,
    crashed,
    event,
    look,
    node,
    pending,
    pod,
    running,
    service,
    thing,
    waiting,
)

from workshop_lib.production.diagnosis import diagnose

HEAD = {"ray.io/cluster": "rc", "ray.io/node-type": "head"}
WORKER = {"ray.io/cluster": "rc", "ray.io/node-type": "worker"}
INDEX = "batch.kubernetes.io/job-completion-index"
PROBE = {"readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 5}}
READY = running(ready=True)


def rank(index, state, log_name="main", **more):
    labels = {INDEX: str(index), "app": "ray", **more.pop("labels", {})}
    spec = {"hostname": f"ray-{index}", "subdomain": "ray"}
    name = more.pop("name", f"ray-{index}-abcd{index}")
    return pod(name, container(state, log_name), owner="Job/ray", labels=labels, spec=spec, **more)


def headless(**more):
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, **more}
    return service("ray", spec.pop("selector", {"app": "ray"}), 6379, **spec)


# -- what failed outranks what waits for it -------------------------------------------------------


def test_a_worker_that_waits_is_explained_by_the_head_that_crashes():
    head = pod("rc-head", container(crashed(), "ray"), owner="RayCluster/rc", labels=HEAD)
    waits = container(running(1500), "wait-gcs-ready")
    worker = pod(
        "rc-worker",
        container(waiting("PodInitializing")),
        inits=[waits],
        owner="RayCluster/rc",
        labels=WORKER,
        phase="Pending",
    )
    logs = {
        "rc-head/ray": "Traceback (most recent call last):\nOddError: unheard of\n",
        "rc-worker/wait-gcs-ready": "15 seconds elapsed: Waiting for GCS to be ready.\n",
    }
    found = look(head, worker, logs=logs)
    assert found.rules == ["container-exit"] and "Pod/rc-worker" in found[0].explains
    assert "OddError: unheard of" in found[0].cause and "the Ray head" in found[0].cause


def test_who_dials_a_server_that_crashes_is_a_consequence():
    server = pod("vllm-0", container(crashed()), labels={"app": "vllm"})
    client = pod("client-0", container(crashed()))
    logs = {
        "vllm-0/main": "RuntimeError: No CUDA GPUs are available\n",
        "client-0/main": "requests.exceptions.ConnectionError: HTTPConnectionPool(host='vllm', "
        "port=8000): Max retries exceeded: [Errno 111] Connection refused\n",
    }
    found = look(server, client, service("vllm", {"app": "vllm"}), logs=logs)
    assert found.rules == ["gpu-not-visible"] and found[0].explains == ("Pod/client-0",)


def test_the_rank_that_ended_and_the_one_that_only_noticed():
    lost, noticed = rank(1, crashed(137, "OOMKilled")), rank(0, crashed())
    logs = {"ray-0-abcd0/main": "torch.distributed.DistBackendError: ncclRemoteError: remote\n"}
    assert look(lost, noticed, logs=logs).rules == ["oom-killed"]


def test_a_pod_that_was_told_to_stop_is_explained_by_its_job():
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "DeadlineExceeded",
        "message": "Job was",
    }
    job = thing("Job", "ray", {"activeDeadlineSeconds": 9}, {"conditions": [failed]})
    assert look(job, rank(0, crashed(143))).rules == ["job-deadline"]


# -- the first error, and how containers end ------------------------------------------------------

ENDS = {
    "killed": (crashed(137), "", "killed", "SIGKILL"),
    "segfault": (crashed(139), "", "segfault", "SIGSEGV"),
    "no log": (crashed(3), "", "container-exit", "no log of it was kept"),
    "last words": (crashed(3), "hello\nthe disk is on fire\n", "container-exit", "disk is on fire"),
    "ends well": (crashed(0, "Completed"), "bye\n", "container-completes", "foreground"),
    "by its env": (
        crashed(),
        "ValueError: no such table at db.example.org here\n",
        "container-exit",
        "DB_HOST=db.example.org",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_how_a_container_ended(name):
    state, log, rule, words = ENDS[name]
    body = pod("vllm-0", container(state, env={"DB_HOST": "db.example.org"}))
    found = look(body, logs={"vllm-0/main": log})
    assert found.rules[0].startswith(rule) and words in str(found[0])
    assert "--previous" not in str(found)  # kubectl logs shows the run that ended


def test_a_command_that_the_image_lacks_while_it_is_tried_again():
    state = crashed(128, "StartError")
    said = 'exec: "pyhton3": executable file not found in $PATH: unknown'
    state["lastState"]["terminated"]["message"] = said
    found = look(pod("vllm-0", container(state)))
    assert found.rules == ["command-not-found"] and found[0].evidence[0] == said


def test_a_container_that_runs_again_is_read_by_its_previous_run():
    again = running(30) | {"restartCount": 2, "lastState": crashed()["lastState"]}
    logs = {"vllm-0/main": "starting\n", "vllm-0/main/previous": "OddError: unheard of\n"}
    found = look(pod("vllm-0", container(again)), logs=logs)
    assert "OddError: unheard of" in found[0].cause and "--previous" in found[0].fix


def test_two_uses_of_memory_at_different_steps():
    recipe = thing("ConfigMap", "recipe")
    recipe["data"] = {"r.yaml": "grpo:\n  val_period: 20\ncheckpointing:\n  save_period: 10\n"}
    body = pod(
        "grpo-0", container(crashed()), spec={"volumes": [{"configMap": {"name": "recipe"}}]}
    )
    oom = {"grpo-0/main": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\n"}
    assert "val_period" in look(body, recipe, logs=oom)[0].fix
    recipe["data"] = {"r.yaml": "val_period: 10\nsave_period: 10\n"}
    assert "val_period" not in look(body, recipe, logs=oom)[0].fix


# -- scheduling: facts of nodes, and their lack ---------------------------------------------------

GPU = {"nvidia.com/gpu": "1"}
TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}
NO_GPU = (
    "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available"
)
SCHEDULING = {
    "nobody offers": ([node()], NO_GPU, GPU, "gpu-not-offered", "no node offers any"),
    "more than any": (
        [node(**{"nvidia.com/gpu": "4"})],
        NO_GPU,
        {"nvidia.com/gpu": "8"},
        "gpu-too-large",
        "4 nvidia.com/gpu",
    ),
    "taken": ([node(**{"nvidia.com/gpu": "8"})], NO_GPU, GPU, "insufficient-gpu", "hold it"),
    "nodes unread": ([], NO_GPU, GPU, "insufficient-gpu", "not known whether"),
    "a taint on the one that has it": (
        [node("a"), node("b", taints=[TAINT], **{"nvidia.com/gpu": "8"})],
        "0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint "
        "{nvidia.com/gpu: true}.",
        GPU,
        "taint-not-tolerated",
        "nvidia.com/gpu=true",
    ),
    "the control plane's taint is no cause": (
        [
            node(
                "a",
                taints=[{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}],
            ),
            node("b"),
        ],
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint "
        "{node-role.kubernetes.io/control-plane: }.",
        {"cpu": "6"},
        "insufficient-cpu",
        "6 cpu",
    ),
    "cordoned": (
        [],
        "0/1 nodes are available: 1 node(s) were unschedulable.",
        {},
        "nodes-cordoned",
        "cordoned",
    ),
    "no node at all": ([], "no nodes available to schedule pods", {}, "no-nodes", "no node"),
    "unheard of": (
        [],
        "0/1 nodes are available: 1 node(s) had the moon.",
        {},
        "scheduler-refuses",
        "the moon",
    ),
}


@pytest.mark.parametrize("name", SCHEDULING)
def test_why_no_node_takes_a_pod(name):
    nodes, message, resources, rule, words = SCHEDULING[name]
    found = look(pending(message, resources=resources), *nodes)
    assert found.rules == [rule] and words in found[0].cause and message in found[0].evidence


def test_labels_that_nodes_have_are_said():
    message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
    body = pending(message, spec={"nodeSelector": {"zone": "b"}})
    assert "Nodes have zone=a" in look(body, node(labels={"zone": "a"}))[0].cause


def test_a_node_that_comes_and_one_that_cannot():
    lacks = pending(NO_GPU, resources=GPU)
    comes = event("Pod/vllm-0", "Nominated", "Pod should schedule on: nodeclaim/gpu-x", 60, True)
    found = look(lacks, node(), comes)
    assert found.verdict == "starting" and "nodeclaim/gpu-x" in found.notes[0]
    failed = event("NodeClaim/gpu-x", "LaunchFailed", "InsufficientInstanceCapacity: no g5")
    assert look(lacks, node(), comes, failed).rules == ["no-capacity"]
    late = event("Pod/vllm-0", "Nominated", "Pod should schedule on: nodeclaim/gpu-x", 900, True)
    assert "has not come" in look(lacks, node(), late)[0].cause
    full = event("Pod/vllm-0", "NotTriggerScaleUp", "1 max node group size reached", 10, True)
    assert look(lacks, node(), full).rules == ["node-group-limit"]


def test_a_claim_is_got_from_the_component_that_brings_it():
    missing = '0/1 nodes are available: persistentvolumeclaim "{}" not found. not found'
    assert "cluster.apply('model')" in look(pending(missing.format("models")))[0].fix
    assert "cluster.apply('storage')" in look(pending(missing.format("shared")))[0].fix


# -- events of what exists, and lists that could not be read --------------------------------------


def test_events_of_deleted_objects_are_no_findings():
    refused = "Error creating: exceeded quota: q, requested: cpu=1, used: cpu=4, limited: cpu=4"
    old = event("Job/train", "FailedCreate", refused, uid="old")
    assert look(old).verdict == "healthy"
    assert look(old, thing("Job", "train", uid="new", age=20)).verdict == "starting"
    now = look(old, thing("Job", "train", uid="old"))
    assert now.rules == ["quota-exceeded"] and now[0].objects[0] == "ResourceQuota/q"


def test_what_was_said_before_an_object_became_ready_is_over():
    """Ray Serve lost a replica and has it again; KubeRay's warning stays among the events."""
    service = {
        "metadata": {"name": "app", "creationTimestamp": "2026-11-29T15:33:00Z"},
        "spec": {},
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-29T15:34:01Z"}
            ]
        },
    }
    warning = {
        "type": "Warning", "reason": "ServeNotReady", "message": "application app is UNHEALTHY",
        "involvedObject": {"kind": "RayService", "name": "app"},
        "firstTimestamp": "2026-11-29T15:33:57Z", "lastTimestamp": "2026-11-29T15:33:57Z",
    }  # fmt: skip
    said = {"taken_at": "2026-11-29T15:34:10Z", "rayservices": [service], "events": [warning]}
    assert not list(diagnose(said))
    warning["lastTimestamp"] = "2026-11-29T15:34:05Z"  # and here it is ill again
    assert [finding.rule for finding in diagnose(said)] == ["operator-warning"]


def test_a_refusal_that_was_got_over_is_over():
    refused = event(
        "ReplicaSet/vllm-5d",
        "FailedCreate",
        "is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1",
        ago=90,
    )
    assert look(refused, thing("ReplicaSet", "vllm-5d")).rules == ["quota-exceeded"]
    created = event("ReplicaSet/vllm-5d", "SuccessfulCreate", "Created pod: x", 5, True)
    assert look(refused, thing("ReplicaSet", "vllm-5d"), created).verdict == "healthy"


def test_nodes_where_they_may_be_read():
    silent = node(conditions=[{"type": "Ready", "status": "Unknown", "message": "Kubelet stopped"}])
    body = pod("vllm-0", container(running(ready=False)))
    assert look(body, silent).rules == ["node-not-ready"]
    xid = {"type": "AcceleratedHardwareReady", "status": "False", "message": "Xid 79"}
    assert look(pod("vllm-0", container(READY)), node(conditions=[xid])).rules == ["gpu-fault-node"]


# -- names, Services, policies --------------------------------------------------------------------


def policy(name, selects=None, **spec):
    chosen = {"matchLabels": selects} if selects else {}
    return thing("NetworkPolicy", name, {"podSelector": chosen, **spec})


WAITS = {"ray-1-abcd1/main": "11:22:36 rank 1: waiting for the head at ray-0.ray:6379\n"}
FROM_RAY = {"from": [{"podSelector": {"matchLabels": {"app": "ray"}}}]}


def test_what_is_left_when_the_way_is_in_order():
    found = look(rank(0, READY), rank(1, running(60)), headless(), logs=WAITS)
    assert "not known yet why" in found[0].cause.lower() and "DNS" in found[0].fix


WAYS = {
    "no such Service": ([service("other", None)], "service-name-unknown"),
    "selects nobody": ([headless(selector={"app": "rey"})], "service-selector"),
    "closed": ([headless(), policy("deny", policyTypes=["Ingress"])], "network-policy"),
    "another port": (
        [headless(), policy("some", ingress=[{**FROM_RAY, "ports": [{"port": 8265}]}])],
        "network-policy",
    ),
    "open": (
        [headless(), policy("deny", policyTypes=["Ingress"]), policy("in", ingress=[FROM_RAY])],
        "waits-though-well",
    ),
    "may not send": (
        [headless(), policy("out", {INDEX: "1"}, policyTypes=["Egress"])],
        "network-policy",
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_why_a_rank_does_not_get_to_the_head(name):
    objects, rule = WAYS[name]
    assert look(rank(0, READY), rank(1, running(60)), *objects, logs=WAITS).rules == [rule]


def test_a_headless_service_that_hides_who_is_not_ready():
    logs = {"ray-1-abcd1/main": "bash: ray-0.ray: Name or service not known\n" * 3}
    hidden = headless(publishNotReadyAddresses=False)
    found = look(rank(0, running(60)), rank(1, running(60)), hidden, logs=logs)
    assert found.rules[0] == "headless-not-published"


def test_a_name_that_fails_under_policies_without_port_53():
    logs = {"client-1/main": "curl: (6) Could not resolve host: vllm\n"}
    client = pod("client-1", container(crashed(6)), labels={"app": "client"})
    server = pod("vllm-0", container(READY), labels={"app": "vllm"})
    only = policy(
        "only",
        {"app": "client"},
        policyTypes=["Egress"],
        egress=[
            {"to": [{"podSelector": {"matchLabels": {"app": "vllm"}}}], "ports": [{"port": 8000}]}
        ],
    )
    found = look(client, server, service("vllm", {"app": "vllm"}), only, logs=logs)
    assert found.rules == ["network-policy"] and "port 53" in found[0].cause


WELL = {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}


@pytest.mark.parametrize("line", ["rank 1 dials ray-0-zzzzz", "Master IP: 10.0.0.77"])
@pytest.mark.parametrize(("state", "phase"), [(READY, "Running"), (WELL, "Succeeded")])
def test_a_rank_that_dials_the_head_of_a_former_run(line, state, phase):
    places = enumerate(("10.0.0.5", "10.0.0.6"))
    ranks = [rank(n, state, podIP=address, phase=phase) for n, address in places]
    found = look(*ranks, logs={"ray-1-abcd1/main": f"{line}\n"})
    assert found.rules == ["stale-head-address"] and "ray-0-abcd0" in found[0].cause
    well = look(*ranks, logs={"ray-1-abcd1/main": "rank 1 dials ray-0-abcd0\n"})
    assert well.verdict == "healthy"


def test_services_that_lead_nowhere():
    up = pod(
        "vllm-0",
        container(READY, ports=[{"name": "http", "containerPort": 8000}]),
        labels={"app": "vllm"},
    )
    wrong = service("vllm", {"app": "vllm"}, 80)
    assert look(up, wrong).rules == ["service-target-port"]
    assert look(up, service("vllm", {"app": "vlm"})).rules == ["service-selector"]
    failed = pod(
        "vllm-0", container(crashed()), labels={"app": "vllm"}, owner="Job/vllm", phase="Failed"
    )
    both = look(failed, service("vllm", {"app": "vllm"}), logs={"vllm-0/main": "OddError: x\n"})
    assert both.rules == ["container-exit"]  # no second finding for pods that failed
    zero = thing(
        "Deployment", "vllm", {"replicas": 0, "template": {"metadata": {"labels": {"app": "vllm"}}}}
    )
    assert look(zero, service("vllm", {"app": "vllm"})).rules == ["scaled-to-zero"]


# -- probes ---------------------------------------------------------------------------------------


def test_a_server_that_loads_has_its_time():
    loads = {"vllm-0/main": "Loading safetensors checkpoint shards:  40% Completed\n"}
    said = event("Pod/vllm-0", "Unhealthy", "Readiness probe failed: connection refused")
    young = pod("vllm-0", container(running(300), **PROBE))
    assert look(young, said, logs=loads).verdict == "starting"
    old = pod("vllm-0", container(running(1700), **PROBE))
    assert look(old, said, logs=loads).rules == ["readiness-probe"]


def test_a_busy_servers_late_answers_do_not_hide_what_it_says():
    late = event("Pod/vllm-0", "Unhealthy", "Readiness probe failed: context deadline exceeded", 5)
    says = event(
        "Pod/vllm-0",
        "Unhealthy",
        "Readiness probe failed: HTTP probe failed with statuscode: 404",
        60,
    )
    found = look(pod("vllm-0", container(running(900), **PROBE)), late, says)
    assert "404" in found[0].evidence[0]


def test_a_liveness_probe_that_stops_what_loads():
    state = crashed(137) | {"started": False}
    body = pod("vllm-0", container(state, livenessProbe={"httpGet": {"port": 8000}}))
    kills = event(
        "Pod/vllm-0", "Killing", "Container main failed liveness probe, will be restarted"
    )
    logs = {"vllm-0/main": "Loading model weights took 3 s\n"}
    assert look(body, kills, logs=logs).rules == ["liveness-kills-loading"]
    assert look(body, kills, logs={"vllm-0/main": "serving\n"}).rules == ["liveness-probe"]


def test_a_dead_engine_behind_a_front_that_runs():
    log = (
        "Uvicorn running on http://0.0.0.0:8000\nvllm.v1.engine.exceptions.EngineDeadError: "
        "EngineCore encountered an issue. See stack trace (above) for the root cause.\n"
    )
    body = pod("vllm-0", container(READY))
    assert look(body, logs={"vllm-0/main": log}).rules == ["engine-dead"]
    went_on = "Connection refused, retrying\nconnected\nserving\n"
    assert look(body, logs={"vllm-0/main": went_on}).verdict == "healthy"


# -- a training that hangs ------------------------------------------------------------------------


def test_a_training_that_makes_no_step_for_ten_times_its_median():
    steps = "".join(f"11:4{n}:00 Step {n}/100\n  Total step time: 4.{n}s\n" for n in range(5))
    logs = {
        "ray-0-abcd0/main": f"{steps}11:50:00 Step 5/100\n",
        "ray-1-abcd1/main": "11:44:30 NCCL INFO AllReduce: opCount 5\n11:45:00 step 5\n",
    }
    found = look(rank(0, READY), rank(1, READY), logs=logs)
    assert found.rules == ["training-hangs"]
    assert "rank 1" in found[0].cause and "4.2 s" in found[0].cause and "600 s" in found[0].cause
    assert (
        "NCCL INFO AllReduce" in found[0].evidence[0] and found[0].objects[0] == "Pod/ray-1-abcd1"
    )
    fresh = {key: at(20) for key in logs}
    assert look(rank(0, READY), rank(1, READY), logs=logs, log_times=fresh).verdict == "healthy"


@pytest.mark.parametrize(("last", "rules"), [("39", ["training-hangs"]), ("39/39", [])])
def test_steps_without_times_share_the_time_since_the_start(last, rules):
    """NVIDIA/nccl#193: both ranks say that a connection was reset, and go on running."""
    steps = "".join(f"step {n} loss 1.{n}\n" for n in range(39)) + f"step {last} loss 1.0\n"
    said = "NCCL WARN Call to recv failed : Connection reset by peer."
    logs = {f"ray-{n}-abcd{n}/main": steps + said * n * bool(rules) for n in (0, 1)}
    times = {"ray-0-abcd0/main": at(900), "ray-1-abcd1/main": at(910)}
    found = look(rank(0, READY), rank(1, READY), logs=logs, log_times=times)
    assert found.rules == rules
    assert not rules or ("rank 1" in found[0].cause and said in found[0].evidence[0])


# -- never a false all-clear ----------------------------------------------------------------------


def test_what_nothing_explains_is_not_known_yet():
    quiet = look(pod("vllm-0", container(running(900))))
    assert quiet.verdict == "not known yet" and "kubectl describe pod vllm-0" in quiet[0].fix
    assert look(pod("vllm-0", container(running(20)), age=30)).verdict == "starting"
    short = thing("Deployment", "vllm", {"replicas": 2}, {"availableReplicas": 1})
    assert look(short).verdict == "not known yet"
    cluster = thing("RayCluster", "rc", {}, {"desiredWorkerReplicas": 2, "conditions": []})
    assert "0 of 2 workers" in look(cluster)[0].cause
    assert look(thing("Job", "train")).verdict == "not known yet"


def test_operators_and_what_they_say():
    orphan = thing("RayCluster", "rc")
    assert look(orphan).rules == ["ray-operator-missing"]
    odd = event("RayCluster/rc", "FailedToDoSomething", "the moon is full")
    found = look(thing("RayCluster", "rc", {}, {"state": "x"}), odd)
    assert found.rules == ["operator-warning"] and "the moon is full" in found[0].cause
    failed = thing(
        "RayJob", "train", {}, {"jobStatus": "FAILED", "message": "last logs:\nOddError: x"}
    )
    assert "OddError: x" in look(failed)[0].cause


def test_rays_own_state():
    head = pod("rc-head", container(READY, "ray"), owner="RayCluster/rc", labels=HEAD)
    why = "Unexpected termination: health check failed due to missing too many heartbeats"
    dead = {"nodes": [{"node_ip": "10.0.0.9", "state": "DEAD", "state_message": why}]}
    assert look(head, ray=dead).rules == ["ray-node-dead"]
    lost = pod("rc-w", container(crashed(137, "OOMKilled")), labels=WORKER)
    assert look(head, lost, ray=dead).rules == ["oom-killed"]
    job = {"jobs": [{"status": "FAILED", "job_id": "1", "message": "exit 1\nOddError: unheard of"}]}
    assert "OddError: unheard of" in look(head, ray=job)[0].cause


def test_a_retry_that_works_is_no_fault_and_an_eviction_is_said_last():
    first = rank(0, crashed(), name="ray-0-aaaaa", phase="Failed", age=900)
    second = rank(0, READY, name="ray-0-bbbbb", age=300)
    assert look(first, second).verdict == "healthy"
    evicted = rank(
        0,
        crashed(143),
        name="ray-0-aaaaa",
        phase="Failed",
        age=900,
        reason="Evicted",
        message="The node was low on resource: memory.",
    )
    other = pod("x", container(waiting("ErrImageNeverPull", "x")))
    assert look(evicted, second, other).rules == ["image-never-pulled", "evicted"]
