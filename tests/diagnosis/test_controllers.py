"""Jobs, quota, Services and Ray's objects. Wordings: kube-controller-manager and the API server's
admission plugins 1.36, KubeRay 1.7 (kuberay 639, 3414), Serve's REST API of Ray 2.60.
"""

import pytest
from snapshots import (
    asks,
    at,
    check,
    condition,
    container,
    crashing,
    custom,
    deployment,
    ended,
    event,
    job,
    node,
    pending,
    pod,
    ray_pod,
    running,
    service,
    snapshot,
    status,
)

from workshop_lib.production.diagnosis import diagnose

QUOTA = ('Error creating: pods "vllm-5d-x" is forbidden: exceeded quota: workshop, requested: '
         "requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4, limited: requests.nvidia.com/"
         "gpu=4")  # fmt: skip
REFUSALS = {
    "quota": (QUOTA, "quota-exceeded"),
    "quota wants": ('Error creating: pods "x" is forbidden: failed quota: workshop: must specify '
                    "limits.cpu for: main; limits.memory for: main", "quota-needs-requests"),
    "limits": ('Error creating: pods "x" is forbidden: maximum memory usage per Container is 1Gi, '
               "but limit is 4Gi", "limit-range"),
    "limits, many": ('Error creating: pods "x" is forbidden: [maximum cpu usage per Container is 1,'
                     " but limit is 4, maximum memory usage per Container is 1Gi, but limit is 4Gi]"
                     , "limit-range"),
    "security": ('Error creating: pods "x" is forbidden: violates PodSecurity "restricted:latest": '
                 "allowPrivilegeEscalation != false (container \"main\" must set "
                 "securityContext.allowPrivilegeEscalation=false)", "pod-security"),
    "policy": ('Error creating: admission webhook "validate.kyverno.svc-fail" denied the request: '
               "resource Pod/demo/x was blocked due to the following policies", "webhook-denied"),
    "webhook": ('Error creating: Internal error occurred: failed calling webhook "mpod.elbv2.k8s.'
                'aws": failed to call webhook: Post "https://x": no endpoints available for service'
                ' "aws-load-balancer-webhook-service"', "webhook-down"),
    "account": ('Error creating: pods "x" is forbidden: error looking up service account demo/'
                'trainer: serviceaccount "trainer" not found', "service-account-missing"),
    "priority": ('Error creating: pods "x" is forbidden: no PriorityClass with name high was found',
                 "priority-class-missing"),
    "runtime": ('Error creating: pods "x" is forbidden: pod rejected: RuntimeClass "nvidia" not '
                "found", "runtime-class"),
    "invalid": ('Error creating: Pod "x" is invalid: spec.containers[0].image: Required value',
                "pod-invalid"),
    "else": ('Error creating: pods "x" is forbidden: User "y" cannot create resource "pods"',
             "not-allowed"),
    "other": ("Error creating: the moon is full", "pod-not-created"),
}  # fmt: skip


@pytest.mark.parametrize("owner", ["ReplicaSet/vllm-5d", "Job/vllm", "RayCluster/raycluster"])
@pytest.mark.parametrize("case", REFUSALS, ids=list(REFUSALS))
def test_pods_that_are_never_made(case, owner):
    text, rule = REFUSALS[case]
    told = event(owner, "FailedCreate", text)
    check(snapshot(told), rule, evidence=text, objects=[owner])
    # Its Service has nobody behind it, which is a consequence.
    check(snapshot(told, service("vllm")), rule)
    made = event(owner, "SuccessfulCreate", "Created pod: x", ago=2, kind="Normal")
    assert check(snapshot(told, made)).verdict == "healthy"


def test_a_deployments_quota_is_one_finding():
    body = deployment(conditions=[
        condition("ReplicaFailure", True, "FailedCreate", QUOTA.removeprefix("Error creating: ")),
        condition("Progressing", False, "ProgressDeadlineExceeded",
                  'ReplicaSet "vllm-5d" has timed out progressing.')])  # fmt: skip
    check(snapshot(event("ReplicaSet/vllm-5d", "FailedCreate", QUOTA), body, service()),
          "quota-exceeded", objects=["ResourceQuota/workshop", "Deployment/vllm"])  # fmt: skip
    well = deployment(available=1)
    refused = event("ReplicaSet/vllm-5d", "FailedCreate", QUOTA)
    assert check(snapshot(refused, well, ready_pod())).verdict == "healthy"


def test_a_ray_clusters_quota():
    text = ('pods "raycluster-head-x" is forbidden: exceeded quota: workshop, requested: '
            "limits.cpu=15, used: limits.cpu=60, limited: limits.cpu=10")  # fmt: skip
    check(snapshot(custom("RayCluster", "raycluster", state="failed", reason=text)),
          "quota-exceeded")  # fmt: skip
    told = event("RayCluster/raycluster", "FailedToCreateHeadPod", f"Failed to create head Pod "
                 f"demo/raycluster-head, {text}")  # fmt: skip
    check(snapshot(custom("RayCluster", "raycluster", [condition("HeadPodReady", False,
          "HeadPodNotFound", "Head Pod not found")]), told), "quota-exceeded")  # fmt: skip


JOBS = {
    "deadline": ("DeadlineExceeded", "Job was active longer than specified deadline",
                 "job-deadline"),
    "backoff": ("BackoffLimitExceeded", "Job has reached the specified backoff limit",
                "job-backoff-limit"),
    "policy": ("PodFailurePolicy", "Container main for pod demo/x failed with exit code 42 "
               "matching FailJob rule at index 0", "job-failure-policy"),
    "indexes": ("FailedIndexes", "Job has failed indexes", "job-failed-indexes"),
    "too many": ("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of "
                 "failed indexes", "job-failed-indexes"),
}  # fmt: skip


@pytest.mark.parametrize("case", JOBS, ids=list(JOBS))
def test_a_job_that_failed_and_left_no_pod(case):
    reason, text, rule = JOBS[case]
    check(snapshot(job(failed=reason, message=text)), rule, evidence=text, objects=["Job/vllm"])


def test_a_jobs_pods_explain_it_unless_it_stopped_them():
    text = "Job was active longer than specified deadline"
    stopped = pod(phase="Failed", owner="Job/vllm", policy="Never",
                  statuses=[status(state=ended(143, ago=19))])  # fmt: skip
    check(snapshot(job(failed="DeadlineExceeded", message=text), stopped), "job-deadline")
    crashed = pod(phase="Failed", owner="Job/vllm", policy="Never",
                  statuses=[status(state=ended(42, ago=40))])  # fmt: skip
    policy = "Container main for pod demo/vllm-0 failed with exit code 42 matching FailJob rule"
    check(snapshot(job(failed="PodFailurePolicy", message=policy), crashed), "job-failure-policy")
    oom = pod(phase="Failed", owner="Job/vllm", policy="Never",
              statuses=[status(state=ended(137, "OOMKilled"))])  # fmt: skip
    check(snapshot(job(failed="BackoffLimitExceeded", message="x"), oom), "oom-killed")
    check(snapshot(job(complete=True), oom))


def test_jobs_that_are_suspended_or_run_too_few_ranks():
    check(snapshot(job(suspend=True)), "job-suspended")
    ranks = job("ray", completionMode="Indexed", completions=4, parallelism=2)
    pods = [pod(f"ray-{i}", owner="Job/ray", ready=True, statuses=[running(ready=True)],
                annotations={"batch.kubernetes.io/job-completion-index": str(i)})
            for i in (0, 1)]  # fmt: skip
    assert check(snapshot(ranks, *pods)).verdict == "healthy"
    log = {"ray-0/main": "waiting for 4 nodes, 2 are here\n"}
    check(snapshot(ranks, *pods, logs=log), "job-parallelism", cause="rank 2, 3")
    missing = job("ray", completionMode="Indexed", completions=3, parallelism=3)
    check(snapshot(missing, *pods), "job-rank-missing", cause="rank 2")


def test_a_retry_that_works_is_no_fault():
    index = {"batch.kubernetes.io/job-completion-index": "0"}
    first = pod("vllm-0-a", phase="Failed", owner="Job/vllm", annotations=index, age=300,
                statuses=[status(state=ended(1))])  # fmt: skip
    second = pod("vllm-0-b", owner="Job/vllm", annotations=index, age=100, ready=True,
                 statuses=[running(90, ready=True)])  # fmt: skip
    found = check(snapshot(job(backoffLimit=3), first, second))
    assert "gone on without it" in found.notes[0]


# -- Services -------------------------------------------------------------------------------------


def ready_pod(**more):
    return pod(labels={"app": "vllm"}, ready=True, statuses=[running(ready=True)], **more)


def test_a_service_whose_selector_fits_no_pod():
    check(snapshot(service(selector={"app": "vlm"}), ready_pod()), "service-selector",
          cause="has app=vllm", objects=["Service/vllm", "Pod/vllm-0"])  # fmt: skip
    check(snapshot(service(selector={"tier": "web"}), ready_pod()), "service-selector")
    check(snapshot(service(), ready_pod()))


def test_a_service_whose_pods_are_broken_is_a_consequence():
    body, logs = crashing(text="No CUDA GPUs are available\n", labels={"app": "vllm"})
    check(snapshot(service(), body, logs=logs), "gpu-not-visible")
    check(snapshot(service(), pending("0/1 nodes are available: 1 Insufficient cpu.",
                                      labels={"app": "vllm"})), "insufficient-cpu")  # fmt: skip
    failed = pod(phase="Failed", labels={"app": "vllm"}, owner="Job/vllm",
                 statuses=[status(state=ended(137, "OOMKilled"))])  # fmt: skip
    check(snapshot(service(), failed, job(failed="BackoffLimitExceeded")), "oom-killed")


def test_services_of_what_is_over_or_scaled_to_zero_or_starts():
    done = pod(phase="Succeeded", labels={"app": "vllm"}, owner="Job/vllm",
               statuses=[status(state=ended(0))])  # fmt: skip
    check(snapshot(service(), done, job(complete=True)))
    check(snapshot(service(), deployment(replicas=0)), "scaled-to-zero",
          objects=["Service/vllm", "Deployment/vllm"])  # fmt: skip
    check(snapshot(service(selector={}), ready_pod()))
    assert "nobody is behind it yet" in check(snapshot(service(), deployment())).notes[0]
    check(snapshot(service(type="ExternalName"), ready_pod()))


def test_ports_of_a_service():
    named = container(ports=[{"name": "http", "containerPort": 8000}])
    check(snapshot(service(target="htpt"), ready_pod(containers=[named])), "service-target-port",
          cause="they have: http", evidence="htpt")  # fmt: skip
    check(snapshot(service(target="http"), ready_pod(containers=[named])))
    check(snapshot(service(target=8080), ready_pod(containers=[named])), "service-target-port",
          cause="port 8000")  # fmt: skip
    check(snapshot(service(port=80, target=8000), ready_pod(containers=[named])))
    words = container(args=["--port", "9000"])
    check(snapshot(service(target=8000), ready_pod(containers=[words])), "service-target-port")
    check(snapshot(service(target=9000), ready_pod(containers=[words])))
    check(snapshot(service(target=1234), ready_pod()))  # nothing says where it listens


def test_load_balancers():
    body = service(type="LoadBalancer")
    check(snapshot(body, ready_pod(), event(
        "Service/vllm", "SyncLoadBalancerFailed", "Error syncing load balancer: failed to ensure "
        "load balancer: could not find any suitable subnets")), "load-balancer")  # fmt: skip
    assert check(snapshot(body, ready_pod())).verdict == "healthy"


# -- Ray ------------------------------------------------------------------------------------------


def head(**more):
    return ray_pod("head", ready=True, statuses=[running(ready=True)], **more)


def ray_service(applications, ready=False, reason="ZeroServeEndpoints", ago=100.0, pend=False):
    key = "pendingServiceStatus" if pend else "activeServiceStatus"
    inner = {"rayClusterName": "raycluster", "applicationStatuses": applications}
    return custom("RayService", "llm", [condition("Ready", ready, reason, ago=ago)], **{key: inner})


def app(state, message="", **deployments):
    return {"status": state, "message": message, "serveDeploymentStatuses": deployments}


def test_serve_applications_that_fail():
    failed = app("DEPLOY_FAILED", "Deploying app 'llm' failed with exception:\nTraceback (most "
                 "recent call last):\n  x\nAttributeError: module 'app' has no attribute 'bild'\n"
    )  # fmt: skip
    check(snapshot(ray_service({"llm": failed}), head()), "serve-deploy-failed",
          evidence="AttributeError: module 'app' has no attribute 'bild'")  # fmt: skip
    module = app("DEPLOY_FAILED", "ModuleNotFoundError: No module named 'mymodel'")
    check(snapshot(ray_service({"llm": module}, pend=True), head()), "module-missing")
    sick = app("UNHEALTHY", LLM={"status": "UNHEALTHY", "message": "The deployment failed to start "
               "3 times in a row. Error:\nValueError: No available memory for the cache blocks."}
    )  # fmt: skip
    check(snapshot(ray_service({"llm": sick}), head()), "no-kv-cache", objects=["RayService/llm"])
    unknown = app("UNHEALTHY", LLM={"status": "UNHEALTHY", "message": "A replica failed its health "
                                    "check."})  # fmt: skip
    check(snapshot(ray_service({"llm": unknown}), head()), "serve-unhealthy")


def test_a_service_that_deploys_or_upgrades_is_well():
    found = check(snapshot(ray_service({"llm": app("DEPLOYING")}), head()))
    assert any("still deploying" in note for note in found.notes)
    body = ray_service({"llm": app("RUNNING")}, ready=True, reason="NonZeroServeEndpoints")
    body["status"]["conditions"].append(condition("UpgradeInProgress", True, "BothActivePending"))
    found = check(snapshot(body, head()))
    assert any("upgrade" in note for note in found.notes)


def test_a_service_that_never_becomes_ready():
    check(snapshot(ray_service({}, reason="InitializingTimeout"), head()), "ray-service-not-ready")
    worker = pending("0/1 nodes are available: 1 Insufficient cpu.", "raycluster-worker-x", labels={
        "ray.io/cluster": "raycluster"}, owner="RayCluster/raycluster")  # fmt: skip
    check(snapshot(ray_service({}, reason="InitializingTimeout"), head(), worker),
          "insufficient-cpu")  # fmt: skip


def test_ray_objects_that_are_wrong_or_that_nobody_looks_after():
    cluster = custom("RayCluster", "raycluster", rayClusterName="x")
    check(snapshot(cluster, event("RayCluster/raycluster", "InvalidRayClusterSpec", "The "
          "RayCluster spec is invalid: workerGroupSpec should have at least one container")),
          "ray-spec-invalid")  # fmt: skip
    orphan = custom("RayCluster", "raycluster")
    orphan["status"] = {}
    check(snapshot(orphan), "ray-operator-missing")
    check(snapshot(custom("RayCluster", "raycluster", spec={"suspend": True}, state="suspended")),
          "ray-suspended")  # fmt: skip


def test_ray_jobs():
    failed = custom("RayJob", "train", jobStatus="FAILED", reason="AppFailed", rayClusterName="c",
                    jobDeploymentStatus="Failed", message="Job entrypoint command failed with exit "
                    "code 1, last available logs (truncated to 20,000 chars):\nValueError: oops"
    )  # fmt: skip
    check(snapshot(failed), "ray-job-failed", evidence="ValueError: oops")
    failed["status"]["message"] += "\nray.exceptions.OutOfMemoryError: Task was killed"
    check(snapshot(failed), "ray-out-of-memory")
    done = custom("RayJob", "train", jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")
    check(snapshot(done))


def test_rays_own_state():
    why = "Unexpected termination: health check failed due to missing too many heartbeats"
    dead = {"nodes": [{"node_id": "a", "node_ip": "10.0.0.9", "state": "DEAD",
                       "state_message": why}]}  # fmt: skip
    check(snapshot(head(), ray=dead), "ray-worker-lost")
    lost = ray_pod("worker", phase="Failed", reason="Evicted", message="The node was low on "
                   "resource: memory.")  # fmt: skip
    check(snapshot(head(), lost, node(), ray=dead), "evicted")
    drained = {"nodes": [{"node_id": "a", "node_ip": "10.0.0.9", "state": "DEAD",
               "state_message": "Expected termination: received SIGTERM"}]}  # fmt: skip
    check(snapshot(head(), ray=drained))
    waiting_group = {"placement_groups": {"data": {"result": {"result": [{
        "placement_group_id": "ab", "name": "pg", "state": "PENDING",
        "bundles": [{"unit_resources": {"GPU": 8.0}}],
        "stats": {"scheduling_state": "INFEASIBLE"}}]}}}}  # fmt: skip
    check(snapshot(head(), ray=waiting_group), "ray-infeasible", cause="GPU")


def test_serves_own_status_and_its_maximum():
    config = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}
    full = {"applications": {"llm": {"status": "RUNNING", "deployments": {"LLM": {
        "status": "HEALTHY", "deployment_config": config,
        "replicas": [{"state": "RUNNING"}, {"state": "RUNNING"}]}}}}}  # fmt: skip
    found = check(snapshot(head(), serve=full))
    assert any("at its maximum of 2" in note for note in found.notes)
    bad = {"applications": {"llm": {"status": "DEPLOY_FAILED", "message": "no such import path"}}}
    check(snapshot(head(), serve=bad), "serve-deploy-failed")


def test_autoscalers_and_namespaces():
    scaler = {"kind": "HorizontalPodAutoscaler", "metadata": {"name": "v"}}
    blind = {**scaler, "status": {"conditions": [
        condition("ScalingActive", False, "FailedGetResourceMetric", "the HPA was unable to compute"
                  " the replica count: unable to get metrics for resource cpu")]}}  # fmt: skip
    check(snapshot(blind), "autoscaler-blind")
    going = {"kind": "Namespace", "metadata": {"name": "demo", "deletionTimestamp": at(99)},
             "status": {"conditions": [condition(
                 "NamespaceFinalizersRemaining", True, "SomeFinalizersRemain", "Some content in "
                 "the "
                 "namespace has finalizers remaining: x in 1 resource instances")]}}  # fmt: skip
    check(snapshot(going), "namespace-terminating", evidence="finalizers remaining")


def test_a_deployment_without_progress_and_without_a_reason():
    body = deployment(conditions=[condition("Progressing", False, "ProgressDeadlineExceeded",
                                            'ReplicaSet "v" has timed out progressing.')]
    )  # fmt: skip
    assert diagnose(snapshot(body)).verdict == "unknown"
    check(snapshot(body), "unknown")
    paused = deployment(paused=True, conditions=[condition("Progressing", True, "DeploymentPaused",
                                                           "Deployment is paused")])  # fmt: skip
    check(snapshot(paused), "deployment-paused")
    assert asks(gpu=1)["limits"] == {"nvidia.com/gpu": "1"}
