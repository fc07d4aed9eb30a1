"""Small exact models of what happens inside a serving engine.

`paging`: block tables of PagedAttention, against memory reserved in one piece.
`batching`: which request runs in which step, with static and with continuous batching.
Plain data in, plain data out: widgets drive them, `workshop_lib.plots` draws them.
"""

from __future__ import annotations

from workshop_lib.simulators.batching import Job, Schedule, simulate_batching
from workshop_lib.simulators.paging import PagedCache, Paging, simulate_paging

__all__ = ["Job", "PagedCache", "Paging", "Schedule", "simulate_batching", "simulate_paging"]
