"""The client against a real HTTP server whose times and faults are known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from streaming_server import MODEL, Sent, StreamingServer

from workshop_lib.data import data_path
from workshop_lib.errors import ServerError
from workshop_lib.serving import ModelServer, read_prompts, run_prompts
from workshop_lib.serving.metrics import parse_metrics


@pytest.fixture(scope="module")
def stub() -> Iterator[StreamingServer]:
    with StreamingServer(ttft_ms=60, itl_ms=15) as server:
        yield server


@pytest.fixture(scope="module")
def server(stub: StreamingServer) -> Iterator[ModelServer]:
    with ModelServer(stub.url) as client:
        yield client


def one_line(error: pytest.ExceptionInfo[ServerError]) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 250
    return text


def test_health_models_and_address(stub: StreamingServer, server: ModelServer) -> None:
    assert server.health() is True
    assert server.models() == [MODEL]
    assert ModelServer(f"{stub.url}/v1/").models() == [MODEL]


def test_chat_returns_text_and_counts(stub: StreamingServer, server: ModelServer) -> None:
    answer = server.chat("What is a GPU?", max_tokens=5, ignore_eos=True)
    assert answer.text.split() == ["word"] * 5
    assert (answer.prompt_tokens, answer.completion_tokens) == (4, 5)
    assert answer.finish_reason == "length"
    assert answer.response_time_s >= 0.060 + 4 * 0.015
    body = stub.bodies[-1]
    assert body["model"] == MODEL and body["ignore_eos"] is True and body["temperature"] == 0


def test_a_text_is_continued_as_it_is(stub: StreamingServer, server: ModelServer) -> None:
    answer = server.complete("one two three", max_tokens=4, temperature=1.0, seed=7)
    assert answer.text.split() == ["word"] * 4
    assert (answer.prompt_tokens, answer.completion_tokens) == (3, 4)
    assert answer.finish_reason == "length" and answer.response_time_s >= 0.060
    body = stub.bodies[-1]
    assert body["prompt"] == "one two three" and "messages" not in body
    assert (body["model"], body["temperature"], body["seed"]) == (MODEL, 1.0, 7)
    with pytest.raises(ServerError, match="it serves"):
        server.complete("one", model="gpt-7")
    with pytest.raises(ServerError, match="max_tokens must be at least 1"):
        server.complete("one", max_tokens=0)


def test_stream_times_are_the_servers(stub: StreamingServer, server: ModelServer) -> None:
    stream = server.stream_chat("What is a GPU?", max_tokens=6)
    assert stream.ttft_ms is None and stream.e2e_ms is None
    began_s = time.perf_counter()
    pieces, had_s = [], []
    for delta in stream:
        pieces.append(delta.text)
        had_s.append(time.perf_counter())
    assert pieces == ["word "] * 6 and stream.text == "word " * 6
    assert (stream.prompt_tokens, stream.completion_tokens) == (4, 6)
    assert stream.finish_reason == "length"
    # The message with the role comes at once and must not count as the first token.
    assert stream.ttft_ms is not None and stream.ttft_ms >= 60
    sent = stub.sent[-1]
    # Not before it was sent, and not after it was given to us; how late is the machine's affair.
    for delta, stamp_s, then_s in zip(stream.deltas, sent.text_s, had_s, strict=True):
        assert (stamp_s - sent.received_s) * 1000 <= delta.at_ms <= (then_s - began_s) * 1000
    assert stream.e2e_ms is not None and stream.e2e_ms >= stream.deltas[-1].at_ms


class InStep(StreamingServer):
    """Sends a token only when the one before has been read."""

    read = 0

    async def _until_due(self, sent: Sent, due_s: float) -> None:
        while len(sent.text_s) > self.read:
            await asyncio.sleep(0.001)


def test_each_piece_is_given_when_it_comes() -> None:
    """A client that kept some back would wait here for ever."""
    with InStep() as stub, ModelServer(stub.url, timeout_s=60) as server:
        for number, _ in enumerate(server.stream_chat("Hi", max_tokens=5), 1):
            assert len(stub.sent[-1].text_s) == number
            stub.read = number
    assert stub.read == 5


def test_a_stream_may_be_left_early(stub: StreamingServer, server: ModelServer) -> None:
    for _ in server.stream_chat("What is a GPU?", max_tokens=10):
        break
    assert server.chat("Hi", max_tokens=1).completion_tokens == 1
    while stub.running:
        time.sleep(0.01)


def test_metrics(stub: StreamingServer, server: ModelServer) -> None:
    before = server.metrics()
    list(server.stream_chat("Hi", max_tokens=3))
    after = server.metrics()
    assert after.value("num_requests_running") == after.value("vllm:num_requests_running") == 0
    assert after.value("request_success") - before.value("request_success") == 1
    assert after.labels("cache_config_info")["num_gpu_blocks"] == "182"
    change = after.histogram("time_to_first_token_seconds") - before.histogram(
        "time_to_first_token_seconds"
    )
    assert change.count == 1
    sent = stub.sent[-1]
    assert change.mean == pytest.approx(sent.text_s[0] - sent.received_s)
    assert change.mean >= 0.060
    assert change.buckets[float("inf")] == 1
    with pytest.raises(ServerError, match=r"no 'kv_usage'"):
        after.value("kv_usage")
    with pytest.raises(ServerError, match=r"similar: vllm:num_requests_running"):
        after.value("num_requests")


def test_metrics_of_ray_serve_have_another_prefix() -> None:
    page = (
        "# TYPE ray_vllm_time_to_first_token_seconds histogram\n"
        'ray_vllm_time_to_first_token_seconds_bucket{le="+Inf",replica="a"} 2\n'
        'ray_vllm_time_to_first_token_seconds_count{replica="a"} 2\n'
        'ray_vllm_time_to_first_token_seconds_sum{replica="a"} 0.5\n'
        'ray_vllm_time_to_first_token_seconds_count{replica="b"} 2\n'
        'ray_vllm_time_to_first_token_seconds_sum{replica="b"} 1.5\n'
    )
    histogram = parse_metrics(page).histogram("time_to_first_token_seconds")
    assert (histogram.count, histogram.mean) == (4, 0.5)
    with pytest.raises(ServerError, match="not in Prometheus' format"):
        parse_metrics("<html>not found</html>")


def test_server_down_says_what_to_do() -> None:
    down = ModelServer("http://127.0.0.1:9")
    for call in (down.health, lambda: down.chat("Hi"), lambda: down.chat("Hi", model="m")):
        with pytest.raises(ServerError) as caught:
            call()
        text = one_line(caught)
        assert "no server at http://127.0.0.1:9" in text and "cluster.apply('vllm')" in text


def test_wrong_model_names_the_right_ones(server: ModelServer) -> None:
    with pytest.raises(ServerError) as caught:
        server.chat("Hi", model="gpt-7")
    assert one_line(caught).endswith(f"serves no model 'gpt-7'; it serves: {MODEL}")


def test_context_too_long(server: ModelServer) -> None:
    with pytest.raises(ServerError) as caught:
        server.chat("Hi", max_tokens=500)
    assert "context of 100 tokens; shorten the prompt" in one_line(caught)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("malformed", "malformed stream"),
        ("cut", "malformed stream: it ended after 4 pieces without a finish reason"),
        ("die", "broke off the answer"),
        ("error", "failed while answering: engine died"),
        ("500", "answered 500: engine is dead"),
        ("not-http", "broke off the answer"),
    ],
)
def test_streams_that_fail(server: ModelServer, fault: str, words: str) -> None:
    with pytest.raises(ServerError) as caught:
        list(server.stream_chat(f"FAULT:{fault} Hi", max_tokens=4))
    assert words in one_line(caught)


def test_a_silent_server_is_not_waited_for_for_ever(stub: StreamingServer) -> None:
    hasty = ModelServer(stub.url, timeout_s=0.3)
    with pytest.raises(ServerError) as caught:
        list(hasty.stream_chat("FAULT:silent Hi", max_tokens=4))
    assert "sent nothing for" in one_line(caught)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ServerError, match="is no server address"):
        ModelServer(url)


def test_not_an_openai_server(server: ModelServer, stub: StreamingServer) -> None:
    with pytest.raises(ServerError, match="answered 404"):
        ModelServer(f"{stub.url}/elsewhere").models()
    with pytest.raises(ServerError, match="max_tokens must be at least 1"):
        server.chat("Hi", max_tokens=0)


def test_the_workshops_prompts() -> None:
    prompts = read_prompts(data_path("prompts.txt"))
    assert len(prompts) == len(set(prompts)) == 20
    assert all(20 < len(prompt) < 200 for prompt in prompts)


def test_run_prompts_writes_a_table_and_a_file(server: ModelServer, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# ours\nWhat is a GPU?\n\nFAULT:500 Hi\nWhat is a token?\n")
    results = tmp_path / "out" / "results.txt"
    seen: list[tuple[int, int]] = []
    table = run_prompts(
        server,
        read_prompts(file),
        results,
        max_tokens=3,
        on_progress=lambda done, total, text: seen.append((done, total)),
    )
    assert table.prompt.tolist() == ["What is a GPU?", "FAULT:500 Hi", "What is a token?"]
    good = table[table.error.isna()]
    assert good.completion_tokens.tolist() == [3, 3] and good.prompt_tokens.tolist() == [4, 4]
    assert (good.response_time_s >= 0.09).all()
    assert "engine is dead" in table.error[1]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    text = results.read_text()
    assert "[1] What is a GPU?" in text and "3 completion tokens" in text
    assert "failed: " in text and text.count("word word word") == 2


def test_health_of_ray_serve() -> None:
    """`ray.serve.llm` answers on /-/healthz only."""
    with StreamingServer(health_path="/-/healthz") as stub, ModelServer(stub.url) as server:
        assert server.health() is True
    with (
        StreamingServer(health_path="/nowhere") as stub,
        pytest.raises(ServerError, match="healthz answered 404"),
    ):
        ModelServer(stub.url).health()


def test_run_prompts_stops_when_the_server_is_gone(tmp_path: Path) -> None:
    results = tmp_path / "results.txt"
    with StreamingServer(ttft_ms=1, itl_ms=1) as stub, ModelServer(stub.url) as server:
        with pytest.raises(ServerError, match="no server at"):
            run_prompts(server, ["one", "two"], results, on_progress=lambda *_: stub.die())
        with pytest.raises(ServerError, match="at least one prompt"):
            run_prompts(server, [], results)
    assert "[1] one" in results.read_text() and "[2]" not in results.read_text()


def test_prompts_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(ServerError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
