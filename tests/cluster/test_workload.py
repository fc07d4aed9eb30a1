"""What is computed from Kubernetes objects: states, readiness, failures, waiting."""

import pytest

from workshop_lib.cluster.base import Workload
from workshop_lib.cluster.kube import failure, pod_state, readiness
from workshop_lib.cluster.records import LogLine, Observation
from workshop_lib.errors import ClusterError, WaitTimeoutError


def condition(kind, status="True", **more):
    return {"type": kind, "status": status, **more}


def pod(*, phase="Running", conditions=(), containers=(), init=(), name="p", **status):
    return {
        "metadata": {"name": name, "creationTimestamp": "2026-11-21T03:57:16Z"},
        "status": {"phase": phase, "conditions": list(conditions),
                   "containerStatuses": list(containers), "initContainerStatuses": list(init),
                   **status},
    }  # fmt: skip


def container(state, name="main", restarts=0):
    return {"name": name, "state": state, "restartCount": restarts}


def ended(code, **more):
    return {"terminated": {"exitCode": code, "reason": "Error", "finishedAt": "t", **more}}


READY = condition("Ready")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (pod(conditions=[READY]), ("Running", "")),
        (pod(), ("Running", "not ready yet")),
        (pod(phase="Succeeded"), ("Succeeded", "")),
        (pod(phase="Pending", conditions=[condition("PodScheduled", "False", message="no room")]),
         ("Pending", "no room")),
        (pod(phase="Pending", containers=[container({"waiting": {"reason": "ContainerCreating"}})]),
         ("Pending", "")),
        (pod(containers=[container({"waiting": {"reason": "CrashLoopBackOff", "message": "m"}})]),
         ("CrashLoopBackOff", "m")),
        (pod(containers=[container({"waiting": {"reason": "ContainerCreating", "message": "m"}})]),
         ("ContainerCreating", "m")),
        (pod(phase="Failed", containers=[container(ended(3))]),
         ("Error", "container main ended with exit code 3")),
        (pod(phase="Failed", containers=[container(ended(128, message="why"))]),
         ("Error", "container main ended with exit code 128: why")),
        (pod(phase="Failed", init=[container(ended(1), name="i")]),
         ("Error", "container i ended with exit code 1")),
        (pod(phase="Failed", reason="Evicted", message="no disk", containers=[container(ended(1))]),
         ("Evicted", "no disk")),
        ({"metadata": {}}, ("Unknown", "")),
    ],
)  # fmt: skip
def test_pod_states(seen, expected):
    assert pod_state(seen) == expected


def body(kind, spec=None, generation=1, **status):
    return {"kind": kind, "metadata": {"name": "x", "generation": generation}, "spec": spec or {},
            "status": status}  # fmt: skip


JOB2 = {"completions": 2, "parallelism": 2}
HEAD, WHOLE = condition("HeadPodReady"), condition("RayClusterProvisioned")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (body("Job", JOB2), (0, 2)),
        (body("Job", JOB2, ready=1), (1, 2)),
        (body("Job", JOB2, ready=1, succeeded=1), (2, 2)),
        (body("Job", {"completions": 9, "parallelism": 2}, ready=2, succeeded=5), (2, 2)),
        (body("Job", JOB2, conditions=[condition("Complete")]), (2, 2)),
        (body("Deployment", {"replicas": 2}), (0, 2)),
        (body("Deployment", {"replicas": 0}), (0, 0)),
        (body("Deployment", {"replicas": 2}, replicas=2, updatedReplicas=2, availableReplicas=2),
         (2, 2)),
        # Old pods that are available do not count, whoever of them is.
        (body("Deployment", {"replicas": 2}, replicas=2, updatedReplicas=0, availableReplicas=2),
         (0, 2)),
        (body("Deployment", {"replicas": 2}, replicas=3, updatedReplicas=1, availableReplicas=2),
         (0, 2)),
        (body("Deployment", {"replicas": 2}, replicas=3, updatedReplicas=2, availableReplicas=3),
         (1, 2)),
        (body("Deployment", {}, 2, observedGeneration=1, replicas=1, updatedReplicas=1,
              availableReplicas=1), (0, 1)),
        (body("RayCluster"), (0, 2)),
        (body("RayCluster", conditions=[HEAD], desiredWorkerReplicas=1), (1, 3)),
        (body("RayCluster", conditions=[HEAD, WHOLE], desiredWorkerReplicas=1,
              readyWorkerReplicas=1), (3, 3)),
        # Provisioned once and for all, while a worker that was added is not there yet.
        (body("RayCluster", conditions=[HEAD, WHOLE], desiredWorkerReplicas=2,
              readyWorkerReplicas=1), (3, 4)),
        (body("RayService"), (0, 1)),
        (body("RayService", conditions=[READY]), (1, 1)),
        (body("ConfigMap"), (1, 1)),
    ],
)  # fmt: skip
def test_readiness(seen, expected):
    ready, wanted, text = readiness(seen)
    assert (ready, wanted) == expected and text


def test_failures():
    job = body("Job", conditions=[condition("Failed", reason="R", message="m")])
    assert failure(job) == "R: m"
    applications = {"llm": {"status": "DEPLOY_FAILED", "message": "no model"}}
    service = body("RayService", activeServiceStatus={"applicationStatuses": applications})
    assert failure(service) == "application llm is DEPLOY_FAILED: no model"
    assert failure(body("Deployment")) is None


class FakeCluster:
    """A cluster that says what it is told to say."""

    profile = "fake"

    def __init__(self, *observations, lines=()):
        self.observations = list(observations)
        self.lines = list(lines)

    def observe(self, kind, name):
        if len(self.observations) > 1:
            return self.observations.pop(0)
        return self.observations[0]

    def watch(self, kind, name):
        while True:
            yield self.observe(kind, name)

    def logs(self, kind, name, **options):
        return iter(self.lines)


def workload(*observations, kind="Job", lines=()):
    return Workload(FakeCluster(*observations, lines=lines), "demo", kind, "x")


def test_waiting_for_what_failed_quotes_the_first_that_did():
    failed = body(
        "Job", conditions=[condition("Failed", reason="BackoffLimitExceeded", message="m")]
    )
    pods = [pod(name="b", containers=[container(ended(1, finishedAt="2"))]),
            pod(name="a", containers=[container(ended(1, finishedAt="1"))])]  # fmt: skip
    lines = [LogLine("a", 0, "main", "because"), LogLine("b", 1, "main", "therefore")]
    with pytest.raises(ClusterError) as error:
        workload(Observation(failed, pods), lines=lines).wait_complete(timeout_s=60)
    line = str(error.value)
    assert line.startswith(
        "Job/x failed after 0 s: BackoffLimitExceeded: m (a said: because); next:"
    )
    assert line.endswith("then cluster.delete('demo')")


def test_a_node_that_gives_no_log_and_no_time_does_not_hide_why_it_failed():
    class NoLogs(FakeCluster):
        def logs(self, kind, name, **options):
            yield LogLine("b", 1, "main", "because")
            raise ClusterError("the server answered 500: kubelet")

    failed = body("Job", conditions=[condition("Failed", reason="R", message="m")])
    times = {"a": None, "b": "2026-11-21T03:57:16Z"}
    pods = [pod(name=name, containers=[container(ended(1, finishedAt=time))])
            for name, time in times.items()]  # fmt: skip
    work = Workload(NoLogs(Observation(failed, pods)), "demo", "Job", "x")
    with pytest.raises(ClusterError, match=r"failed after 0 s: R: m \(b said: because\)"):
        work.wait_ready(timeout_s=60)


def test_a_long_event_is_cut_between_words():
    event = {"type": "Warning", "reason": "FailedCreate", "message": "word " * 100,
             "involvedObject": {"kind": "Job", "name": "x"}}  # fmt: skip
    seen = Observation(body("Job"), [], [event])
    with pytest.raises(WaitTimeoutError, match=r"word …; next: read its table"):
        workload(seen).wait_ready(timeout_s=0)


def test_tables_have_columns_without_rows():
    work = workload(Observation(body("Job")))
    assert list(work.table()["state"]) == [] and list(work.events()["reason"]) == []


def test_tables():
    seen = pod(
        conditions=[READY], containers=[container({"running": {}}, restarts=2)], podIP="1.2.3.4"
    )
    about = {"kind": "Pod", "name": "p"}
    events = [{"type": "Normal", "reason": "R", "message": "m", "involvedObject": about,
               "lastTimestamp": "2026-11-21T03:57:16Z"}]  # fmt: skip
    work = workload(Observation(body("Job"), [seen], events))
    row = work.table().iloc[0]
    assert (row["pod"], row["state"], bool(row["ready"]), row["restarts"], row["address"]) == (
        "p", "Running", True, 2, "1.2.3.4"
    )  # fmt: skip
    event = work.events().iloc[0]
    assert (event["time"], event["object"], event["count"]) == ("03:57:16", "Pod/p", 1)


def test_what_apply_did_is_shown_safely():
    work = Workload(
        FakeCluster(), "demo", "Job", "x",
        actions={"Job/x": "created", "ConfigMap/<b>": "unchanged"},
        notes={"Job/x.spec.a": "why <i>", "Job/x.spec.b": "why <i>"},
    )  # fmt: skip
    assert repr(work) == "job/x created\nconfigmap/<b> unchanged"
    shown = work._repr_html_()
    assert "<b>" not in shown and "<i>" not in shown
    assert "Not run here: a, b (why &lt;i&gt;)" in shown
