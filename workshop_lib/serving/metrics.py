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
    """A Prometheus histogram: how many observations, their sum, and counts up to each bound.

    Attributes:
        count: Observations.
        total: Sum of the observations, in the metric's unit (seconds for latencies).
        buckets: Upper bound to number of observations at or below it.
    """

    count: float
    total: float
    buckets: dict[float, float] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean observation; None when there is none.

        Prometheus keeps the exact sum, so a mean is exact where a percentile
        can only be guessed between two bucket bounds.
        """
        return self.total / self.count if self.count else None

    def __sub__(self, earlier: Histogram) -> Histogram:
        """The observations made since `earlier`."""
        buckets = {
            bound: count - earlier.buckets.get(bound, 0.0) for bound, count in self.buckets.items()
        }
        return Histogram(self.count - earlier.count, self.total - earlier.total, buckets)


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    r"""One reading of `/metrics`.

    Series of one name (one per engine) are added up. `info` holds the labels
    of the series whose value means nothing, such as `vllm:cache_config_info`.

    Example:
        >>> page = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3.0\n"
        >>> parse_metrics(page).value("num_requests_running")
        3.0
    """

    values: dict[str, float]
    histograms: dict[str, Histogram]
    info: dict[str, dict[str, str]]

    def value(self, name: str) -> float:
        """A gauge or a counter, added up over its series.

        Args:
            name: With or without prefix; for a counter with or without `_total`.

        Raises:
            ServerError: The server has no such metric.

        Example:
            >>> ServerMetrics({"vllm:prompt_tokens_total": 12.0}, {}, {}).value("prompt_tokens")
            12.0
        """
        for prefix in _PREFIXES:
            for suffix in ("", "_total"):
                if (found := self.values.get(f"{prefix}{name}{suffix}")) is not None:
                    return found
        raise self._missing(name)

    def histogram(self, name: str) -> Histogram:
        """A histogram, added up over its series.

        Args:
            name: With or without prefix, for example `time_to_first_token_seconds`.

        Raises:
            ServerError: The server has no such histogram.

        Example:
            >>> metrics = ServerMetrics({}, {"vllm:x_seconds": Histogram(2, 3.0)}, {})
            >>> metrics.histogram("x_seconds").mean
            1.5
        """
        for prefix in _PREFIXES:
            if (found := self.histograms.get(prefix + name)) is not None:
                return found
        raise self._missing(name)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of an info metric, for example `cache_config_info`.

        Args:
            name: With or without prefix.

        Raises:
            ServerError: The server has no such metric.

        Example:
            >>> metrics = ServerMetrics({}, {}, {"vllm:cache_config_info": {"block_size": "128"}})
            >>> metrics.labels("cache_config_info")["block_size"]
            '128'
        """
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
    r"""Read the text of a `/metrics` page.

    Args:
        page: The text, in Prometheus' exposition format.

    Raises:
        ServerError: The text is not in that format.

    Example:
        >>> parse_metrics("# TYPE a counter\na_total 2.0\n").value("a")
        2.0
    """
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
