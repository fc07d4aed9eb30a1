"""What a benchmark measured: records of requests and levels, tables, JSON.

Pure: nothing here talks to a server.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import WorkshopError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BenchmarkResult", "LevelRecord", "RequestRecord"]

_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request.

    Attributes:
        concurrency: The level it belongs to.
        start_s: When it was sent, counted from the level's start.
        scheduled_s: When it was due; in a closed loop, when it was sent.
        ttft_ms: To the first text; None for a failed request, as all latencies.
        itl_ms: Gaps between messages with text; several tokens may share a message.
        e2e_ms: To the end of the answer.
        prompt_tokens, completion_tokens: As the server counted them.
        finish_reason: `stop` or `length`.
        error: Empty, or the kind of failure (see `StreamTimes.error`).
        detail: The failure in the server's words.
    """

    concurrency: int
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

        Divided by tokens, not by messages, so that it compares with the
        server's own mean.
        """
        if self.ttft_ms is None or not self.itl_ms or (self.completion_tokens or 0) < 2:
            return None
        return sum(self.itl_ms) / ((self.completion_tokens or 0) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRecord:
    """One level of a sweep.

    Attributes:
        concurrency: Requests in flight.
        duration_s: From the first request sent to the last answer finished.
        server_ms: Means over the same requests from the server's own histograms
            (`ttft`, `itl`, `e2e`), empty where the server has no metrics.
    """

    concurrency: int
    duration_s: float
    server_ms: dict[str, float]


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything that a sweep measured.

    Attributes:
        url, model: What was loaded.
        created: When, in UTC.
        settings: How.
        level_records, request_records: The measurements.
        stopped: Whether it was stopped before its end.

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

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row a request: the fields of `RequestRecord` and `mean_itl_ms`."""
        import pandas as pd

        rows = [asdict(r) | {"mean_itl_ms": r.mean_itl_ms} for r in self.request_records]
        return pd.DataFrame(rows)

    @cached_property
    def levels(self) -> pd.DataFrame:
        """One row a level: counts, throughput, percentiles and means of the latencies.

        `requests` and `errors` count requests; throughput counts successful
        ones. `<latency>_p50_ms`, `_p90_ms`, `_p99_ms` and `_mean_ms` are over
        successful requests (`itl`: over all gaps; its mean over all tokens),
        `server_<latency>_mean_ms` is the server's own.
        """
        import pandas as pd

        return pd.DataFrame([self._level_row(level) for level in self.level_records])

    def goodput(self, *, ttft_ms: float, itl_ms: float) -> pd.DataFrame:
        """Requests a second that were fast enough.

        Args:
            ttft_ms: A request is good if its first token comes within this time
            itl_ms: and its further tokens take at most this long each on average.

        Returns:
            One row a level: `concurrency`, `good` (requests), `good_share` of all
            requests, failed ones included, and `goodput_per_s`.

        Raises:
            WorkshopError: A limit that is not positive.

        Example:
            >>> result.goodput(ttft_ms=500, itl_ms=100)  # doctest: +SKIP
        """
        import pandas as pd

        if ttft_ms <= 0 or itl_ms <= 0:
            raise WorkshopError(f"limits must be more than 0 ms, got {ttft_ms} and {itl_ms}")
        rows = []
        for level in self.level_records:
            records = self._records(level)
            good = sum(_within(record, ttft_ms, itl_ms) for record in records)
            rows.append(
                {
                    "concurrency": level.concurrency,
                    "good": good,
                    "good_share": good / len(records) if records else 0.0,
                    "goodput_per_s": good / level.duration_s if level.duration_s else 0.0,
                }
            )
        return pd.DataFrame(rows)

    def compare_with_server(self) -> pd.DataFrame:
        """Mean latencies as this client saw them and as the server's histograms have them.

        Returns:
            One row a level and latency: `concurrency`, `latency`, `client_ms`,
            `server_ms`, `difference_ms`, `difference_percent`. Empty for a
            server without metrics.

        Example:
            >>> result.compare_with_server()  # doctest: +SKIP
        """
        import pandas as pd

        columns = ["concurrency", "latency", "client_ms", "server_ms"]
        rows = [
            (level.concurrency, name, self._mean_ms(level, name), server_ms)
            for level in self.level_records
            for name, server_ms in level.server_ms.items()
        ]
        frame = pd.DataFrame(rows, columns=columns)
        frame["difference_ms"] = frame.client_ms - frame.server_ms
        frame["difference_percent"] = 100 * frame.difference_ms / frame.server_ms
        return frame

    def save(self, path: str | Path) -> Path:
        """Write everything as JSON.

        Args:
            path: The file; its folder is made if needed.

        Example:
            >>> result.save("build/sweep.json")  # doctest: +SKIP
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {"format": 1} | asdict(self)
        path.write_text(json.dumps(data) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> BenchmarkResult:
        """Read what `save` wrote.

        Args:
            path: The file.

        Raises:
            WorkshopError: The file cannot be read or is something else.

        Example:
            >>> BenchmarkResult.load("build/sweep.json").levels  # doctest: +SKIP
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if data.pop("format") != 1:
                raise ValueError("another format")
            levels = [LevelRecord(**level) for level in data.pop("level_records")]
            requests = [
                RequestRecord(**{**record, "itl_ms": tuple(record["itl_ms"])})
                for record in data.pop("request_records")
            ]
            return cls(**data, level_records=levels, request_records=requests)
        except OSError as exc:
            raise WorkshopError(f"the benchmark {path} cannot be read: {exc.strerror}") from exc
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise WorkshopError(f"{path} is not a saved benchmark: {exc}") from exc

    def _records(self, level: LevelRecord) -> list[RequestRecord]:
        return [r for r in self.request_records if r.concurrency == level.concurrency]

    def _mean_ms(self, level: LevelRecord, latency: str) -> float | None:
        good = [r for r in self._records(level) if not r.error]
        if latency == "itl":
            counted = [r for r in good if (r.completion_tokens or 0) > 1]
            tokens = sum((r.completion_tokens or 0) - 1 for r in counted)
            return sum(sum(r.itl_ms) for r in counted) / tokens if tokens else None
        values = [r.ttft_ms if latency == "ttft" else r.e2e_ms for r in good]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def _level_row(self, level: LevelRecord) -> dict[str, Any]:
        import numpy as np

        records = self._records(level)
        good = [r for r in records if not r.error]
        tokens = sum(r.completion_tokens or 0 for r in good)
        row: dict[str, Any] = {
            "concurrency": level.concurrency,
            "requests": len(records),
            "errors": len(records) - len(good),
            "duration_s": level.duration_s,
            "requests_per_s": len(good) / level.duration_s if level.duration_s else 0.0,
            "output_tokens_per_s": tokens / level.duration_s if level.duration_s else 0.0,
        }
        latencies: dict[str, list[float | None]] = {
            "ttft": [r.ttft_ms for r in good],
            "itl": [gap for r in good for gap in r.itl_ms],
            "e2e": [r.e2e_ms for r in good],
        }
        for name, values in latencies.items():
            known = [value for value in values if value is not None]
            for percent in _PERCENTILES:
                value = float(np.percentile(known, percent)) if known else None
                row[f"{name}_p{percent}_ms"] = value
            row[f"{name}_mean_ms"] = self._mean_ms(level, name)
        for name in latencies:
            row[f"server_{name}_mean_ms"] = level.server_ms.get(name)
        return row


def _within(record: RequestRecord, ttft_ms: float, itl_ms: float) -> bool:
    if record.error or record.ttft_ms is None or record.ttft_ms > ttft_ms:
        return False
    return record.mean_itl_ms is None or record.mean_itl_ms <= itl_ms
