"""The load generator against a server that knows when it sent every token."""

from __future__ import annotations

import _thread
import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from streaming_server import MODEL, Dying, StreamingServer
from virtual_time import Beside

from workshop_lib.errors import ServerError, WorkshopError
from workshop_lib.serving.benchmark import (
    BenchmarkResult,
    LevelRecord,
    RequestRecord,
    run_sweep,
    start_sweep,
)
from workshop_lib.serving.benchmark.stream import StreamClient

PROMPTS = ["What is a GPU?", "What is a token?", "What is a block?"]
TTFT_MS, ITL_MS = 40.0, 10.0


@pytest.fixture(scope="module")
def stub() -> Iterator[StreamingServer]:
    with StreamingServer(ttft_ms=TTFT_MS, itl_ms=ITL_MS) as server:
        yield server


@pytest.fixture(scope="module")
def sweep(stub: StreamingServer) -> BenchmarkResult:
    stub.sent.clear()
    return run_sweep(stub.url, PROMPTS, levels=(1, 4, 16), max_tokens=8)


def record(**changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "load": 1,
        "scheduled_s": 0.0,
        "start_s": 0.0,
        "ttft_ms": 100.0,
        "itl_ms": (10.0, 10.0),
        "e2e_ms": 120.0,
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "finish_reason": "length",
        "error": "",
        "detail": "",
    }
    return RequestRecord(**{**values, **changes})


def failed(**changes: Any) -> RequestRecord:
    nothing = {"ttft_ms": None, "itl_ms": (), "e2e_ms": None, "completion_tokens": None}
    return record(**{**nothing, "error": "timeout", **changes})


def result_of(*records: RequestRecord, duration_s: float = 2.0) -> BenchmarkResult:
    levels = sorted({r.load for r in records})
    return BenchmarkResult(
        url="http://127.0.0.1:1",
        model=MODEL,
        created="2026-11-21T10:00:00+00:00",
        settings={"loop": "closed"},
        level_records=[LevelRecord(load=n, duration_s=duration_s, server_ms={}) for n in levels],
        request_records=list(records),
    )


def test_known_times_are_measured(sweep: BenchmarkResult) -> None:
    levels = sweep.levels.set_index("concurrency")
    assert levels.errors.tolist() == [0, 0, 0]
    assert levels.requests.tolist() == [8, 16, 32]  # four rounds of few, two of many
    for concurrency in (1, 4, 16):
        row = levels.loc[concurrency]
        # The server sends a token when it is due or later: how late is the machine's affair.
        assert row.ttft_p50_ms > TTFT_MS - 1 and row.e2e_p50_ms > TTFT_MS + 7 * ITL_MS - 1
        assert row.ttft_p50_ms <= row.ttft_p90_ms <= row.ttft_p99_ms
        # The loop is closed: at no time are more than n on their way.
        assert row.requests_per_s <= 1.01 * concurrency / (row.e2e_mean_ms / 1000)
        assert row.output_tokens_per_s == pytest.approx(8 * row.requests_per_s)


def test_every_request_was_the_servers(sweep: BenchmarkResult, stub: StreamingServer) -> None:
    assert len({sent.prompt for sent in stub.sent}) == len(stub.sent)  # no prompt came twice
    assert len(stub.sent) == len(sweep.request_records) + 3 * 2  # two of each level warm up
    measured = [r.ttft_ms for r in sweep.request_records if r.ttft_ms is not None]
    assert len(measured) == len(sweep.request_records)
    assert min(measured) > TTFT_MS - 1  # the role's message comes 40 ms too early
    comparison = sweep.compare_with_server()
    assert len(comparison) == 9 and set(comparison.latency) == {"ttft", "itl", "e2e"}
    # The client sees the server's time and the way there and back.
    others = comparison[comparison.latency != "itl"]
    assert (others.difference_ms > -0.001).all()


def test_what_is_measured_is_what_the_server_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the microsecond, in a time that goes on when every byte has been read."""
    server = StreamingServer(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
    result = run_sweep(Beside(server, monkeypatch), PROMPTS, levels=(1, 4, 16), max_tokens=8)
    records = result.request_records
    assert len(records) == 56 and not any(record.error for record in records)
    for record in records:
        assert record.ttft_ms == pytest.approx(TTFT_MS, abs=1e-3)
        assert record.itl_ms == pytest.approx([ITL_MS] * 7, abs=1e-3)
        assert record.e2e_ms == pytest.approx(TTFT_MS + 7 * ITL_MS, abs=1e-3)
    comparison = result.compare_with_server()
    assert len(comparison) == 9
    assert comparison.difference_ms.tolist() == pytest.approx([0.0] * 9, abs=1e-3)
    assert result.levels.requests_per_s.tolist() == pytest.approx([1 / 0.11, 4 / 0.11, 16 / 0.11])


def interrupt_after(stub: StreamingServer, answers: int) -> None:
    while len(stub.sent) < answers:
        time.sleep(0.01)
    _thread.interrupt_main()


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
    body = stub.bodies[-1]
    assert body["stream_options"] == {"include_usage": True} and body["ignore_eos"] is True
    assert body["temperature"] == 0


def test_connections_are_kept() -> None:
    with StreamingServer(ttft_ms=10, itl_ms=1) as stub:
        run_sweep(stub.url, PROMPTS, levels=(3,), requests_per_level=12, max_tokens=1)
    # Three users, and the plain client's own connection.
    assert 0 < stub.connections <= 4


def test_prompts_are_unique_unless_asked(stub: StreamingServer) -> None:
    stub.bodies.clear()
    run_sweep(stub.url, PROMPTS[:1], levels=(2,), requests_per_level=4, max_tokens=1)
    texts = [body["messages"][0]["content"] for body in stub.bodies]
    assert len(set(texts)) == len(texts) and all(text.endswith(PROMPTS[0]) for text in texts)
    stub.bodies.clear()
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    run_sweep(
        stub.url,
        [messages],
        levels=(2,),
        requests_per_level=4,
        max_tokens=1,
        unique_prompts=False,
        ignore_eos=False,
    )
    assert all(body["messages"] == messages for body in stub.bodies)
    assert all("ignore_eos" not in body for body in stub.bodies)


def test_tokens_come_from_usage_not_from_messages() -> None:
    with StreamingServer(ttft_ms=20, itl_ms=5, tokens_per_message=4) as stub:
        result = run_sweep(stub.url, PROMPTS, levels=(2,), requests_per_level=6, max_tokens=16)
    requests = result.requests
    assert requests.completion_tokens.tolist() == [16] * 6
    assert all(len(gaps) == 3 for gaps in requests.itl_ms)  # four messages
    # From first to last text over 15 further tokens, not over 3 gaps.
    for request in result.request_records:
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
    stub: StreamingServer, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, detail: str
) -> None:
    prompts = [f"FAULT:{fault} Hi", "What is a GPU?"]
    load: dict[str, Any] = {"levels": (2,), "requests_per_level": 6, "max_tokens": 4, "warmup": 0}
    if fault == "silent":
        # A short time limit, and a busy machine: in a time of its own nobody else meets it.
        silent = StreamingServer(ttft_ms=TTFT_MS, itl_ms=ITL_MS)
        result = run_sweep(Beside(silent, monkeypatch), prompts, timeout_s=0.5, **load)
    else:
        result = run_sweep(stub.url, prompts, **load)
    bad = result.requests[result.requests.error != ""]
    assert bad.error.tolist() == [kind] * 3 and all(detail in text for text in bad.detail)
    assert bad.ttft_ms.isna().all() and bad.e2e_ms.isna().all()
    level = result.levels.iloc[0]
    failures = (0, 3) if kind == "timeout" else (3, 0)
    assert (level.requests, level.errors, level.timeouts) == (6, *failures)
    assert level.ttft_p50_ms >= TTFT_MS - 1  # three failures as 0 ms would halve it
    assert result.goodput(ttft_ms=1e9, itl_ms=1e9).good_share[0] == 0.5


def test_a_server_that_dies_in_mid_benchmark_keeps_what_was_measured() -> None:
    with Dying(15, ttft_ms=10, itl_ms=5) as stub:
        run = start_sweep(
            stub.url, PROMPTS, levels=(4,), requests_per_level=40, max_tokens=4, warmup=1
        )
        stub.die_when_it_is_time()
        result = run.wait()
    level = result.levels.iloc[0]
    assert level.requests == 40 and 0 < level.errors < 40
    kinds = set(result.requests.error)
    assert "" in kinds and kinds <= {"", "closed", "refused"}


def test_a_server_that_refuses_all_is_one_line(stub: StreamingServer) -> None:
    with pytest.raises(ServerError, match=r"failed every warm-up request: http 400: .*100 tokens"):
        run_sweep(stub.url, PROMPTS, max_tokens=5000)
    with pytest.raises(ServerError, match="no server at"):
        run_sweep("http://127.0.0.1:9", PROMPTS)
    with pytest.raises(ServerError, match="serves no model 'x'"):
        run_sweep(stub.url, PROMPTS, model="x")


def test_works_where_a_loop_already_runs(stub: StreamingServer) -> None:
    async def cell() -> BenchmarkResult:
        return run_sweep(stub.url, PROMPTS, levels=(2,), requests_per_level=2, max_tokens=1)

    assert asyncio.run(cell()).levels.requests[0] == 2


def test_progress_is_shown_in_the_calling_thread(stub: StreamingServer) -> None:
    seen: list[tuple[int, int, str]] = []
    threads = set()

    def show(done: int, total: int, text: str) -> None:
        seen.append((done, total, text))
        threads.add(threading.current_thread())

    run_sweep(
        stub.url, PROMPTS, levels=(1, 2), requests_per_level=3, max_tokens=2, on_progress=show
    )
    assert threads == {threading.current_thread()}
    assert seen[-1] == (6, 6, "2 concurrent: 3 of 3")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_stop_keeps_what_has_finished(stub: StreamingServer) -> None:
    run = start_sweep(stub.url, PROMPTS, levels=(2, 4), requests_per_level=500, max_tokens=2)
    before = len(stub.sent)
    while len(stub.sent) < before + 20:
        assert run.running
        time.sleep(0.01)
    run.stop()
    result = run.wait()
    assert result.stopped and not run.running
    assert 0 < len(result.request_records) < 500
    assert result.levels.errors.sum() == 0  # what was in flight is dropped, not failed
    run.stop()  # once more does nothing


def test_an_interrupt_keeps_what_has_finished(stub: StreamingServer) -> None:
    before = len(stub.sent)
    threading.Thread(target=interrupt_after, args=(stub, before + 20), daemon=True).start()
    result = run_sweep(stub.url, PROMPTS, levels=(2,), requests_per_level=500, max_tokens=2)
    assert result.stopped and 0 < len(result.request_records) < 500


def test_percentiles_and_rates_by_hand() -> None:
    records = [record(ttft_ms=float(n), e2e_ms=n + 20.0) for n in range(1, 101)]
    row = result_of(*records, failed(), duration_s=10.0).levels.iloc[0]
    assert (row.requests, row.errors, row.timeouts) == (101, 0, 1)
    assert row.ttft_p50_ms == 50.5 and row.ttft_p99_ms == pytest.approx(99.01)
    assert row.ttft_mean_ms == 50.5
    assert row.requests_per_s == 10 and row.output_tokens_per_s == 30


def test_a_level_without_success_has_no_latency() -> None:
    row = result_of(failed(), failed()).levels.iloc[0]
    assert (row.requests, row.errors, row.timeouts, row.requests_per_s) == (2, 0, 2, 0)
    assert row.ttft_p50_ms is None and row.itl_mean_ms is None


def test_goodput_by_hand() -> None:
    result = result_of(
        record(),
        record(ttft_ms=600.0),
        record(itl_ms=(50.0, 70.0)),
        record(itl_ms=(), completion_tokens=1),
        failed(),
    )
    good = result.goodput(ttft_ms=500, itl_ms=50).iloc[0]
    assert (good.good, good.good_share, good.goodput_per_s) == (2, 0.4, 1.0)
    with pytest.raises(WorkshopError, match="more than 0 ms"):
        result.goodput(ttft_ms=0, itl_ms=50)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": ()}, "levels must be whole numbers"),
        ({"levels": (0,)}, "levels must be whole numbers"),
        ({"levels": (100_000,)}, "levels must be whole numbers"),
        ({"levels": (1.5,)}, "levels must be whole numbers"),
        ({"levels": (float("nan"),)}, "levels must be whole numbers"),
        ({"levels": (float("inf"),)}, "levels must be whole numbers"),
        ({"rates_per_s": (float("nan"),)}, "rates must be numbers above 0"),
        ({"rates_per_s": (0.0,)}, "rates must be numbers above 0"),
        ({"duration_s": float("nan")}, "duration_s must be more than 0"),
        ({"requests_per_level": 0}, "ask for a whole number, at least 1"),
        ({"requests_per_level": float("nan")}, "ask for a whole number, at least 1"),
        ({"levels": (2, 2)}, "each level may appear once"),
        ({"levels": (8,), "requests_per_level": 4}, "cannot keep 8 in flight"),
        ({"max_tokens": 0}, "max_tokens must be a whole number, at least 1"),
        ({"max_tokens": float("inf")}, "max_tokens must be a whole number, at least 1"),
        ({"warmup": -1}, "warmup must be from 0 to"),
        ({"warmup": 10**9}, "warmup must be from 0 to"),
        ({"timeout_s": 0}, "timeout_s must be a number above 0"),
        ({"timeout_s": float("nan")}, "timeout_s must be a number above 0"),
        ({"timeout_s": float("inf")}, "timeout_s must be a number above 0"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": "one string"}, "must be a list"),
    ],
)
def test_absurd_parameters_are_refused_before_anything_is_sent(
    stub: StreamingServer, options: dict[str, Any], words: str
) -> None:
    before = len(stub.bodies)
    with pytest.raises(WorkshopError, match=words):
        run_sweep(stub.url, **{"prompts": PROMPTS, **options})
    assert len(stub.bodies) == before


def test_a_load_that_ended_before_its_first_answer_says_so() -> None:
    """The stop button may be pressed at once: what reads the levels then gets one line."""
    result = replace(result_of(), stopped=True)
    with pytest.raises(WorkshopError, match=r"before its first answer \(it was stopped\)"):
        _ = result.levels
    for limits in ({"ttft_ms": 0, "itl_ms": 1}, {"ttft_ms": 1, "itl_ms": float("nan")}):
        with pytest.raises(WorkshopError, match="limits must be more than 0"):
            result.goodput(**limits)


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
