"""A real HTTP server with the OpenAI API's shape and a known time for every token.

For tests of the client and the load generator: it says when it sent what, so a
measured time can be compared with the true one. Faults are asked for in the
prompt ("FAULT:die"), so that one server serves all tests.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

MODEL = "techpulse/test-model"
MAX_CONTEXT = 100
BLOCKS = 182  # one of which nobody gets, as in vLLM
BLOCK_SIZE = 8


@dataclass
class Sent:
    """What the server did for one request; times are `time.perf_counter()` seconds.

    Each is taken before the bytes go out: whoever has read them did so later, on any machine.
    """

    prompt: str
    received_s: float
    text_s: list[float] = field(default_factory=list)
    end_s: float = 0.0


class StreamingServer:
    """Answers with `max_tokens` words: the first after `ttft_ms`, the others `itl_ms` apart.

    The empty message with the role goes out at once, as vLLM's does: a client
    that takes it for the first token reports far too short a time.
    """

    def __init__(
        self,
        *,
        ttft_ms: float = 40,
        itl_ms: float = 10,
        tokens_per_message: int = 1,
        health_path: str = "/health",
    ) -> None:
        self.ttft_ms = ttft_ms
        self.itl_ms = itl_ms
        self.tokens_per_message = tokens_per_message
        self.health_path = health_path
        self.sent: list[Sent] = []
        self.bodies: list[dict[str, Any]] = []
        self.running = 0
        self.working: list[Sent] = []
        self.most_running = 0
        self.connections = 0
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> StreamingServer:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(60)

    def die(self) -> None:
        """Break every connection and accept no more: a server that crashed."""
        self.__exit__(None, None, None)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while request := await self._read(reader):
                await self._answer(writer, *request)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the server dies
        finally:
            self._writers.discard(writer)
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> tuple[str, bytes] | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        length = 0
        for line in head.decode().split("\r\n"):
            if line.lower().startswith("content-length:"):
                length = int(line.split(":")[1])
        return head.decode().split(" ")[1], await reader.readexactly(length)

    async def _answer(self, writer: asyncio.StreamWriter, path: str, raw: bytes) -> None:
        if path == self.health_path:
            await self._plain(writer, 200, b"")
        elif path == "/v1/models":
            await self._json(writer, 200, {"data": [{"id": MODEL}]})
        elif path == "/metrics":
            await self._plain(writer, 200, self._metrics_page().encode())
        elif path in ("/v1/chat/completions", "/v1/completions"):
            await self._chat(writer, json.loads(raw))
        else:
            await self._json(writer, 404, {"error": {"message": "no such path"}})

    async def _chat(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        self.bodies.append(body)
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        words = len(prompt.split())
        if body["model"] != MODEL:
            message = f"The model `{body['model']}` does not exist."
            await self._json(writer, 404, {"error": {"message": message, "code": 404}})
        elif words + body["max_tokens"] > MAX_CONTEXT:
            message = f"This model's maximum context length is {MAX_CONTEXT} tokens."
            await self._json(writer, 400, {"error": {"message": message, "code": 400}})
        elif "FAULT:500" in prompt:
            await self._json(writer, 500, {"error": {"message": "engine is dead", "code": 500}})
        elif "FAULT:not-http" in prompt:
            writer.write(b"hello there\r\n\r\n")
            await writer.drain()
        else:
            await self._generate(writer, body, Sent(prompt, time.perf_counter()))

    async def _generate(
        self, writer: asyncio.StreamWriter, body: dict[str, Any], sent: Sent
    ) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.sent.append(sent)
        self.working.append(sent)
        try:
            if body.get("stream"):
                await self._stream(writer, body, sent)
            else:
                await self._whole(writer, body, sent)
        finally:
            self.running -= 1
            self.working.remove(sent)

    async def _whole(self, writer: asyncio.StreamWriter, body: dict[str, Any], sent: Sent) -> None:
        total_ms = self.ttft_ms + self.itl_ms * (body["max_tokens"] - 1)
        await asyncio.sleep(total_ms / 1000)
        text = "word " * body["max_tokens"]
        told = (
            {"text": text}
            if "prompt" in body
            else {"message": {"role": "assistant", "content": text}}
        )
        choices = [{"index": 0, "finish_reason": "length", **told}]
        sent.end_s = time.perf_counter()
        await self._json(writer, 200, {"choices": choices, "usage": self._usage(body, sent)})

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any], sent: Sent) -> None:
        fault = sent.prompt.partition("FAULT:")[2].split(" ")[0]
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self._event(writer, self._delta({"role": "assistant", "content": ""}))
        due_s = sent.received_s + self.ttft_ms / 1000
        left = 0 if fault == "empty" else body["max_tokens"]
        while left:
            await self._until_due(sent, due_s)
            if fault == "silent":
                await asyncio.sleep(3600)
            if fault == "die" and len(sent.text_s) == 2:
                writer.transport.abort()
                return
            if fault == "malformed" and len(sent.text_s) == 2:
                self._chunk(writer, b"data: {broken\n\n")
                break
            if fault == "error" and len(sent.text_s) == 2:
                self._event(writer, {"error": {"message": "engine died", "code": 500}})
                break
            count = min(left, self.tokens_per_message)
            left -= count
            sent.text_s.append(time.perf_counter())
            self._event(writer, self._delta({"content": "word " * count}))
            if writer.transport.is_closing():
                raise ConnectionResetError("the client has gone")
            due_s += count * self.itl_ms / 1000
        if fault not in ("malformed", "error", "cut"):
            self._event(writer, self._delta({}, finish_reason="length"))
            self._event(writer, {"choices": [], "usage": self._usage(body, sent)})
            self._chunk(writer, b"data: [DONE]\n\n")
        sent.end_s = time.perf_counter()
        self._chunk(writer, b"")
        await writer.drain()

    async def _until_due(self, sent: Sent, due_s: float) -> None:
        """Wait before an answer's next message."""
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))

    @staticmethod
    def _usage(body: dict[str, Any], sent: Sent) -> dict[str, int]:
        prompt, completion = len(sent.prompt.split()), body["max_tokens"]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    @staticmethod
    def _delta(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        }

    def _event(self, writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
        self._chunk(writer, b"data: " + json.dumps(data).encode() + b"\n\n")

    @staticmethod
    def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def _json(self, writer: asyncio.StreamWriter, status: int, data: Any) -> None:
        await self._plain(writer, status, json.dumps(data).encode(), kind=b"application/json")

    @staticmethod
    async def _plain(
        writer: asyncio.StreamWriter, status: int, data: bytes, kind: bytes = b"text/plain"
    ) -> None:
        head = f"HTTP/1.1 {status} -\r\nContent-Length: {len(data)}\r\nContent-Type: ".encode()
        writer.write(head + kind + b"\r\n\r\n" + data)
        await writer.drain()

    def _metrics_page(self) -> str:
        finished = [sent for sent in self.sent if sent.end_s and sent.text_s]
        gaps = [b - a for s in finished for a, b in zip(s.text_s, s.text_s[1:], strict=False)]
        series = {
            "time_to_first_token_seconds": [s.text_s[0] - s.received_s for s in finished],
            "inter_token_latency_seconds": gaps,
            "e2e_request_latency_seconds": [s.end_s - s.received_s for s in finished],
            # As if tokens of one moment were made in one step.
            "iteration_tokens": Counter(round(t, 6) for s in finished for t in s.text_s).values(),
        }
        used = sum(-(-(len(s.prompt.split()) + len(s.text_s)) // BLOCK_SIZE) for s in self.working)
        lines = [
            "# HELP vllm:num_requests_running Requests running.",
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{engine="0",model_name="{MODEL}"}} {float(self.running)}',
            "# TYPE vllm:num_requests_waiting gauge",
            f'vllm:num_requests_waiting{{engine="0",model_name="{MODEL}"}} 0.0',
            "# TYPE vllm:kv_cache_usage_perc gauge",
            f'vllm:kv_cache_usage_perc{{engine="0"}} {used / (BLOCKS - 1)}',
            "# TYPE vllm:request_success_total counter",
            f'vllm:request_success_total{{engine="0",finished_reason="length"}} {len(finished)}',
            'vllm:request_success_total{engine="0",finished_reason="stop"} 0',
            "# TYPE vllm:cache_config_info gauge",
            f'vllm:cache_config_info{{block_size="{BLOCK_SIZE}",num_gpu_blocks="{BLOCKS}"}} 1.0',
        ]
        for name, values in series.items():
            lines.append(f"# TYPE vllm:{name} histogram")
            for bound in (0.05, 0.5, float("inf")):
                text = "+Inf" if bound == float("inf") else str(bound)
                count = sum(value <= bound for value in values)
                lines.append(f'vllm:{name}_bucket{{engine="0",le="{text}"}} {count}')
            lines.append(f'vllm:{name}_count{{engine="0"}} {len(values)}')
            lines.append(f'vllm:{name}_sum{{engine="0"}} {sum(values)}')
        return "\n".join(lines) + "\n"


class Dying(StreamingServer):
    """Answers so many requests, holds back the others, and is then ready to die."""

    def __init__(self, answers: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._answers = answers
        self._held = threading.Event()

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any], sent: Sent) -> None:
        if len(self.sent) > self._answers:
            self._held.set()
            await asyncio.sleep(3600)
        await super()._stream(writer, body, sent)

    def die_when_it_is_time(self) -> None:
        """Die while a client waits for an answer that does not come."""
        assert self._held.wait(300)
        self.die()
