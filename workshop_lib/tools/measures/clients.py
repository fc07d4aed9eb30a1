"""Clients that load the mock server: ours, vLLM's, and one that only reads.

Each runs in a process of its own (see `workers`), which imports what it needs once and
then runs one `Job` after the other.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workshop_lib.errors import WorkshopError
from workshop_lib.tools.measures.mock_server import MODEL
from workshop_lib.tools.measures.workers import answer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["Job", "Measured", "reading_client", "vllm_client", "workshop_client"]

PROMPT = "Explain in a few words what a GPU does."


@dataclass(frozen=True)
class Job:
    """A load: closed loop, nothing sent beforehand.

    Attributes:
        url: The mock server.
        streams: Requests in flight.
        requests: Requests in all.
        tokens: Of each answer.
    """

    url: str
    streams: int
    requests: int
    tokens: int


@dataclass(frozen=True)
class Measured:
    """What a client reports of one request.

    Attributes:
        number: The stream's, see `mock_server.Stream`.
        ttft_ms: Time to first token.
        itl_ms: The gaps after it, one fewer than tokens.
        only_mean: `itl_ms` is their mean alone.
    """

    number: int
    ttft_ms: float
    itl_ms: list[float]
    only_mean: bool = False


def workshop_client(connection: Connection) -> None:
    """Be `workshop_lib.serving.benchmark`, with its progress display as in a notebook."""
    from workshop_lib.progress import Progress
    from workshop_lib.serving.benchmark import run_sweep

    def run(job: Job) -> list[Measured]:
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
        failed = [record for record in result.request_records if record.error]
        if failed:
            raise WorkshopError(f"{len(failed)} requests failed: {failed[0].detail}")
        return [
            Measured(record.prompt_tokens or 0, record.ttft_ms or 0.0, list(record.itl_ms))
            for record in result.request_records
        ]

    answer(connection, run)


def vllm_client(connection: Connection) -> None:
    """Be `vllm bench serve`, its own `add_cli_args` and `main`.

    It gets no tokenizer to load: it then spends nothing on tokens, and counts those
    that the server reports.
    """
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="WARNING")
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)

    def run(job: Job) -> list[Measured]:
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.jsonl"
            lines = [json.dumps({"prompt": f"[{n}] {PROMPT}"}) for n in range(job.requests)]
            prompts.write_text("\n".join(lines) + "\n", encoding="utf-8")
            asked = parser.parse_args(vllm_arguments(job, prompts))
            result = serve.main(asked)
        if result["completed"] != job.requests:
            raise WorkshopError(f"{job.requests - result['completed']} requests failed")
        numbers, firsts, gaps = result["input_lens"], result["ttfts"], result["itls"]
        return [
            # It takes the empty message with the role for the first token.
            Measured(number, 1000 * first, [1000 * gap for gap in gap_s[1 - job.tokens :]])
            for number, first, gap_s in zip(numbers, firsts, gaps, strict=True)
        ]

    answer(connection, run)


def vllm_arguments(job: Job, prompts: Path) -> list[str]:
    """The command line of `vllm bench serve` for a job.

    Args:
        job: The job.
        prompts: A file with a line `{"prompt": …}` for each request.
    """
    options: dict[str, Any] = {
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
    flags = ["--skip-tokenizer-init", "--disable-shuffle", "--ignore-eos", "--save-detailed"]
    return [word for name, value in options.items() for word in (f"--{name}", str(value))] + flags


def reading_client(connection: Connection) -> None:
    """Be a client that only empties its sockets: the server's own rate shows."""
    answer(connection, _read_all)


def _read_all(job: Job) -> int:
    """Run a job of one request a stream.

    Returns:
        Bytes read.
    """
    address = urlsplit(job.url)
    body = json.dumps({"stream": True, "max_tokens": job.tokens}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    total = 0
    buffer = bytearray(1 << 20)
    with selectors.DefaultSelector() as selector:
        for _ in range(job.streams):
            stream = socket.create_connection((address.hostname or "", address.port or 80))
            selector.register(stream, selectors.EVENT_READ)
            stream.sendall(head.encode() + body)
        while selector.get_map():
            for key, _ in selector.select():
                stream = key.fileobj  # type: ignore[assignment]
                count = stream.recv_into(buffer)
                total += count
                if not count or buffer.endswith(b"0\r\n\r\n", 0, count):
                    selector.unregister(stream)
                    stream.close()
    return total
