"""How many bits a quantized model's weights take, from `quantization_config`.

Only the linear layers inside the transformer's layers are quantized; embeddings, the output
layer, norms and an expert router stay in the model's own number format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workshop_lib.errors import ModelError

__all__ = ["Quantization", "read_quantization"]


@dataclass(frozen=True, slots=True)
class Quantization:
    """A format for weights.

    Attributes:
        method: As in `quant_method`, for example `fp8` or `awq`.
        bits: Bits of one weight.
        overhead_bits: Bits of scales and zero points, as a share of one weight.

    Example:
        >>> round(Quantization("awq", 4, 20 / 128).bytes_per_weight, 3)
        0.52
    """

    method: str
    bits: int
    overhead_bits: float = 0.0

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one weight, its share of scales included."""
        return (self.bits + self.overhead_bits) / 8


def read_quantization(config: Mapping[str, Any], name: str) -> Quantization | None:
    """The format of the weights, or None when they are not quantized.

    Args:
        config: A parsed `config.json`.
        name: The model's name, for messages.

    Raises:
        ModelError: A method that is not modelled.

    Source: `fp8.py`, `awq_marlin.py`, `gptq_marlin.py` and `compressed_tensors` in
    vllm/model_executor/layers/quantization.

    Example:
        >>> config = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
        >>> read_quantization(config, "a-model").bits
        4
    """
    settings = config.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, Mapping):
        raise ModelError(f"{name}: quantization_config is no object; check its config.json")
    method = str(settings.get("quant_method", "unknown"))
    if method == "fp8":
        block = settings.get("weight_block_size")
        sizes = [_group_size(size, method, name) for size in block] if block else []
        return Quantization(method, 8, 32 / math.prod(sizes) if sizes else 0.0)
    if method in ("awq", "gptq"):
        bits = _bits(settings.get("bits", settings.get("w_bit")), method, name)
        # A 16-bit scale and a packed zero point for each group.
        group = _group_size(settings.get("group_size") or 128, method, name)
        zero_point = bits if method == "awq" else 0
        return Quantization(method, bits, (16 + zero_point) / group if group else 0.0)
    if method == "compressed-tensors":
        return _compressed_tensors(settings, name)
    known = "fp8, awq, gptq, compressed-tensors"
    raise ModelError(f"{name}: quantized weights ({method}) are not modelled; known: {known}")


def _group_size(value: Any, method: str, name: str) -> int:
    """Weights that share a scale; 0 when a whole column does (written as -1)."""
    if not isinstance(value, int) or value == 0:
        raise ModelError(f"{name}: {method} in groups of {value!r} is not modelled; check it")
    return max(0, value)


def _compressed_tensors(settings: Mapping[str, Any], name: str) -> Quantization:
    groups = list((settings.get("config_groups") or {}).values())
    formats = {
        (group["weights"].get("num_bits"), group["weights"].get("group_size") or -1)
        for group in groups
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    }
    if len(formats) != 1:
        raise ModelError(
            f"{name}: compressed-tensors with {len(formats)} weight formats is not modelled; "
            "one for all layers is"
        )
    bits, group_size = formats.pop()
    bits = _bits(bits, "compressed-tensors", name)
    group_size = _group_size(group_size, "compressed-tensors", name)
    return Quantization("compressed-tensors", bits, 16 / group_size if group_size else 0.0)


def _bits(value: Any, method: str, name: str) -> int:
    if value not in (4, 8):
        raise ModelError(f"{name}: {method} with {value} bits is not modelled; 4 and 8 are")
    return int(value)
