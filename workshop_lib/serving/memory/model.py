"""What a model's `config.json` says about its size: parameters, and the weights of one GPU.

Pure arithmetic: nothing is loaded and no GPU is asked. An architecture that is not listed is
refused by name, because a wrong number would look as good as a right one.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from workshop_lib.data import data_path
from workshop_lib.errors import ModelError

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
# Other names that vLLM knows for them (--dtype, --kv-cache-dtype).
_SAME_DTYPE = {"float": "float32", "half": "float16", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}
# vLLM pads the vocabulary before it splits the embedding (vocab_parallel_embedding.py).
_VOCAB_PADDING = 64
# No size in any model's config.json is larger; a larger one is a mistake.
_LARGEST = 10**9


def _dtype_name(dtype: str) -> str:
    name = dtype.removeprefix("torch.")
    return _SAME_DTYPE.get(name, name)


def dtype_bytes(dtype: str) -> int:
    """Bytes of one number in a format that vLLM knows, such as `bfloat16`."""
    if (name := _dtype_name(dtype)) not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise ModelError(f"the number format {dtype!r} is not known; use one of {known}")
    return DTYPE_BYTES[name]


@dataclass(frozen=True, slots=True)
class Traits:
    """What an architecture has that its `config.json` does not state (data/architectures.yaml)."""

    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    tied: bool = False
    moe: bool = False
    latent: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    rotary_tables: int = 1
    full_every: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def architectures() -> dict[str, Traits]:
    """The architectures whose memory is computed; any other is refused by name."""
    entries = yaml.safe_load(data_path("architectures.yaml").read_text(encoding="utf-8"))
    return {name: Traits(**traits) for name, traits in entries.items()}


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: `active` of `count` experts of inner size `size` serve a token.

    `shared_size` is the inner size of the experts that serve every token, together;
    `dense_layers` layers at the start keep a plain MLP.
    """

    count: int
    active: int
    size: int
    shared_size: int = 0
    dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one compressed vector a token instead of keys and values."""

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int = 0  # 0: queries are not compressed


@dataclass(frozen=True, slots=True)
class Quantization:
    """A format for the weights of linear layers; scales are `overhead_bits` of each weight.

    Embeddings, the output layer, norms and an expert router stay in the model's own format;
    with `experts_only` so do attention and dense layers. `padding` is what the kernels round
    an expert's inner and outer size up to.
    """

    method: str
    bits: int
    overhead_bits: float = 0.0
    experts_only: bool = False
    padding: tuple[int, int] = (1, 1)

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one weight with its share of the scales."""
        return (self.bits + self.overhead_bits) / 8


@dataclass(frozen=True, slots=True)
class Vision:
    """The image encoder in front of a multimodal model."""

    parameters: int
    hidden_size: int
    intermediate_size: int
    patches: int  # of an image
    tokens: int  # that an image becomes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers of a decoder-only transformer that decide its memory.

    `kv_heads` equals `heads` in multi-head attention and is smaller in grouped-query attention.
    `dtype` is the number format of the weights, `max_positions` the longest request that the
    model knows, `windows` each layer's window in tokens (0: none; empty: no layer has one).

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
    rotary_positions: int = 0  # of all tables of the rotary embedding together
    dtype: str = "bfloat16"
    windows: tuple[int, ...] = ()
    experts: Experts | None = None
    latent: Latent | None = None
    quantization: Quantization | None = None
    vision: Vision | None = None

    @classmethod
    def from_config(cls, source: str | Path | Mapping[str, Any], *, name: str = "") -> ModelShape:
        """Read a Hugging Face `config.json`: the file, its folder, or the parsed object."""
        whole, found_name = _load(source)
        name = name or str(whole.get("_name_or_path") or "") or found_name
        architecture = _architecture(whole, name)
        traits = architectures()[architecture]
        stated = {**whole, **(whole.get("text_config") or {})}
        config = {**traits.defaults, **stated}
        read = _Reader(config, name)
        heads, hidden = read.integer("num_attention_heads"), read.integer("hidden_size")
        if "num_key_value_heads" not in stated and heads % config.get("num_key_value_heads", 1):
            del config["num_key_value_heads"]  # a default that the heads cannot share
        layers, bias = read.integer("num_hidden_layers"), bool(config.get("attention_bias"))
        windows = layer_windows(config, traits, layers)
        shape = cls(
            name=name,
            architecture=architecture,
            layers=layers,
            hidden_size=hidden,
            intermediate_size=read.integer("intermediate_size"),
            heads=heads,
            kv_heads=read.integer("num_key_value_heads", heads),
            head_dim=read.integer("head_dim", hidden // heads),
            vocab_size=read.integer("vocab_size"),
            max_positions=read.positions(),
            rotary_positions=read.rotary_positions(traits.rotary_tables),
            tied_embeddings=bool(config.get("tie_word_embeddings", traits.tied)),
            qkv_bias=traits.qkv_bias or bias,
            output_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
            dtype=read.dtype(),
            windows=windows if any(windows) else (),
            experts=read.experts() if traits.moe else None,
            latent=read.latent() if traits.latent else None,
            quantization=read_quantization(config, name),
            vision=read.vision() if "text_config" in whole else None,
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
        """The same shape with weights in another format; `auto` is vLLM's choice for the model."""
        if dtype == "auto":  # _resolve_auto_dtype in vllm/config/model.py
            dtype = "bfloat16" if self.dtype == "float32" else self.dtype
        dtype_bytes(dtype)
        return replace(self, dtype=_dtype_name(dtype))

    @property
    def traits(self) -> Traits:
        """What the architecture has beside what the configuration states."""
        return architectures()[self.architecture]

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, as its safetensors files hold before quantization."""
        tables = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        layers = sum(
            sum(_linear(self, layer, 1)) + _beside(self, layer, 1) for layer in range(self.layers)
        )
        return tables + layers + self.hidden_size + (self.vision.parameters if self.vision else 0)

    def weights_bytes(self, tp: int = 1, pp: int = 1, *, stage: int | None = None) -> int:
        """Bytes that vLLM reports as "Model loading took", on one GPU.

        Projections and embeddings are split over the `tp` GPUs, norms are on each. When there
        are more GPUs than KV heads, heads are copied. The table of the rotary embedding is part
        of the model in vLLM, though not of the safetensors files.

        Args:
            tp: Tensor-parallel size (GPUs that share each layer).
            pp: Pipeline-parallel size (stages).
            stage: The stage, from 0; by default the one with the largest weights.

        Raises:
            ModelError: The model cannot be split so.

        Source: vLLM's `QKVParallelLinear`, `VocabParallelEmbedding`, `RotaryEmbeddingBase`.

        Example:
            >>> round(ModelShape.named("mistral-7b").weights_bytes(tp=2) / GIB, 2)
            6.76
        """
        self.check_tp(tp)
        stages = range(pp) if stage is None else [stage]
        return max(_stage_bytes(self, tp, pp, number) for number in stages)

    def check_length(self, max_model_len: int) -> None:
        """Refuse a longest request that vLLM would refuse (`_get_and_verify_max_len`)."""
        if max_model_len > self.max_positions:
            raise ModelError(
                f"{self.name} knows {self.max_positions:,} positions and vLLM refuses more; "
                f"max_model_len {max_model_len:,} is too long"
            )

    def tp_sizes(self, largest: int = 16) -> list[int]:
        """Tensor-parallel sizes up to `largest` that this model can run with."""
        return [tp for tp in range(1, largest + 1) if self._tp_works(tp)]

    def check_tp(self, tp: int) -> None:
        """Refuse a tensor-parallel size that vLLM would refuse."""
        if not self._tp_works(tp):
            possible = ", ".join(map(str, self.tp_sizes()))
            raise ModelError(
                f"{self.name}: tensor parallelism over {tp} GPUs does not divide its {self.heads} "
                f"heads and {self.kv_heads} KV heads evenly; possible sizes: {possible}"
            )

    def _tp_works(self, tp: int) -> bool:
        sizes = [self.heads, self.padded_vocab]
        if self.experts is None or self.experts.dense_layers:
            sizes.append(self.intermediate_size)
        if self.experts is not None:
            sizes.append(self.experts.size)
        if tp < 1 or any(size % tp for size in sizes):
            return False
        return self.kv_heads % tp == 0 if tp <= self.kv_heads else tp % self.kv_heads == 0

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding in vLLM, which rounds up before it splits."""
        return _round_up(self.vocab_size, _VOCAB_PADDING)


def stage_layers(shape: ModelShape, pp: int, stage: int) -> range:
    """The layers of one pipeline stage; the last one, with the output layer, gets no extra one.

    Source: `get_pp_indices` in vllm/distributed/utils.py.
    """
    if not 1 <= pp <= shape.layers:
        raise ModelError(
            f"{shape.name}: {shape.layers} layers cannot be cut into {pp} pipeline stages; "
            f"use 1 to {shape.layers}"
        )
    sizes = [shape.layers // pp] * pp
    for extra in range(2, shape.layers % pp + 2):
        sizes[-extra] += 1
    return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))


def linear_sizes(shape: ModelShape) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers of a layer without experts, as LoRA adapts them."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def _stage_bytes(shape: ModelShape, tp: int, pp: int, stage: int) -> int:
    size = dtype_bytes(shape.dtype)
    first, last = stage == 0, stage == pp - 1
    tables = 1 if shape.tied_embeddings and (first or last) else first + last
    numbers = tables * shape.padded_vocab // tp * shape.hidden_size
    numbers += shape.hidden_size if last else 0
    if shape.vision and first:
        numbers += shape.vision.parameters // tp
    form = shape.quantization or Quantization("none", 8 * size)
    total = 0.0
    for layer in stage_layers(shape, pp, stage):
        plain, routed = _linear(shape, layer, tp, form.padding)
        numbers += _beside(shape, layer, tp)
        total += plain * (size if form.experts_only else form.bytes_per_weight)
        total += routed * form.bytes_per_weight
    # The tables of the rotary embedding; latent attention keeps its own in float32.
    rotary = shape.latent.rope_dim * 4 if shape.latent else shape.head_dim * size
    return int(total) + numbers * size + rotary * shape.rotary_positions


def _linear(
    shape: ModelShape, layer: int, tp: int, padding: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Weights of a layer's linear layers on one of `tp` GPUs: without and of routed experts."""
    hidden, experts = shape.hidden_size, shape.experts
    if experts is None or layer < experts.dense_layers:
        return _attention(shape, tp) + 3 * hidden * (shape.intermediate_size // tp), 0
    routed = _round_up(experts.size // tp, padding[0]) * _round_up(hidden, padding[1])
    plain = _attention(shape, tp) + 3 * hidden * (experts.shared_size // tp)
    return plain, 3 * experts.count * routed


def _attention(shape: ModelShape, tp: int) -> int:
    hidden, heads, latent = shape.hidden_size, shape.heads // tp, shape.latent
    if latent is None:
        queries = heads * shape.head_dim
        keys_values = 2 * max(1, shape.kv_heads // tp) * shape.head_dim
        return hidden * (queries + keys_values) + queries * hidden
    query_width = heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank:
        count = latent.query_rank * (hidden + query_width)
    else:
        count = hidden * query_width
    # The compressed vector belongs to all heads: every GPU has the whole of it.
    count += hidden * (latent.kv_rank + latent.rope_dim)
    count += latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
    return count + heads * latent.value_dim * hidden


def _beside(shape: ModelShape, layer: int, tp: int) -> int:
    """Norms, biases, attention sinks and the router of a layer on one GPU: never quantized."""
    hidden, traits, experts = shape.hidden_size, shape.traits, shape.experts
    queries = shape.heads // tp * shape.head_dim
    keys_values = 2 * max(1, shape.kv_heads // tp) * shape.head_dim
    count = traits.norms * hidden + 2 * shape.head_dim * traits.qk_norm
    count += (queries + keys_values) * shape.qkv_bias + hidden * shape.output_bias
    count += (2 * shape.intermediate_size // tp + hidden) * shape.mlp_bias
    if shape.latent:
        count += shape.latent.kv_rank + shape.latent.query_rank
    if experts and layer >= experts.dense_layers:
        count += (hidden + (traits.router_bias or traits.expert_bias)) * experts.count
        if traits.expert_bias:  # gpt-oss: gate, up and down; and a sink for each head
            count += experts.count * (2 * experts.size // tp + hidden) + shape.heads // tp
    return count


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def layer_windows(config: Mapping[str, Any], traits: Traits, layers: int) -> tuple[int, ...]:
    """For each layer the tokens that it looks back at; 0 for all of them.

    Source: `layer_types` in transformers' configuration classes; Mistral gives every layer the
    window.
    """
    window = config.get("sliding_window")
    if window is not None and (not isinstance(window, int) or window < 0):
        raise ModelError(f"sliding_window {window!r} is no number of tokens; check config.json")
    # Qwen2 and Qwen3 name a window and switch it off by use_sliding_window.
    if not window or not config.get("use_sliding_window", True):
        return (0,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    if every := int(config.get("sliding_window_pattern") or traits.full_every):
        return tuple(0 if (layer + 1) % every == 0 else window for layer in range(layers))
    first = int(config.get("max_window_layers") or 0) if config.get("use_sliding_window") else 0
    return tuple(window if layer >= first else 0 for layer in range(layers))


def read_quantization(config: Mapping[str, Any], name: str) -> Quantization | None:
    """The format of the weights, or None when they are not quantized.

    Source: `fp8.py`, `awq_marlin.py`, `gptq_marlin.py`, `mxfp4.py` and `compressed_tensors` in
    vllm/model_executor/layers/quantization.
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
    if method == "mxfp4":  # a shared exponent of 8 bits for 32 weights
        return Quantization(method, 4, 8 / 32, experts_only=True, padding=(128, 256))
    if method in ("awq", "gptq"):
        bits = _bits(settings.get("bits", settings.get("w_bit")), method, name)
        # A 16-bit scale and a packed zero point for each group.
        group = _group_size(settings.get("group_size") or 128, method, name)
        zero_point = bits if method == "awq" else 0
        return Quantization(method, bits, (16 + zero_point) / group if group else 0.0)
    if method == "compressed-tensors":
        groups = [group.get("weights") for group in (settings.get("config_groups") or {}).values()]
        formats = {(g.get("num_bits"), g.get("group_size") or -1) for g in groups if g}
        if len(formats) != 1:
            raise ModelError(
                f"{name}: compressed-tensors with {len(formats)} weight formats is not modelled; "
                "one for all layers is"
            )
        found, size = formats.pop()
        group = _group_size(size, method, name)
        return Quantization(method, _bits(found, method, name), 16 / group if group else 0.0)
    known = "fp8, mxfp4, awq, gptq, compressed-tensors"
    raise ModelError(f"{name}: quantized weights ({method}) are not modelled; known: {known}")


def _group_size(value: Any, method: str, name: str) -> int:
    """Weights that share a scale; 0 when a whole column does (written as -1)."""
    if not isinstance(value, int) or value == 0:
        raise ModelError(f"{name}: {method} in groups of {value!r} is not modelled; check it")
    return max(0, value)


def _bits(value: Any, method: str, name: str) -> int:
    if value not in (4, 8):
        raise ModelError(f"{name}: {method} with {value} bits is not modelled; 4 and 8 are")
    return int(value)


def _load(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The parsed configuration and a name for it."""
    if isinstance(source, Mapping):
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


def _architecture(config: Mapping[str, Any], name: str) -> str:
    listed = config.get("architectures")
    if not isinstance(listed, list) or not listed:
        raise ModelError(f"{name}: config.json has no 'architectures'; is it a model's file?")
    if (architecture := str(listed[0])) not in architectures():
        known = ", ".join(architectures())
        raise ModelError(f"{name}: the architecture {architecture} is not modelled; known: {known}")
    return architecture


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads a parsed configuration and names what is missing."""

    config: Mapping[str, Any]
    name: str

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
            raise ModelError(
                f"{self.name}: config.json needs a positive integer {key!r} up to {_LARGEST:,}, "
                f"got {value!r}"
            )
        return value

    def dtype(self) -> str:
        # "dtype" since transformers 5, "torch_dtype" before.
        dtype = str(self.config.get("dtype") or self.config.get("torch_dtype") or "bfloat16")
        dtype_bytes(dtype)
        return _dtype_name(dtype)

    def positions(self) -> int:
        """The longest request that vLLM accepts: positions, stretched where the config says so.

        Source: `_get_and_verify_max_len` in vllm/config/model.py. YaRN's configs state the
        length before or after; vLLM 0.25 multiplies the original one.
        """
        positions = self.integer("max_position_embeddings", 2048)
        scaling = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        if not isinstance(scaling, dict) or "gemma3" in str(self.config.get("model_type", "")):
            return positions
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        factor = scaling.get("factor") or 1.0
        if kind in ("default", "su", "longrope", "llama3") or not isinstance(factor, (int, float)):
            return positions
        if "yarn" in kind:
            original = scaling.get("original_max_position_embeddings")
            return max(positions, int(original * factor) if isinstance(original, int) else 0)
        return max(positions, int(positions * factor))

    def rotary_positions(self, tables: int) -> int:
        """Gemma 3 stretches one of its tables, though not the longest request."""
        positions = self.positions()
        scaling = self.config.get("rope_scaling") or {}
        if tables > 1 and scaling.get("rope_type") == "linear":
            return (tables - 1) * positions + int(positions * scaling["factor"])
        return tables * positions

    def experts(self) -> Experts:
        config = self.config
        step = config.get("decoder_sparse_step", config.get("moe_layer_freq", 1))
        if step != 1 or config.get("mlp_only_layers"):
            raise ModelError(f"{self.name}: experts in some layers only are not modelled")
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        count = next((key for key in names if config.get(key)), None)
        if count is None:
            raise ModelError(f"{self.name}: config.json does not state its experts ({names})")
        active = "num_experts_per_tok" if "num_experts_per_tok" in config else "experts_per_token"
        size = self.integer("moe_intermediate_size", config.get("intermediate_size"))
        return Experts(
            count=self.integer(count),
            active=self.integer(active),
            size=size,
            shared_size=int(config.get("n_shared_experts") or 0) * size,
            dense_layers=int(config.get("first_k_dense_replace") or 0),
        )

    def latent(self) -> Latent:
        return Latent(
            kv_rank=self.integer("kv_lora_rank"),
            rope_dim=self.integer("qk_rope_head_dim"),
            nope_dim=self.integer("qk_nope_head_dim"),
            value_dim=self.integer("v_head_dim"),
            query_rank=int(self.config.get("q_lora_rank") or 0),
        )

    def vision(self) -> Vision:
        """SigLIP and Gemma 3's projector (siglip.py and gemma3_mm.py in vLLM)."""
        config = self.config.get("vision_config")
        if not isinstance(config, Mapping):
            raise ModelError(f"{self.name}: config.json has a text_config and no vision_config")
        read = _Reader(config, f"{self.name}, vision_config")
        hidden, inner = read.integer("hidden_size"), read.integer("intermediate_size")
        patch = read.integer("patch_size")
        patches = (read.integer("image_size") // patch) ** 2
        # Each layer: four projections and two of the MLP with biases, two norms with biases.
        layer = 4 * hidden * (hidden + 1) + inner * (hidden + 1) + hidden * (inner + 1)
        count = read.integer("num_hidden_layers") * (layer + 4 * hidden)
        count += hidden * (3 * patch**2 + 1 + patches + 2)  # patches, positions, the last norm
        count += hidden * (self.integer("hidden_size") + 1)  # the projector
        return Vision(count, hidden, inner, patches, self.integer("mm_tokens_per_image", 256))
