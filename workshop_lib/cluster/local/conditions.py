"""Kubernetes timestamps, and conditions that keep the time of their last change."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

__all__ = ["Conditions", "now", "seconds_since"]


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_since(stamp: str) -> float:
    """Seconds from a timestamp of `now` until now."""
    return time.time() - calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))


class Conditions:
    """The conditions of one object.

    Args:
        known: Conditions from before.

    Example:
        >>> conditions = Conditions()
        >>> conditions.set("Ready", False, "Starting"), conditions.set("Ready", False, "Starting")
        (True, False)
    """

    def __init__(self, known: Iterable[Mapping[str, Any]] = ()) -> None:
        self._by_type = {c["type"]: dict(c) for c in known}

    def set(self, kind: str, met: bool, reason: str = "", message: str = "", **more: str) -> bool:
        """Set a condition; its `lastTransitionTime` changes only with its status.

        Args:
            kind: The condition's type.
            met: Its status.
            reason: One word.
            message: What a person reads.
            more: Further fields.

        Returns:
            Whether anything changed.
        """
        old = self._by_type.get(kind, {})
        new = {
            "type": kind,
            "status": "True" if met else "False",
            **({"reason": reason} if reason else {}),
            **({"message": message} if message else {}),
            **more,
        }
        if new == {key: old[key] for key in old if key != "lastTransitionTime"}:
            return False
        same = old.get("status") == new["status"]
        new["lastTransitionTime"] = old["lastTransitionTime"] if same else now()
        self._by_type[kind] = new
        return True

    def is_true(self, kind: str) -> bool:
        """Whether the condition is there and met."""
        return bool(self._by_type.get(kind, {}).get("status") == "True")

    def to_json(self) -> list[dict[str, Any]]:
        """The conditions, in the order in which they appeared."""
        return [dict(condition) for condition in self._by_type.values()]
