"""What logs say. Lines as real programs write them: PyTorch, NCCL, vLLM 0.25 to 0.32, transformers
5, huggingface_hub, Ray 2.44 to 2.60 (ray-project/ray 22326, 23611, 62883; vllm-project/vllm 15385,
29265, 17980; kuberay 2540; pytorch 118369; NVIDIA/Megatron-LM 1207), bash, curl, getaddrinfo.
"""

import pytest
from snapshots import (
    asks,
    check,
    container,
    crashing,
    custom,
    pod,
    ray_pod,
    running,
    service,
    snapshot,
)

GCS = "[2026-11-21 11:59:00,000 E 31 31] gcs_rpc_client.h:151: Failed to connect to GCS at address "

CRASHES = {
    "cuda oom": ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
                 "cuda-oom"),
    "cuda oom, runtime": ("RuntimeError: CUDA error: out of memory", "cuda-oom"),
    "cublas": ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
               "cuda-oom"),
    "gpu taken": ("ValueError: Free memory on device cuda:0 (10.1/79.1 GiB) on startup is less "
                  "than desired GPU memory utilization (0.92, 72.8 GiB). Decrease GPU memory "
                  "utilization or reduce GPU memory used by other processes.",
                  "gpu-memory-taken"),
    "driver": ("RuntimeError: CUDA driver version is insufficient for CUDA runtime version",
               "gpu-driver"),
    "driver, torch": ("RuntimeError: The NVIDIA driver on your system is too old (found version "
                      "12020).", "gpu-driver"),
    "no gpu": ("RuntimeError: No CUDA GPUs are available", "gpu-not-visible"),
    "no driver": ("RuntimeError: Found no NVIDIA driver on your system.", "gpu-not-visible"),
    "vllm no gpu": ("RuntimeError: Failed to infer device type, please set the environment variable"
                    " `VLLM_LOGGING_LEVEL=DEBUG`", "gpu-not-visible"),
    "libcuda": ("ImportError: libcuda.so.1: cannot open shared object file: No such file or "
                "directory", "gpu-not-visible"),
    "arch": ("RuntimeError: CUDA error: no kernel image is available for execution on the device",
             "gpu-architecture"),
    "bf16": ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least "
             "8.0. Your Tesla T4 GPU has compute capability 7.5.", "bf16-unsupported"),
    "xid": ("NVRM: Xid (PCI:0000:10:1c): 79, pid=1234, GPU has fallen off the bus.", "gpu-fault"),
    "ecc": ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "gpu-fault"),
    "illegal": ("RuntimeError: CUDA error: an illegal memory access was encountered",
                "cuda-illegal-access"),
    "kv": ("ValueError: To serve at least one request with the model's max seq len (32768), (4.0 "
           "GiB KV cache is needed, which is larger than the available KV cache memory (1.2 GiB).",
           "kv-cache-too-small"),
    "kv, old": ("ValueError: The model's max seq len (32768) is larger than the maximum number of "
                "tokens that can be stored in KV cache (9600).", "kv-cache-too-small"),
    "no kv": ("ValueError: No available memory for the cache blocks. Try increasing "
              "`gpu_memory_utilization` when initializing the engine.", "no-kv-cache"),
    "long": ("ValueError: User-specified max_model_len (131072) is greater than the derived "
             "max_model_len (max_position_embeddings=32768)", "model-len-too-large"),
    "heads": ("ValueError: Total number of attention heads (9) must be divisible by tensor parallel"
              " size (2).", "tp-not-divisible"),
    "tp": ("ValueError: World size (8) is larger than the number of available GPUs (4) in this "
           "node.", "tp-too-large"),
    "tp ray": ("ValueError: The number of required GPUs exceeds the total number of available GPUs "
               "in the placement group.", "tp-too-large"),
    "ray executor": ("ValueError: Current node has no GPU available. current_node_resource={'CPU': "
                     "4.0}.", "vllm-ray-executor"),
    "trust": ("ValueError: The repository org/m contains custom code which must be executed to "
              "correctly load the model. Please pass the argument `trust_remote_code=True`",
              "trust-remote-code"),
    "unsupported": ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
                    "model-unsupported"),
    "arguments": ("api_server.py: error: unrecognized arguments: --max-model-length 4096",
                  "vllm-arguments"),
    "gated": ("OSError: You are trying to access a gated repo.", "hf-gated"),
    "403": ("huggingface_hub.errors.HfHubHTTPError: 403 Client Error: Forbidden for url: https://"
            "huggingface.co/meta-llama/x", "hf-gated"),
    "401": ("requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: https://"
            "huggingface.co/x/y/resolve/main/config.json", "hf-unauthorized"),
    "404": ("huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. Repository Not Found"
            " for url: https://huggingface.co/api/models/x/y.", "model-not-found"),
    "no model": ("OSError: org/nothing is not a local folder and is not a valid model identifier "
                 "listed on 'https://huggingface.co/models'", "model-not-found"),
    "repo id": ("huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' "
                "or 'namespace/repo_name': '/shared/hf/x'.", "model-not-found"),
    "unrecognized": ("ValueError: Unrecognized model in /shared/hf_cache/m. Should have a "
                     "`model_type` key in its config.json.", "model-unreadable"),
    "cut off": ("safetensors_rust.SafetensorError: Error while deserializing header: "
                "MetadataIncompleteBuffer", "model-unreadable"),
    "weights": ("RuntimeError: Cannot find any model weights with `/shared/m`", "model-unreadable"),
    "hub": ("OSError: We couldn't connect to 'https://huggingface.co' to load the files",
            "model-download"),
    "hub slow": ("ReadTimeoutError: HTTPSConnectionPool(host='huggingface.co', port=443): Read "
                 "timed out.", "model-download"),
    "s3": ("botocore.exceptions.ClientError: An error occurred (AccessDenied) when calling the "
           "ListObjectsV2 operation: Access Denied", "s3-denied"),
    "credentials": ("botocore.exceptions.NoCredentialsError: Unable to locate credentials",
                    "s3-denied"),
    "module": ("ModuleNotFoundError: No module named 'flash_attn'", "module-missing"),
    "import": ("ImportError: cannot import name 'x' from 'vllm' (/x/__init__.py)",
               "module-missing"),
    "port": ("OSError: [Errno 98] Address already in use", "port-taken"),
    "port, uvicorn": ("ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', "
                      "8000): address already in use", "port-taken"),
    "denied": ("PermissionError: [Errno 13] Permission denied: '/shared/out'", "read-only"),
    "read only": ("OSError: [Errno 30] Read-only file system: '/models/x'", "read-only"),
    "disk": ("OSError: [Errno 28] No space left on device: '/root/.cache'", "disk-full"),
    "file": ("FileNotFoundError: [Errno 2] No such file or directory: '/data/train.jsonl'",
             "file-missing"),
    "bash": ("bash: line 3: nvidia-smi: command not found", "command-not-found"),
    "python file": ("python3: can't open file '/app/train.py': [Errno 2] No such file or directory",
                    "command-not-found"),
    "variable": ("/scripts/run.sh: line 7: HEAD_ADDRESS: unbound variable", "variable-missing"),
    "environ": ("KeyError: 'HF_TOKEN'", "variable-missing"),
    "memory": ("MemoryError", "out-of-memory"),
    "killed": ("/run.sh: line 1:    12 Killed                  python train.py", "out-of-memory"),
    "torch memory": ("RuntimeError: [enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't "
                     "allocate memory: you tried to allocate 9 bytes.", "out-of-memory"),
    "format": ("exec /app/run: exec format error", "image-platform"),
    "illegal instruction": ("Fatal Python error: Illegal instruction", "illegal-instruction"),
    "files": ("OSError: [Errno 24] Too many open files", "too-many-files"),
    "certificate": ("ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate "
                    "verify failed", "certificate"),
    "bus error": ("ERROR: Unexpected bus error encountered in worker. This might be caused by "
                  "insufficient shared memory (shm).", "shm-too-small"),
    "nccl shm": ("NCCL WARN Error: failed to extend /dev/shm/nccl-aBcDeF to 9637892 bytes, error: "
                 "No space left on device (28)", "shm-too-small"),
    "watchdog": ("[rank0]:[E321 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective "
                 "operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE, Timeout(ms)=600000) ran "
                 "for 600013 milliseconds before timing out.", "nccl-timeout"),
    "peer": ("[Rank 0] NCCL WARN Timeout waiting for connect from peer", "nccl-timeout"),
    "nccl": ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3384, "
             "unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27",
             "nccl-init"),
    "plugin": ("node:1:1 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net-aws-ofi.so. Using "
               "internal network plugin.\nRuntimeError: stop", "nccl-plugin"),
    "ofi": ("[0] nccl_net_ofi_init:1 NCCL WARN NET/OFI No eligible providers were found",
            "efa-not-used"),
    "clients": ("torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients."
                " 1/2 clients joined.", "rendezvous-timeout"),
    "ray version": ("RuntimeError: Version mismatch: The cluster was started with:",
                    "ray-version-mismatch"),
    "token": ("InvalidAuthToken: Authentication token is missing or incorrect", "ray-token"),
    "gcs": (f"{GCS}192.168.2.40:6379 within 5 seconds.", "ray-head-unreachable"),
    "gcs python": ("ray.exceptions.RpcError: Timed out while waiting for GCS to become available.",
                   "ray-head-unreachable"),
    "no ray": ("ConnectionError: Could not find any running Ray instance. Please specify the one "
               "to connect to by setting `--address` flag", "ray-head-unreachable"),
    "no head": ("12:00:00 rank 1: no head at ray-0.ray:6379 after 600 s: does rank 0 run, is port "
                "6379 open?", "ray-head-unreachable"),
    "two heads": ("ConnectionError: Ray is trying to start at 10.0.0.1:6379, but is already running"
                  " at 10.0.0.1:6379. Please specify a different port", "ray-port-taken"),
    "register": ("(raylet) Some workers of the worker process(1) have not registered within the "
                 "timeout. The process is still alive, probably it's hanging during start.",
                 "ray-registration-timeout"),
    "demand": ("(autoscaler +1m) Error: No available node types can fulfill resource request {'GPU'"
               ": 8.0}. Add suitable node types to this cluster", "ray-infeasible"),
    "pg": ("INFO ray_utils.py: Waiting for creating a placement group of specs for 10 seconds. "
           "specs=[{'GPU': 1.0}].", "ray-infeasible"),
    "nemo pg": ("TimeoutError: Timed out waiting for placement groups to be ready.",
                "ray-infeasible"),
    "ray oom": ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on "
                "memory.", "ray-out-of-memory"),
    "object store": ("ray.exceptions.ObjectStoreFullError: Failed to put object",
                     "object-store-full"),
    "node start": ("Exception: The current node timed out during startup. This could happen "
                   "because some of the raylet failed to startup or the GCS has become overloaded.",
                   "ray-node-start"),
    "died": ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this "
             "task.", "ray-worker-lost"),
    "engine": ("RuntimeError: Engine core initialization failed. See root cause above.",
               "engine-dead"),
    "dns": ("curl: (6) Could not resolve host: example.org", "name-not-resolved"),
    "python dns": ("socket.gaierror: [Errno -2] Name or service not known", "name-not-resolved"),
    "refused": ("ConnectionRefusedError: [Errno 111] Connection refused", "connection-refused"),
    "timed out": ("curl: (28) Failed to connect to 10.1.2.3 port 8000 after 130000 ms: Connection "
                  "timed out", "connection-timeout"),
}  # fmt: skip


@pytest.mark.parametrize("case", CRASHES, ids=list(CRASHES))
def test_a_crash_by_its_log(case):
    line, rule = CRASHES[case]
    noise = "INFO 11-21 starting http://0.0.0.0:8000\n"
    body, logs = crashing(text=f"{noise}{line}\nRuntimeError: see above\n")
    check(snapshot(body, logs=logs), rule, evidence=line.splitlines()[0].strip())


def test_the_root_comes_before_what_follows_from_it():
    text = ("ValueError: Free memory on device cuda:0 (1/79 GiB) on startup is less than desired "
            "GPU memory utilization (0.9)\nRuntimeError: Engine core initialization failed. See "
            "root cause above.\nray.exceptions.ActorDiedError: The actor died unexpectedly before "
            "finishing this task.\n")  # fmt: skip
    body, logs = crashing(text=text)
    check(snapshot(body, logs=logs), "gpu-memory-taken")


def test_ordinary_lines_are_no_cause():
    text = ("INFO: connecting to http://0.0.0.0:8000\nuse trust_remote_code if needed\nGCS started "
            "on port 6379\nretrying; timeout=30\nAWS region us-west-2\nAddress: 10.0.0.1\n"
            "Xid table loaded\nerror: none\nplacement group ready\nkilled 0 workers\n")  # fmt: skip
    body = pod(ready=True, statuses=[running(ready=True)])
    assert check(snapshot(body, logs={"vllm-0/main": text})).verdict == "healthy"
    body, logs = crashing(text=text)
    check(snapshot(body, logs=logs), "container-exit")


STALLS = {
    "gcs": (f"{GCS}10.0.0.9:6379 within 5 seconds.", "ray-head-unreachable"),
    "infeasible": ("(autoscaler +20s) Warning: The following resource request cannot be scheduled "
                   "right now: {'GPU': 8.0}.", "ray-infeasible"),
    "watchdog": ("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5)",
                 "nccl-timeout"),
    "token": ("InvalidAuthToken: Authentication token is missing or incorrect", "ray-token"),
    "refused": ("nc: connect to nobody port 8000 (tcp) failed: Connection refused",
                "connection-refused"),
}  # fmt: skip


@pytest.mark.parametrize("case", STALLS, ids=list(STALLS))
def test_what_runs_and_hangs(case):
    line, rule = STALLS[case]
    body = pod(ready=True, statuses=[running(ready=True)])
    check(snapshot(body, logs={"vllm-0/main": line + "\n"}), rule)
    later = line + "\n" + "".join(f"step {i} done\n" for i in range(60))
    assert check(snapshot(body, logs={"vllm-0/main": later})).verdict == "healthy"


def test_a_server_that_got_over_a_refusal_is_well():
    body = pod(ready=True, statuses=[running(ready=True)])
    log = "redis: connect to redis:6379: Connection refused, retrying\n"
    over = {"vllm-0/main": log + "connected\nlistening on port 8000\nready\n"}
    assert check(snapshot(body, logs=over)).verdict == "healthy"


def test_sockets_are_a_fault_only_where_efa_was_asked_for():
    log = {"vllm-0/main": "ip:1:1 [0] NCCL INFO NET/Socket : Using [0]eth0:10.0.0.1<0>\nstep 1\n"}
    plain = pod(ready=True, statuses=[running(ready=True)])
    assert check(snapshot(plain, logs=log)).verdict == "healthy"
    efa = pod(ready=True, statuses=[running(ready=True)],
              containers=[container(resources=asks(gpu=8, efa=4))])  # fmt: skip
    check(snapshot(efa, logs=log), "nccl-over-tcp")


# -- names, ports and who does not answer ---------------------------------------------------------


def client(line, **more):
    return crashing("client-0", text=line + "\n", **more)


def server(ready=True, **more):
    return pod("vllm-0", labels={"app": "vllm"}, ready=ready,
               statuses=[running(ready=ready)], **more)  # fmt: skip


def test_a_name_that_no_service_has():
    body, logs = client("curl: (6) Could not resolve host: vlm")
    check(snapshot(body, server(), service(), logs=logs), "service-name-unknown",
          cause="there are: vllm")  # fmt: skip
    outside, logs = client("curl: (6) Could not resolve host: api.example.org")
    check(snapshot(outside, server(), service(), logs=logs), "name-not-resolved")


def test_a_port_that_the_service_has_not():
    body, logs = client(
        "curl: (7) Failed to connect to vllm port 80 after 2 ms: Connection refused"
    )
    check(snapshot(body, server(), service(port=8000), logs=logs), "service-port",
          cause="only port 8000", objects=["Service/vllm", "Pod/client-0"])  # fmt: skip


def test_a_network_policy_in_the_way():
    policy = {"kind": "NetworkPolicy", "metadata": {"name": "closed"}, "spec": {
        "podSelector": {"matchLabels": {"app": "vllm"}}, "policyTypes": ["Ingress"]}}  # fmt: skip
    line = "curl: (28) Failed to connect to vllm port 8000 after 130000 ms: Connection timed out"
    body, logs = client(line)
    check(snapshot(body, server(), service(), policy, logs=logs), "network-policy",
          objects=["Pod/client-0", "NetworkPolicy/closed"])  # fmt: skip
    check(snapshot(body, server(), service(), logs=logs), "connection-timeout")
    egress = {"kind": "NetworkPolicy", "metadata": {"name": "out"}, "spec": {
        "podSelector": {}, "policyTypes": ["Egress"]}}  # fmt: skip
    body, logs = client("curl: (6) Could not resolve host: vllm.demo.svc")
    check(snapshot(body, server(), service(), egress, logs=logs), "network-policy")
    everything = {**egress, "spec": {**egress["spec"], "egress": [{}]}}
    check(snapshot(body, server(), service(), everything, logs=logs), "name-not-resolved")


def test_who_dials_a_server_that_crashes_is_a_consequence():
    body, logs = client("requests.exceptions.ConnectionError: HTTPConnectionPool(host='vllm', "
                        "port=8000): Max retries exceeded: [Errno 111] Connection refused"
    )  # fmt: skip
    down, more = crashing("vllm-0", text="RuntimeError: No CUDA GPUs are available\n",
                          labels={"app": "vllm"})  # fmt: skip
    found = check(snapshot(body, down, service(), logs={**logs, **more}), "gpu-not-visible")
    assert found[0].explains == ("Pod/client-0",)


def test_a_headless_service_that_hides_who_is_not_ready():
    ranks = [pod(f"ray-{i}-x", owner="Job/ray", labels={"job-name": "ray"}, ready=False,
                 statuses=[running(200)], hostname=f"ray-{i}", subdomain="ray") for i in (0, 1)
    ]  # fmt: skip
    hidden = service("ray", selector={"job-name": "ray"}, port=6379, clusterIP="None")
    log = {"ray-1-x/main": "bash: ray-0.ray: Name or service not known\n" * 3}
    check(snapshot(*ranks, hidden, logs=log), "headless-not-published",
          objects=["Service/ray"])  # fmt: skip


def test_ray_workers_that_wait_for_a_head_that_is_not_there():
    head = ray_pod("head", phase="Pending", node=None)
    head["status"]["conditions"] = [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory."}]  # fmt: skip
    worker = ray_pod("worker", phase="Pending", inits=[running(200, name="wait-gcs-ready")])
    logs = {f"{worker['metadata']['name']}/wait-gcs-ready": "40 seconds elapsed: Waiting for GCS to"
            " be ready.\n" * 4}  # fmt: skip
    cluster = custom("RayCluster", "raycluster", [{
        "type": "HeadPodReady", "status": "False", "reason": "ContainersNotReady"}], age=700
    )  # fmt: skip
    found = check(snapshot(head, worker, cluster, logs=logs), "insufficient-memory",
                  objects=["Pod/raycluster-head-abcde", "RayCluster/raycluster"])  # fmt: skip
    assert "Pod/raycluster-worker-abcde" in found[0].explains
    alone = check(snapshot(worker, logs=logs), "ray-wait-head", cause="there is no head pod")
    assert alone.verdict == "problems"
    up = ray_pod("head", ready=True, statuses=[running(ready=True)])
    check(snapshot(up, worker, logs=logs), "ray-wait-head", cause="NetworkPolicy")


def test_an_indexed_jobs_workers_blame_rank_zero_when_it_is_broken():
    zero, logs = crashing("ray-0-x", text="ModuleNotFoundError: No module named 'ray'\n",
                          owner="Job/ray", labels={"job-name": "ray"})  # fmt: skip
    one = pod("ray-1-x", owner="Job/ray", ready=False, statuses=[running()],
              labels={"job-name": "ray"})  # fmt: skip
    logs = {**logs, "ray-1-x/main": f"{GCS}ray-0.ray:6379 within 5 seconds.\n"}
    check(snapshot(zero, one, service("ray", selector={"job-name": "ray"}, clusterIP="None"),
                   logs=logs), "module-missing")  # fmt: skip


def test_a_worker_that_ended_and_the_rank_that_only_noticed():
    lost, _ = crashing("grpo-1-x", code=137, reason="OOMKilled", owner="Job/grpo")
    noticed, logs = crashing("grpo-0-x", text="torch.distributed.DistBackendError: NCCL error, "
                             "ncclRemoteError: A call failed possibly due to a network error or a "
                             "remote process exiting prematurely.\n", owner="Job/grpo")  # fmt: skip
    check(snapshot(lost, noticed, logs=logs), "oom-killed")


def test_a_dead_engine_behind_a_front_that_runs():
    body = pod(ready=True, statuses=[running(ready=True)])
    log = {"vllm-0/main": "INFO ready\nvllm.v1.engine.exceptions.EngineDeadError: EngineCore "
           "encountered an issue. See stack trace (above) for the root cause.\n"}  # fmt: skip
    check(snapshot(body, logs=log), "engine-dead")


def ranks(zero_ip="10.0.0.5"):
    """Two ranks of an Indexed Job."""
    index = "batch.kubernetes.io/job-completion-index"
    found = [pod(f"ray-{i}-abcd{i}", owner="Job/ray", annotations={index: str(i)}, ready=True,
                 statuses=[running(ready=True)]) for i in (0, 1)]  # fmt: skip
    found[0]["status"]["podIP"], found[1]["status"]["podIP"] = zero_ip, "10.0.0.6"
    return found


def test_a_worker_that_dials_the_head_of_a_former_run():
    for line in ("rank 1 dials ray-0-zzzzz", f"{GCS}10.0.0.77:6379 within 5 seconds.",
                 "Master IP: 10.0.0.77"):  # fmt: skip
        log = {"ray-1-abcd1/main": line + "\n"}
        check(snapshot(*ranks(), logs=log), "stale-head-address", evidence=line,
              objects=["Pod/ray-1-abcd1", "Job/ray"])  # fmt: skip
    for line in ("rank 1 dials ray-0-abcd0", "Master IP: 10.0.0.5", "rank 1 dials ray-0.ray:6379"):
        log = {"ray-1-abcd1/main": line + "\n"}
        assert check(snapshot(*ranks(), logs=log)).verdict == "healthy"
