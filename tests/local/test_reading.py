"""Logs, exec and waiting: what a learner reads while something runs."""

import os
import signal
import threading

import pytest
from local_helpers import container_status, job, objects, pod_spec, texts, until

from workshop_lib.cluster.local import processes
from workshop_lib.errors import ClusterError, NotFoundError

WAIT = "until [ -e $TMPDIR/go ]; do sleep 0.02; done; rm $TMPDIR/go; "


@pytest.fixture
def cluster(busy_cluster):
    return busy_cluster


def go(cluster, pod):
    assert cluster.exec(pod, ["bash", "-c", "touch $TMPDIR/go"]).exit_code == 0


def test_follow_gives_lines_while_they_are_written(cluster):
    script = f"echo one; {WAIT} echo two; printf half; {WAIT} printf ' line'"
    work = cluster.apply_objects("work", job(script)).wait_ready(timeout_s=300)
    lines = work.logs(follow=True, timeout_s=120)
    first = next(lines)
    assert (first.text, first.pod, first.rank, first.container) == (
        "one", work.pods[0], None, "main"
    )  # fmt: skip
    assert str(first) == f"[{work.pods[0]}] one"
    go(cluster, "work")
    assert next(lines).text == "two"
    assert texts(work)[:2] == ["one", "two"]
    go(cluster, "work")
    assert [line.text for line in lines] == ["half line"], "half a line waits for its end"
    assert work.observe().body["status"]["succeeded"] == 1, "following ended with the Job"


def test_tail_is_about_what_is_there(cluster):
    script = f"seq 1 100; {WAIT} seq 101 105"
    work = cluster.apply_objects("work", job(script)).wait_ready(timeout_s=300)
    until(lambda: len(texts(work)) == 100)
    assert texts(work, tail=2) == ["99", "100"]
    assert texts(work, tail=0) == []
    lines = work.logs(follow=True, tail=1, timeout_s=300)
    assert next(lines).text == "100"
    go(cluster, "work")
    assert [line.text for line in lines] == ["101", "102", "103", "104", "105"]


def test_following_ends_at_its_time_limit_and_with_deletion(cluster):
    work = cluster.apply_objects("work", job("echo up; sleep 600")).wait_ready(timeout_s=300)
    until(lambda: texts(work) == ["up"])
    assert texts(work, follow=True, timeout_s=0.3) == ["up"]
    lines = work.logs(follow=True, timeout_s=120)
    assert next(lines).text == "up"
    stopper = threading.Thread(target=cluster.delete, args=("work",))
    stopper.start()
    assert list(lines) == []
    stopper.join()
    with pytest.raises(NotFoundError, match="Job/work is not there"):
        list(work.logs())


def test_follow_reads_every_run_of_a_container(cluster):
    items = [item for item in objects("server") if item.kind == "Deployment"]
    container = pod_spec(items)["containers"][0]
    del container["volumeMounts"], container["readinessProbe"], pod_spec(items)["volumes"]
    container["command"] = ["bash", "-c", f"echo run; {WAIT} exit 1"]
    web = cluster.apply_objects("web", items)
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


def test_exec_keeps_output_and_errors_apart(cluster):
    work = cluster.apply_objects("work", job("sleep 600", env=[{"name": "A", "value": "b c"}]))
    work.wait_ready(timeout_s=300)
    result = cluster.exec("work", ["bash", "-c", 'echo "$A"; echo wrong >&2; pwd; exit 3'])
    assert result.exit_code == 3 and result.stderr == "wrong\n"
    said = result.stdout.splitlines()
    assert said[0] == "b c" and said[1].startswith(str(cluster.paths.volumes))
    assert str(result).endswith("(exit code 3)")
    assert str(cluster.exec("work", ["echo", "fine"])) == "fine"
    assert cluster.exec(work.pods[0], ["cat"]).stdout == "", "there is nothing to read"


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
    script = "sleep 600 & echo $!; kill -KILL $$"
    result = cluster.exec("work", ["bash", "-c", script], timeout_s=300)
    assert result.exit_code == 137, "as kubectl says it"
    os.kill(int(result.stdout), signal.SIGKILL)


def test_exec_names_what_is_wrong(cluster):
    with pytest.raises(NotFoundError, match="'work' is no running pod's name: neighbour-"):
        cluster.exec("work", ["true"])
    items = job("sleep 600", completions=2, parallelism=2)
    work = cluster.apply_objects("work", items).wait_ready(timeout_s=300)
    with pytest.raises(NotFoundError, match="'work' fits several pods: work-"):
        cluster.exec("work", ["true"])
    pod = work.pods[0]
    with pytest.raises(ClusterError, match="'no-such-program': No such file"):
        cluster.exec(pod, ["no-such-program"])
    with pytest.raises(NotFoundError, match=f"{pod} has no container 'x'; it has main"):
        cluster.exec(pod, ["true"], container="x")
