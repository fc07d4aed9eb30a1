"""Jobs with real processes, compared with what a real Kubernetes said."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from local_helpers import (
    agent_pid,
    job,
    objects,
    pod_spec,
    shims,
    texts,
    until,
)

from workshop_lib.cluster.local import processes
from workshop_lib.cluster.local.machine import capacity
from workshop_lib.errors import ClusterError

RECORDED = Path(__file__).parents[1] / "data/kubernetes"


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def recorded(name):
    return json.loads((RECORDED / f"{name}.json").read_text())


def facts(conditions):
    return [(c["type"], c["status"], c.get("reason"), c.get("message")) for c in conditions]


def anonymous(events):
    """Events without the parts of names that differ from run to run."""
    return {
        (e["type"], e["reason"], re.sub(r"(\w-\d)-\w{5}\b", r"\1", e["message"])) for e in events
    }


def test_indexed_pods_know_their_rank_and_their_head(cluster):
    names = ("JOB_COMPLETION_INDEX", "HEAD_ADDRESS", "NOT_AN_ADDRESS", "POD_IP", "INDEX_LABEL")
    script = "; ".join(f"echo {name}=${name}" for name in names)
    ranks = cluster.apply_objects("ranks", job(script, folder="indexed"))
    ranks.wait_complete(timeout_s=300)
    said = {0: {}, 1: {}}
    for line in ranks.logs():
        name, _, value = line.text.partition("=")
        said[line.rank][name] = value
        assert line.pod.startswith(f"ranks-{line.rank}-") and line.container == "main"
    network = cluster.paths.network
    for rank in (0, 1):
        assert said[rank]["JOB_COMPLETION_INDEX"] == said[rank]["INDEX_LABEL"] == str(rank)
        assert said[rank]["HEAD_ADDRESS"] == f"{said[0]['POD_IP']}:7000"
        assert said[rank]["NOT_AN_ADDRESS"] == "see ranks-0.ranks:7000"
        assert said[rank]["POD_IP"].startswith(f"{network}.")
    assert said[0]["POD_IP"] != said[1]["POD_IP"]
    assert ranks.observe().body["status"]["completedIndexes"] == "0,1"


def test_both_ranks_fail_as_on_a_real_cluster(cluster):
    real = recorded("backoff-exceeded")
    script = "echo FATAL: Master IP not found after 240s; exit 1"
    ranks = cluster.apply_objects("ranks", job(script, folder="indexed", **real["job"]["spec"]))
    with pytest.raises(ClusterError) as error:
        ranks.wait_complete(timeout_s=300)
    line = str(error.value)
    assert "BackoffLimitExceeded: Job has reached the specified backoff limit" in line
    assert "Master IP not found" in line and "\n" not in line

    seen = ranks.observe()
    status, wanted = seen.body["status"], real["job"]["status"]
    assert facts(status["conditions"]) == facts(wanted["conditions"])
    for field in ("failed", "ready", "terminating", "active", "succeeded", "completedIndexes"):
        assert status.get(field) == wanted.get(field), field
    assert status.keys() <= wanted.keys()
    for pod, real_pod in zip(seen.pods, real["pods"], strict=True):
        assert pod["status"]["phase"] == real_pod["status"]["phase"]
        conditions = {f[0]: f for f in facts(real_pod["status"]["conditions"])}
        for fact in facts(pod["status"]["conditions"]):
            assert fact == conditions[fact[0]]
        ended, real_ended = (
            p["status"]["containerStatuses"][0]["state"]["terminated"] for p in (pod, real_pod)
        )
        # The second one to fail may be told to end before it has.
        assert ended["exitCode"] in (1, 143) and ended["reason"] == real_ended["reason"]
        assert ended.keys() <= real_ended.keys() | {"message"}
        labels = real_pod["metadata"]["labels"].keys() - {"app"}
        assert labels <= pod["metadata"]["labels"].keys()
    here = {"backoff-exceeded/": "default/", "vllm": "ranks", "node-a": "this-machine"}
    for old, new in here.items():
        for event in real["events"]:
            event["message"] = event["message"].replace(old, new)
    said = {e for e in anonymous(seen.events) if e[1] != "SuccessfulDelete"}
    assert said <= anonymous(real["events"])


def test_success_policy_ends_the_ranks_that_still_run(cluster):
    real = recorded("success-policy-met")
    script = """
        trap 'echo stopping; until [ -e "$TMPDIR/go" ]; do sleep 0.05; done; exit 0' TERM
        [ $JOB_COMPLETION_INDEX = 1 ] || { until [ -e $TMPDIR/end ]; do sleep 0.05; done; exit 0; }
        echo running; while true; do sleep 0.05; done
    """
    items = job(script, folder="indexed", **real["spec"])
    pod_spec(items)["terminationGracePeriodSeconds"] = 300
    ranks = cluster.apply_objects("ranks", items)
    until(lambda: "running" in texts(ranks))
    cluster.exec("ranks-0", ["bash", "-c", "touch $TMPDIR/end"])
    until(lambda: ranks.observe().body["status"]["conditions"])

    status, wanted = ranks.observe().body["status"], real["status"]
    assert facts(status["conditions"]) == facts(wanted["conditions"])
    for field in ("succeeded", "terminating", "ready", "completedIndexes", "active", "failed"):
        assert status.get(field) == wanted.get(field), field

    until(lambda: "stopping" in texts(ranks))
    cluster.exec("ranks-1", ["bash", "-c", "touch $TMPDIR/go"])
    ranks.wait_complete(timeout_s=300)
    seen = ranks.observe()
    assert facts(seen.body["status"]["conditions"])[1][:3] == ("Complete", "True", "SuccessPolicy")
    assert seen.pods[1]["status"]["reason"] == "Terminated"
    assert not shims(cluster, "Job/ranks")


def test_failed_pods_are_tried_again(cluster):
    script = "echo try; [ $(ls $SHARED | wc -l) = 2 ] && exit 0; mktemp -p $SHARED; exit 3"
    items = job(script, backoffLimit=3, env=[{"name": "SHARED", "value": "/shared"}])
    pods = pod_spec(items)
    pods["containers"][0]["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
    pods["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": "switches"}}]
    items.append(next(item for item in objects("server") if item.kind == "PersistentVolumeClaim"))
    work = cluster.apply_objects("work", items)
    work.wait_complete(timeout_s=300)
    status = work.observe().body["status"]
    assert (status["failed"], status["succeeded"]) == (2, 1)
    phases = [pod["status"]["phase"] for pod in work.observe().pods]
    assert phases == ["Failed", "Failed", "Succeeded"]
    assert texts(work).count("try") == 3, "every try's lines can be read"


def test_failure_counts_before_a_success_that_is_seen_with_it(cluster):
    """As the Job controller decides; the agent is stopped so that it sees both at once."""
    policy = {"rules": [{"succeededIndexes": "0"}]}
    script = "echo $$; until [ -e $TMPDIR/go ]; do sleep 0.02; done; exit $JOB_COMPLETION_INDEX"
    ranks = cluster.apply_objects("ranks", job(script, folder="indexed", successPolicy=policy))
    ranks.wait_ready(timeout_s=300)
    until(lambda: len(texts(ranks)) == 2)
    pods, running = ranks.pods, shims(cluster, "Job/ranks")
    agent = agent_pid(cluster)
    os.kill(agent, signal.SIGSTOP)
    try:
        for pod in pods:
            cluster.exec(pod, ["bash", "-c", "touch $TMPDIR/go"])
        until(lambda: not any(map(processes.is_running, running)))
    finally:
        os.kill(agent, signal.SIGCONT)
    with pytest.raises(ClusterError, match="BackoffLimitExceeded"):
        ranks.wait_complete(timeout_s=300)


def test_active_deadline(cluster):
    work = cluster.apply_objects("work", job("sleep 600", activeDeadlineSeconds=1))
    with pytest.raises(ClusterError, match="DeadlineExceeded: Job was active longer than"):
        work.wait_complete(timeout_s=300)
    assert [c["type"] for c in work.observe().body["status"]["conditions"]] == [
        "FailureTarget", "Failed"
    ]  # fmt: skip
    assert not shims(cluster, "Job/work")


def test_init_containers_come_first_and_the_first_that_fails_is_the_last(cluster):
    items = job("echo main")
    scripts = {"one": "echo one > $TMPDIR/made", "two": "cat $TMPDIR/made; exit 4", "three": "pwd"}
    pod_spec(items)["initContainers"] = [
        {"name": name, "image": "localhost/this-environment", "command": ["bash", "-c", script]}
        for name, script in scripts.items()
    ]
    work = cluster.apply_objects("work", items)
    with pytest.raises(ClusterError, match="BackoffLimitExceeded"):
        work.wait_complete(timeout_s=300)
    assert list(work.table()["reason"]) == ["container two ended with exit code 4"]
    assert texts(work) == ["one"]


def test_gpus_that_are_not_there_leave_a_pod_pending(cluster):
    """As a real scheduler says it; that a wait tells the reason is the protocol suite's."""
    items = job("true")
    pod_spec(items)["containers"][0]["resources"] = {"limits": {"example.com/gpu": "8"}}
    work = cluster.apply_objects("work", items)
    until(lambda: list(work.table()["state"]) == ["Pending"] and work.table()["reason"][0])
    real = recorded("insufficient-gpu")["condition"]
    wanted = real["message"].replace("nvidia.com", "example.com")
    conditions = work.observe().pods[0]["status"]["conditions"]
    assert facts(conditions) == [("PodScheduled", "False", real["reason"], wanted)]
    assert "FailedScheduling" in set(work.events()["reason"])


def test_memory_of_pods_that_run_is_counted(cluster):
    half = {"requests": {"memory": str(int(capacity()["memory"] * 0.6))}}
    items = job("until [ -e $TMPDIR/go ]; do sleep 0.05; done", completions=2, parallelism=2)
    pod_spec(items)["containers"][0]["resources"] = half
    work = cluster.apply_objects("work", items)
    until(lambda: sorted(work.table()["state"]) == ["Pending", "Running"])
    reason = next(row.reason for row in work.table().itertuples() if row.state == "Pending")
    assert "Insufficient memory" in reason and "No preemption victims found" in reason
    running = next(row.pod for row in work.table().itertuples() if row.state == "Running")
    cluster.exec(running, ["bash", "-c", "touch $TMPDIR/go"])
    until(lambda: sorted(work.table()["state"]) == ["Running", "Succeeded"])
