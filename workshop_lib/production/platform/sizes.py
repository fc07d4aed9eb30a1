"""Which model may be served on which machine, going by the memory model.

`data/platform.yaml` names models, machines and lengths; what is offered of their combinations is
computed, with the `gpu_memory_utilization` that the served manifest has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from workshop_lib.cluster.manifests import render
from workshop_lib.data import data_path

__all__ = ["COMPONENT", "Size", "choices", "sizes", "utilization"]

COMPONENT = "ray-service-s3"


@dataclass(frozen=True, slots=True)
class Size:
    """One way to serve a model that fits.

    Attributes:
        model: The model's hub id.
        instance_type: EC2 instance type of the worker's node.
        tensor_parallel_size: GPUs of a replica: the fewest that hold it.
        max_model_len: Longest sequence, tokens.
        requests: Sequences of that length that a replica holds at once.
    """

    model: str
    instance_type: str
    tensor_parallel_size: int
    max_model_len: int
    requests: int

    @property
    def key(self) -> str:
        """The size as a form's one value: machine, GPUs of a replica, tokens.

        Example:
            >>> Size("a/b", "p5.48xlarge", 2, 8192, 40).key
            'p5.48xlarge:2:8192'
        """
        return f"{self.instance_type}:{self.tensor_parallel_size}:{self.max_model_len}"

    @property
    def title(self) -> str:
        """The size as a person reads it.

        Example:
            >>> Size("a/b", "p5.48xlarge", 2, 8192, 40).title
            'p5.48xlarge, 2 GPUs a replica, up to 8,192 tokens (holds 40 such requests)'
        """
        gpus = "1 GPU" if self.tensor_parallel_size == 1 else f"{self.tensor_parallel_size} GPUs"
        return (
            f"{self.instance_type}, {gpus} a replica, up to {self.max_model_len:,} tokens "
            f"(holds {self.requests:,} such requests)"
        )


def choices() -> dict[str, Any]:
    """What `data/platform.yaml` says: models, machines, lengths and how many requests at least."""
    return dict(yaml.safe_load(data_path("platform.yaml").read_text()))


def utilization() -> float:
    """The share of a GPU's memory that the served manifest gives to vLLM."""
    (service,) = [item for item in render("eks", COMPONENT) if item.kind == "RayService"]
    served = yaml.safe_load(service.body["spec"]["serveConfigV2"])
    (config,) = served["applications"][0]["args"]["llm_configs"]
    return float(config["engine_kwargs"]["gpu_memory_utilization"])


def sizes() -> list[Size]:
    """Every combination that fits, in the order of `data/platform.yaml`.

    Of tensor-parallel sizes only the smallest is offered: it spends least on communication, and a
    node's other GPUs hold further replicas.

    Raises:
        WorkshopError: The file names a model's shape or a GPU that is not known.

    Example:
        >>> {size.tensor_parallel_size for size in sizes() if "70B" in size.model}
        {8, 2, 4}
    """
    from workshop_lib.serving.memory import ModelShape, gpu_budget

    wanted, share = choices(), utilization()
    machines = yaml.safe_load(data_path("instances.yaml").read_text())
    found = []
    for model, facts in wanted["models"].items():
        shape = ModelShape.named(facts["shape"])
        for instance_type in wanted["instance_types"]:
            machine = machines[instance_type]
            gpus = int(machine["gpus"])
            for length in wanted["max_model_lens"]:
                if length > shape.max_positions:
                    continue
                for tp in shape.tp_sizes(gpus):
                    if gpus % tp:
                        continue
                    budget = gpu_budget(
                        shape, machine["gpu"],
                        gpu_memory_utilization=share, max_model_len=length, tp=tp,
                    )  # fmt: skip
                    held = int(budget.kv.concurrency) if budget.fits else 0
                    if held >= wanted["least_requests"]:
                        found.append(Size(model, instance_type, tp, length, held))
                        break
    return found
