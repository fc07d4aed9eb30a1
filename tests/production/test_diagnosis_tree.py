"""The tree and its rules, where no recording shows them, and issues that need several objects."""

import pytest
import small
from small import at, container, crashed, event, look, node, pending, pod, running, service, thing

HEAD = {"ray.io/cluster": "rc", "ray.io/node-type": "head"}
WORKER = {"ray.io/cluster": "rc", "ray.io/node-type": "worker"}
INDEX = "batch.kubernetes.io/job-completion-index"
PROBE = {"readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 5}}
READY = running(ready=True)
TRACEBACK = "Traceback (most recent call last):\n"


def rank(index, state, log_name="main", **more):
    labels = {INDEX: str(index), "app": "ray", **more.pop("labels", {})}
    spec = {"hostname": f"ray-{index}", "subdomain": "ray"}
    name = more.pop("name", f"ray-{index}-abcd{index}")
    return pod(name, container(state, log_name), owner="Job/ray", labels=labels, spec=spec, **more)


def headless(**more):
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, **more}
    return service("ray", spec.pop("selector", {"app": "ray"}), 6379, **spec)


def head(state=READY, *others, **more):
    first = container(state, "ray-head", **more)
    return pod("rc-head", first, *others, owner="RayCluster/rc", labels=HEAD)


def worker(init="wait-gcs-ready"):
    """A worker whose init container waits for the head."""
    waits = container(running(1500), init, env={"FQ_RAY_IP": "rc-svc.demo.svc.cluster.local"})
    main = container(small.waiting("PodInitializing"), "ray-worker")
    more = {"owner": "RayCluster/rc", "labels": WORKER, "phase": "Pending"}
    return pod("rc-worker", main, inits=[waits], **more)


def ray_service(**status):
    ready = {"type": "Ready", "status": "False", "reason": "Initializing", "message": "it starts"}
    conditions = [{**ready, "lastTransitionTime": at(1500)}]
    inner = {"rayClusterName": "rc", **status}
    return thing("RayService", "rs", {}, {"pendingServiceStatus": inner, "conditions": conditions})


# -- public issues: the objects, the logs, words of the first finding and of none ---------------

UP = [head(), service("rc-svc", HEAD, 6379, clusterIP="None")]
A10 = (
    "Deployment 'VLLMDeployment:amazon--LightGPT' in application 'ray-llm' 1 replicas that have "
    'taken more than 30s to be scheduled. Resources required for each replica: [{"CPU": 1.0, '
    '"accelerator_type_a10": 0.01}], total resources available: {}.'
)
SERVE_404 = "Fail to create / update Serve applications. err: UpdateDeployments fail: 404 Not Found"
ALIVE = "Readiness probe failed: Ray cluster status: 1/2 nodes alive.\nCluster is NOT ready."
TRIED = (
    "The deployment failed to start 3 times in a row. See controller logs for details. Error:\n"
    "\x1b[36mray::ServeReplica:llms:LLM.__init__()\x1b[39m (pid=9, ip=10.0.0.2)\n"
    "ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (8192)."
)


def application(status, inner, message):
    deployment = {"status": inner, "message": message}
    app = {"status": status, "serveDeploymentStatuses": {"V": deployment}}
    return ray_service(
        applicationStatuses={"app": {**app, "message": "Deploying app 'app' failed"}}
    )


LOADS = {"httpGet": {"port": 8000}, "periodSeconds": 30, "failureThreshold": 240}
ISSUES = {
    "ray-project/kuberay#3897": (
        [head(crashed()), worker()],
        {
            "rc-head/ray-head": "[2025-07-28 08:40:52,953 E 1 43] gcs_rpc_client.h:196: Failed to "
            "connect to GCS within 60 seconds. GCS may have been killed.\n",
            "rc-worker/wait-gcs-ready": "1400 seconds elapsed: Waiting for GCS to be ready.\n",
        },
        ["rc-head", "GCS"],
        ["init-waiting"],
    ),
    "RBLN-SW/vllm-rbln#1000": (
        [pod("vllm-0", container(running(1700, started=False), startupProbe=LOADS))],
        {
            "vllm-0/main": "(Worker_PP2 pid=99) ERROR 06-25 15:28:30 [core.py:866] RuntimeError: "
            "SYS_EBUSY: Lack of device memory. (code: -16)\n(EngineCore pid=4) ERROR 06-25 "
            "15:28:30 [core.py:866] Not enough memory for 24 blocks of KV cache.\n"
            + "(APIServer pid=1) INFO Waiting for 1 local core engine proc(s) to start.\n"
            * 9
        },
        ["24 blocks of KV"],
        ["waits for something"],
    ),
    "ray-project/ray-llm#143": (
        [head(), application("DEPLOYING", "UPDATING", A10)],
        {},
        ["accelerator_type_a10"],
        [],
    ),
    "ray-project/ray#49224": (
        [head(), application("DEPLOY_FAILED", "DEPLOY_FAILED", TRIED)],
        {},
        ["max_num_batched_tokens"],
        [],
    ),
    "ray-project/ray#46308": (
        [head(), ray_service(), event("RayService/rs", "WaitForServe", SERVE_404, normal=True)],
        {},
        ["404"],
        [],
    ),
    "ray-project/kuberay#960": (
        [head(READY, container(crashed(), "autoscaler"))],
        {
            "rc-head/autoscaler": f"{TRACEBACK}requests.exceptions.HTTPError: 403 Client Error: "
            "Forbidden for url: https://kubernetes.default:443/apis/ray.io/v1\n"
        },
        ["403", "kubernetes.default"],
        ["Hugging Face"],
    ),
    "vllm-project/production-stack#653": (
        [
            head(running(), readinessProbe={"exec": {"command": ["python3", "/s/wait.py"]}}),
            event("Pod/rc-head", "Unhealthy", ALIVE),
        ],
        {},
        ["1/2 nodes alive"],
        [],
    ),
    "ray-project/kuberay#2540": (
        [*UP, worker()],
        {"rc-worker/wait-gcs-ready": "ray.exceptions.RpcError: Timed out while waiting for GCS.\n"},
        ["GCS", "rc-worker"],
        [],
    ),
    "ray-project/kuberay#1187": (
        [*UP, worker("init")],
        {"rc-worker/init": "nslookup: can't resolve 'rc-svc.demo.svc.cluster.local'\n" * 20},
        ["DNS"],
        [],
    ),
}


@pytest.mark.parametrize("name", ISSUES)
def test_a_public_issue_of_several_objects(name):
    objects, logs, must, never = ISSUES[name]
    found = look(*objects, logs=logs)
    first, whole = str(found[0]).lower(), str(found).lower()
    assert [word for word in must if word.lower() not in first] == [], found
    assert [word for word in never if word.lower() in whole] == [], found


# -- what failed outranks what waits for it -------------------------------------------------------


def test_a_worker_that_waits_is_explained_by_the_head_that_crashes():
    logs = {
        "rc-head/ray-head": f"{TRACEBACK}OddError: unheard of\n",
        "rc-worker/wait-gcs-ready": "15 seconds elapsed: Waiting for GCS to be ready.\n",
    }
    found = look(head(crashed()), worker(), UP[1], logs=logs)
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
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "x"}
    job = thing("Job", "ray", {"activeDeadlineSeconds": 9}, {"conditions": [failed]})
    assert look(job, rank(0, crashed(143))).rules == ["job-deadline"]


# -- the first error, and how containers end ------------------------------------------------------

ENDS = [
    (crashed(137), "", "killed", "SIGKILL"),
    (crashed(139), "", "segfault", "SIGSEGV"),
    (crashed(3), "", "container-exit", "no log of it was kept"),
    (crashed(3), "hello\nthe disk is on fire\n", "container-exit", "disk is on fire"),
    (crashed(0, "Completed"), "bye\n", "container-completes", "foreground"),
    (crashed(), "ValueError: no table at db.example.org\n", "container-exit", "DB_HOST=db.exam"),
]


@pytest.mark.parametrize(("state", "log", "rule", "words"), ENDS)
def test_how_a_container_ended(state, log, rule, words):
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
CONTROL = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
EIGHT = {"nvidia.com/gpu": "8"}
OF_2 = "0/2 nodes are available: 1 Insufficient"
TAINTED = f"{OF_2} nvidia.com/gpu, 1 node(s) had untolerated taint {{nvidia.com/gpu: true}}."
CONTROLS = (
    f"{OF_2} cpu, 1 node(s) had untolerated taint {{node-role.kubernetes.io/control-plane: }}."
)
CORDONED = "0/1 nodes are available: 1 node(s) were unschedulable."
MOON = "0/1 nodes are available: 1 node(s) had the moon."
# The nodes, what the scheduler says, what the pod asks for: the rule, and words of the cause.
SCHEDULING = [
    ([node()], NO_GPU, GPU, "gpu-not-offered", "no node offers any"),
    ([node(**{"nvidia.com/gpu": "4"})], NO_GPU, EIGHT, "gpu-too-large", "4 nvidia.com/gpu"),
    ([node(**EIGHT)], NO_GPU, GPU, "insufficient-gpu", "hold it"),
    ([], NO_GPU, GPU, "insufficient-gpu", "not known whether"),
    (
        [node("a"), node("b", taints=[TAINT], **EIGHT)],
        TAINTED,
        GPU,
        "taint-not-tolerated",
        "nvidia.com/gpu=true",
    ),
    ([node("a", taints=[CONTROL]), node("b")], CONTROLS, {"cpu": "6"}, "insufficient-cpu", "6 cpu"),
    ([], CORDONED, {}, "nodes-cordoned", "cordoned"),
    ([], "no nodes available to schedule pods", {}, "no-nodes", "no node"),
    ([], MOON, {}, "scheduler-refuses", "the moon"),
]


@pytest.mark.parametrize(("nodes", "message", "resources", "rule", "words"), SCHEDULING)
def test_why_no_node_takes_a_pod(nodes, message, resources, rule, words):
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
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": at(9)}
    serves = thing("RayService", "app", {}, {"conditions": [ready]})
    told = ("RayService/app", "ServeNotReady", "application app is UNHEALTHY")
    assert look(serves, event(*told, ago=13)).verdict == "healthy"
    assert look(serves, event(*told, ago=5)).rules == ["operator-warning"]  # ill again


def test_a_refusal_that_was_got_over_is_over():
    said = "is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"
    refused, of = (
        event("ReplicaSet/vllm-5d", "FailedCreate", said, 90),
        thing("ReplicaSet", "vllm-5d"),
    )
    assert look(refused, of).rules == ["quota-exceeded"]
    created = event("ReplicaSet/vllm-5d", "SuccessfulCreate", "Created pod: x", 5, True)
    assert look(refused, of, created).verdict == "healthy"


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


OTHER_PORT = {**FROM_RAY, "ports": [{"port": 8265}]}
WAYS = {
    "no such Service": ([service("other", None)], "service-name-unknown"),
    "selects nobody": ([headless(selector={"app": "rey"})], "service-selector"),
    "closed": ([headless(), policy("deny", policyTypes=["Ingress"])], "network-policy"),
    "another port": ([headless(), policy("some", ingress=[OTHER_PORT])], "network-policy"),
    "open": (
        [headless(), policy("deny", policyTypes=["Ingress"]), policy("in", ingress=[FROM_RAY])],
        "waits-though-well",
    ),
    "no egress": (
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
    to = [{"podSelector": {"matchLabels": {"app": "vllm"}}}]
    egress = {"policyTypes": ["Egress"], "egress": [{"to": to, "ports": [{"port": 8000}]}]}
    only = policy("only", {"app": "client"}, **egress)
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
    labels, ports = {"app": "vllm"}, [{"name": "http", "containerPort": 8000}]
    up = pod("vllm-0", container(READY, ports=ports), labels=labels)
    assert look(up, service("vllm", labels, 80)).rules == ["service-target-port"]
    assert look(up, service("vllm", {"app": "vlm"})).rules == ["service-selector"]
    failed = pod("vllm-0", container(crashed()), labels=labels, owner="Job/vllm", phase="Failed")
    both = look(failed, service("vllm", labels), logs={"vllm-0/main": "OddError: x\n"})
    assert both.rules == ["container-exit"]  # no second finding for pods that failed
    zero = {"replicas": 0, "template": {"metadata": {"labels": labels}}}
    none = look(thing("Deployment", "vllm", zero), service("vllm", labels))
    assert none.rules == ["scaled-to-zero"]


# -- probes ---------------------------------------------------------------------------------------


def test_a_server_that_loads_has_its_time():
    loads = {"vllm-0/main": "Loading safetensors checkpoint shards:  40% Completed\n"}
    said = event("Pod/vllm-0", "Unhealthy", "Readiness probe failed: connection refused")
    young = pod("vllm-0", container(running(300), **PROBE))
    assert look(young, said, logs=loads).verdict == "starting"
    old = pod("vllm-0", container(running(1700), **PROBE))
    assert look(old, said, logs=loads).rules == ["readiness-probe"]


def test_a_busy_servers_late_answers_do_not_hide_what_it_says():
    failed, about = "Readiness probe failed: ", ("Pod/vllm-0", "Unhealthy")
    late = event(*about, f"{failed}context deadline exceeded", 5)
    says = event(*about, f"{failed}HTTP probe failed with statuscode: 404", 60)
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
    why = "Unexpected termination: health check failed due to missing too many heartbeats"
    dead = {"nodes": [{"node_ip": "10.0.0.9", "state": "DEAD", "state_message": why}]}
    assert look(head(), ray=dead).rules == ["ray-node-dead"]
    lost = pod("rc-w", container(crashed(137, "OOMKilled")), labels=WORKER)
    assert look(head(), lost, ray=dead).rules == ["oom-killed"]
    job = {"jobs": [{"status": "FAILED", "job_id": "1", "message": "exit 1\nOddError: unheard of"}]}
    assert "OddError: unheard of" in look(head(), ray=job)[0].cause


def test_a_retry_that_works_is_no_fault_and_an_eviction_is_said_last():
    old = {"name": "ray-0-aaaaa", "phase": "Failed", "age": 900}
    second = rank(0, READY, name="ray-0-bbbbb", age=300)
    assert look(rank(0, crashed(), **old), second).verdict == "healthy"
    low = {"reason": "Evicted", "message": "The node was low on resource: memory."}
    other = pod("x", container(small.waiting("ErrImageNeverPull", "x")))
    found = look(rank(0, crashed(143), **old, **low), second, other)
    assert found.rules == ["image-never-pulled", "evicted"]


def test_who_fails_again_and_again_is_well_when_it_has_run_longer_than_usual():
    ended = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": at(700)}}
    logs = {"vllm-0/main/previous": "OddError: unheard of\n", "vllm-0/main": "serving\n"}
    often = running(700, ready=True, restartCount=2, lastState=ended)
    assert look(pod("vllm-0", container(often)), logs=logs).rules == ["container-exit"]
    once = pod("vllm-0", container(often | {"restartCount": 7}))
    assert look(once, logs=logs).verdict == "healthy"


def test_a_job_in_a_queue_of_kueue():
    labels = {"kueue.x-k8s.io/queue-name": "gpu"}
    job = thing("Job", "train", {"suspend": True}, labels=labels)
    told = event("Job/train", "Pending", "insufficient unused quota, 8 more needed", normal=True)
    found = look(job, told)
    assert found.rules == ["job-queued"] and "8 more needed" in found[0].evidence[0]
    assert "kubectl edit" not in found[0].fix


def test_a_waiting_reason_that_is_unheard_of_is_told():
    body = pod("vllm-0", container(small.waiting("Odd", "the widget is bent")), phase="Pending")
    assert "the widget is bent" in look(body)[0].cause
