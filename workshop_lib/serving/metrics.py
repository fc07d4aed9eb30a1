"""The `/metrics` page of a vLLM server, read into numbers.

Under Ray Serve the same metrics carry another prefix (`ray_vllm_` in place of
`vllm:`); names are accepted without either.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workshop_lib.errors import ServerError

__all__ = ["Histogram", "ServerMetrics", "parse_metrics"]

_PREFIXES = ("", "vllm:", "ray_vllm_")


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
        for prefix in _PREFIXES:
            for suffix in ("", "_total"):
                if (found := self.values.get(f"{prefix}{name}{suffix}")) is not None:
                    return found
        raise self._missing(name)

    def histogram(self, name: str) -> Histogram:
        """A histogram, added up over its series."""
        for prefix in _PREFIXES:
            if (found := self.histograms.get(prefix + name)) is not None:
                return found
        raise self._missing(name)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of an info metric, for example `cache_config_info`."""
        for prefix in _PREFIXES:
            if (found := self.info.get(prefix + name)) is not None:
                return found
        raise self._missing(name)

    def _missing(self, name: str) -> ServerError:
        stem = name.split("_")[0]
        near = sorted(k for k in (*self.values, *self.histograms, *self.info) if stem in k)[:5]
        hint = f"; similar: {', '.join(near)}" if near else ""
        return ServerError(f"the server's /metrics has no {name!r}{hint}")


def parse_metrics(page: str) -> ServerMetrics:
    """Read the text of a `/metrics` page."""
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = {}
    sums: dict[str, list[float]] = {}
    buckets: dict[str, dict[float, float]] = {}
    info: dict[str, dict[str, str]] = {}
    try:
        families = list(text_string_to_metric_families(page))
    except (ValueError, KeyError, IndexError) as exc:
        raise ServerError(f"/metrics is not in Prometheus' format: {exc}") from exc
    for family in families:
        for sample in family.samples:
            if family.type != "histogram":
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
                if sample.name.endswith("_info"):
                    info[sample.name] = dict(sample.labels)
            elif sample.name.endswith("_bucket"):
                bounds = buckets.setdefault(family.name, {})
                bound = float(sample.labels["le"])
                bounds[bound] = bounds.get(bound, 0.0) + sample.value
            elif sample.name.endswith(("_sum", "_count")):
                count_and_sum = sums.setdefault(family.name, [0.0, 0.0])
                count_and_sum[sample.name.endswith("_sum")] += sample.value
    histograms = {
        name: Histogram(count, total, buckets.get(name, {}))
        for name, (count, total) in sums.items()
    }
    return ServerMetrics(values, histograms, info)
