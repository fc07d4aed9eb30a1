"""A Prometheus, asked over its HTTP API (https://prometheus.io/docs/prometheus/latest/querying/api/)."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from workshop_lib.errors import ServerError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PrometheusClient"]


class PrometheusClient:
    """Any Prometheus that answers at an address.

    Args:
        url: Its address. On a cluster with kube-prometheus-stack, one that `forward` gives for
            the Service `monitoring-kube-prometheus-prometheus`, port 9090.
        timeout_s: The longest that it may take to answer.

    Example:
        >>> admin = connect("eks", namespace="monitoring")   # doctest: +SKIP
        >>> with admin.forward("monitoring-kube-prometheus-prometheus", 9090) as url:
        ...     PrometheusClient(url).query("workshop:requests_running")   # doctest: +SKIP
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of `/api/v1`.

        Args:
            path: Such as `query`.
            **parameters: Its parameters.

        Raises:
            ServerError: It does not answer, or says what is wrong with the question.
        """
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(
                f"{self.url}/api/v1/{path}{query}", timeout=self.timeout_s
            ) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ServerError(f"Prometheus at {self.url}: {_said(error)}") from None
        except (OSError, ValueError) as error:
            raise ServerError(
                f"Prometheus at {self.url} does not answer ({error}); is it still running?"
            ) from None
        return body["data"]

    def query(self, expression: str) -> pd.DataFrame:
        """The value of an expression now: a row for each series, its labels and `value`.

        Args:
            expression: In PromQL.

        Raises:
            ServerError: It does not answer, or cannot read the expression.

        Example:
            >>> prometheus.query("up")[["pod", "value"]]   # doctest: +SKIP
        """
        import pandas as pd

        found = self.get("query", query=expression)
        rows = [{**each["metric"], "value": float(each["value"][1])} for each in _series(found)]
        return pd.DataFrame(rows, columns=None if rows else ["value"])

    def query_range(
        self,
        expression: str,
        *,
        last_s: float = 300.0,
        step_s: float = 5.0,
        end_s: float | None = None,
    ) -> pd.DataFrame:
        """An expression over the last time: a row for each series and moment.

        Args:
            expression: In PromQL.
            last_s: How far back, seconds.
            step_s: Time between two values, seconds.
            end_s: Until when, Unix time; default: now. The same for several expressions gives
                values at the same moments.

        Returns:
            The labels, `time` (Unix time, seconds) and `value`; values that are no number are
            left out, as Grafana does.

        Raises:
            ServerError: It does not answer, or cannot read the expression.
        """
        import math

        import pandas as pd

        end = time.time() if end_s is None else end_s
        found = self.get(
            "query_range", query=expression, start=f"{end - last_s:.3f}", end=f"{end:.3f}",
            step=f"{step_s:g}",
        )  # fmt: skip
        rows = [
            {**each["metric"], "time": float(moment), "value": float(value)}
            for each in found["result"]
            for moment, value in each["values"]
            if not math.isnan(float(value))
        ]
        return pd.DataFrame(rows, columns=None if rows else ["time", "value"])

    def targets(self) -> pd.DataFrame:
        """The pages that it reads: `job`, `pod`, `url`, `health`, and the last `error`."""
        import pandas as pd

        rows = [
            {
                "job": each["labels"].get("job", ""),
                "pod": each["labels"].get("pod", ""),
                "url": each["scrapeUrl"],
                "health": each["health"],
                "error": each["lastError"],
            }
            for each in self.get("targets", state="active")["activeTargets"]
        ]
        return pd.DataFrame(rows, columns=["job", "pod", "url", "health", "error"])

    def alerts(self) -> pd.DataFrame:
        """The alerts that are on: `alert`, `state` (pending or firing), `summary`, `action`."""
        import pandas as pd

        rows = [
            {
                "alert": each["labels"]["alertname"],
                "state": each["state"],
                "summary": each["annotations"].get("summary", ""),
                "action": each["annotations"].get("action", ""),
            }
            for each in self.get("alerts")["alerts"]
        ]
        return pd.DataFrame(rows, columns=["alert", "state", "summary", "action"])


def _series(found: Any) -> list[Any]:
    """The series of an answer; a plain number is a series without labels."""
    if found["resultType"] == "scalar":
        return [{"metric": {}, "value": found["result"]}]
    return list(found["result"])


def _said(error: urllib.error.HTTPError) -> str:
    """What Prometheus itself says about a question that it refuses."""
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError):
        return f"HTTP {error.code}"
