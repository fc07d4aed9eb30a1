"""Logs and exec beyond what the protocol suite asks: restarts, half lines, what is left behind."""

import os
import signal

import pytest
from local_helpers import container_status, job, sleeper, texts, until

from workshop_lib.cluster.local import processes
from workshop_lib.errors import ClusterError, NotFoundError

WAIT = "until [ -e $TMPDIR/go ]; do sleep 0.02; done; rm $TMPDIR/go; "


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def go(cluster, pod):
    assert cluster.exec(pod, ["bash", "-c", "touch $TMPDIR/go"]).exit_code == 0


def test_half_a_line_waits_for_its_end_and_tail_is_about_what_is_there(cluster):
    script = f"seq 1 100; {WAIT} echo two; printf half; {WAIT} printf ' line'"
    work = cluster.apply_objects("work", job(script)).wait_ready(timeout_s=300)
    until(lambda: len(texts(work)) == 100)
    assert (texts(work, tail=2), texts(work, tail=0)) == (["99", "100"], [])
    lines = work.logs(follow=True, tail=1, timeout_s=300)
    first = next(lines)
    assert (first.text, first.rank, first.container) == ("100", None, "main")
    assert str(first) == f"[{work.pods[0]}] 100"
    go(cluster, "work")
    assert next(lines).text == "two"
    go(cluster, "work")
    assert [line.text for line in lines] == ["half line"]
    assert work.observe().body["status"]["succeeded"] == 1, "following ended with the Job"


def test_following_ends_with_deletion(cluster):
    work = cluster.apply_objects("work", job("echo up; sleep 600")).wait_ready(timeout_s=300)
    lines = work.logs(follow=True, timeout_s=300)
    assert next(lines).text == "up"
    cluster.delete("work")
    assert list(lines) == []


def test_follow_reads_every_run_of_a_container(cluster):
    web = cluster.apply_objects("web", sleeper(f"echo run; {WAIT} exit 1"))
    with pytest.raises(NotFoundError, match="Deployment/server: nothing was restarted"):
        list(web.logs(previous=True))
    until(lambda: texts(web) == ["run"])
    lines = web.logs(follow=True, timeout_s=300)
    assert next(lines).text == "run"
    for run in (1, 2):
        go(cluster, "server")
        until(lambda run=run: container_status(web)["restartCount"] == run)
        assert next(lines).text == "run"
    assert texts(web, previous=True) == ["run"]


def test_exec_has_the_containers_environment_and_folder(cluster):
    cluster.apply_objects(
        "work", job("sleep 600", env=[{"name": "A", "value": "b c"}])
    ).wait_ready()
    said = cluster.exec("work", ["bash", "-c", 'echo "$A"; pwd; cat']).stdout.splitlines()
    assert said[0] == "b c" and said[1].startswith(str(cluster.paths.volumes)) and len(said) == 2


def test_exec_that_takes_too_long_is_killed_with_all_it_started(cluster):
    cluster.apply_objects("work", job("sleep 600")).wait_ready(timeout_s=300)
    script = "echo $$ > $TMPDIR/pid; (echo $BASHPID > $TMPDIR/child; exec sleep 600) & sleep 600"
    pids = []
    for limit_s in (2, 20, 120):  # how long bash needs to start both is the machine's affair
        with pytest.raises(ClusterError, match=f"did not end within {limit_s} s and was killed"):
            cluster.exec("work", ["bash", "-c", script], timeout_s=limit_s)
        pids = cluster.exec("work", ["bash", "-c", "cat $TMPDIR/pid $TMPDIR/child"]).stdout.split()
        if len(pids) == 2:
            break
    assert len(pids) == 2 and not any(processes.is_running(int(pid)) for pid in pids)


def test_exec_ends_with_its_command_whatever_that_left_behind(cluster):
    cluster.apply_objects("work", job("sleep 600")).wait_ready(timeout_s=300)
    result = cluster.exec("work", ["bash", "-c", "sleep 600 & echo $!; kill -KILL $$"])
    assert result.exit_code == 137, "as kubectl says it"
    os.kill(int(result.stdout), signal.SIGKILL)


def test_exec_names_what_is_wrong(cluster):
    items = job("sleep 600", completions=2, parallelism=2)
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    with pytest.raises(NotFoundError, match="'work' fits several pods: work-"):
        cluster.exec("work", ["true"])
    with pytest.raises(NotFoundError, match=f"{work.pods[0]} has no container 'x'; it has main"):
        cluster.exec(work.pods[0], ["true"], container="x")
