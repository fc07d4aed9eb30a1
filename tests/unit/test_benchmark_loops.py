"""Open loop, duration, saturation, and what is kept of a sweep that ends early."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import streaming_server
from streaming_server import Dying, StreamingServer
from virtual_time import Beside

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.plots import plot_load_sweep
from workshop_lib.serving.benchmark import ramp, run_sweep, start_sweep
from workshop_lib.serving.benchmark.load import PAUSE_S, poisson_arrivals

PROMPTS = ["What is a GPU?", "What is a token?", "What is a block?"]


@pytest.fixture(scope="module")
def stub() -> Iterator[StreamingServer]:
    with StreamingServer(ttft_ms=20, itl_ms=2) as server:
        yield server


# -- open loop ---------------------------------------------------------------------------------


def test_arrivals_are_a_poisson_process() -> None:
    moments = poisson_arrivals(50, requests=5000, duration_s=None, seed=1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert len(moments) == 5000 and moments[0] == 0
    # Of an exponential distribution mean and standard deviation are the same.
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert moments == poisson_arrivals(50, requests=5000, duration_s=None, seed=1)
    assert moments != poisson_arrivals(50, requests=5000, duration_s=None, seed=2)
    short = poisson_arrivals(50, requests=None, duration_s=2.0)
    assert max(short) < 2 and 60 < len(short) < 140


def test_an_open_loop_sends_at_its_moments_whatever_the_server_does(stub: StreamingServer) -> None:
    stub.sent.clear()
    result = run_sweep(
        stub.url, PROMPTS, rates_per_s=(20, 40), requests_per_level=20, max_tokens=4, seed=3
    )
    assert result.load_column == "rate_per_s" and result.settings["loop"] == "open"
    assert result.levels.rate_per_s.tolist() == [20, 40]
    assert result.levels.requests.tolist() == [20, 20]
    for rate in (20, 40):
        due = poisson_arrivals(rate, requests=20, duration_s=None, seed=3)
        records = [r for r in result.request_records if r.load == rate]
        assert sorted(r.scheduled_s for r in records) == pytest.approx(due)
        assert all(r.start_s >= r.scheduled_s for r in records)
    assert plot_load_sweep(result.levels).axes[0].get_xlabel() == "requests a second, offered"


class Stalling(StreamingServer):
    """Answers nothing for a while, then everything: a long garbage collection, a restart."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.asked, self.awake = threading.Event(), threading.Event()

    async def _chat(self, writer: Any, body: dict[str, Any]) -> None:
        import asyncio

        self.asked.set()
        while not self.awake.is_set():
            await asyncio.sleep(0.01)
        await super()._chat(writer, body)


def test_a_stall_shows_in_an_open_loop_and_hides_in_a_closed_one() -> None:
    """Coordinated omission: the closed loop asks once while nobody answers."""

    def due_in_the_stall(**load: Any) -> list[tuple[float, float]]:
        """For each request that was due before the server woke: how long ago, and its TTFT."""
        with Stalling(ttft_ms=5, itl_ms=1) as server:
            run = start_sweep(server.url, PROMPTS, max_tokens=2, warmup=0, **load)
            assert server.asked.wait(60)
            time.sleep(1.0)
            woke_s = time.perf_counter()
            server.awake.set()
            result = run.wait()
        woke_s -= run._levels[0].start_s
        records = [r for r in result.request_records if r.scheduled_s < woke_s]
        return [((woke_s - r.scheduled_s) * 1000, r.ttft_ms or 0.0) for r in records]

    closed = due_in_the_stall(levels=(1,), requests_per_level=30)
    opened = due_in_the_stall(rates_per_s=(30,), requests_per_level=30)
    assert len(closed) == 1 and len(opened) > 10
    assert all(ttft_ms >= stalled_ms for stalled_ms, ttft_ms in [*closed, *opened])


def test_latency_counts_from_when_the_request_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is late says so, and does not make the server look faster."""
    from workshop_lib.serving.benchmark.stream import StreamClient

    exchange = StreamClient._exchange

    async def late(self: StreamClient, request: bytes, times: Any) -> None:
        times.start_s += 0.05  # as if the event loop had been busy for so long
        await exchange(self, request, times)

    monkeypatch.setattr(StreamClient, "_exchange", late)
    with StreamingServer(ttft_ms=100, itl_ms=1) as server:
        result = run_sweep(
            server.url, PROMPTS, rates_per_s=(20,), requests_per_level=8, max_tokens=2
        )
    assert result.requests.ttft_ms.min() >= 99
    assert result.levels.sent_late_ms[0] >= 50


# -- count, duration, ramp, saturation ---------------------------------------------------------


@pytest.mark.parametrize("load", [{"levels": (3,)}, {"rates_per_s": (40.0,)}])
def test_a_level_may_end_by_time(monkeypatch: pytest.MonkeyPatch, load: dict[str, Any]) -> None:
    seen: list[int] = []
    server = StreamingServer(ttft_ms=20, itl_ms=2)
    result = run_sweep(
        Beside(server, monkeypatch), PROMPTS, duration_s=0.6, max_tokens=2, **load,
        on_progress=lambda done, total, text: seen.append(total),
    )  # fmt: skip
    assert result.ended == "" and not result.stopped
    assert max(r.scheduled_s for r in result.request_records) < 0.6
    assert result.levels.errors.tolist() == [0]
    rounds = math.ceil(0.6 / 0.022)  # of three users, each answered within 22 ms
    due = poisson_arrivals(40.0, requests=None, duration_s=0.6)
    assert len(result.request_records) == (3 * rounds if "levels" in load else len(due))
    # How many it will be is known before in an open loop only.
    assert set(seen) == ({0} if "levels" in load else {len(result.request_records)})


def test_count_and_duration_together_whichever_comes_first(stub: StreamingServer) -> None:
    result = run_sweep(
        stub.url, PROMPTS, levels=(2,), requests_per_level=4, duration_s=60, max_tokens=2
    )
    assert len(result.request_records) == 4


class Limited(StreamingServer):
    """Works on few requests at once; the others wait, as in an engine that is full."""

    def __init__(self, at_once: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.at_once = at_once
        self.slots: Any = None

    async def _generate(self, writer: Any, body: dict[str, Any], sent: Any) -> None:
        import asyncio

        self.slots = self.slots or asyncio.Semaphore(self.at_once)
        async with self.slots:
            sent.received_s = streaming_server.time.perf_counter()
            await super()._generate(writer, body, sent)


def test_a_ramp_ends_where_more_load_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Beside(Limited(4, ttft_ms=100, itl_ms=1), monkeypatch)
    result = run_sweep(
        server, PROMPTS, levels=ramp(1, 64), max_tokens=4, warmup=0,
        requests_per_level={1: 8, 2: 16, 4: 32, 8: 32}, stop_when_saturated=True,
    )  # fmt: skip
    levels = result.levels.concurrency.tolist()
    assert levels == [1, 2, 4, 8]
    assert result.ended.startswith("saturated: 8 in flight make")
    assert not result.stopped


def test_an_open_loop_ends_where_the_server_cannot_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Beside(Limited(1, ttft_ms=25, itl_ms=1), monkeypatch)  # 38 a second
    result = run_sweep(
        server, PROMPTS, rates_per_s=(2, 150, 300),
        requests_per_level={2: 8, 150: 60, 300: 60}, max_tokens=2, warmup=0,
        stop_when_saturated=True,
    )  # fmt: skip
    assert result.levels.rate_per_s.tolist() == [2, 150]
    assert result.ended.startswith("saturated: 150 a second are more than the server answers")
    last = result.levels.iloc[-1]
    assert last.requests_per_s < 150 / 2 and last.in_flight > 5


def test_ramps() -> None:
    assert ramp(2, 20, factor=3) == (2, 6, 18)
    for arguments in ((0, 4), (8, 4), (1, 10**9), (1, float("inf")), (float("nan"), 4)):
        with pytest.raises(WorkshopError, match="a ramp needs"):
            ramp(*arguments)


# -- failures ----------------------------------------------------------------------------------


def test_timeouts_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ["FAULT:silent Hi", "FAULT:500 Hi", "What is a GPU?"]
    server = Beside(StreamingServer(ttft_ms=20, itl_ms=2), monkeypatch)
    result = run_sweep(
        server, prompts, levels=(3,), requests_per_level=9, max_tokens=4, warmup=0, timeout_s=1.0
    )
    level = result.levels.iloc[0]
    assert (level.requests, level.timeouts, level.errors) == (9, 3, 3)
    words = [text.get_text() for text in plot_load_sweep(result.levels).axes[0].texts]
    assert "3 failed\n3 timed out" in words


@pytest.mark.parametrize(
    "load", [{"levels": (2, 3, 4)}, {"levels": (2, 3, 4), "duration_s": 20.0},
             {"rates_per_s": (20, 30, 40)}],
)  # fmt: skip
def test_a_server_that_dies_ends_the_sweep_and_keeps_its_levels(load: dict[str, Any]) -> None:
    if "duration_s" not in load:
        load = load | {"requests_per_level": 12}
    with Dying(18, ttft_ms=5, itl_ms=1) as server:
        began_s = time.perf_counter()
        run = start_sweep(server.url, PROMPTS, max_tokens=2, warmup=1, **load)
        server.die_when_it_is_time()
        if "duration_s" in load:
            time.sleep(0.5)
            run.stop()
        result = run.wait()
        took_s = time.perf_counter() - began_s
    assert "" in set(result.requests.error)  # what was measured is there
    if "duration_s" in load:  # and a dead server is not asked thousands of times
        users, per_user = 2, took_s / PAUSE_S  # each waits after a failure
        assert len(result.request_records) <= 18 + users * (1 + per_user)
        return
    assert len(result.levels) <= 2 and not result.stopped
    assert "is gone" in result.ended or "failed every warm-up request" in result.ended
    assert "\n" not in result.ended and len(result.ended) < 250


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": (1.5,)}, "levels must be whole numbers"),
        ({"rates_per_s": ()}, "rates must be numbers above 0"),
        ({"rates_per_s": (-1,)}, "rates must be numbers above 0"),
        ({"rates_per_s": (1e9,)}, "up to 2,000 requests a second"),
        ({"rates_per_s": (2, 2)}, "each rate may appear once"),
        ({"rates_per_s": (1,), "levels": (1,)}, "not both"),
        ({"rates_per_s": (0.1,), "duration_s": 1}, "would send 0.1 requests"),
        ({"rates_per_s": (2000,), "duration_s": 3600}, "would send 7.2e+06 requests"),
        ({"levels": (1,), "duration_s": 0}, "duration_s must be more than 0"),
        ({"levels": (1,), "duration_s": 1e6}, "at most 3600"),
        ({"levels": (1,), "requests_per_level": 0}, "measure nothing"),
        ({"levels": (1,), "requests_per_level": 10**9}, "ask for 1 to 100,000"),
        ({"levels": (4, 1), "stop_when_saturated": True}, "needs levels that rise"),
    ],
)
def test_absurd_loads_are_refused_before_anything_is_sent(
    stub: StreamingServer, options: dict[str, Any], words: str
) -> None:
    before = len(stub.bodies)
    with pytest.raises(WorkshopError) as caught:
        run_sweep(stub.url, PROMPTS, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert len(stub.bodies) == before


def test_a_prompt_that_is_too_long_is_one_line(stub: StreamingServer) -> None:
    with pytest.raises(ServerError, match=r"failed every warm-up request: http 400: .*context"):
        run_sweep(stub.url, ["word " * 200], rates_per_s=(5,))
