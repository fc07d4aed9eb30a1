"""What logs say of Ray: joining, tokens, versions, resources, memory.

Wordings: Ray 2.44 to 2.60 (`gcs_rpc_client.h`, `gcs_client.cc`, `worker_pool.cc`,
`node_manager.cc`, `autoscaler/_private/`, `exceptions.py`), NeMo RL's and vLLM's own waits, and
the workshop's scripts.
"""

from __future__ import annotations

from workshop_lib.production.diagnosis.cause import Lesson
from workshop_lib.production.diagnosis.logs import Sign

__all__ = ["RAY_DEATHS", "RAY_SIGNS"]

RAY_SIGNS: tuple[Sign, ...] = (
    Sign(
        "ray-version-mismatch",
        ("version mismatch", "versions differ between client and server"),
        r"Version mismatch: ?(?:The cluster was started with|.*(?:Ray|Python))|"
        r"(?:Python|Ray)(?: \w+)? versions differ between client and server",
        "{who} has another version of Ray or Python than the cluster that it joins.",
        "use one image for head, workers and driver (and the same rayVersion)",
        Lesson.RAY_WHEN,
        running=True,
    ),
    Sign(
        "ray-token",
        (
            "invalidauthtoken",
            "authentication token",
            "token authentication",
            "unauthenticated",
            "auth_token",
        ),
        r"InvalidAuthToken|(?:Invalid or missing|missing or incorrect|no) authentication token|"
        r"Authentication token is missing|authentication token is invalid|"
        r"token authentication is enabled but|Unauthenticated",
        "Ray refuses {who}: its token is missing or not the cluster's.",
        "give every process RAY_AUTH_MODE=token and the same token (RAY_AUTH_TOKEN_PATH, from the "
        "cluster's Secret)",
        Lesson.RAY_WHEN,
        running=True,
    ),
    Sign(
        "head-address-missing",
        ("master ip not found", "head address not found", "head ip not found"),
        r"(?:master|head)[ _-](?:ip|address)(?: file)? not found",
        "The workers waited for rank 0 to write its address into a file on the shared volume, and "
        "it never did: rank 0 did not start, or it writes elsewhere.",
        "read rank 0's log first; better, let workers dial rank 0 by name through a headless "
        "Service with publishNotReadyAddresses (as the component ray-cluster does)",
        Lesson.RAY_STALE,
    ),
    Sign(
        "ray-head-unreachable",
        ("no head at",),
        r"no head at (?P<host>[\w.:-]+) after",
        "The worker found nobody at the head's address {host}: rank 0 does not run, or its port is "
        "closed.",
        "kubectl get pods: does rank 0 run? Then its port: does a NetworkPolicy let 6379 through, "
        "and does the address name rank 0 of this run?",
        Lesson.RAY_WHEN,
        target="host",
    ),
    Sign(
        "ray-head-unreachable",
        ("gcs",),
        r"Failed to connect to GCS at address (?P<host>[\w.:-]+)",
        "The worker cannot reach Ray's head (GCS) at {host}: the head is not there, the address is "
        "an old one, or the port is closed.",
        "does the head run? Is the address of this run (a stale one comes from a file that a "
        "former run left)? Does a NetworkPolicy let 6379 through?",
        Lesson.RAY_WHEN,
        running=True,
        target="host",
    ),
    Sign(
        "ray-head-unreachable",
        ("gcs", "running ray instance", "failed to connect to ray at address"),
        r"Unable to connect to GCS.{0,20}? at (?P<host>[\w.:-]+)|Timed out while waiting for GCS|"
        r"Failed to get cluster ID from GCS|Could not find any running Ray instance|"
        r"failed to connect to GCS|"
        r"Failed to connect to Ray at address:? (?:\w+://)?(?P<address>[\w.-]+(?::\d+)?)",
        "The worker cannot reach Ray's head (GCS): the head is not there, the address is wrong or "
        "an old one, or the port is closed.",
        "does the head run, and is its address that of this run? Does a NetworkPolicy let 6379 "
        "through?",
        Lesson.RAY_WHEN,
        running=True,
        target="host",
    ),
    Sign(
        "ray-port-taken",
        ("already running at", "session name", "used by other components"),
        r"Ray is trying to start at .*already running at|Session name .* does not match|"
        r"trying to use a port number \d+ that is used by other components",
        "Another Ray head listens on that address already: two clusters share one network "
        "(hostNetwork), or an earlier one was not stopped.",
        "run without hostNetwork, give each cluster its own ports, or stop the other one",
        Lesson.RAY_JOB,
    ),
    Sign(
        "ray-runtime-env",
        ("runtimeenvsetuperror", "failed to set up runtime environment", "runtime env failed"),
        r"RuntimeEnvSetupError|Failed to set up runtime environment|runtime_?env failed",
        "Ray could not make the environment (runtime_env) that a task or actor of {who} asks for: "
        "a package, a download or a folder in it cannot be had.",
        "the next lines say which (pip's or uv's error); better, put packages into the image and "
        "take runtime_env out",
        Lesson.RAY_WHEN,
    ),
    Sign(
        "ray-registration-timeout",
        ("registered within the timeout", "registration timeout", "register worker"),
        r"have not registered within the timeout|Failed to register worker|"
        r"worker registration timeout|timed out registering",
        "Ray started worker processes that did not register in time: the node is too busy, the "
        "disk with the Python environment too slow, or it has too few CPUs.",
        "raise RAY_worker_register_timeout_seconds, give the pod more CPUs, and keep the "
        "environment in the image instead of on a network disk",
        Lesson.RAY_WHEN,
    ),
    Sign(
        "ray-infeasible",
        (
            "no available node types",
            "cannot be scheduled right now",
            "placement group",
            "infeasible",
            "enough resources",
        ),
        r"No available node types can fulfill|"
        r"(?:resource request|actor or task .{0,80}) cannot be scheduled right now|"
        r"placement groups?\b.*(?:infeasible|cannot be (?:created|fulfilled|scheduled)|not ready"
        r"|tim(?:ed|e) ?out)|Waiting for creating a placement group|"
        r"Cannot provide a placement group|"
        r"Timed out waiting for placement groups|infeasible.*(?:request|task|actor|resource)",
        "A task, actor or placement group asks Ray for more than its nodes have (or for a bundle "
        "that no single node can hold), and waits for ever.",
        "ray status shows what is asked for and what there is; ask for less (num_gpus, "
        "tensor_parallel_size, STRICT_PACK needs one node), or add workers (replicas, maxReplicas)",
        Lesson.RAY_GPUS,
        running=True,
    ),
    Sign(
        "ray-out-of-memory",
        ("low on memory", "memory pressure", "ray.exceptions.outofmemory", "oom killer"),
        r"node running low on memory|killed due to memory pressure|"
        r"ray\.exceptions\.OutOfMemoryError",
        "Ray's memory monitor killed tasks, because their node was running out of memory.",
        "give the pods more memory, run fewer tasks at a time (num_cpus, memory= per task), or "
        "smaller batches",
        Lesson.GRPO_WHEN,
        running=True,
    ),
    Sign(
        "object-store-full",
        (
            "objectstorefull",
            "object store is full",
            "out of disk",
            "available space",
            "outofdiskerror",
        ),
        r"ObjectStoreFullError|object store is full|OutOfDiskError|is over \d+% full",
        "Ray's object store is full, in memory or on the disk that it spills to.",
        "raise object-store-memory and /dev/shm with it, hold fewer object references, or give "
        "the pod more ephemeral storage",
        Lesson.RAY_WHEN,
        running=True,
    ),
    Sign(
        "ray-node-start",
        ("timed out during startup", "raylet exited", "node manager", "agent failed"),
        r"node timed out during startup|The raylet .*(?:exited|died)|Raylet .*agent.*(?:fail|exit)|"
        r"agent process failed",
        "Ray's node processes did not start in time: the machine is too busy, or too small.",
        "give the pod more CPU and memory; the logs under /tmp/ray/session_latest/logs say which "
        "process was late",
        Lesson.RAY_WHEN,
    ),
)

RAY_DEATHS: tuple[Sign, ...] = (
    Sign(
        "ray-worker-lost",
        (
            "has been marked dead",
            "nodediederror",
            "node has died",
            "missed too many heartbeats",
            "actor died unexpectedly",
            "rayactorerror",
            "actordiederror",
            "workercrashederror",
            "worker unexpectedly exits",
            "was preempted",
            "was terminated",
            "actor is dead",
        ),
        r"has been marked dead|NodeDiedError|its node has died|missed too many heartbeats|"
        r"actor died unexpectedly|RayActorError|ActorDiedError|WorkerCrashedError|"
        r"Worker unexpectedly exits|node was (?:preempted|terminated)",
        "A Ray worker was lost in the middle of the work: its process or its whole node went away "
        "(out of memory, spot interruption, eviction, a probe).",
        "look at the pods that ended or restarted (kubectl get pods; kubectl get events) and at "
        "the nodes; then resume from the last checkpoint",
        Lesson.WHEN,
        vague=True,
    ),
)
