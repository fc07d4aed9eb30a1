"""Logs over HTTP: every line once, whatever happens to the stream."""

import itertools
import threading

import pytest
from objects import deployment, job, objects

from workshop_lib.cluster.kubernetes.logs import LogGapWarning
from workshop_lib.errors import ClusterError, NotFoundError


@pytest.fixture
def running(emulator, cluster):
    """A Job with one pod that runs."""
    work = cluster.apply_objects("demo", objects(job()))
    emulator.add_pod(emulator.get("Job", "talk"), "talk-abcde")
    return work


def finish(emulator, name="talk"):
    emulator.set_status("Job", name, conditions=[{"type": "Complete", "status": "True"}])


def texts(lines):
    return [line.text for line in lines]


def test_what_was_written(emulator, cluster):
    work = cluster.apply_objects("demo", objects(job(completions=2, completionMode="Indexed")))
    for index in (1, 0):
        emulator.add_pod(emulator.get("Job", "talk"), f"talk-{index}-x", index=index,
                         containers=("main", "side"))  # fmt: skip
        emulator.kubelet.log(f"talk-{index}-x").write(f"one {index}\r", f"  two: {index} ", "")
        emulator.kubelet.log(f"talk-{index}-x", "side").write("aside")
    seen = [(line.rank, line.container, line.text) for line in work.logs()]
    assert seen == [
        (0, "main", "one 0"), (0, "main", "  two: 0 "), (0, "main", ""), (0, "side", "aside"),
        (1, "main", "one 1"), (1, "main", "  two: 1 "), (1, "main", ""), (1, "side", "aside"),
    ]  # fmt: skip
    assert texts(work.logs(tail=1)) == ["", "aside"] * 2
    assert str(next(iter(work.logs()))) == "[rank 0] one 0"


def test_nothing_yet_and_nothing_there(emulator, cluster, running):
    pod = emulator.add_pod(emulator.get("Job", "talk"), "talk-later",
                           state={"waiting": {"reason": "ContainerCreating"}})  # fmt: skip
    assert pod and texts(running.logs()) == []
    with pytest.raises(NotFoundError, match="Job/none is not there"):
        list(cluster.logs("Job", "none"))


def test_previous(emulator, cluster, running):
    with pytest.raises(NotFoundError, match="Job/talk: nothing was restarted"):
        list(running.logs(previous=True))
    emulator.kubelet.log("talk-abcde").write("first run")
    emulator.kubelet.restart("talk-abcde").write("second run")
    emulator.set_state("talk-abcde", {"running": {}}, restarts=1)
    assert texts(running.logs(previous=True)) == ["first run"]
    assert texts(running.logs()) == ["second run"]


def test_a_previous_log_that_the_node_has_deleted(emulator, cluster, running):
    """A kubelet says so with status 200: it is no line of the container's."""
    emulator.kubelet.restart("talk-abcde").write("second run")
    emulator.kubelet.deleted.add(("talk-abcde", "main"))
    emulator.set_state("talk-abcde", {"running": {}}, restarts=1)
    with pytest.raises(NotFoundError) as error:
        list(running.logs(previous=True))
    assert str(error.value) == (
        "talk-abcde: its node has deleted the log of the previous run (it keeps one); "
        "logs() has the last run's"
    )
    assert cluster.snapshot()["logs"] == {"talk-abcde/main": "second run\n"}


def test_following_over_a_restart_whose_log_is_deleted(emulator, cluster, running):
    emulator.kubelet.log("talk-abcde").write("first run")
    lines = running.logs(follow=True)
    assert next(lines).text == "first run"
    emulator.kubelet.deleted.add(("talk-abcde", "main"))
    emulator.set_state("talk-abcde", {"running": {}}, restarts=1)
    emulator.kubelet.restart("talk-abcde").write("second run")
    with pytest.warns(LogGapWarning, match="talk-abcde was restarted: its last lines may be miss"):
        assert next(lines).text == "second run"
    lines.close()


def test_following_over_two_restarts_at_once(emulator, cluster, running):
    """Of the run in between nothing is left: that is said."""
    emulator.kubelet.log("talk-abcde").write("first run")
    lines = running.logs(follow=True)
    assert next(lines).text == "first run"
    emulator.set_state("talk-abcde", {"running": {}}, restarts=2)
    emulator.kubelet.restart("talk-abcde").write("second run")
    emulator.kubelet.restart("talk-abcde").write("third run")
    with pytest.warns(LogGapWarning, match="was restarted 2 times: lines may be missing"):
        assert texts(itertools.islice(lines, 2)) == ["second run", "third run"]
    lines.close()


def test_a_log_that_was_rotated_before_it_was_read_on(emulator, cluster, running):
    """Only the newest file is given: what was in the one before is lost, and that is said."""
    log = emulator.kubelet.log("talk-abcde")
    at = "2026-11-21T04:52:{}.500000000Z"
    log.write("a", stamp=at.format(10))
    lines = running.logs(follow=True)
    assert next(lines).text == "a"
    log.write("nobody reads this", stamp=at.format(11))
    log.rotate()
    log.write("b", stamp=at.format(12))
    with pytest.warns(LogGapWarning) as said:
        assert next(lines).text == "b"
    lines.close()
    assert [str(each.message) for each in said] == [
        f"talk-abcde has rotated its log: lines between {at.format(10)} and {at.format(12)} may be "
        "missing: only the newest file of a log is given"
    ]


def test_times_out_of_order_and_of_another_zone(emulator, cluster, running):
    """stdout and stderr are stamped apart: a line may be older than the one before it."""
    log = emulator.kubelet.log("talk-abcde")
    at = "2026-11-21T06:00:{}0000000+02:00"
    log.write("b", stamp=at.format("10.01"))
    log.write("a", stamp=at.format("09.90"))
    lines = running.logs(follow=True)
    assert texts(itertools.islice(lines, 2)) == ["b", "a"]
    log.write("late", stamp=at.format("09.95"))
    assert next(lines).text == "late"
    lines.close()
    assert emulator.sent("GET", r"sinceTime=2026-11-21T06:00:09\+02:00")


@pytest.mark.filterwarnings("error")  # nothing is missing, and nothing is said
def test_following_takes_in_new_pods_and_restarts(emulator, cluster):
    work = cluster.apply_objects("demo", objects(deployment()))
    uid = emulator.get("Deployment", "server")["metadata"]["uid"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet",
             "metadata": {"name": "server-7d9f", "uid": uid}}  # fmt: skip
    labels = {"app": "server"}
    emulator.add_pod(owner, "server-7d9f-a", labels=labels, restartPolicy="Always")
    emulator.add_pod(None, "stray", labels=labels)
    emulator.kubelet.log("stray").write("not ours")
    emulator.kubelet.log("server-7d9f-a").write("a 1")
    lines = work.logs(follow=True)
    assert next(lines).text == "a 1"
    emulator.kubelet.log("server-7d9f-a").write("a 2")
    emulator.kubelet.restart("server-7d9f-a").write("a 3, after a restart")
    emulator.set_state("server-7d9f-a", {"running": {}}, restarts=1)
    assert texts(itertools.islice(lines, 2)) == ["a 2", "a 3, after a restart"]
    emulator.add_pod(owner, "server-7d9f-b", labels=labels, restartPolicy="Always")
    emulator.kubelet.log("server-7d9f-b").write("b 1")
    assert next(lines).text == "b 1"
    cluster.delete("demo")
    for name in ("server-7d9f-a", "server-7d9f-b"):
        emulator.kubelet.log(name).end()
    assert texts(lines) == []


def test_tail_and_then_follow(emulator, cluster, running):
    log = emulator.kubelet.log("talk-abcde")
    log.write("a", "b", "c")
    lines = running.logs(follow=True, tail=1)
    assert next(lines).text == "c"
    log.write("d")
    assert next(lines).text == "d"
    lines.close()


def test_a_server_that_stays_away(emulator, cluster, running):
    emulator.kubelet.log("talk-abcde").write("a")
    emulator.fail("GET", "/log", status=500, times=10**6)
    with pytest.raises(ClusterError, match="the log of talk-abcde: the server answered 500"):
        list(running.logs())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("same_time", [False, True], ids=["real times", "times repeat"])
def test_200_drops_lose_and_repeat_nothing(emulator, cluster, running, same_time):
    """Streams break at random, in the middle of lines, while the container writes."""
    kubelet, written = emulator.kubelet, []
    kubelet.drop_after, kubelet.most_drops = 250, 200
    log = kubelet.log("talk-abcde")
    stop = threading.Event()

    def write():
        # A slow machine's reader comes back less often: written until it was dropped 200 times.
        while len(written) < 3000 or kubelet.drops < 200:
            number = len(written)
            # All of a batch carry one timestamp, to the nanosecond.
            minute, second = divmod(number // 100, 60)
            at = f"2026-11-21T{4 + minute // 60:02}:{minute % 60:02}:{second:02}"
            log.write(f"line {number}", stamp=f"{at}.{number // 50:09}Z" if same_time else None)
            written.append(f"line {number}")
            if number % 10 == 0 and kubelet.drops < 200 and stop.wait(0.005):
                return
        emulator.end_pod("talk-abcde")
        finish(emulator)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = texts(running.logs(follow=True, timeout_s=900))
    finally:
        stop.set()
        writer.join()
    assert kubelet.drops == 200
    assert seen == written
