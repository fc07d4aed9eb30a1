"""A simulated engine beside an observed one, and two deployments beside each other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from streaming_server import BLOCK_SIZE, BLOCKS, Sent, StreamingServer
from virtual_time import Beside

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.plots import plot_deployments, plot_engine
from workshop_lib.serving.benchmark import (
    BenchmarkResult,
    compare_deployments,
    observe_engine,
    round_trips_ms,
    run_sweep,
)
from workshop_lib.serving.benchmark.observe import PROMPT
from workshop_lib.serving.simulators import Job, simulate_engine

JOBS = [Job("long", 0, 40), Job("short", 2, 4), Job("late", 4, 6)]
PROMPTS = ["What is a GPU?", "What is a token?"]


@pytest.fixture(scope="module")
def stub() -> Iterator[StreamingServer]:
    with StreamingServer(ttft_ms=20, itl_ms=20) as server:
        yield server


class Watched(StreamingServer):
    """Ends its longest answer when that was seen, and the others have theirs."""

    seen = False

    def _metrics_page(self) -> str:
        self.seen |= any(len(sent.text_s) == 39 for sent in self.working)
        return super()._metrics_page()

    async def _until_due(self, sent: Sent, due_s: float) -> None:
        await super()._until_due(sent, due_s)
        while len(sent.text_s) == 39 and not (
            self.seen and len(self.sent) == len(JOBS) and len(self.working) == 1
        ):
            await asyncio.sleep(0.005)


def test_gauges_are_those_of_the_server_while_it_works() -> None:
    with Watched(ttft_ms=20, itl_ms=20) as stub:
        seen = observe_engine(stub.url, JOBS)
        prompts = [body["prompt"] for body in stub.bodies]
    assert len(set(prompts)) == 3 and all(prompt.endswith(PROMPT) for prompt in prompts)
    assert (seen.blocks, seen.block_size) == (BLOCKS - 1, BLOCK_SIZE)
    assert seen.requests.request.tolist() == ["long", "short", "late"]
    assert seen.requests.tokens.tolist() == [40, 4, 6]
    assert set(seen.prompt_tokens.values()) == {len(PROMPT.split()) + 1}
    assert (seen.requests.sent_s < seen.requests.first_s).all()
    assert (seen.requests.first_s < seen.requests.end_s).all()
    # Sent later and answered earlier: nobody waits for the longest.
    assert ("long", "short") in seen.overtaken()
    # The longest alone holds 7 blocks of 8 at its end, and then it was seen.
    assert seen.samples.running.max() >= 1 and seen.samples.blocks.max() >= 5
    assert seen.samples.time_s.is_monotonic_increasing
    assert seen.samples.running.iloc[-1] == 0

    predicted = simulate_engine(
        JOBS, prompt_tokens=seen.prompt_tokens, blocks=seen.blocks, block_size=seen.block_size
    )
    axes = plot_engine(predicted, seen).axes
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["long", "short", "late"]
    with pytest.raises(WorkshopError, match="give both the same"):
        plot_engine(simulate_engine(JOBS[:1], prompt_tokens=1, blocks=9, block_size=9), seen)


def test_a_step_of_arrival_is_a_token_of_the_first_request() -> None:
    """Also on a machine that is five times slower, and on one that changes its speed."""
    with StreamingServer(ttft_ms=5, itl_ms=150) as slow:
        seen = observe_engine(slow.url, [Job("long", 0, 8), Job("late", 3, 2)])
        stamps = slow.sent[0].text_s
        assert seen.requests.sent_s[1] >= stamps[2] - stamps[0]
        assert ("long", "late") in seen.overtaken()


def test_a_request_that_fails_is_one_line(stub: StreamingServer) -> None:
    with pytest.raises(ServerError, match=r"failed request long: http 400: .*100 tokens"):
        observe_engine(stub.url, [Job("long", 0, 500)])
    with pytest.raises(ServerError, match="no server at"):
        observe_engine("http://127.0.0.1:9", JOBS)
    with pytest.raises(WorkshopError, match="its own name"):
        observe_engine(stub.url, [Job("a", 0, 1), Job("a", 0, 1)])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("observe")]


# -- the engine's simulator --------------------------------------------------------------------


def test_gauges_by_hand() -> None:
    """Prompts of 3 tokens, blocks of 4, two slots."""
    jobs = [Job("a", 0, 4), Job("b", 0, 1), Job("c", 1, 2), Job("d", 1, 1)]
    run = simulate_engine(jobs, prompt_tokens=3, blocks=9, block_size=4, slots=2)
    # step 0: a, b; 1: a, c (d waits); 2: a, c (d waits); 3: a, d.
    assert run.gauges.running.tolist() == [2, 2, 2, 2]
    assert run.gauges.waiting.tolist() == [0, 1, 1, 0]
    # a holds 3, 4, 5, 6 tokens: 1, 1, 2, 2 blocks; the others one each.
    assert run.gauges.blocks.tolist() == [2, 2, 3, 3]


def test_what_does_not_fit_the_cache_is_said() -> None:
    with pytest.raises(WorkshopError, match="b finds no free block in step 0: 2 blocks of 4"):
        simulate_engine([Job("a", 0, 1), Job("b", 0, 1)], prompt_tokens=8, blocks=2, block_size=4)
    with pytest.raises(WorkshopError, match="a name of its own"):
        simulate_engine([Job("a", 0, 1)] * 2, prompt_tokens=1, blocks=9, block_size=4)


# -- two deployments ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two() -> dict[str, BenchmarkResult]:
    """The same engine, and one behind something that takes 300 ms more to the first token."""
    found = {}
    for name, ttft_ms, levels in (("near", 20, (1, 2, 4)), ("far", 320, (2, 4, 8))):
        with pytest.MonkeyPatch.context() as patch:
            server = Beside(StreamingServer(ttft_ms=ttft_ms, itl_ms=20), patch)
            found[name] = run_sweep(
                server, PROMPTS, levels=levels, requests_per_level=10, max_tokens=3
            )
    return found


def test_the_cost_of_the_way_is_measured(two: dict[str, BenchmarkResult]) -> None:
    table = compare_deployments(two)
    assert list(table.columns) == ["concurrency", "latency", "near", "far", "cost_ms", "sure"]
    assert sorted(set(table.concurrency)) == [2, 4]  # the levels that both have
    ttft = table[table.latency == "ttft"]
    assert ttft.cost_ms.tolist() == pytest.approx([300, 300], abs=1e-3)
    assert ttft.sure.all()
    assert (table.far - table.near).tolist() == pytest.approx(table.cost_ms.tolist())


def test_only_the_same_load_is_compared(two: dict[str, BenchmarkResult]) -> None:
    other = BenchmarkResult(**{**vars(two["far"]), "settings": {"loop": "closed", "max_tokens": 9}})
    with pytest.raises(WorkshopError, match="max_tokens=3 and far with 9"):
        compare_deployments({"near": two["near"], "far": other})
    with pytest.raises(WorkshopError, match="two benchmarks"):
        compare_deployments({"near": two["near"]})
    levels = [level for level in two["far"].level_records if level.load == 8]
    apart = BenchmarkResult(**{**vars(two["far"]), "level_records": levels})
    with pytest.raises(WorkshopError, match="no level in common"):
        compare_deployments({"near": two["near"], "far": apart})


def test_round_trips_ask_no_engine(stub: StreamingServer, two: dict[str, BenchmarkResult]) -> None:
    before = len(stub.bodies)
    trips = round_trips_ms(stub.url)
    assert len(trips) == 40 and all(trip > 0 for trip in trips)
    assert len(stub.bodies) == before
    figure = plot_deployments(two, {"near": trips, "far": trips})
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["2", "4"]
    with pytest.raises(WorkshopError, match="do not fit"):
        plot_deployments(two, {"near": trips})
