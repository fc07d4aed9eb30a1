"""The memory budget of a server, predicted from the manifest that will start it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workshop_lib.cluster import manifests
from workshop_lib.cluster.catalogue import catalogue
from workshop_lib.cluster.manifests import Object
from workshop_lib.data import data_path
from workshop_lib.errors import ManifestError
from workshop_lib.serving import models
from workshop_lib.serving.memory.model import GIB, ModelShape
from workshop_lib.serving.memory.vllm import Budget, cpu_budget, gpu_budget


def known_shape(model: str) -> ModelShape | None:
    """A model's shape: of its folder or the prepared model, else of the facts in data/models.

    An instruction-tuned model has the shape of the base model that data/models names.
    """
    for folder in (Path(model), models.model_path(model)):
        if (folder / "config.json").is_file():
            return ModelShape.from_config(folder / "config.json", name=model)
    for file in sorted(data_path("models").glob("*.json")):
        shape = ModelShape.from_config(file)
        if shape.name in (model, model.replace("-Instruct", "")):
            return shape
    return None


def served_shape(
    profile: str, component: str = "vllm", parameters: Mapping[str, Any] | None = None
) -> ModelShape:
    """The model that a manifest serves, in the number format that it is served in.

    Args:
        profile: The profile, as for `connect`.
        component: A component that is a vLLM Deployment.
        parameters: As for `cluster.apply`.

    Raises:
        ManifestError, ModelError: The manifest does not say enough, or an unknown architecture.

    Example:
        >>> served_shape("local").dtype   # doctest: +SKIP
        'float32'
    """
    _, _, variables, flags = _server(profile, component, parameters)
    model = variables["MODEL"]
    if (shape := known_shape(model)) is None:
        raise ManifestError(
            f"the shape of {model} is not known before it is here; "
            "run cluster.apply('model', model=...) first"
        )
    return shape.with_dtype(flags.get("--dtype", "auto"))


def predict_budget(
    profile: str, component: str = "vllm", parameters: Mapping[str, Any] | None = None
) -> Budget:
    """What a server's memory will be used for, before it is started.

    Everything is read from the manifest that `cluster.apply` would send: the model, its number
    format, the longest request, GPUs and their share, or the CPU's KV cache.

    Args, Raises: As for `served_shape`.

    Example:
        >>> predict_budget("local", "vllm", {"kv_gib": 2}).kv.tokens   # doctest: +SKIP
        46592
    """
    item, container, variables, flags = _server(profile, component, parameters)
    shape, longest = served_shape(profile, component, parameters), int(variables["MAX_MODEL_LEN"])
    if not int(container["resources"].get("limits", {}).get("nvidia.com/gpu", 0)):
        return cpu_budget(
            shape,
            kv_gib=int(variables["VLLM_CPU_KVCACHE_SPACE"]),
            memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB,
            max_model_len=longest,
        )
    return gpu_budget(
        shape,
        _gpu(item),
        gpu_memory_utilization=float(variables["GPU_MEMORY_UTILIZATION"]),
        max_model_len=longest,
        tp=int(variables["TENSOR_PARALLEL_SIZE"]),
        enforce_eager="--enforce-eager" in flags,
        vllm=container["image"].rpartition(":")[2],
    )


def _server(
    profile: str, component: str, parameters: Mapping[str, Any] | None
) -> tuple[Object, dict[str, Any], dict[str, str], dict[str, str]]:
    """A component's Deployment, its container, and that one's environment and flags."""
    for item in manifests.render(profile, component, parameters):
        if item.kind == "Deployment":
            container = item.body["spec"]["template"]["spec"]["containers"][0]
            variables = {e["name"]: e["value"] for e in container.get("env", []) if "value" in e}
            flags = dict(arg.partition("=")[::2] for arg in container.get("args", []))
            return item, container, variables, flags
    raise ManifestError(f"{component}: there is no Deployment to predict the memory of")


def _gpu(item: Object) -> str:
    """The GPU of the node that the manifest selects, from the price list's instances."""
    selector = item.body["spec"]["template"]["spec"].get("nodeSelector", {})
    wanted = selector.get("node.kubernetes.io/instance-type", "")
    for name, instance in catalogue().items():
        if instance.gpu and name.partition(".")[0] == wanted.partition(".")[0]:
            return instance.gpu
    raise item.error(f"nodeSelector: the GPU of instance type {wanted!r} is not known")
