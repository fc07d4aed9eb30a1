"""A client for servers with the OpenAI API: vLLM by itself or behind Ray Serve.

Chat goes through the `openai` package, as a learner would do it; what the API leaves out
(`/health`, `/metrics`) goes over plain HTTP. Every failure comes as one line that names the
server and says what to do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, TypeAlias
from urllib.parse import urlsplit

from workshop_lib.errors import ServerError
from workshop_lib.serving.metrics import ServerMetrics, parse_metrics

if TYPE_CHECKING:
    import openai

# vLLM 0.32's words for a long prompt and for a large max_tokens.
_CONTEXT_LIMIT = re.compile(r"maximum context length is (\d+)|max_model_len=(\d+)")

Prompt: TypeAlias = str | Sequence[dict[str, str]]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A whole answer; tokens are as the server counted them.

    `finish_reason` is `stop` (the model ended) or `length` (`max_tokens` reached).
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    response_time_s: float


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a streamed answer and when it came, counted from sending the request."""

    text: str
    at_ms: float


class ModelServer:
    """A server with the OpenAI API.

    Args:
        url: Its address, with or without `/v1`.
        timeout_s: Longest wait for an answer or for the next piece of a stream.

    Raises:
        ServerError: The address is not an http(s) URL.

    Example:
        >>> server = ModelServer("http://127.0.0.1:8000")
        >>> server.base_url
        'http://127.0.0.1:8000'
    """

    def __init__(self, url: str, *, timeout_s: float = 120.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url!r} is no server address; give one like http://127.0.0.1:8000")
        self.base_url = url.rstrip("/").removesuffix("/v1")
        self.timeout_s = timeout_s
        # A proxy from the environment cannot reach this machine's own addresses.
        self._trust_env = not (parts.hostname == "localhost" or parts.hostname.startswith("127."))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connections; a later call opens new ones."""
        self.__dict__.pop("_openai", None)
        if http := self.__dict__.pop("_http", None):
            http.close()

    def health(self) -> bool:
        """True when `/health` answers 200: the engine runs and takes requests."""
        if self._get("/health", allow=(404,)).status_code == 404:
            self._get("/-/healthz")
        return True

    def models(self) -> list[str]:
        """Names under which the server serves models."""
        response = self._get("/v1/models")
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as exc:
            raise ServerError(
                f"{self.base_url}/v1/models is not the OpenAI API's list: {response.text[:80]!r}"
            ) from exc

    def first_model(self) -> str:
        """The first model that the server lists: the one to use when none is named."""
        if not (names := self.models()):
            raise ServerError(f"{self.base_url} serves no model")
        return names[0]

    def metrics(self) -> ServerMetrics:
        """The server's Prometheus metrics at this moment."""
        return parse_metrics(self._get("/metrics").text)

    def chat(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        model: str | None = None,
        **extra: Any,
    ) -> ChatAnswer:
        """Ask and wait for the whole answer.

        Args:
            prompt: A user's message, or a list of messages with `role` and `content`.
            max_tokens: Longest answer, tokens.
            temperature: 0 takes the most likely token each time.
            model: Name of the model; by default the first that the server lists.
            **extra: Further fields of the request's body, vLLM's own included (`ignore_eos`).

        Raises:
            ServerError: Server down, wrong model name, context too long, malformed answer.

        Example:
            >>> server.chat("What is a GPU?", max_tokens=20).completion_tokens  # doctest: +SKIP
            20
        """
        body = self._body(prompt, max_tokens, temperature, model, **extra)
        return self._whole_answer(self._openai.chat.completions.create, body)

    def complete(self, prompt: str, **settings: Any) -> ChatAnswer:
        """Have a text continued, as it is: chat would put it into the model's template."""
        body = self._body(prompt, **settings)
        del body["messages"]
        return self._whole_answer(self._openai.completions.create, body | {"prompt": prompt})

    def _whole_answer(self, create: Callable[..., Any], body: dict[str, Any]) -> ChatAnswer:
        start = time.perf_counter()
        with self._explained(body["model"]):
            completion = create(**body)
        elapsed_s = time.perf_counter() - start
        if not getattr(completion, "choices", None) or completion.usage is None:
            raise ServerError(f"{self.base_url} sent an answer without text or token counts")
        choice = completion.choices[0]
        text = choice.text if "prompt" in body else choice.message.content
        return ChatAnswer(
            text=text or "",
            prompt_tokens=completion.usage.prompt_tokens,
            completion_tokens=completion.usage.completion_tokens,
            finish_reason=choice.finish_reason or "",
            response_time_s=elapsed_s,
        )

    def stream_chat(self, prompt: Prompt, *, max_tokens: int = 128) -> ChatStream:
        """Ask and get the answer piece by piece, each with its time.

        The request is sent when the stream is first iterated.

        Args:
            prompt: A user's message, or a list of messages with `role` and `content`.
            max_tokens: Longest answer, tokens.

        Raises:
            ServerError: As `chat`; while iterating also for a stream that breaks off.

        Example:
            >>> for delta in server.stream_chat("What is a GPU?"):  # doctest: +SKIP
            ...     print(delta.text, end="")
        """
        body = self._body(prompt, max_tokens)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return ChatStream(self, body)

    def _body(
        self,
        prompt: Prompt,
        max_tokens: int = 128,
        temperature: float = 0.0,
        model: str | None = None,
        **extra: Any,
    ) -> dict[str, Any]:
        if max_tokens < 1:
            raise ServerError(f"max_tokens must be at least 1, got {max_tokens}")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return {
            "model": model or self.first_model(),
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "extra_body": extra or None,
        }

    def _get(self, path: str, allow: tuple[int, ...] = ()) -> Any:
        url = self.base_url + path
        with self._explained(""):
            response = self._http.get(url)
        if response.status_code != 200 and response.status_code not in allow:
            text = " ".join(response.text.split())[:120]
            raise ServerError(f"{url} answered {response.status_code}: {text or 'no text'}")
        return response

    @cached_property
    def _http(self) -> Any:
        import openai

        return openai.DefaultHttpxClient(trust_env=self._trust_env, timeout=self.timeout_s)

    @cached_property
    def _openai(self) -> openai.OpenAI:
        import openai

        return openai.OpenAI(
            base_url=f"{self.base_url}/v1",
            api_key="none",
            timeout=self.timeout_s,
            max_retries=0,  # a hidden second try would spoil every measured time
            http_client=self._http,
        )

    @contextmanager
    def _explained(self, model: str) -> Iterator[None]:
        """Turns the client library's exceptions into one line each."""
        import httpx2  # the openai package's client
        import openai

        url = self.base_url
        try:
            yield
        except (openai.APITimeoutError, httpx2.TimeoutException) as exc:
            raise ServerError(f"{url} sent nothing for {self.timeout_s:.0f} s") from exc
        except (openai.APIConnectionError, httpx2.HTTPError) as exc:
            # The package wraps both a refused connection and one that breaks off later.
            cause = exc if isinstance(exc, httpx2.HTTPError) else exc.__cause__ or exc
            if isinstance(cause, httpx2.ConnectError):
                raise ServerError(
                    f"no server at {url} ({cause}); start one with cluster.apply('vllm'), "
                    "or read its log if it should be running"
                ) from exc
            raise ServerError(f"{url} broke off the answer ({cause}); see its log") from exc
        except openai.APIStatusError as exc:
            raise self._refused(exc, model) from exc
        except openai.APIError as exc:
            raise ServerError(f"{url} failed while answering: {exc.message}") from exc
        except ValueError as exc:
            raise ServerError(f"{url} sent a malformed stream: {exc}") from exc

    def _refused(self, exc: openai.APIStatusError, model: str) -> ServerError:
        body = exc.body if isinstance(exc.body, dict) else {}
        message = " ".join(str(body.get("message") or exc.message).split())
        if exc.status_code == 404 and "model" in message:
            names = ", ".join(self.models())
            return ServerError(f"{self.base_url} serves no model {model!r}; it serves: {names}")
        if exc.status_code == 400 and (limit := _CONTEXT_LIMIT.search(message)):
            tokens = limit.group(limit.lastindex or 0)
            return ServerError(
                f"{self.base_url}: prompt and answer exceed {model}'s context of {tokens} tokens; "
                "shorten the prompt or lower max_tokens"
            )
        return ServerError(f"{self.base_url} answered {exc.status_code}: {message[:160]}")


@dataclass
class ChatStream:
    """A streamed answer: iterate it once for its pieces; afterwards it holds the whole.

    The server's empty first message is no piece: it carries the role and no text, and would make
    the first token look too early. Token counts are the server's; None until the end.
    """

    server: ModelServer
    body: dict[str, Any]
    deltas: list[TextDelta] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""
    e2e_ms: float | None = None

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first text; None before it has come."""
        return self.deltas[0].at_ms if self.deltas else None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(delta.text for delta in self.deltas)

    def __iter__(self) -> Generator[TextDelta, None, None]:
        self.deltas.clear()
        client = self.server._openai
        start = time.perf_counter()
        with self.server._explained(self.body["model"]):
            chunks = client.chat.completions.create(**self.body)
            # Left early, the stream closes its connection: the server then stops generating.
            with chunks:
                for chunk in chunks:
                    at_ms = (time.perf_counter() - start) * 1000
                    if chunk.usage is not None:
                        self.prompt_tokens = chunk.usage.prompt_tokens
                        self.completion_tokens = chunk.usage.completion_tokens
                    for choice in chunk.choices:
                        self.finish_reason = choice.finish_reason or self.finish_reason
                        if choice.delta.content:
                            delta = TextDelta(choice.delta.content, at_ms)
                            self.deltas.append(delta)
                            yield delta
        if not self.finish_reason:
            raise ServerError(
                f"{self.server.base_url} sent a malformed stream: it ended after "
                f"{len(self.deltas)} pieces without a finish reason; see the server's log"
            )
        self.e2e_ms = (time.perf_counter() - start) * 1000
