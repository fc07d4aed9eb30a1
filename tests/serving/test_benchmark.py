"""The load generator against a server that knows when it sent every token."""

from __future__ import annotations

import _thread
import asyncio
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import streaming_server
from streaming_server import MODEL, Dying, StreamingServer
from virtual_time import Beside

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.plots import plot_load_sweep
from workshop_lib.serving.benchmark import (
    BenchmarkResult,
    LevelRecord,
    RequestRecord,
    ramp,
    run_sweep,
    start_sweep,
)
from workshop_lib.serving.benchmark.load import PAUSE_S, poisson_arrivals
from workshop_lib.serving.benchmark.result import percentile_interval, quantile_ranks
from workshop_lib.serving.benchmark.stream import StreamClient

PROMPTS = ["What is a GPU?", "What is a token?", "What is a block?"]
TTFT_MS, ITL_MS = 40.0, 10.0


@pytest.fixture(scope="module")
def stub() -> Iterator[StreamingServer]:
    with StreamingServer(ttft_ms=TTFT_MS, itl_ms=ITL_MS) as server:
        yield server


def record(ttft_ms: float = 100.0, gaps_ms: tuple[float, ...] = (10.0, 10.0)) -> RequestRecord:
    """An answer of a token more than gaps, sent when it was due."""
    text_s = list(itertools.accumulate((ttft_ms, *gaps_ms)))
    text_s = [moment / 1000 for moment in text_s]
    return RequestRecord(0.0, 0.0, text_s, text_s[-1], 5, len(text_s))


def failed() -> RequestRecord:
    return RequestRecord(0.0, 0.0, end_s=0.1, error="timeout")


def result_of(*records: RequestRecord) -> BenchmarkResult:
    return BenchmarkResult("http://a", {"loop": "closed"}, [LevelRecord(1, list(records))])


# -- what is measured --------------------------------------------------------------------------


def test_what_is_measured_is_what_the_server_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the microsecond, in a time that goes on when every byte has been read."""
    server = StreamingServer(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    result = run_sweep(Beside(server, monkeypatch), PROMPTS, levels=(1, 4, 16), max_tokens=8)
    records = result.request_records
    assert len(records) == 56 and not any(record.error for record in records)
    for record in records:  # the message with the role comes 40 ms before the first text
        assert record.ttft_ms == pytest.approx(TTFT_MS, abs=1e-3)
        assert record.itl_ms == pytest.approx([ITL_MS] * 7, abs=1e-3)
        assert record.e2e_ms == pytest.approx(TTFT_MS + 7 * ITL_MS, abs=1e-3)
    comparison = result.compare_with_server()
    assert len(comparison) == 9
    assert comparison.difference_ms.tolist() == pytest.approx([0.0] * 9, abs=1e-3)
    levels = result.levels
    assert levels.requests.tolist() == [8, 16, 32]  # four rounds of few, two of many
    assert levels.requests_per_s.tolist() == pytest.approx([1 / 0.11, 4 / 0.11, 16 / 0.11])
    assert levels.output_tokens_per_s.tolist() == pytest.approx(8 * levels.requests_per_s)
    assert levels.in_flight.tolist() == pytest.approx([1, 4, 16])
    # All sequences in flight step together here; a warm-up's steps do not count.
    assert levels.tokens_per_step.tolist() == pytest.approx([1, 4, 16])


def test_every_request_was_the_servers(stub: StreamingServer) -> None:
    stub.sent.clear()
    result = run_sweep(stub.url, PROMPTS, levels=(1, 4), max_tokens=8)
    assert len({sent.prompt for sent in stub.sent}) == len(stub.sent)  # no prompt came twice
    assert len(stub.sent) == len(result.request_records) + 2 * 2  # two of each level warm up
    # The server sends a token when it is due or later: how late is the machine's affair.
    assert min(record.ttft_ms or 0 for record in result.request_records) > TTFT_MS - 1
    others = result.compare_with_server().query("latency != 'itl'")
    assert (others.difference_ms > -0.001).all()  # the client sees the way there and back, too


class Gathering(StreamingServer):
    """Answers nobody but the first (a warm-up) until so many are waiting."""

    def __init__(self, at_once: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.at_once = at_once

    async def _stream(self, writer: Any, body: dict[str, Any], sent: Any) -> None:
        while len(self.sent) > 1 and self.most_running < self.at_once:
            await asyncio.sleep(0.01)
        await super()._stream(writer, body, sent)


def test_the_load_is_as_asked() -> None:
    with Gathering(6, ttft_ms=40, itl_ms=10) as stub:
        run_sweep(stub.url, PROMPTS, levels=(6,), requests_per_level=15, max_tokens=4, warmup=1)
    assert stub.most_running == 6 and len(stub.bodies) == 16
    assert stub.connections <= 7  # six users keep theirs; one is the plain client's
    body = stub.bodies[-1]
    assert body["stream_options"] == {"include_usage": True} and body["ignore_eos"] is True
    assert body["temperature"] == 0


def test_tokens_come_from_usage_not_from_messages() -> None:
    with StreamingServer(ttft_ms=20, itl_ms=5, tokens_per_message=4) as stub:
        result = run_sweep(stub.url, PROMPTS, levels=(2,), requests_per_level=6, max_tokens=16)
    for request in result.request_records:
        assert request.completion_tokens == 16 and len(request.itl_ms) == 3  # four messages
        # From first to last text over 15 further tokens, not over 3 gaps.
        assert request.mean_itl_ms == pytest.approx(sum(request.itl_ms) / 15)


@pytest.mark.parametrize(
    ("fault", "kind", "detail"),
    [
        ("500", "http 500", "engine is dead"),
        ("not-http", "malformed", "not HTTP"),
        ("malformed", "malformed", "{broken"),
        ("cut", "malformed", "without [DONE]"),
        ("error", "server", "engine died"),
        ("die", "closed", "after 2 pieces"),
        ("empty", "empty", "no text"),
        ("silent", "timeout", "not complete"),
    ],
)
def test_failures_are_counted_and_enter_no_latency(
    monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, detail: str
) -> None:
    server = Beside(StreamingServer(ttft_ms=TTFT_MS, itl_ms=ITL_MS), monkeypatch)
    prompts = [f"FAULT:{fault} Hi", "What is a GPU?"]
    load: dict[str, Any] = {"levels": (2,), "requests_per_level": 6, "max_tokens": 4, "warmup": 0}
    result = run_sweep(server, prompts, timeout_s=0.5, **load)
    bad = [record for record in result.request_records if record.error]
    assert [record.error for record in bad] == [kind] * 3
    assert all(detail in record.detail for record in bad)
    level = result.levels.iloc[0]
    failures = (0, 3) if kind == "timeout" else (3, 0)
    assert (level.requests, level.errors, level.timeouts) == (6, *failures)
    assert level.ttft_p50_ms == pytest.approx(TTFT_MS)  # three failures as 0 ms would halve it
    assert result.goodput(ttft_ms=1e9, itl_ms=1e9).good_share[0] == 0.5
    words = [text.get_text() for text in plot_load_sweep(result.levels).axes[0].texts]
    assert ("3 timed out" if kind == "timeout" else "3 failed") in words


# -- the open loop -----------------------------------------------------------------------------


def test_arrivals_are_a_poisson_process() -> None:
    moments = poisson_arrivals(50, requests=5000, duration_s=None)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert len(moments) == 5000 and moments[0] == 0
    # Of an exponential distribution mean and standard deviation are the same.
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    short = poisson_arrivals(50, requests=None, duration_s=2.0)
    assert max(short) < 2 and 60 < len(short) < 140


def test_an_open_loop_sends_at_its_moments_whatever_the_server_does(stub: StreamingServer) -> None:
    result = run_sweep(stub.url, PROMPTS, rates_per_s=(20, 40), requests_per_level=20, max_tokens=4)
    assert result.levels.rate_per_s.tolist() == [20, 40]
    for level in result.level_records:
        due_s = sorted(r.due_s for r in level.requests)
        expected = poisson_arrivals(level.load, requests=20, duration_s=None)
        assert [moment - due_s[0] for moment in due_s] == pytest.approx(expected, abs=1e-6)
        assert all(r.start_s >= r.due_s for r in level.requests)
    assert plot_load_sweep(result.levels).axes[0].get_xlabel() == "requests a second, offered"


class Stalling(StreamingServer):
    """Answers nothing for a while, then everything: a long garbage collection, a restart."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.asked, self.awake = threading.Event(), threading.Event()

    async def _chat(self, writer: Any, body: dict[str, Any]) -> None:
        self.asked.set()
        while not self.awake.is_set():
            await asyncio.sleep(0.01)
        await super()._chat(writer, body)


def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    """Coordinated omission: the closed loop asks once while nobody answers."""

    def due_in_the_stall(**load: Any) -> list[tuple[float, float]]:
        """For each request that was due before the server woke: how long ago, and its TTFT."""
        with Stalling(ttft_ms=5, itl_ms=1) as server:
            run = start_sweep(
                server.url, PROMPTS, requests_per_level=30, max_tokens=2, warmup=0, **load
            )
            assert server.asked.wait(60)
            time.sleep(1.0)
            woke_s = time.perf_counter()
            server.awake.set()
            records = [r for r in run.wait().request_records if r.due_s < woke_s]
        return [((woke_s - r.due_s) * 1000, r.ttft_ms or 0.0) for r in records]

    closed, opened = due_in_the_stall(levels=(1,)), due_in_the_stall(rates_per_s=(30,))
    assert len(closed) == 1 and len(opened) > 10
    assert all(ttft_ms >= stalled_ms for stalled_ms, ttft_ms in [*closed, *opened])


def test_a_client_that_is_late_says_so_and_does_not_make_the_server_look_faster() -> None:
    late = RequestRecord(start_s=1.05, due_s=1.0, text_s=[1.15], end_s=1.15, completion_tokens=1)
    assert late.ttft_ms == late.e2e_ms == pytest.approx(150)
    assert result_of(late).levels.sent_late_ms[0] == pytest.approx(50)


# -- count, duration, saturation ---------------------------------------------------------------


@pytest.mark.parametrize("load", [{"levels": (3,)}, {"rates_per_s": (40.0,)}])
def test_a_level_may_end_by_time(monkeypatch: pytest.MonkeyPatch, load: dict[str, Any]) -> None:
    seen: list[int] = []
    result = run_sweep(
        Beside(StreamingServer(ttft_ms=20, itl_ms=2), monkeypatch),
        PROMPTS,
        duration_s=0.6,
        max_tokens=2,
        on_progress=lambda done, total, text: seen.append(total),
        **load,
    )
    assert result.ended == "" and not result.stopped
    rounds = math.ceil(0.6 / 0.022)  # of three users, each answered within 22 ms
    due = poisson_arrivals(40.0, requests=None, duration_s=0.6)
    assert len(result.request_records) == (3 * rounds if "levels" in load else len(due))
    # How many it will be is known before in an open loop only.
    assert set(seen) == ({0} if "levels" in load else {len(result.request_records)})


class Limited(StreamingServer):
    """Works on few requests at once; the others wait, as in an engine that is full."""

    def __init__(self, at_once: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.at_once = at_once
        self.slots: Any = None

    async def _generate(self, writer: Any, body: dict[str, Any], sent: Any) -> None:
        self.slots = self.slots or asyncio.Semaphore(self.at_once)
        async with self.slots:
            sent.received_s = streaming_server.time.perf_counter()
            await super()._generate(writer, body, sent)


def test_a_sweep_ends_where_more_load_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    load: dict[str, Any] = {"warmup": 0, "stop_when_saturated": True, "requests_per_level": 64}
    server = Beside(Limited(4, ttft_ms=100, itl_ms=1), monkeypatch)
    result = run_sweep(server, PROMPTS, levels=ramp(1, 64), max_tokens=4, **load)
    assert result.levels.concurrency.tolist() == [1, 2, 4, 8]
    assert result.ended.startswith("saturated: 8 in flight make") and not result.stopped
    server = Beside(Limited(1, ttft_ms=25, itl_ms=1), monkeypatch)  # 38 a second
    result = run_sweep(server, PROMPTS, rates_per_s=(2, 150, 300), max_tokens=2, **load)
    assert result.levels.rate_per_s.tolist() == [2, 150]
    assert result.ended.startswith("saturated: 150 a second are more than the server answers")
    last = result.levels.iloc[-1]
    assert last.requests_per_s < 150 / 2 and last.in_flight > 5


def test_ramps() -> None:
    assert ramp(2, 20, factor=3) == (2, 6, 18)
    for arguments in ((0, 4), (8, 4), (1, 10**9), (float("nan"), 4)):
        with pytest.raises(WorkshopError, match="a ramp needs"):
            ramp(*arguments)


# -- a server that dies, and a learner who stops -----------------------------------------------


@pytest.mark.parametrize("load", [{"levels": (2, 3, 4)}, {"rates_per_s": (20, 30, 40)}])
def test_a_server_that_dies_ends_the_sweep_and_keeps_its_levels(load: dict[str, Any]) -> None:
    with Dying(18, ttft_ms=5, itl_ms=1) as server:
        run = start_sweep(
            server.url, PROMPTS, max_tokens=2, warmup=1, requests_per_level=12, **load
        )
        server.die_when_it_is_time()
        result = run.wait()
    kinds = {record.error for record in result.request_records}
    assert "" in kinds and kinds <= {"", "closed", "refused"}
    assert len(result.levels) <= 2 and not result.stopped
    assert "is gone" in result.ended or "failed every warm-up request" in result.ended
    assert "\n" not in result.ended and len(result.ended) < 250


def test_a_dead_server_is_not_asked_thousands_of_times() -> None:
    with Dying(18, ttft_ms=5, itl_ms=1) as server:
        began_s = time.perf_counter()
        run = start_sweep(server.url, PROMPTS, levels=(2,), duration_s=20.0, max_tokens=2)
        server.die_when_it_is_time()
        time.sleep(0.5)
        run.stop()
        result = run.wait()
        took_s = time.perf_counter() - began_s
    # Each of the two users waits after a failure.
    assert len(result.request_records) <= 18 + 2 * (1 + took_s / PAUSE_S)


def test_a_server_that_refuses_all_is_one_line(stub: StreamingServer) -> None:
    with pytest.raises(ServerError, match=r"failed every warm-up request: http 400: .*100 tokens"):
        run_sweep(stub.url, PROMPTS, max_tokens=5000)
    with pytest.raises(ServerError, match="no server at"):
        run_sweep("http://127.0.0.1:9", PROMPTS)


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_what_has_finished_is_kept(stub: StreamingServer, how: str) -> None:
    run = start_sweep(stub.url, PROMPTS, levels=(2, 4), requests_per_level=500, max_tokens=2)
    before = len(stub.sent)

    def end() -> None:
        while len(stub.sent) < before + 20:
            time.sleep(0.01)
        run.stop() if how == "stop" else _thread.interrupt_main()

    threading.Thread(target=end, daemon=True).start()
    result = run.wait()
    assert result.stopped and not run.running and 0 < len(result.request_records) < 500
    assert result.levels.errors.sum() == 0  # what was in flight is dropped, not failed
    run.stop()  # once more does nothing


def test_progress_is_shown_in_the_calling_thread_also_where_a_loop_runs(
    stub: StreamingServer,
) -> None:
    seen: list[tuple[int, int, str]] = []
    threads = set()

    def show(done: int, total: int, text: str) -> None:
        seen.append((done, total, text))
        threads.add(threading.current_thread())

    async def cell() -> BenchmarkResult:
        load: dict[str, Any] = {"levels": (1, 2), "requests_per_level": 3, "max_tokens": 2}
        return run_sweep(stub.url, PROMPTS, on_progress=show, **load)

    assert asyncio.run(cell()).levels.requests.tolist() == [3, 3]
    assert threads == {threading.current_thread()}
    assert seen[-1] == (6, 6, "2 concurrent: 3 of 3")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": (0,)}, "levels.0: Input should be greater than or equal to 1, got 0"),
        ({"levels": (100_000,)}, "less than or equal to 4096"),
        ({"levels": (1.5,)}, "levels.0: Input should be a valid integer"),
        ({"rates_per_s": (float("nan"),)}, "rates_per_s.0: Input should be "),
        ({"rates_per_s": ()}, "rates_per_s: List should have at least 1 item"),
        ({"rates_per_s": (1,), "levels": (1,)}, "not both"),
        ({"rates_per_s": (0.1,), "duration_s": 1}, "would send 0.1 requests"),
        ({"rates_per_s": (2000,), "duration_s": 3600}, "would send 7.2e+06 requests"),
        ({"duration_s": 1e6}, "duration_s: Input should be less than or equal to 3600"),
        ({"requests_per_level": 0}, "requests_per_level: Input should be greater than"),
        ({"levels": (2, 2)}, "each level may appear once"),
        ({"levels": (4, 1), "stop_when_saturated": True}, "needs levels that rise"),
        ({"levels": (8,), "requests_per_level": 4}, "cannot keep 8 in flight"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater"),
        ({"warmup": -1}, "warmup: Input should be greater"),
        ({"timeout_s": float("inf")}, "timeout_s: Input should be a finite number"),
        ({"prompts": []}, "prompts: List should have at least 1 item"),
        ({"prompts": "one string"}, "must be a list"),
    ],
)
def test_absurd_parameters_are_refused_before_anything_is_sent(
    stub: StreamingServer, options: dict[str, Any], words: str
) -> None:
    before = len(stub.bodies)
    with pytest.raises(WorkshopError) as caught:
        run_sweep(stub.url, **{"prompts": PROMPTS, **options})
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert len(stub.bodies) == before


# -- the tables --------------------------------------------------------------------------------


def test_percentiles_and_rates_by_hand() -> None:
    records = [record(ttft_ms=float(n), gaps_ms=(10.0, 30.0)) for n in range(1, 101)]
    row = result_of(*records, failed()).levels.iloc[0]
    assert (row.requests, row.errors, row.timeouts) == (101, 0, 1)
    assert row.ttft_p50_ms == pytest.approx(50.5) and row.ttft_p99_ms == pytest.approx(99.01)
    assert row.ttft_mean_ms == pytest.approx(50.5) and row.itl_mean_ms == pytest.approx(20)
    assert row.duration_s == pytest.approx(0.140)  # 100 ms to the last one's first token, and 40
    assert row.requests_per_s == pytest.approx(100 / 0.140)
    assert row.output_tokens_per_s == pytest.approx(300 / 0.140)


def test_a_level_without_success_has_no_latency() -> None:
    row = result_of(failed(), failed()).levels.iloc[0]
    assert (row.requests, row.errors, row.timeouts, row.requests_per_s) == (2, 0, 2, 0)
    assert row.ttft_p50_ms is None and row.itl_mean_ms is None
    nothing = replace(result_of(), level_records=[], stopped=True)
    with pytest.raises(WorkshopError, match=r"before its first answer \(it was stopped\)"):
        _ = nothing.levels


def test_goodput_by_hand() -> None:
    others = record(ttft_ms=600.0), record(gaps_ms=(50.0, 70.0)), record(gaps_ms=()), failed()
    good = result_of(record(), *others).goodput(ttft_ms=500, itl_ms=50).iloc[0]
    assert (good.good, good.good_share) == (2, 0.4)
    assert good.goodput_per_s == pytest.approx(2 / 0.620)
    with pytest.raises(WorkshopError, match="more than 0 ms"):
        result_of(record()).goodput(ttft_ms=0, itl_ms=50)


def coverage(draw: Callable[[Any], Any], truth: float, percent: float, rounds: int) -> float:
    source = np.random.default_rng(7)
    held = 0
    for _ in range(rounds):
        _, low, high = percentile_interval(draw(source), percent)
        held += (low is None or low <= truth) and (high is None or truth <= high)
    return held / rounds


@pytest.mark.parametrize("percent", [50, 90])
def test_single_values_are_covered_whatever_their_distribution(percent: float) -> None:
    truth = -100 * np.log(1 - percent / 100)
    draw = lambda source: [(value,) for value in source.exponential(100, size=60)]  # noqa: E731
    assert 0.93 <= coverage(draw, truth, percent, rounds=400) <= 1


def test_values_that_come_in_groups_are_not_counted_as_independent() -> None:
    """Each request has its own speed: 25 requests of 40 gaps are 25 observations, not 1000."""

    def draw(source: np.random.Generator) -> list[list[float]]:
        speeds = source.normal(100, 10, size=25)
        return [list(source.normal(speed, 1.0, size=40)) for speed in speeds]

    assert coverage(draw, 100.0, 50, rounds=120) > 0.85
    groups = draw(np.random.default_rng(1))
    _, low, high = percentile_interval(groups, 50)
    _, lower, higher = percentile_interval([(value,) for group in groups for value in group], 50)
    assert high - low > 2 * (higher - lower)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("samples", "share", "ranks"),
    [
        # Conover, table of the sign test: n = 20, median, 95%: x(6) to x(15).
        (20, 0.5, (6, 15)),
        (5, 0.5, (None, None)),
        (6, 0.5, (1, 6)),
        (100, 0.99, (97, None)),
    ],
)
def test_ranks(samples: int, share: float, ranks: tuple[int | None, int | None]) -> None:
    assert quantile_ranks(samples, share) == ranks


def test_few_requests_bound_no_p99() -> None:
    result = result_of(*(record(100.0 + n, (10.0, 12.0)) for n in range(30)))
    table = result.percentiles().set_index(["latency", "percentile"])
    assert list(table.columns) == ["concurrency", "ms", "low_ms", "high_ms", "requests"]
    p50 = table.loc[("ttft", 50)]
    assert p50.low_ms < p50.ms < p50.high_ms and p50.requests == 30
    assert p50.ms == pytest.approx(114.5) and table.loc[("ttft", 99)].isna().high_ms
    assert table.loc[("itl", 50)].low_ms == pytest.approx(11)  # the same two gaps in every request
    assert result_of().percentiles().ms.isna().all()


# -- the connection ----------------------------------------------------------------------------


def test_a_connection_that_the_server_closed_while_idle_is_replaced() -> None:
    """Servers close idle connections; the next request must not fail for it."""
    body = {"model": MODEL, "messages": [{"content": "Hi"}], "max_tokens": 1, "stream": True}

    async def talk(stub: StreamingServer) -> list[str]:
        client = StreamClient(f"{stub.url}/v1/chat/completions")
        errors = [(await client.send(body)).error]
        for writer in list(stub._writers):
            stub._loop.call_soon_threadsafe(writer.close)
        errors.append((await client.send(body)).error)  # may meet the closing connection
        await asyncio.sleep(0.05)
        errors.append((await client.send(body)).error)
        client.close()
        return errors

    with StreamingServer(ttft_ms=1, itl_ms=1) as stub:
        assert asyncio.run(talk(stub)) == ["", "", ""]


def test_an_address_keeps_its_query_and_loses_its_password() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async def talk() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = StreamClient(f"http://ada:secret@127.0.0.1:{port}/v1/chat?api-version=7&a=b")
        assert (await client.send({})).error == "closed"
        server.close()

    asyncio.run(talk())
    assert heads[0].startswith(b"POST /v1/chat?api-version=7&a=b HTTP/1.1\r\nHost: 127.0.0.1:")
