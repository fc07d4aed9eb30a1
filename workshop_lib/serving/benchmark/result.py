"""What a benchmark measured: records of requests and levels, tables, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

_PERCENTILES = (50, 90, 99)
# Draws of whole requests for values that come in groups; more change the ends by little.
RESAMPLES = 300
# Fewer requests drawn again and again are only themselves: they bound nothing.
MIN_GROUPS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request.

    Attributes:
        load: The level it belongs to: requests in flight, or in an open loop requests a second.
        scheduled_s: When it was due, counted from the level's start; in a closed loop, when it
            was sent.
        start_s: When it was sent.
        ttft_ms: From when it was due to the first text; None for a failed request, as all
            latencies.
        itl_ms: Gaps between messages with text; several tokens may share a message.
        e2e_ms: From when it was due to the end of the answer.
        prompt_tokens, completion_tokens: As the server counted them.
        finish_reason: `stop` or `length`.
        error: Empty, or the kind of failure (see `StreamTimes.error`).
        detail: The failure in the server's words.
    """

    load: float
    scheduled_s: float
    start_s: float
    ttft_ms: float | None
    itl_ms: tuple[float, ...]
    e2e_ms: float | None
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str
    error: str
    detail: str

    @property
    def mean_itl_ms(self) -> float | None:
        """Time after the first token for each further token; None for fewer than two tokens.

        Divided by tokens, not by messages, so that it compares with the server's own mean.
        """
        if self.ttft_ms is None or not self.itl_ms or (self.completion_tokens or 0) < 2:
            return None
        return sum(self.itl_ms) / ((self.completion_tokens or 0) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRecord:
    """One level of a sweep.

    Attributes:
        load: Requests in flight, or in an open loop requests a second.
        duration_s: From the first request sent to the last answer finished.
        server_ms: Means over the same requests from the server's own histograms
            (`ttft`, `itl`, `e2e`), empty where the server has no metrics.
        tokens_per_step: Tokens of answers that one step of the engine makes, on average: about 1
            for one request alone. None where the server does not count its steps.
    """

    load: float
    duration_s: float
    server_ms: dict[str, float]
    tokens_per_step: float | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything that a sweep measured.

    Tables name the load by `load_column`: `concurrency` for a closed loop (requests in flight),
    `rate_per_s` for an open one.

    Attributes:
        url, model: What was loaded.
        created: When, in UTC.
        settings: How.
        level_records, request_records: The measurements.
        stopped: Whether somebody stopped it before its end.
        ended: Why it ended by itself before its last level: the server is saturated, or gone.

    Example:
        >>> result = run_sweep(server, prompts, levels=(1, 4, 8))  # doctest: +SKIP
        >>> result.levels[["concurrency", "ttft_p50_ms", "output_tokens_per_s"]]  # doctest: +SKIP
    """

    url: str
    model: str
    created: str
    settings: dict[str, Any]
    level_records: list[LevelRecord]
    request_records: list[RequestRecord]
    stopped: bool = False
    ended: str = ""

    @property
    def load_column(self) -> str:
        """The tables' name for the load: `concurrency` or `rate_per_s`."""
        return "rate_per_s" if self.settings.get("loop") == "open" else "concurrency"

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request: the load, the fields of `RequestRecord` and `mean_itl_ms`."""
        import pandas as pd

        rows = []
        for record in self.request_records:
            fields = asdict(record) | {"mean_itl_ms": record.mean_itl_ms}
            del fields["load"]
            rows.append(self._load(record) | fields)
        return pd.DataFrame(rows)

    @cached_property
    def levels(self) -> pd.DataFrame:
        """One row a level: counts, throughput, percentiles and means of the latencies.

        `requests`, `errors` and `timeouts` count requests, `errors` those that failed otherwise
        than by a timeout; throughput counts successful ones. `in_flight` is the mean number of
        unanswered requests, `tokens_per_step` how many of the answers' tokens a step of the engine
        made, `sent_late_ms` how much after its moment an open loop sent a request at most: the
        client's own lag. `<latency>_p50_ms`, `_p90_ms`, `_p99_ms` and `_mean_ms` are over
        successful requests (`itl`: over all gaps; its mean over all tokens),
        `server_<latency>_mean_ms` is the server's own.

        Raises:
            WorkshopError: No request had been answered when the load ended.
        """
        import pandas as pd

        if not self.level_records:
            why = self.ended or ("it was stopped" if self.stopped else "it had no time")
            raise WorkshopError(
                f"the load on {self.url} ended before its first answer ({why}); run it again"
            )
        return pd.DataFrame([self._level_row(level) for level in self.level_records])

    def percentiles(self, confidence: float = 0.95) -> pd.DataFrame:
        """The latencies' percentiles with what is sure about them.

        A percentile of a few requests is a guess: of ten requests nobody knows the p99. The
        interval holds the true percentile of the same load with the given probability. An end
        that so few requests cannot bound is NaN.

        Args:
            confidence: That probability, more than 0 and less than 1.

        Returns:
            One row a level, latency (`ttft`, `itl`, `e2e`) and percentile (50, 90, 99): its
            load, `latency`, `percentile`, `ms`, `low_ms`, `high_ms`, `requests`.

        Raises:
            WorkshopError: A probability out of range.

        Example:
            >>> result.percentiles().query("latency == 'ttft'")  # doctest: +SKIP
        """
        import pandas as pd

        rows = [
            (*self._load(level).values(), latency, percent, *interval, len(groups))
            for level in self.level_records
            for latency, groups in self._latencies(level).items()
            for percent in _PERCENTILES
            for interval in [percentile_interval(groups, percent, confidence)]
        ]
        times = {"ms": float, "low_ms": float, "high_ms": float}  # None becomes NaN
        names = [self.load_column, "latency", "percentile", *times, "requests"]
        return pd.DataFrame(rows, columns=names).astype(times)

    def goodput(self, *, ttft_ms: float, itl_ms: float) -> pd.DataFrame:
        """Requests a second that were fast enough.

        Args:
            ttft_ms: A request is good if its first token comes within this time
            itl_ms: and its further tokens take at most this long each on average.

        Returns:
            One row a level: its load, `good` (requests), `good_share` of all requests, failed
            ones included, and `goodput_per_s`.

        Raises:
            WorkshopError: A limit that is not positive.

        Example:
            >>> result.goodput(ttft_ms=500, itl_ms=100)  # doctest: +SKIP
        """
        import pandas as pd

        if not (ttft_ms > 0 and itl_ms > 0):  # so that NaN is none either
            raise WorkshopError(f"limits must be more than 0 ms, got {ttft_ms} and {itl_ms}")
        rows = []
        for level in self.level_records:
            records = self._records(level)
            good = sum(
                record.ttft_ms is not None
                and record.ttft_ms <= ttft_ms
                and (record.mean_itl_ms or 0.0) <= itl_ms
                for record in records
                if not record.error
            )
            share = good / len(records) if records else 0.0
            per_s = good / level.duration_s if level.duration_s else 0.0
            row = {"good": good, "good_share": share, "goodput_per_s": per_s}
            rows.append(self._load(level) | row)
        return pd.DataFrame(rows)

    def compare_with_server(self) -> pd.DataFrame:
        """Mean latencies as this client saw them and as the server's histograms have them.

        Returns:
            One row a level and latency: its load, `latency`, `client_ms`, `server_ms`,
            `difference_ms`, `difference_percent`. Empty for a server without metrics.

        Example:
            >>> result.compare_with_server()  # doctest: +SKIP
        """
        import pandas as pd

        columns = [self.load_column, "latency", "client_ms", "server_ms"]
        rows = [
            (*self._load(level).values(), name, self._mean_ms(level, name), server_ms)
            for level in self.level_records
            for name, server_ms in level.server_ms.items()
        ]
        frame = pd.DataFrame(rows, columns=columns)
        frame["difference_ms"] = frame.client_ms - frame.server_ms
        frame["difference_percent"] = 100 * frame.difference_ms / frame.server_ms
        return frame

    def _records(self, level: LevelRecord) -> list[RequestRecord]:
        return [record for record in self.request_records if record.load == level.load]

    def _load(self, record: LevelRecord | RequestRecord) -> dict[str, float]:
        """The load under its name in tables; requests in flight are whole numbers."""
        whole = self.load_column == "concurrency"
        return {self.load_column: int(record.load) if whole else record.load}

    def _mean_ms(self, level: LevelRecord, latency: str) -> float | None:
        if latency == "itl":
            good = [r for r in self._records(level) if not r.error]
            counted = [r for r in good if (r.completion_tokens or 0) > 1]
            tokens = sum((r.completion_tokens or 0) - 1 for r in counted)
            return sum(sum(r.itl_ms) for r in counted) / tokens if tokens else None
        values = [value for (value,) in self._latencies(level)[latency]]
        return sum(values) / len(values) if values else None

    def _latencies(self, level: LevelRecord) -> dict[str, list[tuple[float, ...]]]:
        """Each latency's values, grouped by the request that they come from."""
        good = [r for r in self._records(level) if not r.error]
        return {
            "ttft": [(r.ttft_ms,) for r in good if r.ttft_ms is not None],
            "itl": [r.itl_ms for r in good if r.itl_ms],
            "e2e": [(r.e2e_ms,) for r in good if r.e2e_ms is not None],
        }

    def _level_row(self, level: LevelRecord) -> dict[str, Any]:
        import numpy as np

        records = self._records(level)
        good = [r for r in records if not r.error]
        timeouts = sum(r.error == "timeout" for r in records)
        seconds = level.duration_s or float("inf")
        row: dict[str, Any] = self._load(level) | {
            "requests": len(records),
            "errors": len(records) - len(good) - timeouts,
            "timeouts": timeouts,
            "duration_s": level.duration_s,
            "requests_per_s": len(good) / seconds,
            "output_tokens_per_s": sum(r.completion_tokens or 0 for r in good) / seconds,
            "tokens_per_step": level.tokens_per_step,
            # Little's law: the mean number in flight is the time spent there over all time.
            "in_flight": sum(r.e2e_ms or 0.0 for r in good) / 1000 / seconds,
            "sent_late_ms": max(((r.start_s - r.scheduled_s) * 1000 for r in records), default=0),
        }
        for name, groups in self._latencies(level).items():
            known = [value for group in groups for value in group]
            for percent in _PERCENTILES:
                value = float(np.percentile(known, percent)) if known else None
                row[f"{name}_p{percent}_ms"] = value
            row[f"{name}_mean_ms"] = self._mean_ms(level, name)
            row[f"server_{name}_mean_ms"] = level.server_ms.get(name)
        return row


def quantile_ranks(
    samples: int, share: float, confidence: float = 0.95
) -> tuple[int | None, int | None]:
    """Which of the sorted samples bound a quantile, counted from 1; None where too few do.

    How many of n samples lie below the true quantile is binomially distributed, whatever the
    distribution of the samples. Source: W. J. Conover, "Practical Nonparametric Statistics",
    3rd edition, section 3.2.
    """
    import numpy as np

    if samples < 1:
        return None, None
    k = np.arange(samples + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, samples + 1)))])
    choose = logs[samples] - logs[k] - logs[samples - k]
    below = np.cumsum(np.exp(choose + k * np.log(share) + (samples - k) * np.log1p(-share)))
    tail = (1 - confidence) / 2
    # Rank r is a lower bound when fewer than r samples below the quantile are unlikely enough.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return low if low >= 1 else None, high if high <= samples else None


def percentile_interval(
    groups: Sequence[Sequence[float]], percent: float, confidence: float = 0.95
) -> tuple[float | None, float | None, float | None]:
    """A percentile over all values of all groups, and the ends of its interval.

    With one value a group: order statistics. With several, which resemble each other within a
    group (the gaps of a request): the bootstrap over whole groups. Source: Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, sections 3.8 and 5.3.
    """
    import numpy as np

    if not 0 < percent < 100 or not 0 < confidence < 1:
        raise WorkshopError(
            f"a percentile is between 0 and 100 and a confidence between 0 and 1, got {percent} "
            f"and {confidence}"
        )
    if not groups:
        return None, None, None
    values = [np.asarray(group, dtype=float) for group in groups]
    together = np.sort(np.concatenate(values))
    value = float(np.percentile(together, percent))
    if len(together) == len(values):
        ranks = quantile_ranks(len(together), percent / 100, confidence)
        low, high = (None if rank is None else float(together[rank - 1]) for rank in ranks)
        return value, low, high
    if len(values) < MIN_GROUPS:
        return value, None, None
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    found = [np.percentile(np.concatenate([values[i] for i in draw]), percent) for draw in draws]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return value, float(low), float(high)
