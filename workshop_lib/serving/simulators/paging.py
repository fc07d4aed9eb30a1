"""PagedAttention's block tables: which block holds which tokens of which request."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workshop_lib.errors import WorkshopError

__all__ = ["PagedCache", "Paging", "simulate_paging"]


class PagedCache:
    """A KV cache cut into blocks, as vLLM's block manager keeps it.

    Blocks are numbered from 1: vLLM keeps block 0 back as a placeholder. A request takes a
    new block only when its last one is full. A finished request's blocks are the next ones
    taken, its last block first.

    Args:
        blocks: Blocks that requests can take.
        block_size: Tokens in a block.

    Raises:
        WorkshopError: A size that is not positive.

    Source: `BlockPool.free_blocks`, `FreeKVCacheBlockQueue` and `SingleTypeKVCacheManager` in
    vllm/v1/core; prefix caching is left out.

    Example:
        >>> cache = PagedCache(blocks=4, block_size=16)
        >>> cache.append("a", 20), cache.append("b", 5), cache.append("a", 20)
        (True, True, True)
        >>> cache.tables
        {'a': [1, 2, 4], 'b': [3]}
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
        """Store more tokens of a request; nothing changes when the blocks do not suffice.

        Args:
            request: The request's name; a new one starts an empty table.
            tokens: How many tokens.

        Returns:
            Whether there were enough free blocks.

        Raises:
            WorkshopError: A count that is not positive.

        Example:
            >>> PagedCache(blocks=2, block_size=16).append("a", 33)
            False
        """
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
        """Give back all blocks of a request that has finished.

        Args:
            request: Its name.

        Raises:
            WorkshopError: It holds no blocks.

        Example:
            >>> cache = PagedCache(blocks=2, block_size=16)
            >>> cache.append("a"), cache.release("a"), cache.free_blocks
            (True, None, 2)
        """
        if request not in self.tables:
            raise WorkshopError(f"{request} holds no blocks; those that do: {list(self.tables)}")
        self._free.extendleft(self.tables.pop(request))
        del self.tokens[request]

    def fill(self) -> dict[int, tuple[str, int]]:
        """For each block in use its request and how many of its slots are filled.

        Example:
            >>> cache = PagedCache(blocks=4, block_size=16)
            >>> cache.append("a", 20), cache.fill()
            (True, {1: ('a', 16), 2: ('a', 4)})
        """
        return {
            block: (request, min(self.block_size, self.tokens[request] - i * self.block_size))
            for request, table in self.tables.items()
            for i, block in enumerate(table)
        }


@dataclass(frozen=True, slots=True)
class Paging:
    """The same requests in the same memory, in blocks and in one piece each.

    Attributes:
        block_size: Tokens in a block.
        blocks: Blocks of the memory.
        max_model_len: Tokens that one piece must be able to hold.
        tables: Each stored request's blocks.
        fill: Each used block's request and filled slots.
        tokens: Tokens of each request.
        waiting: Requests that found too few blocks.
        pieces: Requests that fit when each reserves `max_model_len` slots.
    """

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
        """Both ways as rows: requests stored, slots held, slots wasted.

        Example:
            >>> simulate_paging({"a": 20}, blocks=64, block_size=16).summary()[0]["wasted"]
            12
        """
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
    """Store requests in a cache in the order given, in blocks and in one piece each.

    The requests grow together, a block at a time, as they do on a server that works on all of
    them; their tables interleave.

    Args:
        tokens: Tokens of each request, by name.
        blocks: Blocks of the memory.
        block_size: Tokens in a block.
        max_model_len: Longest request, tokens; what one piece reserves.

    Raises:
        WorkshopError: A size that is not positive, or a request longer than `max_model_len`.

    Example:
        >>> paging = simulate_paging({"a": 20, "b": 5}, blocks=64, block_size=16)
        >>> paging.tables, paging.wasted_slots, paging.pieces
        ({'a': [1, 3], 'b': [2]}, 23, ('a',))
    """
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
