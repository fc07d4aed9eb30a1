"""Small exact models of what happens inside a serving engine.

Plain data in, plain data out: widgets drive them, `workshop_lib.plots` draws them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["Job", "sharded_layer", "simulate_batching", "simulate_engine", "simulate_paging"]

Policy = Literal["static", "continuous"]


# -- batching: which request runs in which step ------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """A request: the step at which it arrives, from 0, and how many tokens it wants, one a step."""

    name: str
    arrival: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a job: it ran in `slot` from step `start` up to, not including, `end`."""

    job: Job
    slot: int
    start: int
    end: int

    @property
    def wait(self) -> int:
        """Steps from its arrival to its first."""
        return self.start - self.job.arrival


@dataclass(frozen=True, slots=True)
class Schedule:
    """All runs under one policy."""

    policy: Policy
    slots: int
    runs: tuple[Run, ...]

    @property
    def steps(self) -> int:
        """Steps until the last job is done."""
        return max(run.end for run in self.runs)

    @property
    def mean_wait(self) -> float:
        """Mean steps between arrival and first step."""
        return sum(run.wait for run in self.runs) / len(self.runs)

    @property
    def utilization(self) -> float:
        """Share of slots, over all steps, that made a token."""
        return sum(run.job.tokens for run in self.runs) / (self.slots * self.steps)


def simulate_batching(
    jobs: Sequence[Job], *, slots: int, policy: Policy = "continuous"
) -> Schedule:
    """Run jobs on an engine with that many slots, first come, first served."""
    if not jobs:
        raise WorkshopError("at least one job is needed")
    _at_least_one(slots=slots, **{f"tokens of {job.name}": job.tokens for job in jobs})
    waiting = sorted(range(len(jobs)), key=lambda i: jobs[i].arrival)
    busy_until = [0] * slots
    runs: dict[int, Run] = {}
    step = 0
    while waiting:
        free = [slot for slot in range(slots) if busy_until[slot] <= step]
        if policy == "static" and len(free) < slots:
            free = []
        for slot in free:
            if waiting and jobs[waiting[0]].arrival <= step:
                index = waiting.pop(0)
                busy_until[slot] = step + jobs[index].tokens
                runs[index] = Run(jobs[index], slot, step, busy_until[slot])
        step += 1
    return Schedule(policy, slots, tuple(runs[index] for index in range(len(jobs))))


# -- paging: block tables, against memory reserved in one piece --------------------------------


@dataclass
class PagedCache:
    """A KV cache cut into blocks, as vLLM's block manager keeps it.

    Source: `BlockPool.free_blocks`, `FreeKVCacheBlockQueue` and `SingleTypeKVCacheManager` in
    vllm/v1/core; prefix caching is left out.
    """

    blocks: int
    block_size: int
    tables: dict[str, list[int]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least_one(blocks=self.blocks, block_size=self.block_size)
        self._free = deque(range(1, self.blocks + 1))

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def append(self, request: str, tokens: int = 1) -> bool:
        """Store more tokens of a request; nothing changes when the blocks do not suffice."""
        total = self.tokens.get(request, 0) + tokens
        table = self.tables.get(request, [])
        missing = -(-total // self.block_size) - len(table)
        if missing > len(self._free):
            return False
        self.tables[request] = table + [self._free.popleft() for _ in range(missing)]
        self.tokens[request] = total
        return True

    def release(self, request: str) -> None:
        """Give back all blocks of a request that has finished."""
        self._free.extendleft(self.tables.pop(request))
        del self.tokens[request]

    def fill(self) -> dict[int, tuple[str, int]]:
        """For each block in use its request and how many of its slots are filled."""
        return {
            block: (request, min(self.block_size, self.tokens[request] - i * self.block_size))
            for request, table in self.tables.items()
            for i, block in enumerate(table)
        }


@dataclass(frozen=True, slots=True)
class Paging:
    """The same requests in the same memory, in blocks and in one piece each."""

    block_size: int
    blocks: int
    max_model_len: int
    tables: dict[str, list[int]]
    fill: dict[int, tuple[str, int]]
    tokens: dict[str, int]
    waiting: tuple[str, ...]
    pieces: tuple[str, ...]

    @property
    def wasted_slots(self) -> int:
        """Held slots without a token: the empty ends of last blocks (internal fragmentation)."""
        return self.block_size * len(self.fill) - sum(self.tokens[name] for name in self.tables)

    @property
    def wasted_slots_in_pieces(self) -> int:
        """Slots without a token when each request reserves `max_model_len` of them."""
        return sum(self.max_model_len - self.tokens[name] for name in self.pieces)

    def summary(self) -> list[dict[str, Any]]:
        """Both ways as rows: requests stored, slots held, slots wasted."""
        ways = {
            f"blocks of {self.block_size}": (self.tables, self.wasted_slots),
            f"one piece of {self.max_model_len:,}": (self.pieces, self.wasted_slots_in_pieces),
        }
        held = self.block_size * len(self.fill), self.max_model_len * len(self.pieces)
        return [
            {"kept in": way, "requests": len(stored), "held": slots, "wasted": wasted}
            for (way, (stored, wasted)), slots in zip(ways.items(), held, strict=True)
        ]


def simulate_paging(
    tokens: Mapping[str, int], *, blocks: int, block_size: int = 16, max_model_len: int = 1024
) -> Paging:
    """Store requests in a cache in the order given, in blocks and in one piece each."""
    cache = PagedCache(blocks, block_size)
    _at_least_one(**{f"tokens of {name}": count for name, count in tokens.items()})
    if too_long := [name for name, count in tokens.items() if count > max_model_len]:
        raise WorkshopError(
            f"{too_long[0]}: {tokens[too_long[0]]} tokens are more than max_model_len "
            f"{max_model_len}"
        )
    left, needed = {}, 0
    for name, count in tokens.items():
        needed += -(-count // block_size)
        if needed > blocks:
            break
        left[name] = count
    waiting = tuple(name for name in tokens if name not in left)
    while left:  # in turn, a block at a time, as they would grow beside each other
        for name in list(left):
            cache.append(name, min(block_size, left[name]))
            left[name] -= block_size
            if left[name] <= 0:
                del left[name]
    return Paging(
        block_size=block_size,
        blocks=blocks,
        max_model_len=max_model_len,
        tables=cache.tables,
        fill=cache.fill(),
        tokens=dict(tokens),
        waiting=waiting,
        pieces=tuple(tokens)[: blocks * block_size // max_model_len],
    )


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise WorkshopError(f"{name} must be at least 1, got {value}")


# -- both together, as an engine's gauges show them --------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What the simulated engine did.

    Attributes:
        schedule: Which request ran in which step.
        gauges: One row a step: `step`, `running`, `waiting` (requests), `blocks` (in use).
    """

    schedule: Schedule
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
            if run.end == step:
                cache.release(run.job.name)
        running = [run for run in schedule.runs if run.start <= step < run.end]
        for run in running:
            name = run.job.name
            prompt = prompt_tokens if isinstance(prompt_tokens, int) else prompt_tokens[name]
            if not cache.append(name, prompt if run.start == step else 1):
                raise WorkshopError(
                    f"{name} finds no free block in step {step}: {blocks} blocks of {block_size} "
                    "tokens are too few for these requests at once; use fewer or shorter ones"
                )
        waiting = sum(run.job.arrival <= step < run.start for run in schedule.runs)
        rows.append((step, len(running), waiting, blocks - cache.free_blocks))
    return EngineRun(schedule, pd.DataFrame(rows, columns=["step", "running", "waiting", "blocks"]))


# -- tensor parallelism: a layer's matrix products on several GPUs -----------------------------


@dataclass(frozen=True, slots=True)
class ShardedLayer:
    """What `tp` GPUs computed, each with its share of the weights.

    Attributes:
        tp: GPUs.
        partial: What each GPU has before the all-reduce, each of shape (tokens, hidden): no
            GPU has the answer. Their sum is what every GPU has after it.
        whole: The same product by one GPU.
        weights_per_gpu: Numbers of the two matrices that each GPU holds.
    """

    tp: int
    partial: tuple[NDArray[np.float64], ...]
    whole: NDArray[np.float64]
    weights_per_gpu: int

    def row(self) -> dict[str, Any]:
        """One row for a table: GPUs, weights on each, what is right, bytes sent by each.

        A ring all-reduce sends 2 (n - 1) / n times the tensor's size, here of 16-bit numbers.
        Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
        workstations", 2009.
        """
        import numpy as np

        return {
            "tp": self.tp,
            "weights on each GPU": self.weights_per_gpu,
            "one GPU's part is right": bool(np.allclose(self.partial[0], self.whole)),
            "the sum is right": bool(np.allclose(np.sum(self.partial, axis=0), self.whole)),
            "bytes sent by each": int(2 * (self.tp - 1) / self.tp * self.whole.size * 2),
        }


def sharded_layer(
    x: NDArray[np.float64], up: NDArray[np.float64], down: NDArray[np.float64], *, tp: int
) -> ShardedLayer:
    """Compute relu(x @ up) @ down on `tp` GPUs, as Megatron and vLLM cut an MLP.

    `up` is cut by **columns**: each GPU makes its own part of the hidden values, and nothing
    need be exchanged before the nonlinearity. `down` is cut by **rows** to match: each GPU
    takes its part of the hidden values and makes a summand of the whole output. One
    all-reduce adds them up.

    Args:
        x: The tokens' states, (tokens, hidden).
        up: First weights, (hidden, inner).
        down: Second weights, (inner, hidden).
        tp: GPUs; must divide `inner`.

    Source: Shoeybi et al., "Megatron-LM", 2019, section 3.

    Example:
        >>> import numpy as np
        >>> layer = sharded_layer(np.eye(3, 8), np.ones((8, 16)), np.ones((16, 8)), tp=4)
        >>> layer.row()["the sum is right"], len(layer.partial), layer.weights_per_gpu
        (True, 4, 64)
    """
    import numpy as np

    if x.shape[1:] != up.shape[:1] or up.shape[1:] != down.shape[:1]:
        raise WorkshopError(f"shapes {x.shape}, {up.shape}, {down.shape} do not make a product")
    if tp < 1 or up.shape[1] % tp:
        raise WorkshopError(f"{up.shape[1]} columns cannot be shared out over {tp} GPUs")
    shards = list(zip(np.split(up, tp, axis=1), np.split(down, tp, axis=0), strict=True))
    return ShardedLayer(
        tp=tp,
        partial=tuple(np.maximum(x @ columns, 0) @ rows for columns, rows in shards),
        whole=np.maximum(x @ up, 0) @ down,
        weights_per_gpu=shards[0][0].size + shards[0][1].size,
    )
