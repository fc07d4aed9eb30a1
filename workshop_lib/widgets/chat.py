"""A chat with the served model: answers appear as they are made, and can be stopped."""

from __future__ import annotations

import html
import threading
import time
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

import ipywidgets

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import OKABE_ITO
from workshop_lib.serving import ModelServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from workshop_lib.cluster.base import Cluster

__all__ = ["ChatBox", "chat_box"]

REDRAW_EVERY_S = 0.1
"""The page is redrawn at most this often; a fast server makes hundreds of tokens a second."""


class ChatBox(ipywidgets.VBox):  # type: ignore[misc]
    """A conversation, a line for the next question, and buttons to send it and to stop.

    Made by `chat_box`. The model sees the whole conversation with each question. An answer
    that was stopped stays as far as it came; a question that failed is answered by the reason
    and forgotten.

    Attributes:
        question: The line to write in; Enter sends it.
        send: The button that sends it.
        stop: The button that ends the answer.
        conversation: All of it, as HTML.
        messages: All of it, as the API's messages.
    """

    def __init__(
        self, reach: Callable[[], AbstractContextManager[str]], *, max_tokens: int
    ) -> None:
        self._reach = reach
        self._max_tokens = max_tokens
        self._stopping = threading.Event()
        self._busy = threading.Lock()
        self._note = ""
        self._failed = False
        self.messages: list[dict[str, str]] = []
        wide = ipywidgets.Layout(width="40em", max_width="99%")
        self.question = ipywidgets.Text(placeholder="ask the model", layout=wide)
        self.send = ipywidgets.Button(description="Send", icon="paper-plane")
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.conversation = ipywidgets.HTML()
        self.question.on_msg(self._submitted)
        self.send.on_click(lambda button: self._send())
        self.stop.on_click(lambda button: self._stopping.set())
        line = ipywidgets.HBox([self.question, self.send, self.stop])
        super().__init__([self.conversation, line])

    @property
    def says(self) -> str:
        """The conversation as plain text."""
        names = {"user": "you", "assistant": "model"}
        lines = [f"{names[each['role']]}: {each['content']}" for each in self.messages]
        return "\n".join([*lines, f"({self._note})"] if self._note else lines)

    def ask(self, question: str) -> str:
        """Ask and wait for the answer; an interrupt keeps what has come of it.

        Args:
            question: What to ask.

        Returns:
            The answer, or the reason why there is none.

        Example:
            >>> chat_box(cluster, "vllm", 8000).ask("What is a GPU?")  # doctest: +SKIP
            'A GPU is ...'
        """
        if not question.strip():
            return ""
        with self._busy:
            self._begin(question)
            try:
                self._answer()
            except KeyboardInterrupt:
                self._note = "interrupted"
            finally:
                self._end()
        return self._note if self._failed else self.messages[-1]["content"]

    def _submitted(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("event") == "submit":
            self._send()

    def _send(self) -> None:
        """Ask what is written, from a thread: a click must not hold up the kernel."""
        question = self.question.value
        if not question.strip() or self._busy.locked():
            return
        self.question.value = ""
        threading.Thread(target=self.ask, args=(question,), name="chat", daemon=True).start()

    def _begin(self, question: str) -> None:
        self._stopping.clear()
        self._note, self._failed = "", False
        self.send.disabled, self.stop.disabled = True, False
        self.messages += [{"role": "user", "content": question.strip()}]
        self.messages += [{"role": "assistant", "content": ""}]
        self._draw()

    def _answer(self) -> None:
        """Let the answer grow as its pieces come."""
        drawn_s = time.monotonic()
        answer = self.messages[-1]
        try:
            with self._reach() as url, ModelServer(url) as server:
                stream = server.stream_chat(self.messages[:-1], max_tokens=self._max_tokens)
                # Closed, so that the server stops working on an answer nobody waits for.
                with closing(iter(stream)) as pieces:
                    for piece in pieces:
                        answer["content"] += piece.text
                        if self._stopping.is_set():
                            self._note = f"stopped after {len(stream.deltas)} pieces"
                            return
                        if time.monotonic() - drawn_s >= REDRAW_EVERY_S:
                            drawn_s = time.monotonic()
                            self._draw()
            self._note = (
                f"{stream.completion_tokens} tokens, the first after {stream.ttft_ms or 0:.0f} ms"
            )
            if stream.finish_reason == "length":
                self._note += f"; ended by max_tokens={self._max_tokens}"
        except WorkshopError as error:
            self._note, self._failed = str(error), True

    def _end(self) -> None:
        self._draw()
        if self._failed or not self.messages[-1]["content"]:
            del self.messages[-2:]
        self.send.disabled, self.stop.disabled = False, True

    def _draw(self) -> None:
        self.conversation.value = self._html()

    def _html(self) -> str:
        """The conversation for a page, with the question that failed while it is shown."""
        colours = {"user": OKABE_ITO["blue"], "assistant": OKABE_ITO["green"]}
        names = {"user": "you", "assistant": "model"}
        lines = [
            f'<div style="margin:.4em 0"><b style="color:{colours[each["role"]]}">'
            f"{names[each['role']]}</b> "
            f"{html.escape(each['content']).replace(chr(10), '<br>') or '…'}</div>"
            for each in self.messages
        ]
        note = f'<div style="opacity:.7">{html.escape(self._note)}</div>' if self._note else ""
        return f'<div style="max-width:50em;line-height:1.5">{"".join(lines)}{note}</div>'

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and for pages that have no kernel what has been said."""
        bundle: dict[str, Any] = dict(super()._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = self.says or "(nothing has been asked yet)"
        if self.messages:
            bundle["text/html"] = self._html()
        return bundle


def chat_box(cluster: Cluster, service: str, port: int, *, max_tokens: int = 96) -> ChatBox:
    """Make a chat with the model behind a Service.

    The Service is reached anew for each question, so the chat outlives a server that was
    restarted, and says so when there is none.

    Args:
        cluster: What `connect` returned.
        service: The Service's name.
        port: Its port.
        max_tokens: Longest answer, tokens.

    Returns:
        The widget; a notebook shows it when it is a cell's last value.

    Raises:
        WorkshopError: A length that is not positive.

    Example:
        >>> chat = chat_box(cluster, "vllm", 8000)  # doctest: +SKIP
        >>> chat.ask("What is a GPU?")  # doctest: +SKIP
    """
    if max_tokens < 1:
        raise WorkshopError(f"max_tokens must be at least 1, got {max_tokens}")
    return ChatBox(lambda: cluster.forward(service, port), max_tokens=max_tokens)
