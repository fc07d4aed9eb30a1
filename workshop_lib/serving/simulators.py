"""Small exact models of what happens inside a serving engine.

Batching: which request runs in which step. Paging: block tables of PagedAttention, against memory
reserved in one piece. `simulate_engine`: both together, as an engine's gauges would show them.
Sharding: a layer's matrix products on several GPUs. Plain data in, plain data out: widgets drive
them, `workshop_lib.plots` draws them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "EngineRun",
    "Job",
    "PagedCache",
    "Paging",
    "Run",
    "Schedule",
    "ShardedLayer",
    "all_reduce_bytes",
    "sharded_layer",
    "simulate_batching",
    "simulate_engine",
    "simulate_paging",
]

Policy = Literal["static", "continuous"]


@dataclass(frozen=True, slots=True)
class Job:
    """A request: when it arrives and how many tokens it wants, one a step.

    Attributes:
        name: Shown in figures.
        arrival: Step at which it arrives, from 0.
        tokens: Steps that it runs; the first one also reads its prompt.
    """

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
    if policy not in ("static", "continuous"):
        raise WorkshopError(f"the policy {policy!r} is not known; use static or continuous")
    if slots < 1 or not jobs:
        raise WorkshopError(f"at least one slot and one job are needed, got {slots}, {len(jobs)}")
    for job in jobs:
        if job.tokens < 1 or job.arrival < 0:
            raise WorkshopError(
                f"{job.name}: tokens must be at least 1 and arrival at least 0, "
                f"got {job.tokens} and {job.arrival}"
            )
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


class PagedCache:
    """A KV cache cut into blocks, as vLLM's block manager keeps it.

    Source: `BlockPool.free_blocks`, `FreeKVCacheBlockQueue` and `SingleTypeKVCacheManager` in
    vllm/v1/core; prefix caching is left out.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        _at_least_one("blocks", blocks)
        _at_least_one("block_size", block_size)
        self.blocks = blocks
        self.block_size = block_size
        self.tables: dict[str, list[int]] = {}
        self.tokens: dict[str, int] = {}
        self._free = deque(range(1, blocks + 1))

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def append(self, request: str, tokens: int = 1) -> bool:
        """Store more tokens of a request; nothing changes when the blocks do not suffice."""
        _at_least_one("tokens", tokens)
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
        if request not in self.tables:
            raise WorkshopError(f"{request} holds no blocks; those that do: {list(self.tables)}")
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
    def held_slots(self) -> int:
        """Token slots in blocks that some request holds."""
        return self.block_size * sum(len(table) for table in self.tables.values())

    @property
    def wasted_slots(self) -> int:
        """Held slots without a token: the empty ends of last blocks (internal fragmentation)."""
        return self.held_slots - sum(self.tokens[request] for request in self.tables)

    @property
    def wasted_slots_in_pieces(self) -> int:
        """Slots without a token when each request reserves `max_model_len` of them."""
        return sum(self.max_model_len - self.tokens[request] for request in self.pieces)

    def summary(self) -> list[dict[str, Any]]:
        """Both ways as rows: requests stored, slots held, slots wasted."""
        held = self.max_model_len * len(self.pieces)
        rows = [
            (f"blocks of {self.block_size}", len(self.tables), self.held_slots, self.wasted_slots),
            (
                f"one piece of {self.max_model_len:,}",
                len(self.pieces),
                held,
                self.wasted_slots_in_pieces,
            ),
        ]
        names = ("kept in", "requests", "held", "wasted")
        return [dict(zip(names, row, strict=True)) for row in rows]


def simulate_paging(
    tokens: Mapping[str, int], *, blocks: int, block_size: int = 16, max_model_len: int = 1024
) -> Paging:
    """Store requests in a cache in the order given, in blocks and in one piece each."""
    cache = PagedCache(blocks, block_size)
    _at_least_one("max_model_len", max_model_len)
    for request, count in tokens.items():
        _at_least_one(f"tokens of {request}", count)
        if count > max_model_len:
            raise WorkshopError(
                f"{request}: {count} tokens are more than max_model_len {max_model_len}"
            )
    admitted: dict[str, int] = {}
    needed = 0
    for request, count in tokens.items():
        needed += -(-count // block_size)
        if needed > blocks:
            break
        admitted[request] = count
    left = dict(admitted)
    while left:
        for request in list(left):
            step = min(block_size, left[request])
            cache.append(request, step)
            left[request] -= step
            if not left[request]:
                del left[request]
    pieces = tuple(tokens)[: blocks * block_size // max_model_len]
    return Paging(
        block_size=block_size,
        blocks=blocks,
        max_model_len=max_model_len,
        tables=cache.tables,
        fill=cache.fill(),
        tokens=dict(tokens),
        waiting=tuple(request for request in tokens if request not in admitted),
        pieces=pieces,
    )


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise WorkshopError(f"{name} must be at least 1, got {value}")


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


@dataclass(frozen=True, slots=True)
class ShardedLayer:
    """What `tp` GPUs computed, each with its share of the weights.

    Attributes:
        tp: GPUs.
        partial: What each GPU has before the all-reduce, each of shape (tokens, hidden): no
            GPU has the answer.
        output: Their sum, (tokens, hidden): what every GPU has after it.
        whole: The same product by one GPU.
        weights_per_gpu: Numbers of the two matrices that each GPU holds.
    """

    tp: int
    partial: tuple[NDArray[np.float64], ...]
    output: NDArray[np.float64]
    whole: NDArray[np.float64]
    weights_per_gpu: int

    @property
    def equal(self) -> bool:
        """Whether the sum is the whole product, up to the order of the additions."""
        import numpy as np

        return bool(np.allclose(self.output, self.whole))

    def sent_bytes(self, number_bytes: int = 2) -> float:
        """Bytes that each GPU sends in the all-reduce."""
        return all_reduce_bytes(self.output.size * number_bytes, self.tp)

    def row(self) -> dict[str, Any]:
        """One row for a table: GPUs, weights on each, what is right, bytes sent by each."""
        import numpy as np

        return {
            "tp": self.tp,
            "weights on each GPU": self.weights_per_gpu,
            "one GPU's part is right": bool(np.allclose(self.partial[0], self.whole)),
            "the sum is right": self.equal,
            "bytes sent by each": int(self.sent_bytes()),
        }


def all_reduce_bytes(size_bytes: float, gpus: int) -> float:
    """Bytes that each GPU sends when a tensor is summed over all of them, as a ring.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", 2009: 2 (n - 1) / n times the size.
    """
    if gpus < 1:
        raise WorkshopError(f"at least one GPU is needed, got {gpus}")
    return 2 * (gpus - 1) / gpus * size_bytes


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

    Raises:
        WorkshopError: Shapes that do not match, or `inner` cannot be shared out.

    Source: Shoeybi et al., "Megatron-LM", 2019, section 3.

    Example:
        >>> import numpy as np
        >>> source = np.random.default_rng(0)
        >>> x, up = source.normal(size=(3, 8)), source.normal(size=(8, 16))
        >>> layer = sharded_layer(x, up, source.normal(size=(16, 8)), tp=4)
        >>> layer.equal, len(layer.partial), layer.weights_per_gpu
        (True, 4, 64)
    """
    import numpy as np

    if x.ndim != 2 or up.ndim != 2 or down.ndim != 2 or x.shape[1] != up.shape[0]:
        raise WorkshopError(f"shapes {x.shape} and {up.shape} do not make a product")
    if up.shape[1] != down.shape[0]:
        raise WorkshopError(f"shapes {up.shape} and {down.shape} do not make a product")
    inner = up.shape[1]
    if tp < 1 or inner % tp:
        raise WorkshopError(f"{inner} columns cannot be shared out over {tp} GPUs")
    columns = np.split(up, tp, axis=1)
    rows = np.split(down, tp, axis=0)
    partial = tuple(
        np.maximum(x @ column, 0) @ row for column, row in zip(columns, rows, strict=True)
    )
    return ShardedLayer(
        tp=tp,
        partial=partial,
        output=np.sum(partial, axis=0),
        whole=np.maximum(x @ up, 0) @ down,
        weights_per_gpu=columns[0].size + rows[0].size,
    )
