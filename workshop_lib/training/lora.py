"""LoRA: a small adapter is trained beside the frozen model, and saved so that vLLM serves it.

Hu et al. 2021, "LoRA": a frozen layer W gets `W x + alpha/r · B A x`, where A and B have r rows
and columns; only they are trained. A checkpoint has the merged model at its top, which any server
reads, and the adapter in its folder `adapter`, from which training goes on exactly: merging
rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["inner_model", "load_adapter", "lora_config", "save_weights", "start_adapter"]

_ADAPTER_FOLDER = "adapter"


def inner_model(model: Any) -> Any:
    """The model of transformers inside a trainer's model: itself, or what peft wraps.

    peft puts its layers into that model, so that it computes with the adapter on.
    """
    wrapped = getattr(model, "get_base_model", None)
    return model if wrapped is None else wrapped()


def lora_config(settings: Mapping[str, Any]) -> Any:
    """The adapter's configuration for peft, of `Translation.lora`."""
    from peft import LoraConfig

    return LoraConfig(**{name: value for name, value in settings.items() if name != "init"})


def start_adapter(model: Any, *, init: str, seed: int) -> None:
    """Give A its first values, as NeMo Automodel draws them; B is 0.

    Args:
        model: A `peft.PeftModel`.
        init: `xavier`, or `uniform` (He et al. 2015 with a = √5, as a linear layer of torch).
        seed: Decides the values.
    """
    import math

    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, weights in model.named_parameters():
        if ".lora_A." in name:
            with torch.no_grad():
                if init == "xavier":
                    torch.nn.init.xavier_normal_(weights, generator=generator)
                else:
                    torch.nn.init.kaiming_uniform_(weights, a=math.sqrt(5), generator=generator)


def save_weights(model: Any, folder: Path) -> None:
    """Save a trained model so that it can be served, and its adapter so that it can be trained."""
    inner = inner_model(model)
    if inner is model:
        # In float32: a step of 1e-5 is smaller than what bfloat16 can tell apart.
        model.save_pretrained(str(folder))
        return
    inner.save_pretrained(str(folder), state_dict=_merged_weights(model))
    # Not asked: whether the vocabulary was resized, which peft would look up at the hub.
    model.save_pretrained(str(folder / _ADAPTER_FOLDER), save_embedding_layers=False)


def load_adapter(model: Any, folder: Path) -> None:
    """Give a model the adapter of a checkpoint with the same layers."""
    model.load_adapter(str(folder / _ADAPTER_FOLDER), "default", is_trainable=True)


def _merged_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights with the adapter added in, under the names that a model has without one."""
    import torch
    from peft.tuners.lora import LoraLayer

    inner = inner_model(model)
    layers: dict[str, Any] = {
        name: part for name, part in inner.named_modules() if isinstance(part, LoraLayer)
    }
    weights = {}
    for name, tensor in inner.state_dict().items():
        if ".lora_" in name:
            continue
        layer, base, rest = name.partition(".base_layer.")
        if base and rest == "weight":
            with torch.no_grad():
                tensor = tensor + layers[layer].get_delta_weight("default")
        weights[f"{layer}.{rest}" if base else name] = tensor
    return weights
