"""The `/metrics` page of a vLLM server, read into numbers.

Under Ray Serve the same metrics carry another prefix (`ray_vllm_` in place of
`vllm:`); names are accepted without either.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TypeVar

from workshop_lib.errors import ServerError

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Histogram:
    """A Prometheus histogram: how many observations, their sum, and counts up to each bound."""

    count: float
    total: float
    buckets: dict[float, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean observation; None when there is none."""
        return self.total / self.count if self.count else None

    def __sub__(self, earlier: Histogram) -> Histogram:
        """The observations made since `earlier`."""
        buckets = {
            bound: count - earlier.buckets.get(bound, 0.0) for bound, count in self.buckets.items()
        }
        return Histogram(self.count - earlier.count, self.total - earlier.total, buckets)


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """One reading of `/metrics`."""

    values: dict[str, float]
    histograms: dict[str, Histogram]
    info: dict[str, dict[str, str]]

    def value(self, name: str) -> float:
        """A gauge or a counter, added up over its series."""
        return self._find(self.values, name)

    def histogram(self, name: str) -> Histogram:
        """A histogram, added up over its series."""
        return self._find(self.histograms, name)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of an info metric, for example `cache_config_info`."""
        return self._find(self.info, name)

    def _find(self, metrics: dict[str, _Found], name: str) -> _Found:
        for prefix in ("", "vllm:", "ray_vllm_"):
            for suffix in ("", "_total"):
                if (found := metrics.get(f"{prefix}{name}{suffix}")) is not None:
                    return found
        near = sorted(known for known in metrics if name.split("_")[0] in known)[:5]
        hint = f"; similar: {', '.join(near)}" if near else ""
        raise ServerError(f"the server's /metrics has no {name!r}{hint}")


def parse_metrics(page: str) -> ServerMetrics:
    """Read the text of a `/metrics` page."""
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    buckets: dict[str, dict[float, float]] = {}
    info: dict[str, dict[str, str]] = {}
    try:
        families = list(text_string_to_metric_families(page))
    except (ValueError, KeyError, IndexError) as exc:
        raise ServerError(f"/metrics is not in Prometheus' format: {exc}") from exc
    for family in families:
        for sample in family.samples:
            if family.type != "histogram":
                values[sample.name] += sample.value
                if sample.name.endswith("_info"):
                    info[sample.name] = dict(sample.labels)
                continue
            bounds = buckets.setdefault(family.name, defaultdict(float))
            if "le" in sample.labels:
                bounds[float(sample.labels["le"])] += sample.value
            else:
                counts[sample.name] += sample.value
    histograms = {
        name: Histogram(counts[f"{name}_count"], counts[f"{name}_sum"], dict(bounds))
        for name, bounds in buckets.items()
    }
    return ServerMetrics(dict(values), histograms, info)
