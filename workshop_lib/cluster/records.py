"""What a cluster answers a notebook with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["ExecResult", "LogLine", "Observation", "Remains"]


class LogLine(NamedTuple):
    """One line that a container wrote; `rank`: its pod's index in an Indexed Job, else None."""

    pod: str
    rank: int | None
    container: str
    text: str

    def __str__(self) -> str:
        who = self.pod if self.rank is None else f"rank {self.rank}"
        return f"[{who}] {self.text}"


@dataclass(frozen=True)
class ExecResult:
    """What a command in a container said."""

    exit_code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        text = (self.stdout + self.stderr).rstrip()
        return text if self.exit_code == 0 else f"{text}\n(exit code {self.exit_code})".lstrip()


@dataclass(frozen=True)
class Observation:
    """A workload as it is now, in Kubernetes' own JSON: object, pods, events (oldest first)."""

    body: dict[str, Any]
    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Remains:
    """What of the workshop is there, by the workshop's own labels and marks.

    Attributes:
        objects: `Kind/name` of each object; volume claims apart.
        running: Pods, or on this machine processes, beside those of these objects.
        ports: Where something listens that no object accounts for; None where a cluster's
            ports are its pods' own.
        claims: Volume claims: data outlives what used it, on purpose.
    """

    objects: tuple[str, ...]
    running: tuple[str, ...]
    ports: tuple[str, ...] | None
    claims: tuple[str, ...] = ()
