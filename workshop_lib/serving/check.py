"""What a learner checks at the end of the second lesson: the model server."""

from __future__ import annotations

from collections.abc import Sequence

from workshop_lib.checklist import Check, CheckList
from workshop_lib.serving.client import ModelServer

__all__ = ["check_server"]


def check_server(server: ModelServer, *, model: str, question: str = "Say hello.") -> CheckList:
    """Whether a model server serves the model that was asked for.

    Args:
        server: The server's client.
        model: The name under which the model should be served.
        question: What to ask it.
    """
    names: Sequence[str] = server.models()
    answer = server.chat(question, model=model, max_tokens=16)
    return CheckList(
        [
            Check("/health says it is ready", server.health(), server.base_url, "read its logs()"),
            Check("it serves the model", model in names, ", ".join(names), "see MODEL"),
            Check("it answers", bool(answer.text.strip()), answer.text.strip()[:80], "ask again"),
        ]
    )
