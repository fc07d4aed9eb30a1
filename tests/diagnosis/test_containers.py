"""Images, setup, exits and probes. Wordings: containerd 1.6 to 2.1 and kubelet 1.36 (recorded
where the recordings have them); registries' answers as in containerd/containerd and
kubernetes/kubernetes issues; runc's `unable to start container process`.
"""

import pytest
from snapshots import (
    asks,
    check,
    container,
    crash_loop,
    crashing,
    ended,
    event,
    job,
    node,
    pod,
    running,
    snapshot,
    status,
    waiting,
)

IMAGE = "vllm/vllm-openai:v0.25.1"
PULL = f'Back-off pulling image "{IMAGE}": ErrImagePull: '
RESOLVE = (f'failed to pull and unpack image "docker.io/{IMAGE}": failed to resolve reference '
           f'"docker.io/{IMAGE}": ')  # fmt: skip

PULLS = {
    "no tag": (RESOLVE + f"docker.io/{IMAGE}: not found", "image-not-found"),
    "rpc": (f'rpc error: code = NotFound desc = {RESOLVE}docker.io/{IMAGE}: not found',
            "image-not-found"),
    "manifest unknown": ("reading manifest v0.25.1 in docker.io/vllm: manifest unknown",
                         "image-not-found"),
    "denied": (RESOLVE + "pull access denied, repository does not exist or may require "
               "authorization: server message: insufficient_scope: authorization failed",
               "image-unauthorized"),
    "401": (RESOLVE + "unexpected status from HEAD request to https://ghcr.io/v2/x/manifests/1: "
            "401 Unauthorized", "image-unauthorized"),
    "ecr": (RESOLVE + "unexpected status from HEAD request to https://123456789012.dkr.ecr.us-"
            "west-2.amazonaws.com/v2/x/manifests/1: 403 Forbidden", "image-unauthorized"),
    "anonymous": (RESOLVE + "failed to authorize: failed to fetch anonymous token: unexpected "
                  "status: 401 Unauthorized", "image-unauthorized"),
    "rate": (RESOLVE + "failed to copy: httpReadSeeker: failed open: unexpected status code "
             "https://registry-1.docker.io/v2/x: 429 Too Many Requests - Server message: "
             "toomanyrequests: You have reached your unauthenticated pull rate limit.",
             "image-rate-limit"),
    "platform": (f'failed to pull and unpack image "docker.io/{IMAGE}": no match for platform in '
                 "manifest: not found", "image-platform"),
    "arm": ("no matching manifest for linux/arm64/v8 in the manifest list entries",
            "image-platform"),
    "disk": ("failed to copy: write /var/lib/containerd/io.containerd.content: no space left on "
             "device", "image-disk-full"),
    "dns": (RESOLVE + 'failed to do request: Head "https://reg.example/v2/x": dial tcp: lookup '
            "reg.example on 10.0.0.2:53: no such host", "image-registry-unreachable"),
    "timeout": (RESOLVE + 'failed to do request: Head "https://registry-1.docker.io/v2/x": dial tcp'
                " 3.94.224.37:443: i/o timeout", "image-registry-unreachable"),
    "tls": (RESOLVE + 'failed to do request: Head "https://reg:5000/v2/x": tls: failed to verify '
            "certificate: x509: certificate signed by unknown authority",
            "image-registry-untrusted"),
    "plain http": (RESOLVE + 'failed to do request: Head "https://reg:5000/v2/x": http: server '
                   "gave HTTP response to HTTPS client", "image-registry-untrusted"),
    "oracle": ("the oracle is silent", "image-pull"),
}  # fmt: skip


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
@pytest.mark.parametrize("case", PULLS, ids=list(PULLS))
def test_why_an_image_cannot_be_had(case, reason):
    words, rule = PULLS[case]
    text = words if reason == "ErrImagePull" else PULL + words
    body = pod(phase="Pending", ready=False, statuses=[waiting(reason, text)])
    check(snapshot(body), rule, evidence=words)
    # Older kubelets keep the runtime's words for the event.
    short = pod(phase="Pending", ready=False, statuses=[
        waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"')])  # fmt: skip
    told = event("Pod/vllm-0", "Failed", f'Failed to pull image "{IMAGE}": {words}')
    check(snapshot(short, told), rule, evidence=words)


def test_images_that_are_never_pulled_or_are_none():
    bad = waiting("InvalidImageName", 'Failed to apply default image tag "Repo/X:y:z": couldn\'t '
                  'parse image name "Repo/X:y:z": invalid reference format')  # fmt: skip
    check(snapshot(pod(phase="Pending", statuses=[bad])), "image-name-invalid")
    never = waiting("ErrImageNeverPull", f'Container image "{IMAGE}" is not present with pull '
                    "policy of Never")  # fmt: skip
    check(snapshot(pod(phase="Pending", statuses=[never])), "image-never-pulled")


def test_pods_with_the_same_image_are_one_finding_and_two_images_two():
    words = PULLS["no tag"][0]
    bodies = [pod(f"vllm-{i}", phase="Pending", statuses=[waiting("ErrImagePull", words)])
              for i in range(3)]  # fmt: skip
    found = check(snapshot(*bodies), "image-not-found")
    assert list(found[0].objects) == ["Pod/vllm-0", "Pod/vllm-1", "Pod/vllm-2"]
    other = pod("ray-0", phase="Pending", containers=[container(image="rayproject/ray:9")],
                statuses=[waiting("ErrImagePull", "docker.io/rayproject/ray:9: not found")]
    )  # fmt: skip
    check(snapshot(*bodies, other), "image-not-found", "image-not-found")


CONFIG = {
    "configmap": ('configmap "settings" not found', "configmap-missing", "ConfigMap/settings"),
    "secret": ('secret "hf-token" not found', "secret-missing", "Secret/hf-token"),
    "key": ("couldn't find key token in Secret demo/hf-token", "secret-key-missing",
            "Secret/hf-token"),
    "config key": ("couldn't find key model in ConfigMap demo/settings", "configmap-key-missing",
                   "ConfigMap/settings"),
    "root": ("container has runAsNonRoot and image will run as root (pod: \"vllm-0_demo(1)\", "
             "container: main)", "runs-as-root", "Pod/vllm-0"),
    "named user": ("container has runAsNonRoot and image has non-numeric user (ray), cannot verify "
                   "user is non-root", "runs-as-root", "Pod/vllm-0"),
    "else": ("the stars are wrong", "container-config", "Pod/vllm-0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIG, ids=list(CONFIG))
def test_containers_that_cannot_be_configured(case):
    text, rule, first = CONFIG[case]
    body = pod(phase="Pending", statuses=[waiting("CreateContainerConfigError", text)])
    check(snapshot(body), rule, evidence=text, objects=[first, "Pod/vllm-0"])


RUNC = ("failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        "runc create failed: unable to start container process: ")  # fmt: skip
STARTS = {
    "no program": (RUNC + 'exec: "vllm": executable file not found in $PATH: unknown',
                   "command-not-found"),
    "no file": (RUNC + 'exec: "/run.sh": stat /run.sh: no such file or directory: unknown',
                "command-not-found"),
    "not executable": (RUNC + 'exec: "/run.sh": permission denied: unknown', "command-not-allowed"),
    "platform": (RUNC + 'exec: "/run.sh": exec format error: unknown', "image-platform"),
    "gpu": (RUNC + "error during container init: error running prestart hook #0: exit status 1, "
            "stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: requirement "
            "error: unsatisfied condition: cuda>=12.8", "gpu-driver"),
    "mount": (RUNC + 'error mounting "/x" to rootfs at "/etc/passwd": not a directory: unknown',
              "workdir-or-mount"),
    "else": ("the runtime is on strike", "container-start"),
}  # fmt: skip


@pytest.mark.parametrize("case", STARTS, ids=list(STARTS))
def test_containers_that_cannot_be_started(case):
    text, rule = STARTS[case]
    body = pod(phase="Pending", statuses=[waiting("RunContainerError", text)])
    check(snapshot(body), rule, evidence=text)
    over = pod(phase="Failed", policy="Never",
               statuses=[status(state=ended(128, "StartError", text))])  # fmt: skip
    check(snapshot(over), rule, evidence=text)
    looping = pod(ready=False, statuses=[crash_loop(128, reason="StartError", message=text)])
    check(snapshot(looping), rule, evidence=text)


MOUNTS = {
    "configmap": ("FailedMount", 'MountVolume.SetUp failed for volume "conf" : configmap "settings"'
                  " not found", "configmap-missing"),
    "secret": ("FailedMount", 'MountVolume.SetUp failed for volume "token" : secret "hf" not found',
               "secret-missing"),
    "key": ("FailedMount", 'MountVolume.SetUp failed for volume "conf" : configmap references '
            "non-existent config key: a.yaml", "volume-key-missing"),
    "attach": ("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used '
               "by pod(s) vllm-9", "volume-multi-attach"),
    "driver": ("FailedMount", 'MountVolume.MountDevice failed for volume "pvc-1" : '
               "kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver"
               " name fsx.csi.aws.com not found in the list of registered CSI drivers",
               "csi-driver-missing"),
    "rights": ("FailedMount", 'MountVolume.SetUp failed for volume "s3" : rpc error: code = '
               "Internal desc = Could not mount: AccessDenied", "volume-forbidden"),
    "far": ("FailedMount", 'MountVolume.SetUp failed for volume "fsx" : rpc error: code = Internal '
            "desc = mount.lustre: Connection timed out", "volume-unreachable"),
    "sandbox": ("FailedCreatePodSandBox", "Failed to create pod sandbox: rpc error: code = Unknown "
                'desc = failed to setup network for sandbox "1": plugin type="aws-cni" name='
                '"aws-cni" failed (add): add cmd: failed to assign an IP address to container',
                "pod-no-address"),
    "cni": ("NetworkNotReady", "network is not ready: container runtime network not ready: "
            "NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: "
            "cni plugin not initialized", "network-plugin"),
    "runtime": ("FailedCreatePodSandBox", 'Failed to create pod sandbox: rpc error: code = Unknown '
                'desc = failed to get sandbox runtime: no runtime for "nvidia" is configured',
                "runtime-class"),
}  # fmt: skip


@pytest.mark.parametrize("case", MOUNTS, ids=list(MOUNTS))
def test_pods_that_do_not_get_as_far_as_their_containers(case):
    reason, text, rule = MOUNTS[case]
    body = pod(phase="Pending", ready=False, statuses=[waiting("ContainerCreating")])
    sum_up = event("Pod/vllm-0", "FailedMount", "Unable to attach or mount volumes: unmounted "
                   "volumes=[x], unattached volumes=[], failed to process volumes=[]: timed out "
                   "waiting for the condition", ago=5)  # fmt: skip
    check(snapshot(body, event("Pod/vllm-0", reason, text), sum_up), rule, evidence=text)
    well = pod(ready=True, statuses=[running(ready=True)])
    assert check(snapshot(well, event("Pod/vllm-0", reason, text))).verdict == "healthy"


def test_a_pod_that_is_being_made_is_not_broken():
    body = pod(phase="Pending", statuses=[waiting("ContainerCreating")], age=40)
    found = check(snapshot(body, event("Pod/vllm-0", "Pulling", f'Pulling image "{IMAGE}"',
                                       kind="Normal")))  # fmt: skip
    assert "image is pulled" in found.notes[0]
    late = pod(phase="Pending", statuses=[waiting("ContainerCreating")], age=1000)
    found = check(snapshot(late), "unknown")
    assert found.verdict == "unknown"


EXITS = {
    "oom": (137, "OOMKilled", "", "oom-killed"),
    "killed": (137, "Error", "", "killed"),
    "segv": (139, "Error", "", "segfault"),
    "term": (143, "Error", "", "terminated"),
    "abort": (134, "Error", "", "aborted"),
    "bus": (135, "Error", "", "shm-too-small"),
    "ill": (132, "Error", "", "illegal-instruction"),
    "not found": (127, "Error", "", "command-not-found"),
    "not allowed": (126, "Error", "", "command-not-allowed"),
    "silent": (1, "Error", "", "container-exit"),
    "unknown words": (3, "Error", "the moon is full\nRuntimeError: no cheese\n", "container-exit"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXITS, ids=list(EXITS))
def test_exit_codes(case):
    code, reason, text, rule = EXITS[case]
    body, logs = crashing(code=code, reason=reason, text=text)
    check(snapshot(body, logs=logs), rule)
    done = pod(phase="Failed", policy="Never", owner="Job/vllm",
               statuses=[status(state=ended(code, reason))])  # fmt: skip
    failed = job(failed="BackoffLimitExceeded", message="Job has reached the specified backoff "
                 "limit")  # fmt: skip
    check(snapshot(done, failed, logs=logs), rule, objects=["Pod/vllm-0", "Job/vllm"])


def test_the_last_words_are_a_tracebacks():
    text = (
        "Traceback (most recent call last):\n  File x\nZeroDivisionError: division by zero\nbye\n"
    )
    body, logs = crashing(text=text)
    check(snapshot(body, logs=logs), "container-exit", cause="division by zero",
          evidence="ZeroDivisionError: division by zero")  # fmt: skip


def test_a_command_that_is_done_at_once():
    body, logs = crashing(code=0, reason="Completed", text="done\n")
    check(snapshot(body, logs=logs), "container-completes")
    once = pod(phase="Succeeded", policy="Never", statuses=[status(state=ended(0))])
    assert check(snapshot(once)).verdict == "healthy"


def test_restarts_of_long_ago_are_forgiven_and_recent_ones_are_not():
    def restarted(age_s, times):
        return pod(ready=True, statuses=[running(
            age_s, last=ended(137, "OOMKilled", ago=age_s), restarts=times, ready=True)]
        )  # fmt: skip

    old = event("Pod/vllm-0", "BackOff", "Back-off restarting failed container main", ago=4000)
    assert check(snapshot(restarted(4000, 7), old)).verdict == "healthy"
    assert check(snapshot(restarted(300, 1))).verdict == "healthy"
    check(snapshot(restarted(5, 1)), "oom-killed")
    check(snapshot(restarted(100, 4)), "oom-killed")
    assert check(snapshot(restarted(50, 1))).verdict == "healthy"  # ten times as long as before


def test_an_init_container_that_fails_or_waits():
    body = pod(phase="Pending", inits=[crash_loop(1, name="fetch")],
               containers=[container()], initContainers=[container("fetch")],
               statuses=[waiting("PodInitializing")])  # fmt: skip
    text = "OSError: [Errno 28] No space left on device\n"
    check(snapshot(body, logs={"vllm-0/fetch": text}), "disk-full", cause="init container fetch")
    loop = pod(phase="Pending", inits=[running(120, name="wait")], statuses=[waiting(
        "PodInitializing")])  # fmt: skip
    text = "".join(f"waiting for the oracle {i}\n" for i in range(9))
    check(snapshot(loop, logs={"vllm-0/wait": text}), "init-waiting", evidence="the oracle 8")
    busy = "".join(f"downloaded part {chr(97 + i)}\n" for i in range(9))
    assert check(snapshot(loop, logs={"vllm-0/wait": busy})).verdict == "healthy"


# -- probes ---------------------------------------------------------------------------------------

GET = 'Get "http://10.244.0.32:8000/health": '
READINESS = {
    "refused": (GET + "dial tcp 10.244.0.32:8000: connect: connection refused", "nobody listens"),
    "404": ("HTTP probe failed with statuscode: 404", "404"),
    "503": ("HTTP probe failed with statuscode: 503", "503"),
    "401": ("HTTP probe failed with statuscode: 401", "credentials"),
    "timeout": (GET + "context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                "timeoutSeconds"),
    "dial": (GET + "dial tcp 10.244.0.32:8000: i/o timeout", "timeoutSeconds"),
    "tls": (GET + "http: server gave HTTP response to HTTPS client", "protocol"),
    "exec": ('command timed out: "cat /ready" timed out after 1s', "timeoutSeconds"),
    "says no": ("cat: /tmp/ready: No such file or directory", "says no"),
}  # fmt: skip
PROBE = {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 5, "failureThreshold": 3}


def probed(seconds=250.0, restarts=0, last=None, started=True, **probes):
    """A pod that runs and is not ready."""
    return pod(ready=False, containers=[container(**probes)], statuses=[
        running(seconds, restarts=restarts, last=last, started=started)])  # fmt: skip


@pytest.mark.parametrize("case", READINESS, ids=list(READINESS))
def test_readiness_probes_that_fail(case):
    detail, meaning = READINESS[case]
    told = event("Pod/vllm-0", "Unhealthy", f"Readiness probe failed: {detail}", field="main")
    check(snapshot(probed(readinessProbe=PROBE), told), "readiness-probe", cause=meaning,
          evidence=detail)  # fmt: skip


def test_a_probe_that_asks_the_wrong_port():
    told = event("Pod/vllm-0", "Unhealthy",
                 f"Readiness probe failed: {READINESS['refused'][0]}", field="main")  # fmt: skip
    log = {"vllm-0/main": "INFO:     Uvicorn running on http://0.0.0.0:8080 (Press CTRL+C to quit)"}
    check(snapshot(probed(readinessProbe=PROBE), told, logs=log), "probe-wrong-port",
          cause="port 8080")  # fmt: skip
    for line in (
        "Serving HTTP on 0.0.0.0 port 9000 (http://0.0.0.0:9000/) ...",
        "listening on :9000",
                 "Listening at: http://0.0.0.0:9000 (1)", "INFO server listening on 10.0.0.7:9000",
                 "Starting vLLM API server 0 on http://0.0.0.0:9000"):  # fmt: skip
        check(snapshot(probed(readinessProbe=PROBE), told, logs={"vllm-0/main": line}),
              "probe-wrong-port", cause="port 9000")  # fmt: skip
    words = container(readinessProbe=PROBE, args=["--model", "m", "--port", "9000"])
    body = pod(ready=False, containers=[words], statuses=[running()])
    check(snapshot(body, told), "probe-wrong-port", cause="port 9000")
    right = {"vllm-0/main": "Uvicorn running on http://0.0.0.0:8000"}
    check(snapshot(probed(readinessProbe=PROBE), told, logs=right), "readiness-probe")


def test_a_start_within_its_probes_window_is_well():
    startup = {**PROBE, "periodSeconds": 10, "failureThreshold": 60}
    told = event("Pod/vllm-0", "Unhealthy", f"Startup probe failed: {READINESS['refused'][0]}")
    body = probed(200, started=False, startupProbe=startup, readinessProbe=PROBE)
    found = check(snapshot(body, told))
    assert found.verdict == "healthy" and "still starts" in found.notes[0]
    body = probed(700, started=False, startupProbe=startup)
    check(snapshot(body, told), "startup-probe")
    early = probed(5, readinessProbe=PROBE)
    assert check(snapshot(early, event(
        "Pod/vllm-0", "Unhealthy", "Readiness probe failed: x"))).verdict == "healthy"  # fmt: skip


def test_a_server_that_loads_a_model_is_given_time():
    told = event("Pod/vllm-0", "Unhealthy", f"Readiness probe failed: {READINESS['refused'][0]}")
    log = {"vllm-0/main": "Loading safetensors checkpoint shards:  50% Completed | 2/4\n"}
    found = check(snapshot(probed(readinessProbe=PROBE), told, logs=log))
    assert "still loads" in found.notes[0]


def test_probes_that_restart():
    kill = event("Pod/vllm-0", "Killing", "Container main failed liveness probe, will be restarted",
                 kind="Normal")  # fmt: skip
    told = event("Pod/vllm-0", "Unhealthy", "Liveness probe failed: HTTP probe failed with "
                 "statuscode: 500", field="main")  # fmt: skip
    body = probed(30, restarts=3, last=ended(137, ago=31), livenessProbe=PROBE)
    check(snapshot(body, kill, told), "liveness-probe", cause="500", evidence="statuscode: 500")
    refused = event("Pod/vllm-0", "Unhealthy", f"Liveness probe failed: {READINESS['refused'][0]}",
                    field="main")  # fmt: skip
    log = {"vllm-0/main/previous": "INFO Starting to load model m...\n"}
    check(snapshot(body, kill, refused, logs=log), "liveness-kills-loading")
    start = event("Pod/vllm-0", "Killing", "Container main failed startup probe, will be restarted",
                  kind="Normal")  # fmt: skip
    body = probed(30, restarts=3, last=ended(143, ago=31), started=False, startupProbe=PROBE)
    check(snapshot(body, start, event(
        "Pod/vllm-0", "Unhealthy", f"Startup probe failed: {READINESS['refused'][0]}",
        field="main")), "startup-probe-too-short")  # fmt: skip


def test_a_container_that_takes_its_time_to_stop():
    kill = event("Pod/vllm-0", "Killing", "Container main failed liveness probe, will be restarted",
                 ago=10)  # fmt: skip
    told = event("Pod/vllm-0", "Unhealthy", "Liveness probe failed: HTTP probe failed with "
                 "statuscode: 500", field="main")  # fmt: skip
    body = pod(ready=True, containers=[container(livenessProbe=PROBE)],
               statuses=[running(60, ready=True)])  # fmt: skip
    check(snapshot(body, kill, told), "liveness-probe")


def test_an_error_before_the_probes_kill_is_the_cause():
    kill = event("Pod/vllm-0", "Killing", "Container main failed startup probe, will be restarted")
    body = probed(30, restarts=3, last=ended(1, ago=31), started=False, startupProbe=PROBE)
    log = {"vllm-0/main/previous": "torch.OutOfMemoryError: CUDA out of memory.\n"}
    check(snapshot(body, kill, logs=log), "cuda-oom")


def test_ready_with_old_warnings_is_well():
    told = event("Pod/vllm-0", "Unhealthy", "Readiness probe failed: x", ago=900)
    body = pod(ready=True, containers=[container(readinessProbe=PROBE, resources=asks(gpu=1))],
               statuses=[running(ready=True)])  # fmt: skip
    found = check(snapshot(body, told, node(gpu=8), event(
        "Pod/vllm-0", "FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.", ago=999))
    )  # fmt: skip
    assert found.verdict == "healthy" and list(found.notes) == []


def test_nobody_says_why():
    found = check(snapshot(probed()), "unknown")
    assert found.verdict == "unknown" and "kubectl describe pod" in found[0].fix


def test_a_readiness_gate():
    body = probed(readinessGates=[])
    body["spec"]["readinessGates"] = [{"conditionType": "target-health.elbv2.k8s.aws/x"}]
    check(snapshot(body), "readiness-gate", cause="target-health")
