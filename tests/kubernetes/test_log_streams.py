"""Logs over HTTP: every line once, whatever happens to the stream."""

import contextlib
import itertools
import random
import socket
import threading
import time

import pytest
import urllib3
from local_helpers import until
from objects import deployment, job, objects

from workshop_lib.cluster.kubernetes.api import Lost
from workshop_lib.cluster.kubernetes.container_log import LogGapWarning
from workshop_lib.cluster.kubernetes.resuming import Position
from workshop_lib.cluster.kubernetes.streams import blocks
from workshop_lib.errors import ConnectError, NotFoundError


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


def test_one_pod(emulator, cluster, running):
    emulator.kubelet.log("talk-abcde").write("a", "b")
    assert texts(cluster.logs("Pod", "talk-abcde")) == ["a", "b"]


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
    log.end()
    time.sleep(0.3)
    log.write("nobody reads this", stamp=at.format(11))
    log.rotate()
    log.write("b", stamp=at.format(12))
    log.ended = False
    with pytest.warns(LogGapWarning) as said:
        assert next(lines).text == "b"
    lines.close()
    assert [str(each.message) for each in said] == [
        f"talk-abcde: lines between {at.format(10)} and {at.format(12)} may be missing: its node "
        "had rotated the log before they were read, and gives only the newest file"
    ]


def test_following_ends_with_the_workload_and_not_with_a_stream(emulator, cluster, running):
    log = emulator.kubelet.log("talk-abcde")
    log.write("a")
    lines = running.logs(follow=True)
    assert next(lines).text == "a"
    # The server ends the stream cleanly, as a proxy does after some minutes; the pod runs on.
    log.end()
    until(lambda: len(emulator.sent("GET", "/log")) > 1)
    log.ended = False
    log.write("b")
    assert next(lines).text == "b"
    log.write("c")
    emulator.end_pod("talk-abcde")
    assert next(lines).text == "c"
    finish(emulator)
    assert list(lines) == []


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


def test_stopping_early_and_by_time(emulator, cluster, running):
    """The fixture proves that neither leaves a thread, the emulator that no socket is open."""
    emulator.kubelet.log("talk-abcde").write("a", "b")
    lines = running.logs(follow=True)
    assert next(lines).text == "a"
    lines.close()
    # It ends by itself after any time; how long two lines take is the machine's affair.
    found = (texts(running.logs(follow=True, timeout_s=limit_s)) for limit_s in (0.5, 5, 60))
    assert ["a", "b"] in found


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
    with pytest.raises(ConnectError, match="the log of talk-abcde: the server answered 500"):
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


def test_a_truncated_read_is_completed(emulator, cluster, running):
    log = emulator.kubelet.log("talk-abcde")
    for number in range(2000):
        log.write(f"line {number}", stamp=f"2026-11-21T04:52:{number // 100:02}.500000000Z")
    emulator.kubelet.drop_after, emulator.kubelet.most_drops = 250, 20
    assert texts(running.logs()) == [f"line {number}" for number in range(2000)]
    assert emulator.kubelet.drops >= 7  # a stream gives 250 lines at most


# -- the position, without a server ---------------------------------------------------------------


def stamped(*pairs):
    return [f"2026-11-21T04:52:{second}Z {text}" for second, text in pairs]


def test_a_rotated_log_is_gone_on_with_by_time():
    position = Position()
    assert position.new(stamped(("49.1", "a"), ("49.2", "b"), ("49.3", "c"))) == ["a", "b", "c"]
    position.resume()
    # The file was rotated: a and b are gone, c and what follows are in the new one.
    assert position.new(stamped(("49.3", "c"), ("49.4", "d"))) == ["d"]
    assert position.gap == ""
    position.resume()
    assert position.new(stamped(("49.6", "f"))) == ["f"]
    assert position.gap == "2026-11-21T04:52:49.4Z and 2026-11-21T04:52:49.6Z"


def test_times_out_of_order_are_no_loss():
    """stdout and stderr are stamped apart: a line may be older than the one before it."""
    position = Position()
    position.new(stamped(("50.01", "b"), ("49.9", "a")))
    assert position.resume() == "2026-11-21T04:52:49Z"
    assert position.new(stamped(("50.01", "b"), ("49.9", "a"), ("49.95", "late"))) == ["late"]


def test_other_time_zones():
    position = Position()
    position.new(["2026-11-21T06:00:00.100000000+02:00 a"])
    assert position.resume() == "2026-11-21T06:00:00+02:00"


def test_a_word_of_the_kubelets_own():
    position = Position()
    assert position.new(["unable to retrieve container logs"]) == [
        "unable to retrieve container logs"
    ]


@pytest.mark.parametrize("order", ["going up", "times repeat", "mixed"])
def test_whatever_the_batches_a_resumed_stream_gives_the_rest_once(order):
    """A server's side of the promise: what `sinceTime` selects, in its order."""
    for seed in range(150):
        source = random.Random(f"{order} {seed}")
        clock, log = 0.0, []
        for number in range(source.randrange(1, 60)):
            clock += source.choice([0.0 if order == "times repeat" else 0.001, 0.01, 0.7, 1.9])
            late = source.choice([0.0, 0.05]) if order == "mixed" else 0.0
            minute, second = divmod(max(0.0, clock - late), 60)
            # Texts that go down: whole lines at one time are then not sorted.
            text = f"line {99 - number}"
            log.append(f"2026-11-21T23:{minute:02.0f}:{second:012.9f}Z {text}")
        position, seen = Position(), []
        for _ in range(200):
            since = position.resume() or ""
            stream = [line for line in log if line[:19] >= since[:19]]
            size = source.randrange(1, 20)
            while stream and source.random() < 0.8:  # else it breaks
                batch, stream = stream[:size], stream[size:]
                seen += position.new(batch)
        assert seen == [line.partition(" ")[2] for line in log], (order, seed)
        assert position.gap == "", (order, seed)


# -- the bytes of one answer ----------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def answered(*pieces):
    """A response whose bytes are these, after which its server hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            client, _ = listener.accept()
            with client:
                client.recv(1 << 16)
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(0.01)  # most often it then arrives by itself

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/log"
        with urllib3.PoolManager() as pool:
            response = pool.request("GET", url, preload_content=False, retries=False)
            yield response
            response.close()
        thread.join()


@pytest.mark.parametrize(
    "pieces",
    [
        (CHUNKED + b"3\r\na\nb\r\n2;x=y\r\n\nc\r\n0\r\n\r\n",),
        (CHUNKED, b"3\r", b"\na\n", b"b\r\n2\r\n\nc", b"\r\n0\r\n", b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na\n", b"b\nc"),
        (b"HTTP/1.1 200 OK\r\n\r\na\nb", b"\nc"),
    ],
    ids=["chunks at once", "chunks in pieces", "with a length", "to the end"],
)
def test_the_bytes_of_an_answer(pieces):
    with answered(*pieces) as response:
        assert b"".join(blocks(response)) == b"a\nb\nc"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (b"5\r\ncd", "ended before its last chunk"),
        (b"2\r\ncd\r\n", "ended before its last chunk"),
        (b"2\r\ncdnot a size\r\n", "not HTTP"),
    ],
    ids=["in a chunk", "between chunks", "no chunk"],
)
def test_a_stream_that_breaks_gives_first_what_it_brought(rest, words):
    """Else a server whose streams break early would never be read to its end."""
    got = []
    with (
        answered(CHUNKED + b"2\r\nab\r\n" + rest) as response,
        pytest.raises(Lost, match=words),
    ):
        for block in blocks(response):
            got.append(block)
    assert b"".join(got).startswith(b"abcd")
