"""What vLLM says about memory when it starts, read out of its log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workshop_lib.errors import WorkshopError

# vLLM 0.32 writes both facts on one line, 0.25 on two.
_TOKENS = re.compile(r"\b([A-Z]+) KV cache size: ([\d,]+) tokens")
_CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")


@dataclass(frozen=True, slots=True)
class EngineKV:
    """The engine's own statement about its KV cache; None for what the log does not say."""

    device: str
    tokens: int
    max_model_len: int | None = None
    concurrency: float | None = None


def parse_engine_line(text: str) -> EngineKV:
    """The KV cache's size as the engine printed it; of a restarted server the newest one.

    Args:
        text: The line, or a whole log that contains it.

    Raises:
        WorkshopError: The text says nothing about the KV cache.

    Example:
        >>> parse_engine_line("INFO CPU KV cache size: 23,296 tokens, Maximum concurrency "
        ...                   "for 1,024 tokens per request: 22.75x")
        EngineKV(device='CPU', tokens=23296, max_model_len=1024, concurrency=22.75)
    """
    found = list(_TOKENS.finditer(text))
    if not found:
        last = text.strip().splitlines()[-1][:80] if text.strip() else "nothing"
        raise WorkshopError(
            f"no 'KV cache size: ... tokens' in the log; its last line: {last!r}; "
            "wait until the server answers and read the log again"
        )
    device, tokens = found[-1].groups()
    kv = EngineKV(device, int(tokens.replace(",", "")))
    if rest := _CONCURRENCY.search(text, found[-1].end()):
        length, times = rest.groups()
        kv = EngineKV(kv.device, kv.tokens, int(length.replace(",", "")), float(times))
    return kv
