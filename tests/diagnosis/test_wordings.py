"""Wordings that no recording has: autoscalers of nodes, watchers, trainings, network policies."""

import pytest
from snapshots import (
    asks,
    at,
    check,
    condition,
    container,
    crash_loop,
    crashing,
    event,
    node,
    pending,
    pod,
    running,
    service,
    snapshot,
    waiting,
)

from workshop_lib.production.diagnosis.policies import Peer, blocking
from workshop_lib.production.diagnosis.view import View

NCCL = "train-0:88:120 [0] "
CORE = "(EngineCore_DP0 pid=272) ERROR 11-21 03:57:40 [core.py:866] "
LOGS = {
    "batch": ("AssertionError: num_prompts_per_step (5) * num_generations_per_prompt (4) = 20 must "
              "be divisible by train_global_batch_size (16)", "batch-not-divisible"),
    "key": ("omegaconf.errors.ConfigAttributeError: Key 'polciy' is not in struct", "config-key"),
    "override": ("hydra.errors.ConfigCompositionException: Could not override 'grpo.stepz'.",
                 "config-key"),
    "yaml": ("yaml.scanner.ScannerError: mapping values are not allowed here", "config-syntax"),
    "no variable": ("KeyError: 'checkpoint_dir'", "container-exit"),
    "tracker": ("wandb.errors.UsageError: api_key not configured (no-tty).", "tracker-login"),
    "nan": ("RuntimeError: probability tensor contains either `inf`, `nan` or element < 0",
            "loss-not-finite"),
    "rights": ('{"message":"pods is forbidden: User \\"system:serviceaccount:demo:default\\" '
               'cannot list resource \\"pods\\" in API group"}', "rbac-forbidden"),
    "same gpu": (NCCL + "NCCL WARN Duplicate GPU detected : rank 1 and rank 0 both on CUDA device "
                 "1b0\nncclInvalidUsage: This usually reflects invalid usage.",
                 "nccl-duplicate-gpu"),
    "versions": (NCCL + "NCCL WARN Mismatched NCCL version detected : rank 1 version 22705",
                 "nccl-version-mismatch"),
    "interface": ("NCCL WARN Bootstrap : no socket interface found", "nccl-interface"),
    "fabric": ("RuntimeError: Error 802: system not yet initialized", "gpu-fabric"),
    "client": ("RuntimeError: Python minor versions differ between client and server: client is "
               "3.11.4, server is 3.12.9", "ray-version-mismatch"),
    "runtime env": ("ray.exceptions.RuntimeEnvSetupError: Failed to set up runtime environment.",
                    "ray-runtime-env"),
    "lora": ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "lora"),
    "fp8": (CORE + "ValueError: The quantization method fp8 is not supported for the current GPU.",
            "quantization"),
    "template": ("ValueError: The supplied chat template string (/t.jinja) appears path-like, but "
                 "doesn't exist!", "chat-template"),
    "429": ("huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url: "
            "https://huggingface.co/api/models/x", "hf-rate-limit"),
    "value": ("vllm serve: error: argument --tensor-parallel-size/-tp: invalid int value: 'two'",
              "vllm-arguments"),
    "clock": ("requests.exceptions.SSLError: HTTPSConnectionPool(host='huggingface.co', port=443): "
              "Max retries exceeded (Caused by SSLError(SSLCertVerificationError(1, '[SSL: "
              "CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate is not yet "
              "valid')))", "certificate"),
    "glibc": ("/app/server: /lib/libc.so.6: version `GLIBC_2.38' not found (required by server)",
              "module-missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_what_the_last_run_wrote(name):
    text, rule = LOGS[name]
    body, logs = crashing(text=f"{text}\n", owner="Job/train")
    check(snapshot(body, node(), logs=logs), rule, evidence=text.splitlines()[0][:60])


def test_a_dead_engine_is_shown_with_the_first_error_of_its_log():
    text = (
        f"{CORE}EngineCore failed to start.\n{CORE}RuntimeError: the moon is full\n"
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause.\n"
    )
    body, logs = crashing(text=text)
    check(snapshot(body, node(), logs=logs), "engine-dead", cause="the moon is full",
          evidence="the moon is full")  # fmt: skip


def test_the_server_is_named_by_the_lines_beside_the_error():
    text = (
        "error sending request for url (https://pypi.org/simple/vllm/)\n"
        "dns error: failed to lookup address information: Name or service not known\n"
    )
    body, logs = crashing(text=text)
    check(snapshot(body, node(), logs=logs), "name-not-resolved", cause="pypi.org")


def test_a_running_log_that_got_over_a_refused_connection_is_healthy():
    up = pod(statuses=[running(900, ready=True)], ready=True, age=960.0)
    said = "Connection refused, retrying\nConnected to the head\nServing\n"
    check(snapshot(up, node(), logs={"vllm-0/main": said}))


UNSCHEDULED = {
    "volume": ("2 node(s) didn't match PersistentVolume's node affinity", "volume-zone"),
    "plugin": ("2 node(s) didn't satisfy plugin(s) [NodeAffinity]", "node-selector"),
    "claim": ('resourceclaim "gpu-claim" not found', "resource-claim"),
    "wait": ('waiting for dynamic resource controller to create the resourceclaim "x"',
             "resource-claim"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSCHEDULED)
def test_more_of_the_schedulers_reasons(name):
    reason, rule = UNSCHEDULED[name]
    message = f"0/2 nodes are available: {reason}. preemption: 0/2 nodes are available: 2 x."
    check(snapshot(pending(message), node("a"), node("b")), rule, evidence=reason)


def test_a_node_that_is_being_added_is_waited_for_and_one_that_cannot_be_is_said():
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: none."
    waits = pending(message, containers=[container(resources=asks(gpu=1))])
    comes = event("Pod/vllm-0", "TriggeredScaleUp", "pod triggered scale-up: [{gpu 0->1}]",
                  kind="Normal", ago=60)  # fmt: skip
    assert "gpu 0->1" in check(snapshot(waits, node(gpu=8), comes)).notes[0]
    full = event("Pod/vllm-0", "NotTriggerScaleUp", "1 max node group size reached", ago=10)
    found = check(snapshot(waits, node(gpu=8), comes, full), "insufficient-gpu")
    assert "1 max node group size reached" in found[0].evidence
    karpenter = pending("", containers=[container(resources=asks(gpu=1))])
    says = event("Pod/vllm-0", "FailedScheduling", 'incompatible with nodepool "default"')
    check(snapshot(karpenter, node(), says), "no-node-group", evidence="nodepool")


def test_watchers_of_nodes_and_the_broken_gpu():
    sick = node()
    sick["status"]["conditions"].append({
        "type": "AcceleratedHardwareReady", "status": "False", "reason": "NvidiaXID79Error",
        "message": "GPU has fallen off the bus", "lastTransitionTime": at(100)})  # fmt: skip
    check(snapshot(sick), "gpu-fault", objects=["Node/node-a"])
    told = event("Node/node-a", "NVMLFault", "NVIDIA Xid error 48: double bit ECC", ago=60)
    check(snapshot(node(), told), "gpu-fault")
    stuck = node()
    stuck["status"]["conditions"].append({"type": "KernelDeadlock", "status": "True",
                                          "message": "task docker:7 blocked"})  # fmt: skip
    check(snapshot(stuck), "node-unhealthy", cause="blocked")


def test_a_node_that_nobody_uses_comes_after_what_is_broken_here():
    spare = node("node-b", ready="Unknown", message="Kubelet stopped posting node status.")
    body, logs = crashing(text="MemoryError\n")
    check(snapshot(body, node(), spare, logs=logs), "out-of-memory", "node-not-ready")


def test_what_a_pod_waits_for_without_a_word():
    roots = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt"}}
    volumes = [{"name": "c", "configMap": {"name": "recipe"}}]
    still = pod(statuses=[waiting("ContainerCreating")], phase="Pending", age=4000.0,
                volumes=volumes)  # fmt: skip
    check(snapshot(still, node(), roots), "configmap-missing", objects=["ConfigMap/recipe"])
    hook = pod(statuses=[crash_loop(137)], ready=False)
    failed = event("Pod/vllm-0", "FailedPostStartHook", "PostStartHook failed", field="main")
    check(snapshot(hook, failed, node()), "post-start-hook")
    pull = "pull access denied, repository does not exist or may require authorization"
    private = pod(statuses=[waiting("ImagePullBackOff", f"ErrImagePull: failed to resolve: {pull}")
                            ], phase="Pending")  # fmt: skip
    secret = event("Pod/vllm-0", "FailedToRetrieveImagePullSecret",
                   "Unable to retrieve some image pull secrets (regcred); attempting to pull the "
                   "image may not succeed.")  # fmt: skip
    check(snapshot(private, secret, node()), "image-unauthorized", objects=["Secret/regcred"])


# -- network policies --------------------------------------------------------------------------


def policy(name="rule", selects=None, namespace="demo", **spec):
    return {"kind": "NetworkPolicy", "metadata": {"name": name, "namespace": namespace}, "spec": {
        "podSelector": {"matchLabels": selects} if selects else {}, **spec}}  # fmt: skip


CLIENT = Peer("demo", {"app": "client"}, "10.0.0.5")
SERVER = Peer("demo", {"app": "vllm"}, "10.0.0.9", {"http": 8000})
FROM_CLIENT = {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}
ALLOWED = {
    "no policy": [],
    "of others": [policy(selects={"app": "redis"}, policyTypes=["Ingress"])],
    "of another namespace": [policy(namespace="prod", policyTypes=["Ingress"])],
    "admits": [policy(ingress=[FROM_CLIENT])],
    "everybody": [policy(ingress=[{}])],
    "a second one": [policy("deny", policyTypes=["Ingress"]), policy(ingress=[FROM_CLIENT])],
    "its port": [policy(ingress=[{**FROM_CLIENT, "ports": [{"port": 8000}]}])],
    "its port's name": [policy(ingress=[{"ports": [{"port": "http"}]}])],
    "a range": [policy(ingress=[{"ports": [{"port": 7000, "endPort": 9000}]}])],
    "its namespace": [policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {
        "kubernetes.io/metadata.name": "demo"}}}]}])],
    "its block": [policy(ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}]}])],
    "may send": [policy(selects={"app": "client"}, policyTypes=["Egress"], egress=[
        {"to": [{"podSelector": {"matchLabels": {"app": "vllm"}}}], "ports": [{"port": 8000}]}])],
}  # fmt: skip
KEPT = {
    "nothing": ([policy(policyTypes=["Ingress"])], "Ingress"),
    "by default": ([policy()], "Ingress"),
    "others": ([policy(ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "x"}}}]}])],
               "Ingress"),
    "another port": ([policy(ingress=[{**FROM_CLIENT, "ports": [{"port": 8080}]}])], "Ingress"),
    "UDP": ([policy(ingress=[{"ports": [{"port": 8000, "protocol": "UDP"}]}])], "Ingress"),
    "another namespace": ([policy(ingress=[{"from": [{"namespaceSelector": {"matchLabels": {
        "kubernetes.io/metadata.name": "prod"}}}]}])], "Ingress"),
    "a hole in the block": ([policy(ingress=[{"from": [{"ipBlock": {
        "cidr": "10.0.0.0/24", "except": ["10.0.0.5/32"]}}]}])], "Ingress"),
    "may not send": ([policy(selects={"app": "client"}, policyTypes=["Egress"])], "Egress"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_connections_that_policies_let_through(name):
    assert blocking(View({"networkpolicies": ALLOWED[name]}), CLIENT, SERVER, 8000) == []


@pytest.mark.parametrize("name", KEPT)
def test_connections_that_policies_keep_away(name):
    policies, way = KEPT[name]
    found = blocking(View({"networkpolicies": policies}), CLIENT, SERVER, 8000)
    assert found == [("NetworkPolicy/rule", way)]


def test_a_policy_is_the_cause_only_when_it_keeps_this_connection_away():
    listens = [container(ports=[{"containerPort": 8000}])]
    server = pod("vllm-0", labels={"app": "vllm"}, ready=True, age=960.0, containers=listens,
                 statuses=[running(900, ready=True)])  # fmt: skip
    client = pod("client-1", labels={"app": "client"}, ready=False, statuses=[crash_loop(28)])
    slow = {"client-1/main": "curl: (28) Failed to connect to vllm port 8000: Connection timed out"}
    every = (server, client, service("vllm"), node())
    check(snapshot(*every, policy("deny", policyTypes=["Ingress"]), logs=slow), "network-policy",
          cause="ingress", objects=["NetworkPolicy/deny"])  # fmt: skip
    check(snapshot(*every, policy(ingress=[FROM_CLIENT]), logs=slow), "connection-timeout")
    dns = {"client-1/main": "curl: (6) Could not resolve host: vllm"}
    only = policy("only-vllm", {"app": "client"}, policyTypes=["Egress"], egress=[
        {"to": [{"podSelector": {"matchLabels": {"app": "vllm"}}}]}])  # fmt: skip
    check(snapshot(*every, only, logs=dns), "network-policy", cause="port 53")


def test_autoscalers_say_what_they_lack():
    def scaler(*conditions):
        return {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "vllm"}, "spec": {
            "maxReplicas": 4, "scaleTargetRef": {"kind": "Deployment", "name": "vlm"}},
            "status": {"conditions": list(conditions)}}  # fmt: skip

    check(snapshot(scaler(condition("AbleToScale", False, "FailedGetScale", "vlm not found"))),
          "autoscaler-target", cause="'vlm'")  # fmt: skip
    check(snapshot(scaler(condition("ScalingActive", False, "FailedGetResourceMetric",
                                    "missing request for cpu in container main of Pod x"))),
          "autoscaler-no-request")  # fmt: skip
    found = check(snapshot(scaler(condition("ScalingLimited", True, "TooManyReplicas"))))
    assert "maximum of 4 replicas" in found.notes[0]
