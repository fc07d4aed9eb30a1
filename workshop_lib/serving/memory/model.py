"""What a model's `config.json` says about its size: parameters, and the weights of one GPU.

Pure arithmetic: nothing is loaded and no GPU is asked. An architecture that is not listed is
refused by name, because a wrong number would look as good as a right one.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from workshop_lib.data import data_path
from workshop_lib.errors import ModelError

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
# Other names that vLLM knows for them (--dtype, --kv-cache-dtype).
_SAME_DTYPE = {"float": "float32", "half": "float16", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}
# vLLM pads the vocabulary before it splits the embedding (vocab_parallel_embedding.py).
_VOCAB_PADDING = 64


def dtype_name(dtype: str) -> str:
    """A number format that vLLM knows, such as `bfloat16`, under its usual name."""
    name = dtype.removeprefix("torch.")
    if (name := _SAME_DTYPE.get(name, name)) not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise ModelError(f"the number format {dtype!r} is not known; use one of {known}")
    return name


# No size in any model's config.json is larger; a larger one is a mistake.
Size = Annotated[int, Field(strict=True, ge=1, le=10**9)]
Dtype = Annotated[str, AfterValidator(dtype_name)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


def _key(*keys: str, **settings: Any) -> Any:
    """A field that config.json calls otherwise."""
    return Field(validation_alias=AliasChoices(*keys), **settings)


class Traits(_Facts):
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
    defaults: dict[str, Any] = {}


@functools.cache
def architectures() -> dict[str, Traits]:
    """The architectures whose memory is computed; any other is refused by name."""
    entries = yaml.safe_load(data_path("architectures.yaml").read_text(encoding="utf-8"))
    return {name: Traits(**traits) for name, traits in entries.items()}


class Experts(_Facts):
    """A mixture of experts: `active` of `count` experts of inner size `size` serve a token.

    `shared` experts serve every token; `dense_layers` layers at the start keep a plain MLP.
    """

    count: Size = _key("num_local_experts", "num_experts", "n_routed_experts")
    active: Size = _key("num_experts_per_tok", "experts_per_token")
    size: Size = _key("moe_intermediate_size", "intermediate_size")
    shared: int = _key("n_shared_experts", default=0)
    dense_layers: int = _key("first_k_dense_replace", default=0)
    # What is not modelled: experts in some layers only.
    every: Literal[1] = _key("decoder_sparse_step", "moe_layer_freq", default=1)
    plain_layers: tuple[()] = _key("mlp_only_layers", default=())


class Latent(_Facts):
    """Multi-head latent attention: one compressed vector a token instead of keys and values."""

    kv_rank: Size = _key("kv_lora_rank")
    rope_dim: Size = _key("qk_rope_head_dim")
    nope_dim: Size = _key("qk_nope_head_dim")
    value_dim: Size = _key("v_head_dim")
    query_rank: int = _key("q_lora_rank", default=0)  # 0: queries are not compressed


class Quantization(_Facts):
    """A format for the weights of linear layers, `group_size` of which share a scale.

    Embeddings, the output layer, norms and an expert router stay in the model's own format;
    with `experts_only` so do attention and dense layers. `padding` is what the kernels round
    an expert's inner and outer size up to.

    Source: `fp8.py`, `awq_marlin.py`, `gptq_marlin.py`, `mxfp4.py` and `compressed_tensors` in
    vllm/model_executor/layers/quantization.
    """

    method: Literal["fp8", "mxfp4", "awq", "gptq", "compressed-tensors"] = _key("quant_method")
    bits: Literal[4, 8] = _key("bits", "w_bit", "num_bits")
    group_size: int = Field(default=128, ge=-1)  # -1: a whole column
    scale_bits: int = 16
    experts_only: bool = False
    padding: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, settings: Any) -> Quantization | None:
        """The format that a config.json's `quantization_config` states."""
        if not settings:
            return None
        facts = {key: value for key, value in settings.items() if value is not None}
        match facts.get("quant_method"):
            case "fp8":
                block = facts.get("weight_block_size")
                facts |= {"bits": 8, "group_size": math.prod(block) if block else -1}
                facts["scale_bits"] = 32
            case "mxfp4":  # a shared exponent of 8 bits for 32 weights
                facts |= {"bits": 4, "group_size": 32, "scale_bits": 8, "experts_only": True}
                facts["padding"] = (128, 256)
            case "awq":  # with a packed zero point for each group
                facts["scale_bits"] = 16 + facts.get("bits", facts.get("w_bit", 4))
            case "compressed-tensors":
                groups = (facts.get("config_groups") or {}).values()
                weights = [group["weights"] for group in groups if group.get("weights")]
                formats = {(w.get("num_bits"), w.get("group_size") or -1) for w in weights}
                if len(formats) != 1:
                    raise ModelError(
                        f"compressed-tensors with {len(formats)} weight formats is not modelled; "
                        "one for all layers is"
                    )
                facts["bits"], facts["group_size"] = formats.pop()
        return cls.model_validate(facts)

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of one weight with its share of the scales."""
        scale = self.scale_bits / self.group_size if self.group_size > 0 else 0.0
        return (self.bits + scale) / 8


class Vision(_Facts):
    """The image encoder in front of a multimodal model: SigLIP and Gemma 3's projector.

    Source: siglip.py and gemma3_mm.py in vllm/model_executor/models.
    """

    hidden_size: Size
    intermediate_size: Size
    layers: Size = _key("num_hidden_layers")
    image_size: Size
    patch_size: Size
    tokens: Size  # that an image becomes
    text_size: Size  # hidden size of the text model

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return int((self.image_size // self.patch_size) ** 2)

    @property
    def parameters(self) -> int:
        """Parameters of the encoder and the projector."""
        hidden, inner = self.hidden_size, self.intermediate_size
        # Each layer: four projections and two of the MLP with biases, two norms with biases.
        layer = 4 * hidden * (hidden + 1) + inner * (hidden + 1) + hidden * (inner + 1)
        count = self.layers * (layer + 4 * hidden)
        count += hidden * (3 * self.patch_size**2 + 1 + self.patches + 2)  # and the last norm
        return int(count + hidden * (self.text_size + 1))


class ModelShape(_Facts):
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
    layers: Size = _key("num_hidden_layers")
    hidden_size: Size
    intermediate_size: Size
    heads: Size = _key("num_attention_heads")
    kv_heads: Size = _key("num_key_value_heads", default_factory=lambda known: known["heads"])
    head_dim: Size = Field(default_factory=lambda known: known["hidden_size"] // known["heads"])
    vocab_size: Size
    max_positions: Size
    tied_embeddings: bool = _key("tie_word_embeddings", default=False)
    attention_bias: bool = False
    mlp_bias: bool = False
    rotary_positions: int = 0  # of all tables of the rotary embedding together
    dtype: Dtype = _key("dtype", "torch_dtype", default="bfloat16")
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
        traits = _traits_of(whole, name)
        architecture = whole["architectures"][0]
        stated = {**traits.defaults, **whole, **(whole.get("text_config") or {})}
        config = {key: value for key, value in stated.items() if value is not None}
        try:
            positions, rotary = _positions(config, traits.rotary_tables)
            facts = {"tie_word_embeddings": traits.tied} | config
            facts |= {"name": name, "architecture": architecture, "max_positions": positions}
            facts |= {"rotary_positions": rotary, "windows": _windows(config, traits)}
            facts["experts"] = Experts.model_validate(config) if traits.moe else None
            facts["latent"] = Latent.model_validate(config) if traits.latent else None
            facts["quantization"] = Quantization.of(config.get("quantization_config"))
            if "text_config" in whole:
                sizes = {"tokens": whole.get("mm_tokens_per_image", 256)}
                sizes["text_size"] = config.get("hidden_size")
                facts["vision"] = Vision.model_validate((whole.get("vision_config") or {}) | sizes)
            shape = cls.model_validate(facts)
        except ValidationError as error:
            first = error.errors()[0]
            where, got = ".".join(map(str, first["loc"])), first["input"]
            said = first["msg"] if first["type"] == "missing" else f"{first['msg']}, got {got!r}"
            raise ModelError(f"{name}: config.json, {error.title}: {where}: {said}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{name}: config.json is not as expected: {error!r}") from error
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
        known = {file.stem: file for file in sorted(data_path("models").glob("*.json"))}
        if name not in known:
            raise ModelError(f"no model {name!r} in data/models; there are: {', '.join(known)}")
        return cls.from_config(known[name])

    def with_dtype(self, dtype: str) -> Self:
        """The same shape with weights in another format; `auto` is vLLM's choice for the model."""
        if dtype == "auto":  # _resolve_auto_dtype in vllm/config/model.py
            dtype = "bfloat16" if self.dtype == "float32" else self.dtype
        return self.model_copy(update={"dtype": dtype_name(dtype)})

    @property
    def traits(self) -> Traits:
        """What the architecture has beside what the configuration states."""
        return architectures()[self.architecture]

    @property
    def number_bytes(self) -> int:
        """Bytes of one number of the weights."""
        return DTYPE_BYTES[self.dtype]

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding in vLLM, which rounds up before it splits."""
        return _round_up(self.vocab_size, _VOCAB_PADDING)

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
        sizes = [self.heads, self.padded_vocab]
        if self.experts is None or self.experts.dense_layers:
            sizes.append(self.intermediate_size)
        if self.experts is not None:
            sizes.append(self.experts.size)
        return [
            tp
            for tp in range(1, largest + 1)
            if not any(size % tp for size in sizes)
            and not max(tp, self.kv_heads) % min(tp, self.kv_heads)
        ]

    def check_tp(self, tp: int) -> None:
        """Refuse a tensor-parallel size that vLLM would refuse."""
        if tp not in self.tp_sizes(max(tp, 1)):
            possible = ", ".join(map(str, self.tp_sizes()))
            raise ModelError(
                f"{self.name}: tensor parallelism over {tp} GPUs does not divide its {self.heads} "
                f"heads and {self.kv_heads} KV heads evenly; possible sizes: {possible}"
            )


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


def _stage_bytes(shape: ModelShape, tp: int, pp: int, stage: int) -> int:
    size = shape.number_bytes
    first, last = stage == 0, stage == pp - 1
    tables = 1 if shape.tied_embeddings and (first or last) else first + last
    numbers = tables * shape.padded_vocab // tp * shape.hidden_size
    numbers += shape.hidden_size if last else 0
    if shape.vision and first:
        numbers += shape.vision.parameters // tp
    form = shape.quantization
    padding, packed = (form.padding, form.bytes_per_weight) if form else ((1, 1), size)
    total = 0.0
    for layer in stage_layers(shape, pp, stage):
        plain, routed = _linear(shape, layer, tp, padding)
        numbers += _beside(shape, layer, tp)
        total += plain * (size if form and form.experts_only else packed) + routed * packed
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
    plain = _attention(shape, tp) + 3 * hidden * (experts.shared * experts.size // tp)
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
    count += (queries + keys_values) * (traits.qkv_bias or shape.attention_bias)
    count += hidden * shape.attention_bias
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


def _windows(config: Mapping[str, Any], traits: Traits) -> tuple[int, ...]:
    """For each layer the tokens that it looks back at, 0 for all; empty when no layer has one.

    Source: `layer_types` in transformers' configuration classes; Mistral gives every layer the
    window.
    """
    window, layers = config.get("sliding_window"), config["num_hidden_layers"]
    # Qwen2 and Qwen3 name a window and switch it off by use_sliding_window.
    if not window or not config.get("use_sliding_window", True):
        return ()
    kinds = config.get("layer_types")
    if kinds and len(kinds) == layers:
        found = [window if kind == "sliding_attention" else 0 for kind in kinds]
    elif every := config.get("sliding_window_pattern") or traits.full_every:
        found = [0 if (layer + 1) % every == 0 else window for layer in range(layers)]
    else:
        first = config.get("max_window_layers", 0) if config.get("use_sliding_window") else 0
        found = [window if layer >= first else 0 for layer in range(layers)]
    return tuple(found) if any(found) else ()


def _positions(config: Mapping[str, Any], tables: int) -> tuple[int, int]:
    """The longest request that vLLM accepts, and the rows of all rotary tables together.

    Source: `_get_and_verify_max_len` in vllm/config/model.py. YaRN's configs state the length
    before or after stretching; vLLM 0.25 multiplies the original one. Gemma 3 stretches one of
    its tables, though not the longest request.
    """
    positions = config.get("max_position_embeddings", 2048)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    factor = scaling.get("factor") or 1.0
    if "gemma3" in config.get("model_type", ""):
        stretched = int(positions * factor) if kind == "linear" else positions
        return positions, (tables - 1) * positions + stretched
    if "yarn" in kind:
        positions = max(positions, int(scaling.get("original_max_position_embeddings", 0) * factor))
    elif kind not in ("default", "su", "longrope", "llama3"):
        positions = max(positions, int(positions * factor))
    return positions, tables * positions


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


def _traits_of(config: Mapping[str, Any], name: str) -> Traits:
    listed = config.get("architectures")
    if not isinstance(listed, list) or not listed:
        raise ModelError(f"{name}: config.json has no 'architectures'; is it a model's file?")
    if (architecture := str(listed[0])) not in architectures():
        known = ", ".join(architectures())
        raise ModelError(f"{name}: the architecture {architecture} is not modelled; known: {known}")
    return architectures()[architecture]
