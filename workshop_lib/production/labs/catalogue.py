"""The labs. What is reported is in a user's words; causes are in hints and solutions only."""

from __future__ import annotations

from workshop_lib.errors import WorkshopError
from workshop_lib.production.labs.definition import Plan

__all__ = ["PLANS", "plan"]

NOBODY = "Readers get no answer any more, not from the first request on. "

PLANS = (
    Plan(
        1, "wrong-port", "lab-server",
        NOBODY + "The team says that the server itself is fine: its pod is ready.",
        ("The pod is ready, so its own probes get answers. What lies between a reader and the pod?",
         "A Service sends to a port of the pod: `targetPort`. On which port does the pod listen? "
         "Its first log line says it.",
         "The Service's `targetPort` is 8081, and nobody listens there."),
        "The Service's `targetPort` did not fit the port on which the server listens, so every "
        "connection was refused behind the Service's back. "
        "cluster.apply('lab-server', target_port=8000) repairs it. A `targetPort` that names the "
        "container's port (`http`) instead of repeating its number cannot drift away from it.",
        "02", 6, {"target_port": 8081},
    ),
    Plan(
        2, "no-endpoints", "lab-server",
        NOBODY + "All pods are ready, and none has been restarted.",
        ("A Service does not know pods by name. How does it find them?",
         "Compare the Service's `selector` with the labels of the pod.",
         "The Service selects `app: lab-sever`, and no pod has that label."),
        "The Service's selector fits no pod, so it has no endpoints. Nothing is refused or logged: "
        "for Kubernetes a Service without endpoints is no error. "
        "cluster.apply('lab-server', selector='lab-server') repairs it; "
        "`kubectl get endpointslices` shows in a second what a Service sends to.",
        "02", 6, {"selector": "lab-sever"},
    ),
    Plan(
        3, "failing-probe", "lab-server",
        NOBODY + "Somebody changed a line of the manifest, and the rollout does not end.",
        ("The container runs and is not restarted. What keeps Kubernetes from sending it requests?",
         "Read the events: which probe fails, and with which status?",
         "The readiness probe asks /healthz, which the server does not have: 404."),
        "The readiness probe asked a path that does not exist. A failing readiness probe restarts "
        "nothing; it keeps the pod out of the Service, here for ever. "
        "cluster.apply('lab-server', readiness_path='/health') repairs it.",
        "04", 8, {"readiness_path": "/healthz"},
    ),
    Plan(
        4, "impatient-probe", "lab-server",
        "The server starts, and starts, and starts. Its log shows no error at all.",
        ("A container that ends without an error was told to end. By whom?",
         "Events name the probe that failed before each restart. How long does the engine load, "
         "and how long does that probe wait?",
         "The startup probe may fail once, a second after the start; the engine loads for two."),
        "The startup probe's budget, `periodSeconds x failureThreshold`, was 1 s, and loading "
        "takes 2 s: every start was killed half-way. With a 70B and a slow volume it is 15 "
        "minutes against 20, and looks the same. "
        "cluster.apply('lab-server', startup_failures=30) repairs it.",
        "04", 12, {"startup_failures": 1},
    ),
    Plan(
        5, "killed-engine", "lab-server",
        "Since a moment ago every request ends with HTTP 503, and stays so. Kubernetes calls the "
        "pod ready and has restarted nothing.",
        ("Which process answers, and which one does the work? Read the server's log.",
         "The engine's process is dead, and the front lives on. Who should have noticed, and what "
         "does it ask?",
         "The probes ask /ping, which the front answers alone; /health asks the engine."),
        "The engine's process was killed, as the kernel does when memory runs out. The probes "
        "asked the front only, so the pod stayed ready and nobody restarted its container. "
        "cluster.apply('lab-server', liveness_path='/health', readiness_path='/health') repairs "
        "it, for the next time too: a probe has to ask what can die.",
        "04", 10, {"liveness_path": "/ping", "readiness_path": "/ping"},
    ),
    Plan(
        6, "no-gpus", "lab-server",
        "The server was to be moved to another machine. Since then it does not start. There is no "
        "log, and no error either.",
        ("A container without a log has never run. What does its pod wait for?",
         "The pod is Pending. `cluster.get('lab-server').table()` has the scheduler's words.",
         "It asks for 4 GPUs, and no node that it may use has that many free."),
        "The pod asked for GPUs that are not there. The scheduler waits for ever: a node may come. "
        "cluster.apply('lab-server', gpus=0) repairs it; on a real cluster, ask for what a node "
        "type has, and see that a node pool may grow to it.",
        "01", 4, {"gpus": 4},
    ),
    Plan(
        7, "missing-setting", "lab-server",
        "After a change of settings the server does not come up. Its pod is there, on a node, and "
        "has no log.",
        ("The pod has a node, and its container was never started. What is needed between the two?",
         "Read the pod's reason in the table, or its events: a container's configuration.",
         "An environment variable takes a key from a ConfigMap that does not have this key."),
        "The container's environment names the key `load-seconds` of a ConfigMap that has "
        "`load-s`. The kubelet cannot make the environment, so it starts nothing, and tries again. "
        "cluster.apply('lab-server', settings_key='load-s') repairs it.",
        "04", 5, {"settings_key": "load-seconds"},
    ),
    Plan(
        8, "stale-address", "stale-address",
        "The same Job for the second time: the first run was well, and now the ranks do not meet. "
        "No pod failed.",
        ("Compare what rank 0 says of itself with what rank 1 dials.",
         "Where does rank 1 have the name from, and when was it written?",
         "Rank 1 read the file that the run before left, before rank 0 replaced it."),
        "The ranks meet through a file on a shared volume, and the file of the run before is still "
        "there when rank 1 looks. cluster.delete('stale-address'), then "
        "cluster.apply('stale-address', file_name='head-address-$(RUN_ID)'): the Job's UID makes "
        "it another file in each run. Better is no file: the name of a headless Service.",
        "01", 12, {"file_name": "head-address-lab"},
    ),
    Plan(
        9, "missing-model", "vllm",
        "A colleague moved the chat to a better model. Now the server does not come up: it is "
        "restarted again and again.",
        ("A container that ends by itself says why, in its last line; see logs(previous=True).",
         "Which model is asked for, and which ones are on the volume?",
         "TechPulse/news-13b is not on the volume; nobody has prepared it."),
        "The server was told a model that is not on the models' volume, and nothing is downloaded "
        "when it starts. Apply it with a model that is there: cluster.apply('vllm') has the "
        "default; or prepare the other one first, with cluster.apply('model', model=...).",
        "02", 10, {"model": "TechPulse/news-13b"}, ("model",),
    ),
    Plan(
        10, "too-much-kv", "vllm",
        "The chat was to hold more users at once, so somebody gave it more memory. Since then it "
        "does not come up: it works for a while, and is restarted.",
        ("It loads, and then ends. What is the last thing that it does before it answers?",
         "Read the error in logs(previous=True): asked for, and available.",
         "The KV cache is asked to take more memory than there is."),
        "The memory for the KV cache is more than the machine has (on a GPU: "
        "`gpu_memory_utilization` 1.0 leaves nothing for others). cluster.apply('vllm') has the "
        "default again; notebook 02 computes how many tokens it holds.",
        "02", 45, {}, ("model",),
    ),
    Plan(
        11, "killed-worker", "ray-cluster",
        "The Ray cluster ran for a while; then its dashboard was gone, and all that ran on it. "
        "Nobody has touched the head.",
        ("Read the Job's conditions and events: which pod ended first?",
         "Rank 1 was told to end, as when its spot machine is taken away. What does this Job do "
         "when one of its pods ends?",
         "The Job has `backoffLimit: 0`: one lost pod is a failed Job, and ends the head too."),
        "A worker's pod was ended, and an Indexed Job with `backoffLimit: 0` ends with it: that is "
        "Method 1's price. Nothing brings it back: cluster.delete('ray-cluster'), then "
        "cluster.apply('ray-cluster'). A RayCluster (Method 2) starts a new worker by itself; a "
        "training on either needs checkpoints.",
        "01", 60,
    ),
)  # fmt: skip


def plan(which: int | str) -> Plan:
    """A lab by its number or name.

    Args:
        which: The number in `labs.table()`, or a name.

    Raises:
        WorkshopError: There is no such lab.

    Example:
        >>> plan(6).component
        'lab-server'
    """
    for each in PLANS:
        if which in (each.number, each.name):
            return each
    raise WorkshopError(f"there is no lab {which!r}; labs.table() has 1 to {len(PLANS)}")
