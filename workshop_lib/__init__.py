"""Scalable inference and RLHF with Ray and vLLM: the workshop's library, a room a lesson."""

from __future__ import annotations

from workshop_lib.cluster.connect import connect
from workshop_lib.errors import WorkshopError

__all__ = ["WorkshopError", "connect"]
