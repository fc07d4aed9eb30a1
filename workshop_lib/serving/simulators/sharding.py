"""Tensor parallelism, computed small: a layer's two matrix products on several GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ShardedLayer", "all_reduce_bytes", "sharded_layer"]


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
        """Bytes that each GPU sends in the all-reduce.

        Args:
            number_bytes: Bytes of a number: 2 for bfloat16.

        Example:
            >>> import numpy as np
            >>> one = np.ones
            >>> sharded_layer(one((1, 4096)), one((4096, 8)), one((8, 4096)), tp=2).sent_bytes()
            8192.0
        """
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

    Each GPU sends its neighbour one part of `gpus` in each of gpus - 1 steps to add up, and
    in as many again to hand out the sums.

    Args:
        size_bytes: Size of the tensor.
        gpus: GPUs.

    Raises:
        WorkshopError: Fewer than one GPU.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations", 2009: 2 (n - 1) / n times the size.

    Example:
        >>> all_reduce_bytes(8192, 1), all_reduce_bytes(8192, 4)
        (0.0, 12288.0)
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
