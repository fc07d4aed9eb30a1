"""Which recorded results the report's summary shows, in whose words, and the bar they must meet.

A notebook says what it found with `record`; `KNOWN` says how a room reads it. A name that
is not here is listed under "every result" as it is, so that nothing is lost by being new:
one line here gives it a label, a unit and a bar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["KNOWN", "Known", "Shown", "key_results", "readable"]

KEYS_SHOWN = 5
"""Results in a notebook's card: what a room can read at once."""

VALUE_LENGTH = 60


@dataclass(frozen=True, kw_only=True)
class Known:
    """How a recorded result is shown.

    Attributes:
        label: What it is, in a few words.
        unit: Behind the value; `%` says that the value is a share, to be shown in percent.
        at_least: The bar, where more is better; in the unit in which it is recorded.
        at_most: The bar, where less is better.
        exactly: The bar, where only one value is right.
        same_as: The bar, where it must equal another result: that one's name.
        says: The bar in words, where they are better than the number.
        before: The name of the result that this one came from, shown as `before → value`.
        digits: After the point, for a unit's usual precision; None leaves it to the value.
    """

    label: str
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    exactly: Any = None
    same_as: str = ""
    says: str = ""
    before: str = ""
    digits: int | None = None

    @property
    def bar(self) -> str:
        """The bar in words; empty when there is none."""
        if self.says:
            return self.says
        if self.at_least is not None:
            return f"at least {self.text(self.at_least)}"
        if self.at_most is not None:
            return f"at most {self.text(self.at_most)}" if self.at_most else self.text(0)
        return self.text(self.exactly) if self.exactly is not None else ""

    def met(self, value: Any, records: Mapping[str, Any] | None = None) -> bool | None:
        """Whether a value meets the bar; None when there is none.

        Args:
            value: As recorded; what is no number meets no numeric bar. Of a dictionary of
                truth values every one must meet it.
            records: The notebook's other results, for `same_as`.

        Example:
            >>> Known(label="mean reward", at_least=0.9).met(0.95)
            True
        """
        if self.same_as:
            return bool(value == (records or {}).get(self.same_as))
        if self.exactly is not None:
            values = list(value.values()) if isinstance(value, dict) else [value]
            return bool(values) and all(each == self.exactly for each in values)
        if self.at_least is None and self.at_most is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def text(self, value: Any) -> str:
        """Write a value with its unit.

        Args:
            value: As recorded.

        Example:
            >>> Known(label="error", unit="%").text(0.0125), Known(label="reward").text(0.9375)
            ('1.25%', '0.9375')
        """
        if isinstance(value, dict) and all(isinstance(each, bool) for each in value.values()):
            return f"{sum(value.values())} of {len(value)}"
        if isinstance(value, list) and all(isinstance(each, int | float) for each in value):
            return ", ".join(map(readable, value))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number:
            return readable(value)
        if self.unit == "%":
            return f"{100 * value:.{self.digits}f}%" if self.digits is not None else (
                f"{readable(round(100 * value, 6))}%"
            )  # fmt: skip
        plain = readable(value) if self.digits is None else f"{value:,.{self.digits}f}"
        return f"{plain} {self.unit}" if self.unit else plain


CHECKS = Known(label="checks at the end passed", exactly=True)

KNOWN: dict[str, Known] = {
    # 01 Ray cluster
    "nodes_alive": Known(label="Ray nodes that joined", unit="nodes", exactly=2),
    "status_without_token": Known(label="answer without Ray's token", unit="(HTTP)", exactly=401),
    "spread_over_nodes": Known(label="SPREAD placed two bundles on", unit="nodes", exactly=2),
    "job_condition": Known(label="the Job ended as", exactly="Complete"),
    "second_run_found_head": Known(label="with a stale address, the head is found", exactly=False),
    "repaired_run_found_head": Known(label="repaired, it is found", exactly=True),
    # 02 vLLM serving
    "kv_tokens_engine": Known(
        label="KV cache, predicted → real", before="kv_tokens_predicted", unit="tokens"
    ),
    "kv_error_share": Known(label="the prediction is off by", unit="%", at_most=0.01),
    "throughput_gain": Known(label="throughput gained under load", unit="times"),
    "errors": Known(label="failed requests", at_most=0),
    # 03 GRPO training
    "reward_last": Known(label="mean reward, first → last step", before="reward_first", digits=2),
    "steps_to_reward": Known(
        label="three steps in a row reach 0.9 after", unit="steps", at_least=0, says="reached"
    ),
    "accuracy_after": Known(
        label="right answers on held-out sums", before="accuracy_before", unit="%", digits=0
    ),
    "checks": Known(label="checks at the end passed", exactly=True, says="all"),
    # 04 Production
    "cold_start_s": Known(label="from nothing to the first answer", unit="s", digits=0),
    "replicas_seen": Known(
        label="replicas as the load rose and fell", same_as="predicted_replicas", says="predicted"
    ),
    "recovered": Known(label="recovered from a killed replica", exactly=True),
    "failed_attempts": Known(label="failed requests while scaling", at_most=0),
    "cleaned_up": Known(label="nothing was left behind", exactly=True),
    # every notebook
    "checks_passed": CHECKS,
}
"""What a room is shown, in this order; names are those of `record`."""


@dataclass(frozen=True)
class Shown:
    """One result in a notebook's card.

    Attributes:
        label: What it is.
        value: With its unit.
        bar: What it must be; empty when nothing is asked of it, or the value says it.
        met: Whether it is that; None without a bar.
    """

    label: str
    value: str
    bar: str = ""
    met: bool | None = None


def key_results(records: Mapping[str, Any], known: Mapping[str, Known] = KNOWN) -> list[Shown]:
    """Choose what a notebook's card shows of its results.

    Args:
        records: What it recorded, by name.
        known: The table; a result of which it knows nothing is shown only where a
            notebook has none that it knows, under its own name.

    Returns:
        At most `KEYS_SHOWN`; those that miss their bar are always among them.

    Example:
        >>> key_results({"kv_error_share": 0.0})[0].value
        '0%'
    """
    chosen = [(name, entry) for name, entry in known.items() if name in records]
    if not chosen:
        plain = {k: v for k, v in records.items() if not isinstance(v, list | dict)}
        return [Shown(name, readable(value)) for name, value in list(plain.items())[:KEYS_SHOWN]]
    missed = [each for each in chosen if each[1].met(records[each[0]], records) is False]
    others = [each for each in chosen if each not in missed]
    kept = [*missed, *others[: max(0, KEYS_SHOWN - len(missed))]]
    return [_shown(name, entry, records) for name, entry in chosen if (name, entry) in kept]


def _shown(name: str, entry: Known, records: Mapping[str, Any]) -> Shown:
    value = entry.text(records[name])
    met = entry.met(records[name], records)
    bar = "" if met and entry.bar == value else entry.bar
    if entry.before in records:
        first = entry.text(records[entry.before]).removesuffix(f" {entry.unit}")
        value = f"{first} → {value}"
    return Shown(entry.label, value, bar, met)


def readable(value: Any) -> str:
    """A recorded value for people: a few digits, one line.

    Args:
        value: What JSON can hold.

    Example:
        >>> readable(True), readable(23168), readable(0.123456), readable([1, 2])
        ('yes', '23,168', '0.1235', '[1, 2]')
    """
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 1] + "…"
