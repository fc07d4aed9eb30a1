"""What runs while the learner watches: a chat with the model, a benchmark that can be stopped."""

from __future__ import annotations

import asyncio
import html
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Any

import ipywidgets

from workshop_lib.errors import WorkshopError
from workshop_lib.plots import OKABE_ITO
from workshop_lib.progress import Progress, in_notebook
from workshop_lib.serving import ModelServer

if TYPE_CHECKING:
    from workshop_lib.cluster import Cluster
    from workshop_lib.serving.benchmark import BenchmarkResult, SweepRun

REDRAW_EVERY_S = 0.1
"""The page is redrawn at most this often; a fast server makes hundreds of tokens a second."""

_WHO = {"user": ("you", OKABE_ITO["blue"]), "assistant": ("model", OKABE_ITO["green"])}


class ChatBox(ipywidgets.VBox):  # type: ignore[misc]
    """A conversation, a line for the next question, and buttons to send it and to stop.

    The model sees the whole conversation with each question. An answer that was stopped stays as
    far as it came; a question that failed is answered by the reason and forgotten.
    """

    def __init__(
        self, reach: Callable[[], AbstractContextManager[str]], *, max_tokens: int
    ) -> None:
        self._reach, self._max_tokens = reach, max_tokens
        self._stopping, self._busy = threading.Event(), threading.Lock()
        self._note, self._failed = "", False
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
        lines = [f"{_WHO[each['role']][0]}: {each['content']}" for each in self.messages]
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
            self._stopping.clear()
            self._note, self._failed = "", False
            self.send.disabled, self.stop.disabled = True, False
            self.messages += [{"role": "user", "content": question.strip()}]
            self.messages += [{"role": "assistant", "content": ""}]
            self._draw()
            try:
                self._answer(self.messages[-1])
            except WorkshopError as error:
                self._note, self._failed = str(error), True
            except KeyboardInterrupt:
                self._note = "interrupted"
            finally:
                self._draw()
                answer = self.messages[-1]["content"]
                if self._failed or not answer:
                    del self.messages[-2:]
                self.send.disabled, self.stop.disabled = False, True
        return self._note if self._failed else answer

    def _submitted(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        if content.get("event") == "submit":
            self._send()

    def _send(self) -> None:
        """Ask what is written, from a thread: a click must not hold up the kernel."""
        question = self.question.value
        if question.strip() and not self._busy.locked():
            self.question.value = ""
            threading.Thread(target=self.ask, args=(question,), name="chat", daemon=True).start()

    def _answer(self, answer: dict[str, str]) -> None:
        """Let the answer grow as its pieces come."""
        drawn_s = time.monotonic()
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
        first_ms = stream.ttft_ms or 0
        self._note = f"{stream.completion_tokens} tokens, the first after {first_ms:.0f} ms"
        if stream.finish_reason == "length":
            self._note += f"; ended by max_tokens={self._max_tokens}"

    def _draw(self) -> None:
        self.conversation.value = self._html()

    def _html(self) -> str:
        """The conversation for a page, with the question that failed while it is shown."""
        lines = []
        for each in self.messages:
            who, colour = _WHO[each["role"]]
            text = html.escape(each["content"]).replace("\n", "<br>") or "…"
            name = f'<b style="color:{colour}">{who}</b>'
            lines.append(f'<div style="margin:.4em 0">{name} {text}</div>')
        if self._note:
            lines.append(f'<div style="opacity:.7">{html.escape(self._note)}</div>')
        return f'<div style="max-width:50em;line-height:1.5">{"".join(lines)}</div>'

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

    Example:
        >>> chat = chat_box(cluster, "vllm", 8000)  # doctest: +SKIP
        >>> chat.ask("What is a GPU?")  # doctest: +SKIP
    """
    return ChatBox(lambda: cluster.forward(service, port), max_tokens=max_tokens)


async def watch(run: SweepRun, label: str = "load") -> BenchmarkResult:
    """Wait for a sweep with a progress line and a button that stops it.

    To be awaited in a notebook's cell, so that the kernel hears the button meanwhile. Stopped
    by the button or by an interrupt, it returns what has finished.

    Args:
        run: What `start_sweep` returned.
        label: What is being done, in a few words.

    Raises:
        ServerError: Every warm-up request of the first level failed.

    Example:
        >>> result = await watch(start_sweep(url, prompts, levels=(1, 4)))  # doctest: +SKIP
        >>> result.stopped  # doctest: +SKIP
        False
    """
    remove = _show_stop_button(run.stop) if in_notebook() else None
    last = ""
    try:
        with Progress(label=label) as progress:
            waiting = asyncio.create_task(asyncio.to_thread(run.wait, progress.update))
            try:
                result = await asyncio.shield(waiting)
            except asyncio.CancelledError:  # the kernel's interrupt, in a cell that awaits
                run.stop()
                result = await waiting
        last = result.ended
        if result.stopped:
            last = f"stopped: {len(result.request_records)} finished requests are kept"
    finally:
        if remove:
            remove(last)
    return result


def _show_stop_button(stop: Callable[[], None]) -> Callable[[str], None]:
    """Show a button that calls `stop`; what is returned puts a line in its place."""
    from IPython.display import display

    def clicked(button: Any) -> None:
        button.disabled, button.description = True, "Stopping"
        stop()

    tooltip = "End it and keep what has finished"
    button = ipywidgets.Button(description="Stop", icon="stop", tooltip=tooltip)
    button.on_click(clicked)
    place: Any = display(button, display_id=True)

    def remove(last: str) -> None:
        place.update({"text/plain": last}, raw=True)
        button.close()

    return remove
