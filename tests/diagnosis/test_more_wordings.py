"""Wordings of kubelets, schedulers, registries and autoscalers, found by snapshots made blind."""

import pytest
from snapshots import (
    asks,
    check,
    container,
    crashing,
    ended,
    event,
    job,
    node,
    pending,
    pod,
    running,
    service,
    snapshot,
    status,
    waiting,
)

from workshop_lib.production.diagnosis import diagnose

IMAGE = "reg.corp:5000/vllm:1"
HEAD = (f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": failed '
        'to do request: Head "https://reg.corp:5000/v2/vllm/manifests/1": ')  # fmt: skip
REGISTRIES = {
    "untrusted": ("tls: failed to verify certificate: x509: certificate has expired or is not yet "
                  "valid", "image-registry-untrusted", "certificate"),
    "plain": ("http: server gave HTTP response to HTTPS client", "image-registry-untrusted",
              "plain HTTP"),
    "no name": ("dial tcp: lookup reg.corp on 10.0.0.2:53: no such host",
                "image-registry-unreachable", "DNS"),
    "slow": ("net/http: TLS handshake timeout", "image-registry-unreachable", "reached"),
}  # fmt: skip


@pytest.mark.parametrize("name", REGISTRIES)
def test_a_registry_without_a_name_without_trust_and_without_an_answer_are_three(name):
    words, rule, cause = REGISTRIES[name]
    body = pod(phase="Pending", statuses=[waiting("ErrImagePull", HEAD + words)])
    body["spec"]["containers"][0]["image"] = IMAGE
    found = check(snapshot(body, node()), rule, cause=cause, evidence=words)
    assert "reg.corp" in found[0].cause


def test_the_processor_that_an_image_was_not_built_for_is_named():
    body = pod(phase="Pending", statuses=[waiting(
        "ErrImagePull", "rpc error: code = NotFound desc = no match for platform in manifest: "
        "not found")])  # fmt: skip
    arm = node()
    arm["status"]["nodeInfo"] = {"architecture": "arm64"}
    assert "(arm64)" in check(snapshot(body, arm), "image-platform")[0].cause


STARTS = {
    "folder": ("RunContainerError", 'runc create failed: exec: "/opt/app": is a directory',
               "command-not-found", "/opt/app"),
    "sub path": ("CreateContainerConfigError", 'failed to prepare subPath for volumeMount "data" '
                 'of container "main"', "volume-path", "subPath"),
    "host path": ("CreateContainerConfigError", "stat /data/models: no such file or directory",
                  "volume-path", "/data/models"),
    "other": ("CreateContainerError", "runc: the moon is full", "container-start", "moon"),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_what_keeps_a_container_from_its_start_is_named(name):
    reason, words, rule, cause = STARTS[name]
    body = pod(phase="Pending", statuses=[waiting(reason, words)])
    check(snapshot(body, node()), rule, cause=cause, evidence=words)


def test_a_hook_that_fails_while_the_container_waits():
    body = pod(statuses=[waiting("PostStartHookError", "")])
    said = event("Pod/vllm-0", "FailedPostStartHook", "PostStartHook failed", field="main")
    check(snapshot(body, node(), said), "post-start-hook")


MOUNTS = {
    "hostPath": ("FailedMount", 'MountVolume.SetUp failed for volume "models" : hostPath type '
                 "check failed: /mnt/models is not a directory", "volume-missing", "/mnt/models"),
    "attach": ("FailedAttachVolume", 'AttachVolume.Attach failed for volume "pvc-5" : rpc error: '
               'code = Internal desc = Could not attach volume "vol-0a" to node "i-0a": expected '
               "device to be attached but was attaching", "volume-attach", "attached"),
}  # fmt: skip


@pytest.mark.parametrize("name", MOUNTS)
def test_volumes_that_do_not_come_to_the_pod(name):
    reason, words, rule, cause = MOUNTS[name]
    body = pod(phase="Pending", statuses=[waiting("ContainerCreating")])
    said = event("Pod/vllm-0", reason, words)
    check(snapshot(body, node(), said), rule, cause=cause, evidence=words)


def test_a_lost_claim_and_the_pod_that_waits_for_it_are_one():
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "weights"},
             "spec": {"volumeName": "pvc-77"}, "status": {"phase": "Lost"}}  # fmt: skip
    waits = pending('0/1 nodes are available: persistentvolumeclaim "weights" bound to non-existent'
                    ' persistentvolume "pvc-77". not found',
                    volumes=[{"name": "d", "persistentVolumeClaim": {"claimName": "weights"}}],
                    )  # fmt: skip
    snap = snapshot(waits, node())
    snap["persistentvolumeclaims"] = [claim]
    check(snap, "volume-lost", objects=("PersistentVolumeClaim/weights", "Pod/vllm-0"))


HEAD_0_1 = "0/1 nodes are available: "
SCHEDULER = {
    "one pod": (HEAD_0_1 + "1 node has pod using PersistentVolumeClaim with the same name and "
                "ReadWriteOncePod access mode.", {}, "claim-in-use", "ReadWriteOncePod"),
    "class": (HEAD_0_1 + "1 could not allocate: device class gpu.nvidia.com does not exist.", {},
              "resource-claim", "no DeviceClass gpu.nvidia.com"),
    "not made": ('waiting for dynamic resource controller to create the resourceclaim "x-gpu-1"',
                 {}, "resource-claim", "ResourceClaim is not there"),
    "taken": (HEAD_0_1 + "1 cannot allocate all claims.", {}, "resource-claim", "taken"),
    "none": (HEAD_0_1 + "1 Insufficient hugepages-2Mi.", asks(**{"hugepages-2Mi": "1Gi"}),
             "hugepages-2Mi-too-large", "no node of the cluster offers any"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULER)
def test_what_the_scheduler_says_is_said_exactly(name):
    message, resources, rule, cause = SCHEDULER[name]
    waits = pending(message, containers=[container(resources=resources)])
    check(snapshot(waits, node()), rule, cause=cause, evidence=message)


LACKS = HEAD_0_1 + "1 Insufficient nvidia.com/gpu."
CLAIM = event("NodeClaim/gpu-x", "InsufficientCapacityError",
              "creating instance, insufficient capacity, with fleet error(s), "
              "InsufficientInstanceCapacity: no g5.2xlarge")  # fmt: skip


def test_why_no_node_is_added():
    waits = pending(LACKS, containers=[container(resources=asks(gpu=1))])
    limit = event("Pod/vllm-0", "FailedScheduling", 'incompatible with nodepool "gpu", all '
                  'available instance types exceed limits for nodepool: "gpu"')  # fmt: skip
    found = check(snapshot(waits, node(), limit), "node-group-limit", cause="NodePool gpu has")
    assert "spec.limits" in found[0].fix
    full = event("Pod/vllm-0", "NotTriggerScaleUp", "1 max node group size reached", ago=10)
    check(snapshot(waits, node(gpu=8), full), "insufficient-gpu", cause="node group has reached")
    promised = event("Pod/vllm-0", "Nominated", "Pod should schedule on: nodeclaim/gpu-x",
                     kind="Normal", ago=200)  # fmt: skip
    check(snapshot(waits, node(), promised))  # it may still come
    check(snapshot(waits, node(), promised, CLAIM), "no-capacity", cause="no such machine",
          evidence="InsufficientInstanceCapacity")  # fmt: skip


def test_the_pod_that_takes_a_preempted_ones_place_is_no_second_fault():
    message = "default-scheduler: preempting to accommodate a higher priority pod"
    gone = pod("vllm-a", owner="ReplicaSet/vllm-7d", phase="Failed", conditions=[
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
         "message": message}])  # fmt: skip
    waits = pending(LACKS, "vllm-b", owner="ReplicaSet/vllm-7d",
                    containers=[container(resources=asks(gpu=1))])  # fmt: skip
    check(snapshot(gone, waits, node(gpu=1)), "preempted", evidence=message)


def test_the_pod_that_follows_one_that_a_node_refused_says_why():
    gone = pod("vllm-a", owner="ReplicaSet/vllm-7d", phase="Failed", reason="NodeAffinity",
               message="Pod was rejected: Predicate NodeAffinity failed")  # fmt: skip
    waits = pending("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
                    "vllm-b", owner="ReplicaSet/vllm-7d", nodeSelector={"disk": "ssd"})  # fmt: skip
    found = check(snapshot(gone, waits, node()), "node-selector", cause="disk=ssd")
    assert "Pod/vllm-a" in found[0].explains


def test_a_pod_that_misses_the_gpu_that_is_broken_is_no_second_fault():
    sick = node("node-a", gpu=8)
    said = "NVRM: Xid (PCI:0000:53:00): 79, GPU has fallen off the bus."
    sick["status"]["conditions"].append(
        {"type": "XidError", "status": "True", "reason": "GPUXid79", "message": said})  # fmt: skip
    body, logs = crashing(text="RuntimeError: No CUDA GPUs are available\n")
    check(snapshot(body, sick, logs=logs), "gpu-fault", cause="node-a", evidence=said)
    full = node("node-a", gpu=8, pressure="DiskPressure")
    found = check(snapshot(body, full, logs=logs), "gpu-not-visible", "node-pressure")
    assert "disk" not in found[0].cause


def test_workers_that_register_late_count_only_where_nothing_got_ready():
    line = ("(raylet) worker_pool.cc:586: Some workers of the worker process(412) have not "
            "registered within the timeout. The process is still alive.")  # fmt: skip
    late = pod(ready=False, statuses=[running(900)], age=1000)
    check(snapshot(late, node(), logs={"vllm-0/main": line}), "ray-registration-timeout",
          evidence="registered within")  # fmt: skip
    well = pod(ready=True, statuses=[running(900, ready=True)], age=1000)
    check(snapshot(well, node(), logs={"vllm-0/main": line}))


NAMES = {
    "module": ("ModuleNotFoundError: No module named 'math_verify'", "module-missing",
               "math_verify"),
    "library": ("ImportError: libcudart.so.13: cannot open shared object file: No such file",
                "module-missing", "libcudart.so.13"),
    "variable": ("KeyError: 'MODEL_ID'", "variable-missing", "MODEL_ID"),
    "file": ("FileNotFoundError: [Errno 2] No such file or directory: '/config/serve.yaml'",
             "file-missing", "'/config/serve.yaml'"),
    "proxy": ("requests.exceptions.ProxyError: HTTPSConnectionPool(host='huggingface.co', "
              "port=443): Max retries exceeded (Caused by ProxyError('Unable to connect to proxy', "
              "NewConnectionError('Connection refused')))", "proxy", "proxy"),
    "xet": ("RuntimeError: Data processing error: CAS service error : Request failed after 5 "
            "retries: error sending request for url (https://cas-server.xethub.hf.co/v1/x)",
            "model-download", "Hugging Face"),
    "locked": ("NCCL WARN NET/OFI Couldn't open a fabric access domain. RC: -12, ERROR: Cannot "
               "allocate memory", "efa-memlock", "lock memory"),
    "actor": ("core_worker.cc: The actor or task with ID ffff cannot be scheduled right now. It "
              "requires {GPU: 2.0} for placement", "ray-infeasible", "more than its nodes have"),
    "hub": ("requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', "
            "port=443): Max retries exceeded with url: /api/models/x (Caused by "
            "NameResolutionError(\"Failed to resolve 'huggingface.co' ([Errno -3] Temporary "
            'failure in name resolution)"))', "model-download", "DNS"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_a_log_names_is_named(name):
    text, rule, cause = NAMES[name]
    body, logs = crashing(text=text + "\n")
    check(snapshot(body, node(), logs=logs), rule, cause=cause, evidence=text[:60])


def test_a_job_that_fails_in_words_that_nobody_knows():
    body = job("train", failed="NewReason", message="it is {over} now")
    assert "{over}" in str(diagnose(snapshot(body, node())))
    policy = job("train", failed="PodFailurePolicy", message="Container main for pod demo/train-x "
                 "failed with exit code 42 matching FailJob rule at index 0")  # fmt: skip
    check(snapshot(policy, node()), "job-failure-policy", cause="exit code 42")


@pytest.mark.parametrize("words", ["Could not connect to server", "Couldn't connect to server"])
def test_who_dials_a_service_with_the_wrong_port_is_a_consequence(words):
    said = f"curl: (7) Failed to connect to vllm port 80 after 2 ms: {words}\n"
    client, logs = crashing("client-0", 7, said, labels={"app": "client"})
    server = pod(labels={"app": "vllm"}, ready=True, statuses=[running(250, ready=True)],
                 containers=[container(ports=[{"containerPort": 8080}])])  # fmt: skip
    wrong = service(selector={"app": "vllm"}, port=80, target=9000)
    check(snapshot(client, server, wrong, node(), logs=logs), "service-target-port", cause="9000")


def test_the_toleration_is_for_the_workers_taint_and_of_its_effect():
    waits = pending("0/2 nodes are available: 2 node(s) had untolerated taint(s).")
    control = node("c", taints=[("node-role.kubernetes.io/control-plane", "", "NoSchedule")])
    worker = node("w", taints=[("dedicated", "training", "NoExecute")])
    found = check(snapshot(waits, control, worker), "taint-not-tolerated", cause="dedicated=train")
    assert "key: dedicated, operator: Exists, effect: NoExecute" in found[0].fix
    only = check(snapshot(waits, control), "taint-not-tolerated", cause="control-plane")
    assert "effect: NoSchedule" in only[0].fix


@pytest.mark.parametrize("warning", [
    "libibverbs: Warning: RLIMIT_MEMLOCK is 8192 bytes. This will severely limit registrations.",
    "WARNING: Retrying (Retry(total=4)) after connection broken by 'ProxyError('Unable to connect "
    "to proxy', OSError('Tunnel'))': /simple/x/",
])  # fmt: skip
def test_a_warning_on_the_way_is_not_the_cause(warning):
    body, logs = crashing(text=f"{warning}\nModuleNotFoundError: No module named 'x'\n")
    check(snapshot(body, node(), logs=logs), "module-missing", cause="'x'")


def test_what_pydantic_finds_wrong_is_quoted():
    body, logs = crashing(text="pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
                          "  Value error, Unknown dtype: 'fp16' [type=value_error]\n"
                          "    For further information visit the page\n")  # fmt: skip
    check(snapshot(body, node(), logs=logs), "container-exit", cause="Unknown dtype: 'fp16'")


SETUPS = {
    "account": ("FailedMount", 'MountVolume.SetUp failed for volume "kube-api-access-x" : failed '
                'to fetch token: serviceaccounts "reader" not found', "service-account-missing",
                "'reader'"),
    "device": ("FailedPrepareDynamicResources", "Failed to prepare dynamic resources: DRA driver "
               "gpu.nvidia.com is not registered", "resource-claim-prepare", "gpu.nvidia.com"),
}  # fmt: skip


@pytest.mark.parametrize("name", SETUPS)
def test_what_a_node_cannot_make_ready(name):
    reason, words, rule, cause = SETUPS[name]
    body = pod(phase="Pending", statuses=[waiting("ContainerCreating")])
    said = event("Pod/vllm-0", reason, words)
    check(snapshot(body, node(), said), rule, cause=cause, evidence=words)


def test_an_init_container_that_ends_well_beside_a_start_error():
    body = pod(phase="Running", inits=[status("prepare", ended(0), ready=True)], statuses=[
        status(state={"waiting": {"reason": "CrashLoopBackOff"}},
               last=ended(128, "StartError", 'exec: "/opt/app": is a directory'), restarts=3)],
    )  # fmt: skip
    check(snapshot(body, node()), "command-not-found", cause="folder")
