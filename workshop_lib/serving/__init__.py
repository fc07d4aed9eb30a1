"""Talking to a model server: the client, its metrics, and the prompts client."""

from __future__ import annotations

from workshop_lib.serving.check import check_server
from workshop_lib.serving.client import ChatAnswer, ChatStream, ModelServer, Prompt, TextDelta
from workshop_lib.serving.metrics import Histogram, ServerMetrics, parse_metrics
from workshop_lib.serving.prompts import read_prompts, run_prompts

__all__ = [
    "ChatAnswer",
    "ChatStream",
    "Histogram",
    "ModelServer",
    "Prompt",
    "ServerMetrics",
    "TextDelta",
    "check_server",
    "parse_metrics",
    "read_prompts",
    "run_prompts",
]
