"""Both simulators together: what an engine's gauges would show, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.simulators.batching import Job, Schedule, simulate_batching
from workshop_lib.serving.simulators.paging import PagedCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["EngineRun", "simulate_engine"]


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What the simulated engine did.

    Attributes:
        schedule: Which request ran in which step.
        blocks: Blocks of its cache.
        block_size: Tokens in a block.
        gauges: One row a step: `step`, `running`, `waiting` (requests), `blocks` (in use).
    """

    schedule: Schedule
    blocks: int
    block_size: int
    gauges: pd.DataFrame


def simulate_engine(
    jobs: Sequence[Job],
    *,
    prompt_tokens: int | Mapping[str, int],
    blocks: int,
    block_size: int,
    slots: int = 128,
) -> EngineRun:
    """Run requests on an engine with continuous batching and a paged cache.

    In its first step a request's whole prompt is stored; each later step stores the token
    that the step before has made.

    Args:
        jobs: The requests.
        prompt_tokens: Tokens of each prompt, or one number for all.
        blocks: Blocks of the cache that requests can take.
        block_size: Tokens in a block.
        slots: Requests that run at once, at most (vLLM: `--max-num-seqs`).

    Raises:
        WorkshopError: A size out of range, a name that comes twice, or requests that run
            together and do not fit the cache: preempting one, as vLLM would, is not modelled.

    Example:
        >>> run = simulate_engine([Job("long", 0, 40), Job("short", 2, 4)],
        ...                       prompt_tokens=20, blocks=181, block_size=16)
        >>> int(run.gauges.running.max()), run.gauges.blocks.iloc[[0, 2, 39]].tolist()
        (2, [2, 4, 4])
    """
    import pandas as pd

    if len({job.name for job in jobs}) < len(jobs):
        raise WorkshopError(f"each request needs a name of its own: {[job.name for job in jobs]}")
    schedule = simulate_batching(jobs, slots=slots)
    cache = PagedCache(blocks, block_size)
    rows = []
    for step in range(schedule.steps):
        for run in schedule.runs:
            name = run.job.name
            if run.end == step:
                cache.release(name)
        for run in schedule.runs:
            name = run.job.name
            if not run.start <= step < run.end:
                continue
            prompt = prompt_tokens if isinstance(prompt_tokens, int) else prompt_tokens[name]
            if not cache.append(name, prompt if run.start == step else 1):
                raise WorkshopError(
                    f"{name} finds no free block in step {step}: {blocks} blocks of {block_size} "
                    "tokens are too few for these requests at once; use fewer or shorter ones"
                )
        running = [run for run in schedule.runs if run.start <= step < run.end]
        waiting = [run for run in schedule.runs if run.job.arrival <= step < run.start]
        used = sum(len(table) for table in cache.tables.values())
        rows.append((step, len(running), len(waiting), used))
    gauges = pd.DataFrame(rows, columns=["step", "running", "waiting", "blocks"])
    return EngineRun(schedule, blocks, block_size, gauges)
