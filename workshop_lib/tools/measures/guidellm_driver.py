"""Runs in `.venv-guidellm`: benchmarks of guidellm, one after the other, as a line each.

A line of standard input is a job: `url`, `model`, `streams`, `tokens`, `prompts`. A line of
standard output is what came of it: `answers`, for each the prompt's tokens as the server
counted them, time to first token and mean inter-token time in ms. When standard input is
closed it ends, with all that it has started.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import sys
import threading
from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One benchmark."""
    from guidellm.benchmark import benchmark_generative_text
    from guidellm.schemas.benchmark import BenchmarkScenario

    scenario = BenchmarkScenario.create(
        None,
        spec={
            "backend": {
                "kind": "openai_http",
                "target": job["url"],
                "model": job["model"],
                "max_tokens": job["tokens"],
                "validate_backend": False,
            },
            "profile": {"kind": "concurrent", "streams": [job["streams"]]},
            "constraints": [{"kind": "max_requests", "count": len(job["prompts"])}],
            "data": [
                {"kind": "in_memory_item_list", "data": job["prompts"], "column_name": "prompt"}
            ],
            "outputs": [],
        },
    )
    report, _ = asyncio.run(benchmark_generative_text(scenario, progress=False))
    done = report.benchmarks[0].requests.successful
    return {
        "answers": [
            [each.prompt_tokens, each.time_to_first_token_ms, each.inter_token_latency_ms]
            for each in done
        ]
    }


def main() -> None:
    """Answer jobs until standard input is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what guidellm prints is not an answer
    import guidellm.benchmark  # noqa: F401 - what takes long, before it is said to be ready

    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    # Not sys.stdin: guidellm forks, and in the child nobody would ever release its lock.
    sys.stdin = None

    def read() -> None:
        rest = b""
        while data := os.read(0, 1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                jobs.put(line)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()
    print("{}", file=answers, flush=True)
    while True:
        print(json.dumps(run(json.loads(jobs.get()))), file=answers, flush=True)


if __name__ == "__main__":
    main()
