"""What a learner drives instead of reading a table: sliders, a chat, a button that stops.

A widget lives as long as its kernel. Each carries a static picture or text of itself, which
is what a page without a kernel shows: the web, `make run`'s report, a committed notebook.
`explorer` is what the sliders share; `memory`, `simulators`, `chat` and `stop` are the widgets.
"""

from __future__ import annotations

from workshop_lib.widgets.chat import ChatBox, chat_box
from workshop_lib.widgets.memory import MemoryExplorer, memory_explorer
from workshop_lib.widgets.simulators import (
    BatchingExplorer,
    PagingExplorer,
    batching_explorer,
    paging_explorer,
)
from workshop_lib.widgets.stop import StopButton, watch

__all__ = [
    "BatchingExplorer",
    "ChatBox",
    "MemoryExplorer",
    "PagingExplorer",
    "StopButton",
    "batching_explorer",
    "chat_box",
    "memory_explorer",
    "paging_explorer",
    "watch",
]
