"""Tensor parallelism: the shards together are the whole, and what they exchange is counted."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.serving.simulators import all_reduce_bytes, engine, sharded_layer, sharding

SOURCE = np.random.default_rng(5)
X, UP, DOWN = (SOURCE.normal(size=shape) for shape in ((3, 24), (24, 48), (48, 24)))


@pytest.mark.parametrize("tp", [1, 2, 3, 4, 8, 48])
def test_the_sum_of_the_parts_is_the_whole(tp: int) -> None:
    layer = sharded_layer(X, UP, DOWN, tp=tp)
    by_hand = np.maximum(X @ UP, 0) @ DOWN
    assert layer.equal and np.allclose(layer.output, by_hand) and np.allclose(layer.whole, by_hand)
    assert len(layer.partial) == tp and all(part.shape == (3, 24) for part in layer.partial)
    assert layer.weights_per_gpu == 2 * 24 * 48 // tp
    # No GPU has the answer before the all-reduce.
    assert all(np.allclose(part, by_hand) for part in layer.partial) is (tp == 1)
    row = layer.row()
    assert row["the sum is right"] and row["one GPU's part is right"] is (tp == 1)


def test_cut_the_wrong_way_it_is_not_the_whole() -> None:
    """Rows first would need the sum before the nonlinearity: the check can fail."""
    parts = [np.maximum(X[:, half] @ UP[half], 0) @ DOWN for half in (slice(0, 12), slice(12, 24))]
    assert not np.allclose(sum(parts), sharded_layer(X, UP, DOWN, tp=2).whole)


def test_bytes_of_a_ring_counted_step_by_step() -> None:
    """Play the ring: in each step every GPU sends one part of n to its neighbour."""
    for gpus in (2, 3, 4, 8):
        values = SOURCE.normal(size=(gpus, 24))
        held = [list(np.split(row, gpus)) for row in values]
        sent = [0] * gpus
        for step in range(2 * (gpus - 1)):
            moves = []
            for gpu in range(gpus):
                part = (gpu - step) % gpus
                moves.append((gpu, (gpu + 1) % gpus, part, held[gpu][part].copy()))
            for gpu, neighbour, part, data in moves:
                if step < gpus - 1:
                    held[neighbour][part] = held[neighbour][part] + data
                else:
                    held[neighbour][part] = data
                sent[gpu] += data.nbytes
        assert all(np.allclose(np.concatenate(mine), values.sum(axis=0)) for mine in held)
        assert sent == [pytest.approx(all_reduce_bytes(24 * 8, gpus))] * gpus


@pytest.mark.parametrize(
    ("x", "up", "down", "tp", "words"),
    [
        (X, UP, DOWN, 5, "48 columns cannot be shared out over 5 GPUs"),
        (X, UP, DOWN, 0, "over 0 GPUs"),
        (X, DOWN, DOWN, 2, "do not make a product"),
        (X, UP, UP, 2, "do not make a product"),
        (X[0], UP, DOWN, 2, "do not make a product"),
    ],
)
def test_what_cannot_be_multiplied_is_refused(x, up, down, tp, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WorkshopError, match=words):
        sharded_layer(x, up, down, tp=tp)


def test_no_gpus_is_refused() -> None:
    with pytest.raises(WorkshopError, match="at least one GPU"):
        all_reduce_bytes(8, 0)


def test_examples_in_docstrings() -> None:
    for module in (sharding, engine):
        result = doctest.testmod(module)
        assert result.failed == 0 and result.attempted > 0
