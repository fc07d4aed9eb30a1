"""What a model's `config.json` says about its size: shape, parameters, weights.

Pure arithmetic: nothing is loaded and no GPU is asked. `memory` builds the
serving budget on it.

An architecture is listed here once its layers have been checked against its
implementation in vLLM; any other is refused by name, because a wrong number
would look as good as a right one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workshop_lib.data import data_path
from workshop_lib.errors import ModelError

__all__ = ["ARCHITECTURES", "DTYPE_BYTES", "GIB", "ModelShape", "dtype_bytes"]

GIB = 2**30

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}

# vLLM pads the vocabulary to a multiple of this before it splits the embedding
# (DEFAULT_VOCAB_PADDING_SIZE in vocab_parallel_embedding.py).
_VOCAB_PADDING = 64


@dataclass(frozen=True, slots=True)
class _Traits:
    """What the layers of an architecture have beside what `config.json` states."""

    qkv_bias: bool = False
    qk_norm: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": _Traits(),  # Llama 2 and 3, SmolLM2
    "MistralForCausalLM": _Traits(),
    "Qwen2ForCausalLM": _Traits(qkv_bias=True),
    "Qwen3ForCausalLM": _Traits(qk_norm=True),
}


def dtype_bytes(dtype: str) -> int:
    """Bytes that one number takes.

    Args:
        dtype: A name in `DTYPE_BYTES`, with or without the prefix `torch.`.

    Raises:
        ModelError: The name is not known.

    Example:
        >>> dtype_bytes("bfloat16")
        2
    """
    try:
        return DTYPE_BYTES[dtype.removeprefix("torch.")]
    except KeyError:
        known = ", ".join(DTYPE_BYTES)
        raise ModelError(f"the number format {dtype!r} is not known; use one of {known}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers of a decoder-only transformer that decide its memory.

    `kv_heads` equals `heads` in multi-head attention and is smaller in
    grouped-query attention. `dtype` is the number format of the weights.

    Example:
        >>> shape = ModelShape.named("mistral-7b")
        >>> shape.layers, shape.kv_heads, shape.parameters
        (32, 8, 7248023552)
    """

    name: str
    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dtype: str = "bfloat16"

    @classmethod
    def from_config(cls, source: str | Path | dict[str, Any], *, name: str = "") -> ModelShape:
        """Read a Hugging Face `config.json`.

        Args:
            source: The file, the model's folder, or the parsed object.
            name: Name to show; by default `_name_or_path`, then the file's.

        Raises:
            ModelError: The file cannot be read, a key is missing, or the
                architecture is not one of `ARCHITECTURES`.

        Example:
            >>> ModelShape.from_config(data_path("models/smollm2-135m.json")).head_dim
            64
        """
        config, found_name = _load_config(source)
        name = name or str(config.get("_name_or_path") or "") or found_name
        architecture = _architecture(config, name)
        _refuse_unmodelled(config, name)
        traits = ARCHITECTURES[architecture]
        hidden_size = _integer(config, "hidden_size", name)
        heads = _integer(config, "num_attention_heads", name)
        attention_bias = bool(config.get("attention_bias", False))
        shape = cls(
            name=name,
            architecture=architecture,
            layers=_integer(config, "num_hidden_layers", name),
            hidden_size=hidden_size,
            intermediate_size=_integer(config, "intermediate_size", name),
            heads=heads,
            kv_heads=_integer(config, "num_key_value_heads", name, default=heads),
            head_dim=_integer(config, "head_dim", name, default=hidden_size // heads),
            vocab_size=_integer(config, "vocab_size", name),
            max_positions=_integer(config, "max_position_embeddings", name, default=2048),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=traits.qkv_bias or attention_bias,
            output_bias=attention_bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=traits.qk_norm,
            dtype=_config_dtype(config),
        )
        if shape.heads % shape.kv_heads:
            raise ModelError(
                f"{name}: num_attention_heads {shape.heads} is no multiple of "
                f"num_key_value_heads {shape.kv_heads}; check its config.json"
            )
        return shape

    @classmethod
    def named(cls, name: str) -> ModelShape:
        """A model whose `config.json` facts come with the workshop (data/models).

        Args:
            name: The file's name without `.json`, for example `llama-3.1-70b`.

        Raises:
            ModelError: There is none of that name.

        Example:
            >>> ModelShape.named("llama-3.1-70b").layers
            80
        """
        folder = data_path("models")
        known = sorted(file.stem for file in folder.glob("*.json"))
        if name not in known:
            raise ModelError(f"no model {name!r} in data/models; there are: {', '.join(known)}")
        return cls.from_config(folder / f"{name}.json")

    def with_dtype(self, dtype: str) -> ModelShape:
        """The same shape with its weights held in another number format.

        Args:
            dtype: A name in `DTYPE_BYTES`.

        Raises:
            ModelError: The name is not known.

        Example:
            >>> ModelShape.named("smollm2-135m").with_dtype("float32").dtype
            'float32'
        """
        dtype_bytes(dtype)
        return replace(self, dtype=dtype.removeprefix("torch."))

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; tied embeddings count once.

        Source: the layers of `LlamaForCausalLM`, `MistralForCausalLM`,
        `Qwen2ForCausalLM` and `Qwen3ForCausalLM`. Exact: equals the number of
        values in the model's safetensors files.
        """
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return embeddings + self.layers * self._layer_parameters(tp=1) + self.hidden_size

    def weights_bytes(self, tp: int = 1) -> int:
        """Bytes that vLLM reports as "Model loading took", on one GPU.

        Projections and embeddings are split over the `tp` GPUs, norms are on
        each. When there are more GPUs than KV heads, heads are copied. The
        table of the rotary embedding (`max_positions` · `head_dim` numbers) is
        part of the model in vLLM, though not of the safetensors files.

        Args:
            tp: Tensor-parallel size (GPUs that share the model).

        Raises:
            ModelError: The heads cannot be shared out among `tp` GPUs.

        Source: vLLM's `QKVParallelLinear`, `VocabParallelEmbedding` and
        `RotaryEmbeddingBase`. On the recorded H200 run it gives 13.76 GiB, as
        vLLM does.

        Example:
            >>> shape = ModelShape.named("mistral-7b")
            >>> round(shape.weights_bytes(tp=2) / GIB, 2)
            6.76
        """
        self.check_tp(tp)
        padded = -(-self.vocab_size // _VOCAB_PADDING) * _VOCAB_PADDING
        tables = 1 if self.tied_embeddings else 2
        numbers = tables * padded // tp * self.hidden_size
        numbers += self.layers * self._layer_parameters(tp) + self.hidden_size
        numbers += self.max_positions * self.head_dim
        return numbers * dtype_bytes(self.dtype)

    def kv_heads_per_gpu(self, tp: int = 1) -> int:
        """KV heads that one GPU holds: at least one, even if it is a copy.

        Args:
            tp: Tensor-parallel size.

        Source: `ModelConfig.get_num_kv_heads` in vLLM.

        Example:
            >>> ModelShape.named("mistral-7b").kv_heads_per_gpu(tp=16)
            1
        """
        self.check_tp(tp)
        return max(1, self.kv_heads // tp)

    def tp_sizes(self, largest: int = 16) -> list[int]:
        """Tensor-parallel sizes up to `largest` that this model can run with.

        Args:
            largest: Largest size to try.

        Example:
            >>> ModelShape.named("smollm2-135m").tp_sizes()
            [1, 3]
        """
        return [tp for tp in range(1, largest + 1) if self._tp_works(tp)]

    def check_tp(self, tp: int) -> None:
        """Refuse a tensor-parallel size that vLLM would refuse.

        Args:
            tp: Tensor-parallel size.

        Raises:
            ModelError: It does not divide the heads, KV heads, MLP or vocabulary.

        Example:
            >>> ModelShape.named("mistral-7b").check_tp(2)
        """
        if not self._tp_works(tp):
            possible = ", ".join(map(str, self.tp_sizes()))
            raise ModelError(
                f"{self.name}: tensor parallelism over {tp} GPUs does not divide its {self.heads} "
                f"heads and {self.kv_heads} KV heads evenly; possible sizes: {possible}"
            )

    def _tp_works(self, tp: int) -> bool:
        if tp < 1 or self.heads % tp or self.intermediate_size % tp:
            return False
        padded = -(-self.vocab_size // _VOCAB_PADDING) * _VOCAB_PADDING
        if padded % tp:
            return False
        return self.kv_heads % tp == 0 if tp <= self.kv_heads else tp % self.kv_heads == 0

    def _layer_parameters(self, tp: int) -> int:
        """Parameters of one layer on one of `tp` GPUs."""
        queries = self.heads // tp * self.head_dim
        keys_values = 2 * max(1, self.kv_heads // tp) * self.head_dim
        inner = self.intermediate_size // tp
        count = self.hidden_size * (queries + keys_values)  # q, k and v projections
        count += queries * self.hidden_size  # output projection
        count += 3 * self.hidden_size * inner  # gate, up and down projections
        count += 2 * self.hidden_size  # the two norms
        count += (queries + keys_values) * self.qkv_bias + self.hidden_size * self.output_bias
        count += (2 * inner + self.hidden_size) * self.mlp_bias
        count += 2 * self.head_dim * self.qk_norm
        return count


def _load_config(source: str | Path | dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The parsed configuration and a name for it."""
    if isinstance(source, dict):
        return source, "config.json"
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
    name = path.parent.name if path.name == "config.json" else path.stem
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise ModelError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object; a model's config.json is expected")
    return config, name or str(path)


def _architecture(config: dict[str, Any], name: str) -> str:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ModelError(f"{name}: config.json has no 'architectures'; is it a model's file?")
    architecture = str(architectures[0])
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{name}: the architecture {architecture} is not modelled; known: {known}")
    return architecture


def _refuse_unmodelled(config: dict[str, Any], name: str) -> None:
    """Features of known architectures that change the memory and are not computed yet."""
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelError(f"{name}: quantized weights ({method}) are not modelled")
    # Qwen2 and Qwen3 name a window and switch it off by use_sliding_window.
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True):
        raise ModelError(f"{name}: sliding-window attention ({window} tokens) is not modelled")


def _integer(config: dict[str, Any], key: str, name: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{name}: config.json needs a positive integer {key!r}, got {value!r}")
    return value


def _config_dtype(config: dict[str, Any]) -> str:
    # "dtype" since transformers 5, "torch_dtype" before.
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    dtype_bytes(dtype)
    return dtype.removeprefix("torch.")
