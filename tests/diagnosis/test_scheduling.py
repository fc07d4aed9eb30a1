"""Pods that no node takes. Messages: kube-scheduler's `FitError` and its plugins' reasons.

Wordings as in kubernetes/kubernetes issues 116133, 127380 (taints), 41070, and the plugins'
sources (`ErrReason...`); the tail after the reasons is that of Kubernetes 1.36 as recorded.
"""

import pytest
from snapshots import (
    asks,
    at,
    check,
    claim,
    container,
    event,
    mounts,
    node,
    pending,
    pod,
    running,
    snapshot,
)

TAIL = (". no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not "
        "helpful for scheduling.")  # fmt: skip
OLD_TAIL = ". preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pod."


def gpu_pod(message, gpus=1, **more):
    return pending(message, containers=[container(resources=asks(gpu=gpus))], **more)


def message(*reasons, tail=TAIL):
    return f"0/3 nodes are available: {', '.join(reasons)}{tail}"


CASES = {
    "cpu": ("3 Insufficient cpu", "insufficient-cpu"),
    "memory": ("3 Insufficient memory", "insufficient-memory"),
    "ephemeral": ("3 Insufficient ephemeral-storage", "insufficient-ephemeral-storage"),
    "hugepages": ("3 Insufficient hugepages-2Mi", "insufficient-hugepages-2Mi"),
    "too many pods": ("3 Too many pods", "too-many-pods"),
    "selector": ("3 node(s) didn't match Pod's node affinity/selector", "node-selector"),
    "node name": ("3 node(s) didn't match the requested node name", "node-selector"),
    "taint": ("3 node(s) had untolerated taint {dedicated: gpu}", "taint-not-tolerated"),
    "taint, no value": ("3 node(s) had untolerated taint {nvidia.com/gpu: }",
                        "taint-not-tolerated"),
    "taint, not named": ("3 node(s) had untolerated taint(s)", "taint-not-tolerated"),
    "taint, old": ("3 node(s) had taint {a: b}, that the pod didn't tolerate",
                   "taint-not-tolerated"),
    "control plane only": ("1 node(s) had untolerated taint {node-role.kubernetes.io/"
                           "control-plane: }", "taint-not-tolerated"),
    "not ready": ("3 node(s) had untolerated taint {node.kubernetes.io/not-ready: }",
                  "node-not-ready"),
    "unreachable": ("3 node(s) had untolerated taint {node.kubernetes.io/unreachable: }",
                    "node-unreachable"),
    "disk": ("3 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }",
             "node-disk-pressure"),
    "cordoned": ("3 node(s) were unschedulable", "nodes-cordoned"),
    "cordon taint": ("3 node(s) had untolerated taint {node.kubernetes.io/unschedulable: }",
                     "nodes-cordoned"),
    "affinity": ("3 node(s) didn't match pod affinity rules", "pod-affinity"),
    "anti-affinity": ("3 node(s) didn't match pod anti-affinity rules", "pod-anti-affinity"),
    "existing anti": ("3 node(s) didn't satisfy existing pods anti-affinity rules",
                      "pod-anti-affinity"),
    "spread": ("3 node(s) didn't match pod topology spread constraints", "topology-spread"),
    "spread label": ("3 node(s) didn't match pod topology spread constraints (missing required "
                     "label)", "topology-spread"),
    "zone": ("3 node(s) had volume node affinity conflict", "volume-zone"),
    "no pv": ("3 node(s) didn't find available persistent volumes to bind", "volume-not-found"),
    "volumes": ("3 node(s) exceed max volume count", "too-many-volumes"),
    "storage": ("3 node(s) did not have enough free storage", "storage-full"),
    "port": ("3 node(s) didn't have free ports for the requested pod ports", "host-port-taken"),
    "claims": ("3 cannot allocate all claims", "resource-claim"),
    "something new": ("3 node(s) didn't please the oracle", "scheduler-refuses"),
}  # fmt: skip


@pytest.mark.parametrize("tail", [TAIL, OLD_TAIL, "."], ids=["1.36", "older", "bare"])
@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_every_reason_has_a_rule(case, tail):
    reason, rule = CASES[case]
    text = message(reason, tail=tail)
    found = check(snapshot(pending(text)), rule, evidence=text, objects=["Pod/vllm-0"])
    assert found.verdict == "problems"


def test_a_resource_that_no_node_has_is_not_one_that_is_taken():
    text = message("3 Insufficient nvidia.com/gpu")
    check(snapshot(gpu_pod(text), node()), "gpu-not-offered", cause="no node of the cluster offers")
    check(snapshot(gpu_pod(text), node(gpu=0)), "gpu-not-offered", cause="device plugin")
    check(snapshot(gpu_pod(text), node(gpu=8)), "insufficient-gpu", cause="other pods hold it")
    check(snapshot(gpu_pod(text, gpus=16), node(gpu=8)), "gpu-too-large", cause="8 nvidia.com/gpu")
    check(snapshot(gpu_pod(text)), "insufficient-gpu")  # the nodes may not be listed


def test_efa_devices_and_too_much_memory():
    efa = pending(message("3 Insufficient vpc.amazonaws.com/efa"),
                  containers=[container(resources=asks(efa=4))])  # fmt: skip
    check(snapshot(efa, node(gpu=8)), "device-not-offered", cause="EFA devices")
    big = pending(message("1 Insufficient memory"),
                  containers=[container(resources=asks(memory="512Gi"))])  # fmt: skip
    check(snapshot(big, node()), "memory-too-large", cause="32 GiB")
    cpus = pending(message("1 Insufficient cpu"), containers=[container(resources=asks(cpu=4))])
    check(snapshot(cpus, node()), "insufficient-cpu", cause="other pods hold it")


def test_gpu_nodes_with_a_taint_lack_a_toleration_not_gpus():
    text = message("2 Insufficient nvidia.com/gpu", "1 node(s) had untolerated taint {nvidia.com/"
                   "gpu: true}")  # fmt: skip
    nodes = [node("a"), node("b"),
             node("c", gpu=8, taints=[("nvidia.com/gpu", "true", "NoSchedule")])]  # fmt: skip
    check(snapshot(gpu_pod(text), *nodes), "taint-not-tolerated", cause="nvidia.com/gpu=true")
    check(snapshot(gpu_pod(text)), "taint-not-tolerated")
    tolerated = gpu_pod(text, tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}])
    check(snapshot(tolerated, *nodes), "insufficient-gpu")


def test_gpus_in_use_beside_a_control_plane():
    text = message("2 Insufficient nvidia.com/gpu", "1 node(s) had untolerated taint {node-role."
                   "kubernetes.io/control-plane: }")  # fmt: skip
    nodes = [node("a", gpu=8), node("b", gpu=8), node("cp", taints=[
        ("node-role.kubernetes.io/control-plane", "", "NoSchedule")])]  # fmt: skip
    check(snapshot(gpu_pod(text), *nodes), "insufficient-gpu")
    check(snapshot(gpu_pod(text)), "insufficient-gpu")


def test_a_selector_that_excludes_the_gpu_nodes():
    text = message("2 node(s) didn't match Pod's node affinity/selector",
                   "1 Insufficient nvidia.com/gpu")  # fmt: skip
    kind = "node.kubernetes.io/instance-type"
    nodes = [node("a", gpu=8, labels={kind: "p4d.24xlarge"}), node("b", gpu=8, labels={
        kind: "p4d.24xlarge"}), node("c", labels={kind: "p5.48xlarge"})]  # fmt: skip
    check(snapshot(gpu_pod(text, nodeSelector={kind: "p5.48xlarge"}), *nodes), "node-selector")
    only = message("3 node(s) didn't match Pod's node affinity/selector")
    check(snapshot(gpu_pod(only, nodeSelector={kind: "p6.48xlarge"}), *nodes), "node-selector",
          cause="nodes have p4d.24xlarge, p5.48xlarge")  # fmt: skip


def test_no_nodes_and_gates_and_schedulers():
    check(snapshot(pending("no nodes available to schedule pods")), "no-nodes")
    gated = pending("Scheduling is blocked due to non-empty scheduling gates",
                    reason="SchedulingGated", schedulingGates=[{"name": "kueue.x-k8s.io/admission"}]
                    )  # fmt: skip
    check(snapshot(gated), "scheduling-gate", cause="kueue.x-k8s.io/admission")
    silent = pod(phase="Pending", node=None, schedulerName="volcano")
    silent["status"]["conditions"] = []
    check(snapshot(silent), "scheduler-missing", cause="volcano")
    new = pod(phase="Pending", node=None, age=2)
    new["status"]["conditions"] = []
    found = check(snapshot(new))
    assert found.verdict == "healthy" and "has not come to it" in found.notes[0]


def test_the_words_may_be_only_in_the_event():
    body = pod(phase="Pending", node=None)
    body["status"]["conditions"] = []
    told = event("Pod/vllm-0", "FailedScheduling", message("3 Insufficient cpu"))
    check(snapshot(body, told), "insufficient-cpu")


CLAIMS = {
    "unknown claim": ('0/3 nodes are available: persistentvolumeclaim "shared" not found. not '
                      "found", "pvc-missing"),
    "going": ('0/3 nodes are available: persistentvolumeclaim "shared" is being deleted. not found',
              "pvc-deleting"),
    "pv gone": ('0/3 nodes are available: persistentvolumeclaim "shared" bound to non-existent '
                'persistentvolume "pvc-1". not found', "volume-lost"),
    "unbound": ("0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not "
                "found", "pvc-unbound"),
}  # fmt: skip


@pytest.mark.parametrize("case", CLAIMS, ids=list(CLAIMS))
def test_claims_that_keep_a_pod_waiting(case):
    text, rule = CLAIMS[case]
    check(snapshot(pending(text, **mounts())), rule,
          objects=["PersistentVolumeClaim/shared", "Pod/vllm-0"])  # fmt: skip


UNBOUND = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
PVC_EVENTS = {
    "no such class": ("ProvisioningFailed", 'storageclass.storage.k8s.io "gp3" not found',
                      "storage-class-missing"),
    "no default": ("FailedBinding", "no persistent volumes available for this claim and no storage "
                   "class is set", "no-default-storage-class"),
    "mode": ("ProvisioningFailed", 'failed to provision volume with StorageClass "gp3": rpc error: '
             "code = InvalidArgument desc = Volume capabilities MULTI_NODE_MULTI_WRITER not "
             "supported. Only AccessModes[ReadWriteOnce] supported.", "volume-access-mode"),
    "rights": ("ProvisioningFailed", 'failed to provision volume with StorageClass "gp3": rpc '
               "error: code = Internal desc = Could not create volume: UnauthorizedOperation: You "
               "are not authorized to perform this operation", "volume-forbidden"),
    "quota": ("ProvisioningFailed", 'failed to provision volume with StorageClass "gp3": rpc error:'
              " code = Internal desc = VolumeLimitExceeded: maximum number", "volume-quota"),
    "other": ("ProvisioningFailed", 'failed to provision volume with StorageClass "gp3": the dog '
              "ate it", "provisioning-failed"),
    "no driver": ("ExternalProvisioning", "Waiting for a volume to be created either by the "
                  "external provisioner 'ebs.csi.aws.com' or manually by the system administrator. "
                  "If volume creation is delayed, please verify that the provisioner is running and"
                  " correctly registered.", "provisioner-missing"),
    "mismatch": ("VolumeMismatch", 'Cannot bind to requested volume "pv-1": requested PV is too '
                 "small", "volume-mismatch"),
}  # fmt: skip


@pytest.mark.parametrize("case", PVC_EVENTS, ids=list(PVC_EVENTS))
def test_the_claim_is_the_cause_and_its_pods_are_named(case):
    reason, text, rule = PVC_EVENTS[case]
    pods = [pending(UNBOUND, f"vllm-{i}", owner="ReplicaSet/vllm-5d", **mounts()) for i in (0, 1)]
    told = event("PersistentVolumeClaim/shared", reason, text)
    check(snapshot(*pods, claim(), told), rule, evidence=text,
          objects=["PersistentVolumeClaim/shared", "Pod/vllm-0", "Pod/vllm-1"])  # fmt: skip


def test_a_claim_that_waits_for_its_first_pod_is_well():
    told = event("PersistentVolumeClaim/shared", "WaitForFirstConsumer",
                 "waiting for first consumer to be created before binding", kind="Normal"
    )  # fmt: skip
    found = check(snapshot(claim(), told))
    assert "until a pod mounts it" in found.notes[0]
    text = message("3 Insufficient cpu")
    check(snapshot(claim(), told, pending(text, **mounts())), "insufficient-cpu")


def test_a_claim_that_was_deleted_under_its_pods():
    going = claim(phase="Bound")
    going["metadata"] |= {
        "deletionTimestamp": at(9),
        "finalizers": ["kubernetes.io/pvc-protection"],
    }
    check(snapshot(going, pod(ready=True, statuses=[running(ready=True)], **mounts())),
          "pvc-deleting", objects=["PersistentVolumeClaim/shared", "Pod/vllm-0"])  # fmt: skip


def test_a_pod_that_waits_for_a_volume_that_nobody_makes():
    silent = pod(phase="Pending", node=None, **mounts())
    silent["status"]["conditions"] = []
    told = event("PersistentVolumeClaim/shared", *PVC_EVENTS["no driver"][:2])
    check(snapshot(silent, claim(), told), "provisioner-missing")


def test_a_lost_volume():
    check(snapshot(claim(phase="Lost"), event(
        "PersistentVolumeClaim/shared", "ClaimLost",
        "Bound claim has lost its PersistentVolume. Data on the volume is lost!")), "volume-lost"
    )  # fmt: skip


def test_nodes_that_are_down_are_the_cause_of_what_waits_for_them():
    text = message("1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }")
    down = node("node-a", ready="Unknown", message="Kubelet stopped posting node status.",
                taints=[("node.kubernetes.io/unreachable", "", "NoSchedule")])  # fmt: skip
    lost = pod("vllm-1", ready=False, statuses=[running()])
    check(snapshot(pending(text), lost, down), "node-not-ready", cause="stopped reporting",
          objects=["Node/node-a", "Pod/vllm-1"])  # fmt: skip


def test_pods_on_a_node_that_is_gone():
    lost = pod("vllm-1", node="node-z", ready=False, statuses=[running()], conditions=[
        {"type": "Ready", "status": "False", "reason": "NodeNotReady"}])  # fmt: skip
    check(snapshot(lost, node("node-a")), "node-lost", objects=["Node/node-z", "Pod/vllm-1"])


def test_pressure_and_what_it_evicted():
    evicted = [pod(f"vllm-{i}", phase="Failed", owner="ReplicaSet/vllm-5d", reason="Evicted",
                   message="The node was low on resource: memory. Threshold quantity: 100Mi, "
                   "available: 80Mi. Container main was using 12Gi, request is 1Gi")
               for i in range(3)]  # fmt: skip
    check(snapshot(*evicted, node(pressure="MemoryPressure")), "evicted", cause="memory",
          objects=["Node/node-a", "Pod/vllm-2"])  # fmt: skip
    check(snapshot(node(pressure="DiskPressure")), "node-pressure", cause="disk space")
    full = pod(phase="Failed", reason="Evicted",
               message='Usage of EmptyDir volume "shm" exceeds the limit "1Gi". ')  # fmt: skip
    check(snapshot(full, node()), "ephemeral-storage-limit", cause="'shm'")
    pod_limit = pod(phase="Failed", reason="Evicted", message="Pod ephemeral local storage usage "
                    "exceeds the total limit of containers 2Gi. ")  # fmt: skip
    check(snapshot(pod_limit, node()), "ephemeral-storage-limit")


DISRUPTIONS = {
    "shutdown": ({"reason": "Terminated", "message": "Pod was terminated in response to imminent "
                  "node shutdown."}, "", "node-shutdown"),
    "preempted": ({}, "PreemptionByScheduler", "preempted"),
    "taint manager": ({}, "DeletionByTaintManager", "node-lost"),
    "drain": ({}, "EvictionByEvictionAPI", "drained"),
    "deadline": ({"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than "
                  "the specified deadline"}, "", "pod-deadline"),
    "refused": ({"reason": "UnexpectedAdmissionError", "message": "Pod was rejected: Allocate "
                 "failed due to can't allocate unhealthy devices nvidia.com/gpu"}, "",
                "device-unhealthy"),
    "no healthy": ({"reason": "UnexpectedAdmissionError", "message": "Pod was rejected: Allocate "
                    "failed due to no healthy devices present; cannot allocate unhealthy devices "
                    "nvidia.com/gpu, which is unexpected"}, "", "device-unhealthy"),
    "plugin": ({"reason": "UnexpectedAdmissionError", "message": "Pod was rejected: Allocate "
                "failed due to rpc error: code = Unavailable desc = connection error, which is "
                "unexpected"}, "", "node-refused"),
    "numa": ({"reason": "TopologyAffinityError", "message": "Pod was rejected: Resources cannot "
              "be allocated with Topology locality"}, "", "node-topology"),
    "labels": ({"reason": "NodeAffinity", "message": "Pod was rejected: Predicate NodeAffinity "
                "failed: node(s) didn't match Pod's node affinity/selector"}, "", "node-refused"),
    "out of": ({"reason": "OutOfnvidia.com/gpu", "message": "Pod was rejected: Node didn't have "
                "enough resource: nvidia.com/gpu, requested: 1, used: 8, capacity: 8"}, "",
               "node-refused"),
}  # fmt: skip


@pytest.mark.parametrize("case", DISRUPTIONS, ids=list(DISRUPTIONS))
def test_pods_that_somebody_ended(case):
    fields, why, rule = DISRUPTIONS[case]
    target = {"type": "DisruptionTarget", "status": "True", "reason": why, "message": f"by {why}"}
    body = pod(phase="Failed", conditions=[target] if why else [], **fields)
    check(snapshot(body, node()), rule)
    # Its Deployment has another one: nothing is wrong any more.
    body["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "v", "controller": True}]
    new = pod("vllm-9", owner="ReplicaSet/v", ready=True, age=20, statuses=[running(ready=True)])
    assert check(snapshot(body, new, node())).verdict == "healthy"


def test_pods_that_do_not_go():
    check(snapshot(pod(deleted=600, finalizers=["example.com/hold"]), node()), "stuck-finalizer",
          cause="example.com/hold")  # fmt: skip
    check(snapshot(pod(deleted=600), node(), event(
        "Pod/vllm-0", "FailedKillPod", "error killing pod: failed to \"KillContainer\"")),
        "stuck-terminating", evidence="KillContainer")  # fmt: skip
    check(snapshot(pod(deleted=-20), node()))
    assert at(0).startswith("2026-11-21")
