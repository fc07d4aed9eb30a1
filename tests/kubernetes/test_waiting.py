"""Waiting: on conditions, through trouble that passes, with reasons at the end."""

import threading
import time

import pytest
from local_helpers import until
from objects import deployment, job, objects, ray_cluster

from workshop_lib.errors import ClusterError, NotFoundError, WaitTimeoutError


def started(cluster, body):
    return cluster.apply_objects("demo", objects(body))


def later(emulator, *steps, pause_s=0.2):
    """Do something to the cluster while the test waits: once it looks at what it waits for."""
    asked = len(emulator.sent("GET", "/events"))

    def run():
        until(lambda: len(emulator.sent("GET", "/events")) > asked)
        for step in steps:
            time.sleep(pause_s)
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def condition(kind, status="True", **more):
    return {"type": kind, "status": status, **more}


def event(about, reason, message, kind="Normal"):
    return {
        "apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message,
        "metadata": {"name": f"e.{reason.lower()}"}, "lastTimestamp": None,
        "eventTime": "2026-11-21T03:57:14.691472Z",
        "involvedObject": {"kind": about["kind"], "name": about["metadata"]["name"],
                           "uid": about["metadata"]["uid"]},
    }  # fmt: skip


def test_a_server_that_stays_away_ends_the_wait(emulator, cluster):
    work = started(cluster, job())
    emulator.fail("GET", "", lost="before", times=10**6)
    with pytest.raises(ClusterError, match="does not answer"):
        work.wait_ready(timeout_s=300)


def test_pods_that_may_not_be_read(emulator, cluster):
    work = started(cluster, job())
    emulator.forbidden = {("list", "pods")}
    with pytest.raises(ClusterError, match=r'may not list pods .* verbs: \["list"\]'):
        work.wait_ready(timeout_s=300)


def test_trouble_in_between_does_not_end_a_wait(emulator, cluster):
    work = started(cluster, deployment())
    emulator.fail("GET", "deployments/", status=503, times=2)
    emulator.fail("GET", "deployments/", lost="before", times=2)
    emulator.fail("GET", "/pods", lost="body")
    ready = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
    thread = later(emulator, lambda: emulator.set_status("Deployment", "server", **ready))
    work.wait_ready(timeout_s=300)
    thread.join()


def test_pods_that_may_not_be_made_are_explained_by_events(emulator, cluster):
    work = started(cluster, deployment())
    replica_set = {"kind": "ReplicaSet", "metadata": {"name": "server-7d9f", "uid": "u"}}
    said = 'pods "server-7d9f-x" is forbidden: exceeded quota: small'
    emulator.put(event(replica_set, "FailedCreate", f"Error creating: {said}", "Warning"))
    other = {"kind": "ReplicaSet", "metadata": {"name": "other-7d9f", "uid": "v"}}
    emulator.put(event(other, "Unrelated", "of somebody else", "Warning"))
    with pytest.raises(WaitTimeoutError, match="exceeded quota: small"):
        work.wait_ready(timeout_s=0.5)
    assert list(work.events()["reason"]) == ["FailedCreate"]


def test_a_ray_cluster_is_waited_for_by_its_conditions(emulator, cluster):
    work = started(cluster, ray_cluster())
    head = condition("HeadPodReady")
    thread = later(
        emulator,
        lambda: emulator.set_status(
            "RayCluster", "raycluster", desiredWorkerReplicas=1, conditions=[head]
        ),
        lambda: emulator.set_status(
            "RayCluster", "raycluster", readyWorkerReplicas=1,
            conditions=[head, condition("RayClusterProvisioned")],
        ),
    )  # fmt: skip
    work.wait_ready(timeout_s=300)
    thread.join()
    for name, kind in (("raycluster-w", "worker"), ("raycluster-h", "head")):
        labels = {"ray.io/cluster": "raycluster", "ray.io/node-type": kind}
        emulator.add_pod(emulator.get("RayCluster", "raycluster"), name, labels=labels)
    emulator.add_pod(None, "stranger", labels={"ray.io/cluster": "another"})
    assert work.pods == ["raycluster-h", "raycluster-w"], "the head first"


def test_the_pods_of_a_ray_service(emulator, cluster):
    body = {**ray_cluster("llm"), "kind": "RayService"}
    work = started(cluster, body)
    emulator.set_status("RayService", "llm", activeServiceStatus={"rayClusterName": "llm-x7k2p"},
                        conditions=[condition("Ready")])  # fmt: skip
    emulator.add_pod(None, "llm-x7k2p-head", labels={"ray.io/cluster": "llm-x7k2p"})
    emulator.add_pod(None, "stranger", labels={"ray.io/cluster": "another"})
    assert work.wait_ready(timeout_s=300).pods == ["llm-x7k2p-head"]


def test_deleted_while_it_was_waited_for(emulator, cluster):
    work = started(cluster, job())
    resource = emulator.kind("Job")
    thread = later(emulator, lambda: emulator.store.drop(resource, "workshop", "talk"))
    with pytest.raises(NotFoundError, match="Job/talk was deleted while it was waited for"):
        work.wait_ready(timeout_s=300)
    thread.join()
    with pytest.raises(NotFoundError, match=r"Job/talk is not there; start it with cluster.apply"):
        work.observe()


def pending(emulator, **status):
    """The Job's pod, on its node since a known time, and not running yet."""
    pod = emulator.add_pod(emulator.get("Job", "talk"), "talk-abcde", phase="Pending")
    scheduled = condition("PodScheduled", lastTransitionTime="2026-11-22T01:00:25Z")
    pod["status"] = {"phase": "Pending", "conditions": [scheduled], **status}
    emulator.put(pod)
    return pod


def in_vain(work):
    with pytest.raises(WaitTimeoutError) as error:
        work.wait_ready(timeout_s=0.5)
    return str(error.value)


def test_a_pod_on_its_node_is_pending_since(emulator, cluster):
    """For an image, or for a volume: the second only an event tells."""
    work = started(cluster, job())
    why = {"reason": "ErrImagePull", "message": "not found"}
    pod = pending(emulator, containerStatuses=[{"name": "main", "state": {"waiting": why}}])
    said = "talk-abcde is ErrImagePull since 01:00:25 UTC: not found"
    assert said in in_vain(work)
    creating = {"waiting": {"reason": "ContainerCreating"}}
    pod["status"]["containerStatuses"] = [{"name": "main", "state": creating}]
    emulator.put(pod)
    message = 'MountVolume.SetUp failed for volume "v" : configmap "nope" not found'
    emulator.put(event(pod, "FailedMount", message, "Warning"))
    assert f"talk-abcde is Pending since 01:00:25 UTC: FailedMount: {message}" in in_vain(work)


def test_an_old_pod_that_is_going_is_told_from_the_new_one(emulator, cluster):
    work = started(cluster, job())
    pod = emulator.add_pod(emulator.get("Job", "talk"), "talk-abcde")
    pod["metadata"]["deletionTimestamp"] = "2026-11-22T01:17:31Z"
    emulator.put(pod)
    assert work.table()["state"].tolist() == ["Terminating"]
