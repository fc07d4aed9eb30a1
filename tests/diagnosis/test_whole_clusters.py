"""Whole situations, as they come: several symptoms, one cause; or none at all."""

from snapshots import (
    asks,
    at,
    check,
    claim,
    condition,
    container,
    crash_loop,
    crashing,
    custom,
    deployment,
    ended,
    event,
    job,
    mounts,
    node,
    pending,
    pod,
    ray_pod,
    running,
    service,
    snapshot,
    status,
    waiting,
)

TAIL = (". no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not "
        "helpful for scheduling.")  # fmt: skip
RS = "ReplicaSet/vllm-5d9f"


def test_the_second_of_two_replicas_finds_no_node():
    one = pod("vllm-5d9f-a", owner=RS, labels={"app": "vllm", "pod-template-hash": "5d9f"},
              ready=True, statuses=[running(ready=True)])  # fmt: skip
    two = pending("0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules" + TAIL,
                  "vllm-5d9f-b", owner=RS, labels={"app": "vllm", "pod-template-hash": "5d9f"}
                  )  # fmt: skip
    body = deployment(replicas=2, available=1, conditions=[
        condition("Available", False, "MinimumReplicasUnavailable")])  # fmt: skip
    check(snapshot(one, two, body, service(), node()), "pod-anti-affinity",
          objects=["Pod/vllm-5d9f-b", "Deployment/vllm"])  # fmt: skip


def test_a_rollout_that_stops_at_a_bad_image():
    old = pod("vllm-aaa-1", owner="ReplicaSet/vllm-aaa", labels={"app": "vllm"}, ready=True,
              statuses=[running(9000, ready=True)])  # fmt: skip
    new = pod("vllm-bbb-1", owner="ReplicaSet/vllm-bbb", labels={"app": "vllm"}, phase="Pending",
              ready=False, statuses=[waiting("ImagePullBackOff", 'Back-off pulling image "vllm/vllm'
              '-openai:v9": ErrImagePull: failed to resolve reference "docker.io/vllm/vllm-openai:'
              'v9": docker.io/vllm/vllm-openai:v9: not found')])  # fmt: skip
    body = deployment(replicas=1, available=1, conditions=[condition(
        "Progressing", False, "ProgressDeadlineExceeded", 'ReplicaSet "vllm-bbb" has timed out '
        "progressing.")])  # fmt: skip
    body["status"]["updatedReplicas"] = 1
    check(snapshot(old, new, body, service(), node()), "image-not-found")


def test_a_quota_that_lets_one_of_two_in():
    one = pod("vllm-5d9f-a", owner=RS, ready=True, statuses=[running(ready=True)])
    text = ('Error creating: pods "vllm-5d9f-x" is forbidden: exceeded quota: pods, requested: '
            "pods=1, used: pods=1, limited: pods=1")  # fmt: skip
    made = event(RS, "SuccessfulCreate", "Created pod: vllm-5d9f-a", ago=90, kind="Normal")
    check(snapshot(one, made, event(RS, "FailedCreate", text, ago=5)), "quota-exceeded",
          objects=["ResourceQuota/pods", RS])  # fmt: skip


def test_an_init_container_that_waits_for_a_service_that_is_not_there():
    command = ["sh", "-c", "until getent hosts ray-head; do sleep 2; done"]
    body = pod(phase="Pending", inits=[running(70, name="wait")], statuses=[
        waiting("PodInitializing")], initContainers=[
            container("wait", command=command)])  # fmt: skip
    check(snapshot(body, node(), service("vllm", selector={})), "service-name-unknown",
          cause="ray-head")  # fmt: skip
    there = service("ray-head", selector={"app": "head"})
    head = pending("0/1 nodes are available: 1 Insufficient memory" + TAIL, "head-0",
                   labels={"app": "head"})  # fmt: skip
    found = check(snapshot(body, head, there, node()), "insufficient-memory")
    assert "Pod/vllm-0" in found[0].explains


def test_ranks_that_wait_for_a_head_that_no_node_takes():
    index = "batch.kubernetes.io/job-completion-index"
    zero = pending("0/1 nodes are available: 1 Insufficient nvidia.com/gpu" + TAIL, "ray-0-abcde",
                   owner="Job/ray", annotations={index: "0"}, labels={"job-name": "ray"},
                   containers=[container(resources=asks(gpu=8))])  # fmt: skip
    one = pod("ray-1-abcde", owner="Job/ray", annotations={index: "1"}, labels={"job-name": "ray"},
              statuses=[running(ready=True)], ready=True)  # fmt: skip
    log = {"ray-1-abcde/main": "12:00:00 rank 1: waiting for the head at ray-0.ray:6379\n"}
    headless = service("ray", selector={"job-name": "ray"}, clusterIP="None",
                       publishNotReadyAddresses=True, port=6379)  # fmt: skip
    ranks = job("ray", completionMode="Indexed", completions=2, parallelism=2)
    check(snapshot(zero, one, headless, ranks, node(), logs=log), "gpu-not-offered")


def test_a_worker_that_was_told_the_wrong_name():
    log = {"vllm-0/main": "12:00:00 rank 1: waiting for the head at ray-0.rey:6379\n"}
    body = pod(ready=True, statuses=[running(ready=True)])
    check(snapshot(body, service("ray", selector={}), logs=log), "service-name-unknown")
    idle = {"vllm-0/main": "INFO waiting for requests on port 8000\n"}
    assert check(snapshot(body, service("ray", selector={}), logs=idle)).verdict == "healthy"


def test_nccl_that_begins_and_says_no_more():
    text = ("[Rank 0] NCCL INFO Bootstrap : Using eth0:10.1.2.3<0>\n"
            "[Rank 0] NCCL INFO NET/OFI Selected Provider is efa\n")  # fmt: skip
    bodies = [pod(f"grpo-{i}-x", owner="Job/grpo", ready=True, statuses=[running(ready=True)])
              for i in (0, 1)]  # fmt: skip
    logs = {f"grpo-{i}-x/main": text for i in (0, 1)}
    check(snapshot(*bodies, logs=logs), "nccl-hang", objects=["Job/grpo"])


def test_a_disk_that_fills_up():
    for text in ('Container main exceeded its local ephemeral storage limit "1Mi". ',
                 "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
                 'Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". '):  # fmt: skip
        body = pod(phase="Failed", reason="Evicted", message=text, owner="Job/vllm", policy="Never",
                   statuses=[status(state=ended(137, "Error"))],
                   conditions=[condition("DisruptionTarget", True, "TerminationByKubelet", text)]
                   )  # fmt: skip
        failed = job(failed="BackoffLimitExceeded", message="Job has reached the specified backoff "
                     "limit")  # fmt: skip
        check(snapshot(body, failed, node(), event("Pod/vllm-0", "Evicted", text)),
              "ephemeral-storage-limit", evidence=text.strip())  # fmt: skip


def test_a_node_that_went_with_its_ray_worker_in_mid_training():
    head = ray_pod("head", ready=True, statuses=[running(ready=True)], node="node-b")
    lost = ray_pod("worker", ready=False, statuses=[running(9000)], node="node-a")
    log = {"raycluster-head-abcde/main": "(raylet) The node with node id: 1 and address: 10.0.0.9 "
           "and node name: 10.0.0.9 has been marked dead because the detector has missed too many "
           "heartbeats from it.\nray.exceptions.ActorDiedError: The actor died because its node has"
           " died.\n"}  # fmt: skip
    down = node("node-a", ready="Unknown", message="Kubelet stopped posting node status.")
    check(snapshot(head, lost, node("node-b"), down, logs=log), "node-not-ready",
          objects=["Node/node-a", "Pod/raycluster-worker-abcde"])  # fmt: skip


def test_a_driver_that_lost_its_worker_to_memory():
    worker = ray_pod("worker", ready=False, statuses=[crash_loop(137, reason="OOMKilled")])
    driver, logs = crashing("train-x", text="ray.exceptions.ActorDiedError: The actor died "
                            "unexpectedly before finishing this task.\n", owner="Job/train",
                            labels={"ray.io/cluster": "raycluster"})  # fmt: skip
    check(snapshot(worker, driver, node(), logs=logs), "oom-killed")


def test_a_shared_claim_keeps_three_workloads_waiting():
    text = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
    bodies = [pending(text, f"{name}-0", owner=f"Job/{name}", **mounts("fsx"))
              for name in ("grpo", "model", "ray")]  # fmt: skip
    told = event("PersistentVolumeClaim/fsx", "FailedBinding", "no persistent volumes available for"
                 " this claim and no storage class is set")  # fmt: skip
    found = check(snapshot(*bodies, claim("fsx", storage_class=None), told, node()),
                  "no-default-storage-class")  # fmt: skip
    assert {"Job/grpo", "Job/model", "Job/ray"} <= set(found[0].objects)


def test_a_claim_that_does_not_exist_at_the_mount():
    body = pending('0/1 nodes are available: persistentvolumeclaim "shard" not found. not found',
                   **mounts("shard"))  # fmt: skip
    check(snapshot(body, claim("shared", phase="Bound"), node()), "pvc-missing", cause="'shard'")


def test_a_sidecar_that_crashes_beside_a_server_that_is_well():
    body = pod(ready=False, containers=[container(), container("exporter")],
               statuses=[running(ready=True), crash_loop(2, name="exporter")])  # fmt: skip
    log = {"vllm-0/main": "ok\n", "vllm-0/exporter": "panic: no config\n"}
    check(snapshot(body, logs=log), "container-exit", cause="exporter", evidence="panic: no config")


def test_two_containers_with_two_faults_are_two():
    body = pod(ready=False, containers=[container(), container("exporter")],
               statuses=[crash_loop(1), crash_loop(1, name="exporter")])  # fmt: skip
    log = {"vllm-0/main": "CUDA error: out of memory\n",
           "vllm-0/exporter": "ModuleNotFoundError: No module named 'x'\n"}  # fmt: skip
    check(snapshot(body, logs=log), "cuda-oom", "module-missing")


def test_a_liveness_probe_by_command_in_a_job():
    kill = event("Pod/vllm-0", "Killing", "Container main failed liveness probe", kind="Normal")
    told = event("Pod/vllm-0", "Unhealthy", "Liveness probe failed: cat: /tmp/alive: No such file "
                 "or directory", field="main")  # fmt: skip
    body = pod(phase="Failed", policy="Never", owner="Job/vllm", containers=[container(
        livenessProbe={"exec": {"command": ["cat", "/tmp/alive"]}})],
        statuses=[status(state=ended(137))])  # fmt: skip
    failed = job(
        failed="BackoffLimitExceeded", message="Job has reached the specified backoff limit"
    )
    check(snapshot(body, kill, told, failed), "liveness-probe", evidence="/tmp/alive")


def test_a_finalizer_on_a_pod_that_has_ended():
    body = pod(phase="Succeeded", deleted=-5, finalizers=["example.com/keep"],
               statuses=[status(state=ended(0))])  # fmt: skip
    check(snapshot(body, node()), "stuck-finalizer")
    going = pod(deleted=-25, statuses=[running()])
    assert check(snapshot(going, node())).verdict == "healthy"


def test_pods_that_are_being_replaced_are_no_fault():
    old = pod("vllm-a", owner=RS, deleted=-20, ready=False, labels={"app": "vllm"},
              statuses=[running()])  # fmt: skip
    new = pod("vllm-b", owner=RS, ready=True, labels={"app": "vllm"}, age=30,
              statuses=[running(20, ready=True)])  # fmt: skip
    assert check(snapshot(old, new, service(), node(),
                          deployment(available=1))).verdict == "healthy"  # fmt: skip


def test_a_success_policy_that_was_met_forgives_the_other_rank():
    met = job("ray", completionMode="Indexed", completions=2, parallelism=2)
    met["status"]["conditions"] = [condition("SuccessCriteriaMet", True, "SuccessPolicy"),
                                   condition("Complete", True, "SuccessPolicy")]  # fmt: skip
    zero = pod("ray-0", owner="Job/ray", phase="Succeeded", statuses=[status(state=ended(0))])
    one = pod("ray-1", owner="Job/ray", phase="Failed", statuses=[status(state=ended(143))])
    assert check(snapshot(met, zero, one, node())).verdict == "healthy"


def test_a_job_that_retries_and_fails_each_time_is_one_finding():
    bodies, logs = [], {}
    for number in range(4):
        name = f"grpo-{number}"
        bodies.append(pod(name, owner="Job/grpo", phase="Failed", policy="Never",
                          age=300 - 60 * number, statuses=[status(state=ended(1))]))  # fmt: skip
        logs[f"{name}/main"] = (
            f"step {number}\nFileNotFoundError: [Errno 2] No such file or directory: '/data/x'\n"
        )
    failed = job("grpo", failed="BackoffLimitExceeded", message="Job has reached the specified "
                 "backoff limit")  # fmt: skip
    found = check(snapshot(*bodies, failed, node(), logs=logs), "file-missing")
    assert len([o for o in found[0].objects if o.startswith("Pod/")]) == 4


def test_a_rayservice_whose_worker_lacks_its_gpu():
    head = ray_pod("head", cluster="llm-raycluster-x", ready=True, statuses=[running(ready=True)])
    worker = pending("0/2 nodes are available: 2 Insufficient nvidia.com/gpu" + TAIL,
                     "llm-raycluster-x-gpu-worker-y", owner="RayCluster/llm-raycluster-x",
                     labels={"ray.io/cluster": "llm-raycluster-x", "ray.io/node-type": "worker"},
                     containers=[container(resources=asks(gpu=1))])  # fmt: skip
    app = {"status": "DEPLOYING", "message": "", "serveDeploymentStatuses": {}}
    body = custom("RayService", "llm", [condition("Ready", False, "ZeroServeEndpoints", ago=1500)],
                  age=1600, pendingServiceStatus={"rayClusterName": "llm-raycluster-x",
                                                  "applicationStatuses": {"llm": app}})  # fmt: skip
    cluster = custom("RayCluster", "llm-raycluster-x", [condition(
        "HeadPodReady", True, "HeadPodRunningAndReady")], desiredWorkerReplicas=1)  # fmt: skip
    serve = service("llm-serve-svc", selector={"ray.io/cluster": "llm-raycluster-x",
                                               "ray.io/serve": "true"})  # fmt: skip
    log = {f"{head['metadata']['name']}/main": "(autoscaler +40s) Warning: The following resource "
           "request cannot be scheduled right now: {'GPU': 1.0}.\n"}  # fmt: skip
    check(snapshot(head, worker, body, cluster, serve, node(), node("node-b"), logs=log),
          "gpu-not-offered")  # fmt: skip


def test_a_long_pull_and_a_long_download_are_no_fault():
    pulling = pod("vllm-0", phase="Pending", ready=False, age=400,
                  statuses=[waiting("ContainerCreating")])  # fmt: skip
    told = event("Pod/vllm-0", "Pulling", 'Pulling image "vllm/vllm-openai:v0.25.1"', kind="Normal",
                 ago=395)  # fmt: skip
    loading = pod("grpo-0", ready=False, containers=[container(readinessProbe={
        "httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 5})],
        statuses=[running(300)])  # fmt: skip
    unready = event("Pod/grpo-0", "Unhealthy", 'Readiness probe failed: Get "http://10.0.0.1:8000/'
                    'health": dial tcp 10.0.0.1:8000: connect: connection refused')  # fmt: skip
    log = {"grpo-0/main": "model.safetensors:  41%|####      | 1.2G/2.9G [00:40<01:00, 28.0MB/s]\n"}
    found = check(snapshot(pulling, told, loading, unready, node(), logs=log))
    assert found.verdict == "healthy" and len(found.notes) == 2


def test_a_webhook_that_is_down_stops_everything_and_is_one_finding():
    text = ('Error creating: Internal error occurred: failed calling webhook "vrayjob.kb.io": '
            "failed to call webhook: connect: connection refused")  # fmt: skip
    told = [event(owner, "FailedCreate", text) for owner in ("Job/a", "Job/b", RS)]
    found = check(snapshot(*told, service("vllm")), "webhook-down")
    assert {"Job/a", "Job/b", RS} <= set(found[0].objects)


def test_a_namespace_with_nothing_in_it():
    assert check(snapshot()).verdict == "healthy"
    assert check(snapshot(node(), at_all=at(1))).verdict == "healthy"


def test_three_independent_faults_the_deepest_first():
    bad, logs = crashing("grpo-0", text="KeyError: 'HF_TOKEN'\n", owner="Job/grpo")
    lonely = service("web", selector={"app": "wob"})
    gpu = pending("0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: ml}" + TAIL,
                  "ray-0", owner="Job/ray")  # fmt: skip
    check(snapshot(bad, lonely, gpu, node(taints=[("dedicated", "ml", "NoSchedule")]), logs=logs),
          "taint-not-tolerated", "variable-missing", "service-selector")  # fmt: skip
