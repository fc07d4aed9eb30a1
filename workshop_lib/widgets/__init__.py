"""What a learner drives instead of reading a table: sliders, a chat, a button that stops.

A widget lives as long as its kernel. Each carries a static picture or text of itself, which
is what a page without a kernel shows: the web, `make run`'s report, a committed notebook.
"""

from __future__ import annotations

from workshop_lib.widgets.explorers import batching_explorer, memory_explorer, paging_explorer
from workshop_lib.widgets.live import chat_box, watch

__all__ = ["batching_explorer", "chat_box", "memory_explorer", "paging_explorer", "watch"]
