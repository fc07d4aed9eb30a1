"""EC2 instance types as `data/instances.yaml` has them: devices, sizes, prices with their date."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from workshop_lib.data import data_path
from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Instance", "catalogue", "catalogue_table", "instance", "service"]


@dataclass(frozen=True)
class Instance:
    """One EC2 instance type; prices on demand, None where not verified.

    `node` is what its Kubernetes node offers to pods; `spot_saves_percent` and
    `spot_interrupted` are what spot saved and how often it was interrupted in a month.
    """

    name: str
    gpus: int
    gpu: str | None
    vcpus: int
    memory_gib: int
    efa: int
    network_gbps: float
    node: Mapping[str, str]
    usd_per_hour: float | None
    region: str | None
    date: datetime.date | None
    source: str
    spot_saves_percent: int | None
    spot_interrupted: str | None

    @property
    def spot_usd_per_hour(self) -> float | None:
        """The on-demand price less what spot saved; None when either is not verified."""
        if self.usd_per_hour is None or self.spot_saves_percent is None:
            return None
        return self.usd_per_hour * (1 - self.spot_saves_percent / 100)


SAME = ("gpus", "gpu", "vcpus", "memory_gib", "efa", "network_gbps", "usd_per_hour")


@functools.cache
def catalogue() -> dict[str, Instance]:
    """The instance types by name."""
    found = {}
    for name, entry in yaml.safe_load(data_path("instances.yaml").read_text()).items():
        priced, spot = entry["priced"] or {}, entry["spot"] or {}
        node = {"cpu": entry["node_cpu"], "memory": entry["node_memory"],
                "nvidia.com/gpu": str(entry["gpus"]),
                "vpc.amazonaws.com/efa": str(entry["efa"])}  # fmt: skip
        found[name] = Instance(
            name=name, node=node, region=priced.get("region"), date=priced.get("date"),
            source=priced.get("source", ""), spot_saves_percent=spot.get("saves_percent"),
            spot_interrupted=spot.get("interrupted"), **{key: entry[key] for key in SAME},
        )  # fmt: skip
    return found


def instance(name: str) -> Instance:
    """An instance type.

    Args:
        name: Such as `p4d.24xlarge`.

    Raises:
        WorkshopError: The catalogue does not have it.

    Example:
        >>> instance("p5en.48xlarge").efa
        16
    """
    if name not in catalogue():
        raise WorkshopError(
            f"instance type {name!r} is not in data/instances.yaml; it has {', '.join(catalogue())}"
        )
    return catalogue()[name]


@functools.cache
def service(name: str) -> dict[str, Any]:
    """What `data/services.yaml` has of a service: `fsx_scratch_2`, `eks_cluster`, `spot`."""
    found: dict[str, Any] = yaml.safe_load(data_path("services.yaml").read_text())[name]
    return found


def catalogue_table() -> pd.DataFrame:
    """The catalogue as a table: one row an instance type, the dearest last."""
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
