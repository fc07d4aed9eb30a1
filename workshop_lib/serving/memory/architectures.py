"""The architectures whose memory is computed, and what `config.json` leaves unsaid about them.

An architecture is listed once its layers have been checked against its implementation in vLLM;
any other is refused by name, because a wrong number would look as good as a right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workshop_lib.errors import ModelError

__all__ = ["ARCHITECTURES", "Experts", "Latent", "Traits", "layer_windows", "read_experts"]


@dataclass(frozen=True, slots=True)
class Traits:
    """What the layers of an architecture have beside what `config.json` states."""

    qkv_bias: bool = False
    qk_norm: bool = False
    norms: int = 2
    tied: bool = False
    moe: bool = False
    latent: bool = False
    router_bias: bool = False
    # Tables of the rotary embedding: one for each base.
    rotary_tables: int = 1
    # What transformers' configuration class takes for a key that config.json leaves out.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # The layers that see everything: every n-th; 0 when `config.json` does not alternate.
    full_every: int = 0


_MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 131_072}
_QWEN = {
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_GEMMA = {
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
}

ARCHITECTURES = {
    "LlamaForCausalLM": Traits(),  # Llama 2 and 3, SmolLM2
    # Only a written null switches Mistral's window off.
    "MistralForCausalLM": Traits(defaults={**_MISTRAL, "sliding_window": 4096}),
    # Its joined projections are as large as Llama's.
    "Phi3ForCausalLM": Traits(defaults={"max_position_embeddings": 4096}),
    "Qwen2ForCausalLM": Traits(qkv_bias=True, defaults=_QWEN),
    "Qwen3ForCausalLM": Traits(qk_norm=True, defaults={**_QWEN, "head_dim": 128}),
    "Gemma2ForCausalLM": Traits(norms=4, tied=True, full_every=2, defaults=_GEMMA),
    "Gemma3ForCausalLM": Traits(
        norms=4,
        tied=True,
        qk_norm=True,
        full_every=6,
        rotary_tables=2,
        defaults={**_GEMMA, "max_position_embeddings": 131_072},
    ),
    "MixtralForCausalLM": Traits(moe=True, defaults=_MISTRAL),
    "Qwen3MoeForCausalLM": Traits(
        qk_norm=True, moe=True, defaults={**_QWEN, "num_key_value_heads": 4}
    ),
    "DeepseekV2ForCausalLM": Traits(moe=True, latent=True),
    "DeepseekV3ForCausalLM": Traits(moe=True, latent=True, router_bias=True),
}


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture of experts that replaces the MLP.

    Attributes:
        count: Routed experts of a layer.
        active: Experts that one token uses.
        size: Inner size of one expert.
        shared_size: Inner size of the experts that every token uses, together.
        dense_layers: Layers at the start that keep a plain MLP.
        router_bias: The router keeps a correction for each expert.
    """

    count: int
    active: int
    size: int
    shared_size: int = 0
    dense_layers: int = 0
    router_bias: bool = False


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: one compressed vector a token instead of keys and values.

    Attributes:
        kv_rank: Size of the compressed vector.
        rope_dim: Size of the rotary part that is kept beside it.
        nope_dim: Size of a head's part without positions.
        value_dim: Size of a head's value.
        query_rank: Size of the compressed query; 0 when queries are not compressed.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int = 0


def read_experts(config: Mapping[str, Any], name: str, *, router_bias: bool = False) -> Experts:
    """The experts of a mixture-of-experts model.

    Args:
        config: A parsed `config.json`.
        name: The model's name, for messages.
        router_bias: The architecture's.

    Raises:
        ModelError: A key is missing, or only some layers have experts in a way not modelled.

    Example:
        >>> config = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 14336}
        >>> read_experts(config, "mixtral").count
        8
    """
    step = config.get("decoder_sparse_step", config.get("moe_layer_freq", 1))
    if step != 1 or config.get("mlp_only_layers"):
        raise ModelError(f"{name}: experts in some layers only (every {step}) are not modelled")
    found = [config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")]
    count = next((number for number in found if number), None)
    active = config.get("num_experts_per_tok")
    size = config.get("moe_intermediate_size") or config.get("intermediate_size")
    if not all(isinstance(value, int) and value > 0 for value in (count, active, size)):
        raise ModelError(f"{name}: config.json does not state its experts; is it complete?")
    shared = int(config.get("n_shared_experts") or 0)
    assert count and active and size
    return Experts(
        count=count,
        active=active,
        size=size,
        shared_size=shared * size,
        dense_layers=int(config.get("first_k_dense_replace") or 0),
        router_bias=router_bias,
    )


def layer_windows(config: Mapping[str, Any], traits: Traits, layers: int) -> tuple[int, ...]:
    """For each layer the tokens that it looks back at; 0 for all of them.

    Args:
        config: A parsed `config.json`.
        traits: The architecture's.
        layers: Number of layers.

    Raises:
        ModelError: The window is no number of tokens.

    Source: `layer_types` in transformers' Gemma2Config, Gemma3Config, Qwen2Config; Mistral's
    implementation gives every layer the window.

    Example:
        >>> layer_windows({"sliding_window": 4096}, Traits(full_every=2), 4)
        (4096, 0, 4096, 0)
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
    first = int(config.get("max_window_layers") or 0) if config.get("use_sliding_window") else 0
    every = int(config.get("sliding_window_pattern") or traits.full_every)
    if every:
        return tuple(0 if (layer + 1) % every == 0 else window for layer in range(layers))
    return tuple(window if layer >= first else 0 for layer in range(layers))
