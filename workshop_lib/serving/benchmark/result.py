"""What a benchmark measured: requests and levels, tables of them, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

_PERCENTILES = (50, 90, 99)
CONFIDENCE = 0.95
# Draws of whole requests for values that come in groups; more change the ends by little.
RESAMPLES = 300
# Fewer requests drawn again and again are only themselves: they bound nothing.
MIN_GROUPS = 6


@dataclass(slots=True)
class RequestRecord:
    """One streamed request; moments are `time.perf_counter()` seconds.

    On Linux that clock is CLOCK_MONOTONIC, so another process's stamps compare.

    Latencies count from `due_s`, when it should have been handed to the connection (`start_s`), so
    that a client or a server that holds requests back cannot make them look fast. `text_s` is the
    arrival of each message with text; several tokens may share one. `error` is empty or one of
    refused, timeout, closed, malformed, empty, server, http <status>.
    """

    start_s: float
    due_s: float
    text_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str = ""
    detail: str = ""

    def fail(self, kind: str, detail: str, now_s: float) -> None:
        """Note that it failed."""
        self.error, self.detail, self.end_s = kind, " ".join(detail.split())[:200], now_s

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first text; a failed request has no latency."""
        return None if self.error or not self.text_s else (self.text_s[0] - self.due_s) * 1000

    @property
    def itl_ms(self) -> tuple[float, ...]:
        """Gaps between messages with text."""
        pairs = () if self.error else pairwise(self.text_s)
        return tuple((later - earlier) * 1000 for earlier, later in pairs)

    @property
    def e2e_ms(self) -> float | None:
        """Time to the end of the answer."""
        return None if self.error else (self.end_s - self.due_s) * 1000

    @property
    def mean_itl_ms(self) -> float | None:
        """Time after the first token for each further token; None for fewer than two tokens.

        Divided by tokens, not by messages, so that it compares with the server's own mean.
        """
        further = (self.completion_tokens or 0) - 1
        return sum(gaps) / further if further > 0 and (gaps := self.itl_ms) else None


@dataclass(slots=True)
class LevelRecord:
    """One level of a sweep.

    `load` is requests in flight, or in an open loop requests a second. `server_ms` has means from
    the server's own histograms (`ttft`, `itl`, `e2e`) and `tokens_per_step` the answers' tokens
    that a step of the engine makes, on average; empty and None where the server has no metrics.
    """

    load: float
    requests: list[RequestRecord] = field(default_factory=list)
    server_ms: dict[str, float] = field(default_factory=dict)
    tokens_per_step: float | None = None

    @property
    def good(self) -> list[RequestRecord]:
        """The requests that did not fail."""
        return [record for record in self.requests if not record.error]

    @property
    def duration_s(self) -> float:
        """From the first request sent to the last answer finished."""
        ends_s = [record.end_s for record in self.requests]
        return max(ends_s, default=0.0) - min((r.start_s for r in self.requests), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of successful requests a second."""
        tokens = sum(record.completion_tokens or 0 for record in self.good)
        return tokens / self.duration_s if tokens else 0.0

    def latencies(self) -> dict[str, list[tuple[float, ...]]]:
        """Each latency's values, grouped by the request that they come from."""
        return {
            "ttft": [(r.ttft_ms,) for r in self.good if r.ttft_ms is not None],
            "itl": [gaps for r in self.good if (gaps := r.itl_ms)],
            "e2e": [(r.e2e_ms,) for r in self.good if r.e2e_ms is not None],
        }

    def mean_ms(self, latency: str) -> float | None:
        """The mean over requests; of `itl` over all tokens after the first."""
        values = [value for group in self.latencies()[latency] for value in group]
        count = len(values)
        if latency == "itl":
            count = sum(max(0, (r.completion_tokens or 0) - 1) for r in self.good)
        return sum(values) / count if count else None


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything that a sweep measured.

    Tables name the load by `load_column`: `concurrency` for a closed loop (requests in flight),
    `rate_per_s` for an open one.

    Attributes:
        url, settings: What was loaded, and how.
        level_records: The measurements.
        stopped: Whether somebody stopped it before its end.
        ended: Why it ended by itself before its last level: the server is saturated, or gone.
    """

    url: str
    settings: dict[str, Any]
    level_records: list[LevelRecord]
    stopped: bool = False
    ended: str = ""

    @property
    def request_records(self) -> list[RequestRecord]:
        """The requests of all levels."""
        return [record for level in self.level_records for record in level.requests]

    @property
    def load_column(self) -> str:
        """The tables' name for the load: `concurrency` or `rate_per_s`."""
        return "rate_per_s" if self.settings.get("loop") == "open" else "concurrency"

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

    def percentiles(self) -> pd.DataFrame:
        """The latencies' percentiles with what is sure about them.

        A percentile of a few requests is a guess: of ten requests nobody knows the p99. The
        interval holds the true percentile of the same load with a probability of 95%. An end
        that so few requests cannot bound is NaN.

        Returns:
            One row a level, latency (`ttft`, `itl`, `e2e`) and percentile (50, 90, 99): its
            load, `latency`, `percentile`, `ms`, `low_ms`, `high_ms`, `requests`.

        Example:
            >>> result.percentiles().query("latency == 'ttft'")  # doctest: +SKIP
        """
        import pandas as pd

        rows = [
            (level.load, latency, percent, *interval, len(groups))
            for level in self.level_records
            for latency, groups in level.latencies().items()
            for percent in _PERCENTILES
            for interval in [percentile_interval(groups, percent)]
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
            good = sum(
                record.ttft_ms is not None
                and record.ttft_ms <= ttft_ms
                and (record.mean_itl_ms or 0.0) <= itl_ms
                for record in level.good
            )
            row = (level.load, good, good / len(level.requests), good / level.duration_s)
            rows.append(row)
        names = [self.load_column, "good", "good_share", "goodput_per_s"]
        return pd.DataFrame(rows, columns=names)

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
            (level.load, name, level.mean_ms(name), server_ms)
            for level in self.level_records
            for name, server_ms in level.server_ms.items()
        ]
        frame = pd.DataFrame(rows, columns=columns)
        frame["difference_ms"] = frame.client_ms - frame.server_ms
        frame["difference_percent"] = 100 * frame.difference_ms / frame.server_ms
        return frame

    def _level_row(self, level: LevelRecord) -> dict[str, Any]:
        import numpy as np

        records, good = level.requests, level.good
        timeouts = sum(r.error == "timeout" for r in records)
        row = {
            self.load_column: level.load,
            "requests": len(records),
            "errors": len(records) - len(good) - timeouts,
            "timeouts": timeouts,
            "duration_s": level.duration_s,
            "requests_per_s": len(good) / level.duration_s,
            "output_tokens_per_s": level.tokens_per_s,
            "tokens_per_step": level.tokens_per_step,
            # Little's law: the mean number in flight is the time spent there over all time.
            "in_flight": sum(r.e2e_ms or 0.0 for r in good) / 1000 / level.duration_s,
            "sent_late_ms": max((r.start_s - r.due_s) * 1000 for r in records),
        }
        for name, groups in level.latencies().items():
            known = [value for group in groups for value in group]
            for percent in _PERCENTILES:
                value = float(np.percentile(known, percent)) if known else None
                row[f"{name}_p{percent}_ms"] = value
            row[f"{name}_mean_ms"] = level.mean_ms(name)
            row[f"server_{name}_mean_ms"] = level.server_ms.get(name)
        return row


def quantile_ranks(samples: int, share: float) -> tuple[int | None, int | None]:
    """Which of the sorted samples bound a quantile, counted from 1; None where too few do.

    How many of n samples lie below the true quantile is binomially distributed, whatever the
    distribution of the samples. Source: W. J. Conover, "Practical Nonparametric Statistics",
    3rd edition, section 3.2.
    """
    import numpy as np

    k = np.arange(samples + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(k[1:]))])  # of the factorials
    choose = logs[samples] - logs[k] - logs[samples - k]
    below = np.cumsum(np.exp(choose + k * np.log(share) + (samples - k) * np.log1p(-share)))
    tail = (1 - CONFIDENCE) / 2
    # Rank r is a lower bound when fewer than r samples below the quantile are unlikely enough.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    return low if low >= 1 else None, high if high <= samples else None


def percentile_interval(
    groups: Sequence[Sequence[float]], percent: float
) -> tuple[float | None, float | None, float | None]:
    """A percentile over all values of all groups, and the ends of its interval.

    With one value a group: order statistics. With several, which resemble each other within a
    group (the gaps of a request): the bootstrap over whole groups. Source: Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, sections 3.8 and 5.3.
    """
    import numpy as np

    if not groups:
        return None, None, None
    values = [np.asarray(group, dtype=float) for group in groups]
    together = np.sort(np.concatenate(values))
    value = float(np.percentile(together, percent))
    if len(together) == len(values):
        ranks = quantile_ranks(len(together), percent / 100)
        low, high = (None if rank is None else float(together[rank - 1]) for rank in ranks)
        return value, low, high
    if len(values) < MIN_GROUPS:
        return value, None, None
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    found = [np.percentile(np.concatenate([values[i] for i in draw]), percent) for draw in draws]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(found, [tail, 100 - tail])
    return value, float(low), float(high)
