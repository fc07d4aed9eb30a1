"""What a model's `config.json` says about its size: shape, parameters, weights.

Pure arithmetic: nothing is loaded and no GPU is asked. `memory` builds the
serving budget on it.

`architectures` says which models are known, `quantization` what their weights take,
`weights` counts the parameters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workshop_lib.data import data_path
from workshop_lib.errors import ModelError
from workshop_lib.serving.memory.architectures import (
    ARCHITECTURES,
    Experts,
    Latent,
    layer_windows,
    read_experts,
)
from workshop_lib.serving.memory.quantization import Quantization, read_quantization

__all__ = ["ARCHITECTURES", "DTYPE_BYTES", "GIB", "ModelShape", "dtype_bytes"]

GIB = 2**30

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
# Other names that vLLM knows for them (--dtype, --kv-cache-dtype).
_SAME_DTYPE = {"float": "float32", "half": "float16", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}

# vLLM pads the vocabulary to a multiple of this before it splits the embedding
# (DEFAULT_VOCAB_PADDING_SIZE in vocab_parallel_embedding.py).
_VOCAB_PADDING = 64
# No size in any model's config.json is larger; what is, is a mistake.
_LARGEST = 10**9


def _dtype_name(dtype: str) -> str:
    name = dtype.removeprefix("torch.")
    return _SAME_DTYPE.get(name, name)


def dtype_bytes(dtype: str) -> int:
    """Bytes that one number takes.

    Args:
        dtype: A name in `DTYPE_BYTES`, with or without the prefix `torch.`, or one that means
            the same to vLLM (`half`, `float`, `fp8_e4m3`, `fp8_e5m2`).

    Raises:
        ModelError: The name is not known.

    Example:
        >>> dtype_bytes("bfloat16")
        2
    """
    try:
        return DTYPE_BYTES[_dtype_name(dtype)]
    except KeyError:
        known = ", ".join(DTYPE_BYTES)
        raise ModelError(f"the number format {dtype!r} is not known; use one of {known}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers of a decoder-only transformer that decide its memory.

    `kv_heads` equals `heads` in multi-head attention and is smaller in
    grouped-query attention. `dtype` is the number format of the weights, `max_positions`
    the longest request that the model knows.

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
    norms: int = 2
    windows: tuple[int, ...] = ()
    experts: Experts | None = None
    latent: Latent | None = None
    quantization: Quantization | None = None

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
        traits = ARCHITECTURES[architecture]
        stated, config = config, {**traits.defaults, **config}
        hidden_size = _integer(config, "hidden_size", name)
        heads = _integer(config, "num_attention_heads", name)
        if "num_key_value_heads" not in stated and heads % config.get("num_key_value_heads", 1):
            del config["num_key_value_heads"]  # a default that the heads cannot share
        layers = _integer(config, "num_hidden_layers", name)
        attention_bias = bool(config.get("attention_bias", False))
        windows = layer_windows(config, traits, layers)
        shape = cls(
            name=name,
            architecture=architecture,
            layers=layers,
            hidden_size=hidden_size,
            intermediate_size=_integer(config, "intermediate_size", name),
            heads=heads,
            kv_heads=_integer(config, "num_key_value_heads", name, default=heads),
            head_dim=_integer(config, "head_dim", name, default=hidden_size // heads),
            vocab_size=_integer(config, "vocab_size", name),
            max_positions=_positions(config, name),
            tied_embeddings=bool(config.get("tie_word_embeddings", traits.tied)),
            qkv_bias=traits.qkv_bias or attention_bias,
            output_bias=attention_bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=traits.qk_norm,
            dtype=_config_dtype(config),
            norms=traits.norms,
            windows=windows if any(windows) else (),
            experts=read_experts(config, name, router_bias=traits.router_bias)
            if traits.moe
            else None,
            latent=_latent(config, name) if traits.latent else None,
            quantization=read_quantization(config, name),
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
            dtype: A name in `DTYPE_BYTES`, or `auto`: what vLLM takes, which is the model's own
                format, but bfloat16 for weights in float32.

        Raises:
            ModelError: The name is not known.

        Source: `_resolve_auto_dtype` in vllm/config/model.py.

        Example:
            >>> ModelShape.named("smollm2-135m").with_dtype("float32").dtype
            'float32'
        """
        if dtype == "auto":
            dtype = "bfloat16" if self.dtype == "float32" else self.dtype
        dtype_bytes(dtype)
        return replace(self, dtype=_dtype_name(dtype))

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; tied embeddings count once.

        Exact: equals the number of values in the model's safetensors files
        (before quantization).
        """
        from workshop_lib.serving.memory.weights import count_parameters

        return count_parameters(self)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through: fewer than all in a mixture of experts.

        Example:
            >>> ModelShape.named("mixtral-8x7b").active_parameters
            12879925248
        """
        from workshop_lib.serving.memory.weights import count_parameters

        return count_parameters(self, active=True)

    def weights_bytes(self, tp: int = 1, pp: int = 1, *, stage: int | None = None) -> int:
        """Bytes that vLLM reports as "Model loading took", on one GPU.

        Projections and embeddings are split over the `tp` GPUs, norms are on
        each. When there are more GPUs than KV heads, heads are copied. With
        `pp` stages each has its own layers. The table of the rotary embedding
        (`max_positions` · `head_dim` numbers) is part of the model in vLLM,
        though not of the safetensors files.

        Args:
            tp: Tensor-parallel size (GPUs that share each layer).
            pp: Pipeline-parallel size (stages).
            stage: The stage, from 0; by default the one with the largest weights.

        Raises:
            ModelError: The model cannot be split so.

        Source: vLLM's `QKVParallelLinear`, `VocabParallelEmbedding`,
        `RotaryEmbeddingBase` and `get_pp_indices`; compared with what vLLM 0.25.1
        reported on H200 for 17 models (data/recorded/h200).

        Example:
            >>> shape = ModelShape.named("mistral-7b")
            >>> round(shape.weights_bytes(tp=2) / GIB, 2)
            6.76
        """
        from workshop_lib.serving.memory.weights import stage_bytes

        self.check_tp(tp)
        stages = range(pp) if stage is None else [stage]
        return max(stage_bytes(self, tp=tp, pp=pp, stage=number) for number in stages)

    def check_length(self, max_model_len: int) -> None:
        """Refuse a longest request that vLLM would refuse.

        Args:
            max_model_len: Longest request, tokens.

        Raises:
            ModelError: It is longer than the model knows.

        Source: `_get_and_verify_max_len` in vllm/config/model.py.

        Example:
            >>> ModelShape.named("mistral-7b").check_length(32_768)
        """
        if max_model_len > self.max_positions:
            raise ModelError(
                f"{self.name} knows {self.max_positions:,} positions and vLLM refuses more; "
                f"max_model_len {max_model_len:,} is too long"
            )

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
        sizes = [self.intermediate_size]
        if self.experts is not None:
            sizes = [self.experts.size] + ([sizes[0]] if self.experts.dense_layers else [])
        if tp < 1 or self.heads % tp or any(size % tp for size in sizes):
            return False
        if self.padded_vocab % tp:
            return False
        return self.kv_heads % tp == 0 if tp <= self.kv_heads else tp % self.kv_heads == 0

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding in vLLM, which rounds up before it splits."""
        return -(-self.vocab_size // _VOCAB_PADDING) * _VOCAB_PADDING


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


def _latent(config: dict[str, Any], name: str) -> Latent:
    return Latent(
        kv_rank=_integer(config, "kv_lora_rank", name),
        rope_dim=_integer(config, "qk_rope_head_dim", name),
        nope_dim=_integer(config, "qk_nope_head_dim", name),
        value_dim=_integer(config, "v_head_dim", name),
        query_rank=int(config.get("q_lora_rank") or 0),
    )


def _positions(config: dict[str, Any], name: str) -> int:
    """The longest request that vLLM accepts: positions, stretched where the config says so.

    Source: `_get_and_verify_max_len` in vllm/config/model.py. YaRN's configs state the length
    before or after; vLLM 0.25 multiplies the original one.
    """
    positions = _integer(config, "max_position_embeddings", name, default=2048)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict) or "gemma3" in str(config.get("model_type", "")):
        return positions
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = scaling.get("factor") or 1.0
    if kind in ("default", "su", "longrope", "llama3") or not isinstance(factor, (int, float)):
        return positions
    if "yarn" in kind:
        original = scaling.get("original_max_position_embeddings")
        return max(positions, int(original * factor) if isinstance(original, int) else 0)
    return max(positions, int(positions * factor))


def _integer(config: dict[str, Any], key: str, name: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise ModelError(
            f"{name}: config.json needs a positive integer {key!r} up to {_LARGEST:,}, "
            f"got {value!r}"
        )
    return value


def _config_dtype(config: dict[str, Any]) -> str:
    # "dtype" since transformers 5, "torch_dtype" before.
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    dtype_bytes(dtype)
    return dtype.removeprefix("torch.")
