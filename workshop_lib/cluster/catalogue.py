"""EC2 instance types as `data/instances.yaml` has them: devices, sizes, prices with their date."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Instance", "catalogue", "catalogue_table", "instance", "service"]


@dataclass(frozen=True)
class Instance:
    """One EC2 instance type.

    Attributes:
        name: Such as `p5.48xlarge`.
        gpus: Its GPUs; 0 for a CPU machine.
        gpu: Their type, None without.
        vcpus: Its processors.
        memory_gib: Its memory, GiB.
        efa: EFA interfaces that it can have.
        network_gbps: Its network, Gbit/s.
        node: What its Kubernetes node offers to pods, by resource, as quantities.
        usd_per_hour: On demand, Linux; None when not verified.
        region: The price's region, None without a price.
        date: The price's date, None without a price.
        source: Where the price comes from; empty without.
        spot_saves_percent: What spot saved when its source was read; None when not verified.
        spot_interrupted: How often spot instances of this type were interrupted in a month.
    """

    name: str
    gpus: int
    gpu: str | None
    vcpus: int
    memory_gib: int
    efa: int
    network_gbps: float
    node: Mapping[str, str] = field(default_factory=dict)
    usd_per_hour: float | None = None
    region: str | None = None
    date: datetime.date | None = None
    source: str = ""
    spot_saves_percent: int | None = None
    spot_interrupted: str | None = None

    @property
    def spot_usd_per_hour(self) -> float | None:
        """The on-demand price less what spot saved; None when either is not verified."""
        if self.usd_per_hour is None or self.spot_saves_percent is None:
            return None
        return self.usd_per_hour * (1 - self.spot_saves_percent / 100)


@functools.cache
def catalogue() -> dict[str, Instance]:
    """The instance types by name.

    Example:
        >>> catalogue()["p5en.48xlarge"].efa
        16
    """
    entries = yaml.safe_load(data_path("instances.yaml").read_text())
    return {name: _instance(name, entry) for name, entry in entries.items()}


def _instance(name: str, entry: Mapping[str, Any]) -> Instance:
    priced, spot = entry["priced"] or {}, entry["spot"] or {}
    node = {
        "cpu": entry["node_cpu"], "memory": entry["node_memory"],
        "nvidia.com/gpu": str(entry["gpus"]), "vpc.amazonaws.com/efa": str(entry["efa"]),
    }  # fmt: skip
    return Instance(
        name, entry["gpus"], entry["gpu"], entry["vcpus"], entry["memory_gib"], entry["efa"],
        entry["network_gbps"], node, entry["usd_per_hour"],
        priced.get("region"), priced.get("date"), priced.get("source", ""),
        spot.get("saves_percent"), spot.get("interrupted"),
    )  # fmt: skip


def instance(name: str) -> Instance:
    """An instance type.

    Args:
        name: Such as `p4d.24xlarge`.

    Raises:
        WorkshopError: The catalogue does not have it.
    """
    if name not in catalogue():
        raise WorkshopError(
            f"instance type {name!r} is not in data/instances.yaml; it has {', '.join(catalogue())}"
        )
    return catalogue()[name]


@functools.cache
def service(name: str) -> dict[str, Any]:
    """What `data/services.yaml` has of a service: `fsx_scratch_2`, `eks_cluster`, `spot`.

    Example:
        >>> service("spot")["notice_s"]
        120
    """
    found: dict[str, Any] = yaml.safe_load(data_path("services.yaml").read_text())[name]
    return found


def catalogue_table() -> pd.DataFrame:
    """The catalogue as a table: one row an instance type, the dearest last.

    Returns:
        Columns `instance`, `gpus`, `gpu`, `vcpus`, `memory_gib`, `efa`, `usd_per_hour`,
        `usd_per_gpu_hour`, `spot_usd_per_hour`, `interrupted`; nothing where not verified.
    """
    import pandas as pd

    rows = [
        {
            "instance": each.name, "gpus": each.gpus, "gpu": each.gpu or "", "vcpus": each.vcpus,
            "memory_gib": each.memory_gib, "efa": each.efa, "usd_per_hour": each.usd_per_hour,
            "usd_per_gpu_hour": each.usd_per_hour / each.gpus
            if each.usd_per_hour and each.gpus else None,
            "spot_usd_per_hour": each.spot_usd_per_hour,
            "interrupted": each.spot_interrupted or "",
        }
        for each in catalogue().values()
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values(["gpus", "usd_per_hour"], ignore_index=True)
