"""What our benchmark client spends and how well it measures, against `vllm bench serve`.

A load generator's own work limits the load it can make and blurs the times it takes. Both clients
put the same load on the same mock server in turn, each on the same core, the server on another. The
mock server reads the client's CPU time when the first request comes and when the last token leaves,
so that neither starting nor making tables is counted.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from frame import Bench, Row, Sample, Worker, answer, run, two_cores
from mock_model import MODEL, Load, Observation, serve

from workshop_lib.errors import WorkshopError

PROMPT = "Explain in a few words what a GPU does."
FLOODS = 3  # what the mock server can send is the best of so many: others only slow it
TOLERANCE = 0.05  # how far the server's true pace may be from the one that was asked for
ERROR_SHARE = 0.05  # a client with a larger median inter-token error has too much load
STEP = 1.1  # loads in the search for the most streams are this factor apart
MARGIN = 2.0  # the mock server must be able to send so many times what is asked of it


@dataclass(frozen=True)
class Job:
    """A load: closed loop, nothing sent beforehand."""

    url: str = ""
    streams: int = 64
    requests: int = 256
    tokens: int = 100
    ttft_ms: float = 100.0
    itl_ms: float = 20.0


@dataclass(frozen=True)
class Measured:
    """What a client reports of one request."""

    number: int
    ttft_ms: float
    itl_ms: list[float]


def workshop_client(link: Connection) -> None:
    """Be `workshop_lib.serving.benchmark`, with its progress display as in a notebook."""
    from workshop_lib.progress import Progress
    from workshop_lib.serving.benchmark import run_sweep

    def load(job: Job) -> list[Measured]:
        with Progress(label="sweep") as progress:
            result = run_sweep(
                job.url,
                [PROMPT],
                levels=(job.streams,),
                requests_per_level=job.requests,
                max_tokens=job.tokens,
                warmup=0,
                on_progress=progress.update,
            )
        if failed := [record for record in result.request_records if record.error]:
            raise WorkshopError(f"{len(failed)} requests failed: {failed[0].detail}")
        return [
            Measured(record.prompt_tokens or 0, record.ttft_ms or 0.0, list(record.itl_ms))
            for record in result.request_records
        ]

    answer(link, load)


def vllm_client(link: Connection) -> None:
    """Be `vllm bench serve`, its own `add_cli_args` and `main`, with no tokenizer to load."""
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="WARNING")
    from vllm.benchmarks import serve as bench_serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    bench_serve.add_cli_args(parser)

    def load(job: Job) -> list[Measured]:
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.jsonl"
            lines = [json.dumps({"prompt": f"[{n}] {PROMPT}"}) for n in range(job.requests)]
            prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
            options = {
                "backend": "openai-chat",
                "base-url": job.url,
                "endpoint": "/v1/chat/completions",
                "model": MODEL,
                "dataset-name": "custom",
                "dataset-path": prompts,
                "num-prompts": job.requests,
                "max-concurrency": job.streams,
                "ready-check-timeout-sec": 0,
                "temperature": 0,
                # Without a tokenizer the data set's own length would be 1.
                "extra-body": json.dumps({"max_completion_tokens": job.tokens}),
            }
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            words += ["--skip-tokenizer-init", "--disable-shuffle", "--ignore-eos"]
            result = bench_serve.main(parser.parse_args([*words, "--save-detailed"]))
        if result["completed"] != job.requests:
            raise WorkshopError(f"{job.requests - result['completed']} requests failed")
        numbers, firsts, gaps = result["input_lens"], result["ttfts"], result["itls"]
        return [
            # It takes the empty message with the role for the first token.
            Measured(number, 1000 * first, [1000 * gap for gap in gap_s[1 - job.tokens :]])
            for number, first, gap_s in zip(numbers, firsts, gaps, strict=True)
        ]

    answer(link, load)


def reading_client(link: Connection) -> None:
    """Be a client that only empties its sockets: the server's own rate shows."""

    def load(job: Job) -> None:
        address = urlsplit(job.url)
        body = json.dumps({"stream": True, "max_tokens": job.tokens}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        buffer = bytearray(1 << 20)
        with selectors.DefaultSelector() as selector:
            for _ in range(job.streams):
                stream = socket.create_connection((address.hostname or "", address.port or 80))
                selector.register(stream, selectors.EVENT_READ)
                stream.sendall(head.encode() + body)
            while selector.get_map():
                for key, _ in selector.select():
                    reading: Any = key.fileobj
                    count = reading.recv_into(buffer)
                    if not count or buffer.endswith(b"0\r\n\r\n", 0, count):
                        selector.unregister(reading)
                        reading.close()

    answer(link, load)


@dataclass(frozen=True)
class Loads:
    """Has clients load the mock server, and compares what they report with its stamps."""

    server: Worker
    reader: Worker

    def run(self, client: Worker, job: Job) -> tuple[list[Measured], Observation]:
        waves = -(-job.requests // job.streams)
        answer_s = (job.ttft_ms + job.itl_ms * job.tokens) / 1000
        url = self.server.ask(Load(job.ttft_ms, job.itl_ms, client.pid))
        measured = client.ask(replace(job, url=url), timeout_s=180 + 5 * waves * answer_s)
        return measured, self.server.ask(None)

    def rate_per_s(self, streams: int) -> float:
        """Tokens a second that the mock server sends when it never waits."""
        rates = []
        for _ in range(FLOODS):
            url = self.server.ask(Load(50, 0, self.reader.pid))
            tokens = max(20, 1000 // max(1, streams // 64))
            self.reader.ask(Job(url, streams, streams, tokens), timeout_s=180)
            seen: Observation = self.server.ask(None)
            stamps = [stamp for stream in seen.streams for stamp in stream.text_s]
            rates.append(len(stamps) / (max(stamps) - min(stamps)))
        return max(rates)

    def errors_ms(self, client: Worker, job: Job) -> tuple[float, float, float]:
        """Median errors of time to first token and of the gaps, and CPU seconds a token."""
        measured, seen = self.run(client, job)
        gaps = [after - before for s in seen.streams for before, after in pairwise(s.text_s)]
        pace_ms = 1000 * statistics.median(gaps)
        found = (len(seen.streams), seen.most_at_once, seen.tokens)
        expected = (job.requests, job.streams, job.requests * job.tokens)
        if abs(pace_ms / job.itl_ms - 1) > TOLERANCE or found != expected:
            raise WorkshopError(
                f"the load was {found} requests, at once, tokens, one each {pace_ms:.2f} ms; not"
                f" {expected}, one each {job.itl_ms:g}: repeat on a quiet machine"
            )
        true = {stream.number: stream for stream in seen.streams}
        if sorted(each.number for each in measured) != sorted(true):
            raise WorkshopError(f"{len(true)} answers were sent, and other ones reported")
        firsts, others = [], []
        for each in measured:
            # From reading the request, so the way there is part of the error.
            stream = true[each.number]
            firsts.append(abs(each.ttft_ms - 1000 * (stream.text_s[0] - stream.received_s)))
            pairs = zip(each.itl_ms, pairwise(stream.text_s), strict=True)
            others += [abs(gap_ms - 1000 * (after - before)) for gap_ms, (before, after) in pairs]
        cpu_s = seen.client_cpu_s / seen.tokens
        return statistics.median(firsts), statistics.median(others), cpu_s

    def side(self, client: Worker, job: Job) -> Callable[[], Sample]:
        """A client under a load."""

        def sample() -> Sample:
            ttft_error_ms, itl_error_ms, cpu_s = self.errors_ms(client, job)
            return {
                "cpu_us": 1e6 * cpu_s,
                "ttft_error_ms": ttft_error_ms,
                "itl_error_ms": itl_error_ms,
                "margin": self.rate_per_s(job.streams) * cpu_s,
            }

        return sample

    def most_streams(self, client: Worker) -> Callable[[], Sample]:
        """The most streams that a client follows well, searched from where it was last."""
        _, _, cpu_s = self.errors_ms(client, Job(streams=16, requests=16, tokens=20))
        at = max(1, int(Job.itl_ms / 1000 / cpu_s))

        def holds(streams: int) -> bool:
            try:
                job = Job(streams=streams, requests=streams)
                return self.errors_ms(client, job)[1] < ERROR_SHARE * job.itl_ms
            except WorkshopError:  # it dropped some, or held the server up
                return False

        def sample() -> Sample:
            nonlocal at
            rate_per_s = self.rate_per_s(512)
            at = highest(holds, at, int(rate_per_s / MARGIN * Job.itl_ms / 1000))
            if not at:
                raise WorkshopError("not even one stream is followed well: repeat when it is quiet")
            margin = rate_per_s * Job.itl_ms / 1000 / at
            return {"streams": at, "margin": margin}

        return sample


def highest(holds: Callable[[int], bool], guess: int, limit: int) -> int:
    """The highest level up to `limit` that holds, among those a factor `STEP` apart; 0 for none.

    In growing strides from the guess up or down, then by halving what is left.
    """

    def level(rung: int) -> int:
        return max(0, min(limit, round(guess * STEP**rung)))

    up = holds(level(0))
    good, bad, stride = (0, 1, 1) if up else (-1, 0, 1)
    while up and holds(level(bad)):
        if level(bad) >= limit:
            return limit
        good, stride = bad, 2 * stride
        bad = good + stride
    while not up and not holds(level(good)):
        if level(good) <= 1:
            return 0
        bad, stride = good, 2 * stride
        good = bad - stride
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(level(middle)) else (good, middle)
    return level(good)


_TIMES: Sequence[Row] = (
    # The bar is 1 ms or 1%; of times up to 100 ms, 1 ms is more.
    ("ttft_error_ms", "TTFT, median error, ms", "median <= 1"),
    ("itl_error_ms", "inter-token, median error, ms", "median <= 1"),
)
_PROOF = ("margin", "the server could send, times as much", "median >= 2 proves")


def main() -> int:
    bench = Bench("client", rounds=3)
    server_core, client_core = two_cores()
    with ExitStack() as stack:
        start = stack.enter_context
        server = start(Worker("mock model server", serve, server_core))
        reader = start(Worker("reading client", reading_client, client_core))
        ours = start(Worker("workshop client", workshop_client, client_core))
        theirs = start(Worker("vllm bench serve client", vllm_client, client_core))
        loads = Loads(server, reader)
        # Making the searches runs each client once uncounted.
        most = {"workshop": loads.most_streams(ours), "vllm bench": loads.most_streams(theirs)}
        for job, rows in (
            (Job(), (("cpu_us", "CPU time per output token, µs", "ratio <= 0.5"), *_TIMES, _PROOF)),
            (Job(streams=512, requests=512, tokens=50, itl_ms=100.0), _TIMES),
        ):
            bench.compare(
                f"{job.streams} streams, a token each {job.itl_ms:g} ms",
                {"workshop": loads.side(ours, job), "vllm bench": loads.side(theirs, job)},
                rows,
            )
        bench.compare(
            f"streams of a token each {Job.itl_ms:g} ms, as many as are followed within 5%",
            most,
            (("streams", "most streams", "ratio >= 2"), _PROOF),
        )
    return bench.finish()


if __name__ == "__main__":
    run(main)
