"""`make bench`: the frame, the processes, the mock server, and one tiny real run."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from bench_servers import control_of

from workshop_lib.errors import WorkshopError
from workshop_lib.tools import bench
from workshop_lib.tools.measures import client
from workshop_lib.tools.measures.client import Client, Peer, known_peers
from workshop_lib.tools.measures.clients import Measured, vllm_client, workshop_client
from workshop_lib.tools.measures.cpu_times import process_cpu_s, process_family
from workshop_lib.tools.measures.frame import (
    Bar,
    Comparison,
    Quantity,
    Report,
    Side,
    compare,
    interleave,
    measure,
    table,
)
from workshop_lib.tools.measures.mock_server import (
    Load,
    MockServer,
    Observation,
    Stream,
)
from workshop_lib.tools.measures.paced import Pace, check_load, stamp_errors
from workshop_lib.tools.measures.sustained import highest, sustained_side
from workshop_lib.tools.measures.workers import Worker, answer, two_cores

HALF = Quantity("time", "time", "s", Bar("ratio", "at most", 0.5))


@dataclass
class Toy:
    """An entry whose times are given beforehand."""

    ours: Sequence[float]
    theirs: Sequence[float]
    name: str = "toy"
    rounds: int = 3
    quantity: Quantity = HALF
    order: list[str] = field(default_factory=list)
    stopped: bool = False

    @contextlib.contextmanager
    def prepare(self, say: Callable[[str], None]) -> Iterator[list[Comparison]]:
        say("starting")
        sides = {"ours": self.side("A", self.ours), "theirs": self.side("B", self.theirs)}
        try:
            yield [Comparison("toy: a comparison", sides, [self.quantity])]
        finally:
            self.stopped = True

    def side(self, letter: str, times: Sequence[float]) -> Side:
        coming = iter(times)

        def sample() -> dict[str, float]:
            self.order.append(letter)
            value = next(coming)
            if value < 0:
                raise WorkshopError("it broke")
            return {"time": value}

        return sample


def run(tmp_path: Path, *toys: Toy, arguments: Sequence[str] = ()) -> tuple[int, dict[str, Any]]:
    status = bench.main(arguments, known={toy.name: toy for toy in toys}, root=tmp_path)
    return status, json.loads((tmp_path / "build" / "bench.json").read_text())


# The frame.


def test_sides_are_measured_in_turn_and_medians_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = Toy([1, 50, 2], [4, 6, 900])
    status, data = run(tmp_path, toy)
    assert toy.order == list("ABABAB") and toy.stopped
    assert status == 0
    (report,) = data["entries"]["toy"]["comparisons"]
    (row,) = report["rows"]
    assert (row["first"], row["second"]) == (2, 6) and row["ratio"] == pytest.approx(1 / 3)
    assert row["ranges"] == [[1, 50], [4, 900]] and row["met"] is True
    assert report["samples"] == {"ours": {"time": [1, 50, 2]}, "theirs": {"time": [4, 6, 900]}}
    assert data["machine"]["cores"] and data["versions"]["python"] and data["date"]
    shown = capsys.readouterr()
    assert "2 (1 to 50)" in shown.out and "0.333" in shown.out and "pass" in shown.out
    assert str(tmp_path / "build" / "bench.json") in shown.out
    assert "toy" in shown.err  # the progress


def test_a_missed_bar_is_said_and_fails_only_when_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, Toy([3] * 3, [4] * 3))[0] == 0
    shown = capsys.readouterr().out
    assert "MISSED" in shown
    assert "Missed: toy: time: ours 3 s, 0.75 times theirs; the bar is ratio at most 0.5" in shown
    assert run(tmp_path, Toy([3] * 3, [4] * 3), arguments=["--strict"])[0] == 1
    assert run(tmp_path, Toy([1] * 3, [4] * 3), arguments=["--strict"])[0] == 0


def test_a_measurement_that_proves_nothing_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = Quantity("time", "margin", "times", Bar("median", "at least", 2, proves=True))
    assert run(tmp_path, Toy([1.5] * 3, [9] * 3, quantity=needed))[0] == 1
    shown = capsys.readouterr()
    assert "INVALID" in shown.out and "Not measured: toy: margin" in shown.err
    assert run(tmp_path, Toy([2.5] * 3, [1] * 3, quantity=needed))[0] == 0


def test_a_broken_entry_is_one_line_and_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, good = Toy([1, -1], [4, 4], name="broken"), Toy([1] * 3, [4] * 3, name="good")
    status, data = run(tmp_path, broken, good)
    assert status == 1 and broken.stopped
    line = "ours, round 2 of 3: it broke"
    assert f"WorkshopError: broken: {line}\n" in capsys.readouterr().err
    assert data["entries"]["broken"]["error"] == line
    assert data["entries"]["good"]["comparisons"]


def test_only_and_rounds(tmp_path: Path) -> None:
    toys = Toy([1] * 9, [2] * 9, name="one"), Toy([1] * 9, [2] * 9, name="two")
    _, data = run(tmp_path, *toys, arguments=["--only", "two", "--rounds", "7"])
    assert list(data["entries"]) == ["two"] and len(toys[1].order) == 14 and not toys[0].order


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--rounds", "0"], ["--rounds", "x"]])
def test_wrong_arguments_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        bench.main(arguments, known={"toy": Toy([1], [1])}, root=tmp_path)
    assert refused.value.code == 2
    assert repr(arguments[1]) in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "build").exists()


def test_a_signal_ends_it_and_stops_what_runs(tmp_path: Path) -> None:
    class Stopped(Toy):
        def side(self, letter: str, times: Sequence[float]) -> Side:
            def sample() -> dict[str, float]:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
                raise AssertionError("the signal did not come")

            return sample

    toy = Stopped([], [])
    assert bench.main([], known={"toy": toy}, root=tmp_path) == 128 + signal.SIGTERM
    assert toy.stopped


def test_a_quantity_that_one_side_lacks() -> None:
    row = compare(Quantity("x", "x", "s", Bar("ratio", "at most", 1)), [1.0], [])
    assert row.ratio is None and row.met is False
    report = Report("title", ("a", "b"), [row], interleave({"a": lambda: {"x": 1.0}}, 1))
    line = " ".join(table(report).splitlines()[2].split())
    assert line == "x s 1 (1 to 1) - - ratio at most 1 MISSED"


def test_what_is_measured_by_default() -> None:
    known = bench.entries(Path("build"))
    assert list(known) == ["client", "live-vllm", "apply", "log-lines", "grpo-step"]
    assert all(entry.rounds >= 3 for entry in known.values())


@pytest.mark.parametrize(
    ("bar", "good", "bad", "text"),
    [
        (Bar("ratio", "1 ±", 0.1), [([9.5], [10]), ([10.5], [10])],
         [([8], [10]), ([12], [10]), ([1], [])], "ratio 1 ± 0.1"),
        (Bar("each median", "at least", 2), [([2], [3])], [([1], [3]), ([3], [1]), ([3], [])],
         "each median at least 2 s"),
        (Bar("median", "at most", 2), [([2], [3]), ([2], [])], [([3], [1]), ([], [1])],
         "median at most 2 s"),
    ],
)  # fmt: skip
def test_bars(bar: Bar, good: Any, bad: Any, text: str) -> None:
    quantity = Quantity("x", "x", "s", bar)
    assert [compare(quantity, *sides).met for sides in good] == [True] * len(good)
    assert [compare(quantity, *sides).met for sides in bad] == [False] * len(bad)
    assert bar.text("s") == text


# The processes.


def ends_at_once(connection: Connection) -> None:
    connection.send(None)
    connection.recv()
    print("the last line of its log", flush=True)
    os._exit(3)


def obedient(connection: Connection) -> None:
    def handle(question: Any) -> Any:
        if question == "fail":
            raise ValueError("two\nwords")
        if question == "sleep":
            time.sleep(3600)
        return os.sched_getaffinity(0)

    answer(connection, handle)


def test_workers_run_on_their_core_and_end_with_their_block(tmp_path: Path) -> None:
    core = two_cores()[1]
    with Worker("obedient", obedient, core, tmp_path) as worker:
        worker.wait_ready(300)
        assert worker.ask("where", timeout_s=300) == {core}
        with pytest.raises(WorkshopError, match=r"^obedient failed: .*ValueError: two words; see"):
            worker.ask("fail", timeout_s=300)
        assert worker.ask("again", timeout_s=300) == {core}
        with pytest.raises(WorkshopError, match=r"not answered for 0\.1 s; see .*obedient\.log"):
            worker.ask("sleep", timeout_s=0.1)
        pid = worker.pid
        worker.stop(0.1)  # and not after the hour that it sleeps
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_worker_without_a_core_has_all(tmp_path: Path) -> None:
    with Worker("free", obedient, None, tmp_path) as worker:
        worker.wait_ready(300)
        assert worker.ask("where", timeout_s=300) == os.sched_getaffinity(0)


def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    with Worker("short lived", ends_at_once, two_cores()[0], tmp_path) as worker:
        worker.wait_ready(300)
        said = (
            r"^short lived ended with status 3: the last line of its log; see .*short-lived\.log$"
        )
        with pytest.raises(WorkshopError, match=said):
            worker.ask("anything", timeout_s=300)
        with pytest.raises(WorkshopError, match=said):
            worker.ask("anything", timeout_s=300)


def test_one_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    with pytest.raises(WorkshopError, match="a core each"):
        two_cores()


# The mock server.


@pytest.fixture
def control() -> Iterator[Connection]:
    with control_of(MockServer) as connection:
        yield connection


def started(control: Connection, load: Load) -> http.client.HTTPConnection:
    control.send(load)
    url: str = control.recv()
    return http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)


def observed(control: Connection) -> Observation:
    control.send(None)
    seen: Observation = control.recv()
    return seen


def ask(connection: http.client.HTTPConnection, body: Any) -> http.client.HTTPResponse:
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    return connection.getresponse()


def test_the_mock_server_streams_at_its_pace_and_stamps_each_token(control: Connection) -> None:
    connection = started(control, Load(ttft_ms=30, itl_ms=10, watch_pid=os.getpid()))
    for number in (1, 2):  # over one connection
        response = ask(connection, {"stream": True, "max_tokens": 6})
        assert response.status == 200
        events = response.read().decode().split("\n\n")
        messages = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        assert events[-2:] == ["data: [DONE]", ""]
        deltas = [choice["delta"] for message in messages for choice in message["choices"]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert [delta["content"] for delta in deltas[1:]] == [" token"] * 6
        assert messages[-2]["choices"][0]["finish_reason"] == "length"
        assert messages[-1]["usage"] == {
            "prompt_tokens": number,
            "completion_tokens": 6,
            "total_tokens": number + 6,
        }
    seen = observed(control)
    assert seen.tokens == 12 and seen.most_at_once == 1 and seen.client_cpu_s > 0
    for stream in seen.streams:
        after_ms = [1000 * (stamp - stream.received_s) for stamp in stream.text_s]
        # Never early; how late is this machine's affair.
        assert all(after >= 30 + 10 * n - 0.001 for n, after in enumerate(after_ms))
    # A new load begins a new observation.
    assert not observed_after(control, Load(1, 1)).streams


def observed_after(control: Connection, load: Load) -> Observation:
    control.send(load)
    control.recv()
    return observed(control)


def test_what_the_mock_server_does_not_do_it_says(control: Connection) -> None:
    connection = started(control, Load(ttft_ms=1, itl_ms=1))
    for body in ({"max_tokens": 3}, {"stream": True}, {"stream": True, "max_tokens": -1}, []):
        response = ask(connection, body)
        assert response.status == 400 and b"only streams" in response.read()
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.status == 404 and response.read()
    assert not observed(control).streams


def test_a_client_that_leaves_does_not_stop_the_mock_server(control: Connection) -> None:
    leaving = started(control, Load(ttft_ms=1, itl_ms=1))
    ask(leaving, {"stream": True, "max_tokens": 10_000}).read(10)
    leaving.sock.close()
    connection = started(control, Load(ttft_ms=1, itl_ms=0))
    assert ask(connection, {"stream": True, "max_tokens": 500}).read().endswith(b"[DONE]\n\n")
    assert [len(stream.text_s) for stream in observed(control).streams] == [500]


def test_the_cpu_clock_of_a_process_is_read_from_outside() -> None:
    before_s = time.process_time()
    seen_s = process_cpu_s(os.getpid())
    assert before_s - 0.01 <= seen_s <= time.process_time() + 0.01


def test_a_client_of_several_processes_is_watched_whole() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as parent:
        until(lambda: len(process_family(parent.pid)) == 2)
        family = process_family(parent.pid)
        assert family[0] == parent.pid and set(family) <= set(process_family(os.getpid()))
        parent.communicate(b"\n")
    assert process_family(parent.pid) == [parent.pid]


def until(look: Callable[[], bool], timeout_s: float = 300.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_errors_are_counted_against_the_stamps_of_the_same_stream() -> None:
    seen = Observation(
        [Stream(1, 10.0, [10.1, 10.12, 10.14]), Stream(2, 10.05, [10.25, 10.27, 10.29])]
    )
    measured = [Measured(2, 201.0, [19.0, 20.5]), Measured(1, 100.5, [20.0, 24.0])]
    ttft_ms, itl_ms = stamp_errors(measured, seen)
    assert ttft_ms == pytest.approx(0.75) and itl_ms == pytest.approx(0.75)
    means = [Measured(1, 100.0, [20.5], only_mean=True), Measured(2, 200.0, [20.5], only_mean=True)]
    assert stamp_errors(means, seen)[1] == pytest.approx(0.5)
    with pytest.raises(WorkshopError, match="other ones"):
        stamp_errors(measured[:1], seen)
    with pytest.raises(WorkshopError, match=r"3 tokens were sent .* reports 1 times"):
        stamp_errors([measured[1], Measured(2, 201.0, [19.0])], seen)


def test_another_load_than_the_named_one_is_refused() -> None:
    def seen(gap_s: float, requests: int = 6) -> Observation:
        stamps = [n * gap_s for n in range(8)]
        return Observation([Stream(n + 1, 0.0, stamps) for n in range(requests)], most_at_once=3)

    entry = replace(TINY, tolerance=0.05)
    check_load(seen(0.0102), entry)
    with pytest.raises(WorkshopError, match=r"each 11\.00 ms instead of 10; .* quiet machine"):
        check_load(seen(0.011), entry)
    with pytest.raises(
        WorkshopError, match=r"5 requests, 3 at once, 40 tokens instead of 6, 3, 48"
    ):
        check_load(seen(0.010, requests=5), entry)


# All of it.


# A machine that runs tests is not quiet.
TINY = Pace(streams=3, requests=6, tokens=8, ttft_ms=20.0, itl_ms=10.0, tolerance=100.0)
FEW = Pace(streams=2, requests=2, tokens=5, ttft_ms=5.0, itl_ms=10.0, tolerance=100.0)


def test_a_tiny_real_run_of_our_client(tmp_path: Path) -> None:
    peers = [Peer("workshop again", workshop_client, TINY)]
    entry = Client(
        logs=tmp_path, times=[FEW], search=None, flood_tokens=50, peers=lambda say: peers
    )
    reports = measure(entry, rounds=1)
    assert [report.sides for report in reports] == [("workshop", "workshop again")] * 2
    for side in reports[0].sides:
        sample = {key: value for key, (value,) in reports[0].samples[side].items()}
        assert 0 < sample["cpu_us"] < 10_000  # CPU time: what else runs is not in it
        assert sample["itl_error_ms"] >= 0 and sample["ttft_error_ms"] >= 0
        assert sample["server_margin"] > 0 and sample["tokens_per_s"] < 300
    assert [row.unit for row in reports[0].rows] == ["µs", "ms", "ms", "1/s", "times"]
    assert [row.bar for row in reports[1].rows] == ["median at most 1 ms"] * 2


@pytest.mark.parametrize("limit", [5, 100, 2000])
@pytest.mark.parametrize("guess", [1, 7, 64, 1500])
def test_the_highest_level_is_found_from_below_and_above(guess: int, limit: int) -> None:
    tried: list[int] = []

    def holds(level: int) -> bool:
        tried.append(level)
        return level <= true

    for true in (1, 30, 99, 5000):
        tried.clear()
        found = highest(holds, min(guess, limit), limit=limit, step=1.25)
        assert found <= min(true, limit)
        assert found == limit or 1.25 * found + 1.5 > true
        assert max(tried) <= limit and len(tried) < 25
    assert highest(lambda level: False, guess=10, limit=50) == 0


class FollowsSome:
    """Loads of which a client follows so many streams, 0.4 ms a token late, and no more."""

    def __init__(self, most: int, server_rate_per_s: float) -> None:
        self.most, self.rate = most, server_rate_per_s
        self.tried: list[int] = []

    def server_rate_per_s(self, streams: int) -> float:
        return self.rate

    def run(self, client: Any, pace: Pace) -> tuple[list[Measured], Observation]:
        self.tried.append(pace.streams)
        late_ms = 0.4 if pace.streams <= self.most else 1.2
        stamps = [n * pace.itl_ms / 1000 for n in range(pace.tokens)]
        streams = [Stream(n + 1, 0.0, stamps) for n in range(pace.streams)]
        gaps = [pace.itl_ms + late_ms] * (pace.tokens - 1)
        seen = Observation(streams, most_at_once=pace.streams)
        return [Measured(n + 1, 0.0, gaps) for n in range(pace.streams)], seen


def test_the_most_streams_are_those_with_an_error_below_five_percent() -> None:
    loads: Any = FollowsSome(most=200, server_rate_per_s=40_000)
    side = sustained_side(loads, loads, Pace(tokens=3), guess=64)
    first = side()
    assert 180 < first["streams"] <= 200 and first["tokens_per_s"] == 50 * first["streams"]
    assert not first["limited_by_server"] and first["server_margin"] >= 2
    tries = len(loads.tried)
    assert side()["streams"] == first["streams"]
    assert len(loads.tried) - tries == 2  # the next round begins where this one ended
    # No load is claimed that the server could not send twice.
    loads.rate = 8_000
    limited = side()
    assert limited["streams"] == 80 and limited["limited_by_server"]
    loads.most = 0
    with pytest.raises(WorkshopError, match="not even one stream"):
        side()


def test_what_was_measured_before_a_failure_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Twice(Toy):
        @contextlib.contextmanager
        def prepare(self, say: Callable[[str], None]) -> Iterator[list[Comparison]]:
            with super().prepare(say) as comparisons:
                broken = {"ours": self.side("A", [-1.0]), "theirs": self.side("B", [1.0])}
                yield [*comparisons, Comparison("toy: broken", broken, [HALF])]

    status, data = run(tmp_path, Twice([1] * 3, [4] * 3))
    assert status == 1 and "it broke" in data["entries"]["toy"]["error"]
    (report,) = data["entries"]["toy"]["comparisons"]
    assert report["title"] == "toy: a comparison" and "pass" in capsys.readouterr().out


def test_a_client_without_guidellm_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(client, "guidellm_is_there", lambda: False)
    assert known_peers(said.append) == [Peer("vllm bench serve", vllm_client)]
    assert len(said) == 1 and "`make guidellm` installs it" in said[0]


@pytest.mark.slow
def test_tiny_real_runs_against_the_other_clients(tmp_path: Path) -> None:
    known = [replace(peer, load=TINY) for peer in known_peers(print)]
    entry = Client(logs=tmp_path, times=[FEW], search=None, peers=lambda say: known)
    reports = measure(entry, rounds=1)
    peers = [peer.name for peer in known]
    assert [report.sides[1] for report in reports] == [*peers, peers[0]]
    for report in reports[: len(peers)]:
        theirs = {key: value for key, (value,) in report.samples[report.sides[1]].items()}
        assert theirs["cpu_us"] > 0 and theirs["itl_error_ms"] >= 0
