"""What logs say of GPUs, CUDA, NCCL and EFA.

Wordings: PyTorch 2.x (`c10/cuda/CUDACachingAllocator.cpp`, `ProcessGroupNCCL.cpp`), NCCL 2.2x
(`NCCL WARN ...`), aws-ofi-nccl, NVIDIA's kernel driver (`NVRM: Xid`), CUDA's error strings.
"""

from __future__ import annotations

from workshop_lib.production.diagnosis.cause import Lesson
from workshop_lib.production.diagnosis.logs import Sign

__all__ = ["GPU_SIGNS", "NETWORK_SIGNS"]

GPU_SIGNS: tuple[Sign, ...] = (
    Sign(
        "gpu-memory-taken",
        ("free memory on device",),
        r"Free memory on device .*less than desired GPU memory utilization",
        "vLLM may use a share of the whole GPU (gpu_memory_utilization), and less than that is "
        "free when {who} starts: another process holds the rest.",
        "nvidia-smi shows who; stop it, or lower gpu_memory_utilization below the free share",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "cuda-oom",
        ("out of memory", "cublas_status_alloc_failed", "outofmemoryerror"),
        r"CUDA out of memory|torch(?:\.cuda)?\.OutOfMemoryError|CUDA error: out of memory|"
        r"CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY",
        "The GPU's memory does not suffice for {who}: weights, KV cache and activations together "
        "are more than the card has.",
        "lower gpu_memory_utilization or max_model_len (vLLM), the batch size (training), use a "
        "larger tensor_parallel_size or GPU; check nvidia-smi for other processes",
        Lesson.VLLM_MEMORY,
    ),
    Sign(
        "gpu-fault",
        (
            "xid",
            "fallen off the bus",
            "uncorrectable ecc",
            "unable to determine the device handle",
            "gpu is lost",
        ),
        r"NVRM: Xid|\bXid \(PCI|\bXid(?: error)? \d+|fallen off the bus|uncorrectable ECC error|"
        r"Unable to determine the device handle|GPU is lost",
        "A GPU of the node has a hardware fault: the driver reports an XID or ECC error.",
        "drain the node and replace the instance (kubectl drain <node>; stop and start it); "
        "nvidia-smi -q -d ECC and dmesg | grep -i xid say which GPU",
        Lesson.WHEN,
        running=True,
    ),
    Sign(
        "gpu-driver",
        (
            "driver version is insufficient",
            "nvidia driver on your system is too old",
            "forward compatibility was attempted",
            "unsupported display driver",
            "unsupported toolchain",
            "cuda>=",
            "unsatisfied condition",
        ),
        r"driver version is insufficient|NVIDIA driver on your system is too old|forward "
        r"compatibility was attempted|unsupported display driver|compiled with an unsupported "
        r"toolchain|requirement error: unsatisfied condition",
        "The node's NVIDIA driver is too old for the CUDA version in the image of {who}.",
        "use nodes with a newer driver (a newer EKS accelerated AMI), or an image built for an "
        "older CUDA",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "gpu-fabric",
        ("system not yet initialized",),
        r"system not yet initialized",
        "The GPUs of the node are not joined by their NVSwitch fabric yet (CUDA error 802).",
        "nvidia-fabricmanager must run on the node, in the driver's own version: systemctl status "
        "nvidia-fabricmanager; use EKS's accelerated AMI, or replace the node",
        Lesson.WHEN,
    ),
    Sign(
        "gpu-architecture",
        ("no kernel image is available", "sm_"),
        r"no kernel image is available for execution|with CUDA capability sm_\d+ is not compatible",
        "The image of {who} holds no GPU code for this GPU generation.",
        "use an image built for this GPU (TORCH_CUDA_ARCH_LIST), or another instance type",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "bf16-unsupported",
        ("bfloat16 is only supported",),
        r"Bfloat16 is only supported on GPUs with compute capability",
        "The GPU is too old for bfloat16, the format that {who} loads its weights in.",
        "add --dtype=half, or use a GPU from Ampere on (A10G, A100, L4, H100)",
        Lesson.VLLM_WHEN,
    ),
    Sign(
        "gpu-not-visible",
        (
            "no cuda gpus",
            "no nvidia driver",
            "no cuda-capable device",
            "failed to infer device type",
            "libcuda.so",
            "invalid device ordinal",
            "nvml_error",
            "nvml shared library",
            "torch.cuda.is_available",
        ),
        r"No CUDA GPUs are available|Found no NVIDIA driver|no CUDA-capable device is detected|"
        r"Failed to infer device type|libcuda\.so\S*: cannot open|invalid device ordinal|"
        r"NVML_ERROR_\w+|NVML Shared Library Not Found|torch\.cuda\.is_available\(\) (?:is|should)",
        "{who} looks for a GPU and sees none (or fewer than it wants): its container was given "
        "none.",
        "ask for it: resources.limits: {{nvidia.com/gpu: 1}}; check that the node has a driver "
        "and the device plugin, and CUDA_VISIBLE_DEVICES",
        Lesson.RAY_GPUS,
    ),
    Sign(
        "cuda-illegal-access",
        ("illegal memory access", "device-side assert"),
        r"illegal memory access was encountered|device-side assert triggered",
        "A GPU program of {who} failed: wrong indexes (a token outside the vocabulary), or a bug "
        "in a kernel.",
        "set CUDA_LAUNCH_BLOCKING=1 to see where; check that tokenizer and model fit together",
        Lesson.VLLM_WHEN,
    ),
)

NETWORK_SIGNS: tuple[Sign, ...] = (
    Sign(
        "efa-memlock",
        ("net/ofi", "libfabric"),
        r"(?:NET/OFI|libfabric).*(?:Cannot allocate memory|RC: -12)",
        "{who} may not lock memory, which EFA needs to do: its limit of locked memory is too "
        "small.",
        "give the container the capability IPC_LOCK (the EFA component does), and let the node's "
        "containerd run with LimitMEMLOCK=infinity",
        Lesson.WHEN,
    ),
    Sign(
        "shm-too-small",
        ("bus error", "shared memory", "/dev/shm"),
        r"Bus error|insufficient shared memory|(?:creating|extend|open|attach\w*).{0,40}shared "
        r"memory.*(?:No space|size|error)|/dev/shm/\S+.*No space left|No space left.*?/dev/shm",
        "The shared memory (/dev/shm) of {who} is full: a container has 64 MiB of it "
        "unless it is given "
        "more, and NCCL, PyTorch's loaders and Ray's object store all live there.",
        "mount an emptyDir with medium: Memory (and a sizeLimit) at /dev/shm",
        Lesson.RAY_JOB,
    ),
    Sign(
        "nccl-plugin",
        ("net/plugin", "libnccl-net", "libnccl-tuner"),
        r"NET/Plugin.*(?:Could not find|Failed|cannot open|No plugin found)|libnccl-net\S*: cannot",
        "NCCL finds no network plugin in {who}, and goes over TCP: NCCL 2.29 and later look for "
        "libnccl-net-aws-ofi.so, older EFA installers bring libnccl-net-ofi.so.",
        "set NCCL_NET_PLUGIN to the file that is there (ls /opt/amazon/*/lib*/libnccl-net*), or "
        "link it under the wanted name; LD_LIBRARY_PATH must name its folder",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "efa-not-used",
        ("net/ofi", "libfabric", "fi_info", "ofi"),
        r"NET/OFI.*(?:No eligible providers|Unable to find|Failed|could not)|fi_getinfo.*-61|"
        r"fi_info: -61|OFI fi_getinfo\(\) call failed",
        "libfabric finds no EFA device in {who}.",
        "ask for vpc.amazonaws.com/efa in the pod's limits, and check that the EFA device plugin "
        "runs and the instance type has EFA",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "nccl-timeout",
        (
            "collective operation timeout",
            "watchdog",
            "timeout waiting for connect",
            "nccl timeout",
            "ncclsystemerror: timeout",
        ),
        r"Watchdog caught collective operation timeout|NCCL WARN Timeout waiting for connect|"
        r"Timeout waiting for connect from peer|NCCL timeout|WorkNCCL\(.*before timing out",
        "A collective operation of NCCL waited for a rank that did not come: one rank is dead, "
        "stuck or slower by far, or the ranks cannot reach each other.",
        "find the rank that stopped first (its log ends earliest); test the network between nodes "
        "(fi_pingpong, tx and rx counters: tx without rx is a security group without a rule that "
        "names itself, for ingress and egress)",
        Lesson.GRPO_WHEN,
        running=True,
    ),
    Sign(
        "nccl-remote",
        (
            "ncclremoteerror",
            "remote process exited",
            "failed to recv, got 0 bytes",
            "connection closed by remote peer",
            "connection closed by peer",
        ),
        r"ncclRemoteError|remote process exited or there was a network error|Failed to recv, got 0 "
        r"bytes|Connection closed by (?:remote )?peer",
        "A peer of {who} went away in the middle of a collective operation; the cause lies with "
        "that peer.",
        "read the logs of the other ranks: the one that failed first has the cause",
        Lesson.GRPO_WHEN,
        vague=True,
    ),
    Sign(
        "nccl-duplicate-gpu",
        ("duplicate gpu detected",),
        r"Duplicate GPU detected",
        "Two ranks of {who} use the same GPU, which NCCL does not allow.",
        "one GPU for each rank: torch.cuda.set_device(LOCAL_RANK), as many processes as "
        "nvidia.com/gpu; GPUs that are shared (time slicing) cannot hold two ranks",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "nccl-version-mismatch",
        ("mismatched nccl version", "nccl version mismatch"),
        r"Mismatched NCCL version|NCCL version mismatch",
        "The ranks have different versions of NCCL: they run different images or environments.",
        "use one image (and one Python environment) for all ranks",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "nccl-interface",
        ("no socket interface found", "no interface found"),
        r"no (?:socket )?interface found",
        "NCCL finds no network interface of the name that {who} is told to use.",
        "correct or remove NCCL_SOCKET_IFNAME (ip addr in the pod lists the names: eth0 on EKS)",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "nccl-init",
        (
            "nccl error",
            "ncclsystemerror",
            "unhandled system error",
            "unhandled cuda error",
            "ncclinternalerror",
            "ncclunhandledcudaerror",
            "nccl warn bootstrap",
            "ncclinvalidusage",
            "nccl warn",
        ),
        r"ncclSystemError|unhandled system error|ncclUnhandledCudaError|unhandled cuda error|"
        r"ncclInternalError|ncclInvalidUsage|NCCL error|NCCL WARN (?:Bootstrap|Call to|Error|Cuda)",
        "NCCL could not set up the communication between the GPUs.",
        "set NCCL_DEBUG=INFO and read the first NCCL WARN; usual: the wrong interface "
        "(NCCL_SOCKET_IFNAME), /dev/shm too small, GPUs that two ranks share, no way between "
        "nodes",
        Lesson.GRPO_WHEN,
    ),
    Sign(
        "rendezvous-timeout",
        ("waiting for clients", "client socket has timed out", "rendezvous", "tcpstore"),
        r"Timed out after \d+ seconds waiting for clients|client socket has timed out after "
        r".*connect to \((?P<host>[^,)\s]+)|RendezvousTimeoutError|RendezvousConnectionError|"
        r"TCPStore.*(?:timed out|timeout)",
        "The ranks of a distributed program did not find each other in time: not all of them "
        "started, or they cannot reach rank 0.",
        "check that every rank runs (kubectl get pods), that MASTER_ADDR names rank 0's Service, "
        "and that its port is open; slow environment builds count against the timeout too",
        Lesson.GRPO_WHEN,
        target="host",
    ),
    Sign(
        "nccl-over-tcp",
        ("net/socket",),
        r"NCCL INFO (?:NET/Socket ?: ?Using|Using network Socket)",
        "NCCL goes over TCP sockets, though {who} was given EFA devices: it works, and is many "
        "times slower.",
        "the image needs the aws-ofi-nccl plugin in LD_LIBRARY_PATH; NET/OFI in the log shows "
        "that it is used",
        Lesson.GRPO_WHEN,
    ),
)
