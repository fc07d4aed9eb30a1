"""What vLLM says about memory when it starts, read out of its log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workshop_lib.errors import WorkshopError

__all__ = ["EngineKV", "EngineLog", "parse_engine_line", "parse_engine_log"]

# vLLM 0.32 writes both facts on one line, 0.25 on two.
_TOKENS = re.compile(r"\b([A-Z]+) KV cache size: ([\d,]+) tokens")
_CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
_GRAPHS = re.compile(r"Graph capturing finished in [\d.]+ secs?, took (-?[\d.]+) GiB")


@dataclass(frozen=True, slots=True)
class EngineKV:
    """The engine's own statement about its KV cache.

    `max_model_len` and `concurrency` are None when the text holds only the
    first of the two lines that older versions write.
    """

    device: str
    tokens: int
    max_model_len: int | None = None
    concurrency: float | None = None


@dataclass(frozen=True, slots=True)
class EngineLog:
    """Memory figures of an engine's start; None where the log has none.

    Attributes:
        kv: The KV cache.
        weights_gib: "Model loading took", GiB.
        available_kv_gib: "Available KV cache memory", GiB.
        cuda_graphs_gib: "Graph capturing finished", GiB.
    """

    kv: EngineKV | None = None
    weights_gib: float | None = None
    available_kv_gib: float | None = None
    cuda_graphs_gib: float | None = None


def parse_engine_line(text: str) -> EngineKV:
    """The KV cache's size as the engine printed it.

    Args:
        text: The line, or a whole log that contains it.

    Raises:
        WorkshopError: The text says nothing about the KV cache.

    Example:
        >>> parse_engine_line("INFO CPU KV cache size: 23,296 tokens, Maximum concurrency "
        ...                   "for 1,024 tokens per request: 22.75x")
        EngineKV(device='CPU', tokens=23296, max_model_len=1024, concurrency=22.75)
    """
    kv = parse_engine_log(text).kv
    if kv is None:
        last = text.strip().splitlines()[-1][:80] if text.strip() else "nothing"
        raise WorkshopError(
            f"no 'KV cache size: ... tokens' in the log; its last line: {last!r}; "
            "wait until the server answers and read the log again"
        )
    return kv


def parse_engine_log(text: str) -> EngineLog:
    """All memory figures in an engine's log; the last of each counts.

    Args:
        text: The log.

    Example:
        >>> parse_engine_log("Model loading took 13.76 GiB and 2.3 seconds").weights_gib
        13.76
    """
    kv = None
    # A server that was restarted logs its figures again: only the newest are of use.
    if tokens := _last(_TOKENS, text):
        kv = EngineKV(tokens.group(1), _integer(tokens.group(2)))
        if concurrency := _last(_CONCURRENCY, text[tokens.end() :]):
            length, times = concurrency.groups()
            kv = EngineKV(kv.device, kv.tokens, _integer(length), float(times))
    return EngineLog(
        kv=kv,
        weights_gib=_number(_WEIGHTS, text),
        available_kv_gib=_number(_AVAILABLE, text),
        cuda_graphs_gib=_number(_GRAPHS, text),
    )


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    matches = list(pattern.finditer(text))
    return matches[-1] if matches else None


def _number(pattern: re.Pattern[str], text: str) -> float | None:
    match = _last(pattern, text)
    return float(match.group(1)) if match else None


def _integer(text: str) -> int:
    return int(text.replace(",", ""))
