"""The memory budget of a server, predicted from the manifest that will start it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.manifests import Object
from workshop_lib.errors import ManifestError
from workshop_lib.serving import models
from workshop_lib.serving.memory.budget import Budget, cpu_budget, gpu_budget
from workshop_lib.serving.memory.shape import ModelShape

__all__ = ["predict_budget", "served_shape"]

GPU_OF_INSTANCE = {
    "g5": "a10g", "g6": "l4", "p4d": "a100-40", "p4de": "a100-80", "p5": "h100", "p5en": "h200",
}  # fmt: skip
"""EC2 instance family to its GPU (AWS, "Amazon EC2 accelerated computing instances")."""

KNOWN_SHAPES = {"mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b"}
"""Models whose `config.json` facts lie in `data/models`, for when they are not on this machine."""


def served_shape(
    profile: str, component: str = "vllm", parameters: Mapping[str, Any] | None = None
) -> ModelShape:
    """The model that a manifest serves, in the number format that it is served in.

    Args:
        profile: The profile, as for `connect`.
        component: A component that is a vLLM Deployment.
        parameters: As for `cluster.apply`.

    Raises:
        ManifestError: The manifest does not say enough.
        ModelError: The model's architecture is not known.

    Example:
        >>> served_shape("local").dtype   # doctest: +SKIP
        'float32'
    """
    container = _server(profile, component, parameters)[1]
    flags = dict(arg.partition("=")[::2] for arg in container.get("args", []))
    shape = _shape(_environment(container)["MODEL"])
    return shape.with_dtype(flags.get("--dtype", "auto"))


def _server(
    profile: str, component: str, parameters: Mapping[str, Any] | None
) -> tuple[Object, dict[str, Any]]:
    """The Deployment of a component, and its container."""
    objects = manifests.render(profile, component, parameters)
    item = next((item for item in objects if item.kind == "Deployment"), None)
    if item is None:
        raise ManifestError(f"{component}: there is no Deployment to predict the memory of")
    return item, item.body["spec"]["template"]["spec"]["containers"][0]


def _environment(container: Mapping[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"] for e in container.get("env", []) if "value" in e}


def predict_budget(
    profile: str, component: str = "vllm", parameters: Mapping[str, Any] | None = None
) -> Budget:
    """What a server's memory will be used for, before it is started.

    Everything is read from the manifest that `cluster.apply` would send: the model, its
    number format, the longest sequence, GPUs and their share, or the CPU's KV cache.

    Args:
        profile: The profile, as for `connect`.
        component: A component that is a vLLM Deployment.
        parameters: As for `cluster.apply`.

    Raises:
        ManifestError: The manifest does not say enough.
        ModelError: The model's architecture is not known.

    Example:
        >>> predict_budget("local", "vllm", {"kv_gib": 2}).kv.tokens   # doctest: +SKIP
        46592
    """
    item, container = _server(profile, component, parameters)
    environment = _environment(container)
    shape = served_shape(profile, component, parameters)
    longest = int(environment["MAX_MODEL_LEN"])
    gpus = int(container["resources"].get("limits", {}).get("nvidia.com/gpu", 0))
    if not gpus:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cpu_budget(
            shape,
            kv_gib=int(environment["VLLM_CPU_KVCACHE_SPACE"]),
            memory_gib=memory / 2**30,
            max_model_len=longest,
        )
    return gpu_budget(
        shape,
        _gpu(item),
        gpu_memory_utilization=float(environment["GPU_MEMORY_UTILIZATION"]),
        max_model_len=longest,
        tp=int(environment["TENSOR_PARALLEL_SIZE"]),
    )


def _shape(model: str) -> ModelShape:
    """The model's shape: from the model itself when it is here, else from `data/models`."""
    folder = models.model_path(model)
    if (folder / "config.json").is_file():
        return ModelShape.from_config(folder / "config.json", name=model)
    if model in KNOWN_SHAPES:
        return ModelShape.named(KNOWN_SHAPES[model])
    raise ManifestError(
        f"the shape of {model} is not known before it is here; "
        "run cluster.apply('model', model=...) first"
    )


def _gpu(item: Object) -> str:
    """The GPU of the node that the manifest selects."""
    selector = item.body["spec"]["template"]["spec"].get("nodeSelector", {})
    instance = selector.get("node.kubernetes.io/instance-type", "")
    family = instance.partition(".")[0]
    if family not in GPU_OF_INSTANCE:
        raise item.error(f"nodeSelector: the GPU of instance type {instance!r} is not known")
    return GPU_OF_INSTANCE[family]
